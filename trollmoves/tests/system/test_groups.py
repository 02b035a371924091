"""Requests for groups: one request and one reply for several files, with a separate result for each file."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import zmq
from posttroll.message import Message

from trollmoves.config import config_file
from trollmoves.config.options import ClientOptions
from trollmoves.journal import FRESH, open_journal
from trollmoves.messaging.group import MAX_FILES
from trollmoves.messaging.messages import Message as Received
from trollmoves.messaging.requester import Requester
from trollmoves.receiver.destinations import Destinations
from trollmoves.receiver.fetch_attempt import FetchAttempt
from trollmoves.receiver.fetch_tasks import FetchTasks
from trollmoves.receiver.fetcher import Fetcher
from trollmoves.receiver.fleet_addresses import FleetAddresses
from trollmoves.receiver.peers import Peers
from trollmoves.scheduler.lanes import Result
from trollmoves.scheduler.scheduler import Scheduler
from trollmoves.tests.helpers.daemons import TOPIC, DaemonPair, Testbed, client_section
from trollmoves.tests.helpers.recording import HOST, RecordingSubscriber, send_request
from trollmoves.tests.helpers.waiting import until

CLIENT = "test/hrit"


class Announcing:
    """A server that has announced files, and a client that is not part of the project."""

    def __init__(self, testbed: Testbed, **server: object) -> None:
        self.pair = DaemonPair(testbed, server)
        self.announced = testbed.subscriber(self.pair.publish_port)
        self.pair.server.start()
        self.target = testbed.directory("group")
        self.state = testbed.root / "state"

    def announce(self, count: int) -> dict[str, Any]:
        """Announce new files; return the metadata of their announcements by name."""
        fed = self.pair.feeder.feed(count)
        until(lambda: all(self.announced.of_file(name) for name in fed), 30, "all files are announced")
        return {name: self.announced.of_file(name)[0].data["announcement"] for name in fed}

    def request(self, files: dict[str, Any], **changes: Any) -> Message:
        """Request files by a group; the number of an announcement is also the id."""
        group = {"client": CLIENT, "files": [[mark["number"], mark["number"]] for mark in files.values()]}
        group["log"] = next(iter(files.values()))["log"]
        data = {"destination": str(self.target), "group": group, "request": {"timeout": 10}, **changes}
        return send_request(self.pair.request_port, TOPIC, "push", data)

    def delivered(self, name: str) -> int:
        """Return how often the server has delivered a file."""
        return self.pair.server.lines().count(f"delivered {name} to")


@pytest.fixture(scope="module")
def announcing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Announcing]:
    """A running server."""
    with Testbed(tmp_path_factory.mktemp("groups")) as testbed:
        yield Announcing(testbed)


def test_one_reply_for_all_files(announcing: Announcing) -> None:
    """The files of a group are delivered, and the reply to them names none that was delivered as requested."""
    files = announcing.announce(5)
    assert set(files[next(iter(files))]) == {"log", "number", "size", "mtime", "group"}
    answer = announcing.request(files)
    assert (answer.type, answer.data) == ("file", {"group": {}})
    assert sorted(path.name for path in announcing.target.iterdir() if path.name in files) == sorted(files)


def test_order_of_a_group(testbed: Testbed) -> None:
    """The files of a group are delivered in the order in which the client requests them."""
    announcing = Announcing(testbed, max_transfers_per_host=1)
    files = dict(reversed(announcing.announce(6).items()))
    assert announcing.request(files).data == {"group": {}}
    for name in files:
        announcing.pair.server.wait_for_line(f"delivered {name} to")
    assert re.findall(r"delivered (\S+) to", announcing.pair.server.lines()) == list(files)


def test_each_file_fails_alone(announcing: Announcing) -> None:
    """A missing file and an unknown number get an error in the reply, and the other files are delivered."""
    files = announcing.announce(3)
    gone, *others = files
    (announcing.pair.feeder.folder / gone).unlink()
    unknown = files[gone] | {"number": 10**6}
    answer = announcing.request(files | {"unknown": unknown})
    results = answer.data["group"]
    assert set(results) == {str(files[gone]["number"]), str(10**6)}
    for type_, data in results.values():
        assert type_ == "err"
        assert data["temporary"] is False
    assert all((announcing.target / name).exists() for name in others)


def test_repeated_request(announcing: Announcing) -> None:
    """A repeated group, also after a kill and alone, is answered from the journal: each file is delivered once."""
    files = announcing.announce(4)
    assert announcing.request(files).data == {"group": {}}
    for name in files:
        announcing.pair.server.wait_for_line(f"delivered {name} to")
    announcing.pair.server.kill()
    assert {announcing.delivered(name) for name in files} == {1}
    announcing.pair.server.start()
    assert announcing.request(files).data == {"group": {}}
    name, mark = next(iter(files.items()))
    data = announcing.announced.of_file(name)[0].data
    alone = {**data, "destination": str(announcing.target), "request": {"id": f"{CLIENT}/{mark['number']}"}}
    assert send_request(announcing.pair.request_port, TOPIC, "push", alone).type == "file"
    assert {announcing.delivered(name) for name in files} == {0}


def test_files_for_which_the_destination_is_held(announcing: Announcing, testbed: Testbed) -> None:
    """Each file for a destination that an operator must repair gets a temporary error, and is delivered afterwards."""
    files = announcing.announce(3)
    blocked = testbed.root / "blocked"
    blocked.write_text("a file in the place of the directory")
    results = announcing.request(files, destination=f"{blocked}/in").data["group"]
    assert set(results) == {str(mark["number"]) for mark in files.values()}
    assert all(type_ == "err" and data["temporary"] for type_, data in results.values())
    blocked.unlink()

    def is_delivered() -> bool:
        return bool(announcing.request(files, destination=f"{blocked}/in").data["group"] == {})

    until(is_delivered, 60, "the files are delivered")
    assert sorted(path.name for path in (blocked / "in").iterdir()) == sorted(files)


@pytest.mark.parametrize(
    "group",
    [
        5,
        {},
        {"log": "{log}", "client": CLIENT, "files": []},
        {"log": "{log}", "client": CLIENT, "files": [[n, n] for n in range(MAX_FILES + 1)]},
        {"log": "{log}", "client": CLIENT, "files": [["1", 1]]},
        {"log": "{log}", "client": CLIENT, "files": [[1, -1]]},
        {"log": "{log}", "client": CLIENT, "files": [[1]]},
        {"log": "{log}", "client": CLIENT, "files": {"1": 1}},
        {"log": "{log}", "client": 5, "files": [[1, 1]]},
        {"log": 5, "client": CLIENT, "files": [[1, 1]]},
        {"log": "another/log", "client": CLIENT, "files": [[1, 1]]},
    ],
)
def test_invalid_groups(announcing: Announcing, group: Any) -> None:
    """An invalid group gets an err, and the next request is served."""
    files = announcing.announce(1)
    if isinstance(group, dict) and group.get("log") == "{log}":
        group = {**group, "log": files[next(iter(files))]["log"]}
    assert announcing.request(files, group=group).type == "err"
    assert announcing.request(files, destination=5).type == "err"
    assert announcing.request(files).data == {"group": {}}


def test_names_of_other_files(announcing: Announcing, testbed: Testbed) -> None:
    """A group cannot add files that were not announced, also after a restart of the server."""
    secret = testbed.root / "secret"
    secret.write_text("secret")
    files = announcing.announce(2)
    item = {"uri": str(secret), "uid": "secret", "path": "below"}
    blocked = testbed.root / "below"
    answer = announcing.request(files, destination=str(blocked), dataset=[item], **item, request={"timeout": 5, **item})
    assert answer.data == {"group": {}}
    assert sorted(path.name for path in blocked.iterdir()) == sorted(files)
    announcing.pair.server.kill()
    journal = b"".join(path.read_bytes() for path in announcing.state.rglob("*.journal*") if path.is_file())
    assert TOPIC.encode() in journal
    assert str(secret).encode() not in journal
    announcing.pair.server.start()


# -- the client


class GroupServer:
    """A server that announces files, records requests, and replies with ``reply(data)`` to each push."""

    def __init__(self, reply: Callable[[Any], tuple[str, Any]]) -> None:
        self._context = zmq.Context()
        self._publisher = self._context.socket(zmq.PUB)
        self._router = self._context.socket(zmq.ROUTER)
        self.port = self._publisher.bind_to_random_port(f"tcp://{HOST}")
        self.address = f"{HOST}:{self._router.bind_to_random_port(f'tcp://{HOST}')}"
        self.requests: list[Any] = []
        self.announced: list[str] = []
        self._reply = reply
        self._number = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._answer)
        self._thread.start()

    def announce(self, *names: str, **metadata: object) -> list[int]:
        """Announce files; return their numbers."""
        first = self._number + 1
        for name in names:
            self._publisher.send_string(self.announcement(name, **metadata))
        return list(range(first, self._number + 1))

    def announcement(self, name: str, **metadata: object) -> str:
        """Return the announcement of a further file."""
        self._number += 1
        self.announced.append(name)
        mark = {"log": "them/hrit", "number": self._number, "size": 5, "mtime": 1, "group": 64, **metadata}
        data = {"uri": f"/in/{name}", "uid": name, "request_address": self.address, "announcement": mark}
        return str(Message(TOPIC, "file", data))

    def _answer(self) -> None:
        while not self._stopping.is_set():
            if self._router.poll(50):
                *route, text = self._router.recv_multipart()
                asked = Message.decode(text.decode())
                type_, data = asked.type, asked.data
                if asked.type == "push":
                    self.requests.append(asked.data)
                    type_, data = self._reply(asked.data)
                self._router.send_multipart([*route, str(Message(asked.subject, type_, data)).encode()])

    def close(self) -> None:
        """Stop."""
        self._stopping.set()
        self._thread.join(5)
        self._context.destroy(0)


class Requesting:
    """A client of a ``GroupServer`` that has received one file, so that it knows the destination."""

    def __init__(self, testbed: Testbed, reply: Callable[[Any], tuple[str, Any]]) -> None:
        self.server = GroupServer(reply)
        testbed.call_at_end(self.server.close)
        port = testbed.port()
        self.client = testbed.client({"hrit": client_section(self.server.port, testbed.directory("out"), port)})
        self.received: RecordingSubscriber = testbed.subscriber(port)
        self.client.start()

        def is_received() -> bool:
            self.server.announce("first")
            return "first" in self.received.receipts()

        until(is_received, 30, "the first file is received")
        # Its other announcements precede this one; none of them may be requested later.
        self.server.announce("ready")
        self.received.wait_for_receipts(["ready"])
        until(lambda: not testbed.pending_tasks(), what="no request is pending")

    def announce_together(self, *names: str, **metadata: object) -> list[int]:
        """Announce files while the client is stopped, so that they wait together; return their numbers."""
        self.client.send(signal.SIGSTOP)
        numbers = self.server.announce(*names, **metadata)
        self.client.send(signal.SIGCONT)
        return numbers

    def announce_group(self, count: int) -> dict[str, int]:
        """Announce files until the client requests them all in one group; return their numbers by name."""
        found: dict[str, int] = {}

        def is_group() -> bool:
            found.clear()
            self.server.requests.clear()
            names = [f"{len(self.server.announced)}-{n}" for n in range(count)]
            found.update(zip(names, self.announce_together(*names), strict=True))
            until(lambda: set(found.values()) <= set(self._requested()), 30, "all files are requested")
            asked = self.server.requests[0].get("group")
            return bool(asked) and list(dict(asked["files"])) == list(found.values())

        until(is_group, 60, "a group is requested")
        return found

    def _requested(self) -> list[int]:
        numbers: list[int] = []
        for data in list(self.server.requests):
            numbers += dict(data["group"]["files"]) if "group" in data else [data["announcement"]["number"]]
        return numbers


def test_results_of_a_group(testbed: Testbed) -> None:
    """Delivered files get receipts, failed ones none; files that the server still delivers are requested again."""

    def reply(data: Any) -> tuple[str, Any]:
        if "group" not in data or len(data["group"]["files"]) < 4:
            return "file", {**data, "group": {}}
        numbers = [number for number, _ in data["group"]["files"]]
        failed = {"error": "gone", "temporary": False}
        return "file", {"group": {str(numbers[1]): ["err", failed], str(numbers[2]): ["wait", ""]}}

    scene = Requesting(testbed, reply)
    files = scene.announce_group(4)
    first, failed, waiting, last = files
    scene.received.wait_for_receipts([first, waiting, last])
    group, again = scene.server.requests
    assert group["group"]["log"] == "them/hrit"
    client, ids = group["group"]["client"], dict(group["group"]["files"])
    assert (again["uid"], again["request"]["id"]) == (waiting, f"{client}/{ids[files[waiting]]}")
    scene.client.wait_for_line(f"{failed}: permanently rejected by all sources")
    published = {name: [one.type for one in scene.received.of_file(name)] for name in files}
    complete = ["push", "ack", "file"]
    assert published == {first: complete, failed: ["push"], waiting: ["push", *complete], last: complete}


@pytest.mark.parametrize(
    "answer", [("err", {"error": "no such key", "temporary": False}), ("file", {}), ("unknown", "")]
)
def test_server_that_rejects_groups(testbed: Testbed, answer: tuple[str, Any]) -> None:
    """The files of a group that is rejected as a whole are requested one by one."""

    def reply(data: dict[str, Any]) -> tuple[str, Any]:
        if "group" not in data:
            return "file", data
        # The client sends no further group after some of these answers, so a group of fewer files is accepted.
        return answer if len(data["group"]["files"]) == 3 else ("file", {**data, "group": {}})

    scene = Requesting(testbed, reply)
    files = scene.announce_group(3)
    scene.received.wait_for_receipts(files)
    group, *single = [data.get("uid") for data in scene.server.requests]
    assert group is None
    assert sorted(single) == sorted(files)


def test_group_that_cannot_be_requested(testbed: Testbed) -> None:
    """If a group cannot be requested, its files are requested one by one, and the one that is the cause again later."""
    server = GroupServer(lambda data: ("file", data))
    testbed.call_at_end(server.close)
    section = client_section(server.port, testbed.directory("out"), testbed.port())
    options = config_file.read(testbed.config({"hrit": section}), ClientOptions).sections["hrit"]
    journal = open_journal(str(testbed.root / "client.journal"))
    testbed.call_at_end(journal.close)
    scheduler, requester, peers = Scheduler(journal, 2), Requester("hrit"), Peers(0.0)
    tasks = FetchTasks("hrit", journal, peers, 0.0, None)
    destinations = Destinations("hrit", options.destination, login=None, make=True, ftp_root="")
    tried: list[list[str]] = []
    failing = threading.Event()

    def on_request(attempts: Sequence[FetchAttempt]) -> None:
        names = [str(attempt.message.data["uid"]) for attempt in attempts]
        tried.append(names)
        if "b" in names and failing.is_set():
            raise ValueError("b cannot be requested")

    fetcher = Fetcher(
        *(options, journal, scheduler, requester, tasks, peers, FleetAddresses()),
        prepare=lambda _, message: destinations.url_for(message),
        destinations=destinations,
        on_request=on_request,
        on_delivered=lambda _attempt, _reply: (Result(), []),
        delay=0.0,
    )
    for stop in (fetcher.stop, requester.stop, lambda: scheduler.stop(5)):
        testbed.call_at_end(stop)

    def requested() -> list[str]:
        return [data.get("uid", "a group") for data in server.requests]

    messages = [Received.decode(server.announcement(name)) for name in "abc"]
    tasks.record_announcements(messages, (), FRESH)
    failing.set()
    destinations.url_for(messages[0])  # files of a known destination are requested together
    for start in (requester.start, scheduler.start, fetcher.start):
        start()
    until(lambda: journal.count("hrit")["done"] == 2, 30, "the other files are received")
    assert tried[0] == ["a", "b", "c"]
    assert requested() == ["a", "c"]
    failing.clear()
    scheduler.retry_now("hrit")
    until(lambda: journal.count("hrit")["done"] == 3, 30, "all files are received")
    assert requested() == ["a", "c", "b"]


def test_servers_and_files_without_groups(testbed: Testbed) -> None:
    """Files of servers that do not accept groups, and large files, are requested one by one."""
    scene = Requesting(testbed, lambda data: ("file", data))
    scene.server.requests.clear()
    scene.announce_together("a", "b", group=None)
    scene.announce_together("c", "d", size=10**9)
    scene.received.wait_for_receipts(["a", "b", "c", "d"])
    assert sorted(data["uid"] for data in scene.server.requests) == ["a", "b", "c", "d"]
