"""Waits for an event with a deadline, so that no test depends on a sleep being long enough."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

TIMEOUT_FACTOR = (
    5  # deadlines are what an idle machine needs at most; one with much to do may take so many times as long
)
LONGEST = (
    120  # s that patience makes of a deadline at most: a test that hangs, and is run again, is not to cost an hour
)


def until(condition: Callable[[], T], seconds: float = 20, what: str = "", patience: float = TIMEOUT_FACTOR) -> T:
    """Return the first true result of ``condition``; fail when there is none within ``timeout`` times ``seconds``.

    Patience ends after ``LONGEST``, but for deadlines that are longer themselves.
    """
    seconds = max(seconds, min(seconds * patience, LONGEST))
    deadline = time.monotonic() + seconds
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what or condition}")
        time.sleep(0.01)
