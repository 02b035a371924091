"""Faults of the members of a fleet, of their engine and clocks, each on its host: a network namespace of this machine.

During all of them no file is incomplete under its final name, and none is lost.
``TROLLMOVES_TEST_FAULTS=all`` tries each fault with each kind of fleet; without it, each kind has some of them.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import yaml

from trollmoves.movers import is_partial
from trollmoves.tests.helpers.crashing import armed
from trollmoves.tests.helpers.daemons import Process, Sections, Testbed, client_section, script, server_section
from trollmoves.tests.helpers.dispatching import TOPIC, RecordedPublisher
from trollmoves.tests.helpers.feeding import content
from trollmoves.tests.helpers.journals import new_schema_of
from trollmoves.tests.helpers.network import Host, Network
from trollmoves.tests.helpers.recording import RecordingSubscriber
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.helpers.wall_clock import DAY, YEAR, WallClock
from trollmoves.tests.servers import postgresql
from trollmoves.tests.servers.postgresql import USER, Postgresql

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(bool(postgresql.missing()), reason=f"missing: {postgresql.missing()}"),
]

LEASE = 3  # s
LONG_LEASE = 60  # s; no member of a busy machine loses it
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
                    self._look_at(entry)

    def _look_at(self, entry: os.DirEntry[str]) -> None:
        status = entry.stat()
        if (status.st_ino, status.st_mtime_ns) in self._seen:
            return
        with open(entry.path, "rb") as file:
            if file.read() != content(entry.name, size=SIZE):
                self.incomplete.add(entry.path)
        self._seen.add((status.st_ino, status.st_mtime_ns))


class Fleet:
    """Two members, each on a host, their engine on a third host, and further daemons on a fourth.

    The first member has the clock ``clock``.
    """

    joined = ", journal "  # in the log of a member that has opened the journal

    def __init__(self, testbed: Testbed, network: Network, lease: int = LEASE) -> None:
        self.testbed = testbed
        self.network = network
        self.hosts = [network.host(), network.host()]
        self.engine_host, self.other_host = network.host(), network.host()
        self.feeder, self.target = testbed.feeder(), testbed.directory("out")
        self.observer = Observer(testbed, self.target)
        self.engine = testbed.enter(_Engine(self.engine_host))
        url = f"postgresql://{USER}@{self.engine_host.address}:{self.engine.port}/postgres?connect_timeout=2"
        self.journal: dict[str, object] = {"journal": new_schema_of(url), "fleet_lease": lease}
        self.members: list[Process] = []
        self.others: list[Process] = []
        self.active = 0  # the member to disturb next: of a standby the one that works
        self.receipts: list[RecordingSubscriber] = []
        self.clock = WallClock(testbed.directory("clock"))
        self.make()
        self.clock.of(self.members[0])

    def make(self) -> None:
        """Make all daemons."""
        raise NotImplementedError

    def prepare_suspension(self) -> None:
        """Prepare ``suspend`` before the start."""

    def start(self) -> None:
        """Start all daemons."""
        for process in (*self.members, *self.others):
            process.start(wait=False)
        for process in (*self.members, *self.others):
            process.wait_until_ready()

    def restart(self, member: Process) -> None:
        """Start a member that has ended."""
        member.start()

    def wait_until_succeeded(self, by: Process) -> None:
        """Wait until the other member does the work of one that has ended."""

    def suspend(self) -> tuple[Process, Process]:
        """Suspend a member while transfers run; return it and the other one."""
        one, other = self.pair()
        before = len(self.published())
        self.feed()
        until(lambda: len(self.published()) > before, SECONDS, "files are delivered")
        one.send(signal.SIGSTOP)
        return one, other

    def wait_until_rejoined(self, member: Process) -> None:
        """Wait until a member that lost its lease is a new member, and has opened the journal."""
        member.wait_for_line("opening the journal as a new member", seconds=SECONDS)
        member.wait_for_line(self.joined, seconds=SECONDS)

    def wait_until_buried(self, by: Process) -> None:
        """Wait until a member has the tasks of the other one."""
        by.wait_for_line("did not renew its lease", seconds=SECONDS)
        self.active = self.members.index(by)

    def published(self) -> Counter[str]:
        """Return how often each file has a receipt."""
        return Counter(name for subscriber in self.receipts for name in subscriber.receipts())

    def feed(self, count: int = BURST, pause: float = 0.01) -> None:
        """Feed files."""
        self.feeder.feed(count, size=SIZE, pause=pause)

    def wait_until_done(self) -> None:
        """Wait until all files have receipts; all are complete then, and were so at each look."""
        until(lambda: self.feeder.fed.keys() <= self.published().keys(), SECONDS, "all files have receipts")
        assert self.feeder.missing(self.target) == []
        assert self.observer.incomplete == set()

    def repeated(self) -> set[str]:
        """Return the files with several receipts."""
        return {name for name, count in self.published().items() if count > 1}

    def pair(self) -> tuple[Process, Process]:
        """Return the member to disturb, and the other one."""
        return self.members[self.active], self.members[1 - self.active]

    def host_of(self, member: Process) -> Host:
        """Return the host of a member."""
        return self.hosts[self.members.index(member)]


class SharingClients(Fleet):
    """Two clients that share their work, and a server."""

    def make(self) -> None:
        """Make the clients and the server."""
        host, port = self.other_host, self.testbed.port()
        section = server_section(self.feeder.folder, self.testbed.port(), request_address=host.address)
        self.others.append(host.run_inside(self.testbed.server({"hrit": section}, port)))
        for number, one in enumerate(self.hosts):
            own = self.testbed.port()
            client = client_section([], self.target, own, transfer_req_timeout=3)
            client["providers"] = f"{host.address}:{port}"
            sections: Sections = {"DEFAULT": {**self.journal, "fleet": "share"}, "hrit": client}
            self.members.append(one.run_inside(self.testbed.client(sections, name=f"client-{number}")))
            self.receipts.append(one.subscriber(own))


class Servers(Fleet):
    """Two servers of one directory, and a client of both."""

    fleet = ""  # the value of the option

    def make(self) -> None:
        """Make the servers and the client."""
        ports = [self.testbed.port(), self.testbed.port()]
        for number, one in enumerate(self.hosts):
            section = server_section(self.feeder.folder, self.testbed.port(), request_address=one.address)
            sections: Sections = {"DEFAULT": {**self.journal, "fleet": self.fleet}, "hrit": section}
            self.members.append(one.run_inside(self.testbed.server(sections, ports[number], name=f"server-{number}")))
        own = self.testbed.port()
        client = client_section([], self.target, own, transfer_req_timeout=1)
        client["providers"] = " ".join(f"{one.address}:{port}" for one, port in zip(self.hosts, ports, strict=True))
        self.others.append(self.other_host.run_inside(self.testbed.client({"hrit": client})))
        self.receipts = [self.other_host.subscriber(own)]
        self.announced = [one.subscriber(port) for one, port in zip(self.hosts, ports, strict=True)]

    def repeated(self) -> set[str]:
        """Return the files with several receipts or announcements."""
        announced = Counter(name for subscriber in self.announced for name in subscriber.receipts())
        return super().repeated() | {name for name, count in announced.items() if count > 1}


class SharingServers(Servers):
    """Two servers that share their work."""

    fleet = "share"

    def start(self) -> None:
        """Start all, and wait until the client receives the announcements of both."""
        super().start()
        self.others[0].wait_for_line("connected to", 2)


class StandbyServers(Servers):
    """Two servers, of which one works."""

    fleet = "standby"
    joined = "waiting as standby"

    def make(self) -> None:
        """Make all daemons."""
        super().make()
        self._normal = self.members[0].command

    def prepare_suspension(self) -> None:
        """Make the first server suspend itself between the check of a transfer and its rename, in its first run."""
        first, prefix = self.members[0], len(self.hosts[0].prefix)
        first.command = [*first.command[:prefix], *armed(first.command[prefix:], "sent:stop")]

    def start(self) -> None:
        """Start the first server, the standby, and the client."""
        first, standby = self.members
        first.start()
        first.command = self._normal
        self.restart(standby)
        self.others[0].start()
        self.others[0].wait_for_line("connected to")

    def wait_until_succeeded(self, by: Process) -> None:
        """Wait until the standby has opened the journal: else the other one may become active again."""
        by.wait_for_line(Fleet.joined, seconds=SECONDS)

    def restart(self, member: Process) -> None:
        """Start a member, which waits as standby."""
        member.start(wait=False)
        member.wait_for_line(self.joined, seconds=SECONDS)

    def suspend(self) -> tuple[Process, Process]:
        """Wait until the first server suspends itself."""
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


class SharingDispatchers(Fleet):
    """Two dispatchers that share their work, and a publisher."""

    def make(self) -> None:
        """Make the publisher and the dispatchers."""
        with self.other_host.inside():
            publisher = RecordedPublisher(self.testbed.port(), self.other_host.address)
        self.publisher = self.testbed.close_at_end(publisher)
        target = {
            "directory": str(self.target),
            "dispatch_configs": [{"topics": [TOPIC]}],
            "publish_topic": "/sent",
        }
        subscriber = {"subscribe_addresses": [publisher.address], "nameserver": False}
        text = yaml.safe_dump(
            {"DEFAULT": {**self.journal, "fleet": "share"}, "posttroll_subscriber": subscriber, "mail": target}
        )
        for number, one in enumerate(self.hosts):
            own = self.testbed.port()
            config = self.testbed.config(text, f"dispatcher-{number}.yaml")
            command = [sys.executable, script("dispatcher.py"), str(config), "-p", str(own), "-n", "false"]
            self.members.append(one.run_inside(self.testbed.process(f"dispatcher-{number}", command, config)))
            self.receipts.append(one.subscriber(own))

    def start(self) -> None:
        """Start the dispatchers, and wait until they are subscribed."""
        super().start()
        self.publisher.wait_for_subscribers(len(self.members))

    def restart(self, member: Process) -> None:
        """Start a dispatcher, and wait until it is subscribed."""
        super().restart(member)
        self.publisher.wait_for_subscribers(len(self.members))

    def feed(self, count: int = BURST, pause: float = 0.01) -> None:
        """Create files, and publish a message about each."""
        for _ in range(count):
            (name,) = self.feeder.feed(1, size=SIZE)
            self.publisher.publish_file(self.feeder.folder / name)
            time.sleep(pause)


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


def kill_member(fleet: Fleet) -> None:
    """Kill a member while transfers run, and restart it after its lease."""
    one, other = fleet.pair()
    fleet.feed()
    one.kill()
    fleet.feed()
    fleet.wait_until_buried(other)
    fleet.restart(one)


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
    fleet.feed(BURST, pause=2 * LEASE / BURST)
    fleet.engine_host.reconnect()


def kill_engine(fleet: Fleet) -> None:
    """Crash the engine while transfers run, and restart it."""
    fleet.feed()
    fleet.engine.kill()
    fleet.feed()
    fleet.engine.start()


Fault = Callable[[Fleet], None]
# The suspension is the first fault, if any: a standby server is prepared for it in its first run.
FAULTS: Sequence[Fault] = (suspend_member, kill_member, cut_member_off, unplug_member, cut_engine_off, kill_engine)
CHOSEN: Mapping[type[Fleet], Sequence[Fault]] = {
    SharingClients: (suspend_member, unplug_member, cut_engine_off),
    StandbyServers: (suspend_member, cut_member_off, kill_engine),
    SharingServers: (suspend_member, unplug_member),
    SharingDispatchers: (suspend_member, cut_member_off),
}
ALL = os.environ.get("TROLLMOVES_TEST_FAULTS") == "all"


@pytest.fixture
def network(testbed: Testbed) -> Network:
    """Return a network, or skip."""
    return Network(testbed)


@pytest.mark.parametrize("kind", CHOSEN)
def test_faults(
    testbed: Testbed, network: Network, kind: type[Fleet], record_property: Callable[[str, object], None]
) -> None:
    """After each fault all files are delivered completely, those of the fault perhaps twice."""
    fleet = kind(testbed, network)
    fleet.prepare_suspension()
    fleet.start()
    for fault in FAULTS if ALL else CHOSEN[kind]:
        for member in fleet.members:
            member.mark_log()
        fault(fleet)
        fleet.wait_until_done()
        record_property(f"files repeated after {fault.__name__}", len(fleet.repeated()))


@pytest.mark.parametrize("kind", CHOSEN)
def test_clock_of_a_member(testbed: Testbed, network: Network, kind: type[Fleet]) -> None:
    """However the clock of one host is set, also before a start, no member is buried and no file is repeated."""
    fleet = kind(testbed, network, LONG_LEASE)
    fleet.start()
    now = time.time()
    for moment in (now + DAY, now - DAY, 70 * YEAR, DAY):
        fleet.clock.set_to(moment)
        fleet.feed(10)
        fleet.wait_until_done()
    one, other = fleet.pair()
    assert one.terminate() == 0
    fleet.wait_until_succeeded(other)
    fleet.clock.set_to(now + YEAR)
    fleet.restart(one)
    fleet.feed(10)
    fleet.wait_until_done()
    assert other.terminate() == 0
    fleet.feed(10)
    fleet.wait_until_done()
    assert fleet.repeated() == set()
    for member in fleet.members:
        assert "renew its lease" not in member.log.read_text()
