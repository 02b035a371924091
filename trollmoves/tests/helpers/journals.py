"""Short forms of calls of a journal."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from trollmoves.journal import AnnouncementRecord, Journal, Task, TaskEditor, Version


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
