"""Two hosts with one journal on PostgreSQL: one works, the other waits and takes over with all that is pending."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import psycopg
import pytest

from trollmoves.journal import open_journal, open_reader
from trollmoves.tests.helpers.daemons import (
    MIRROR_TOPIC,
    Process,
    Sections,
    Testbed,
    client_section,
    mirror_section,
    server_section,
)
from trollmoves.tests.helpers.dispatching import TOPIC as DISPATCHED
from trollmoves.tests.helpers.dispatching import DispatcherTestbed
from trollmoves.tests.helpers.feeding import Feeder
from trollmoves.tests.helpers.journals import new_schema, shared_server
from trollmoves.tests.helpers.recording import RecordingSubscriber
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers import postgresql

pytestmark = pytest.mark.skipif(bool(postgresql.missing()), reason=f"missing: {postgresql.missing()}")

BURST = 400
TAKEOVER = 40  # s until the standby works, on a busy machine; the lease lasts 10 s
IN_KILL_WINDOW = BURST  # receipts of the last half second are published again, as after each kill


class Fleet:
    """Two servers, and two clients that list both; each pair has a journal, and each member its ports."""

    def __init__(self, testbed: Testbed) -> None:
        self.feeder: Feeder = testbed.feeder()
        self.target = testbed.directory("out")
        journals = [{"journal": new_schema(shared_server())} for _ in range(2)]
        ports = [testbed.port() for _ in range(2)]
        self.servers = []
        self.clients = []
        self.receipts: list[RecordingSubscriber] = []
        for letter, port in zip("ab", ports, strict=True):
            server: Sections = {"DEFAULT": journals[0], "hrit": server_section(self.feeder.folder, testbed.port())}
            self.servers.append(testbed.server(server, port, name=f"server-{letter}"))
            client_port = testbed.port()
            section = client_section(ports, self.target, client_port, transfer_req_timeout=1)
            self.clients.append(testbed.client({"DEFAULT": journals[1], "hrit": section}, name=f"client-{letter}"))
            self.receipts.append(testbed.subscriber(client_port))

    def start(self) -> Fleet:
        """Start the first member of both fleets, then the second, which waits."""
        self.servers[0].start(wait=False)
        self.clients[0].start()
        self.servers[0].wait_until_ready()
        for standby in (self.servers[1], self.clients[1]):
            standby.start(wait=False)
        for standby in (self.servers[1], self.clients[1]):
            standby.wait_for_line("waiting as standby")
        return self

    def published(self) -> list[str]:
        """Return the receipts of both clients."""
        return [name for subscriber in self.receipts for name in subscriber.receipts()]

    def wait_until_done(self, seconds: float = 60) -> None:
        """Wait until all files are complete at the target and have receipts; few are published twice."""
        until(lambda: set(self.feeder.fed) <= set(self.published()), seconds, "all files have receipts")
        assert self.feeder.missing(self.target) == []
        assert len(self.published()) <= len(self.feeder.fed) + IN_KILL_WINDOW


@pytest.fixture
def fleet(testbed: Testbed) -> Fleet:
    """Return a server and a client, each with a standby."""
    return Fleet(testbed).start()


def wait_until_works(process: Process) -> None:
    """Wait until a standby has taken over."""
    process.wait_for_line("took over the journal", seconds=TAKEOVER)
    process.wait_for_line(", journal ", seconds=TAKEOVER)


@pytest.mark.slow
def test_active_members_are_killed(fleet: Fleet) -> None:
    """After kill -9 of the server and the client under load, their standbys complete all files."""
    fleet.feeder.feed(BURST)
    until(lambda: len(fleet.published()) > BURST // 4, 30, "files are delivered")
    fleet.servers[0].kill()
    fleet.clients[0].kill()
    fleet.feeder.feed(BURST)
    for standby in (fleet.servers[1], fleet.clients[1]):
        wait_until_works(standby)
    fleet.feeder.feed(BURST)
    fleet.wait_until_done()
    fleet.servers[0].start(wait=False)
    fleet.servers[0].wait_for_line("waiting as standby")


@pytest.mark.slow
@pytest.mark.parametrize("which", ["servers", "clients"])
def test_active_member_is_stopped_for_longer_than_its_lease(fleet: Fleet, which: str) -> None:
    """A member that was stopped finds its tasks taken over when it wakes up, and becomes the standby."""
    first, second = getattr(fleet, which)
    fleet.feeder.feed(BURST)
    until(lambda: len(fleet.published()) > BURST // 4, 30, "files are delivered")
    first.send(signal.SIGSTOP)
    wait_until_works(second)
    first.send(signal.SIGCONT)
    fleet.feeder.feed(BURST)
    first.wait_for_line("waiting as standby", seconds=TAKEOVER)
    fleet.wait_until_done()


@pytest.mark.slow
def test_active_mirror_is_killed(testbed: Testbed) -> None:
    """After kill -9 of a mirror under load, its standby delivers all files, with the copies on a shared disk."""
    feeder, target, copies = testbed.feeder(), testbed.directory("out"), testbed.directory("copies")
    server_port, client_port, ports = testbed.port(), testbed.port(), [testbed.port(), testbed.port()]
    testbed.server({"hrit": server_section(feeder.folder, testbed.port())}, server_port).start(wait=False)
    journal = {"journal": new_schema(shared_server())}
    mirrors = []
    for letter, port in zip("ab", ports, strict=True):
        section = mirror_section(server_port, copies, testbed.port())
        mirrors.append(testbed.mirror({"DEFAULT": journal, "hrit": section}, port, name=f"mirror-{letter}"))
    subscriber = testbed.subscriber(client_port)
    client = client_section(ports, target, client_port, topic=MIRROR_TOPIC, transfer_req_timeout=5)
    testbed.client({"hrit": client}).start(wait=False)
    mirrors[0].start()
    mirrors[1].start(wait=False)
    mirrors[1].wait_for_line("waiting as standby")
    feeder.feed(BURST // 2)
    until(lambda: len(subscriber.receipts()) > BURST // 8, 30, "files are delivered")
    mirrors[0].kill()
    feeder.feed(BURST // 2)
    wait_until_works(mirrors[1])
    feeder.feed(BURST // 2)
    until(lambda: set(feeder.fed) <= set(subscriber.receipts()), 60, "all files have receipts")
    assert feeder.missing(target) == []


def test_active_dispatcher_is_killed(testbed: Testbed) -> None:
    """After kill -9 of a dispatcher its standby delivers what waits, respects its pauses, and receives messages."""
    targets = {"mail": {"directory": "OUT", "dispatch_configs": [{"topics": [DISPATCHED]}]}}
    url = new_schema(shared_server())
    active = DispatcherTestbed(testbed, {"DEFAULT": {"journal": url}, **targets})
    active.start()
    config = testbed.config(active.config.read_text(), "standby.yaml")
    command = [str(config) if part == str(active.config) else part for part in active.process.command]
    standby = testbed.process("standby", command, config)
    standby.start(wait=False)
    standby.wait_for_line("waiting as standby")
    assert testbed.run("trollmoves", "pause", "mail", "-c", active.config).returncode == 0
    names = [f"file{n}" for n in range(20)]
    for name in names:
        active.publisher.publish_file(active.file(name))
    with open_reader(url) as reader:
        until(lambda: sum(row.number for row in reader.waiting()) == len(names), 20, "all messages are stored")
    active.process.kill()
    wait_until_works(standby)
    assert active.delivered_files() == {}
    assert testbed.run("trollmoves", "resume", "mail", "-c", standby.config).returncode == 0
    active.wait_for(*names)
    active.publisher.wait_for_topics([DISPATCHED])
    active.publisher.publish_file(active.file("later"))
    active.wait_for("later")


def test_planned_switch(fleet: Fleet, testbed: Testbed) -> None:
    """SIGTERM returns the lease: the standby takes over immediately; status shows both members before."""
    fleet.feeder.feed(20)
    fleet.wait_until_done()
    for server, state in zip(fleet.servers, ("ok", "standby"), strict=True):
        shown = testbed.run("trollmoves", "status", server.config).stdout
        assert f"{server.config.name} (server) {state}" in " ".join(shown.split())
        assert shown.count("lease renewed") == 2
        assert shown.count(": works, ") == 1
    for first, second in (fleet.servers, fleet.clients):
        assert first.terminate() == 0
        wait_until_works(second)
        assert "renew its lease" not in second.lines()
    fleet.feeder.feed(20)
    fleet.wait_until_done()


def test_standby_is_stopped(fleet: Fleet, tmp_path: Path) -> None:
    """SIGTERM ends a standby with status 0; the active member continues."""
    for standby in (fleet.servers[1], fleet.clients[1]):
        assert standby.terminate() == 0
    fleet.feeder.feed(20)
    fleet.wait_until_done()


def test_orders_for_stopped_daemons(testbed: Testbed) -> None:
    """A standby names the host that works; orders for stopped daemons are stored, and questions are answered."""
    fleet = Fleet(testbed)
    (server, standby), client = fleet.servers, fleet.clients[0]
    server.start(wait=False)
    client.start()
    server.wait_until_ready()
    standby.start(wait=False)
    standby.wait_for_line("waiting as standby")
    fleet.feeder.feed(3)
    fleet.wait_until_done()
    rejected = testbed.run("trollmoves", "pause", "hrit", "-c", standby.config)
    assert rejected.returncode == 3
    assert "this host is a standby: give the order on " in rejected.stdout
    (health,) = json.loads(testbed.run("trollmoves", "health", "--json", "-c", standby.config).stdout)["daemons"]
    assert (health["status"], health["standby"]) == ("ok", True)
    for process in (standby, server, client):
        assert process.terminate() == 0
    name = next(iter(fleet.feeder.fed))
    for command in (("status",), ("queue",), ("failed",), ("history", name)):
        shown = testbed.run("trollmoves", *command, "-c", server.config)
        assert "cannot be read" not in shown.stdout
        assert shown.stderr == ""
    assert name in shown.stdout
    for process, *order in (
        (client, "pause", "hrit"),
        (server, "release", "hrit"),
        (server, "retry", "--failed"),
        (server, "drop", "--failed"),
        (server, "resend", name),
    ):
        stored = testbed.run("trollmoves", *order, "-c", process.config)
        assert (stored.returncode, stored.stderr) == (0, "")
        assert "carries it out at its next start" in stored.stdout
    for process in (server, client):
        process.start(wait=False)
    server.wait_for_line(f"delivered {name}")
    client.wait_for_line("hrit is paused")
    resumed = testbed.run("trollmoves", "resume", "hrit", "-c", client.config)
    assert (resumed.returncode, resumed.stderr) == (0, "")


@pytest.mark.slow
def test_a_takeover_while_the_engine_does_not_respond(testbed: Testbed) -> None:
    """A host with sections that cannot read the journal at their start continues when the engine responds."""
    feeder, target, port, client_port = testbed.feeder(), testbed.directory("out"), testbed.port(), testbed.port()
    testbed.server({"hrit": server_section(feeder.folder, testbed.port())}, port).start()
    url = new_schema(shared_server())
    open_journal(url).close()
    section = client_section(port, target, client_port)
    client = testbed.client({"DEFAULT": {"journal": url}, "hrit": section})
    receipts = testbed.subscriber(client_port)
    with psycopg.connect(shared_server().url) as db:
        db.execute(f"LOCK TABLE {url.rpartition('schema=')[2]}.tasks IN ACCESS EXCLUSIVE MODE".encode())
        client.start(wait=False)
        client.wait_for_line("opening the journal again", seconds=40)
    client.wait_until_ready()
    receipts.wait_for_receipts(feeder.feed(3))
