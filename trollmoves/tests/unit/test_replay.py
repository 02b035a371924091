"""Missed announcements are requested once, and only received ones count as received."""

from __future__ import annotations

import os
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from trollmoves.errors import JournalError
from trollmoves.journal import SourcePosition, open_journal
from trollmoves.messaging.messages import Message
from trollmoves.messaging.replier import Replier, Request
from trollmoves.messaging.requester import Requester
from trollmoves.receiver import replay
from trollmoves.receiver.replay import ReplayClient
from trollmoves.tests.helpers.waiting import until

SOON = 20.0  # s; far more than anything here takes
HOST = "127.0.0.1"
PROVIDER, OTHER = "tcp://one:9010", "tcp://two:9010"


class Server:
    """A source: its numbered log, and a request port that answers ``replay`` from it."""

    def __init__(self, stack: ExitStack, log: str = "log/a", port: int = 0, last: int = 0) -> None:
        self.log = log
        self.page = 100
        self.last = last
        self.recent = 0  # the number before the ones of the last seconds
        self.forgotten = 0  # the number up to which the log was pruned
        self.asked: list[dict[str, Any]] = []
        self.hold = threading.Event()
        self.hold.set()
        self.instead: list[Any] = []  # what to answer instead, as (type, data)
        self.replier = Replier("server", port, self._handle, bind_address=HOST)
        self.replier.start()
        stack.callback(self.replier.stop)
        stack.callback(self.hold.set)
        self.address = f"{HOST}:{self.replier.port}"

    def _handle(self, requests: list[Request]) -> None:
        for request in requests:
            if request.message.type == "ping":
                request.reply("pong")
                continue
            self.asked.append(request.message.data)
            self.hold.wait(2 * SOON)
            if self.instead:
                request.reply(*self.instead.pop(0))
            else:
                request.reply("replay", self._replay(request.message.data))

    def _replay(self, data: dict[str, Any]) -> dict[str, Any]:
        answer = {"log": self.log, "last": self.last, "through": 0, "messages": []}
        if data["log"] != self.log:
            return answer
        after = max(self.recent if "max_age" in data else data["after"], self.forgotten)
        through = min(after + self.page, self.last)
        return answer | {"through": through, "messages": [self.text(n) for n in range(after + 1, through + 1)]}

    def text(self, number: int) -> str:
        """Return an announcement, as an earlier process of the server made it, at an address of old."""
        mark = {"log": self.log, "number": number}
        data = {"uri": f"/in/{number}", "request_address": "of.old:1", "announcement": mark}
        return Message("/a", "file", data).encode()


class Client:
    """A chain that replays announcements and records the missed ones, as its caller does."""

    def __init__(self, stack: ExitStack, path: str, gap_delay: float = replay.GAP_DELAY) -> None:
        self._own = stack.enter_context(ExitStack())
        self.journal = open_journal(path)
        self._own.callback(self.journal.close)
        self.requester = Requester("client")
        self._own.callback(self.requester.stop)
        self.missed: list[Message] = []
        self.trouble: list[Exception] = []
        self.catchup = ReplayClient("client", [PROVIDER, OTHER], self.journal, self.requester, self._note, gap_delay)
        self.requester.start()

    def _note(self, messages: list[Message], sources: list[tuple[str, SourcePosition]]) -> None:
        if self.trouble:
            raise self.trouble.pop(0)
        self.journal.add_tasks([], sources)
        self.missed += messages

    def receive(self, server: Server, *numbers: int, provider: str = PROVIDER, previous: int | None = None) -> None:
        """Receive announcements, and store them."""
        for number in numbers:
            first = None if previous is None else previous + 1
            mark = self.catchup.on_announced(provider, server.log, number, server.address, first)
            self.journal.add_tasks([], [mark] if mark else [])
            self.catchup.mark_saved()

    def heartbeat(self, server: Server, number: int | None = None) -> None:
        """Receive a heartbeat."""
        self.catchup.on_heartbeat(PROVIDER, server.log, server.last if number is None else number, server.address)

    def settle(self, server: Server) -> None:
        """Wait until answers that came before are dealt with: they are, one after the other."""
        answers: list[Any] = []
        self.requester.send_request(server.address, Message("/a", "ping").encode(), 2 * SOON, answers.append)
        until(lambda: answers, 2 * SOON)

    def numbers(self) -> list[int]:
        """Return the numbers of the replayed announcements."""
        return [message.data["announcement"]["number"] for message in self.missed]

    def have(self) -> dict[str, int]:
        """Return how far each log is had, as the journal says."""
        sources = self.journal.sources("client")
        return {source.log.removesuffix(f" {PROVIDER}"): source.received_through for source in sources}

    def stop(self) -> None:
        """End, as the process does."""
        self._own.close()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Stop at the end whatever was started."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def path(stack: ExitStack) -> str:
    """Return the path of a journal, in memory where that can be."""
    folder = stack.enter_context(TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    return os.path.join(folder, "a.journal")


@pytest.fixture
def server(stack: ExitStack) -> Server:
    """Return a source."""
    return Server(stack)


@pytest.fixture
def client(stack: ExitStack, path: str) -> Client:
    """Return a chain without any known source."""
    return Client(stack, path)


def in_touch(client: Client, server: Server, number: int = 5) -> None:
    """Receive the log up to a number."""
    server.last = server.recent = number
    client.heartbeat(server)
    until(lambda: client.have() == {server.log: number}, SOON)
    client.settle(server)
    server.asked.clear()


def at_rest(client: Client, server: Server, requested: int) -> bool:
    """Return True if a source got ``count`` requests, and none is pending."""
    until(lambda: len(server.asked) >= requested, SOON)
    client.settle(server)
    client.settle(server)  # a request that the last reply has caused precedes this one
    return len(server.asked) == requested


def gone(port: int) -> bool:
    """Return True if no socket listens on a port."""
    with closing(socket.socket()) as one:
        return one.connect_ex((HOST, port)) != 0


# -- first contact


@pytest.mark.parametrize("how", ["receive", "beat"])
def test_first_contact(client: Client, server: Server, how: str) -> None:
    """For an unknown source, only its announcements since shortly before the start are requested."""
    server.last, server.recent = 50, 47
    if how == "receive":
        client.receive(server, 50)
    else:
        server.page = 2  # announcements in a reply
        client.heartbeat(server)
    until(lambda: client.have() == {server.log: 50}, SOON)
    assert client.numbers() == [48, 49, 50]
    assert all(message.data["announcement"]["early"] for message in client.missed)
    assert at_rest(client, server, 1 if how == "receive" else 2)
    assert replay.FIRST_CONTACT_SLACK <= server.asked[0]["max_age"] < replay.FIRST_CONTACT_SLACK + 2 * SOON
    assert server.asked[0]["log"] == server.log


def test_first_contact_with_an_empty_log(client: Client, server: Server) -> None:
    """A source without announcements becomes known, and its first announcement needs no replay."""
    client.heartbeat(server)
    until(lambda: client.have() == {server.log: 0}, SOON)
    client.settle(server)
    server.last = 1
    client.receive(server, 1)
    assert client.have() == {server.log: 1}
    assert at_rest(client, server, 1)
    assert client.missed == []


# -- several servers with one log


@pytest.mark.parametrize("is_named", [True, False])
def test_members_of_a_fleet(client: Client, server: Server, is_named: bool) -> None:
    """The numbers of all members count for the log, if each one names the others as its members."""
    in_touch(client, server)
    hosts = [PROVIDER, OTHER] if is_named else [PROVIDER]
    members = [f"{one.removeprefix('tcp://').rpartition(':')[0]}:1" for one in hosts]
    for provider in (PROVIDER, OTHER):
        client.catchup.on_heartbeat(provider, server.log, server.last, server.address, members)
    for number in range(6, 206, 2):
        server.last = number + 1
        client.receive(server, number)
        client.receive(server, number + 1, provider=OTHER)
    if is_named:
        assert at_rest(client, server, 0)
        assert client.missed == []
        assert server.last - 1 <= client.have()[server.log] <= server.last
    else:
        until(lambda: set(client.numbers()) >= set(range(7, 205, 2)), SOON)


def test_numbers_of_other_logs(client: Client, server: Server) -> None:
    """Numbers that a server leaves out of its log are not missing; others before them are."""
    in_touch(client, server)
    server.last = 300
    for number in range(9, 300, 3):  # the numbers in between are those of two other servers
        client.receive(server, number, previous=5 if number == 9 else number - 3)
    assert client.have() == {server.log: 297}
    assert at_rest(client, server, 0)
    client.receive(server, 300, previous=298)
    until(lambda: client.have() == {server.log: 300}, SOON)
    assert client.numbers() == [298, 299, 300]


# -- in touch


def test_no_replay_in_order(client: Client, server: Server) -> None:
    """While no number is missing, no request is sent, and the position is stored in the journal."""
    in_touch(client, server)
    for number in range(6, 300):
        server.last = number
        client.receive(server, number)
        client.heartbeat(server)
        assert client.have() == {server.log: number}
    client.receive(server, 298, 7, 299)  # announced again
    assert at_rest(client, server, 0)
    assert client.missed == []


def test_a_gap_is_filled(client: Client, server: Server) -> None:
    """When a number is skipped what lies between is asked for, once, and then the log counts as had."""
    in_touch(client, server)
    server.last = 9
    server.hold.clear()
    client.receive(server, 9)
    assert client.have() == {server.log: 5}
    server.hold.set()
    until(lambda: client.have() == {server.log: 9}, SOON)
    assert client.numbers() == [6, 7, 8, 9]
    assert at_rest(client, server, 1)
    server.last = 10
    client.receive(server, 10)
    assert client.have() == {server.log: 10}
    assert at_rest(client, server, 1)


def test_heartbeat_reveals_a_gap(client: Client, server: Server) -> None:
    """A gap that a heartbeat reveals is requested."""
    in_touch(client, server)
    server.last = 7
    client.heartbeat(server)
    until(lambda: client.numbers() == [6, 7], SOON)
    assert client.have() == {server.log: 7}
    client.heartbeat(server)
    assert at_rest(client, server, 1)


def test_missed_announcements_name_the_source_as_it_is_now(client: Client, server: Server) -> None:
    """Old announcements come with the address at which their source takes requests now."""
    in_touch(client, server)
    server.last = 6
    client.heartbeat(server)
    until(lambda: client.missed, SOON)
    assert client.missed[0].data["request_address"] == server.address
    assert "of.old" not in client.missed[0].raw


def test_a_large_gap_comes_in_pages(client: Client, server: Server) -> None:
    """More than fits into one answer comes in several, in order, each asked for once."""
    in_touch(client, server)
    server.last = 1005
    client.receive(server, 1005)
    until(lambda: len(client.missed) == 1000, 2 * SOON)
    assert client.numbers() == list(range(6, 1006))
    assert [data["after"] for data in server.asked] == list(range(5, 1005, 100))
    assert at_rest(client, server, 10)


def test_numbers_received_during_replay(client: Client, server: Server) -> None:
    """Numbers received during a replay are not requested, and count when the gap is closed."""
    in_touch(client, server)
    server.last = 8
    server.hold.clear()
    client.receive(server, 8)
    until(lambda: server.asked, SOON)
    for number in range(9, 200):
        client.receive(server, number)
    assert client.have() == {server.log: 5}
    server.hold.set()
    until(lambda: client.numbers() == [6, 7, 8], SOON)
    assert at_rest(client, server, 1)
    client.receive(server, 200)
    assert client.have() == {server.log: 200}
    assert at_rest(client, server, 1)


def test_only_stored_numbers_count(client: Client, server: Server) -> None:
    """A reply moves the stored position only over its own numbers: others may not be stored yet."""
    in_touch(client, server)
    server.last = 7
    client.catchup.on_announced(PROVIDER, server.log, 7, server.address)
    server.hold.clear()
    client.catchup.on_announced(PROVIDER, server.log, 8, server.address)  # and not noted
    server.hold.set()
    until(lambda: client.numbers() == [6, 7], SOON)
    assert client.have() == {server.log: 7}


def test_two_gaps_at_once(client: Client, server: Server) -> None:
    """A second number skipped while the first gap is asked for is noticed too, without a further sign."""
    in_touch(client, server)
    server.last = 8
    server.hold.clear()
    client.receive(server, 8)
    until(lambda: server.asked, SOON)
    client.receive(server, 9, 12, 13)
    server.last = 13
    server.page = 3
    server.hold.set()
    until(lambda: client.numbers()[-1:] >= [11], SOON)
    client.settle(server)
    client.receive(server, 14)
    assert client.have() == {server.log: 14}


def test_a_malformed_line_does_not_stop_the_rest(client: Client, server: Server) -> None:
    """An announcement in the log that is none is left out, and what follows it is had."""
    in_touch(client, server)
    server.last = 9
    messages = [server.text(6), "hello", 5, None, Message("/a", "file", "text").encode(), server.text(9)]
    server.instead = [("replay", {"log": server.log, "last": 9, "through": 9, "messages": messages})]
    client.heartbeat(server)
    until(lambda: client.have() == {server.log: 9}, SOON)
    assert client.numbers() == [6, 9]


# -- several sources


def test_sources_are_apart(stack: ExitStack, client: Client, server: Server) -> None:
    """The numbers of several sources are not mixed up."""
    other = Server(stack, "log/b")
    in_touch(client, server)
    other.last = other.recent = 80
    client.heartbeat(other)
    until(lambda: client.have() == {server.log: 5, other.log: 80}, SOON)
    client.settle(other)
    server.last, other.last = 6, 83
    client.receive(server, 6)
    client.receive(other, 83)
    until(lambda: client.have() == {server.log: 6, other.log: 83}, SOON)
    assert client.numbers() == [81, 82, 83]
    assert server.asked == []


def test_a_provider_cannot_move_the_position_of_another(stack: ExitStack, client: Client, server: Server) -> None:
    """A provider that names another provider's log gets its own position in it; the other one stays."""
    rogue = Server(stack, server.log)
    in_touch(client, server)
    rogue.instead = [("replay", {"log": server.log, "last": 10**15, "through": 10**15, "messages": []})]
    client.catchup.on_heartbeat(OTHER, server.log, 10**15, rogue.address)
    client.journal.add_tasks([], [mark] if (mark := client.catchup.on_announced(OTHER, server.log, 99, "x:1")) else [])
    client.settle(rogue)
    assert client.have()[server.log] == 5
    server.last = 7
    client.receive(server, 7)
    until(lambda: client.have()[server.log] == 7, SOON)
    assert client.numbers()[-2:] == [6, 7]


def test_a_reply_cannot_skip_numbers_that_were_not_announced(client: Client, server: Server) -> None:
    """A reply that says "complete up to 10^15" counts up to the highest number that was announced."""
    in_touch(client, server)
    server.last = 8
    server.instead = [("replay", {"log": server.log, "last": 10**15, "through": 10**15, "messages": [server.text(6)]})]
    client.heartbeat(server, 8)
    until(lambda: client.have() == {server.log: 8}, SOON)


def test_a_renamed_provider_keeps_its_position(stack: ExitStack, client: Client, server: Server, path: str) -> None:
    """The position in a log of an earlier provider applies to the provider that names the log now."""
    in_touch(client, server)
    (stored,) = client.journal.sources("client")
    client.journal.add_tasks([], [("client", SourcePosition(server.log, stored.address, 5))])
    client.journal.forget_source("client", stored.log)
    client.stop()
    client, server.last = Client(stack, path), 7
    client.heartbeat(server)
    until(lambda: client.numbers() == [6, 7], SOON)


def test_another_host_announces_a_known_log(stack: ExitStack, client: Client, server: Server) -> None:
    """After a takeover, only announcements after the stored ones are requested from the other host of the log."""
    in_touch(client, server)
    other = Server(stack, server.log, last=7)
    client.catchup.on_heartbeat(OTHER, other.log, 7, other.address)
    until(lambda: client.numbers() == [6, 7], SOON)
    assert other.asked == [{"log": server.log, "after": 5}]


def test_the_logs_of_a_provider_are_limited(client: Client, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Further logs of a provider are ignored."""
    monkeypatch.setattr(replay, "MAX_LOGS", 1)
    in_touch(client, server)
    client.catchup.on_heartbeat(PROVIDER, "log/other", 9, server.address)
    assert client.catchup.on_announced(PROVIDER, "log/other", 9, server.address) is None
    assert at_rest(client, server, 0)


# -- outages


def test_first_contact_after_a_kill(stack: ExitStack, server: Server, path: str) -> None:
    """The first request to a new source includes the time since the kill of the previous process."""
    with closing(open_journal(path)) as journal:
        journal.check_writable()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("DELETE FROM meta WHERE key = 'closed'")
        db.execute("UPDATE meta SET value = value - 1000 WHERE key = 'time'")
    Path(f"{path}.lock").write_text("")
    client = Client(stack, path)
    client.heartbeat(server)
    until(lambda: server.asked, SOON)
    assert 0 <= server.asked[0]["max_age"] - 1000 - replay.FIRST_CONTACT_SLACK < 2 * SOON


def test_after_own_restart(stack: ExitStack, client: Client, server: Server, path: str) -> None:
    """After a restart each source is asked for the announcements missed."""
    in_touch(client, server)
    client.stop()
    server.last = 250
    client = Client(stack, path)
    client.catchup.request_all()
    until(lambda: client.have() == {server.log: 250}, SOON)
    assert client.numbers() == list(range(6, 251))
    assert at_rest(client, server, 3)


def test_source_returns(
    stack: ExitStack,
    client: Client,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A silent source is requested again at its next message, and then every gap is filled."""
    monkeypatch.setattr(replay, "REPLAY_TIMEOUT", 0.3)
    monkeypatch.setattr(replay, "RETRY_DELAY", 0.1)
    in_touch(client, server)
    server.replier.stop()
    until(lambda: gone(server.replier.port), SOON)
    client.heartbeat(server, 9)
    until(lambda: f"replay request to {server.address} failed" in caplog.text, SOON)
    assert client.missed == []
    back = Server(stack, port=server.replier.port, last=9)

    def filled() -> bool:
        client.heartbeat(back)
        return client.numbers() == [6, 7, 8, 9]

    until(filled, 2 * SOON)


def test_a_source_is_answered_when_it_comes_within_the_time(
    stack: ExitStack, client: Client, server: Server, path: str
) -> None:
    """A source that comes back while we wait for its answer gives it, without a heartbeat."""
    in_touch(client, server)
    client.stop()
    server.replier.stop()
    until(lambda: gone(server.replier.port), SOON)
    client = Client(stack, path)
    client.catchup.request_all()
    Server(stack, port=server.replier.port, last=8)
    until(lambda: client.numbers() == [6, 7, 8], 2 * SOON)


@pytest.mark.parametrize(
    "answer",
    [
        ("err", "no replay here"),
        ("unknown", ""),
        ("replay", "text"),
        ("replay", {"log": "log/a"}),
        ("replay", {"log": "log/a", "through": "9", "last": 9, "messages": []}),
        ("replay", {"log": "log/a", "through": 10**30, "last": 10**30, "messages": []}),
        ("replay", {"log": "log/a", "through": -1, "last": 9, "messages": []}),
        ("replay", {"log": 5, "through": 9, "last": 9, "messages": []}),
        ("replay", {"log": "log/a", "through": 9, "last": 9, "messages": "text"}),
        ("replay", {"log": "log/a", "through": 5, "last": 9, "messages": []}),
    ],
)
def test_wrong_reply_is_not_repeated(client: Client, server: Server, answer: tuple[str, Any]) -> None:
    """A source with a wrong reply is left alone for a while, despite its messages."""
    in_touch(client, server)
    server.instead = [answer]
    client.receive(server, 7)
    until(lambda: server.asked, SOON)
    client.settle(server)
    client.receive(server, *range(8, 208))
    client.heartbeat(server, 207)
    assert at_rest(client, server, 1)
    assert client.have() == {server.log: 5}


def test_wrong_reply_is_retried_later(client: Client, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source with a wrong reply is requested again later, and numbers received until then count."""
    monkeypatch.setattr(replay, "RETRY_DELAY", 0.2)
    in_touch(client, server)
    server.instead = [("err", "not now")]
    client.receive(server, *range(7, 208))
    server.last = 207

    def filled() -> bool:
        client.heartbeat(server)
        return 6 in client.numbers()

    until(filled, SOON)
    client.settle(server)
    client.receive(server, 208)
    assert client.have() == {server.log: 208}


def test_a_journal_that_cannot_be_written(client: Client, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be noted does not count as had, and is asked for again."""
    monkeypatch.setattr(replay, "RETRY_DELAY", 0.1)
    in_touch(client, server)
    client.trouble = [JournalError("disk full"), RuntimeError("a bug")]
    server.last = 8

    def filled() -> bool:
        client.heartbeat(server)
        return client.numbers() == [6, 7, 8]

    until(filled, SOON)
    assert client.have() == {server.log: 8}
    assert at_rest(client, server, 3)


def test_gap_older_than_the_log(client: Client, server: Server) -> None:
    """Numbers that a source has pruned count as received, so they are requested once; the rest is replayed."""
    in_touch(client, server)
    server.last, server.forgotten = 300, 250
    client.heartbeat(server)
    until(lambda: client.numbers() == list(range(251, 301)), SOON)
    client.settle(server)
    client.heartbeat(server)
    assert client.have() == {server.log: 300}
    assert at_rest(client, server, 1)


# -- logs that are replaced


def test_new_log_at_known_address(client: Client, server: Server) -> None:
    """A source with a lost journal starts a new log, which is requested from the beginning."""
    in_touch(client, server, 500)
    server.log, server.last = "log/new", 3
    client.receive(server, 3)
    until(lambda: client.numbers() == [1, 2, 3], SOON)
    assert client.have()["log/new"] == 3
    assert at_rest(client, server, 1)


@pytest.mark.parametrize("how", ["connection", "heartbeat", "restart"])
def test_log_went_back(stack: ExitStack, client: Client, server: Server, path: str, how: str) -> None:
    """A source that has fewer announcements than this client received is requested from the beginning."""
    in_touch(client, server, 50)
    server.last = 7  # its host was restored from a snapshot
    if how == "heartbeat":
        client.heartbeat(server)
    elif how == "connection":
        client.catchup.request_all()
    else:
        client.stop()
        client = Client(stack, path)
        client.catchup.request_all()
    until(lambda: client.numbers() == [1, 2, 3, 4, 5, 6, 7], SOON)
    until(lambda: client.have() == {server.log: 7}, SOON)
    assert at_rest(client, server, 2)
    server.last = 8
    client.receive(server, 8)
    assert client.have() == {server.log: 8}
    assert at_rest(client, server, 2)


def test_log_replaced_while_away(stack: ExitStack, client: Client, server: Server, path: str) -> None:
    """A source that replies from another log is requested from its beginning, and the old log is dropped."""
    in_touch(client, server, 500)
    client.stop()
    server.log, server.last = "log/new", 4
    client = Client(stack, path)
    client.catchup.request_all()
    until(lambda: client.numbers() == [1, 2, 3, 4], SOON)
    assert client.have() == {"log/new": 4}
    assert at_rest(client, server, 2)
    client.stop()
    client = Client(stack, path)
    client.catchup.request_all()
    assert at_rest(client, server, 3)
    assert client.missed == []


def test_two_servers_behind_one_address(client: Client, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that answers from another log each time is not asked in a circle."""
    monkeypatch.setattr(replay, "RETRY_DELAY", 0.5)
    in_touch(client, server)
    server.instead = [("replay", {"log": f"log/{n % 2}", "through": 0, "last": 9, "messages": []}) for n in range(1000)]
    began = time.monotonic()
    client.heartbeat(server, 9)
    until(lambda: server.asked, SOON)
    time.sleep(0.3)  # the absence of a request cannot be waited for
    requested, pauses = len(server.asked), (time.monotonic() - began) / 0.5
    assert requested <= 4 * (1 + int(pauses))
    server.instead.clear()


def test_stop_during_replay(client: Client, server: Server) -> None:
    """A stop during a request ends without delay, and later messages do no harm."""
    in_touch(client, server)
    server.last = 9
    server.hold.clear()
    client.receive(server, 9)
    until(lambda: server.asked, SOON)
    started = time.monotonic()
    client.requester.stop()
    assert time.monotonic() - started < SOON
    client.heartbeat(server, 20)
    assert client.missed == []


# -- several servers that write one log


def test_interleaved_numbers_are_not_requested(stack: ExitStack, path: str, server: Server) -> None:
    """Numbers of one log that come in another order, from several servers, are received without a request."""
    client = Client(stack, path, gap_delay=10 * SOON)
    in_touch(client, server, 200)
    for base in range(200, 600, 8):
        server.last = base + 8
        client.receive(server, *(base + n for n in (8, 1, 3, 2, 7, 5, 4, 6)))
    assert client.have() == {server.log: 600}
    client.settle(server)
    assert server.asked == []


def test_more_runs_than_are_kept(client: Client, server: Server) -> None:
    """With more gaps than a client remembers, all announcements are requested."""
    in_touch(client, server)
    server.last = 300
    client.receive(server, *range(110, 301, 10))
    until(lambda: client.have() == {server.log: 300}, SOON)
    assert set(client.numbers()) >= {n for n in range(6, 300) if n % 10 or n < 110}
