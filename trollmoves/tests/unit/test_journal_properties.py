"""Tests of what holds of journal, workers and duplicate suppression whatever happens in whatever order, kills included.

The examples are the same each time.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections import Counter
from tempfile import TemporaryDirectory

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trollmoves.client.daemon import Client
from trollmoves.errors import NameRejected
from trollmoves.journal import (
    DONE,
    FAILED,
    WAITING,
    AnnouncementRecord,
    Journal,
    Outcome,
    Retention,
    SourcePosition,
    Task,
    drop_body,
    open_journal,
)
from trollmoves.journal.sqlite import SqliteJournal
from trollmoves.messaging.messages import Message
from trollmoves.receiver.fetch_tasks import FetchTasks
from trollmoves.receiver.peers import Peers
from trollmoves.scheduler.lanes import Result
from trollmoves.scheduler.scheduler import Scheduler
from trollmoves.tests.helpers.journals import append_announcements
from trollmoves.tests.helpers.waiting import until

LATER = 4e9  # s since the epoch
EVER = Retention(LATER, LATER, 10**9, 10**9)
SAME = settings(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))

KEYS = st.sampled_from([f"{letter}{sign}" for letter in "abcdef" for sign in ("", "\n#2", "\udcff")])
LANES = st.sampled_from(["one", "two", "\udcfe"])
STATES = st.sampled_from([WAITING, DONE, FAILED])
NUMBERS = st.integers(0, 50)


class Files:
    """Model tests of journals on a memory disk, with kills of their process."""

    def __init__(self) -> None:
        self._folder = TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
        self._count = 0
        self.journal = open_journal(self._path())

    def _path(self) -> str:
        return os.path.join(self._folder.name, f"{self._count}.journal")

    def reopen(self) -> Journal:
        """Close in order, and reopen."""
        self.journal.close()
        self.journal = open_journal(self._path())
        return self.journal

    def kill(self) -> Journal:
        """Reopen with a copy of the current files."""
        before, old = self.journal, self._path()
        self._count += 1
        assert isinstance(before, SqliteJournal)
        with before._lock:  # a kill does not come while a file is being copied, either
            for end in ("", "-wal", ".lock"):
                shutil.copy(old + end, self._path() + end)
        before.close()
        self.journal = open_journal(self._path())
        return self.journal

    def close(self) -> None:
        """Remove all."""
        self.journal.close()
        self._folder.cleanup()


class JournalMachine(RuleBasedStateMachine):
    """A journal compared with a plain dictionary that receives the same changes."""

    def __init__(self) -> None:
        super().__init__()
        self.files = Files()
        self.journal = self.files.journal
        self.tasks: dict[tuple[str, str], tuple[int, str, str]] = {}  # by kind and key: state, lane, body
        self.logs: Counter[str] = Counter()  # the last number by chain
        self.had: dict[str, int] = {}
        self.turn = 0

    def teardown(self) -> None:
        """Remove all."""
        self.files.close()

    def _task(self, kind: str, key: str, lane: str, state: int = WAITING) -> Task:
        self.turn += 1
        return Task("chain", kind, key, lane, f"body {self.turn}", state=state)

    def _know(self, task: Task) -> None:
        known = (task.kind, _stored(task.key))
        self.tasks.setdefault(known, (task.state, _stored(task.lane), task.body))

    @rule(keys=st.lists(KEYS, max_size=6), lane=LANES, state=st.sampled_from([WAITING, WAITING, DONE]), have=NUMBERS)
    def note(self, keys: list[str], lane: str, state: int, have: int) -> None:
        """Add tasks with the position in a source's log; known tasks are returned as known."""
        tasks = [self._task("fetch", key, lane, state) for key in keys]
        added = self.journal.add_tasks(tasks, [("chain", SourcePosition("log", "host", have))])
        self.had["log"] = max(have, self.had.get("log", 0))
        for wanted, (task, new) in zip(tasks, added, strict=True):
            assert new == (("fetch", _stored(wanted.key)) not in self.tasks)
            self._know(wanted)
            assert task.body == self.tasks["fetch", _stored(wanted.key)][2]

    @rule(
        lane=LANES,
        count=st.integers(1, 4),
        ends=st.lists(STATES, min_size=4, max_size=4),
        then=st.lists(KEYS, max_size=2),
    )
    def run(self, lane: str, count: int, ends: list[int], then: list[str]) -> None:
        """Claim some tasks of a lane, and write how they ended and what follows."""
        claimed = self.journal.claim("chain", _stored(lane), count, LATER)
        waiting = [key for key, (state, its, _) in self.tasks.items() if state == WAITING and its == _stored(lane)]
        assert len(claimed) == min(count, len(waiting))
        assert {(one.kind, one.key) for one in claimed} <= set(waiting)
        following = [self._task("then", key, lane) for key in then]
        outcomes = [Outcome(one, state, "reply", due=5.0) for one, state in zip(claimed, ends, strict=False)]
        if outcomes:
            outcomes[0].follow_ups = following
            self.journal.finish(outcomes)
            for one in following:
                self._know(one)
        for end in outcomes:
            _, its, body = self.tasks[end.task.kind, end.task.key]
            self.tasks[end.task.kind, end.task.key] = (end.state, its, body)

    @rule(lane=LANES)
    def fail(self, lane: str) -> None:
        """Give up what waits in a lane."""
        self.journal.fail_pending("chain", _stored(lane))
        for key, (state, its, body) in self.tasks.items():
            if its == _stored(lane) and state == WAITING:
                self.tasks[key] = (FAILED, its, body)

    @rule(chain=st.sampled_from(["chain", "other"]), count=st.integers(0, 5))
    def announce(self, chain: str, count: int) -> None:
        """Announce some files with the next numbers."""
        last = self.journal.last_number(chain)
        numbers = range(last + 1, last + 1 + count)
        append_announcements(
            self.journal, chain, [AnnouncementRecord(n, f"/{n}", str(n), 1, 1, f"message {n}") for n in numbers]
        )
        self.logs[chain] += count

    @rule(keep=st.sampled_from([EVER, Retention(LATER, -9.0, 10**9, 10**9), Retention(LATER, LATER, 10**9, 3)]))
    def look_after(self, keep: Retention) -> None:
        """Prune, as if it were later: bodies of finished tasks and announcements are removed."""
        for _ in self.journal.prune(keep, {"fetch": drop_body}, min_age=-9.0):
            pass
        for (kind, key), (state, lane, body) in self.tasks.items():
            self.tasks[kind, key] = (state, lane, "" if kind == "fetch" and state == DONE else body)

    @precondition(lambda self: any(state == WAITING for state, _, _ in self.tasks.values()))
    @rule()
    def forget_what_is_over(self) -> None:
        """Drop all that is over; what waits stays."""
        self.look_after(Retention(-9.0, LATER, 10**9, 10**9))
        for (kind, key), (state, _, _) in list(self.tasks.items()):
            if state != WAITING and self.journal.find("chain", kind, key) is None:
                del self.tasks[kind, key]

    @rule(kill=st.booleans())
    def restart(self, kill: bool) -> None:
        """End, in order or by a kill, and continue with the content of the file."""
        self.journal = self.files.kill() if kill else self.files.reopen()

    @invariant()
    def agrees(self) -> None:
        """All that was noted is there in its state, nothing else is, and numbers have no gap."""
        states = Counter(state for state, _, _ in self.tasks.values())
        expected = {"waiting": states[WAITING], "done": states[DONE], "failed": states[FAILED]}
        assert self.journal.count("chain") == expected
        lanes = {lane for state, lane, _ in self.tasks.values() if state == WAITING}
        assert {lane for lane, _ in self.journal.lanes("chain")} == lanes
        for chain, last in self.logs.items():
            assert self.journal.last_number(chain) == last
            numbers = [one.number for one in self.journal.announcements_after(chain, 0, 9999)]
            assert numbers == list(range(last - len(numbers) + 1, last + 1))
            assert bool(numbers) == bool(last)
        assert {one.log: one.received_through for one in self.journal.sources("chain")} == self.had


def _stored(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


TestJournal = JournalMachine.TestCase
TestJournal.settings = settings(SAME, max_examples=25, stateful_step_count=30)


# -- workers


class Hands:
    """Handlers that do with each task what its body says, try by try, and see what runs at the same time."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.begun = 0
        self.tries: Counter[str] = Counter()
        self.troubles: list[str] = []
        self._lock = threading.Lock()

    def workers(self, journal: Journal) -> Scheduler:
        """Give workers that have these hands; they know nothing of those before them, which may not be dead yet."""
        running: Counter[str] = Counter()  # by task, and by lane
        workers = Scheduler(journal, 4)
        workers.register("chain", "work", limit=self.limit, handler=lambda task: self._run(task, running))
        workers.start()
        return workers

    def _run(self, task: Task, running: Counter[str]) -> Result:
        lane = f"lane {task.lane}"
        with self._lock:
            self.begun += 1
            running.update((task.key, lane))
            if running[task.key] > 1 or running[lane] > self.limit:
                self.troubles.append(f"{task.key} in {lane}: {running}")
            self.tries[task.key] += 1
            todo = json.loads(task.body)[self.tries[task.key] - 1 :]
        time.sleep(0.001)
        with self._lock:
            running.subtract((task.key, lane))
        if todo[:1] == ["again"]:
            return Result(retry_in=0.002)
        if todo[:1] == ["fails"]:
            raise NameRejected("no")
        then = (Task("chain", "work", f"{task.key} then", task.lane, "[]"),) if todo else ()
        return Result(reply="done", follow_ups=then)


@settings(SAME, max_examples=12)
@given(
    plan=st.lists(
        st.tuples(
            st.sampled_from(["one", "two", "three"]),
            st.lists(st.sampled_from(["again", "fails", "follows"]), max_size=2),
        ),
        min_size=1,
        max_size=25,
    ),
    kills=st.lists(st.integers(0, 30), max_size=2),
    limit=st.integers(1, 3),
)
def test_scheduler_loses_no_task(plan: list[tuple[str, list[str]]], kills: list[int], limit: int) -> None:
    """Each task finishes, never runs twice in parallel nor above its lane's limit, with kills at any time."""
    files, hands = Files(), Hands(limit)
    workers = hands.workers(files.journal)
    tasks = [Task("chain", "work", str(n), lane, json.dumps(todo)) for n, (lane, todo) in enumerate(plan)]
    workers.submit([one for one, new in files.journal.add_tasks(tasks) if new])
    for moment in kills:
        until(lambda: hands.begun >= moment or not files.journal.lanes("chain"), 20)  # noqa: B023
        dying = workers
        journal = files.kill()
        dying.stop(2)
        workers = hands.workers(journal)
    until(lambda: not files.journal.lanes("chain"), 20)
    workers.stop(2)
    assert hands.troubles == []
    for task in tasks:
        found = files.journal.find("chain", "work", task.key)
        assert found is not None
        assert found.state in (DONE, FAILED)
        assert hands.tries[task.key] > 0
        if task.body == '["follows"]' and not kills:
            follower = files.journal.find("chain", "work", f"{task.key} then")
            assert follower is not None
            assert follower.state == DONE
    files.close()


# -- duplicate suppression

VERSIONS = st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(["host:1", "host:2"]), st.integers(1, 4))


@settings(SAME, max_examples=60)
@given(st.lists(st.one_of(VERSIONS, st.sampled_from(["kill", "upkeep", "done"])), max_size=25))
def test_only_new_files_are_fetched(
    story: list[tuple[str, str, int] | str],
) -> None:
    """New content is fetched; repeated announcements are not, with kills and pruning."""
    files = Files()
    peers = Peers(0.0)
    fetches = FetchTasks("chain", files.journal, peers, 0.0, None)
    current: dict[tuple[str, str], int] = {}
    seen: set[tuple[str, int]] = set()
    for step in story:
        if step == "kill":
            files.kill()
            fetches = FetchTasks("chain", files.journal, peers, 0.0, None)
        elif step == "upkeep":
            list(files.journal.prune(EVER, Client.compactors, min_age=-9.0))
        elif step == "done":
            do_all(files.journal)
        elif not isinstance(step, str):
            name, source, version = step
            new = fetches.record_announcements([announcement(name, source, version)], (), 0)
            if (name, version) not in seen:
                assert len(new) == 1, step
            if current.get((name, source)) == version:
                assert new == [], step
            current[name, source] = version
            seen.add((name, version))
            assert fetches.record_announcements([announcement(name, source, version)], (), 0) == []
    files.close()


def do_all(journal: Journal) -> None:
    """Have all tasks done."""
    for lane, _ in journal.lanes("chain"):
        journal.finish([Outcome(task, DONE) for task in journal.claim("chain", lane, 99, LATER)])


def announcement(name: str, source: str, version: int) -> Message:
    """Make the announcement of a file; each version has a different size and time."""
    mark = {"log": f"log of {source}", "number": version, "size": 100 * version, "mtime": version}
    data = {"uri": f"/in/{name}", "uid": name, "request_address": source, "announcement": mark}
    return Message("/topic", "file", data)
