"""Removes files that were delivered, when nobody wants them any more."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from trollmoves.errors import RequestRejected
from trollmoves.journal import WAITING, Journal, Task
from trollmoves.provider.file_store import FileStore, announced_uris
from trollmoves.scheduler.lanes import Result
from trollmoves.scheduler.scheduler import Scheduler
from trollmoves.utils import failpoints

log = logging.getLogger(__name__)


class Removals:
    """The removals of one chain, ``delay`` seconds after a delivery; None at all when not ``wanted``."""

    def __init__(
        self, name: str, journal: Journal, workers: Scheduler, holdings: FileStore, *, wanted: bool, delay: float
    ) -> None:
        self.name = name
        self._journal = journal
        self._workers = workers
        self._holdings = holdings
        self._wanted = wanted
        self._delay = delay

    def start(self) -> None:
        """Remove what is due, also of an earlier process."""
        self._workers.register(self.name, "remove", limit=1, handler=self._remove)

    def tasks_for(self, number: int, later: float = 0.0) -> Sequence[Task]:
        """Give the task that removes the files of an announcement, if any does; ``later`` than usual by so many s."""
        if not self._wanted:
            return ()
        key, now = str(number), self._journal.now()
        known = self._journal.find(self.name, "remove", key)
        if later or (known and known.state != WAITING):  # they were removed before, and have been brought again
            key = f"{number} {now:.3f}"
        return (Task(self.name, "remove", key, "remove", "", now + self._delay + later, announcement_number=number),)

    def _remove(self, task: Task) -> Result:
        """Remove a file that was delivered, unless it is wanted or has become another one; runs on a worker."""
        number = task.announcement_number or 0
        announced = self._journal.get_announcement(self.name, number)
        if announced is None:
            return Result()
        if self._journal.has_pending_for(self.name, "push", number):
            return Result(retry_in=max(1.0, self._delay))
        if not self._holdings.is_unchanged(announced):
            return Result()
        busy = False
        for uri in announced_uris(announced):
            busy |= not self._delete(number, uri)
        return Result(retry_in=max(1.0, self._delay)) if busy else Result()

    def _delete(self, number: int, uri: str) -> bool:
        """Remove a file; False when it is wanted just now."""
        path = self._holdings.path(number, uri)
        failpoints.hit("removing")
        try:
            self._holdings.delete(number, uri)
            failpoints.hit("removed")
            log.info("[%s] removed %s", self.name, path)
        except FileNotFoundError:
            pass
        except BlockingIOError:
            return False
        except RequestRejected as error:
            log.warning("[%s] does not remove %s: %s", self.name, path, error)
        except OSError as error:
            log.warning("[%s] cannot remove %s: %s", self.name, path, error.strerror)
        return True
