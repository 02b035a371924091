"""Numbers and times as short texts for tables."""

from __future__ import annotations

import re
import time
from datetime import datetime

from trollmoves.utils.logs import format_bytes

_DELAY = re.compile(r", next attempt in \d+ s$")
_UNITS = ((86_400.0, "d"), (3600.0, "h"), (60.0, "m"))


def duration(seconds: float | None) -> str:
    """Return a duration of at most four characters, such as ``12s`` or ``3h``; empty for None."""
    if seconds is None:
        return ""
    for length, unit in _UNITS:
        if seconds >= 2 * length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds * 1000:.0f}ms" if 0 < seconds < 0.9995 else f"{seconds:.0f}s"


def age(moment: float | None) -> str:
    """Return the time since a moment, empty for None."""
    return "" if moment is None else duration(max(0.0, time.time() - moment))


def clock(moment: float | None) -> str:
    """Return a moment as local date and time in milliseconds, empty for None."""
    if moment is None:
        return ""
    return datetime.fromtimestamp(moment).astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def lasting(reason: str) -> str:
    """Return the reason of a failure without the delay at its end, which was that of its time."""
    return _DELAY.sub("", reason)


def size(n_bytes: int | None) -> str:
    """Return a number of bytes as text, empty for None."""
    return "" if n_bytes is None else format_bytes(n_bytes)
