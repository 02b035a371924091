"""Runs the command of ``on_alarm`` for each change of an alarm, without a shell, with limits."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

from trollmoves.monitor.alarms import Change

logger = logging.getLogger(__name__)

TIME_LIMIT = 30.0  # s; then the command and its children are killed
MAX_RUNNING = 4  # commands at the same time
MAX_QUEUED = 100  # changes that wait for a command; further ones are only logged
OF_THE_SERVICE = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")  # not for children


class _Running(NamedTuple):
    change: Change
    process: subprocess.Popen[bytes]
    deadline: float  # monotonic


class AlarmCommands:
    """The commands of alarms. For one thread, which calls ``poll`` often while ``busy``.

    The facts are in the environment: TROLLMOVES_CHAIN, _ALARM (the option), _STATE ("started" or "ended"), _TEXT,
    _VALUE, _LIMIT, _SINCE (s since the epoch), and those of ``facts``. The standard streams are /dev/null.
    """

    def __init__(self, facts: Mapping[str, str], time_limit: float = TIME_LIMIT) -> None:
        self._facts = facts
        self._time_limit = time_limit
        self._queue: deque[Change] = deque()
        self._running: list[_Running] = []

    @property
    def busy(self) -> bool:
        """True while commands run or wait."""
        return bool(self._running or self._queue)

    def add(self, change: Change) -> None:
        """Run the command of a change, if it has one, now or later."""
        if not change.command:
            return
        if len(self._queue) >= MAX_QUEUED:
            logger.error("[%s] too many alarms, not running %s", change.alarm.chain, change.command[0])
            return
        self._queue.append(change)
        self.poll()

    def poll(self) -> None:
        """Log the failures of ended commands, kill those above the time limit, and start waiting ones."""
        running, self._running = self._running, []
        for item in running:
            if not self._has_ended(item):
                self._running.append(item)
        while self._queue and len(self._running) < MAX_RUNNING:
            self._start(self._queue.popleft())

    def stop(self) -> None:
        """Kill the running commands and forget the waiting ones."""
        self._queue.clear()
        for item in self._running:
            _kill(item.process)
        self._running.clear()

    def _has_ended(self, item: _Running) -> bool:
        status = item.process.poll()
        name = item.change.command[0]
        if status is None and time.monotonic() > item.deadline:
            _kill(item.process)
            logger.error("[%s] killed %s after %g s", item.change.alarm.chain, name, self._time_limit)
            return True
        if status:
            reason = f"with status {status}" if status > 0 else f"by signal {-status}"
            logger.error("[%s] %s ended %s", item.change.alarm.chain, name, reason)
        return status is not None

    def _start(self, change: Change) -> None:
        alarm = change.alarm
        kept = {name: value for name, value in os.environ.items() if name not in OF_THE_SERVICE}
        facts = {
            "chain": alarm.chain,
            "alarm": alarm.name,
            "state": "started" if change.started else "ended",
            "text": alarm.text,
            "value": f"{alarm.value:g}",
            "limit": f"{alarm.limit:g}",
            "since": f"{alarm.since:.3f}",
            **self._facts,
        }
        environment = kept | {f"TROLLMOVES_{name.upper()}": text.replace("\0", " ") for name, text in facts.items()}
        try:
            process = subprocess.Popen(  # noqa: S603  (the command of the configuration, without a shell)
                change.command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            logger.error("[%s] cannot run %s: %s", alarm.chain, change.command[0], error)
            return
        self._running.append(_Running(change, process, time.monotonic() + self._time_limit))


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(1.0)
