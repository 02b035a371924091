"""Tests that a damaged journal is set aside, that what can be read of it lives on, and that nothing else is lost."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from trollmoves.errors import JournalError
from trollmoves.journal import DONE, AnnouncementRecord, Outcome, SourcePosition, Task, open_journal
from trollmoves.tests.helpers.daemons import ServerClientPair, Testbed
from trollmoves.tests.helpers.journals import append_announcements
from trollmoves.tests.helpers.service_socket import ServiceSocket, add_environment
from trollmoves.tests.helpers.waiting import until

LINES = 3000


@pytest.fixture
def path() -> Iterator[str]:
    """Return the path of a journal that is not there yet, in memory where that can be."""
    with TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        yield os.path.join(folder, "a.journal")


def fill(path: str) -> str:
    """Make a journal with thousands of lines; give its identity."""
    journal = open_journal(path)
    tasks = [Task("chain", "fetch", str(n), "lane", f"body {n} {'x' * 300}") for n in range(LINES)]
    added = journal.add_tasks(tasks, [("chain", SourcePosition("log", "host:1", 7))])
    journal.finish([Outcome(one, DONE, "reply") for one, _ in added[::2]])
    append_announcements(
        journal, "chain", [AnnouncementRecord(n, f"/in/{n}", str(n), 1, 1, "x" * 300) for n in range(1, LINES + 1)]
    )
    journal.close()
    return journal.identity


def aside(path: str) -> list[str]:
    """Return the quarantined files."""
    folder, name = os.path.split(path)
    return sorted(one for one in os.listdir(folder) if one.startswith(f"{name}.damaged-"))


def overwrite(path: str, where: float, size: int = 4096) -> None:
    """Put garbage into a file, at a part of its length."""
    with open(path, "r+b") as file:
        file.seek(int(os.path.getsize(path) * where) // 4096 * 4096)
        file.write(os.urandom(size))


def truncate(path: str, part: float) -> None:
    """Cut a file."""
    os.truncate(path, int(os.path.getsize(path) * part))


def layout(path: str) -> None:
    """Return a journal the mark of a later version."""
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 77")
    db.close()


DAMAGES: dict[str, tuple[Callable[[str], object], bool]] = {
    "garbage in the middle": (lambda path: overwrite(path, 0.5), True),
    "much garbage": (lambda path: overwrite(path, 0.3, 200_000), True),
    "garbage at the start": (lambda path: overwrite(path, 0.0), False),
    "truncated": (lambda path: truncate(path, 0.6), False),
    "cut within a page": (lambda path: truncate(path, 0.01), False),
    "no database": (lambda path: Path(path).write_bytes(b"no database\n" * 1000), False),
    "another version": (layout, True),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_journal_is_set_aside(path: str, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever has happened to a journal, it is set aside, the log says so, and a new one with a new name begins."""
    identity = fill(path)
    damage, readable = DAMAGES[kind]
    damage(path)
    journal = open_journal(path)
    assert len(aside(path)) >= 1
    assert f"the journal {path} is damaged" in caplog.text
    assert journal.identity != identity
    count = sum(journal.count().values())
    if readable:
        assert count > LINES / 2
        assert journal.last_number("chain") > LINES / 2
    found = journal.find("chain", "fetch", "0")
    assert found is None or (found.state, found.reply, found.body[:6]) == (DONE, "reply", "body 0")
    assert len(journal.add_tasks([Task("chain", "fetch", f"new {n}", "lane", "") for n in range(100)])) == 100
    journal.close()
    open_journal(path).close()
    assert len(aside(path)) == 1


def test_corruption_found_later(path: str) -> None:
    """Corruption found during use is logged once; the next start makes a new, valid journal."""
    fill(path)
    recorded: list[bool] = []
    journal = open_journal(path, on_damage=lambda: recorded.append(True))
    for where in (0.2, 0.4, 0.6, 0.8):
        overwrite(path, where, 100_000)
    with pytest.raises(JournalError, match=r"a\.journal cannot be read: .*malformed"):
        all(journal.find("chain", "fetch", str(n)) for n in range(LINES))
    with pytest.raises(JournalError, match="is damaged"):
        journal.add_tasks([Task("chain", "fetch", "new", "lane", "")])
    with pytest.raises(JournalError, match="is damaged"):
        journal.find("chain", "fetch", "1")
    journal.close()
    assert recorded == [True]
    journal = open_journal(path, damage=journal.damage)
    assert len(aside(path)) == 1
    assert sum(journal.count().values()) > 100
    journal.add_tasks([Task("chain", "fetch", "new", "lane", "")])
    journal.close()


def test_foreign_file_is_not_changed(path: str) -> None:
    """A file that was never a journal is always rejected, not moved or changed, and no file is left next to it."""
    Path(path).write_bytes(b"precious\n" * 999)
    for _ in range(2):
        with pytest.raises(JournalError, match="not a database"):
            open_journal(path)
    assert Path(path).read_bytes() == b"precious\n" * 999
    assert os.listdir(os.path.dirname(path)) == ["a.journal"]


# -- daemons


def journal_of(testbed: Testbed, role: str) -> Path:
    """Return the path of the journal of a daemon."""
    (path,) = (testbed.root / "state" / "trollmoves").glob(f"{role}-*.journal")
    return path


@pytest.mark.parametrize("role", ["server", "client"])
def test_daemons_go_on_after_damage(tmp_path: Path, role: str) -> None:
    """With the journal of either destroyed between two starts, every file arrives, old and new, and the log is loud."""
    with Testbed(tmp_path) as testbed:
        pair = ServerClientPair(testbed).start()
        pair.feeder.feed(5)
        pair.wait_until_done()
        process = getattr(pair, role)
        assert process.terminate() == 0
        journal_of(testbed, role).write_bytes(b"garbage" * 5000)
        pair.feeder.feed(5)
        process.start()
        process.wait_for_line("is damaged")
        pair.feeder.feed(5)
        if role == "client":  # announced while the client was away, and lost with the journal
            until(lambda: len(pair.feeder.missing(pair.target)) <= 5, 30)
        else:
            pair.wait_until_done()
        assert "Traceback" not in process.lines()


def test_daemon_recovers_from_corruption(tmp_path: Path) -> None:
    """A server with a destroyed journal starts a new one: its client notices, and no file is lost."""
    with Testbed(tmp_path) as testbed:
        pair = ServerClientPair(testbed)
        manager = ServiceSocket(testbed)
        add_environment(pair.server, manager.environment)
        pair.start()
        pair.feeder.feed(5)
        pair.wait_until_done()
        assert pair.server.terminate() == 0
        path = journal_of(testbed, "server")
        journal = open_journal(str(path))  # more than SQLite has in memory
        lines = [AnnouncementRecord(n, f"/gone/{n}", str(n), 1, 1, "x" * 600) for n in range(6, 10_000)]
        append_announcements(journal, "hrit", lines)
        journal.close()
        pair.server.start()
        overwrite(str(path), 0.0, path.stat().st_size)
        pair.feeder.feed(20)
        pair.server.wait_for_line("restarting all chains")
        pair.server.wait_for_line("runs 1 chain,", times=2)
        pair.feeder.feed(10)
        pair.wait_until_done()
        assert pair.server.is_running()
        assert "Traceback" not in pair.server.lines()
        assert len(manager.values("STOPPING")) == 1  # otherwise the service manager would end it
        assert len(aside(str(path))) == 1
