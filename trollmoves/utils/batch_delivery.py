"""Passes batches of items to a handler and retries those that fail."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from trollmoves.errors import TrollmovesError
from trollmoves.utils.logs import LogThrottle
from trollmoves.utils.texts import counted

BACKOFF_INITIAL = 0.05  # s before the first retry; doubles with each retry
BACKOFF_MAX = 5.0  # s
TRIES = 3  # of a batch, with errors that are not temporary

Item = TypeVar("Item")
SetAside = Callable[[str, str], None]  # (item, reason)

logger = logging.getLogger(__name__)


class Stopped(TrollmovesError):
    """The process stops before the first attempt."""

    temporary = True


class BatchDelivery(Generic[Item]):
    """Calls a handler with batches of items and retries when it raises.

    After a temporary error (``TrollmovesError.temporary``) the same batch is retried until the handler succeeds. After
    ``TRIES`` other errors the items are passed one by one, so that one bad item does not block the others. An item
    that fails again is set aside: it is logged and passed to ``set_aside``.

    Args:
        handler: Called with each batch; it must not change the list.
        name: The chain, for the log.
        source: The origin of the items (a publisher, a directory), for the log.
        describe: Returns the text of one item for the log.
        stopping: Ends all retries once it is set.
        set_aside: Called with the text of an item that keeps failing, and the last error, to record them.
        backoff_initial: Seconds before the first retry.
    """

    def __init__(
        self,
        handler: Callable[[list[Item]], None],
        name: str,
        *,
        source: str,
        describe: Callable[[Item], str],
        stopping: threading.Event,
        set_aside: SetAside | None = None,
        backoff_initial: float = BACKOFF_INITIAL,
    ) -> None:
        self._handler = handler
        self._name = name
        self._source = source
        self._describe = describe
        self._stopping = stopping
        self._set_aside = set_aside
        self._backoff_initial = backoff_initial
        self._throttle = LogThrottle(burst=1)

    def deliver(self, items: list[Item]) -> list[Item]:
        """Return the delivered items, once the others have been dropped or ``stopping`` is set."""
        error = self._attempt(items, TRIES)
        if error is None:
            return items
        delivered = []
        for item in items:
            if len(items) > 1:
                error = self._attempt([item], 1)
            if error is None:
                delivered.append(item)
            elif not self._stopping.is_set():
                self._drop(self._describe(item), error)
        return delivered

    def _drop(self, item: str, error: Exception) -> None:
        logger.error("[%s] giving up on %s: the handler keeps failing", self._name, item)
        try:
            if self._set_aside:
                self._set_aside(item, f"{type(error).__name__}: {error}")
        except TrollmovesError as problem:
            logger.warning("[%s] cannot record the failure of %s: %s", self._name, item, problem)

    def _attempt(self, items: list[Item], tries: int) -> Exception | None:
        """Return None after a success, else the last error."""
        last: Exception = Stopped()
        delay = self._backoff_initial
        while not self._stopping.is_set():
            try:
                self._handler(items)
                return None
            except Exception as error:
                last = error
                tries -= not self._log_failure(error, len(items))
            if tries <= 0:
                break
            self._stopping.wait(delay)
            delay = min(2 * delay, BACKOFF_MAX)
        return last

    def _log_failure(self, error: Exception, count: int) -> bool:
        """Log a failed attempt; return True if the error is temporary."""
        items = f"{counted(count, 'item')} from {self._source}"
        if not (isinstance(error, TrollmovesError) and error.temporary):
            logger.error("[%s] the handler failed for %s", self._name, items, exc_info=error)
            return False
        if (suffix := self._throttle.admit(str(error))) is not None:
            logger.warning("[%s] the handler failed for %s, retrying: %s%s", self._name, items, error, suffix)
        return True
