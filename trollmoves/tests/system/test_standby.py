"""Two hosts with one journal on PostgreSQL: one works, the other waits and takes over with all that is pending."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from trollmoves.tests.helpers.daemons import Process, Sections, Testbed, client_section, server_section
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
    """Two servers, and two clients that list both; each pair has a journal, and each member ports of its own."""

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
    """SIGTERM ends a standby with status 0; the active member goes on."""
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
