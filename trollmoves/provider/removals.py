"""Removes delivered files that no client needs any longer."""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
from collections.abc import Iterable, Mapping, Sequence

from trollmoves.config.options import ServerOptions
from trollmoves.errors import RequestRejected, TrollmovesError
from trollmoves.journal import DONE, WAITING, AnnouncementRecord, Journal, Task
from trollmoves.provider.file_store import FileStore, first_uri
from trollmoves.scheduler.lanes import Result
from trollmoves.scheduler.scheduler import Scheduler
from trollmoves.utils.file_versions import FileVersion

logger = logging.getLogger(__name__)

KIND = "remove"
MAX_RECENT = 10_000  # removed files that are remembered: the journal may not have stored their removals yet


class RemovalFailed(TrollmovesError):
    """The operating system did not remove a delivered file."""

    temporary = True
    blames_directory = True

    def __init__(self, error: OSError) -> None:
        super().__init__(error.strerror or str(error))
        self.held = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)


class Removals:
    """The removals of one chain, ``remove_delay`` seconds after a delivery, if ``delete`` is set."""

    def __init__(self, options: ServerOptions, journal: Journal, scheduler: Scheduler, file_store: FileStore) -> None:
        self.name = options.name
        self._journal = journal
        self._scheduler = scheduler
        self._file_store = file_store
        self._enabled = options.delete
        self._delay = options.remove_delay
        self._removed: dict[int, None] = {}  # numbers of announcements; newest last
        self._removing = threading.Lock()  # guards it, and is held while a file is removed

    def start(self) -> None:
        """Run due removals, including those of an earlier process."""
        self._scheduler.register(self.name, KIND, limit=1, handler=self._remove)

    def tasks_for(
        self, number: int, delivered: Mapping[str, FileVersion] | None = None, extra_delay: float = 0.0
    ) -> Sequence[Task]:
        """Return the task that removes the files of an announcement, if removals are enabled.

        ``delivered`` contains the versions that were delivered, by URI: of these files, no other version is removed.
        """
        if not self._enabled:
            return ()
        key, now = str(number), self._journal.now()
        known = self._journal.find(self.name, KIND, key)
        if extra_delay or (known and known.state != WAITING):  # removed earlier, and fetched again since
            key = f"{number} {now:.3f}"
        due = now + self._delay + extra_delay
        body = json.dumps(delivered) if delivered else ""
        return (Task(self.name, KIND, key, KIND, body, due, announcement_number=number),)

    def cancel(self, numbers: Iterable[int]) -> None:
        """Cancel the pending removals of announcements: their files were announced again."""
        self._journal.drop([task for number in numbers for task in self._journal.pending_for(self.name, KIND, number)])

    def has_returned(self, announced: AnnouncementRecord) -> bool:
        """Return True if the file of a delivered announcement is another one with the announced size and time.

        It was removed or replaced after the delivery. Any thread.
        """
        with self._removing:
            if announced.number in self._removed:
                return True
        removals = self._journal.finished_for(self.name, (KIND,), announced.number)
        removals += self._journal.pending_for(self.name, KIND, announced.number)
        if not removals or (versions := self._file_store.versions(announced)) is None:
            return False
        try:
            changed = os.stat(self._file_store.path(announced.number, first_uri(announced))).st_ctime
        except OSError:
            return False
        return all(_is_other(versions, changed, removal) for removal in removals)

    def _remove(self, task: Task) -> Result:
        """Remove the delivered files of an announcement, unless a push needs them or they changed. Worker thread."""
        number = task.announcement_number or 0
        announced = self._journal.get_announcement(self.name, number)
        if announced is None:
            return Result()
        if self._journal.has_pending_for(self.name, "push", number):
            return Result(retry_in=max(1.0, self._delay))
        delivered = json.loads(task.body) if task.body else {}
        busy, failure = False, None
        for uri, version in (self._file_store.versions(announced) or {}).items():
            if delivered.get(uri, list(version)) != list(version):
                continue
            try:
                busy |= not self._delete(announced, uri, version)
            except OSError as error:
                path, failure = self._file_store.path(number, uri), RemovalFailed(error)
                self._scheduler.failures.log(task, failure, f"cannot remove {path}")
        if failure:
            return Result(error=failure)
        return Result(retry_in=max(1.0, self._delay)) if busy else Result()

    def _delete(self, announced: AnnouncementRecord, uri: str, version: FileVersion) -> bool:
        """Remove a file unless it was replaced; return False if a pending push needs it. OSError if it stays."""
        path = self._file_store.path(announced.number, uri)
        try:
            with self._removing:
                removed = self._file_store.delete(announced, uri, version)
                if removed:
                    self._remember(announced.number)
            if removed:
                logger.info("[%s] removed %s", self.name, path)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except BlockingIOError:
            return False
        except RequestRejected as error:
            logger.warning("[%s] kept %s: %s", self.name, path, error)
        return True

    def _remember(self, number: int) -> None:
        self._removed[number] = None
        if len(self._removed) > MAX_RECENT:
            del self._removed[next(iter(self._removed))]


def _is_other(versions: Mapping[str, FileVersion], changed: float, removal: Task) -> bool:
    """Return True if files are others than those that a removal is about.

    Without the delivered versions, and after the removal, this depends on the time of the last change of the status.
    """
    delivered = json.loads(removal.body) if removal.body else {}
    if any(delivered.get(uri, list(version)) != list(version) for uri, version in versions.items()):
        return True
    if removal.state == DONE:
        return changed > removal.due
    return not delivered and changed > removal.created
