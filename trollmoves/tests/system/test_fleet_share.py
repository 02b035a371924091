"""Clients on several hosts share the work of one journal on PostgreSQL."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from contextlib import suppress

import pytest
import zmq
from posttroll.message import Message

from trollmoves.tests.helpers.daemons import TOPIC, Process, Testbed, client_section, server_section
from trollmoves.tests.helpers.journals import new_schema, shared_server
from trollmoves.tests.helpers.recording import HOST
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers import postgresql

pytestmark = pytest.mark.skipif(bool(postgresql.missing()), reason=f"missing: {postgresql.missing()}")

BURST = 300
BURIAL = 40  # s until the tasks of a dead member are free, on a busy machine; the lease lasts 10 s


class ClientFleet:
    """A server, and clients with one journal that all subscribe to it."""

    def __init__(self, testbed: Testbed, members: int) -> None:
        self.feeder = testbed.feeder()
        self.target = testbed.directory("out")
        port = testbed.port()
        self.server = testbed.server({"hrit": server_section(self.feeder.folder, testbed.port())}, port)
        process = {"journal": new_schema(shared_server()), "fleet": "share"}
        ports = [testbed.port() for _ in range(members)]
        self.clients: list[Process] = []
        for number, own in enumerate(ports):
            section = client_section(port, self.target, own, transfer_req_timeout=5)
            self.clients.append(testbed.client({"DEFAULT": process, "hrit": section}, name=f"client-{number}"))
        self.receipts = [testbed.subscriber(own) for own in ports]
        self.server.start(wait=False)
        for client in self.clients:
            client.start()
        self.server.wait_until_ready()
        for client in self.clients:
            client.wait_for_line("connected to")

    def published(self) -> Counter[str]:
        """Return how often each file has a receipt, of any client."""
        return Counter(name for subscriber in self.receipts for name in subscriber.receipts())

    def wait_until_done(self) -> None:
        """Wait until all files have receipts; all are complete then, and the journal has them all as done."""
        until(lambda: set(self.feeder.fed) <= self.published().keys(), 60, "all files have receipts")
        assert self.feeder.missing(self.target) == []

    def repeated(self) -> set[str]:
        """Return the files with several receipts."""
        return {name for name, count in self.published().items() if count > 1}


@pytest.mark.slow
@pytest.mark.parametrize("members", [2, 3])
def test_each_file_is_fetched_once(testbed: Testbed, members: int) -> None:
    """All members receive all announcements, and fetch each file once; status shows what each one holds."""
    fleet = ClientFleet(testbed, members)
    fleet.feeder.feed(BURST)
    fleet.wait_until_done()
    shown = testbed.run("trollmoves", "status", fleet.clients[0].config).stdout
    assert shown.count(": works, holds") == members
    assert "part of [hrit] fetch" in shown
    for client in fleet.clients:
        assert client.terminate() == 0
    fetched = sum(client.lines().count("] received ") for client in fleet.clients)
    assert fetched == len(fleet.feeder.fed)
    assert fleet.server.lines().count("delivered ") == len(fleet.feeder.fed)
    assert fleet.repeated() == set()


@pytest.mark.slow
def test_a_member_is_killed(testbed: Testbed) -> None:
    """After kill -9 in a burst the others complete all files; only receipts of the dead member are repeated."""
    fleet = ClientFleet(testbed, 2)
    fleet.feeder.feed(BURST)
    until(lambda: len(fleet.published()) > BURST // 4, 30, "files are fetched")
    fleet.clients[0].kill()
    fleet.feeder.feed(BURST)
    fleet.clients[1].wait_for_line("did not renew its lease", seconds=BURIAL)
    fleet.wait_until_done()
    fleet.clients[0].start()
    fleet.feeder.feed(20)
    fleet.wait_until_done()
    assert fleet.repeated() <= set(fleet.receipts[0].receipts())


@pytest.mark.slow
def test_a_member_is_suspended(testbed: Testbed) -> None:
    """A member that was stopped for longer than its lease joins again; no file is lost or incomplete."""
    fleet = ClientFleet(testbed, 2)
    fleet.feeder.feed(BURST)
    until(lambda: len(fleet.published()) > BURST // 4, 30, "files are fetched")
    fleet.clients[0].send(signal.SIGSTOP)
    fleet.clients[1].wait_for_line("did not renew its lease", seconds=BURIAL)
    fleet.feeder.feed(BURST)
    fleet.clients[0].send(signal.SIGCONT)
    fleet.clients[0].wait_for_line("opening the journal as a new member", seconds=BURIAL)
    fleet.feeder.feed(20)
    fleet.wait_until_done()
    assert fleet.repeated() <= set(fleet.receipts[0].receipts())


class OlderSource:
    """A server of an earlier version: it announces without numbers, and counts the requests that it has at a time."""

    def __init__(self, members: int) -> None:
        self.most = 0  # requests at a time
        self.requesters: set[bytes] = set()
        self._members = members  # a transfer takes longer until this number of clients has requested files
        self._context = zmq.Context()
        self._publisher, self._router = self._context.socket(zmq.PUB), self._context.socket(zmq.ROUTER)
        for one in (self._publisher, self._router):
            one.setsockopt(zmq.LINGER, 0)
        self.port = self._publisher.bind_to_random_port(f"tcp://{HOST}")
        self._address = f"{HOST}:{self._router.bind_to_random_port(f'tcp://{HOST}')}"
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="older-source")
        self._thread.start()

    def announce(self, *names: str) -> None:
        """Announce files."""
        for name in names:
            data = {"uri": f"/in/{name}", "uid": name, "request_address": self._address}
            self._publisher.send_string(str(Message(TOPIC, "file", data)))

    def _serve(self) -> None:
        running: list[tuple[float, list[bytes]]] = []  # the time of each reply, and the reply
        while not self._stopping.is_set():
            while self._router.poll(5):
                identity, *rest, text = self._router.recv_multipart()
                message = Message.decode(text.decode())
                reply = [identity, *rest, str(Message(message.subject, "file", message.data)).encode()]
                if message.type != "push":
                    self._router.send_multipart(reply)
                    continue
                self.requesters.add(identity)
                seconds = 0.05 if len(self.requesters) >= self._members else 2.0
                running.append((time.monotonic() + seconds, reply))
                self.most = max(self.most, len(running))
            ended = [one for one in running if one[0] < time.monotonic()]
            running = [one for one in running if one not in ended]
            for _, reply in ended:
                self._router.send_multipart(reply)

    def close(self) -> None:
        """Stop."""
        self._stopping.set()
        self._thread.join(10)
        self._context.destroy(0)


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "members", "limit"), [("", 2, 4), (f"ftp://{HOST}", 1, 1)])
def test_limit_of_an_older_source(testbed: Testbed, scheme: str, members: int, limit: int) -> None:
    """All members together send at most 4 requests at a time to an earlier version, with an FTP destination 1."""
    source = testbed.close_at_end(OlderSource(members))
    process = {"journal": new_schema(shared_server()), "fleet": "share"}
    ports = [testbed.port(), testbed.port()]
    receipts = [testbed.subscriber(port) for port in ports]
    for number, port in enumerate(ports):
        section = client_section(source.port, f"{scheme}{testbed.directory('out')}", port)
        testbed.client({"DEFAULT": process, "hrit": section}, name=f"client-{number}").start()

    def published() -> set[str]:
        return {name for subscriber in receipts for name in subscriber.receipts()}

    def is_connected() -> bool:
        source.announce("first")
        with suppress(AssertionError):  # not connected yet; more announcements a second would only compete for its row
            until(lambda: "first" in published(), 2, timeout_factor=1)
        return "first" in published()

    until(is_connected, 30, "a client receives announcements")
    names = [f"file-{n}" for n in range(30)]
    source.announce(*names)
    until(lambda: published() >= set(names), 60, "all files have receipts")
    assert len(source.requesters) >= members
    assert min(limit, 2) <= source.most <= limit
