"""How many lines an outage takes in the log."""

from __future__ import annotations

import pytest

from trollmoves.utils.outage_log import OutageLog

DAY = 86_400  # s


class Clock:
    """A clock that is set by the test."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


@pytest.mark.parametrize("interval", [0.1, 1, 15, 120, 3599])
def test_day_long_outage(interval: float) -> None:
    """An outage of one day takes fewer than 50 lines, however often an attempt fails; the last one counts all."""
    clock = Clock()
    log, lines, failures = OutageLog(clock=clock), [], 0
    while clock.now < DAY:
        failures += 1
        lines.append(log.admit("the host"))
        clock.now += interval
    logged = [line for line in lines if line is not None]
    assert 20 < len(logged) < 50
    end = log.end()
    assert end is not None
    assert f"({failures} failures in {DAY}" in end.replace(f"{clock.now:.0f}", str(DAY))


def test_causes() -> None:
    """Each cause has separate lines, and the end of an outage resets them."""
    log = OutageLog(clock=Clock())
    assert [log.admit("first"), log.admit("first"), log.admit("second")] == ["", None, ""]
    assert log.end() == " (3 failures in 0 s)"
    assert log.end() is None
    assert log.admit("first") == ""
