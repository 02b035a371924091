"""A journal that was restored, copied, removed or replaced is noticed, so that no number is used twice."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from trollmoves.errors import JournalError
from trollmoves.journal import DONE, AnnouncementRecord, Journal, Outcome, Task, open_journal
from trollmoves.journal.location import LOCK_SUFFIX
from trollmoves.tests.helpers.journals import append_announcements
from trollmoves.tests.helpers.waiting import until


@pytest.fixture
def path() -> Iterator[str]:
    """Return the path of a journal that does not exist yet."""
    with TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        yield os.path.join(folder, "a.journal")


def announce(journal: Journal) -> None:
    """Append an announcement to the log of a chain."""
    number = journal.last_number("chain") + 1
    append_announcements(journal, "chain", [AnnouncementRecord(number, f"/{number}", str(number), 1, 1, "")])


def finish(journal: Journal) -> None:
    """Add a task and finish it."""
    ((task, _),) = journal.add_tasks([Task("chain", "fetch", str(journal.now()), "lane", "")])
    journal.finish([Outcome(task, DONE)])


def identity(path: str) -> str:
    """Open and close a journal; return its identity."""
    with closing(open_journal(path)) as journal:
        return journal.identity


def overwrite(path: str) -> None:
    """Restore the backup into the existing file."""
    Path(path).write_bytes(Path(path + ".backup").read_bytes())


def replace(path: str) -> None:
    """Restore the backup as a new file."""
    shutil.copy(path + ".backup", path + ".new")
    os.replace(path + ".new", path)


def restore_all(path: str) -> None:
    """Restore the backup after all files of the journal were removed."""
    for file in Path(path).parent.glob("a.journal*"):
        if file.suffix != ".backup":
            file.unlink()
    shutil.copy(path + ".backup", path)


@pytest.mark.parametrize("restore", [overwrite, replace, restore_all])
@pytest.mark.parametrize("change", [announce, finish])
def test_restored(path: str, restore: Callable[[str], None], change: Callable[[Journal], None]) -> None:
    """A journal that is older than its last process gets a new identity, once."""
    with closing(open_journal(path)) as journal:
        before = journal.identity
        change(journal)
        changed = journal.now()
    shutil.copy(path, path + ".backup")
    with closing(open_journal(path)) as journal:
        assert journal.identity == before
        until(lambda: journal.now() > changed + 0.01)  # the time of a journal is compared in milliseconds
        change(journal)
    restore(path)
    restored = identity(path)
    assert restored != before
    assert identity(path) == restored


@pytest.mark.parametrize("with_lock", [True, False])
def test_copied(path: str, with_lock: bool) -> None:
    """A copy gets another identity, also with its lock file; the original keeps its identity."""
    before = identity(path)
    for suffix in ("", LOCK_SUFFIX)[: 1 + with_lock]:
        shutil.copy(path + suffix, f"{path}2{suffix}")
    assert identity(f"{path}2") != before
    assert identity(path) == before


def test_killed_while_writing(path: str) -> None:
    """A kill between any two writes changes no identity."""
    before = identity(path)
    code = (
        "import os, sys; from trollmoves.journal import *; journal = open_journal(sys.argv[1])\n"
        "for n in range(int(sys.argv[2])):\n"
        "    ((task, _),) = journal.add_tasks([Task('chain', 'fetch', f'{journal.now()}', 'lane', '')])\n"
        "    journal.finish([Outcome(task, DONE)]) if n % 2 else None\n"
        "os._exit(0)"
    )
    for count in (0, 1, 2, 5):
        subprocess.run([sys.executable, "-c", code, path, str(count)], check=True)
        assert identity(path) == before


@pytest.mark.parametrize("suffixes", [("",), ("", "-wal", "-shm"), (LOCK_SUFFIX,), ("", "-wal", "-shm", LOCK_SUFFIX)])
def test_removed_while_open(path: str, suffixes: tuple[str, ...]) -> None:
    """Files of an open journal that were removed are written again, with all rows and the same identity."""
    journal = open_journal(path)
    before = journal.identity
    announce(journal)
    for suffix in suffixes:
        os.unlink(path + suffix)
    journal.check_file()
    announce(journal)
    with pytest.raises(JournalError, match="in use"):
        open_journal(path)
    journal.close()
    with closing(open_journal(path)) as journal:
        assert (journal.identity, journal.last_number("chain")) == (before, 2)


def test_replaced_while_open(path: str) -> None:
    """A replaced file is reported once, no result is stored in the wrong file, and the next open uses the new file."""
    with closing(open_journal(path)) as journal:
        before = journal.identity
        announce(journal)
    shutil.copy(path, path + ".backup")
    reported: list[bool] = []
    journal = open_journal(path, on_damage=lambda: reported.append(True))
    announce(journal)
    replace(path)
    for _ in range(2):
        journal.check_file()
    assert reported == [True]
    assert journal.replaced
    with pytest.raises(JournalError, match="was replaced"):
        announce(journal)
    journal.close()
    with closing(open_journal(path)) as journal:
        assert journal.identity != before
        assert journal.last_number("chain") == 1
