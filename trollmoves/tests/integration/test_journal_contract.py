"""The contract of a journal: what each engine does for its callers, also across a restart and between threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from trollmoves.errors import JournalError, UnsupportedValue
from trollmoves.journal import (
    BACKLOG,
    DONE,
    FAILED,
    WAITING,
    AnnouncementRecord,
    Journal,
    Outcome,
    Retention,
    SourcePosition,
    Task,
    TaskEditor,
    Version,
    open_reader,
    to_sqlite_time,
)
from trollmoves.tests.helpers.journals import (
    ENGINES,
    LATER,
    announced,
    append_announcements,
    keys,
    latest_versions,
    task,
    update_body,
)
from trollmoves.tests.helpers.waiting import until

MakeJournal = Callable[[], Journal]


@pytest.fixture(params=ENGINES)
def make_journal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeJournal]:
    """Return a function that opens a journal; after it was closed, it opens the same one again."""
    with ENGINES[request.param](tmp_path) as open_again:
        opened: list[Journal] = []

        def make() -> Journal:
            opened.append(open_again())
            return opened[-1]

        yield make
        for journal in opened:
            journal.close()


@pytest.fixture
def journal(make_journal: MakeJournal) -> Journal:
    """Return an open journal."""
    return make_journal()


def test_added_task_is_known(journal: Journal) -> None:
    """Adding the same identity twice returns the existing task."""
    ((first, new),) = journal.add_tasks([task("a", body="first")])
    assert new
    ((again, new_again),) = journal.add_tasks([task("a", "other lane", body="second")])
    assert not new_again
    assert (again.id, again.body, again.lane) == (first.id, "first", "lane")


def test_added_task_is_known_after_reopening(make_journal: MakeJournal) -> None:
    """A task is known to the next process in any state."""
    journal = make_journal()
    added = [one for one, _ in journal.add_tasks([task("waits"), task("is done"), task("failed")])]
    journal.finish([Outcome(added[1], DONE, "the reply"), Outcome(added[2], FAILED)])
    journal.close()
    journal = make_journal()
    again = journal.add_tasks([task("waits"), task("is done"), task("failed"), task("new")])
    journal.close()
    assert [(one.state, new) for one, new in again] == [
        (WAITING, False),
        (DONE, False),
        (FAILED, False),
        (WAITING, True),
    ]
    assert again[1][0].reply == "the reply"


def test_chain_kind_and_key_are_the_identity(journal: Journal) -> None:
    """Tasks that differ in chain, kind or key are different ones; within one call too the second is known."""
    tasks = [task("a"), task("b"), task("a", kind="push"), Task("other", "fetch", "a", "lane", ""), task("a", "other")]
    assert [new for _, new in journal.add_tasks(tasks)] == [True, True, True, True, False]


def test_a_task_may_be_noted_as_done(journal: Journal) -> None:
    """A task that is noted as done is known, and never claimed."""
    journal.add_tasks([Task("chain", "ack", "1", "lane", "", state=DONE)])
    assert journal.claim("chain", "lane", 5, LATER) == []
    found = journal.find("chain", "ack", "1")
    assert found is not None
    assert found.state == DONE
    assert found.finished


def test_all_fields_are_stored(journal: Journal) -> None:
    """An added task is read back with all its fields."""
    added = Task("chain", "push", "k", "lane", "body", 12.5, BACKLOG, 3)
    journal.add_tasks([added])
    found = journal.find("chain", "push", "k")
    assert found == added
    assert found is not None
    assert found.created == pytest.approx(time.time(), abs=60)
    assert journal.find("chain", "push", "other") is None


def test_unusual_names_are_distinct(journal: Journal) -> None:
    """Names with invalid UTF-8, newlines, quotes and NULs are stored and kept distinct."""
    names = ["\udcff", "\udcfe", "ÿ", "a\nb", "a b", "a'b", 'a"b', "a\0b", "a\0c", "", " ", "雲", "x" * 5000]
    assert all(new for _, new in journal.add_tasks([task(name) for name in names]))
    assert not any(new for _, new in journal.add_tasks([task(name) for name in names]))
    for name in names:
        assert journal.find("chain", "fetch", name) is not None


def test_any_text_can_be_stored(journal: Journal) -> None:
    """Invalid UTF-8 may occur in every text, and a task with such a lane can be claimed."""
    bad = "\udcff"
    ((added, _),) = journal.add_tasks(
        [task("a", f"fetch {bad}", body=bad)], [("chain", SourcePosition(f"log{bad}", bad, 5))]
    )
    ((claimed),) = journal.claim("chain", added.lane, 5, LATER)
    assert claimed.id == added.id
    claimed.lane = claimed.body = bad
    journal.reset_tasks([claimed])
    update_body(journal, claimed)
    journal.finish([Outcome(claimed, FAILED, f"no such file: {bad}", follow_ups=[task("b", bad, body=bad)])])
    append_announcements(journal, "chain", [AnnouncementRecord(1, f"/in/{bad}", bad, None, None, bad)])
    assert journal.latest_announcement("chain", f"/in/{bad}") is not None
    assert journal.latest_announcement("chain", "/in/\udcfe") is None
    assert set(latest_versions(journal, "chain", [f"/in/{bad}"])) == {f"/in/{bad}"}
    journal.forget_source("chain", f"log{bad}")
    assert journal.sources("chain") == []


def test_order_of_claims(journal: Journal) -> None:
    """Tasks are claimed by lowest rank, then earliest due time, then order of addition."""
    journal.add_tasks(
        [
            task("backlog, due long", rank=BACKLOG, due=1),
            task("late", due=30),
            task("early", due=10),
            task("same, noted first", due=20),
            task("same, noted second", due=20),
            task("backlog, due longest", rank=BACKLOG, due=0.5),
        ]
    )
    order = [
        "early",
        "same, noted first",
        "same, noted second",
        "late",
        "backlog, due longest",
        "backlog, due long",
    ]
    assert keys(journal.claim("chain", "lane", 99, 40)) == order
    assert keys(journal.claim("chain", "lane", 5, 40)) == order[:5]
    assert keys(journal.claim("chain", "lane", 2, 40)) == order[:2]


def test_tasks_in_flight_are_not_claimed(journal: Journal) -> None:
    """Tasks in flight are not claimed again, and do not count for the limit."""
    ids = [one.id for one, _ in journal.add_tasks([task(str(n), rank=n % 2) for n in range(10)])]
    claimed = journal.claim("chain", "lane", 4, LATER, in_flight=set(ids[:5]))
    assert {one.id for one in claimed} <= set(ids[5:])
    assert len(claimed) == 4
    assert journal.claim("chain", "lane", 4, LATER, in_flight=ids) == []


def test_only_due_tasks_are_claimed(journal: Journal) -> None:
    """Only due tasks are claimed, and the next due time is known."""
    journal.add_tasks([task("a", due=100), task("b", due=200, rank=BACKLOG), task("c", "other", due=10)])
    assert journal.claim("chain", "lane", 5, 99.9) == []
    assert journal.next_due("chain", "lane", 99.9) == 100
    claimed = journal.claim("chain", "lane", 5, 100)
    assert keys(claimed) == ["a"]
    assert journal.next_due("chain", "lane", 100, in_flight=[claimed[0].id]) == 200
    claimed += journal.claim("chain", "lane", 5, 200, in_flight=[claimed[0].id])
    assert journal.next_due("chain", "lane", 200, in_flight=[one.id for one in claimed]) is None


def test_lanes_and_chains_are_apart(journal: Journal) -> None:
    """A claim gives tasks of one lane of one chain, and the lanes in which something waits are known."""
    done = task("done", "over")
    journal.add_tasks([task("a"), task("b", "other", kind="push"), Task("chain 2", "fetch", "c", "lane", ""), done])
    journal.finish([Outcome(done, DONE)])
    assert keys(journal.claim("chain", "lane", 5, LATER)) == ["a"]
    assert sorted(journal.lanes("chain")) == [("lane", "fetch"), ("other", "push")]
    assert journal.lanes("no such chain") == []


@pytest.mark.alone
def test_a_dead_lane_does_not_slow_the_others(journal: Journal) -> None:
    """With 50,000 rows waiting in a dead lane, claims from another lane take as long as without them."""
    journal.add_tasks([task(f"a{n}", "good") for n in range(200)])

    def claims() -> float:
        def once() -> float:
            started = time.thread_time()
            for _ in range(20):
                assert len(journal.claim("chain", "good", 10, LATER)) == 10
                journal.next_due("chain", "good", LATER)
            return time.thread_time() - started

        return min(once() for _ in range(10))

    before = claims()
    for start in range(0, 50_000, 5000):
        journal.add_tasks([task(f"d{n}", "dead", due=1) for n in range(start, start + 5000)])
    assert claims() < 4 * before


def test_following_tasks_are_added_atomically(journal: Journal) -> None:
    """The end of a task and its following tasks are written in one transaction, or not at all."""
    ((one, _),) = journal.add_tasks([task("a")])
    following, bad = task("then"), task("bad")
    bad.announcement_number = 2**70
    with pytest.raises(JournalError):
        journal.finish([Outcome(one, DONE, "reply", follow_ups=[following, bad])])
    assert journal.find("chain", "fetch", "then") is None
    assert journal.count() == {"waiting": 1, "done": 0, "failed": 0}
    assert keys(journal.finish([Outcome(one, DONE, "reply", follow_ups=[following])]).new) == ["then"]
    assert journal.count() == {"waiting": 1, "done": 1, "failed": 0}


def test_only_new_tasks_follow(journal: Journal) -> None:
    """Following tasks that are already known are not returned as new."""
    (one, _), (_, _) = journal.add_tasks([task("a"), task("known")])
    assert keys(journal.finish([Outcome(one, DONE, follow_ups=[task("known"), task("new")])]).new) == ["new"]


def test_a_task_can_wait_again(journal: Journal) -> None:
    """A task that is to be tried again waits until then, and remembers its tries."""
    ((one, _),) = journal.add_tasks([task("a")])
    one.tries = 3
    journal.finish([Outcome(one, WAITING, due=500)])
    assert journal.claim("chain", "lane", 5, 499) == []
    (again,) = journal.claim("chain", "lane", 5, 500)
    assert (again.tries, again.finished) == (3, None)


def test_failing_pending_tasks(journal: Journal) -> None:
    """All pending tasks of a lane can be failed, except those in flight."""
    added = [one for one, _ in journal.add_tasks([task("a"), task("b"), task("in hand"), task("d", "other")])]
    assert journal.fail_pending("chain", "lane", exclude={added[2].id}) == [added[0].id, added[1].id]
    assert keys(journal.claim("chain", "lane", 5, LATER)) == ["in hand"]
    assert journal.count("chain") == {"waiting": 2, "done": 0, "failed": 2}
    assert journal.fail_pending("chain", "lane", exclude={added[2].id}) == []


def test_ended_tasks(journal: Journal) -> None:
    """Of several tasks, those that ended are found by their ids, with the replies."""
    added = [one for one, _ in journal.add_tasks([task("done"), task("failed"), task("waiting")])]
    journal.finish([Outcome(added[0], DONE), Outcome(added[1], FAILED, reply="reason")])
    ended = {one.key: (one.state, one.reply) for one in journal.ended([one.id for one in added])}
    assert ended == {"done": (DONE, None), "failed": (FAILED, "reason")}
    assert journal.ended([]) == []


def test_rewritten_task_is_pending(journal: Journal) -> None:
    """A finished task can be made pending again in another lane; amending changes only its body."""
    ((one, _),) = journal.add_tasks([task("a")])
    one.tries = 2
    journal.finish([Outcome(one, FAILED, "why")])
    one.body, one.lane, one.state, one.tries, one.due = "new body", "new lane", WAITING, 0, 5
    journal.reset_tasks([one])
    (again,) = journal.claim("chain", "new lane", 5, 5)
    assert (again.body, again.tries) == ("new body", 0)
    one.body, one.lane = "newer body", "nowhere"
    update_body(journal, one)
    (again,) = journal.claim("chain", "new lane", 5, 5)
    assert again.body == "newer body"


def test_who_waits_about_an_announcement(journal: Journal) -> None:
    """It is known whether something about an announcement is still to be done."""
    push = Task("chain", "push", "1 x", "lane", "", announcement_number=1)
    journal.add_tasks([push, Task("chain", "remove", "1", "lane", "", announcement_number=1)])
    assert journal.has_pending_for("chain", "push", 1)
    assert not journal.has_pending_for("chain", "push", 2)
    assert not journal.has_pending_for("other", "push", 1)
    journal.finish([Outcome(push, DONE)])
    assert not journal.has_pending_for("chain", "push", 1)
    assert journal.has_pending_for("chain", "remove", 1)


def test_failed_addition_adds_no_task(journal: Journal) -> None:
    """If one task cannot be created, none is added, and the journal keeps working."""

    def tasks() -> Iterator[Task]:
        yield task("a")
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        journal.add_tasks(tasks())
    assert journal.count() == {"waiting": 0, "done": 0, "failed": 0}
    assert [new for _, new in journal.add_tasks([task("a")])] == [True]


def test_log_can_be_read(journal: Journal) -> None:
    """Announcements after a number, and the newest, are read in order, and each chain has a separate log."""
    append_announcements(journal, "chain", [announced(n) for n in range(1, 6)])
    append_announcements(journal, "other", [announced(1)])
    assert [a.number for a in journal.announcements_after("chain", 2, 10)] == [3, 4, 5]
    assert [a.number for a in journal.announcements_after("chain", 0, 2)] == [1, 2]
    assert journal.announcements_after("chain", 5, 10) == []
    assert journal.newest_files("chain", 2) == [("message", "5"), ("message", "4")]
    append_announcements(
        journal, "long", [AnnouncementRecord(n, f"/in/{n}", str(n), 1, 1, "x" * 100_000) for n in range(1, 9)]
    )
    assert [a.number for a in journal.announcements_after("long", 2, 10)] == [3, 4, 5]
    assert [a.number for a in journal.undelivered_announcements("long", ("push",), 2, 10)] == [3, 4, 5]
    assert journal.get_announcement("chain", 3) == announced(3)
    assert journal.get_announcement("chain", 6) is None
    assert journal.get_announcements("chain", {2, 6, 4, 2**63 - 1}) == {2: announced(2), 4: announced(4)}
    assert journal.get_announcements("other", {2}) == {}
    assert (journal.last_number("chain"), journal.last_number("other"), journal.last_number("none")) == (5, 1, 0)


def test_the_newest_announcement_of_a_file_counts(journal: Journal) -> None:
    """Of a file that was announced several times the newest is given, with its size and time."""
    before = journal.now()
    append_announcements(
        journal, "chain", [announced(1, "/a"), announced(2, "/a", 6, 8), announced(3, "/b", None, None)]
    )
    append_announcements(journal, "other", [announced(1, "/a", 99, 99)])
    newest = journal.latest_announcement("chain", "/a")
    assert newest is not None
    assert newest.number == 2
    assert before <= newest.created <= journal.now()
    assert journal.latest_announcement("chain", "/c") is None
    assert latest_versions(journal, "chain", ["/a", "/b", "/c"]) == {"/a": (6, 8), "/b": (None, None)}


def later_time(journal: Journal) -> float:
    """Return a time of the journal that differs from the current one by more than the resolution of a stored time."""
    begin = journal.now()
    return until(lambda: journal.now() if journal.now() > begin + 0.002 else 0.0)


def test_numbers_before_a_time(journal: Journal) -> None:
    """The number of the last announcement before a time is known."""
    append_announcements(journal, "chain", [announced(1)])
    between = later_time(journal)
    later_time(journal)
    append_announcements(journal, "chain", [announced(2)])
    assert journal.number_before("chain", between) == 1
    assert journal.number_before("chain", LATER) == 2
    assert journal.number_before("chain", 5) == 0


def test_undelivered_announcements(journal: Journal) -> None:
    """Announcements without tasks of some kinds are returned in pages."""
    append_announcements(journal, "chain", [announced(n) for n in range(1, 8)])
    append_announcements(journal, "other", [announced(n) for n in range(1, 8)])
    delivered = Task("chain", "push", "1 x", "lane", "", announcement_number=1)
    failed = Task("chain", "push", "2 x", "lane", "", announcement_number=2)
    journal.add_tasks(
        [
            delivered,
            failed,
            Task("chain", "push", "3 x", "lane", "", announcement_number=3),
            Task("chain", "ack", "4", "ack", "", announcement_number=4, state=DONE),
            Task("chain", "remove", "5", "lane", "", announcement_number=5, state=DONE),
            Task("other", "push", "6 x", "lane", "", announcement_number=6, state=DONE),
        ]
    )
    journal.finish([Outcome(delivered, DONE), Outcome(failed, FAILED)])
    assert [a.number for a in journal.undelivered_announcements("chain", ("push", "ack"), 0, 99)] == [2, 3, 5, 6, 7]
    assert [a.number for a in journal.undelivered_announcements("chain", ("push", "ack"), 2, 2)] == [3, 5]
    dropped = [Task("chain", "push", f"{n} y", "lane", "", announcement_number=n) for n in (2, 5)]
    journal.add_tasks(dropped)
    assert journal.drop([*dropped, delivered]) == dropped
    undelivered = journal.undelivered_announcements("chain", ("push", "ack"), 0, 99)
    assert [a.number for a in undelivered] == [2, 3, 6, 7], "2 was requested by another client, which did not get it"


@pytest.mark.alone
def test_finding_undelivered_is_fast(journal: Journal) -> None:
    """Searching a log of 20,000 delivered announcements takes little longer than reading it."""
    for start in range(0, 20_000, 5000):
        numbers = range(start + 1, start + 5001)
        append_announcements(journal, "chain", [announced(n) for n in numbers])
        journal.add_tasks(
            [Task("chain", "push", f"{n} x", "lane", "", announcement_number=n, state=DONE) for n in numbers]
        )
    started = time.thread_time()
    assert len(journal.announcements_after("chain", 0, 99_999)) == 20_000
    read = time.thread_time()
    assert journal.undelivered_announcements("chain", ("push", "ack"), 0, 500) == []
    assert time.thread_time() - read < 10 * (read - started)


def test_a_number_is_given_once(journal: Journal) -> None:
    """Announcing a number a second time is refused, and the journal still knows how far the log goes."""
    append_announcements(journal, "chain", [announced(1), announced(2)])
    with pytest.raises(JournalError):
        append_announcements(journal, "chain", [announced(3), announced(2)])
    assert journal.last_number("chain") == 2
    append_announcements(journal, "chain", [announced(3)])


def test_source_positions(make_journal: MakeJournal) -> None:
    """The position in each source's log is stored with its tasks, never decreases, and can be removed."""
    journal = make_journal()
    journal.add_tasks(
        [task("a")], [("chain", SourcePosition("log", "host:1", 5)), ("other", SourcePosition("log", "host:1", 1))]
    )
    journal.add_tasks(
        [], [("chain", SourcePosition("log", "host:2", 3)), ("chain", SourcePosition("log 2", "host:3", 0))]
    )
    journal.close()
    journal = make_journal()
    assert journal.sources("chain") == [SourcePosition("log", "host:2", 5), SourcePosition("log 2", "host:3", 0)]
    journal.forget_source("chain", "log")
    assert journal.sources("chain") == [SourcePosition("log 2", "host:3", 0)]
    assert journal.sources("other") == [SourcePosition("log", "host:1", 1)]
    journal.close()


def test_many_threads(journal: Journal) -> None:
    """Threads that add, claim, finish, announce and read in parallel each get correct results."""

    def work(n: int) -> None:
        for turn in range(30):
            journal.add_tasks(
                [task(f"{n} {turn} {k}", f"lane {n}") for k in range(10)] + [task(f"shared {turn}", "shared")]
            )
            mine = journal.claim("chain", f"lane {n}", 99, LATER)
            assert len(mine) == 10
            journal.finish([Outcome(one, DONE, "reply") for one in mine])
            append_announcements(journal, f"chain {n}", [announced(journal.last_number(f"chain {n}") + 1)])
            journal.lanes("chain")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert journal.count() == {"waiting": 30, "done": 4 * 30 * 10, "failed": 0}
    assert [journal.last_number(f"chain {n}") for n in range(4)] == [30] * 4


def test_last_number_is_current(make_journal: MakeJournal) -> None:
    """Reading the last number during announcements does not hide the newest one."""
    for _ in range(20):
        journal = make_journal()
        number = journal.last_number("chain")
        journal.close()
        journal = make_journal()
        with ThreadPoolExecutor(4) as pool:
            requested = [pool.submit(journal.last_number, "chain") for _ in range(3)]
            append_announcements(journal, "chain", [announced(number + 1)])
            assert {one.result() for one in requested} <= {number, number + 1}
        assert journal.last_number("chain") == number + 1
        journal.close()


def test_a_value_that_cannot_be_stored(journal: Journal) -> None:
    """A row that cannot be stored is refused with an error that no retry can help, and the others are stored."""
    with pytest.raises(UnsupportedValue) as caught:
        append_announcements(journal, "chain", [announced(1), announced(2, mtime=2**63)])
    assert not caught.value.temporary
    append_announcements(journal, "chain", [announced(1), announced(2, mtime=to_sqlite_time(2**63))])
    assert journal.last_number("chain") == 2


def test_what_is_set_aside_is_found_in_the_journal(journal: Journal) -> None:
    """A file that cannot be processed is a failed task with the reason, once."""
    for _ in range(2):
        journal.set_aside("chain", "/in/odd", "ValueError: odd")
    stored = journal.find("chain", "set_aside", "/in/odd")
    assert stored is not None
    assert (stored.state, stored.body) == (FAILED, "ValueError: odd")
    assert journal.count() == {"waiting": 0, "done": 0, "failed": 1}


# -- merging


def test_merge_adds_new_tasks_and_merges_the_others(journal: Journal) -> None:
    """A new task is stored; for a known one the function gets both, and its changes are stored in its turn."""
    journal.add_tasks([task("known", body="a")])

    def how(editor: TaskEditor, asked: Task, stored: Task) -> list[Task]:
        stored.body += asked.body
        editor.update_body(stored)
        return []

    asked = [task("known", body="b"), task("new", body="c"), task("new", body="d"), task("known", body="e")]
    new = journal.merge(asked, [("chain", SourcePosition("log", "host:1", 7))], how)
    assert keys(new) == ["new"]
    bodies = [found.body for key in ("known", "new") if (found := journal.find("chain", "fetch", key))]
    assert bodies == ["abe", "cd"]
    assert [one.received_through for one in journal.sources("chain")] == [7]


def test_merge_adds_and_restarts_further_tasks(journal: Journal) -> None:
    """The function adds tasks, finds those of this transaction, restarts finished ones, and returns those to run."""
    ((known, _),) = journal.add_tasks([task("known")])
    journal.finish([Outcome(known, FAILED, "why")])

    def how(editor: TaskEditor, asked: Task, stored: Task) -> list[Task]:
        assert editor.find("chain", "fetch", "missing") is None
        variant, is_new = editor.add(task(f"{asked.key} 2"))
        again, is_new_again = editor.add(task(f"{asked.key} 2"))
        found = editor.find("chain", "fetch", variant.key)
        assert (is_new, is_new_again, found) == (True, False, again)
        stored.state, stored.tries, stored.lane, stored.due = WAITING, 0, "other", 5.0
        editor.reset(stored)
        return [variant, stored]

    found = journal.merge([task("known")], (), how)
    assert keys(found) == ["known 2", "known"]
    assert keys(journal.claim("chain", "other", 5, 5.0)) == ["known"]
    assert keys(journal.claim("chain", "lane", 5, LATER)) == ["known 2"]


def test_a_failed_merge_changes_nothing(journal: Journal) -> None:
    """If the function fails, neither tasks nor positions are stored."""
    journal.add_tasks([task("known", body="before")])

    def how(editor: TaskEditor, _asked: Task, stored: Task) -> list[Task]:
        stored.body = "after"
        editor.update_body(stored)
        raise ValueError("unusable")

    with pytest.raises(ValueError, match="unusable"):
        journal.merge([task("new"), task("known")], [("chain", SourcePosition("log", "host:1", 7))], how)
    found = journal.find("chain", "fetch", "known")
    assert found is not None
    assert found.body == "before"
    assert journal.find("chain", "fetch", "new") is None
    assert journal.sources("chain") == []


def test_merges_of_several_threads_lose_nothing(journal: Journal) -> None:
    """Threads that merge into the same tasks at the same time all find their changes in them."""

    def how(editor: TaskEditor, asked: Task, stored: Task) -> list[Task]:
        stored.body += asked.body
        editor.update_body(stored)
        return []

    def work(letter: str) -> None:
        for _ in range(25):
            journal.merge([task(key, body=letter) for key in "xyz"], (), how)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, "abcd"))
    for key in "xyz":
        found = journal.find("chain", "fetch", key)
        assert found is not None
        assert sorted(found.body) == sorted("abcd" * 25)


def test_only_existing_tasks_are_reset(journal: Journal) -> None:
    """Of the tasks to restart, those that are in the journal are returned."""
    ((one, _),) = journal.add_tasks([task("a")])
    missing = task("b")
    missing.id = one.id + 1000
    assert journal.reset_tasks([one, missing]) == [one]


def test_task_that_has_ended_stays_done(journal: Journal) -> None:
    """A task that was seen waiting and is done by now is restarted only if that is wanted, a failed one always."""
    (one, _), (other, _) = journal.add_tasks([task("a"), task("b")])
    journal.finish([Outcome(replace(one), DONE), Outcome(replace(other), FAILED, "why")])
    assert journal.reset_tasks([one, other], unless_done=True) == [other]
    assert [found.state for key in "ab" if (found := journal.find("chain", one.kind, key))] == [DONE, WAITING]
    assert journal.reset_tasks([one]) == [one]


# -- appending


def test_append_passes_versions_and_the_next_number(journal: Journal) -> None:
    """The versions are those of the newest announcements of this chain, and numbers continue after the last one."""
    append_announcements(journal, "chain", [announced(1, "/a"), announced(2, "/a", 6, 8), announced(3, "/b", None)])
    append_announcements(journal, "other", [announced(1, "/c")])
    passed: list[tuple[dict[str, Version], int]] = []

    def make(versions: Mapping[str, Version], number: int) -> Sequence[AnnouncementRecord]:
        passed.append((dict(versions), number))
        return [announced(number, "/d")]

    assert journal.append("chain", {"/a", "/b", "/c", "/d"}, make) == [announced(4, "/d")]
    assert passed == [({"/a": (6, 8), "/b": (None, 7)}, 4)]
    assert journal.get_announcement("chain", 4) == announced(4, "/d")


def test_versions_of_many_files(journal: Journal) -> None:
    """The versions of thousands of files are found, also of names with quotes, newlines and other letters."""
    uris = [f"/in/{n}'\"\\ \n\u96f2\U0001f300" for n in range(3000)]
    append_announcements(journal, "chain", [announced(n, uri, n) for n, uri in enumerate(uris, start=1)])
    assert latest_versions(journal, "chain", [*uris, "/other"]) == {uri: (n, 7) for n, uri in enumerate(uris, start=1)}


def test_a_failed_append_changes_nothing(journal: Journal) -> None:
    """If records cannot be made or stored, none is stored, and the next number is the same."""

    def fail(_versions: Mapping[str, Version], _number: int) -> Sequence[AnnouncementRecord]:
        raise ValueError("unusable")

    append_announcements(journal, "chain", [announced(1)])
    with pytest.raises(ValueError, match="unusable"):
        journal.append("chain", (), fail)
    with pytest.raises(JournalError):
        append_announcements(journal, "chain", [announced(2), announced(2)])
    assert journal.append("chain", ["/in/1"], lambda *_: []) == []
    assert journal.append("chain", (), lambda _, number: [announced(number)]) == [announced(2)]


def test_appends_of_several_threads_are_read_without_a_gap(journal: Journal) -> None:
    """Numbers given to four threads are consecutive; a reader that asks for those after its last one misses none."""
    count = 60
    read: list[int] = []

    def append(_n: int) -> None:
        for _ in range(count):
            journal.append("chain", ["/a"], lambda _, number: [announced(number), announced(number + 1)])

    def follow() -> None:
        while len(read) < 4 * count * 2:
            read.extend(one.number for one in journal.announcements_after("chain", read[-1] if read else 0, 100))

    with ThreadPoolExecutor(5) as pool:
        reader = pool.submit(follow)
        list(pool.map(append, range(4)))
        reader.result()
    assert read == list(range(1, 4 * count * 2 + 1))


# -- after a restart, and for the commands


def test_identity_and_clock_stay(make_journal: MakeJournal) -> None:
    """A journal that is opened again has its identity, and its clock is not set back."""
    journal = make_journal()
    identity, now = journal.identity, journal.now()
    assert identity
    journal.close()
    journal.close()  # may be called twice
    again = make_journal()
    assert again.identity == identity
    assert again.now() >= now


def test_reader_of_an_open_journal(journal: Journal) -> None:
    """A reader sees all committed rows: the owner, lanes, lists, the tasks of a file and of an announcement, totals."""
    journal.record_owner("client", "/etc/client.ini")
    push = Task("chain", "push", "p", "push host", "", announcement_number=1)
    added = [one for one, _ in journal.add_tasks([task("a.nat"), task("b [1].nat", "held lane"), task("c.nat"), push])]
    append_announcements(journal, "chain", [announced(1)])
    journal.finish(
        [
            Outcome(added[1], WAITING, "no login", journal.now() + 60, failure="held", error="no login"),
            Outcome(added[2], FAILED, "bad name", failure="failed", error="bad name"),
        ]
    )
    with open_reader(journal.path) as reader:
        assert (reader.meta["role"], reader.meta["config"]) == ("client", "/etc/client.ini")
        assert reader.meta["identity"] == journal.identity
        assert reader.now() == pytest.approx(journal.now(), abs=5)
        assert [(row.lane, row.number) for row in sorted(reader.waiting())] == [
            ("held lane", 1),
            ("lane", 1),
            ("push host", 1),
        ]
        assert {row.lane: row.failure for row in reader.lanes()}["held lane"] == "held"
        assert [reader.count_listed(name) for name in ("queue", "held", "failed")] == [3, 1, 1]
        assert [row.key for row in reader.listed("held", 9)] == ["b [1].nat"]
        assert [row.key for row in reader.tasks_for("chain", 1)] == ["p"]
        assert [row.key for row in reader.tasks_of_file("b [1].nat", ("push",), 9)] == ["b [1].nat"]
        assert [row.key for row in reader.tasks_of_file("?.nat", ("push",), 9)] == ["c.nat", "a.nat"]
        assert [row.number for row in reader.find_announcements("/in/1", "/in/1", 9)] == [1]
        assert reader.last_announcements()["chain"].uid == "1"
        facts = reader.facts()
    assert sum(facts.tasks.values()) == 4
    assert facts.announcements == {"chain": 1}
    assert facts.size > 0
    statistics = journal.statistics()
    assert {(lane.lane, lane.count, lane.held) for lane in statistics.backlog} == {
        ("lane", 1, 0),
        ("held lane", 1, 1),
        ("push host", 1, 0),
    }
    assert statistics.failed == {("chain", "fetch"): 1}


def test_pruned_rows_are_gone_and_numbers_go_on(make_journal: MakeJournal) -> None:
    """Finished tasks and announcements are deleted; waiting tasks and the newest announcement stay."""
    journal = make_journal()
    added = [one for one, _ in journal.add_tasks([task(str(n)) for n in range(300)])]
    journal.finish([Outcome(one, DONE) for one in added[:290]])
    append_announcements(journal, "chain", [announced(n) for n in range(1, 301)])
    assert sum(journal.prune(Retention(-9.0, -9.0, 10**9, 10**9), {}, min_age=-9.0))
    assert journal.count() == {"waiting": 10, "done": 0, "failed": 0}
    assert [one.number for one in journal.announcements_after("chain", 0, 999)] == [300]
    assert journal.history_seconds() < 60
    journal.close()
    assert make_journal().append("chain", (), lambda _, number: [announced(number)])[0].number == 301


def test_orders_and_pauses(make_journal: MakeJournal) -> None:
    """Orders wait until they are ended and pauses until they are over, also after a restart."""
    journal = make_journal()
    journal.add_order("1", "retry")
    journal.add_order("2", "drop")
    journal.add_pause("ftp://host", "why")
    journal.close()
    journal = make_journal()
    assert [(one.key, one.body) for one in journal.waiting_orders()] == [("1", "retry"), ("2", "drop")]
    assert keys(journal.pauses()) == ["ftp://host"]
    journal.end_order("1", "done", done=True)
    journal.end_order("2", "not known", done=False)
    journal.end_pause("ftp://host")
    assert journal.waiting_orders() == journal.pauses() == []
