"""Waits for an event with a deadline, so that no test depends on a sleep being long enough."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

TIMEOUT_FACTOR = 5  # deadlines suit an idle machine; a busy machine may take this factor longer
LONGEST = 120  # s; upper limit of an extended deadline, so that a hanging test does not cost an hour


def until(condition: Callable[[], T], seconds: float = 20, what: str = "", timeout_factor: float = TIMEOUT_FACTOR) -> T:
    """Return the first true result of ``condition``; fail if there is none within ``timeout_factor`` times ``seconds``.

    The extended deadline is at most ``LONGEST``, except when ``seconds`` itself is longer.
    """
    seconds = max(seconds, min(seconds * timeout_factor, LONGEST))
    deadline = time.monotonic() + seconds
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what or condition}")
        time.sleep(0.01)
