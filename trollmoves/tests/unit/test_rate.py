"""What comes fast gathers."""

from __future__ import annotations

import time

from trollmoves.tests.helpers.waiting import until
from trollmoves.utils.rate import BATCHING_DELAY, HIGH_RATE, WINDOW, RateMeter


def test_what_comes_slowly_is_not_held_up() -> None:
    """Nobody rests for things that come now and then."""
    pace = RateMeter()
    lasted = []
    for _ in range(20):
        began = time.monotonic()
        pace.throttle(1)
        lasted.append(time.monotonic() - began)
    assert min(lasted) < BATCHING_DELAY


def test_what_comes_fast_gathers() -> None:
    """There is a rest after each round as long as things come fast."""
    pace = RateMeter()
    for _ in range(3):
        began = time.monotonic()
        pace.throttle(int(HIGH_RATE * WINDOW) + 1)
        assert time.monotonic() - began >= BATCHING_DELAY


def test_fast_is_now() -> None:
    """What came fast and comes no more is not fast."""
    pace = RateMeter()
    assert not pace.is_high()
    pace.record(10**15)  # fast for one second, however late the next look comes
    assert pace.is_high()
    until(lambda: not pace.is_high())
