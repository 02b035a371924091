"""How many files each section moved, by ten minutes, in the last 24 hours."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

from trollmoves.cli.selection import DaemonFiles
from trollmoves.errors import JournalError
from trollmoves.journal import open_reader

STEP = 600.0  # s
STEPS = 144  # in 24 hours


class Timeline:
    """Counts of files by section; each update only reads the tasks finished since the last one. One thread."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str, str], Counter[int]] = {}  # by daemon, journal and chain
        self._read_until: dict[str, float] = {}

    def update(self, daemons: Iterable[DaemonFiles]) -> list[dict[str, Any]]:
        """Return, for each section, the counts of all steps, the oldest first; the last step is not over yet."""
        last = int(time.time() / STEP)
        first = last - STEPS + 1
        for files in daemons:
            self._read(files, first * STEP)
        return [
            {"daemon": name, "journal": journal, "chain": chain, "step": STEP, "end": (last + 1) * STEP}
            | {"counts": [counts[number] for number in range(first, last + 1)]}
            for (name, journal, chain), counts in sorted(self._counts.items())
        ]

    def _read(self, files: DaemonFiles, begin: float) -> None:
        since = max(begin, self._read_until.get(files.journal, 0.0))
        try:
            with open_reader(files.where) as reader:
                now = reader.now()
                rows = reader.count_finished(since, now, STEP)
        except JournalError:
            return  # the state of the daemon says why
        self._read_until[files.journal] = now
        for chain, number, count in rows:
            counts = self._counts.setdefault((files.name, files.journal, chain), Counter())
            counts[number] += count
            for old in [one for one in counts if (one + 1) * STEP < begin]:
                del counts[old]
