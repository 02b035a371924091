"""Names and contents of satellite files, as at a receiving station."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import NamedTuple

MIN_SIZE, MAX_SIZE = 1_000, 50_000  # bytes
SLOT = timedelta(minutes=15)
GRANULE = timedelta(seconds=85.4)

_SEVIRI_CHANNELS = (
    *("VIS006", "VIS008", "IR_016", "IR_039", "WV_062", "WV_073", "IR_087", "IR_097", "IR_108", "IR_120", "IR_134"),
)
_VIIRS_DATASETS = (*(f"SVI{n:02d}" for n in range(1, 6)), *(f"SVM{n:02d}" for n in range(1, 17)), "GITCO", "GMTCO")


class Segment(NamedTuple):
    """A file to create."""

    name: str
    content: bytes


def segments(count: int, seed: int = 20) -> Iterator[Segment]:
    """Yield files: SEVIRI slots, each followed by a VIIRS granule; the same contents for the same seed."""
    chance = random.Random(seed)  # noqa: S311  (contents, not secrets)
    for name in islice(_names(datetime.now(UTC)), count):
        yield Segment(name, chance.randbytes(chance.randint(MIN_SIZE, MAX_SIZE)))


def _names(now: datetime) -> Iterator[str]:
    slot = now.replace(minute=now.minute // 15 * 15, second=0, microsecond=0) - timedelta(hours=6)
    start = slot
    orbit = 41_234
    while True:
        yield from _seviri_slot(slot)
        yield from _viirs_granule(start, orbit)
        slot += SLOT
        start += GRANULE


def _seviri_slot(time: datetime) -> Iterator[str]:
    """Yield the 114 files of one repeat cycle: prologue, segments of every channel, epilogue."""
    yield _seviri("_", "PRO", time)
    for segment in range(1, 9):
        for channel in _SEVIRI_CHANNELS:
            yield _seviri(channel, f"{segment:06d}", time)
    for segment in range(1, 25):
        yield _seviri("HRV", f"{segment:06d}", time)
    yield _seviri("_", "EPI", time)


def _seviri(channel: str, segment: str, time: datetime) -> str:
    return f"H-000-MSG4__-MSG4________-{channel:_<8}_-{segment:_<9}-{time:%Y%m%d%H%M}-__"


def _viirs_granule(start: datetime, orbit: int) -> Iterator[str]:
    end, created = start + GRANULE, start + timedelta(minutes=22)
    for dataset in _VIIRS_DATASETS:
        yield (
            f"{dataset}_j01_d{start:%Y%m%d}_t{_tenths(start)}_e{_tenths(end)}_b{orbit:05d}"
            f"_c{created:%Y%m%d%H%M%S%f}_oebc_ops.h5"
        )


def _tenths(time: datetime) -> str:
    return f"{time:%H%M%S}{time.microsecond // 100_000}"
