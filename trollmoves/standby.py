"""The wait of a standby: a member of a fleet without the lease to work, on a journal that several hosts share."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from queue import Empty, SimpleQueue

from trollmoves.control.server import ControlServer, Handler
from trollmoves.errors import JournalError, JournalUnusable
from trollmoves.journal import Journal, MemberRow
from trollmoves.utils.service_manager import ServiceManager

logger = logging.getLogger(__name__)

FLEET = "fleet"  # the lease of the member that works
POLL_INTERVAL = 1.0  # s between two attempts to take the lease
MAX_OPEN_TIME = 30.0  # s that an attempt to open a journal takes at most, for all hosts of its URL
REPORT_INTERVAL = 60.0  # s between two lines about a journal that cannot be reached


class Standby:
    """Waits for the lease of a fleet: it binds no port, and only replies to commands. Main thread.

    ``orders`` are those of the daemon, and ``control`` the path for its control socket. ``on_waiting`` is called once
    if another member works.
    """

    def __init__(
        self,
        journal: Journal,
        orders: SimpleQueue[str],
        service: ServiceManager,
        control: str,
        handlers: Mapping[str, Handler],
        on_waiting: Callable[[], None],
    ) -> None:
        self._on_waiting = on_waiting
        self._journal = journal
        self._orders = orders
        self._service = service
        self._control = ControlServer(control, handlers)
        self._holder = ""  # the life of the member that works, as logged
        self._reported = -REPORT_INTERVAL  # monotonic

    def wait(self) -> str:
        """Return an empty text when this member has the lease, or the order that ended the wait.

        The order is "stop", or "restart" if this member lost its membership. A reload is put off until the chains run.
        """
        if self._take():
            return ""
        self._on_waiting()
        self._service.notify(READY=1)
        self._control.start()
        started = time.monotonic()
        must_reload = False
        try:
            while True:
                self._service.notify(WATCHDOG=1, STATUS=self._report())
                with suppress(Empty):
                    order = self._orders.get(timeout=POLL_INTERVAL)
                    if order in ("stop", "restart"):
                        return order
                    must_reload = True
                if self._take():
                    break
        finally:
            self._control.stop()
        logger.warning(
            "took over the journal %s after %.0f s as standby", self._journal.path, time.monotonic() - started
        )
        if must_reload:
            self._orders.put("reload")
        return ""

    def _take(self) -> bool:
        try:
            return self._journal.take(FLEET)
        except JournalError as error:
            self._log_error(error)
            return False

    def _report(self) -> str:
        """Return the status of this process; log the holder of the lease once."""
        try:
            holder = find_holder(self._journal)
        except JournalError as error:
            self._log_error(error)
            return "standby; the journal cannot be reached"
        if holder is None:
            return "standby; no host has the journal"
        if holder.life != self._holder:
            self._holder = holder.life
            logger.info(
                "the journal %s is held by %s (renewed %.1f s ago); waiting as standby",
                self._journal.path,
                holder.name,
                holder.renewed,
            )
        return f"standby; {holder.name} has the journal"

    def _log_error(self, error: JournalError) -> None:
        if time.monotonic() - self._reported >= REPORT_INTERVAL:
            self._reported = time.monotonic()
            logger.error("%s; waiting as standby, trying again every %.0f s", error, POLL_INTERVAL)


def find_holder(journal: Journal) -> MemberRow | None:
    """Return the member of a fleet that works, the first one if they share the work; None if no member works."""
    return next((one for one in journal.members() if any(lease.split()[0] == FLEET for lease in one.leases)), None)


def open_when_reachable(
    open_journal: Callable[[], Journal],
    orders: SimpleQueue[str],
    service: ServiceManager,
    on_unreachable: Callable[[], None],
) -> Journal | None:
    """Return the opened journal, as soon as its engine can be reached; None if the process was stopped first.

    ``on_unreachable`` is called after each attempt that fails.

    Raises:
        JournalUnusable: an operator must correct the login, the rights or the version first.
    """
    reported = -REPORT_INTERVAL
    while True:
        try:
            return open_journal()
        except JournalUnusable:
            raise
        except JournalError as error:
            if time.monotonic() - reported >= REPORT_INTERVAL:
                reported = time.monotonic()
                logger.error("%s; trying again every %.0f s", error, POLL_INTERVAL)
            on_unreachable()
            extension = int(1e6 * (MAX_OPEN_TIME + POLL_INTERVAL))  # us
            service.notify(STATUS="waiting for the journal", EXTEND_TIMEOUT_USEC=extension, WATCHDOG=1)
        with suppress(Empty):
            if orders.get(timeout=POLL_INTERVAL) == "stop":
                return None
