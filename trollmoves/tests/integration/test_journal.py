"""The journal keeps its content when the process is killed or the disk fails."""

from __future__ import annotations

import os
import socket
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from trollmoves.errors import JournalError, UnsupportedValue
from trollmoves.journal import (
    BACKLOG,
    DONE,
    FAILED,
    UNFLUSHED_SECONDS,
    WAITING,
    AnnouncementRecord,
    Journal,
    Outcome,
    SourcePosition,
    Task,
    journal_path,
    network_warning,
    place_journal,
    to_sqlite_time,
)
from trollmoves.journal.location import journal_name

LATER = 4e9  # s since the epoch; everything noted now is due then
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="missing: root")


@pytest.fixture
def path() -> Iterator[str]:
    """Return the path of a journal that is not there yet, in memory where that can be."""
    with TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        yield os.path.join(folder, "state", "a.journal")


@pytest.fixture
def journal(path: str) -> Iterator[Journal]:
    """Return an open journal."""
    journal = Journal(path)
    yield journal
    journal.close()


def task(key: str, lane: str = "lane", *, kind: str = "fetch", body: str = "", due: float = 0.0, rank: int = 0) -> Task:
    """Make a task."""
    return Task("chain", kind, key, lane, body, due, rank)


def announced(number: int, uri: str = "", size: int | None = 5, mtime: int | None = 7) -> AnnouncementRecord:
    """Make a line of a log."""
    return AnnouncementRecord(number, uri or f"/in/{number}", str(number), size, mtime, f"message {number}")


def keys(tasks: list[Task]) -> list[str]:
    """Return what identifies tasks within their kind."""
    return [task.key for task in tasks]


# -- noting


def test_added_task_is_known(journal: Journal) -> None:
    """Adding the same identity twice returns the existing task."""
    ((first, new),) = journal.add_tasks([task("a", body="first")])
    assert new
    ((again, new_again),) = journal.add_tasks([task("a", "other lane", body="second")])
    assert not new_again
    assert (again.id, again.body, again.lane) == (first.id, "first", "lane")


def test_added_task_is_known_after_reopening(path: str) -> None:
    """A task is known to the next process in any state."""
    journal = Journal(path)
    added = [one for one, _ in journal.add_tasks([task("waits"), task("is done"), task("failed")])]
    journal.finish([Outcome(added[1], DONE, "the reply"), Outcome(added[2], FAILED)])
    journal.close()
    journal = Journal(path)
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
    journal.update_bodies([claimed])
    journal.finish([Outcome(claimed, FAILED, f"no such file: {bad}", follow_ups=[task("b", bad, body=bad)])])
    journal.append_announcements("chain", [AnnouncementRecord(1, f"/in/{bad}", bad, None, None, bad)])
    assert journal.latest_announcement("chain", f"/in/{bad}") is not None
    assert journal.latest_announcement("chain", "/in/\udcfe") is None
    assert set(journal.latest_versions("chain", [f"/in/{bad}"])) == {f"/in/{bad}"}
    journal.forget_source("chain", f"log{bad}")
    assert journal.sources("chain") == []


# -- claiming


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
    assert keys(journal.claim("chain", "lane", 5, 100)) == ["a"]
    assert journal.next_due("chain", "lane", 100) == 200
    assert journal.next_due("chain", "lane", 200) is None


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


# -- finishing


def test_following_tasks_are_added_atomically(journal: Journal) -> None:
    """The end of a task and its following tasks are written in one transaction, or not at all."""
    ((one, _),) = journal.add_tasks([task("a")])
    following, bad = task("then"), task("bad")
    bad.announcement_number = 2**70
    with pytest.raises(JournalError):
        journal.finish([Outcome(one, DONE, "reply", follow_ups=[following, bad])])
    assert journal.find("chain", "fetch", "then") is None
    assert journal.count() == {"waiting": 1, "done": 0, "failed": 0}
    assert keys(journal.finish([Outcome(one, DONE, "reply", follow_ups=[following])])) == ["then"]
    assert journal.count() == {"waiting": 1, "done": 1, "failed": 0}


def test_only_new_tasks_follow(journal: Journal) -> None:
    """Following tasks that are already known are not returned as new."""
    (one, _), (_, _) = journal.add_tasks([task("a"), task("known")])
    assert keys(journal.finish([Outcome(one, DONE, follow_ups=[task("known"), task("new")])])) == ["new"]


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
    journal.update_bodies([one])
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


# -- announcements


def test_log_can_be_read(journal: Journal) -> None:
    """Announcements after a number, and the newest, are read in order, and each chain has a separate log."""
    journal.append_announcements("chain", [announced(n) for n in range(1, 6)])
    journal.append_announcements("other", [announced(1)])
    assert [a.number for a in journal.announcements_after("chain", 2, 10)] == [3, 4, 5]
    assert [a.number for a in journal.announcements_after("chain", 0, 2)] == [1, 2]
    assert journal.announcements_after("chain", 5, 10) == []
    assert journal.newest_files("chain", 2) == [("message", "5"), ("message", "4")]
    journal.append_announcements(
        "long", [AnnouncementRecord(n, f"/in/{n}", str(n), 1, 1, "x" * 100_000) for n in range(1, 9)]
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
    journal.append_announcements(
        "chain", [announced(1, "/a"), announced(2, "/a", 6, 8), announced(3, "/b", None, None)]
    )
    journal.append_announcements("other", [announced(1, "/a", 99, 99)])
    newest = journal.latest_announcement("chain", "/a")
    assert newest is not None
    assert newest.number == 2
    assert journal.latest_announcement("chain", "/c") is None
    assert journal.latest_versions("chain", ["/a", "/b", "/c"]) == {"/a": (6, 8), "/b": (None, None)}


def test_numbers_before_a_time(journal: Journal) -> None:
    """The number of the last announcement before a time is known."""
    journal.append_announcements("chain", [announced(1)])
    time.sleep(0.02)
    between = journal.now()
    time.sleep(0.02)
    journal.append_announcements("chain", [announced(2)])
    assert journal.number_before("chain", between) == 1
    assert journal.number_before("chain", LATER) == 2
    assert journal.number_before("chain", 5) == 0


def test_undelivered_announcements(journal: Journal) -> None:
    """Announcements without tasks of some kinds are returned in pages."""
    journal.append_announcements("chain", [announced(n) for n in range(1, 8)])
    journal.append_announcements("other", [announced(n) for n in range(1, 8)])
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
    journal.drop(dropped)
    undelivered = journal.undelivered_announcements("chain", ("push", "ack"), 0, 99)
    assert [a.number for a in undelivered] == [2, 3, 6, 7], "2 was requested by another client, which did not get it"


@pytest.mark.alone
def test_finding_undelivered_is_fast(journal: Journal) -> None:
    """Searching a log of 20,000 delivered announcements takes little longer than reading it."""
    for start in range(0, 20_000, 5000):
        numbers = range(start + 1, start + 5001)
        journal.append_announcements("chain", [announced(n) for n in numbers])
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
    journal.append_announcements("chain", [announced(1), announced(2)])
    with pytest.raises(JournalError):
        journal.append_announcements("chain", [announced(3), announced(2)])
    assert journal.last_number("chain") == 2
    journal.append_announcements("chain", [announced(3)])


# -- sources


def test_source_positions(path: str) -> None:
    """The position in each source's log is stored with its tasks, never decreases, and can be removed."""
    journal = Journal(path)
    journal.add_tasks(
        [task("a")], [("chain", SourcePosition("log", "host:1", 5)), ("other", SourcePosition("log", "host:1", 1))]
    )
    journal.add_tasks(
        [], [("chain", SourcePosition("log", "host:2", 3)), ("chain", SourcePosition("log 2", "host:3", 0))]
    )
    journal.close()
    journal = Journal(path)
    assert journal.sources("chain") == [SourcePosition("log", "host:2", 5), SourcePosition("log 2", "host:3", 0)]
    journal.forget_source("chain", "log")
    assert journal.sources("chain") == [SourcePosition("log 2", "host:3", 0)]
    assert journal.sources("other") == [SourcePosition("log", "host:1", 1)]
    journal.close()


# -- the file


def test_only_the_owner_may_read(path: str, caplog: pytest.LogCaptureFixture) -> None:
    """The files of the journal are readable and writable by their owner alone, since requests hold passwords."""
    old = os.umask(0)
    try:
        journal = Journal(path)
        journal.add_tasks([task("a")])
        files = [os.path.join(os.path.dirname(path), name) for name in os.listdir(os.path.dirname(path))]
        assert len(files) >= 3
        assert {stat.S_IMODE(os.stat(file).st_mode) for file in files} == {0o600}
        assert "had the permissions" not in caplog.text
        journal.close()
    finally:
        os.umask(old)


def test_the_identity_stays(path: str) -> None:
    """A journal keeps its identity, and another one has another."""
    journal = Journal(path)
    identity = journal.identity
    journal.close()
    journal = Journal(path)
    assert journal.identity == identity
    journal.close()
    other = Journal(path + "2")
    assert other.identity != identity
    other.close()


def test_a_journal_is_one_process_own(path: str) -> None:
    """A second process on a journal gets an error that names the file, until the first one ends, even by kill -9."""
    code = "import sys, time; from trollmoves.journal import Journal; j = Journal(sys.argv[1]); print(1, flush=True)"
    with subprocess.Popen([sys.executable, "-c", f"{code}; time.sleep(99)", path], stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"1\n"
        with pytest.raises(JournalError, match="in use by another process") as refusal:
            Journal(path)
        assert path in str(refusal.value)
        first.kill()
    Journal(path).close()


def test_a_journal_can_be_closed_twice(path: str) -> None:
    """Closing again does nothing, and whatever is asked of a closed journal is a JournalError."""
    journal = Journal(path)
    journal.close()
    journal.close()
    with pytest.raises(JournalError):
        journal.add_tasks([task("a")])
    with pytest.raises(JournalError):
        journal.claim("chain", "lane", 1, LATER)


def test_a_path_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal may be given as a bare file name."""
    monkeypatch.chdir(tmp_path)
    Journal("bare.journal").close()
    assert (tmp_path / "bare.journal").exists()


def test_no_place_for_the_journal(tmp_path: Path) -> None:
    """Where no directory can be made, the error says what to set."""
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="set 'journal' in") as refusal:
        Journal(str(tmp_path / "file" / "a.journal"))
    assert str(tmp_path / "file" / "a.journal") in str(refusal.value)
    assert "\n" not in str(refusal.value)


@contextmanager
def mounted(target: Path, *options: str) -> Iterator[None]:
    """Mount something as long as the test needs it; skip where that is not allowed."""
    if subprocess.run(["mount", *options, target], capture_output=True, check=False).returncode:
        pytest.skip("missing: the right to mount")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", target], check=True)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Make a directory that cannot be written in, for root neither."""
    if os.geteuid() == 0:
        with mounted(folder, "-o", "ro", "-t", "tmpfs", "none"):
            yield
    else:
        folder.chmod(0o500)
        yield
        folder.chmod(0o700)


def test_a_read_only_directory(tmp_path: Path) -> None:
    """In a directory that cannot be written in, the error names the file and says what to set."""
    with read_only(tmp_path), pytest.raises(JournalError, match=r"a\.journal.*set 'journal' in"):
        Journal(str(tmp_path / "a.journal"))


@pytest.mark.parametrize("content", [b"this is a text\n" * 100, b"\0" * 5000, os.urandom(5000)])
def test_file_that_is_not_a_database(tmp_path: Path, content: bytes) -> None:
    """A file that is not a database is named, and not changed."""
    path = tmp_path / "a.journal"
    path.write_bytes(content)
    with pytest.raises(JournalError, match=r"a\.journal cannot be used: .*not a database"):
        Journal(str(path))
    assert path.read_bytes() == content


def test_directory_instead_of_journal(tmp_path: Path) -> None:
    """A directory at the journal's path is named in the error."""
    with pytest.raises(JournalError, match=str(tmp_path)):
        Journal(str(tmp_path))


def test_the_database_of_another_program(tmp_path: Path) -> None:
    """A database of another program is refused, and nothing is written into it."""
    path = tmp_path / "a.journal"
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE precious (a)")
    db.commit()
    db.close()
    before = path.read_bytes()
    with pytest.raises(JournalError, match="another program"):
        Journal(str(path))
    assert path.read_bytes() == before


def test_a_failed_start_leaves_nothing_open(tmp_path: Path) -> None:
    """A journal that cannot be opened holds neither a lock nor a descriptor."""
    path = tmp_path / "a.journal"
    path.write_bytes(b"no database at all, whatever you say" * 99)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(JournalError):
            Journal(str(path))
    assert len(os.listdir("/proc/self/fd")) <= before
    path.unlink()
    Journal(str(path)).close()


@ROOT_ONLY
def test_a_full_disk(tmp_path: Path) -> None:
    """On a full disk noting is a JournalError that says so and nothing is half there; with room again it works."""
    disk = tmp_path / "disk"
    disk.mkdir()
    with mounted(disk, "-t", "tmpfs", "-o", "size=1m", "none"):
        journal = Journal(str(disk / "a.journal"))
        ballast = disk / "ballast"
        ballast.write_bytes(b"\0" * 500_000)
        groups = ([task(f"{group} {n}", body="x" * 500) for n in range(20)] for group in range(9999))
        with pytest.raises(JournalError, match=r"a\.journal cannot be written: .*full") as refusal:
            all(map(journal.add_tasks, groups))
        assert refusal.value.temporary
        added = journal.count()["waiting"]
        assert added % 20 == 0
        (one, *_) = journal.claim("chain", "lane", 1, LATER)
        with pytest.raises(JournalError, match="full"):
            journal.finish([Outcome(one, DONE, "x" * 600_000)])
        ballast.unlink()
        journal.add_tasks([task("room again")])
        journal.finish([Outcome(one, DONE, "reply")])
        assert journal.count() == {"waiting": added, "done": 1, "failed": 0}
        journal.close()
        journal = Journal(str(disk / "a.journal"))
        assert journal.count() == {"waiting": added, "done": 1, "failed": 0}
        journal.close()


def test_synchronous_full(path: str) -> None:
    """A journal can be configured to survive a power cut."""
    journal = Journal(path, synchronous="full")
    journal.add_tasks([task("a")])
    journal.close()


# -- where it lives


def test_journal_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The configured directory comes before systemd's and the user's; each file and role has a separate journal."""
    for name in ("STATE_DIRECTORY", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/u")
    monkeypatch.chdir(tmp_path)
    assert journal_path("~/j", "/etc/a.ini", "client") == "/home/u/j"
    assert journal_path("j", "/etc/a.ini", "client") == str(tmp_path / "j")
    assert journal_path("", "/etc/a.ini", "client").startswith("/home/u/.local/state/trollmoves/client-a-")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert journal_path("", "/etc/a.ini", "client").startswith("/state/trollmoves/client-a-")
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/t:/var/lib/u")
    assert journal_path("", "/etc/a.ini", "client").startswith("/var/lib/t/client-a-")
    paths = {journal_path("", file, role) for file in ("/etc/a.ini", "/srv/a.ini", "a.ini") for role in ("client", "x")}
    assert len(paths) == 6
    assert journal_path("", "a.ini", "client") == journal_path("", str(tmp_path / "a.ini"), "client")


def test_journal_of_an_earlier_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The name contains the host; a journal without it is renamed, with its unwritten log; one in use is an error."""
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    config = "a%41?#.ini"  # special characters of a URI
    old = tmp_path / journal_name(config, "client", host="")
    program = (
        "import os, sys; from trollmoves.journal import Journal, Task; j = Journal(sys.argv[1]); "
        "j.add_tasks([Task('c', 'fetch', 'k', 'lane', '')]); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", program, old], check=True)
    assert Path(f"{old}-wal").stat().st_size
    with closing(Journal(str(old))), pytest.raises(JournalError, match="in use by another process"):
        place_journal("", config, "client")
    path = place_journal("", config, "client")
    assert os.path.basename(path) == old.name.replace(".journal", f"-{socket.gethostname()}.journal")
    assert not list(tmp_path.glob(f"{old.name}*"))
    with closing(Journal(path)) as journal:
        assert journal.find("c", "fetch", "k")
    assert place_journal("", config, "client") == path


def test_journal_of_another_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A journal without a host name that another host with the same home directory wrote is not renamed."""
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    config = "a%41?#.ini"  # special characters of a URI
    old = tmp_path / journal_name(config, "client", host="")
    Journal(str(old)).close()
    with closing(sqlite3.connect(old)) as db, db:
        db.execute("UPDATE meta SET value = 'elsewhere ' || value WHERE key = 'location'")
    assert place_journal("", config, "client") != str(old)
    assert old.exists()


def test_unwritable_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without a writable home the journal is in the runtime or temporary directory, with a warning."""
    for name in ("STATE_DIRECTORY", "XDG_STATE_HOME", "RUNTIME_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/proc/nowhere")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    own = tmp_path / f"trollmoves-{os.getuid()}"
    assert os.path.dirname(place_journal("", "a.ini", "client")) == str(own)
    assert own.stat().st_mode & 0o777 == 0o700
    assert "cannot write the state directory /proc/nowhere/.local/state/trollmoves" in caplog.text
    own.chmod(0o777)
    assert place_journal("", "a.ini", "client").startswith("/proc/nowhere")
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "run"))
    assert os.path.dirname(place_journal("", "a.ini", "client")) == str(tmp_path / "run")


@pytest.mark.parametrize(
    ("point", "kind", "warned"), [("/", "ext4", False), ("/home\\040x", "nfs4", True), ("/home", "cifs", False)]
)
def test_network_file_system(tmp_path: Path, point: str, kind: str, warned: bool) -> None:
    """A journal on a network file system causes a warning."""
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"1 0 8:1 / / rw - ext4 /dev/sda rw\n2 1 0:5 / {point} rw shared:1 - {kind} server:/x rw\n")
    warning = network_warning("/home x/state/a.journal", str(mounts))
    assert bool(warning) == warned
    assert not warned or "nfs4 at /home x" in warning


# -- threads and kills


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
            journal.append_announcements(f"chain {n}", [announced(journal.last_number(f"chain {n}") + 1)])
            journal.lanes("chain")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert journal.count() == {"waiting": 30, "done": 4 * 30 * 10, "failed": 0}
    assert [journal.last_number(f"chain {n}") for n in range(4)] == [30] * 4


def test_last_number_is_current(path: str) -> None:
    """Reading the last number during announcements does not hide the newest one."""
    for _ in range(20):
        journal = Journal(path)
        number = journal.last_number("chain")
        journal.close()
        journal = Journal(path)
        with ThreadPoolExecutor(4) as pool:
            requested = [pool.submit(journal.last_number, "chain") for _ in range(3)]
            journal.append_announcements("chain", [announced(number + 1)])
            assert {one.result() for one in requested} <= {number, number + 1}
        assert journal.last_number("chain") == number + 1
        journal.close()


ROUNDS = """
import sys
from trollmoves.journal import DONE, AnnouncementRecord, Journal, Outcome, Task

journal = Journal(sys.argv[1])
round = 0
while True:
    noted = journal.add_tasks([Task("chain", "fetch", f"{round} {n}", "lane", "x" * 500) for n in range(10)])
    journal.append_announcements("chain", [AnnouncementRecord(round + 1, f"/in/{round}", str(round), 1, 1, "message")])
    journal.finish(
        [Outcome(t, DONE, "reply", follow_ups=[Task("chain", "then", t.key, "lane", "")]) for t, _ in noted[:5]]
    )
    print(round, flush=True)
    round += 1
"""


@pytest.mark.parametrize("rounds", [20, 57, 93])
def test_a_kill_leaves_every_transaction_whole(path: str, rounds: int) -> None:
    """Of a process killed while it notes, finishes and announces each transaction is there whole, or not at all."""
    with subprocess.Popen([sys.executable, "-c", ROUNDS, path], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        try:
            for line in child.stdout:
                if int(line) == rounds:
                    break
        finally:
            child.kill()
        recorded = [int(line) for line in child.stdout.read().split(b"\n")[:-1]]
    last_told = recorded[-1] if recorded else rounds
    journal = Journal(path)
    for number in range(last_told + 3):
        first = [journal.find("chain", "fetch", f"{number} {n}") for n in range(10)]
        over = [one.state for one in first if one]
        then = [journal.find("chain", "then", f"{number} {n}") is not None for n in range(10)]
        whole = ([DONE] * 5 + [WAITING] * 5, [True] * 5 + [False] * 5)
        if number <= last_told:
            assert (over, then) == whole
        else:
            assert (over, then) in (whole, ([WAITING] * 10, [False] * 10), ([], [False] * 10))
    assert journal.last_number("chain") in (last_told + 1, last_told + 2)
    journal.add_tasks([task("after the kill")])
    journal.close()


KILLED = """
import os, sys, time
from trollmoves.journal import DONE, UNFLUSHED_SECONDS, Journal, Outcome, Task
journal = Journal(sys.argv[1])
print(len(journal.finished_before_kill("chain", ("fetch",), UNFLUSHED_SECONDS)), flush=True)
time.sleep(float(sys.argv[2]))
(task, _), = journal.add_tasks([Task("chain", sys.argv[3], sys.argv[3], "lane", "")])
if task.kind == "fetch":
    journal.finish([Outcome(task, DONE)])
os._exit(0)
"""


OUTLIVING = """
import os, sys, time
from trollmoves.journal import DONE, Journal, Outcome, Task
journal = Journal(sys.argv[1], synchronous=sys.argv[2])
for count in range(int(sys.argv[3])):
    (task, _), = journal.add_tasks([Task("chain", "fetch", f"{count}", "lane", "")])
    journal.finish([Outcome(task, DONE)])
    while (wait := journal.mark_alive()) < 60:
        time.sleep(wait)
os._exit(0)
"""


@pytest.mark.parametrize("synchronous", ["normal", "full"])
@pytest.mark.parametrize("count", [1, 3])
def test_idle_before_a_kill(path: str, synchronous: str, count: int) -> None:
    """The time of a kill is known also if the process did nothing for a while; damage to this record is harmless."""
    command = [sys.executable, "-c", OUTLIVING, path, synchronous, str(count)]
    subprocess.run(command, check=True)
    with closing(Journal(path)) as journal:
        assert journal.finished_before_kill("chain", ("fetch",), UNFLUSHED_SECONDS) == []
    subprocess.run(command, check=True)
    Path(f"{path}.lock").write_text("not a time")
    with closing(Journal(path)) as journal:
        assert len(journal.finished_before_kill("chain", ("fetch",), UNFLUSHED_SECONDS)) == 1


def test_finished_before_kill(path: str) -> None:
    """Tasks finished just before a kill are known, except those finished half a second earlier."""

    def run(seconds: float, kind: str) -> int:
        command = [sys.executable, "-c", KILLED, path, str(seconds), kind]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert run(0, "fetch") == 0
    assert run(UNFLUSHED_SECONDS + 0.1, "other") == 1
    assert run(0, "other") == 0


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", ".lock"])
def test_permissions_of_existing_files_are_corrected(path: str, suffix: str, caplog: pytest.LogCaptureFixture) -> None:
    """Files of a journal that other users could read or write become private, and the log says so."""
    Journal(path).close()
    with open(path + suffix, "ab"):
        pass
    os.chmod(path + suffix, 0o666)
    journal = Journal(path)
    try:
        assert not os.path.exists(path + suffix) or stat.S_IMODE(os.stat(path + suffix).st_mode) == 0o600
    finally:
        journal.close()
    assert f"{path}{suffix} had the permissions 0666, changed them to 0600" in caplog.text


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", ".lock"])
@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_links_are_not_followed(path: str, suffix: str, kind: str) -> None:
    """A journal is not opened if one of its files is a symbolic link or a pipe: the target of the link stays."""
    os.makedirs(os.path.dirname(path))
    victim = f"{path}.victim"
    with open(victim, "w") as file:
        file.write("mine")
    if kind == "link":
        os.symlink(victim, path + suffix)
    else:
        os.mkfifo(path + suffix, 0o600)
    with pytest.raises(JournalError, match="journal"):
        Journal(path)
    with open(victim) as file:
        assert file.read() == "mine"


def test_a_value_that_cannot_be_stored(journal: Journal) -> None:
    """A row that SQLite cannot store is refused with an error that no retry can help, and the others are stored."""
    with pytest.raises(UnsupportedValue) as caught:
        journal.append_announcements("chain", [announced(1), announced(2, mtime=2**63)])
    assert not caught.value.temporary
    journal.append_announcements("chain", [announced(1), announced(2, mtime=to_sqlite_time(2**63))])
    assert journal.last_number("chain") == 2


def test_what_is_set_aside_is_found_in_the_journal(journal: Journal) -> None:
    """A file that cannot be processed is a failed task with the reason, once."""
    for _ in range(2):
        journal.set_aside("chain", "/in/odd", "ValueError: odd")
    stored = journal.find("chain", "set_aside", "/in/odd")
    assert stored is not None
    assert (stored.state, stored.body) == (FAILED, "ValueError: odd")
    assert journal.count() == {"waiting": 0, "done": 0, "failed": 1}
