"""The thread ``monitor``: it evaluates alarms, checks the health, and logs the daily summary."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from trollmoves.config.options import ChainOptions
from trollmoves.errors import JournalError
from trollmoves.journal import DONE, DROPPED, FAILED, Journal
from trollmoves.monitor.alarms import Alarms, ChainState, limits_of
from trollmoves.monitor.commands import AlarmCommands
from trollmoves.monitor.health import CODES, OK, WARNING, Health
from trollmoves.scheduler.task_kinds import EVENTS_BY_KIND, is_about_files

logger = logging.getLogger(__name__)

MAX_INTERVAL = 10.0  # s between two rounds
MIN_INTERVAL = 0.25  # s; an alarm starts at most a quarter of its limit late
COMMIT_TIME = 60.0  # s between the end of a task and its commit, at most
HEALTH_INTERVAL = 10.0  # s between two checks of the health, while it is read
DAY = 86_400.0  # s
LAST_KINDS = {"announced": "announce", "received": "fetch", "delivered": "deliver"}  # by event


class Monitor:
    """Watches one daemon on one thread. It reads the journal on separate connections.

    ``event`` is the kind of task that shows that a chain gets files: "announce", "fetch" or "deliver". ``sections``
    returns the options of the running chains.
    """

    def __init__(
        self,
        journal: Journal,
        event: str,
        sections: Callable[[], Mapping[str, ChainOptions]],
        health: Health,
        facts: Mapping[str, str],
    ) -> None:
        self._journal = journal
        self._event = event
        self._sections = sections
        self.health = health
        self.alarms = Alarms(journal.now())
        self._commands = AlarmCommands(facts)
        self._stopping = threading.Event()
        self._day = time.localtime().tm_yday
        self._last: Mapping[str, float] = {}  # when the chains got their last files
        self._searched = 0.0  # through which time of the journal's clock they are known
        self._health_due = 0.0
        self._thread = threading.Thread(target=self._loop, name="monitor", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread and the commands of alarms."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(2.0)

    def health_report(self) -> dict[str, Any]:
        """Return the health of the daemon with its active alarms. Any thread."""
        report = self.health.of_daemon()
        alarms = self.alarms.active()
        if alarms and report["status"] == OK:
            report |= {"status": WARNING, "code": CODES[WARNING]}
        report["problems"] += [f"[{alarm.chain}] alarm {alarm.name}: {alarm.text}" for alarm in alarms]
        return report | {"alarms": [alarm.facts() for alarm in alarms]}

    def alarm_states(self) -> dict[tuple[str, str], bool]:
        """Return whether each configured alarm is active, by chain and option. Any thread."""
        configured = {
            (name, alarm): False for name, options in self._sections().items() for alarm in limits_of(options)
        }
        return configured | {(alarm.chain, alarm.name): True for alarm in self.alarms.active()}

    def _loop(self) -> None:
        while not self._stopping.is_set():
            try:
                self._round()
            except JournalError as error:
                logger.debug("cannot watch the journal: %s", error)  # the scheduler logs errors of the journal
            except Exception:  # the next round may work
                logger.exception("unexpected error in the monitor, trying again in %.0f s", MAX_INTERVAL)
            self._stopping.wait(self._interval())
        self._commands.stop()

    def _interval(self) -> float:
        if self._commands.busy:
            return MIN_INTERVAL
        limits = [limit for options in self._sections().values() for limit in (options.expect_every, options.max_age)]
        return max(MIN_INTERVAL, min([MAX_INTERVAL, *(limit / 4 for limit in limits if limit)]))

    def _round(self) -> None:
        self._commands.poll()
        sections = self._sections()
        if any(map(limits_of, sections.values())) or self.alarms.active():
            for change in self.alarms.update(sections, self._states(sections), self._journal.now()):
                self._commands.add(change)
        if time.monotonic() >= self._health_due and (self.health.is_wanted or not self._health_due):
            self.health.check()
            self._health_due = time.monotonic() + HEALTH_INTERVAL
        if (today := time.localtime().tm_yday) != self._day:
            self._day = today
            self.log_summary()

    def _states(self, sections: Mapping[str, ChainOptions]) -> dict[str, ChainState]:
        statistics = self._journal.statistics()
        self._read_last(sections)
        states = {}
        for name in sections:
            lanes = [lane for lane in statistics.backlog if lane.chain == name and is_about_files(lane.lane)]
            failed = sum(count for (chain, _), count in statistics.failed.items() if chain == name)
            oldest = min((lane.oldest for lane in lanes), default=0.0)
            states[name] = ChainState(self._last.get(name, 0.0), sum(lane.count for lane in lanes), oldest, failed)
        return states

    def _read_last(self, sections: Mapping[str, ChainOptions]) -> None:
        """Read when each chain with a limit got its last file; of a known chain, only what finished since then."""
        searched = self._journal.now() - COMMIT_TIME
        found = {}
        for name, options in sections.items():
            if options.expect_every:
                since = self._searched if name in self._last else 0.0
                last = self._journal.last_file_time(name, self._event, since)
                found[name] = max(last, self._last.get(name, 0.0))
        self._last, self._searched = found, searched

    def log_summary(self) -> None:
        """Log one line about the last 24 hours of each chain."""
        now = self._journal.now()
        counts = self._journal.count_finished(now - DAY)
        for name, state in self._states(self._sections()).items():
            own = {(kind, end): count for (chain, kind, end), count in counts.items() if chain == name}
            parts = [
                f"{own.get((kind, DONE), 0)} {word}" for kind, word in EVENTS_BY_KIND.items() if self._shows(kind, own)
            ]
            parts += [
                f"{sum(count for (_, end), count in own.items() if end == state_)} {word}"
                for state_, word in ((FAILED, "failed"), (DROPPED, "dropped"))
            ]
            oldest = f", the oldest for {now - state.oldest:.0f} s" if state.oldest else ""
            logger.info("[%s] last 24 h: %s; %d waiting%s", name, ", ".join(parts), state.waiting, oldest)

    def _shows(self, kind: str, counts: Mapping[tuple[str, int], int]) -> bool:
        return kind == self._event or (kind, DONE) in counts
