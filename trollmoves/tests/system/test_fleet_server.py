"""Servers on one shared directory, or with a directory each, share the work of one journal on PostgreSQL."""

from __future__ import annotations

import re
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

import psycopg
import pytest

from trollmoves.scheduler.lanes import PREFETCH
from trollmoves.tests.helpers import legacy_peer
from trollmoves.tests.helpers.daemons import Process, Sections, Testbed, client_section, server_section
from trollmoves.tests.helpers.feeding import Feeder
from trollmoves.tests.helpers.journals import new_schema, shared_server
from trollmoves.tests.helpers.recording import HOST, send_request
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers import postgresql

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(postgresql.missing()), reason=f"missing: {postgresql.missing()}"),
]

BURST = 500
LIMIT = 2  # transfers to one host
BURIAL = 40  # s until the tasks of a dead member are free, on a busy machine; the lease lasts 10 s


class ServerFleet:
    """Two servers with one journal, and a client of both, which is not started.

    The servers watch the same directory, or an own one each.
    """

    def __init__(self, testbed: Testbed, *arguments: str, files: str = "shared") -> None:
        self.feeder = testbed.feeder()
        self.feeders = [self.feeder, testbed.feeder("in-b", first=10_000) if files == "own" else self.feeder]
        self.target = testbed.directory("out")
        self.journal = new_schema(shared_server())
        process = {"journal": self.journal, "fleet": "share", "files": files}
        ports = [testbed.port(), testbed.port()]
        self.request_ports = [testbed.port(), testbed.port()]
        self.servers: list[Process] = []
        for number, (port, own) in enumerate(zip(ports, self.request_ports, strict=True)):
            section = server_section(self.feeders[number].folder, own, max_transfers_per_host=LIMIT)
            sections: Sections = {"DEFAULT": process, "hrit": section}
            self.servers.append(testbed.server(sections, port, *arguments, name=f"server-{number}"))
        own = testbed.port()
        self.client_sections = {"hrit": client_section(ports, self.target, own, transfer_req_timeout=3)}
        self.client = testbed.client(self.client_sections)
        self.announced = [testbed.subscriber(port) for port in ports]
        self.received = testbed.subscriber(own)
        for server in self.servers:
            server.start()
        until(lambda: all(one.connections for one in self.announced), 20, "the servers publish")

    def start_client(self) -> None:
        """Start the client, and wait until it receives the announcements of both."""
        self.client.start()
        self.client.wait_for_line("connected to", 2)

    def announcements(self) -> Counter[str]:
        """Return how often each file was announced, by any server."""
        return Counter(name for one in self.announced for name in one.receipts())

    def has_announced(self, count: int) -> bool:
        """Return True if there were this number of announcements."""
        return sum(self.announcements().values()) == count

    def has_waiting(self, count: int) -> bool:
        """Return True if this number of pushes waits in the journal."""
        with psycopg.connect(shared_server().url) as db:
            db.execute(f"SET search_path TO {self.journal.rpartition('schema=')[2]}".encode())
            found = db.execute("SELECT count(*) FROM tasks WHERE kind = 'push' AND state = 0").fetchone()
        return found == (count,)

    def members(self, server: int) -> list[list[str]]:
        """Return the addresses of members in each heartbeat of a server."""
        return [log["members"] for one in self.announced[server].of_type("beat") for log in one.data["logs"]]

    def busiest(self) -> int:
        """Return the index of the server that has announced the most files."""
        counts = [len(one.receipts()) for one in self.announced]
        return counts.index(max(counts))

    def fed(self) -> set[str]:
        """Return the names of all files."""
        return {name for feeder in self.feeders for name in feeder.fed}

    def wait_until_done(self, *feeders: Feeder) -> None:
        """Wait until all files, or those of some feeders, have receipts.

        All are complete then, and each has one receipt.
        """
        for feeder in feeders or self.feeders:
            self.received.wait_for_receipts(feeder.fed, 60)
            assert feeder.missing(self.target) == []
        assert set(Counter(self.received.receipts()).values()) == {1}

    def delivered(self) -> list[set[str]]:
        """Return the names of the files that each server has delivered."""
        return [set(re.findall(r"\] delivered (\S+) to ", server.lines())) for server in self.servers]


def test_each_file_is_announced_once(testbed: Testbed) -> None:
    """Both servers find all files: each is announced by one of them, with one number, and delivered once."""
    fleet = ServerFleet(testbed)
    fleet.start_client()
    fleet.feeder.feed(BURST)
    fleet.wait_until_done()
    assert fleet.announcements() == Counter(fleet.feeder.fed.keys())
    numbers = [one.data["announcement"]["number"] for each in fleet.announced for one in each.of_type("file")]
    assert sorted(numbers) == list(range(1, BURST + 1))
    first, second = fleet.delivered()
    assert not first & second
    assert first | second == set(fleet.feeder.fed)
    shown = testbed.run("trollmoves", "status", fleet.servers[0].config).stdout
    assert shown.count(": works, holds") == 2


def test_a_server_is_killed(testbed: Testbed) -> None:
    """After kill -9 in a burst all files are delivered and have one receipt; only those in flight are sent twice."""
    fleet = ServerFleet(testbed)
    fleet.start_client()
    fleet.feeder.feed(BURST)
    until(lambda: len(fleet.received.receipts()) > BURST // 20, 30, "files are received")
    killed = fleet.servers[fleet.busiest()]
    killed.kill()
    fleet.feeder.feed(BURST)
    fleet.wait_until_done()
    first, second = fleet.delivered()
    assert len(first & second) <= LIMIT * PREFETCH
    killed.start()
    fleet.feeder.feed(20)
    fleet.wait_until_done()


def test_one_request_at_both_servers(testbed: Testbed) -> None:
    """A request that both servers have received is carried out once, and both reply."""
    fleet = ServerFleet(testbed, "-v")
    (name,) = fleet.feeder.feed(1)
    until(fleet.announcements, 20, "the file is announced")
    (announced,) = [one.message for each in fleet.announced for one in each.of_type("file")]
    for server in fleet.servers:
        assert testbed.run("trollmoves", "pause", "hrit", "-c", server.config).returncode == 0
    request = {"destination": f"file://{fleet.target}", "request": {"id": "client/hrit/1", "timeout": 300}}
    with ThreadPoolExecutor(len(fleet.servers)) as threads:
        ask = partial(send_request, subject=announced.subject, kind="push", data=announced.data | request, seconds=30)
        replies = [threads.submit(ask, port) for port in fleet.request_ports]
        for server in fleet.servers:
            server.wait_for_line(f"requested {name}")
        assert testbed.run("trollmoves", "resume", "hrit", "-c", fleet.servers[0].config).returncode == 0
        assert [reply.result().type for reply in replies] == ["file", "file"]
    assert fleet.feeder.missing(fleet.target) == []
    first, second = fleet.delivered()
    assert first ^ second == {name}


@pytest.mark.parametrize("files", ["shared", "own"])
def test_two_versions_at_both_servers(testbed: Testbed, files: str) -> None:
    """Of two versions of a file, requested at two servers, the newer one remains, also if it is pushed first."""
    fleet = ServerFleet(testbed, "-v", files=files)
    for server in fleet.servers:
        assert testbed.run("trollmoves", "pause", "hrit", "-c", server.config).returncode == 0
    name = next(fleet.feeder.fresh_names())
    with ThreadPoolExecutor(2) as threads:
        for number, (feeder, port) in enumerate(zip(fleet.feeders, fleet.request_ports, strict=True)):
            feeder.put(name, version=number, size=1_000 + number)
            until(partial(fleet.has_announced, number + 1), 20, "the version is announced")
            announced = [one.message for each in fleet.announced for one in each.of_type("file")]
            newest = max(announced, key=lambda one: int(one.data["announcement"]["number"]))
            request = {"destination": f"file://{fleet.target}", "request": {"id": f"client/hrit/{number}"}}
            # The server of the first one may lose its lease, and does not reply then.
            threads.submit(send_request, port, newest.subject, "push", newest.data | request, seconds=5)
            until(partial(fleet.has_waiting, number + 1), 20, "the push is stored")
        older, newer = fleet.servers
        older.send(signal.SIGSTOP)
        assert testbed.run("trollmoves", "resume", "hrit", "-c", newer.config).returncode == 0
        newer.wait_for_line(f"delivered {name}", seconds=BURIAL)
        older.send(signal.SIGCONT)
        until(partial(fleet.has_waiting, 0), 60, "no push waits")
    assert fleet.feeders[1].missing(fleet.target) == []


def test_files_on_separate_disks(testbed: Testbed) -> None:
    """Each server announces and delivers the files on its disk, also those that the client has missed.

    The files of a killed server wait for its return, and those of the other one arrive in the meantime.
    """
    fleet = ServerFleet(testbed, files="own")
    here, there = fleet.feeders
    fleet.start_client()
    for feeder in fleet.feeders:
        feeder.feed(20)
    fleet.wait_until_done()
    assert fleet.client.terminate() == 0
    for announced, feeder in zip(fleet.announced, fleet.feeders, strict=True):
        announced.wait_for_receipts(feeder.feed(5))
    fleet.servers[0].kill()
    fleet.client.start()
    fleet.wait_until_done(there)
    waiting = here.feed(5)
    fleet.servers[1].wait_for_line("did not renew its lease", seconds=BURIAL)
    there.feed(5)
    fleet.wait_until_done(there)
    assert fleet.received.receipts().count(waiting[0]) == 0
    fleet.servers[0].start()
    fleet.wait_until_done()
    assert Counter(fleet.received.receipts()) == Counter(fleet.fed())
    assert fleet.client.lines().count("caught up with 5 announcements") == 2
    numbers = {one.data["announcement"]["number"] for each in fleet.announced for one in each.of_type("file")}
    assert numbers == set(range(1, len(fleet.fed()) + 1))
    for server, feeder, delivered in zip(fleet.servers, fleet.feeders, fleet.delivered(), strict=True):
        assert delivered <= set(feeder.fed)
        assert "ERROR" not in server.lines()


def test_older_client_of_separate_disks(testbed: Testbed) -> None:
    """A client of an earlier version gets each file once, from the server that has it."""
    fleet = ServerFleet(testbed, files="own")
    legacy_peer.client(testbed, fleet.client_sections).start()

    def is_connected(feeder: Feeder) -> bool:
        with suppress(AssertionError):  # it does not request announcements from before its subscription
            fleet.received.wait_for_receipts(feeder.feed(1), seconds=0.5)
            return True
        return False

    for feeder in fleet.feeders:
        until(partial(is_connected, feeder), 60, "it receives announcements")
    names = [feeder.feed(10) for feeder in fleet.feeders]
    fleet.received.wait_for_receipts([*names[0], *names[1]], 60)
    assert set(Counter(fleet.received.receipts()).values()) == {1}
    for delivered, own in zip(fleet.delivered(), names, strict=True):
        assert set(own) <= delivered
    assert not set.intersection(*fleet.delivered())


def test_announcements_of_a_killed_server(testbed: Testbed) -> None:
    """The survivor announces the files of a killed server that were not requested again, with its own address."""
    fleet = ServerFleet(testbed)
    fleet.feeder.feed(BURST)
    until(lambda: sum(fleet.announcements().values()) == BURST, 30, "all files are announced")
    until(lambda: any(len(one) == 2 for n in (0, 1) for one in fleet.members(n)), 30, "a heartbeat names both")
    dead = fleet.busiest()
    left = 1 - dead
    by_dead, survivor = set(fleet.announced[dead].receipts()), fleet.announced[left]
    fleet.servers[dead].kill()
    fleet.servers[left].wait_for_line("did not renew its lease", seconds=BURIAL)
    until(lambda: by_dead <= set(survivor.receipts()), 30, "they are announced again")
    address = f"{HOST}:{fleet.request_ports[left]}"
    assert {one.data["request_address"] for one in survivor.of_type("file")} == {address}
    assert fleet.members(left)[-1] == [address]
