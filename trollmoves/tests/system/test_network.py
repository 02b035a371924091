"""Network faults between two hosts: everything recovers automatically afterwards.

The deadlines are those that doc/reliability.md states.
"""

from __future__ import annotations

import itertools
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from trollmoves.messaging import sockets
from trollmoves.tests.helpers.daemons import Process, Testbed, client_section, server_section
from trollmoves.tests.helpers.feeding import Feeder, names
from trollmoves.tests.helpers.network import Host, Network, SlowLink
from trollmoves.tests.helpers.waiting import until

SECONDS = 30.0  # s for recovery once the network works
NOTICED = 25.0  # s for the detection of a peer that vanished

pytestmark = pytest.mark.timeout(300)


class Sender:
    """A host with a server, and its announcements."""

    def __init__(self, testbed: Testbed, host: Host, address: str = "", **options: object) -> None:
        self.host = host
        self.feeder = testbed.feeder(f"in of {host.name}")
        self.address = address or host.address
        self.port, self.request_port = testbed.port(), testbed.port()
        section = server_section(self.feeder.folder, self.request_port, request_address=self.address, **options)
        self.server = host.run_inside(testbed.server({"hrit": section}, self.port, name=f"server on {host.name}"))


class Receiver:
    """A host with a client, and its receipts."""

    def __init__(
        self, testbed: Testbed, host: Host, senders: list[Sender], *, names: Path | None = None, **options: object
    ) -> None:
        self.host = host
        self.target = testbed.directory(f"out of {host.name}")
        port = testbed.port()
        providers = " ".join(f"{one.address}:{one.port}" for one in senders)
        section = client_section([], self.target, port, transfer_req_timeout=3) | {"providers": providers} | options
        self.client = host.run_inside(testbed.client({"hrit": section}, name=f"client on {host.name}"), names)
        self.subscriber = host.subscriber(port)

    def wait_for(self, feeder: Feeder, *, killed: bool = False) -> None:
        """Wait until all files are complete with one receipt each; after a kill some may have two."""
        self.subscriber.wait_for_receipts(feeder.fed, SECONDS)
        assert feeder.missing(self.target) == []
        assert killed or set(Counter(self.subscriber.receipts()).values()) == {1}


@pytest.fixture
def testbed(tmp_path: Path) -> Iterator[Testbed]:
    """A testbed."""
    with Testbed(tmp_path) as testbed:
        yield testbed


@pytest.fixture
def network(testbed: Testbed) -> Network:
    """A network, or a skip."""
    return Network(testbed)


def start(*processes: Process) -> None:
    """Start processes together."""
    for process in processes:
        process.start(wait=False)
    for process in processes:
        process.wait_until_ready()


def delivered(sender: Sender) -> int:
    """Count the transfers of a server."""
    return sender.server.lines().count("] delivered ")


@pytest.fixture
def sender(testbed: Testbed, network: Network) -> Sender:
    """A host with a server."""
    return Sender(testbed, network.host())


@pytest.fixture
def receiver(testbed: Testbed, network: Network, sender: Sender) -> Receiver:
    """A host with a client of that server."""
    return Receiver(testbed, network.host(), [sender])


def in_touch(sender: Sender, receiver: Receiver) -> None:
    """Start both, and check that files arrive."""
    start(sender.server, receiver.client)
    sender.feeder.feed(5)
    receiver.wait_for(sender.feeder)


def after_ping() -> None:
    """Wait until the first ping of each connection, which contains the time after which its publisher drops it."""
    time.sleep(sockets.HEARTBEAT / 1000 + 2)


def test_link_is_cut_for_seconds(sender: Sender, receiver: Receiver) -> None:
    """Files announced and requested while the link is cut arrive when it is back, each transferred once."""
    in_touch(sender, receiver)
    sender.feeder.feed(100)
    receiver.host.cut()
    sender.feeder.feed(100)
    time.sleep(3)
    receiver.host.reconnect()
    receiver.wait_for(sender.feeder)
    assert delivered(sender) == 205


def test_packets_are_lost(sender: Sender, receiver: Receiver) -> None:
    """With 30% of the packets lost in each direction, everything arrives, each file transferred once."""
    in_touch(sender, receiver)
    receiver.host.drop_packets(incoming=0.3, outgoing=0.3)
    sender.feeder.feed(100)
    receiver.wait_for(sender.feeder)
    assert delivered(sender) == 105


def test_request_path_alone_is_cut(sender: Sender, receiver: Receiver) -> None:
    """Requests that are lost while announcements arrive are repeated; each file is transferred once."""
    in_touch(sender, receiver)
    sender.host.drop_packets(incoming=1.0, port=sender.request_port)
    fed = sender.feeder.feed(20)
    receiver.client.wait_for_line("no reply from")
    assert not set(fed) & set(receiver.subscriber.receipts())
    sender.host.drop_packets()
    receiver.wait_for(sender.feeder)
    assert delivered(sender) == 25


@pytest.mark.alone
def test_slow_link(testbed: Testbed, network: Network) -> None:
    """On a link with round trips of 200 ms, files do not wait for one another."""
    here, there = network.host(), network.host()
    line = SlowLink(testbed, here, there, 0.1)
    sender = Sender(testbed, here, address=line.ends[0])
    receiver = Receiver(testbed, there, [sender])
    in_touch(sender, receiver)
    began = time.monotonic()
    sender.feeder.feed(200)
    receiver.wait_for(sender.feeder)
    assert time.monotonic() - began < 200 * 0.2 / 2
    assert delivered(sender) == 205


@pytest.mark.slow
def test_outage_longer_than_every_timeout(testbed: Testbed, network: Network, sender: Sender) -> None:
    """After a cut, a loss of one direction only, or a return at another address, everything is caught up with."""
    cut, deaf, mute, vanished = receivers = [Receiver(testbed, network.host(), [sender]) for _ in range(4)]
    start(sender.server, *(receiver.client for receiver in receivers))
    sender.feeder.feed(5)
    for receiver in receivers:
        receiver.wait_for(sender.feeder)
    after_ping()
    sender.feeder.feed(50)
    cut.host.cut()
    deaf.host.drop_packets(incoming=1.0)
    mute.host.drop_packets(outgoing=1.0)
    vanished.host.cut()
    vanished.client.kill()
    sender.feeder.feed(50)
    until(lambda: sender.host.connections(sender.port) == 0, NOTICED, "the server notices that its peers are gone")
    sender.feeder.feed(50)
    cut.host.reconnect()
    deaf.host.drop_packets()
    mute.host.drop_packets()
    vanished.host.move("10.77.0.99")
    vanished.host.reconnect()
    vanished.client.start()
    for receiver in receivers:
        receiver.wait_for(sender.feeder, killed=receiver is vanished)
    assert delivered(sender) == len(receivers) * 155


@pytest.mark.slow
def test_client_is_stopped(sender: Sender, receiver: Receiver) -> None:
    """A client that was stopped until its queue was dropped gets everything."""
    in_touch(sender, receiver)
    after_ping()
    receiver.client.send(signal.SIGSTOP)
    sender.feeder.feed(1000)
    until(lambda: sender.host.connections(sender.port) == 0, NOTICED, "the server drops its peer")
    sender.feeder.feed(1000)
    receiver.client.send(signal.SIGCONT)
    receiver.wait_for(sender.feeder)
    assert delivered(sender) == 2005


@pytest.mark.slow
def test_name_moves_to_another_address(testbed: Testbed, network: Network) -> None:
    """A server whose name moves to another address is found there, without a restart of clients."""
    hosts_file = testbed.directory("etc") / "hosts"
    source, there = network.host(), network.host()
    hosts_file.write_text(f"127.0.0.1 localhost\n{source.address} source\n")
    sender = Sender(testbed, source, address="source")
    receiver = Receiver(testbed, there, [sender], names=hosts_file)
    in_touch(sender, receiver)
    source.move("10.77.0.99")
    hosts_file.write_text(f"127.0.0.1 localhost\n{source.address} source\n")
    sender.feeder.feed(50)
    receiver.wait_for(sender.feeder)
    assert delivered(sender) == 55


def test_another_host_takes_the_address(testbed: Testbed, network: Network, sender: Sender, receiver: Receiver) -> None:
    """A host that takes over address, files and journal of a vanished server replaces it."""
    in_touch(sender, receiver)
    sender.host.cut()
    sender.server.kill()
    sender.feeder.feed(50)
    other = network.host()
    other.move(sender.address)
    other.wait_until_reachable(receiver.host)
    sender.server.command = sender.server.command[len(sender.host.prefix) :]
    other.run_inside(sender.server).start()
    sender.feeder.feed(50)
    receiver.wait_for(sender.feeder)


def test_disconnected_source(testbed: Testbed, network: Network) -> None:
    """Announcements of a disconnected source are fetched from another source that has them; the rest later."""
    one, other = (Sender(testbed, network.host()) for _ in range(2))
    receiver = Receiver(testbed, network.host(), [one, other], processing_delay=2)
    subscriber = one.host.subscriber(one.port)
    start(one.server, other.server, receiver.client)
    one.feeder.feed(30)
    subscriber.wait_for(30, "file")
    one.host.cut()
    other.feeder.feed(40)  # the same names, and ten more
    for name in itertools.islice(names(1000), 10):
        one.feeder.put(name)
    receiver.wait_for(other.feeder)
    one.host.reconnect()
    receiver.wait_for(one.feeder)
