"""Alarms start once, keep their start, and end once."""

from __future__ import annotations

import logging

import pytest

from trollmoves.config import parsers
from trollmoves.config.options import TargetOptions
from trollmoves.monitor.alarms import EXPECT_EVERY, MAX_AGE, MAX_FAILED, START_GRACE, Alarms, ChainState

START = 1_000_000.0
QUIET = ChainState(0.0, 0, 0.0, 0)


def options(**values: object) -> TargetOptions:
    """Return the options of a section."""
    return TargetOptions(name="x", **values)  # type: ignore[arg-type]


def changes(alarms: Alarms, section: TargetOptions, state: ChainState, after: float) -> list[tuple[str, bool]]:
    """Return the changes some seconds after the start, as name and whether it started."""
    found = alarms.update({"x": section}, {"x": state}, START + after)
    return [(change.alarm.name, change.started) for change in found]


CASES = {
    EXPECT_EVERY: (options(expect_every=300), ChainState(START - 200, 0, 0, 0), ChainState(START + 390, 0, 0, 0)),
    MAX_AGE: (options(max_age=60), ChainState(0, 2, START + 300, 0), ChainState(0, 2, START + 390, 0)),
    MAX_FAILED: (options(max_failed=0), ChainState(0, 0, 0, 1), QUIET),
}


@pytest.mark.parametrize("name", CASES)
def test_start_and_end(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """An alarm is logged when it starts and when it ends, and is active between."""
    caplog.set_level(logging.INFO)
    section, bad, good = CASES[name]
    alarms = Alarms(START)
    assert changes(alarms, section, bad, 400) == [(name, True)]
    assert changes(alarms, section, bad, 410) == []
    ((alarm),) = alarms.active()
    assert (alarm.since, alarm.limit) == (START + 400, getattr(section, name))
    assert changes(alarms, section, good, 420) == [(name, False)]
    assert not alarms.active()
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert f"[x] alarm {name} ended after 20 s" in caplog.text


def test_without_limits() -> None:
    """Without options no alarm begins."""
    assert changes(Alarms(START), options(), ChainState(1.0, 9, 1.0, 9), 1e6) == []


def test_silence_after_the_start() -> None:
    """A file of an earlier process counts; after a start there is time to request missed files."""
    section = options(expect_every=300)
    assert changes(Alarms(START), section, QUIET, 299) == []
    assert changes(Alarms(START), section, QUIET, 301) == [(EXPECT_EVERY, True)]
    old = ChainState(START - 5000, 0, 0, 0)
    assert changes(Alarms(START), section, old, START_GRACE - 1) == []
    assert changes(Alarms(START), section, old, START_GRACE + 1) == [(EXPECT_EVERY, True)]


def test_removed_section() -> None:
    """The alarms of a section end with it, but not if its state is unknown for a moment."""
    alarms = Alarms(START)
    section, bad, _ = CASES[MAX_FAILED]
    assert changes(alarms, section, bad, 1)
    assert not alarms.update({"x": section}, {}, START + 2)
    (change,) = alarms.update({}, {}, START + 3)
    assert not change.started


def test_command() -> None:
    """A command is split into words without a shell; an incomplete quote is an error."""
    assert parsers.command("mail -s 'a b' $HOME ; x") == ("mail", "-s", "a b", "$HOME", ";", "x")
    with pytest.raises(ValueError, match="complete quotes"):
        parsers.command("mail 'x")
