"""A wall clock of daemons that a test can set while they run."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from trollmoves.tests.helpers.daemons import Process

HOUR, DAY, YEAR = 3600, 86_400, 365 * 86_400

# Runs first in each Python process: offsets its wall clock by the seconds in a file.
# libfaketime, which would do that for all of a process, spoils the sleep of Python when its time is set.
_CUSTOM = """
import datetime, time
right = time.time

def wall_clock():
    with open({file!r}) as offset:
        return right() + float(offset.read())

class Kind(type):
    def __instancecheck__(cls, one):
        return isinstance(one, right_datetime) if cls is Datetime else type.__instancecheck__(cls, one)

class Datetime(datetime.datetime, metaclass=Kind):
    @classmethod
    def now(cls, tz=None):
        return right_datetime.fromtimestamp(wall_clock(), tz)

right_datetime, datetime.datetime = datetime.datetime, Datetime
time.time = wall_clock
time.time_ns = lambda: int(wall_clock() * 1e9)
"""


class WallClock:
    """The wall clock of some processes; their monotonic clock is not affected, as after a manual clock change."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "offset"
        self.set(0)
        (folder / "sitecustomize.py").write_text(_CUSTOM.format(file=str(self._file)))
        self._path = str(folder)

    def set(self, seconds: float) -> None:
        """Set the clock's offset from the right time in seconds."""
        new = self._file.with_suffix(".new")
        new.write_text(str(seconds))
        new.replace(self._file)

    def set_to(self, moment: float) -> None:
        """Set the clock to a time in seconds since the epoch."""
        self.set(moment - time.time())

    def environment(self, others: Mapping[str, str]) -> dict[str, str]:
        """Return an environment, with this clock, for a process of Python."""
        return {**others, "PYTHONPATH": os.pathsep.join([self._path, others["PYTHONPATH"]])}

    def of(self, *processes: Process) -> None:
        """Give processes, which are not started yet, this clock."""
        for process in processes:
            process.environment = self.environment(process.environment)
