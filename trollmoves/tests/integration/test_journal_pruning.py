"""Tests that the journal stays small and quick, however much passes through it."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from trollmoves.client.daemon import Client
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
    drop_body,
    open_journal,
)
from trollmoves.journal.sqlite import SqliteJournal
from trollmoves.server.daemon import Server
from trollmoves.tests.helpers.daemons import TOPIC, ServerClientPair, Testbed
from trollmoves.tests.helpers.journals import append_announcements, latest_versions
from trollmoves.tests.helpers.recording import HOST, send_request

LATER = 4e9  # s since the epoch
ALL = Retention(LATER, LATER, 10**9, 10**9)


@pytest.fixture
def path() -> Iterator[str]:
    """Return the path of a journal that is not there yet, in memory where that can be."""
    with TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        yield os.path.join(folder, "a.journal")


@pytest.fixture
def journal(path: str) -> Iterator[Journal]:
    """Return an open journal."""
    journal = open_journal(path)
    yield journal
    journal.close()


def task(key: str, *, kind: str = "fetch", body: str = "", about: int | None = None) -> Task:
    """Make a task."""
    return Task("chain", kind, key, "lane", body, announcement_number=about)


def announced(number: int) -> AnnouncementRecord:
    """Make a line of a log."""
    return AnnouncementRecord(number, f"/in/{number}", str(number), 5, 7, f"message {number} {'x' * 500}")


def keep_up(journal: Journal, keep: Retention, settled: float = -1.0, **remains: Callable[[Task], str]) -> list[int]:
    """Go through the upkeep once, as if it were a little later; give what each step did."""
    return list(journal.prune(keep, remains, settled))


# -- what goes


def test_old_finished_tasks_are_pruned(journal: Journal) -> None:
    """Old finished tasks are pruned, never pending ones, and never the newest task."""
    over, failed, waits, reopened, newest = (one for one, _ in journal.add_tasks([task(n) for n in "abcde"]))
    journal.finish([Outcome(over, DONE), Outcome(failed, FAILED), Outcome(reopened, FAILED), Outcome(newest, DONE)])
    reopened.state = WAITING
    journal.reset_tasks([reopened])
    keep_up(journal, ALL)
    assert journal.count() == {"waiting": 2, "done": 2, "failed": 1}
    keep_up(journal, Retention(-9.0, LATER, 10**9, 10**9))
    assert {one.id for one in journal.claim("chain", "lane", 9, LATER)} == {waits.id, reopened.id}
    assert journal.count() == {"waiting": 2, "done": 1, "failed": 0}
    ((again, _),) = journal.add_tasks([task("f")])
    assert again.id == newest.id + 1


def test_surplus_finished_tasks_are_pruned(journal: Journal) -> None:
    """Only the given number of finished tasks is kept, the latest ones; pending tasks do not count."""
    tasks = [one for one, _ in journal.add_tasks([task(str(n)) for n in range(1000)])]
    for n in range(0, 900, 10):
        journal.finish([Outcome(one, DONE) for one in tasks[n : n + 10]])
    steps = keep_up(journal, Retention(LATER, LATER, 50, 10**9))
    assert journal.count() == {"waiting": 100, "done": 50, "failed": 0}
    assert journal.find("chain", "fetch", "850") is not None
    assert max(steps) <= 200


def test_recently_finished_tasks_stay(journal: Journal) -> None:
    """A recently finished task is never pruned: a client may request it again."""
    journal.finish(
        [Outcome(one, DONE, "reply") for one, _ in journal.add_tasks([task(str(n), body="b") for n in range(30)])]
    )
    assert sum(keep_up(journal, Retention(0.0, LATER, 1, 10**9), settled=300.0, fetch=drop_body)) == 0
    assert journal.count()["done"] == 30
    found = journal.find("chain", "fetch", "3")
    assert found is not None
    assert (found.body, found.reply) == ("b", "reply")


def test_pruned_until_is_known(path: str) -> None:
    """The time up to which finished tasks may have been pruned is known, also in the next process."""
    journal = open_journal(path)
    assert journal.history_seconds() == float("inf")
    tasks = [one for one, _ in journal.add_tasks([task(str(n)) for n in range(20)])]
    for one in tasks:
        journal.finish([Outcome(one, DONE)])
    keep_up(journal, Retention(LATER, LATER, 10, 10**9))
    last = journal.find("chain", "fetch", "10")
    journal.close()
    journal = open_journal(path)
    assert last is not None
    assert last.finished is not None
    assert journal.find("chain", "fetch", "9") is None
    assert journal.now() - last.finished <= journal.history_seconds() < 60
    journal.close()


def test_the_log_stays_short(journal: Journal) -> None:
    """No more than the given number of announcements of a chain are kept, the newest ones; or none but the last."""
    append_announcements(journal, "chain", [announced(n) for n in range(1, 1001)])
    append_announcements(journal, "other", [announced(n) for n in range(1, 4)])
    steps = keep_up(journal, Retention(LATER, LATER, 10**9, 10))
    assert sum(steps) == 990
    assert max(steps) <= 200
    assert [a.number for a in journal.announcements_after("chain", 0, 99)] == list(range(991, 1001))
    assert len(journal.announcements_after("other", 0, 99)) == 3
    keep_up(journal, Retention(LATER, -9.0, 10**9, 10**9))
    assert [a.number for a in journal.announcements_after("chain", 0, 99)] == [1000]
    assert [a.number for a in journal.announcements_after("other", 0, 99)] == [3]


def test_numbers_go_on_after_upkeep_and_reopening(path: str) -> None:
    """The numbers of a log go on when all that was announced has gone, and after that in the next process."""
    journal = open_journal(path)
    append_announcements(journal, "chain", [announced(n) for n in range(1, 4)])
    keep_up(journal, Retention(LATER, -9.0, 10**9, 10**9))
    assert journal.last_number("chain") == 3
    journal.close()
    journal = open_journal(path)
    assert journal.last_number("chain") == 3
    append_announcements(journal, "chain", [announced(4)])
    assert [a.number for a in journal.announcements_after("chain", 0, 9)] == [3, 4]
    journal.close()


# -- compaction


def test_finished_tasks_are_compacted(journal: Journal) -> None:
    """Finished tasks lose their reply and most of their body, once; failed, pending and other tasks do not."""
    tasks = [one for one, _ in journal.add_tasks([task(n, body=f"body {n}") for n in ("done", "failed", "waits")])]
    tasks += [one for one, _ in journal.add_tasks([task("other", kind="relay", body="body")])]
    journal.finish([Outcome(tasks[n], state, "reply") for n, state in ((0, DONE), (1, FAILED), (3, DONE))])
    requested = []

    def remains(one: Task) -> str:
        requested.append(one.key)
        return one.body.removeprefix("body ")

    keep_up(journal, ALL, fetch=remains)
    keep_up(journal, ALL, fetch=remains)
    assert requested == ["done"]
    assert [
        (one.body, one.reply) for one in filter(None, [journal.find("chain", one.kind, one.key) for one in tasks])
    ] == [
        ("done", None),
        ("body failed", "reply"),
        ("body waits", None),
        ("body", "reply"),
    ]
    ((known, new),) = journal.add_tasks([task("done")])
    assert (known.state, new) == (DONE, False)


def test_many_tasks_are_compacted(path: str) -> None:
    """Tasks that end at the same time are all compacted, over several steps and processes."""
    journal = open_journal(path)
    tasks = [one for one, _ in journal.add_tasks([task(str(n), body="body") for n in range(1000)])]
    journal.finish([Outcome(one, DONE, "reply") for one in tasks])
    steps = journal.prune(ALL, {"fetch": drop_body}, -1.0)
    assert next(steps) == 200
    journal.close()
    journal = open_journal(path)
    assert sum(keep_up(journal, ALL, fetch=drop_body)) == 800
    assert all(one.body == "" for n in range(1000) if (one := journal.find("chain", "fetch", str(n))))
    journal.close()


def test_a_body_that_cannot_be_read_stays(journal: Journal, caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be shortened is named in the log, once, stays, and does not keep the rest from it."""
    tasks = [one for one, _ in journal.add_tasks([task("bad", body="x"), task("good", body="1")])]
    journal.finish([Outcome(one, DONE) for one in tasks])
    for _ in range(2):
        keep_up(journal, ALL, fetch=lambda one: str(int(one.body) + 1))
    assert [one.body for n in ("bad", "good") if (one := journal.find("chain", "fetch", n))] == ["x", "2"]
    assert caplog.text.count("bad: cannot compact its body") == 1


# -- the size of the file


def size(path: str) -> int:
    """Return the bytes that a journal takes."""
    return sum(os.path.getsize(path + end) for end in ("", "-wal", "-shm") if os.path.exists(path + end))


def pass_through(journal: Journal, first: int, count: int) -> None:
    """Announce, deliver and be done with files, as a server does."""
    for start in range(first, first + count, 500):
        numbers = range(start, start + 500)
        append_announcements(journal, "chain", [announced(n) for n in numbers])
        pushes = [task(f"{n} file://host/out", kind="push", body="x" * 800, about=n) for n in numbers]
        tasks = journal.add_tasks(pushes)
        journal.finish([Outcome(one, DONE, "r" * 700) for one, _ in tasks])


def test_size_is_bounded(path: str) -> None:
    """The journal's size is bounded by its retention options, however many files pass; finished tasks take little."""
    journal = open_journal(path)
    keep = Retention(LATER, LATER, 2000, 2000)
    sizes = []
    for turn in range(6):
        pass_through(journal, 1 + turn * 3000, 3000)
        full = size(path)
        keep_up(journal, keep, push=drop_body)
        sizes.append(full)
    assert max(sizes[3:]) <= 1.1 * max(sizes[:3])
    assert journal.count() == {"waiting": 0, "done": 2000, "failed": 0}
    journal.close()
    assert size(path) < 3000 * 2500


def test_space_is_given_back(path: str) -> None:
    """After a flood the file becomes small again, in steps that touch few pages."""
    journal = open_journal(path)
    pass_through(journal, 1, 10_000)
    before = size(path)
    steps = keep_up(journal, Retention(-9.0, -9.0, 10**9, 10**9))
    assert max(steps) <= 200
    journal.add_tasks([task("work goes on")])
    journal.close()
    assert size(path) < before / 4


def test_work_goes_on_between_the_steps(journal: Journal) -> None:
    """Between two steps of the upkeep anything may be noted, done and announced, and nothing of it is lost."""
    pass_through(journal, 1, 1000)
    for n, _ in enumerate(journal.prune(Retention(-9.0, -9.0, 100, 10), {"push": drop_body}, 0.0)):
        ((one, new),) = journal.add_tasks([task(f"new {n}")])
        assert new
        if n % 2:
            journal.finish([Outcome(one, DONE)])
        append_announcements(journal, "chain", [announced(journal.last_number("chain") + 1)])
    assert journal.count()["waiting"] >= 10
    assert journal.last_number("chain") == 1001 + n


# -- no query looks at more than it must


QUERIES: dict[str, Callable[[Journal], object]] = {
    "note": lambda j: j.add_tasks([task("1"), task("new")], [("chain", SourcePosition("log", "a", 1))]),
    "find": lambda j: j.find("chain", "fetch", "1"),
    "forgotten": lambda j: j.history_seconds(),
    "done_about": lambda j: j.finished_for("chain", ("push", "delivered_to"), 1),
    "waits_about": lambda j: j.has_pending_for("chain", "push", 1),
    "waiting_about": lambda j: j.pending_for("chain", "push", 1),
    "hasten": lambda j: j.make_due_now("chain", "push", 1),
    "hasten_all": lambda j: j.make_all_due_now("chain", "push"),
    "claim": lambda j: j.claim("busy", "lane", 9, LATER),
    "next_due": lambda j: j.next_due("busy", "lane", 5),
    "lanes": lambda j: j.lanes("busy"),
    "finish": lambda j: j.finish([Outcome(one, DONE) for one in j.claim("busy", "lane", 1, LATER)]),
    "fail_waiting": lambda j: j.fail_pending("busy", "no such lane"),
    "last_done": lambda j: j.finished_before_kill("chain", ("fetch",), 0.5),
    "announce": lambda j: append_announcements(j, "chain", [announced(j.last_number("chain") + 1)]),
    "announced": lambda j: j.latest_announcement("chain", "/in/1"),
    "versions": lambda j: latest_versions(j, "chain", ["/in/1"]),
    "announcement": lambda j: j.get_announcement("chain", 1),
    "announced_after": lambda j: j.announcements_after("chain", 3, 5),
    "number_before": lambda j: j.number_before("chain", 5.0),
    "newest": lambda j: j.newest_files("chain", 5),
    "undelivered": lambda j: j.undelivered_announcements("chain", ("push", "ack"), 2990, 5),
    "sources": lambda j: j.sources("chain"),
    "upkeep": lambda j: keep_up(j, ALL, 300.0, fetch=drop_body),
}


@pytest.fixture(scope="module")
def full() -> Iterator[str]:
    """Return a journal of a process that was killed, with thousands of lines of each sort."""
    with TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        path = os.path.join(folder, "full.journal")
        journal = open_journal(path)
        pass_through(journal, 1, 3000)
        over = journal.add_tasks([task(f"done {n}") for n in range(3000)])
        time.sleep(0.6)  # tasks finished in the last half second before a kill are checked
        journal.finish([Outcome(one, DONE) for one, _ in over])
        time.sleep(0.6)
        journal.finish([Outcome(one, DONE) for one, _ in journal.add_tasks([task("the last one")])])
        journal.add_tasks([Task("busy", "fetch", f"waits {n}", "other", "", rank=BACKLOG) for n in range(3000)])
        journal.add_tasks([Task(chain, "fetch", str(n), "lane", "") for chain in ("busy", "chain") for n in range(10)])
        journal.close()
        with sqlite3.connect(path) as db:
            db.execute("DELETE FROM meta WHERE key = 'closed'")
        yield path


@pytest.mark.parametrize("name", QUERIES)
def test_no_query_reads_all_rows(full: str, name: str) -> None:
    """Whatever is asked of a journal with thousands of lines, SQLite makes few steps for it: an index leads there."""
    journal = open_journal(full)
    steps = 0

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    assert isinstance(journal, SqliteJournal)
    QUERIES[name](journal)  # tasks that one process reads once
    with journal._lock:
        journal._db.set_progress_handler(step, 10)
    try:
        QUERIES[name](journal)
    finally:
        journal._db.set_progress_handler(None, 10)
        journal.close()
    assert steps * 10 < 2500


# -- compacted tasks


def journal_of(testbed: Testbed, role: str) -> str:
    """Return the path of the journal of a daemon."""
    (path,) = (testbed.root / "state" / "trollmoves").glob(f"{role}-*.journal")
    return str(path)


def test_compacted_tasks_suffice(tmp_path: Path) -> None:
    """After pruning a repeated push gets the same reply, and no file is fetched or published twice."""
    with Testbed(tmp_path) as testbed:
        pair = ServerClientPair(testbed).start()
        pair.feeder.feed(3)
        pair.wait_until_done()
        request = next(one.message for one in pair.announced.of_type("file"))
        destination = f"file://{HOST}{pair.target}"
        push = request.data | {"destination": destination, "request": {"id": "me/7", "timeout": 30}}
        first = send_request(pair.request_port, TOPIC, "push", push)
        assert first.type == "file"
        remains = {"server": Server.compactors, "client": Client.compactors}
        for role, process in (("client", pair.client), ("server", pair.server)):
            assert process.terminate() == 0
            journal = open_journal(journal_of(testbed, role))
            before = journal.count()
            assert sum(journal.prune(ALL, remains[role], -1.0)) > 0
            assert journal.count() == before
            journal.close()
        for path in pair.target.iterdir():
            path.unlink()
        recorded = len(pair.received.receipts())
        pair.client.start(wait=False)
        pair.server.start()
        pair.client.wait_until_ready()
        again = send_request(pair.request_port, TOPIC, "push", push)
        assert (again.type, again.data) == (first.type, first.data)
        name = pair.feeder.feed(1)[0]
        pair.received.wait_for_receipts([name])
        assert [path.name for path in pair.target.iterdir()] == [name]
        assert len(pair.received.receipts()) == recorded + 1
