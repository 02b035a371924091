"""Faults of the members of a fleet and of their engine, each on its host: a network namespace of this machine.

During all of them no file is incomplete under its final name, and none is lost.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from trollmoves.movers import is_partial
from trollmoves.tests.helpers.crashing import armed
from trollmoves.tests.helpers.daemons import Process, Testbed, client_section, server_section
from trollmoves.tests.helpers.feeding import content
from trollmoves.tests.helpers.journals import new_schema_of
from trollmoves.tests.helpers.network import Host, Network
from trollmoves.tests.helpers.recording import RecordingSubscriber
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers import postgresql
from trollmoves.tests.servers.postgresql import USER, Postgresql

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(bool(postgresql.missing()), reason=f"missing: {postgresql.missing()}"),
]

LEASE = 3  # s
SECONDS = 40.0  # s for a takeover, or a recovery, on a busy machine
BURST = 40  # files
SIZE = 200_000  # bytes


class Observer:
    """Looks at a directory without a pause; ``incomplete`` are files with another content than they must have."""

    def __init__(self, testbed: Testbed, folder: Path) -> None:
        self.incomplete: set[str] = set()
        self._folder = folder
        self._seen: set[tuple[int, int]] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._look_on, name="observer", daemon=True)
        self._thread.start()
        testbed.close_at_end(self)

    def close(self) -> None:
        """Stop looking."""
        self._stopping.set()
        self._thread.join(10)

    def _look_on(self) -> None:
        while not self._stopping.wait(0.002):
            for entry in os.scandir(self._folder):
                if not is_partial(entry.name):
                    self._look_at(entry.path)

    def _look_at(self, path: str) -> None:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if (status.st_ino, status.st_mtime_ns) in self._seen:
                return
            if file.read() != content(os.path.basename(path), size=SIZE):
                self.incomplete.add(path)
        self._seen.add((status.st_ino, status.st_mtime_ns))


class Fleet:
    """Two members, each on a host, their engine on a third host, and further daemons on a fourth."""

    def __init__(self, testbed: Testbed, network: Network) -> None:
        self.testbed = testbed
        self.network = network
        self.hosts = [network.host(), network.host()]
        self.engine_host, self.other_host = network.host(), network.host()
        self.feeder, self.target = testbed.feeder(), testbed.directory("out")
        self.observer = Observer(testbed, self.target)
        self.engine = testbed.enter(_Engine(self.engine_host))
        url = f"postgresql://{USER}@{self.engine_host.address}:{self.engine.port}/postgres?connect_timeout=2"
        self.journal = {"journal": new_schema_of(url), "fleet_lease": LEASE}
        self.members: list[Process] = []
        self.active = 0  # the member to disturb next: of a standby the one that works
        self.receipts: list[RecordingSubscriber] = []
        self.set_up()

    def set_up(self) -> None:
        """Start all daemons."""
        raise NotImplementedError

    def suspend(self) -> tuple[Process, Process]:
        """Feed files while a member suspends; return it and the other one."""
        raise NotImplementedError

    def wait_until_rejoined(self, member: Process) -> None:
        """Wait until a member that lost its lease is a new member."""
        member.wait_for_line("opening the journal as a new member", seconds=SECONDS)

    def wait_until_buried(self, by: Process) -> None:
        """Wait until a member has the tasks of the other one."""
        by.wait_for_line("did not renew its lease", seconds=SECONDS)
        self.active = self.members.index(by)

    def published(self) -> Counter[str]:
        """Return how often each file has a receipt."""
        return Counter(name for subscriber in self.receipts for name in subscriber.receipts())

    def feed(self) -> None:
        """Feed a burst."""
        self.feeder.feed(BURST, size=SIZE, pause=0.01)

    def wait_until_done(self) -> None:
        """Wait until all files have receipts; all are complete then, and were so at each look."""
        until(lambda: self.feeder.fed.keys() <= self.published().keys(), SECONDS, "all files have receipts")
        assert self.feeder.missing(self.target) == []
        assert self.observer.incomplete == set()

    def pair(self) -> tuple[Process, Process]:
        """Return the member to disturb, and the other one."""
        return self.members[self.active], self.members[1 - self.active]

    def host_of(self, member: Process) -> Host:
        """Return the host of a member."""
        return self.hosts[self.members.index(member)]


class SharingClients(Fleet):
    """Two clients that share their work, and a server."""

    def set_up(self) -> None:
        """Start the clients, then the server."""
        host, port = self.other_host, self.testbed.port()
        section = server_section(self.feeder.folder, self.testbed.port(), request_address=host.address)
        server = host.run_inside(self.testbed.server({"hrit": section}, port))
        for number, one in enumerate(self.hosts):
            own = self.testbed.port()
            client = client_section([], self.target, own, transfer_req_timeout=3)
            client["providers"] = f"{host.address}:{port}"
            sections = {"DEFAULT": {**self.journal, "fleet": "share"}, "hrit": client}
            self.members.append(one.run_inside(self.testbed.client(sections, name=f"client-{number}")))
            self.receipts.append(one.subscriber(own))
        for process in (*self.members, server):
            process.start(wait=False)
        for process in (*self.members, server):
            process.wait_until_ready()

    def suspend(self) -> tuple[Process, Process]:
        """Suspend a client while transfers run."""
        one, other = self.pair()
        before = len(self.published())
        self.feed()
        until(lambda: len(self.published()) > before, SECONDS, "files are fetched")
        one.send(signal.SIGSTOP)
        return one, other


class StandbyServers(Fleet):
    """Two servers, of which one works, and a client of both."""

    def set_up(self) -> None:
        """Start the server that is to suspend itself before a rename, the standby, and the client."""
        ports = [self.testbed.port(), self.testbed.port()]
        for number, one in enumerate(self.hosts):
            section = server_section(self.feeder.folder, self.testbed.port(), request_address=one.address)
            sections = {"DEFAULT": self.journal, "hrit": section}
            self.members.append(one.run_inside(self.testbed.server(sections, ports[number], name=f"server-{number}")))
        own = self.testbed.port()
        client = client_section([], self.target, own, transfer_req_timeout=1)
        client["providers"] = " ".join(f"{one.address}:{port}" for one, port in zip(self.hosts, ports, strict=True))
        receiver = self.other_host.run_inside(self.testbed.client({"hrit": client}))
        self.receipts = [self.other_host.subscriber(own)]
        first = self.members[0]
        prefix = len(self.hosts[0].prefix)
        first.command = [*first.command[:prefix], *armed(first.command[prefix:], "sent:stop")]
        first.start()
        self.members[1].start(wait=False)
        self.members[1].wait_for_line("waiting as standby")
        receiver.start()

    def suspend(self) -> tuple[Process, Process]:
        """Wait until the first server suspends itself between the check of a transfer and its rename."""
        one, other = self.pair()
        self.feed()
        assert one.popen
        status = Path(f"/proc/{one.popen.pid}/stat")
        until(lambda: status.read_text().rpartition(")")[2].split()[0] == "T", SECONDS, "the server is suspended")
        return one, other

    def wait_until_buried(self, by: Process) -> None:
        """Wait until the standby works."""
        super().wait_until_buried(by)
        by.wait_for_line("took over the journal", seconds=SECONDS)
        by.wait_for_line(", journal ", seconds=SECONDS)

    def wait_until_rejoined(self, member: Process) -> None:
        """Wait until the member is the standby."""
        super().wait_until_rejoined(member)
        member.wait_for_line("waiting as standby", seconds=SECONDS)


class _Engine(Postgresql):
    """PostgreSQL on a host."""

    def __init__(self, host: Host) -> None:
        super().__init__(network=f"{host.address.rpartition('.')[0]}.0/24")
        self._host = host

    def start(self, seconds: float = 30) -> None:
        """Start in the namespace of the host."""
        with self._host.inside():
            super().start(seconds)


def suspend_member(fleet: Fleet) -> None:
    """Suspend a member for longer than its lease while transfers run."""
    one, other = fleet.suspend()
    fleet.feed()
    fleet.wait_until_buried(other)
    fleet.feed()
    one.send(signal.SIGCONT)
    fleet.wait_until_rejoined(one)


def cut_member_off(fleet: Fleet) -> None:
    """Cut a member from the engine, and only from it, for longer than its lease while transfers run."""
    one, other = fleet.pair()
    host, engine = fleet.host_of(one), fleet.engine_host.address
    fleet.feed()
    host.run("iptables", "-w", "-A", "INPUT", "-s", engine, "-j", "DROP")
    host.run("iptables", "-w", "-A", "OUTPUT", "-d", engine, "-j", "DROP")
    fleet.feed()
    fleet.wait_until_buried(other)
    fleet.feed()
    host.drop_packets()
    fleet.wait_until_rejoined(one)


def unplug_member(fleet: Fleet) -> None:
    """Cut a member from all other hosts for longer than its lease while transfers run."""
    one, other = fleet.pair()
    host = fleet.host_of(one)
    fleet.feed()
    host.cut()
    fleet.feed()
    fleet.wait_until_buried(other)
    host.reconnect()
    fleet.wait_until_rejoined(one)


def cut_engine_off(fleet: Fleet) -> None:
    """Cut the engine from all members for twice the lease while transfers run."""
    fleet.feed()
    fleet.engine_host.cut()
    rounds = int(2 * LEASE / (BURST * 0.01)) + 1
    for _ in range(rounds):
        fleet.feeder.feed(1, size=SIZE, pause=2 * LEASE / rounds)
    fleet.engine_host.reconnect()


def kill_engine(fleet: Fleet) -> None:
    """Crash the engine while transfers run, and restart it."""
    fleet.feed()
    fleet.engine.kill()
    fleet.feed()
    fleet.engine.start()


@pytest.fixture
def network(testbed: Testbed) -> Network:
    """Return a network, or skip."""
    return Network(testbed)


@pytest.mark.parametrize(("kind", "cut"), [(SharingClients, unplug_member), (StandbyServers, cut_member_off)])
def test_faults(
    testbed: Testbed,
    network: Network,
    kind: type[Fleet],
    cut: Callable[[Fleet], None],
    record_property: Callable[[str, object], None],
) -> None:
    """After each fault all files are delivered completely, those of the fault perhaps twice."""
    fleet = kind(testbed, network)
    for fault in (suspend_member, cut, cut_engine_off, kill_engine):
        for member in fleet.members:
            member.mark_log()
        fault(fleet)
        fleet.wait_until_done()
        repeated = sum(count > 1 for count in fleet.published().values())
        record_property(f"receipts published twice after {fault.__name__}", repeated)
