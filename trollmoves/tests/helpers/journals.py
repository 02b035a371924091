"""Journals for tests: one of each engine, rows, and short forms of calls."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from trollmoves.journal import AnnouncementRecord, Journal, Task, TaskEditor, Version, open_journal
from trollmoves.tests.servers import postgresql
from trollmoves.tests.servers.postgresql import Postgresql

LATER = 4e9  # s since the epoch; all tasks that are added now are due then


@contextmanager
def sqlite_journals(directory: Path) -> Iterator[Callable[[], Journal]]:
    """Yield a function that opens the same journal in memory, where possible."""
    with TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else directory) as folder:
        yield partial(open_journal, os.path.join(folder, "state", "a.journal"))


@cache
def shared_server() -> Postgresql:
    """Return the server of all tests of this process, which ends after the last one (see ``conftest``)."""
    server = Postgresql()
    server.start()
    return server


def stop_shared_server() -> None:
    """Stop the server, if it was started."""
    if shared_server.cache_info().currsize:
        shared_server().__exit__()
        shared_server.cache_clear()


def new_schema(server: Postgresql) -> str:
    """Return the URL of a journal in a new schema."""
    return new_schema_of(server.url)


def new_schema_of(url: str) -> str:
    """Return the URL of a journal in a new schema of the database at a URL."""
    return f"{url}&schema=fleet_{uuid.uuid4().hex[:12]}"


@contextmanager
def postgresql_journals(_: Path) -> Iterator[Callable[[], Journal]]:
    """Yield a function that opens the same journal in a new schema."""
    if postgresql.missing():
        pytest.skip(postgresql.missing())
    yield partial(open_journal, new_schema(shared_server()))


# By engine: a context manager that yields a function that opens the same journal again.
ENGINES: dict[str, Callable[[Path], AbstractContextManager[Callable[[], Journal]]]] = {
    "sqlite": sqlite_journals,
    "postgresql": postgresql_journals,
}


def task(key: str, lane: str = "lane", *, kind: str = "fetch", body: str = "", due: float = 0.0, rank: int = 0) -> Task:
    """Make a task."""
    return Task("chain", kind, key, lane, body, due, rank)


def announced(number: int, uri: str = "", size: int | None = 5, mtime: int | None = 7) -> AnnouncementRecord:
    """Make a line of a log."""
    return AnnouncementRecord(number, uri or f"/in/{number}", str(number), size, mtime, f"message {number}")


def keys(tasks: list[Task]) -> list[str]:
    """Return what identifies tasks within their kind."""
    return [task.key for task in tasks]


def append_announcements(journal: Journal, chain: str, records: Sequence[AnnouncementRecord]) -> None:
    """Append records to the log of a chain; the numbers must continue after the last one."""
    journal.append(chain, (), lambda _versions, _number: records)


def latest_versions(journal: Journal, chain: str, uris: Collection[str]) -> dict[str, Version]:
    """Return the versions that ``append`` passes for these files."""
    found: dict[str, Version] = {}
    journal.append(chain, uris, lambda versions, _number: found.update(versions) or ())
    return found


def update_body(journal: Journal, task: Task) -> None:
    """Store only the body of an existing task."""

    def store(editor: TaskEditor, _task: Task, _stored: Task) -> list[Task]:
        editor.update_body(task)
        return []

    journal.merge([replace(task)], (), store)
