"""Batching at high rates."""

from __future__ import annotations

import time

from trollmoves.tests.helpers.waiting import until
from trollmoves.utils.rate import BATCHING_DELAY, HIGH_RATE, WINDOW, RateMeter


def test_low_rate_is_not_delayed() -> None:
    """A low rate causes no delay."""
    pace = RateMeter()
    lasted = []
    for _ in range(20):
        began = time.monotonic()
        pace.throttle(1)
        lasted.append(time.monotonic() - began)
    assert min(lasted) < BATCHING_DELAY


def test_high_rate_is_batched() -> None:
    """At a high rate there is a delay after each round."""
    pace = RateMeter()
    for _ in range(3):
        began = time.monotonic()
        pace.throttle(int(HIGH_RATE * WINDOW) + 1)
        assert time.monotonic() - began >= BATCHING_DELAY


def test_rate_falls() -> None:
    """The rate falls when the events stop."""
    pace = RateMeter()
    assert not pace.is_high()
    pace.record(10**15)  # fast for one second, however late the next look comes
    assert pace.is_high()
    until(lambda: not pace.is_high())
