"""Two clients with sections of one name: a primary that transfers, and a spare that takes over when it dies."""

from __future__ import annotations

import signal
import time

import pytest

from trollmoves.receiver.fetcher import BUFFERED_SECONDS
from trollmoves.tests.helpers import legacy_peer as earlier
from trollmoves.tests.helpers.daemons import Process, Testbed, client_section, server_section
from trollmoves.tests.helpers.feeding import content, names
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers import pyftpd
from trollmoves.tests.servers.process import PROXY_HOST
from trollmoves.tests.servers.proxy import Proxy
from trollmoves.tests.servers.pyftpd import PASSWORD, USER, PyFtpd

DELAY = 2.0  # s, the spare's processing_delay
TAKEOVER = 5.0  # s; with the default of 30 the tests would be slow
SIZE = 300_000
LONG = 2 * TAKEOVER  # s of a slow transfer


class Spares:
    """A server, a primary and a spare, each with a subscriber; files go by FTP through a proxy to one directory."""

    def __init__(self, testbed: Testbed, *, old: str = "", apart: bool = False) -> None:
        if why := pyftpd.missing():
            pytest.skip(f"missing: {why}")
        self.testbed = testbed
        self.old = old
        self.feeder = testbed.feeder()
        self.target = testbed.directory("out")
        ftp = PyFtpd(testbed.directory("ftp"), self.target)
        testbed.enter(ftp)
        self.proxy = testbed.enter(Proxy(ftp.port, *ftp.passive_ports))
        publish_port, primary_port, spare_port = testbed.port(), testbed.port(), testbed.port()
        self.server = testbed.server({"hrit": server_section(self.feeder.folder, testbed.port())}, publish_port)
        destination = f"ftp://{PROXY_HOST}:{ftp.port}/"
        login = f"{USER}:{PASSWORD}"

        def client(name: str, port: int, peer: int, **options: object) -> Process:
            place = destination + name if apart else destination
            section = client_section([publish_port, peer], place, port, login=login, **options)
            if old == name:
                return earlier.client(testbed, {"hrit": section}, name)
            return testbed.client({"hrit": section | {"takeover_after": TAKEOVER}}, name=name)

        self.primary = client("primary", primary_port, spare_port)
        self.spare = client("spare", spare_port, primary_port, processing_delay=DELAY)
        self.announced = testbed.subscriber(publish_port)
        self.by_primary, self.by_spare = testbed.subscriber(primary_port), testbed.subscriber(spare_port)

    def start(self) -> Spares:
        """Start all three, and check that each client is connected to the server and its peer."""
        for process in (self.server, self.primary, self.spare):
            process.start(wait=False)
        for process in (self.server, self.primary, self.spare):
            process.wait_until_ready()
        if self.old:
            time.sleep(1.5)  # subscriptions of old clients are not visible
        else:
            for process in (self.primary, self.spare):  # a restarted client names its peers in requests
                process.wait_for_line("found peer client")
        for name in names(100_000):
            self.feeder.put(name)
            try:
                until(lambda name=name: name in self.receipts(), 5, timeout_factor=1)  # type: ignore[misc]
                break
            except AssertionError:
                continue
        return self

    def receipts(self) -> list[str]:
        """Return the names in the receipts of both clients."""
        return self.by_primary.receipts() + self.by_spare.receipts()

    def slow_down(self) -> None:
        """Slow the proxy down so that a file of ``SIZE`` takes ``LONG`` seconds."""
        self.proxy.rate = SIZE / LONG

    def check(self, *fed: str) -> None:
        """Check that each file is complete and has one receipt."""
        for name in fed:
            assert (self.target / name).read_bytes() == self.feeder.fed[name]
            assert self.receipts().count(name) == 1, name


def wait_for_receipts(spares: Spares, *fed: str, seconds: float = 60) -> None:
    """Wait until all files have a receipt."""
    until(lambda: set(fed) <= set(spares.receipts()), seconds, "receipts")


@pytest.mark.slow
def test_living_primary_transfers_alone(testbed: Testbed) -> None:
    """While the primary lives, it alone sends requests, and the spare records its files as done."""
    spares = Spares(testbed).start()
    quick = spares.feeder.feed(10)
    wait_for_receipts(spares, *quick)
    spares.slow_down()
    (slow,) = spares.feeder.feed(size=SIZE)
    wait_for_receipts(spares, slow)
    until(lambda: not spares.testbed.pending_tasks("fetch"), what="the spare has recorded all files as done")
    assert spares.by_spare.of_type("push", "file") == []
    assert spares.server.lines().count(" delivered ") == len(spares.feeder.fed)
    spares.check(*quick, slow)


def test_killed_before_push(testbed: Testbed) -> None:
    """A primary that dies before its request causes no loss, and no duplicate after its restart."""
    spares = Spares(testbed).start()
    spares.primary.kill()
    fed = spares.feeder.feed(10)
    wait_for_receipts(spares, *fed)
    assert set(spares.by_spare.receipts()) >= set(fed)
    restart_primary(spares)
    spares.check(*fed)


def test_each_client_has_its_own_directory(testbed: Testbed) -> None:
    """After a restart, a client leaves its peer's files in the peer's directory alone."""
    spares = Spares(testbed, apart=True).start()
    spares.primary.kill()
    fed = spares.feeder.feed(10)
    wait_for_receipts(spares, *fed)
    restart_primary(spares)
    spares.spare.kill()
    more = spares.feeder.feed(10)
    wait_for_receipts(spares, *more)
    spares.spare.start()
    spares.spare.wait_for_line(" received by a peer", len(more))
    assert not set(fed) & set(spares.by_primary.receipts())
    assert not set(more) & set(spares.by_spare.receipts())
    assert sorted(path.name for path in (spares.target / "spare").iterdir()) == sorted(fed)


def test_both_were_away(testbed: Testbed) -> None:
    """Files announced while primary and spare were down are fetched and published by one of them."""
    spares = Spares(testbed).start()
    assert spares.primary.terminate() == spares.spare.terminate() == 0
    fed = spares.feeder.feed(20)
    spares.announced.wait_for(21, "file")
    spares.primary.start()
    spares.spare.start()
    wait_for_receipts(spares, *fed)
    spares.check(*fed)


@pytest.mark.slow
def test_killed_after_push_and_during_the_transfer(testbed: Testbed) -> None:
    """A primary that dies during its transfer is replaced, and the transfer is not repeated."""
    spares = Spares(testbed).start()
    spares.slow_down()
    (name,) = spares.feeder.feed(size=SIZE)
    spares.by_primary.wait_for(1, "push")
    until(lambda: [one for one in spares.by_primary.of_file(name) if one.type == "push"], what="push")
    spares.primary.kill()
    wait_for_receipts(spares, name)
    assert name in spares.by_spare.receipts()
    restart_primary(spares)
    spares.check(name)
    assert spares.server.lines().count(f"delivered {name}") == 1


def test_killed_before_ack(testbed: Testbed) -> None:
    """A primary that dies after the transfer, before its receipt, is replaced; it publishes no second receipt."""
    spares = Spares(testbed).start()
    time.sleep(BUFFERED_SECONDS + DELAY)  # receipts of files from before this are left to the primary
    spares.slow_down()
    (name,) = spares.feeder.feed(size=SIZE)
    until(lambda: [one for one in spares.by_primary.of_file(name) if one.type == "push"], what="push")
    spares.primary.send(signal.SIGSTOP)  # it does not receive the reply
    spares.proxy.rate = 0
    spares.server.wait_for_line(f"delivered {name}")
    spares.primary.kill()
    wait_for_receipts(spares, name)
    assert spares.by_primary.of_file(name)[-1].type == "push"
    restart_primary(spares)
    spares.check(name)
    assert spares.server.lines().count(f"delivered {name}") == 1


@pytest.mark.slow
@pytest.mark.parametrize("which", ["primary", "spare"])
def test_stopped_client_returns(testbed: Testbed, which: str) -> None:
    """A client that was stopped for longer than its peer waits does not repeat the deliveries of its peer."""
    spares = Spares(testbed).start()
    stopped: Process = getattr(spares, which)
    before = spares.feeder.feed(5)
    wait_for_receipts(spares, *before)
    stopped.send(signal.SIGSTOP)
    during = spares.feeder.feed(50)
    wait_for_receipts(spares, *during)
    time.sleep(TAKEOVER + DELAY)  # holds expire
    stopped.send(signal.SIGCONT)
    after = spares.feeder.feed(5)
    wait_for_receipts(spares, *after)
    until(lambda: not testbed.pending_tasks("fetch"), what="both clients have considered all files")
    (last,) = spares.feeder.feed()
    wait_for_receipts(spares, last)
    spares.check(*before, *during, *after)


def restart_primary(spares: Spares) -> None:
    """Start the primary again, and check that it takes over."""
    before = len(spares.by_spare.of_type("push"))
    spares.primary.start()
    spares.proxy.rate = 0
    until(lambda: " caught up " in spares.primary.lines() or " received by a peer" in spares.primary.lines(), 10)
    time.sleep(DELAY)
    (name,) = spares.feeder.feed()
    wait_for_receipts(spares, name)
    assert name in spares.by_primary.receipts()
    assert len(spares.by_spare.of_type("push")) == before


@pytest.mark.parametrize("old", ["primary", "spare"])
def test_mixed_with_an_old_client(testbed: Testbed, old: str) -> None:
    """With an old client as primary or spare, the other takes over when the primary is killed.

    A file that one client has transferred is an error in neither the server nor the other client.
    """
    spares = Spares(testbed, old=old).start()
    fed = spares.feeder.feed(2)  # an old client requests it long before its spare, also when it is slow
    wait_for_receipts(spares, *fed)
    time.sleep(2 * DELAY)
    assert sorted(spares.receipts()[-2:]) == sorted(fed)
    spares.check(*fed)
    for process in (spares.server, spares.spare if old == "primary" else spares.primary):
        assert "ERROR" not in process.lines()
    spares.primary.kill()
    fed = spares.feeder.feed(5)
    wait_for_receipts(spares, *fed)
    assert all((spares.target / name).read_bytes() == content(name) for name in fed)
