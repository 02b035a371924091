"""Logs the failed attempts of tasks: each one of a file, those of a whole lane once."""

from __future__ import annotations

import logging
import threading

from trollmoves.errors import TrollmovesError
from trollmoves.journal import Journal, Task
from trollmoves.scheduler.lanes import Result
from trollmoves.utils.outage_log import OutageLog
from trollmoves.utils.texts import counted

logger = logging.getLogger(__name__)

MAX_OUTAGE_LOGS = 1000  # lanes with outages that are remembered for the log


class UnexpectedError(TrollmovesError):
    """A handler raised an unexpected exception. The task is retried."""

    temporary = True


class FailureLog:
    """The failures of all lanes of a process. Any thread."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._lock = threading.Lock()  # guards the outages
        self._outages: dict[tuple[str, str], OutageLog] = {}  # by chain and lane; they outlive idle lanes

    def log(self, task: Task, error: TrollmovesError, text: str = "") -> None:
        """Log a failed attempt. Failures of a whole lane are logged once, later only counted. Any thread.

        Args:
            task: the task.
            error: why the attempt failed.
            text: describes the attempt; by default the kind and the name of the task.
        """
        text = text or f"{task.kind} of {task.key.partition(chr(10))[0]} failed"
        if not error.temporary:
            logger.error("[%s] %s, will not be retried (attempt %d): %s", task.chain, text, task.tries, error)
            return
        suffix: str | None = ""
        if error.outage or error.blames_directory:
            suffix = self._outage_of(task.chain, task.lane).admit(type(error).__name__)
        if suffix is None:
            logger.debug("[%s] %s (attempt %d): %s", task.chain, text, task.tries, error)
        elif error.held:
            count = self._journal.count_waiting(task.chain, task.lane)
            waiting = f"; {counted(count, 'file')} waiting until this is repaired" if count else ""
            logger.error("[%s] %s, held (attempt %d): %s%s%s", task.chain, text, task.tries, error, waiting, suffix)
        else:
            logger.warning("[%s] %s, will be retried (attempt %d): %s%s", task.chain, text, task.tries, error, suffix)

    def to_result(self, task: Task, error: Exception) -> Result:
        """Log the error that ended an attempt of a task; return the result of the attempt. Any thread."""
        if isinstance(error, TrollmovesError):
            self.log(task, error)
            return Result(error=error)
        logger.error("[%s] %s %s: unexpected error", task.chain, task.kind, task.key, exc_info=error)
        return Result(error=UnexpectedError(str(error) or type(error).__name__))

    def end_outage(self, chain: str, lane: str) -> str | None:
        """Return the summary of an outage of a lane that has ended; None if there was none."""
        return self._outage_of(chain, lane).end()

    def _outage_of(self, chain: str, lane: str) -> OutageLog:
        with self._lock:
            if (chain, lane) not in self._outages and len(self._outages) >= MAX_OUTAGE_LOGS:
                del self._outages[next(iter(self._outages))]
            return self._outages.setdefault((chain, lane), OutageLog())
