"""Batching when events wait, and the measured rate."""

from __future__ import annotations

import time

import pytest

from trollmoves.tests.helpers.waiting import until
from trollmoves.utils.rate import BATCH_FROM, BATCHING_DELAY, RateMeter, collect


@pytest.mark.parametrize("together", [BATCH_FROM, 1000])
def test_events_that_waited_together_are_followed_by_a_rest(together: int) -> None:
    """After a round with many events, more are collected."""
    began = time.monotonic()
    collect(together)
    assert time.monotonic() - began >= BATCHING_DELAY


def test_single_events_are_not_delayed() -> None:
    """Events that arrive one at a time are not delayed, however fast they come."""
    took = []
    for _ in range(1000):
        began = time.monotonic()
        collect(1)
        took.append(time.monotonic() - began)
    assert min(took) < BATCHING_DELAY / 10


def test_rate_falls() -> None:
    """The rate falls when the events stop."""
    pace = RateMeter()
    assert not pace.is_high()
    pace.record(10**15)  # fast for one second, however late the next look comes
    assert pace.is_high()
    until(lambda: not pace.is_high())
