"""Alarms of a chain: it gets no files, its files wait for too long, or too many have failed."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from trollmoves.config.options import ChainOptions
from trollmoves.utils.texts import counted

logger = logging.getLogger(__name__)

EXPECT_EVERY, MAX_AGE, MAX_FAILED = "expect_every", "max_age", "max_failed"  # the options
START_GRACE = 60.0  # s after the start without the alarm of a silent chain: a client first requests missed files


class ChainState(NamedTuple):
    """The values that the alarms of a chain compare. Times are seconds since the epoch, by the journal's clock."""

    last_file: float  # 0 if none is known
    waiting: int
    oldest: float  # when the oldest waiting task was created; 0 without waiting tasks
    failed: int


@dataclass(frozen=True, slots=True)
class Alarm:
    """One alarm: the chain, the option that sets its limit, its start and its facts."""

    chain: str
    name: str
    since: float  # s since the epoch
    value: float  # in the unit of the option
    limit: float
    text: str

    def facts(self) -> dict[str, Any]:
        """Return the alarm for JSON."""
        return {
            "chain": self.chain,
            "alarm": self.name,
            "since": self.since,
            "value": self.value,
            "limit": self.limit,
            "text": self.text,
        }


class Change(NamedTuple):
    """The start or the end of an alarm."""

    alarm: Alarm
    started: bool
    command: tuple[str, ...]


def limits_of(options: ChainOptions) -> list[str]:
    """Return the names of the limits that a section has."""
    found = {
        EXPECT_EVERY: options.expect_every > 0,
        MAX_AGE: options.max_age > 0,
        MAX_FAILED: options.max_failed is not None,
    }
    return [name for name, is_set in found.items() if is_set]


class Alarms:
    """The active alarms of all chains. For one thread; any thread may call ``active``."""

    def __init__(self, started: float) -> None:
        self._started = started
        self._active: dict[tuple[str, str], Alarm] = {}

    def active(self) -> list[Alarm]:
        """Return the active alarms, the oldest first. Any thread."""
        return sorted(self._active.copy().values(), key=lambda alarm: alarm.since)

    def update(
        self, sections: Mapping[str, ChainOptions], states: Mapping[str, ChainState], now: float
    ) -> list[Change]:
        """Compare the states of chains with their limits; log each change of an alarm, and return the changes."""
        found = {
            (name, alarm.name): alarm
            for name, state in states.items()
            if name in sections
            for alarm in self._exceeded(sections[name], state, now)
        }
        changes = []
        for key, alarm in found.items():
            if key in self._active:
                self._active[key] = replace(alarm, since=self._active[key].since)
            else:
                self._active[key] = alarm
                logger.warning("[%s] alarm %s: %s", alarm.chain, alarm.name, alarm.text)
                changes.append(Change(alarm, True, sections[alarm.chain].on_alarm))
        for key in [key for key in self._active if key not in found and (key[0] in states or key[0] not in sections)]:
            alarm = self._active.pop(key)
            logger.info("[%s] alarm %s ended after %.0f s", alarm.chain, alarm.name, now - alarm.since)
            command = sections[alarm.chain].on_alarm if alarm.chain in sections else ()
            changes.append(Change(alarm, False, command))
        return changes

    def _exceeded(self, options: ChainOptions, state: ChainState, now: float) -> Iterator[Alarm]:
        name = options.name
        silent = now - (state.last_file or self._started)
        grace = min(options.expect_every, START_GRACE)
        if 0 < options.expect_every < silent and now - self._started > grace:
            last = f"the last one came at {_local(state.last_file)}" if state.last_file else "none is known"
            text = f"no file for {silent:.0f} s, expected every {options.expect_every:g} s; {last}"
            yield Alarm(name, EXPECT_EVERY, now, round(silent, 3), options.expect_every, text)
        age = now - state.oldest if state.oldest else 0.0
        if 0 < options.max_age < age:
            waiting = f"{state.waiting} file{' waits' if state.waiting == 1 else 's wait'}"
            text = f"{waiting}, the oldest for {age:.0f} s; the limit is {options.max_age:g} s"
            yield Alarm(name, MAX_AGE, now, round(age, 3), options.max_age, text)
        if options.max_failed is not None and state.failed > options.max_failed:
            text = f"{counted(state.failed, 'failed file')}; the limit is {options.max_failed}"
            yield Alarm(name, MAX_FAILED, now, state.failed, options.max_failed, text)


def _local(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
