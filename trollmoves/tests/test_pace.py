"""What comes fast gathers."""

from __future__ import annotations

import time

from trollmoves.pace import FAST, REST, WINDOW, Pace
from trollmoves.tests.waiting import until


def test_what_comes_slowly_is_not_held_up() -> None:
    """Nobody rests for things that come now and then."""
    pace = Pace()
    lasted = []
    for _ in range(20):
        began = time.monotonic()
        pace.rest(1)
        lasted.append(time.monotonic() - began)
    assert min(lasted) < REST


def test_what_comes_fast_gathers() -> None:
    """There is a rest after each round as long as things come fast."""
    pace = Pace()
    for _ in range(3):
        began = time.monotonic()
        pace.rest(int(FAST * WINDOW) + 1)
        assert time.monotonic() - began >= REST


def test_fast_is_now() -> None:
    """What came fast and comes no more is not fast."""
    pace = Pace()
    assert not pace.is_fast()
    pace.count(10**15)  # fast for one second, however late the next look comes
    assert pace.is_fast()
    until(lambda: not pace.is_fast())
