"""One run of a fetch task, and the errors that end it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from trollmoves.errors import TrollmovesError
from trollmoves.journal import Delivery, Task
from trollmoves.messaging import payload
from trollmoves.messaging.messages import Message
from trollmoves.scheduler.lanes import FileStats, Result


class RetryPeriodExpired(TrollmovesError):
    """A file was not delivered within ``retry_for``."""


class NotDelivered(TrollmovesError):
    """No source delivered, but a later attempt may succeed."""

    temporary = True


class HeldAtSource(NotDelivered):
    """An operator must repair the destination of the source, or its configuration."""

    held = True


class PermanentlyRefused(TrollmovesError):
    """A source permanently rejected the request."""


class SupersededAtSource(PermanentlyRefused):
    """A source delivered a newer version of the file to the same destination, so this version is dropped."""


@dataclass(slots=True)
class FetchAttempt:
    """One run of a fetch task. ``message`` is the announcement of the current source, or of the last one.

    ``announced`` is its metadata; {} for a legacy server.
    """

    task: Task
    message: Message
    destination: str
    sources: dict[str, Message | str]  # remaining sources, with decoded or encoded announcements
    finish: Callable[[Result], None]
    source: str = ""
    failures: list[TrollmovesError] = field(default_factory=list)
    retry_in: float = 0.0
    requested_at: float = 0.0  # monotonic
    requested_from: set[str] = field(default_factory=set)  # addresses
    server_busy: bool = True  # False if a legacy server seems to have dropped the request
    started: float = field(default_factory=time.monotonic)
    announced: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.announced = payload.announcement_metadata(self.message.data)

    def next_source(self) -> None:
        """Continue with the next one of ``sources``."""
        self.source = next(iter(self.sources))
        self.requested_from.add(self.source)
        announcement = self.sources.pop(self.source)
        if announcement is not self.message:
            self.message = announcement if isinstance(announcement, Message) else Message.decode(announcement)
            self.announced = payload.announcement_metadata(self.message.data)

    def stats(self) -> FileStats:
        """Return number, bytes and time of the files, as announced; a legacy server announces no bytes."""
        metadata = self.announced
        mtime = metadata.get("mtime") or int(self.message.timestamp() * 1e9)
        return FileStats(payload.count_files(self.message.data), metadata.get("size") or 0, mtime)

    def delivery(self, destination: str) -> Delivery:
        """Return the delivery by the current source, for the row of the task."""
        size = self.announced.get("size")
        return Delivery(size, time.monotonic() - self.started, destination, self.source)
