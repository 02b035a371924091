"""One process: its arguments, signals, chains, start, reload and stop."""

from __future__ import annotations

import argparse
import logging
import os
import resource
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from trollmoves import __version__
from trollmoves.config import config_file
from trollmoves.config.options import ChainOptions, ProcessOptions
from trollmoves.errors import ConfigError, JournalFull, StartError, TrollmovesError
from trollmoves.journal import Compactors, Journal, Retention, journal_path
from trollmoves.scheduler.scheduler import Scheduler
from trollmoves.utils import logs
from trollmoves.watch import FileWatch

logger = logging.getLogger(__name__)

PRUNE_INTERVAL = 60.0  # s between rounds of the journal's upkeep
DISK_SPACE_POLL = 5.0  # s between looks whether there is room for a journal
PRUNE_STEP_PAUSE = 0.02  # s between the steps of a round, each of which takes a few ms
DAY = 86_400.0  # s
MAX_OPEN_FILES = 65_536
WORLD_WRITABLE = 0o002  # the right to write that nothing made here gives to everyone, whatever the umask
SWITCH_INTERVAL = (
    0.001  # s after which a busy thread lets another one have Python; its default of 5 ms would be our latency
)

O = TypeVar("O", bound=ChainOptions)  # noqa: E741  (one letter, as is the custom for a type)


class Chain(Protocol):
    """One section of a configuration, running."""

    name: str

    def start(self) -> None:
        """Begin; StartError when it cannot."""

    def stop(self) -> None:
        """End in order; may be called on one that did not start."""


@dataclass(frozen=True)
class Runtime:
    """What all chains of a process share."""

    options: ProcessOptions
    journal: Journal
    workers: Scheduler


class Daemon(ABC, Generic[O]):
    """A process with chains. Only its main thread starts, reloads and stops anything."""

    role: ClassVar[str]
    options: type[O]
    compactors: ClassVar[Compactors] = {}  # what is left of a task that was done some time ago, by kind

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self._file: str = arguments.config_file
        self._orders: SimpleQueue[str] = SimpleQueue()
        self._chains: dict[str, Chain] = {}
        self._ending = False
        self._trouble = ""  # why the last chain that did not start did not
        self._chains_lock = threading.Lock()  # the dict: heartbeats look at it

    # -- what each daemon is

    @abstractmethod
    def make_chain(self, options: O, house: Runtime) -> Chain:
        """Make the chain of one section; StartError when it cannot run."""

    def open_shared(self, house: Runtime) -> None:
        """Open what all chains of this daemon share; StartError when it cannot be had."""

    def close_shared(self) -> None:
        """Close it again."""

    def startup_warning(self, chains: Iterable[O]) -> str:  # noqa: ARG002
        """Give one line that whoever runs these chains should know; empty when there is nothing."""
        return ""

    def read_config(self) -> config_file.Configuration[O]:
        """Read the configuration file; ConfigError when it cannot be used."""
        return config_file.read(self._file, self.options)

    def check_report(self, found: config_file.Configuration[O]) -> str:
        """Give what ``--check`` prints."""
        return config_file.check_report(found)

    def paused_input(self) -> AbstractContextManager[None]:
        """Hold back what comes in for all chains together, while some of them start or stop."""
        return nullcontext()

    @classmethod
    def make_parser(cls, description: str) -> argparse.ArgumentParser:
        """Give a parser of the arguments that all daemons have."""
        parser = argparse.ArgumentParser(description=description)
        add = parser.add_argument
        add("config_file", help="the configuration file")
        add("--check", action="store_true", help="say what would run, and what is wrong, and end")
        add("-c", "--log-config", metavar="FILE", help="configuration of the log (YAML, dictConfig)")
        add("-l", "--log", metavar="FILE", help="log to this file instead of standard error")
        add("-v", "--verbose", action="store_true", help="log more")
        add("--version", action="version", version=f"trollmoves {__version__}")
        return parser

    def running_chains(self) -> list[Chain]:
        """Give the chains that run; any thread."""
        with self._chains_lock:
            return list(self._chains.values())

    # -- its life

    def run(self) -> int:
        """Run until a signal ends it; give the exit status."""
        try:
            if self.arguments.check:
                return self._check()
            os.umask(os.umask(0) | WORLD_WRITABLE)
            logs.set_up(file=self.arguments.log, config=self.arguments.log_config, verbose=self.arguments.verbose)
            follower = FileWatch(self._file, lambda: self._orders.put("reload"))
            follower.start()  # before the file is read for the first time: no change falls in between
            try:
                return self._run_daemon()
            finally:
                follower.stop()
        except TrollmovesError as error:
            logger.debug("because of", exc_info=True)
            print(f"{self.make_parser('').prog}: {error}", file=sys.stderr)  # noqa: T201  (the last word before the end)
            return 1

    def _check(self) -> int:
        found = self.read_config()
        sys.stdout.write(self.check_report(found))
        if advice := self.startup_warning(found.sections.values()):
            sys.stdout.write(f"\n{advice}\n")
        return 1 if found.broken else 0

    def _run_daemon(self) -> int:
        sys.setswitchinterval(SWITCH_INTERVAL)
        _raise_fd_limit()
        current = self.read_config()
        _log_problems(current)
        path = journal_path(current.process.journal or "", self._file, self.role)
        self._listen_to_signals()
        damage = ""
        while journal := self._open_journal(path, current.process.synchronous, damage):
            try:
                current = self._run_chains(current, journal)
            except StartError:
                if not journal.damage:
                    raise
            finally:
                journal.close()
            damage = journal.damage
            if self._ending or not damage:
                break
        return 0

    def _open_journal(self, path: str, synchronous: str, damage: str) -> Journal | None:
        """Open the journal, as soon as there is room for it; None when the process is to end before."""
        told = False
        while True:
            try:
                return Journal(
                    path, synchronous=synchronous, damage=damage, on_damage=lambda: self._orders.put("begin anew")
                )
            except JournalFull as error:
                if not told:
                    logger.error("%s; waiting for room", error)
                told = True
            with suppress(Empty):
                if self._orders.get(timeout=DISK_SPACE_POLL) == "stop":
                    return None

    def _run_chains(self, current: config_file.Configuration[O], journal: Journal) -> config_file.Configuration[O]:
        """Run the chains until this process, or the journal, comes to its end; give what they were made of."""
        house = Runtime(current.process, journal, Scheduler(journal, current.process.workers))
        self.open_shared(house)
        try:
            house.workers.start()
            with self.paused_input():
                for options in current.sections.values():
                    self._start_chain(options, house)
            if not self._chains:
                raise StartError(f"no chain could be started{self._trouble}")
            logger.info("%s %s runs %d chains, journal %s", self.role, __version__, len(self._chains), journal.path)
            if advice := self.startup_warning(current.sections.values()):
                logger.warning("%s", advice)
            return self._command_loop(current, house)
        finally:
            self._stop(house)

    def _listen_to_signals(self) -> None:
        for number, order in ((signal.SIGTERM, "stop"), (signal.SIGINT, "stop"), (signal.SIGHUP, "reload")):
            signal.signal(number, lambda *_, order=order: self._orders.put(order))

    def _command_loop(self, current: config_file.Configuration[O], house: Runtime) -> config_file.Configuration[O]:
        upkeep = _JournalPruner(house, self.compactors)
        while True:
            try:
                order = self._orders.get(timeout=upkeep.seconds_until_due())
            except Empty:
                upkeep.step()
                continue
            if order in ("stop", "begin anew"):
                self._ending = order == "stop"
                if not self._ending:
                    logger.error("the journal is damaged (%s): all chains begin anew", house.journal.damage)
                return current
            with self.paused_input():
                current = self._reload(current, house)

    # -- chains

    def _start_chain(self, options: O, house: Runtime) -> bool:
        chain = None
        house.workers.set_priority(options.name, options.priority)
        try:
            chain = self.make_chain(options, house)
            chain.start()
        except Exception as error:  # one chain's trouble is not the others'
            expected = isinstance(error, TrollmovesError)
            logger.error("[%s] cannot be started: %s", options.name, error, exc_info=not expected)
            self._trouble = f": [{options.name}] {error}"
            if chain:
                self._stop_safely(chain)
            return False
        with self._chains_lock:
            self._chains[options.name] = chain
        logger.info("[%s] started", options.name)
        return True

    def _stop_chain(self, name: str) -> None:
        with self._chains_lock:
            chain = self._chains.pop(name, None)
        if chain is not None:
            self._stop_safely(chain)
            logger.info("[%s] stopped", name)

    @staticmethod
    def _stop_safely(chain: Chain) -> None:
        try:
            chain.stop()
        except Exception:  # what it leaves behind is no reason for the others to stop
            logger.exception("[%s] did not stop in order", chain.name)

    def _reload(self, current: config_file.Configuration[O], house: Runtime) -> config_file.Configuration[O]:
        """Bring what runs into line with the file; what the file does not change is not touched."""
        try:
            new = self.read_config()
        except ConfigError as error:
            logger.error("the configuration is not taken over, what runs goes on: %s", error)
            return current
        _log_problems(new)
        changes = config_file.changes(current, new)
        if changes.process:
            logger.warning("needs a restart to count: %s in [DEFAULT]", ", ".join(changes.process))
        for name in changes.removed:
            self._stop_chain(name)
        for name in changes.changed:
            self._stop_chain(name)
            if not self._start_chain(new.sections[name], house):
                logger.error("[%s] goes on as it was before", name)
                self._start_chain(current.sections[name], house)
        wanted = (*changes.added, *(n for n in changes.unchanged if n not in self._chains))
        for name in wanted:
            self._start_chain(new.sections[name], house)
        logger.info(
            "configuration read again: %d added, %d changed, %d removed, %d as before",
            len(changes.added),
            len(changes.changed),
            len(changes.removed),
            len(changes.unchanged) + len(changes.kept_broken),
        )
        return changes.running

    def _stop(self, house: Runtime) -> None:
        """End in order: hear nothing more, give what runs its time, write down the rest."""
        with self.paused_input():
            for name in list(self._chains):
                self._stop_chain(name)
            if not house.workers.stop(house.options.stop_timeout):
                logger.warning(
                    "transfers were still running after %g s; they are begun anew", house.options.stop_timeout
                )
            self.close_shared()
        logger.info("stopped")


class _JournalPruner:
    """Keeps the journal small, by a small step at a time; the main thread's."""

    def __init__(self, house: Runtime, remains: Compactors) -> None:
        options = house.options
        self._journal = house.journal
        self._remains = remains
        self._keep = Retention(
            options.keep_finished * DAY,
            options.keep_announcements * DAY,
            options.max_finished,
            options.max_announcements,
        )
        self._steps: Iterator[int] = iter(())
        self._next = time.monotonic() + PRUNE_INTERVAL

    def seconds_until_due(self) -> float:
        """Give the seconds until the next step."""
        return max(0.0, self._next - time.monotonic())

    def step(self) -> None:
        """Take the next step, the first one of a new round after the last one of a round."""
        try:
            done = next(self._steps, None)
        except TrollmovesError as error:
            logger.debug("the journal is not made smaller: %s", error)  # whoever has to write says so louder
            done = None
        if done is None:
            self._steps = self._journal.prune(self._keep, self._remains)
        self._next = time.monotonic() + (PRUNE_INTERVAL if done is None else PRUNE_STEP_PAUSE)


def _raise_fd_limit() -> None:
    """Use as many descriptors as this process may have: each request that is open has a socket."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < MAX_OPEN_FILES and soft != hard:
        most = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _log_problems(found: config_file.Configuration[Any]) -> None:
    for warning in found.warnings:
        logger.warning("%s", warning)
    for problem in found.problems:
        logger.error("%s", problem)
