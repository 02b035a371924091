"""When a journal is pruned."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

from trollmoves.errors import TrollmovesError
from trollmoves.journal.interface import Journal
from trollmoves.journal.records import Compactors, Retention

logger = logging.getLogger(__name__)

PRUNE_INTERVAL = 60.0  # s between two prunings
PRUNE_STEP_PAUSE = 0.02  # s between the steps of a pruning; a step takes a few ms


class JournalPruner:
    """Prunes a journal in small steps. One thread."""

    def __init__(self, journal: Journal, retention: Retention, compactors: Compactors) -> None:
        self._journal = journal
        self._retention = retention
        self._compactors = compactors
        self._steps: Iterator[int] = iter(())
        self._next = time.monotonic() + PRUNE_INTERVAL

    def seconds_until_due(self) -> float:
        """Return the seconds until the next step."""
        return max(0.0, self._next - time.monotonic())

    def step(self) -> None:
        """Run the next step of the current pruning, or begin the next pruning."""
        try:
            done = next(self._steps, None)
        except TrollmovesError as error:
            logger.debug("cannot prune the journal: %s", error)  # the scheduler logs the errors of writes
            done = None
        if done is None:
            self._journal.check_file()
            self._steps = self._journal.prune(self._retention, self._compactors)
        self._next = time.monotonic() + (PRUNE_INTERVAL if done is None else PRUNE_STEP_PAUSE)
