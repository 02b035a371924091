"""Measures the load by other processes, for tests that need an idle machine."""

from __future__ import annotations

import os
import resource
from collections import defaultdict
from contextlib import suppress

BUSY_SHARE = 0.2  # share of the processors; above it a measurement is not valid
TICKS = os.sysconf("SC_CLK_TCK")  # a second


class OtherLoad:
    """Processor time used by processes outside this process tree since this object was made."""

    def __init__(self) -> None:
        self._begin = _used()

    def share(self) -> float:
        """Return their share, 0 to 1."""
        all_time, busy, own = (now - then for now, then in zip(_used(), self._begin, strict=True))
        return max(0.0, busy - own) / max(all_time, 0.01)


def _used() -> tuple[float, float, float]:
    """Return processor seconds: in total, busy (with time stolen by the hypervisor), and used by this process tree."""
    with open("/proc/stat", encoding="ascii") as file:
        times = [int(ticks) / TICKS for ticks in file.readline().split()[1:9]]
    ours = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    idle = times[3] + times[4]  # the fifth is waiting for a disk
    return sum(times), sum(times) - idle, sum(one.ru_utime + one.ru_stime for one in ours) + _used_by_descendants()


def _used_by_descendants() -> float:
    """Return the seconds of those that live, and of their children that they have waited for."""
    seconds: dict[int, float] = {}
    children = defaultdict(list)
    for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
        with suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
            children[int(fields[1])].append(pid)
            seconds[pid] = sum(map(int, fields[11:15])) / TICKS
    family = [os.getpid()]
    for one in family:
        family += children[one]
    return sum(seconds[pid] for pid in family[1:])
