"""Passes batches of items to a handler and retries those that fail."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from trollmoves.errors import TrollmovesError
from trollmoves.utils.logs import LogThrottle

BACKOFF_INITIAL = 0.05  # s before the first retry; doubles with each retry
BACKOFF_MAX = 5.0  # s
TRIES = 5  # of a batch, with errors that are not temporary

Item = TypeVar("Item")

logger = logging.getLogger(__name__)


class BatchDelivery(Generic[Item]):
    """Calls a handler with batches of items and retries when it raises.

    After a temporary error (``TrollmovesError.temporary``) the same batch is retried until the handler succeeds. After
    ``tries`` other errors the items are passed one by one, so that one bad item does not block the others. An item
    that fails again is logged and dropped.

    Args:
        handler: Called with each batch; it must not change the list.
        name: The chain, for the log.
        source: The origin of the items (a publisher, a directory), for the log.
        describe: Returns the text of one item for the log.
        stopping: Ends all retries once it is set.
        tries: Attempts with errors that are not temporary.
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
        tries: int = TRIES,
        backoff_initial: float = BACKOFF_INITIAL,
    ) -> None:
        self._handler = handler
        self._name = name
        self._source = source
        self._describe = describe
        self._stopping = stopping
        self._tries = tries
        self._backoff_initial = backoff_initial
        self._throttle = LogThrottle(burst=1)

    def deliver(self, items: list[Item]) -> list[Item]:
        """Return the delivered items, once the others have been dropped or ``stopping`` is set."""
        if self._attempt(items, self._tries):
            return items
        delivered = []
        for item in items:
            if len(items) > 1 and self._attempt([item], 1):
                delivered.append(item)
            elif not self._stopping.is_set():
                logger.error("[%s] giving up on %s: the handler keeps failing", self._name, self._describe(item))
        return delivered

    def _attempt(self, items: list[Item], tries: int) -> bool:
        delay = self._backoff_initial
        while not self._stopping.is_set():
            try:
                self._handler(items)
                return True
            except Exception as error:
                tries -= not self._log_failure(error, len(items))
            if tries <= 0:
                break
            self._stopping.wait(delay)
            delay = min(2 * delay, BACKOFF_MAX)
        return False

    def _log_failure(self, error: Exception, count: int) -> bool:
        """Log a failed attempt; return True if the error is temporary."""
        items = f"{count} item{'s' * (count != 1)} from {self._source}"
        if not (isinstance(error, TrollmovesError) and error.temporary):
            logger.error("[%s] the handler failed for %s", self._name, items, exc_info=error)
            return False
        if (suffix := self._throttle.admit(str(error))) is not None:
            logger.warning("[%s] the handler failed for %s, retrying: %s%s", self._name, items, error, suffix)
        return True
