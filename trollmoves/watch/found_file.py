"""Hands found files over, until they are taken."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trollmoves.errors import TrollmovesError

BACKOFF_INITIAL = 0.05  # s before files are offered again; doubles
BACKOFF_MAX = 5.0  # s
TRIES = 5  # with an error that is not temporary

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A whole file.

    ``path`` is absolute and decoded as ``os.fsdecode`` does. Size, time and inode are those of the file itself when
    ``path`` is a symbolic link. ``fresh`` is False when a listing, not an event, told of the file.
    """

    path: str
    fields: dict[str, Any]  # what the origin pattern parsed
    size: int
    mtime_ns: int
    inode: int
    fresh: bool


class BatchDelivery:
    """Calls back with batches of files, again when that raises.

    An error that says it is temporary (``TrollmovesError.temporary``) is met with patience: the same batch is offered
    until it is taken. After any other one the files are offered ``TRIES`` times together, then one by one, so that one
    bad file costs no other; a file that is refused even then is logged and left.
    """

    def __init__(self, found: Callable[[list[FoundFile]], None], name: str) -> None:
        self._found = found
        self._name = name
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Offer nothing more; ends a pause. Any thread may call this."""
        self._stopped.set()

    def deliver(self, files: list[FoundFile]) -> list[FoundFile]:
        """Return the files that were taken; comes back when the rest was given up, or the offering was stopped."""
        if self._offer(files, TRIES):
            return files
        taken = []
        for file in files:
            if len(files) > 1 and self._offer([file], 1):
                taken.append(file)
            elif not self._stopped.is_set():
                logger.error("[%s] gave up on %s: nobody could take it", self._name, file.path)
        return taken

    def _offer(self, files: list[FoundFile], tries: int) -> bool:
        pause = BACKOFF_INITIAL
        while not self._stopped.is_set():
            try:
                self._found(list(files))
                return True
            except Exception as error:
                temporary = isinstance(error, TrollmovesError) and error.temporary
                tries -= not temporary
                self._log(error, temporary, len(files), first=pause == BACKOFF_INITIAL)
            if tries <= 0:
                break
            self._stopped.wait(pause)
            pause = min(2 * pause, BACKOFF_MAX)
        return False

    def _log(self, error: Exception, temporary: bool, count: int, first: bool) -> None:
        if temporary:
            level = logging.WARNING if first else logging.DEBUG
            logger.log(level, "[%s] %d files are offered again in a moment: %s", self._name, count, error)
        else:
            logger.error("[%s] cannot hand over %d files", self._name, count, exc_info=error)
