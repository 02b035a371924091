"""Tests of what holds of catching up, in whatever order announcements, answers, kills and new logs come.

The examples are the same each time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trollmoves.errors import JournalFull, TrollmovesError
from trollmoves.journal import SourcePosition, Task
from trollmoves.messaging.messages import Message
from trollmoves.messaging.requester import NoReply, RequesterStopped
from trollmoves.receiver import replay
from trollmoves.receiver.replay import ReplayClient
from trollmoves.tests.unit.test_journal_properties import SAME, Files

CHAIN = "client"
PAGE = 3  # announcements in one answer
ADDRESSES = ("one:1", "two:2")
PROVIDER = "tcp://one:9010"

Answer = Message | TrollmovesError
Published = tuple[str, str, int]  # "file" or "beat", the log, and the number


@dataclass
class Question:
    """A question on its way, and its answer once there is one."""

    address: str
    data: dict[str, Any]
    on_reply: Callable[[Answer], None]
    answer: Answer | None = None


class Wire:
    """The requester of a chain. Replies come when the test decides."""

    def __init__(self) -> None:
        self.questions: list[Question] = []

    def send_request(self, address: str, request: str, timeout: float, on_reply: Callable[[Answer], None]) -> None:
        """Take a question."""
        self.questions.append(Question(address, Message.decode(request).data, on_reply))


@dataclass
class Server:
    """A source: its log, and its published announcements that were not received yet."""

    address: str
    logs: int = 1
    last: int = 0
    recent: int = 0  # the number before the ones since the client's start
    forgotten: int = 0  # the number up to which the log was pruned
    published: list[Published] = field(default_factory=list)

    @property
    def log(self) -> str:
        """The name of its log."""
        return f"{self.address}/{self.logs}"

    def answer(self, data: dict[str, Any], excused: set[tuple[str, int]]) -> Message:
        """Answer a request; the numbers that the reply skips are ``excused``."""
        answer: dict[str, Any] = {"log": self.log, "last": self.last, "through": 0, "messages": []}
        if data["log"] == self.log:
            after = self.recent if "max_age" in data else data["after"]
            recorded = range(max(after, self.forgotten) + 1, self.last + 1)[:PAGE]
            answer["through"] = recorded[-1] if recorded else self.last
            answer["messages"] = [self.text(n) for n in recorded]
            before = max(self.recent, self.forgotten) if "max_age" in data else self.forgotten
            excused |= {(self.log, n) for n in range(1, before + 1)}
        return Message.decode(Message("/a", "replay", answer).encode())

    def text(self, number: int) -> str:
        """Return an announcement."""
        mark = {"log": self.log, "number": number}
        data = {"uri": f"/in/{number}", "request_address": self.address, "announcement": mark}
        return Message("/a", "file", data).encode()


class CatchUpMachine(RuleBasedStateMachine):
    """A chain that catches up, its journal, and two servers."""

    def __init__(self) -> None:
        super().__init__()
        self.pause, replay.RETRY_DELAY = (
            replay.RETRY_DELAY,
            0.0,
        )  # s; who answers wrongly is asked again at the next sign
        self.files = Files()
        self.servers = [Server(address) for address in ADDRESSES]
        self.excused: set[tuple[str, int]] = set()  # numbers that the client cannot have
        self.checked: list[Question] = []  # questions that were sent when an address was known or not
        self.known: set[str] = set()  # the addresses of which something was had
        self.received_now: list[Published] = []  # handed to the chain, and not noted yet
        self.begin()

    def begin(self) -> None:
        """Start a process with the content of the journal."""
        for server in self.servers:
            server.recent = server.last
        self.received_now = []
        self.full = False
        self.wire = Wire()
        self.catchup = ReplayClient(CHAIN, [PROVIDER], self.files.journal, self.wire, self.missed, 0.0)  # type: ignore[arg-type]
        self.catchup.request_all()

    def teardown(self) -> None:
        """See that all comes to a good end, and remove all."""
        try:
            self.settle()
        finally:
            replay.RETRY_DELAY = self.pause
            self.files.close()

    # -- actions of the caller

    def missed(self, messages: list[Message], sources: list[tuple[str, SourcePosition]]) -> None:
        """Store the replayed announcements."""
        if self.full:
            self.full = False
            raise JournalFull("no room")
        marks = [message.data["announcement"] for message in messages]
        self.note([("file", mark["log"], mark["number"]) for mark in marks], sources)

    def note(self, received: list[Published], sources: list[tuple[str, SourcePosition]]) -> None:
        """Note announcements, and how far their logs are had, in one transaction."""
        tasks = [
            Task(CHAIN, "fetch", f"{log} {number}", "lane", "") for kind, log, number in received if kind == "file"
        ]
        self.files.journal.add_tasks(tasks, sources)

    def added(self, log: str, number: int) -> bool:
        """Return True if an announcement is in the journal, or is excused."""
        return (log, number) in self.excused or self.files.journal.find(CHAIN, "fetch", f"{log} {number}") is not None

    # -- what happens

    servers_ = st.sampled_from([0, 1])

    @rule(which=servers_, count=st.integers(1, 5))
    def publish(self, which: int, count: int) -> None:
        """Announce some files."""
        server = self.servers[which]
        for _ in range(count):
            server.last += 1
            server.published.append(("file", server.log, server.last))

    @rule(which=servers_)
    def heartbeat(self, which: int) -> None:
        """Publish a heartbeat."""
        server = self.servers[which]
        server.published.append(("beat", server.log, server.last))

    @precondition(lambda self: not self.received_now)
    @rule(which=servers_, arrives=st.lists(st.booleans(), min_size=1, max_size=6))
    def receive(self, which: int, arrives: list[bool]) -> None:
        """Pass published announcements to the chain in order, except for lost ones."""
        server = self.servers[which]
        coming, server.published = server.published[: len(arrives)], server.published[len(arrives) :]
        self.received_now = [one for one, comes in zip(coming, arrives, strict=False) if comes]
        self.marks = self.on_reply()

    def on_reply(self) -> list[tuple[str, SourcePosition]]:
        """Pass received announcements to the chain in a batch; return the positions to store with it."""
        marks = []
        for kind, log, number in self.received_now:
            address = log.rpartition("/")[0]
            if kind == "beat":
                self.catchup.on_heartbeat(PROVIDER, log, number, address)
            else:
                marks.append(self.catchup.on_announced(PROVIDER, log, number, address))
        return [mark for mark in marks if mark]

    @precondition(lambda self: self.received_now)
    @rule(fails=st.booleans())
    def write(self, fails: bool) -> None:
        """Store received announcements; after a failure they are offered again."""
        if fails:
            self.marks = self.on_reply()
        else:
            self.note(self.received_now, self.marks)
            self.catchup.mark_saved()
            self.received_now = []

    @precondition(lambda self: self.unanswered())
    @rule(which=st.integers(0, 9), how=st.sampled_from(["", "", "", "", "err", "lost", "stopping"]))
    def answer(self, which: int, how: str) -> None:
        """Have a server answer a question, well or not; the answer may be on its way for long."""
        question = self.unanswered()[which % len(self.unanswered())]
        (server,) = (one for one in self.servers if one.address == question.address)
        wrong: dict[str, Answer] = {
            "err": Message("/a", "err", "not now"),
            "lost": NoReply("no answer"),
            "stopping": RequesterStopped("we stop"),
        }
        question.answer = wrong.get(how) or server.answer(question.data, self.excused)

    def unanswered(self) -> list[Question]:
        """Return the questions that no server has answered yet."""
        return [one for one in self.wire.questions if one.answer is None]

    def replied(self) -> list[Question]:
        """Return the pending requests."""
        return [one for one in self.wire.questions if one.answer is not None]

    @precondition(lambda self: self.replied())
    @rule(which=st.integers(0, 9), full=st.booleans())
    def arrive(self, which: int, full: bool) -> None:
        """Have an answer arrive, perhaps when the journal has no room."""
        question = self.replied()[which % len(self.replied())]
        self.wire.questions.remove(question)
        self.full = full
        assert question.answer is not None
        question.on_reply(question.answer)
        self.full = False

    @rule(which=servers_, count=st.integers(1, 5))
    def go_well(self, which: int, count: int) -> None:
        """Announce and receive some files, and answer all requests."""
        self.publish(which, count)
        if not self.received_now:
            self.receive(which, [True] * len(self.servers[which].published))
            self.write(fails=False)
        self.answer_all()

    @precondition(lambda self: self.wire.questions)
    @rule()
    def have_an_answer(self) -> None:
        """Answer a request without delay."""
        if not self.replied():
            self.answer(0, "")
        self.arrive(0, full=False)

    @rule()
    def connect(self) -> None:
        """Have a connection come about."""
        self.catchup.request_all()

    @rule(kill=st.booleans())
    def restart(self, kill: bool) -> None:
        """End the chain, in order or by a kill, in any state, and restart."""
        if kill:
            self.files.kill()
        else:
            self.files.reopen()
        self.begin()

    @rule(which=servers_)
    def replace_log(self, which: int) -> None:
        """Have a server lose its journal, and count from one again."""
        server = self.servers[which]
        server.logs += 1
        server.last = server.recent = server.forgotten = 0

    @rule(which=servers_, keep=st.integers(1, 6))
    def prune_log(self, which: int, keep: int) -> None:
        """Have a server forget all but the newest announcements."""
        server = self.servers[which]
        server.forgotten = max(server.forgotten, server.last - keep)

    # -- what holds

    @invariant()
    def nothing_is_claimed_that_was_not_noted(self) -> None:
        """The journal's position in a log never covers an announcement that is missing."""
        for source in self.files.journal.sources(CHAIN):
            lacking = [
                n for n in range(1, source.received_through + 1) if not self.added(source.log.partition(" ")[0], n)
            ]
            assert not lacking, f"{source} without {lacking}"

    @invariant()
    def one_question_at_a_time(self) -> None:
        """A server is asked one question about a log at a time."""
        requested = [question.data["log"] for question in self.wire.questions]
        assert len(requested) == len(set(requested))

    @invariant()
    def first_contact_is_once(self) -> None:
        """A source known before is asked for all missing announcements, not only for recent ones."""
        new = [question for question in self.wire.questions if question not in self.checked]
        strangers = {question.address for question in new if "max_age" in question.data}
        assert not strangers & self.known
        self.checked += new
        self.known |= {source.address for source in self.files.journal.sources(CHAIN)}

    def settle(self) -> None:
        """When all works at last, two heartbeats lead to all that there is to have, and then nothing is asked."""
        if self.received_now:
            self.write(fails=False)
        for _ in range(2):
            for which, server in enumerate(self.servers):
                self.heartbeat(which)
                self.receive(which, [True] * len(server.published))
                self.write(fails=False)
            self.answer_all()
        self.nothing_is_claimed_that_was_not_noted()
        for server in self.servers:
            lacking = [n for n in range(1, server.last + 1) if not self.added(server.log, n)]
            assert not lacking, f"{server} without {lacking}"
            self.catchup.on_heartbeat(PROVIDER, server.log, server.last, server.address)
        assert self.wire.questions == []

    def answer_all(self) -> None:
        """Have everything answered, until nothing is asked any more."""
        for _ in range(200):
            if not self.wire.questions:
                return
            if self.unanswered():
                self.answer(0, "")
            self.arrive(0, full=False)
            self.nothing_is_claimed_that_was_not_noted()
        raise AssertionError(f"it does not stop asking: {self.wire.questions}")


TestCatchUp = CatchUpMachine.TestCase
TestCatchUp.settings = settings(SAME, max_examples=200, stateful_step_count=40)
