"""Publishes announcements again: clients may have missed them, or another process may have lost their requests."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import TypeVar

from trollmoves.errors import JournalError
from trollmoves.journal import AnnouncementRecord, Journal
from trollmoves.messaging.publisher import SUBSCRIBER_GRACE, Publisher

logger = logging.getLogger(__name__)

PAGE_SIZE = 500  # announcements per query
RETRY_DELAY = 60.0  # s before the next attempt after a journal error
REPEATED_SECONDS = 3600.0  # s before now in which the undelivered announcements of a killed member are repeated

T = TypeVar("T")


class Republisher:
    """The repeated announcements of one chain, so that clients repeat their requests.

    ``publish_again`` publishes those of unchanged files, and returns their number.
    """

    def __init__(
        self,
        name: str,
        journal: Journal,
        publisher: Publisher,
        publish_again: Callable[[Iterable[AnnouncementRecord]], int],
    ) -> None:
        self.name = name
        self._journal = journal
        self._publisher = publisher
        self._publish_again = publish_again
        self._unanswered: list[int] = []  # numbers to republish in any case
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, *, undelivered: bool, unanswered: Iterable[int]) -> None:
        """With ``undelivered``, publish the undelivered announcements of earlier processes.

        ``unanswered``: announcements to publish again although they may be delivered, because another host got the
        requests and cannot reply to them.
        """
        self._unanswered = sorted(unanswered)
        if undelivered or self._unanswered:
            self.repeat()

    def repeat(self) -> None:
        """Publish the undelivered announcements again. Main thread."""
        if self._thread and self._thread.is_alive():
            return
        last, unanswered = self._journal.last_number(self.name), self._unanswered
        self._thread = self._start_thread(lambda: self._republish(last, unanswered))

    def repeat_for_killed(self, addresses: Collection[str], unanswered: Iterable[int]) -> None:
        """Publish announcements of killed members of the fleet again, with the address of this one. Any thread.

        These are the announcements of the last hour with one of the request ``addresses`` that are undelivered, and
        those with the numbers ``unanswered``.
        """
        numbers = sorted(unanswered)
        self._start_thread(lambda: self._republish_for_killed(addresses, numbers))

    def stop(self) -> None:
        """Stop publishing."""
        self._stopping.set()
        if self._thread and self._thread.is_alive():
            self._thread.join(5.0)

    def _start_thread(self, target: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=target, name=f"republisher-{self.name}", daemon=True)
        thread.start()
        return thread

    def _republish_for_killed(self, addresses: Collection[str], unanswered: list[int]) -> None:
        self._publisher.send_heartbeat()  # it names the members that are left
        first = self._retried(lambda: self._journal.number_before(self.name, self._journal.now() - REPEATED_SECONDS))
        last = self._retried(lambda: self._journal.last_number(self.name))
        if first is not None and last is not None:
            self._republish(last, unanswered, first, addresses)

    def _republish(self, last: int, unanswered: list[int], number: int = 0, addresses: Collection[str] = ()) -> None:
        """Publish the ``unanswered`` announcements, and the undelivered ones after ``number``, through ``last``.

        Of the latter, those with one of the request ``addresses``, if there are any.
        """
        self._stopping.wait(SUBSCRIBER_GRACE)
        count = 0
        for at in range(0, len(unanswered), PAGE_SIZE):
            numbers = unanswered[at : at + PAGE_SIZE]
            found = self._retried(partial(self._journal.get_announcements, self.name, numbers))
            count += self._publish_again((found or {}).values())
        undelivered = partial(self._journal.undelivered_announcements, self.name, ("push", "ack"))
        while number < last and (page := self._retried(partial(undelivered, number, PAGE_SIZE))):
            number = page[-1].number
            here = (a for a in page if not addresses or _has_address(a, addresses))
            count += self._publish_again(a for a in here if a.number <= last)
        if count:
            plural = "s" if count > 1 else ""
            logger.info("[%s] republished %d undelivered announcement%s", self.name, count, plural)

    def _retried(self, read: Callable[[], T]) -> T | None:
        """Return the result of a query, which is repeated after an error of the journal; None while stopping."""
        while not self._stopping.is_set():
            try:
                return read()
            except JournalError as error:
                logger.warning("[%s] cannot republish undelivered announcements yet: %s", self.name, error)
                self._stopping.wait(RETRY_DELAY)
        return None


def _has_address(announced: AnnouncementRecord, addresses: Collection[str]) -> bool:
    return any(f'"{address}"' in announced.message for address in addresses)
