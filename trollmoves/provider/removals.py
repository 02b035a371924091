"""Removes delivered files that no client needs any longer."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from trollmoves.errors import RequestRejected
from trollmoves.journal import WAITING, Journal, Task
from trollmoves.provider.file_store import FileStore, announced_uris
from trollmoves.scheduler.lanes import Result
from trollmoves.scheduler.scheduler import Scheduler
from trollmoves.utils import failpoints

logger = logging.getLogger(__name__)


class Removals:
    """The removals of one chain, ``delay`` seconds after a delivery, if ``enabled``."""

    def __init__(
        self, name: str, journal: Journal, scheduler: Scheduler, file_store: FileStore, *, enabled: bool, delay: float
    ) -> None:
        self.name = name
        self._journal = journal
        self._scheduler = scheduler
        self._file_store = file_store
        self._enabled = enabled
        self._delay = delay

    def start(self) -> None:
        """Run due removals, including those of an earlier process."""
        self._scheduler.register(self.name, "remove", limit=1, handler=self._remove)

    def tasks_for(self, number: int, extra_delay: float = 0.0) -> Sequence[Task]:
        """Return the task that removes the files of an announcement, if removals are enabled."""
        if not self._enabled:
            return ()
        key, now = str(number), self._journal.now()
        known = self._journal.find(self.name, "remove", key)
        if extra_delay or (known and known.state != WAITING):  # removed earlier, and fetched again since
            key = f"{number} {now:.3f}"
        due = now + self._delay + extra_delay
        return (Task(self.name, "remove", key, "remove", "", due, announcement_number=number),)

    def _remove(self, task: Task) -> Result:
        """Remove the delivered files of an announcement, unless a push needs them or they changed. Worker thread."""
        number = task.announcement_number or 0
        announced = self._journal.get_announcement(self.name, number)
        if announced is None:
            return Result()
        if self._journal.has_pending_for(self.name, "push", number):
            return Result(retry_in=max(1.0, self._delay))
        if not self._file_store.is_unchanged(announced):
            return Result()
        busy = False
        for uri in announced_uris(announced):
            busy |= not self._delete(number, uri)
        return Result(retry_in=max(1.0, self._delay)) if busy else Result()

    def _delete(self, number: int, uri: str) -> bool:
        """Remove a file; return False if a pending push needs it."""
        path = self._file_store.path(number, uri)
        failpoints.hit("removing")
        try:
            self._file_store.delete(number, uri)
            failpoints.hit("removed")
            logger.info("[%s] removed %s", self.name, path)
        except FileNotFoundError:
            pass
        except BlockingIOError:
            return False
        except RequestRejected as error:
            logger.warning("[%s] kept %s: %s", self.name, path, error)
        except OSError as error:
            logger.warning("[%s] cannot remove %s: %s", self.name, path, error.strerror)
        return True
