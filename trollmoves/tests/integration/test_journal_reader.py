"""The journal as commands read it: lanes and failures."""

from __future__ import annotations

import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from trollmoves.errors import JournalError
from trollmoves.journal import (
    DONE,
    FAILED,
    WAITING,
    Delivery,
    Journal,
    Outcome,
    Retention,
    Task,
    open_journal,
    open_reader,
    running_pid,
)
from trollmoves.status import model
from trollmoves.status.snapshot import Section, snapshot

LANE = "push sftp://host"


def add(journal: Journal, count: int, first: int = 0) -> list[Task]:
    """Add pushes to a lane."""
    tasks = [Task("hrit", "push", f"{n} sftp://host/in", LANE, "") for n in range(first, first + count)]
    return [task for task, _ in journal.add_tasks(tasks)]


def state_of(path: Path) -> model.Destination:
    """Return the state of the only destination, as without its daemon."""
    daemon = snapshot(
        model.Daemon("a", "server", "", str(path)), [Section("hrit")], None, partial(open_reader, str(path))
    )
    assert not daemon.problem
    (chain,) = daemon.chains
    (destination,) = chain.destinations
    return destination


def test_lanes_in_an_open_and_a_closed_journal(tmp_path: Path) -> None:
    """Counts, bytes, last file and failure of a lane are known while the journal is open, after a kill, and closed."""
    path = tmp_path / "a.journal"
    journal = open_journal(str(path))
    tasks = add(journal, 5)
    journal.finish([Outcome(task, DONE, delivery=Delivery(100, 0.5)) for task in tasks[:2]])
    journal.finish([Outcome(tasks[2], WAITING, "no login", journal.now() + 60, failure="held", error="no login")])
    for is_open in (True, False):
        one = state_of(path)
        assert (one.state, one.waiting, one.held, one.error) == (model.HELD, 3, 3, "no login")
        assert (one.total_files, one.total_bytes, one.traffic.files, one.traffic.bytes) == (2, 200, 2, 200)
        assert one.traffic.latency_p99 is not None
        if is_open:
            assert running_pid(str(path)) == os.getpid()
            journal.close()
    assert running_pid(str(path)) is None
    assert sorted(os.listdir(tmp_path)) == ["a.journal", "a.journal.lock"]


def test_a_success_ends_the_failure_of_a_lane(tmp_path: Path) -> None:
    """A lane that failed is down after a minute, and works again with the next delivery."""
    path = tmp_path / "a.journal"
    with closing(open_journal(str(path))) as journal:
        tasks = add(journal, 3)
        journal.finish([Outcome(tasks[0], FAILED, "refused", failure="outage", error="refused")])
        one = state_of(path)
        assert (one.state, one.waiting, one.refused, one.failed) == (model.BACKING_OFF, 3, 1, 0)
        with closing(sqlite3.connect(path)) as db:
            db.execute("UPDATE lanes SET failing_since = failing_since - 61")
            db.commit()
        assert state_of(path).state == model.DOWN
        journal.finish([Outcome(tasks[1], FAILED, "bad name", failure="failed", error="bad name")])
        assert state_of(path).failed == 1
        journal.finish([Outcome(task, DONE, delivery=Delivery(1, 0.1)) for task in (tasks[0], tasks[2])])
        assert state_of(path).state == model.OK
        assert state_of(path).error is None


def test_a_file_that_a_client_got_elsewhere(tmp_path: Path) -> None:
    """A failed push does not count once its client has acknowledged the announcement."""
    path = tmp_path / "a.journal"
    with closing(open_journal(str(path))) as journal:
        (task,) = [t for t, _ in journal.add_tasks([Task("hrit", "push", "1 x", LANE, "", announcement_number=1)])]
        journal.finish([Outcome(task, FAILED, "refused", failure="retry", error="refused")])
        assert state_of(path).waiting == 1
        journal.add_tasks([Task("hrit", "ack", "1", "ack", "", announcement_number=1, state=DONE)])
        assert state_of(path).waiting == 0


def refused(path: Path) -> int:
    """Return the number of failed pushes that wait for the next request."""
    with open_reader(str(path)) as reader:
        return sum(row.refused for row in reader.failures())


def test_a_client_that_changed_its_destination(tmp_path: Path) -> None:
    """A failed push does not count once its client has requested the file to another destination; others count."""
    path = tmp_path / "a.journal"
    bodies = {
        name: f'pytroll://x push {{"a": 1, "request": {{"id": "{name}/hrit/7", "timeout": 1}}}}' for name in "abc"
    }
    with closing(open_journal(str(path))) as journal:
        failed = [Task("hrit", "push", f"1 {name}", LANE, body, announcement_number=1) for name, body in bodies.items()]
        journal.add_tasks(failed)
        journal.finish([Outcome(task, FAILED, "down", failure="outage", error="down") for task in failed])
        assert refused(path) == 3
        assert journal.statistics().failing == [("hrit", LANE)]
        later = [
            Task("hrit", "push", f"1 {name} other", f"{LANE}0", bodies[name], announcement_number=1) for name in "ab"
        ]
        journal.add_tasks(later)
        assert refused(path) == 1
        journal.finish([Outcome(failed[2], DONE, delivery=Delivery(1, 0.1))])
        assert (refused(path), journal.statistics().failing) == (0, [])


def test_details_survive_compaction(tmp_path: Path) -> None:
    """Size, seconds, destination and peer of a finished task stay when its texts are removed."""
    path = tmp_path / "a.journal"
    with closing(open_journal(str(path))) as journal:
        (task,) = [t for t, _ in journal.add_tasks([Task("hrit", "fetch", "a", "fetch host:1", "long body")])]
        journal.finish([Outcome(task, DONE, "reply", delivery=Delivery(5, 0.25, "/out", "host:2"))])
        add(journal, 1)  # the newest row is kept in any case
        keep = Retention(1e6, 1e6, 10_000, 10_000)
        assert list(journal.prune(keep, {"fetch": lambda _: ""}, min_age=0.0))
        with open_reader(str(path)) as reader:
            (row,) = reader.tasks_of_file("a", ("other",), 9)
    assert (row.body, row.reply) == ("", None)
    assert (row.size, row.seconds, row.destination, row.peer) == (5, 0.25, "/out", "host:2")


def test_totals_with_several_threads(tmp_path: Path) -> None:
    """Each delivery is counted once, also if several threads store results."""
    path = tmp_path / "a.journal"
    journal = open_journal(str(path))
    tasks = add(journal, 2_000)

    def finish(first: int) -> None:
        for task in tasks[first::4]:
            journal.finish([Outcome(task, DONE, delivery=Delivery(10, 0.1))])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(finish, range(4)))
    journal.close()
    one = state_of(path)
    assert (one.total_files, one.total_bytes) == (2_000, 20_000)


def test_a_directory_in_the_place_of_a_journal(tmp_path: Path) -> None:
    """It is an error in one line."""
    with pytest.raises(JournalError, match="cannot be read"):
        open_reader(str(tmp_path))


def test_totals_of_huge_sizes(tmp_path: Path) -> None:
    """A source that announces impossible sizes cannot prevent that results are stored."""
    path = tmp_path / "a.journal"
    journal = open_journal(str(path))
    tasks = add(journal, 4)
    huge = Delivery(2**63 - 1, 0.1)
    for task in tasks[:3]:
        journal.finish([Outcome(task, DONE, delivery=huge)])
    journal.finish([Outcome(tasks[3], WAITING, "no login", journal.now() + 60, failure="held", error="no login")])
    journal.close()
    assert state_of(path).total_files == 3
