"""One process: its arguments, its signals, and the parts around its chains."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, ClassVar, Generic, Literal, NoReturn, Protocol, TypeVar

from trollmoves import __version__
from trollmoves.chains import Chain, RunningChains, Runtime, is_away
from trollmoves.config import config_file
from trollmoves.config.environment import environment_warnings
from trollmoves.config.options import SHARE, ChainOptions
from trollmoves.config.probes import probes
from trollmoves.control.server import ControlServer, Handler, Peer
from trollmoves.errors import ConfigError, JournalError, JournalFull, StartError, TrollmovesError
from trollmoves.journal import (
    JOURNAL_SUFFIX,
    Compactors,
    Journal,
    Retention,
    is_shared,
    journal_path,
    network_warning,
    open_journal,
    place_journal,
)
from trollmoves.journal.pruner import JournalPruner
from trollmoves.metrics.service import MetricsService
from trollmoves.metrics.state import DaemonReader
from trollmoves.monitor.health import Health
from trollmoves.monitor.monitor import LAST_KINDS, Monitor
from trollmoves.monitor.status_page import StatusPage
from trollmoves.orders.executor import OrderExecutor, Resender
from trollmoves.orders.order import ACTIONS, OrderRejected
from trollmoves.scheduler.scheduler import Scheduler
from trollmoves.spool import SUFFIX as SPOOL_SUFFIX
from trollmoves.spool import Spool
from trollmoves.standby import Standby, find_holder, open_when_reachable
from trollmoves.status import model
from trollmoves.status.snapshot import Live, sections_of, snapshot
from trollmoves.utils import logs
from trollmoves.utils.log_writer import LogWriter
from trollmoves.utils.process_limits import raise_fd_limit, use_processors
from trollmoves.utils.service_manager import Reporter, ServiceManager
from trollmoves.watch import FileWatch

logger = logging.getLogger(__name__)

DISK_SPACE_POLL = 5.0  # s between two attempts to create the journal on a full disk
REOPEN_DELAY = 5.0  # s before a shared journal is opened again that could not be read or written at the start
DAY = 86_400.0  # s
OVERLAP = 5.0  # s in which the chains connect, after a start without a journal
WORLD_WRITABLE = 0o002  # permission bit that is always masked: no file made here is world-writable
SWITCH_INTERVAL = 0.001  # s; GIL switch interval; the default of 5 ms would dominate latency

O = TypeVar("O", bound=ChainOptions)  # noqa: E741  (one letter, the custom for a type)


class Receiver(Protocol):
    """Receives messages for all chains before they start."""

    def start(self) -> None:
        """Start receiving."""

    def stop(self) -> None:
        """Stop receiving."""


class Daemon(ABC, Generic[O]):
    """A process with chains."""

    chains: RunningChains[O]  # those of the open journal
    role: ClassVar[str]
    last_event: ClassVar[str]  # the event that shows that a chain gets files: announced, received or delivered
    options: type[O]
    resenders: ClassVar[Mapping[str, Resender]] = {}  # how finished transfers are repeated, by kind of task
    compactors: ClassVar[Compactors] = {}  # functions that compact the body of a finished task, by kind

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self._file: str = arguments.config_file
        self._orders: SimpleQueue[str] = SimpleQueue()
        self._ending = False
        self._is_engine_away = False  # of a shared journal, when the chains were to start
        self._lines_dropped: Callable[[], int] = int  # the number of log lines that were dropped
        self._service = ServiceManager()
        self._control = ""  # the path for the control socket
        self._spool: Spool | None = None
        self._receivers: Sequence[Receiver] = ()  # until the chains run; see ``keep_messages``

    # -- hooks of each daemon

    @abstractmethod
    def make_chain(self, options: O, runtime: Runtime) -> Chain:
        """Return the chain of one section; raise ``StartError`` if it cannot run."""

    def open_shared(self, runtime: Runtime) -> None:
        """Open the resources shared by all chains; raise ``StartError`` if one is not available."""

    def keep_messages(
        self,
        found: config_file.Configuration[O],  # noqa: ARG002
        spool: Spool,  # noqa: ARG002
    ) -> Sequence[Receiver]:
        """Return what keeps messages in a spool while the journal cannot be opened."""
        return ()

    def close_shared(self) -> None:
        """Close the shared resources."""

    def startup_warning(self, chains: Iterable[O]) -> str:  # noqa: ARG002
        """Return one line of advice to the operator of these chains, or an empty string."""
        return ""

    def control_handlers(self, runtime: Runtime, orders: OrderExecutor, monitor: Monitor) -> dict[str, Handler]:
        """Return the handlers of the requests at the control socket, by name. They run on its thread."""

        def carry_out(request: Mapping[str, Any], peer: Peer) -> Mapping[str, Any]:
            return orders.execute({**request, "action": request["request"]}, f"{peer.name} (uid {peer.uid})")

        process = {"role": self.role, "version": __version__, "pid": os.getpid(), "config": self._file}
        return {
            "snapshot": lambda *_: self.snapshot(runtime, monitor).as_dict(),
            "logs": lambda *_: {"lines": logs.recent()},
            "health": lambda *_: process | monitor.health_report(),
            **dict.fromkeys(ACTIONS, carry_out),
        }

    def snapshot(self, runtime: Runtime, monitor: Monitor) -> model.Daemon:
        """Return the state of this daemon, its chains and destinations. Any thread."""
        alarms: dict[str, list[str]] = {}
        for alarm in monitor.alarms.active():
            alarms.setdefault(alarm.chain, []).append(f"{alarm.name}: {alarm.text}")
        live = Live(
            pid=os.getpid(),
            version=__version__,
            lanes=runtime.scheduler.lane_states(),
            providers=dict(self.provider_states()),
            running={chain.name for chain in self.chains},
            problems=self.chains.start_errors,
            alarms=alarms,
        )
        config = os.path.abspath(self._file)
        daemon = model.Daemon(os.path.basename(config), self.role, config, runtime.journal.path)
        sections = sections_of(self.chains.configuration, self.chains.sections)
        return snapshot(daemon, sections, live, runtime.journal.open_reader)

    def read_config(self) -> config_file.Configuration[O]:
        """Return the parsed configuration file; raise ``ConfigError`` if it is unusable."""
        return config_file.read(self._file, self.options)

    def check_report(self, found: config_file.Configuration[O]) -> str:
        """Return the text that ``--check`` prints."""
        return config_file.check_report(found)

    def paused_input(self) -> AbstractContextManager[None]:
        """Pause shared input while chains start or stop."""
        return nullcontext()

    @classmethod
    def make_parser(cls, description: str) -> argparse.ArgumentParser:
        """Return a parser for the arguments common to all daemons."""
        parser = argparse.ArgumentParser(description=description)
        add = parser.add_argument
        add("config_file", help="the configuration file")
        add("-c", "--log-config", metavar="FILE", help="logging configuration (YAML, dictConfig)")
        cls.add_arguments(parser)
        return parser

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Add the arguments of all daemons except the files of configuration and of logging."""
        add = parser.add_argument
        add("--check", action="store_true", help="print the chains that would run and all errors, then exit")
        add("--strict", action="store_true", help="with --check: exit with status 1 also if there are warnings")
        add("--connect", action="store_true", help="with --check: log in to all providers and destinations too")
        add("-l", "--log", metavar="FILE", help="log to this file instead of standard error")
        add("-v", "--verbose", action="store_true", help="log more")
        add("--version", action="version", version=f"trollmoves {__version__}")

    def provider_states(self) -> Iterable[tuple[str, Mapping[str, bool]]]:
        """Return whether each provider or publisher is connected, by chain and address. Any thread."""
        return [(chain.name, chain.provider_states()) for chain in self.chains]

    # -- main loop

    def run(self) -> int:
        """Run until a signal stops the process; return the exit status."""
        try:
            if self.arguments.check:
                return self._check()
            os.umask(os.umask(0) | WORLD_WRITABLE)
            return self._run_logged(self.set_up_log())
        except TrollmovesError as error:
            print(f"{self.make_parser('').prog}: {error}", file=sys.stderr)  # noqa: T201  (the final message)
            return 1

    def set_up_log(self) -> LogWriter:
        """Set up the log of the process, and return its writer; raise ``ConfigError`` if it is not usable."""
        return logs.set_up(file=self.arguments.log, config=self.arguments.log_config, verbose=self.arguments.verbose)

    def _check(self) -> int:
        found = self.read_config()
        sys.stdout.write(self.check_report(found))
        if advice := self.startup_warning(found.sections.values()):
            sys.stdout.write(f"\n{advice}\n")
        path = journal_path(found.process.journal, self._file, self.role)
        warnings = [*self.host_warnings(found), *filter(None, [network_warning(path)])]
        sys.stdout.writelines(f"warning: {warning}\n" for warning in warnings)
        failed = self.arguments.connect and not _run_probes(found)
        is_rejected = self.arguments.strict and bool(warnings or found.warnings)
        return 1 if found.broken or failed or is_rejected else 0

    def host_warnings(self, found: config_file.Configuration[O]) -> Sequence[str]:
        """Return the warnings of ``--check`` about this host, where the configuration would run."""
        return environment_warnings(found, getattr(self.arguments, "port", None))

    def _run_logged(self, log: LogWriter) -> int:
        status = 1
        file_watch = FileWatch(self._file, lambda: self._orders.put("reload"))
        try:
            file_watch.start()  # before the first read, so that no change is missed
            status = self._run_daemon(log)
        except TrollmovesError:
            logger.debug("cause of the exit", exc_info=True)
            raise
        finally:
            file_watch.stop()
            if not log.close():  # the interpreter would wait without limit for a log that cannot be written
                os._exit(status)
        return status

    def run_in_script(self) -> None:
        """Run with the log and the signals of the calling script, until KeyboardInterrupt; raise ``StartError``."""
        self._run_daemon(None)

    def _run_daemon(self, log: LogWriter | None) -> int:
        sys.setswitchinterval(SWITCH_INTERVAL)
        raise_fd_limit()
        current = self.read_config()
        _log_problems(current)
        use_processors(current.process.processors)
        path = place_journal(current.process.journal or "", self._file, self.role)
        if warning := network_warning(path):
            logger.warning("%s", warning)
        if log:
            self._lines_dropped = lambda: log.dropped
            self._listen_to_signals(log)
        self._control = path
        if is_shared(path):
            self._control = place_journal("", self._file, self.role)
            self._spool = Spool(self._control.removesuffix(JOURNAL_SUFFIX) + SPOOL_SUFFIX)
        try:
            self._run_with_journals(path, current)
        finally:
            self._stop_receivers()
            if self._spool:
                self._spool.close()
        return 0

    def _run_with_journals(self, path: str, current: config_file.Configuration[O]) -> None:
        """Open the journal and run the chains, again each time that the journal must be opened again."""
        damage, is_unusable = "", False
        while journal := self._open_journal(path, current, damage):
            try:
                current = self._work(current, journal)
            finally:
                damage = journal.damage
                is_unusable = bool(damage or journal.replaced or self._is_engine_away)
                journal.close()
            if self._ending or not is_unusable:
                break

    def _keep_messages(self, current: config_file.Configuration[O]) -> None:
        """Begin to keep messages, because the journal cannot be opened now."""
        if self._spool and not self._receivers:
            self._receivers = self.keep_messages(current, self._spool)
            for receiver in self._receivers:
                receiver.start()

    def _replace_receivers(self) -> None:
        """Stop to keep messages when the chains are connected; those that both receive have no further effect."""
        if self._receivers:
            timer = threading.Timer(OVERLAP, self._stop_receivers)
            timer.daemon = True
            timer.start()

    def _stop_receivers(self) -> None:
        receivers, self._receivers = self._receivers, ()
        for receiver in receivers:
            receiver.stop()

    def _work(self, current: config_file.Configuration[O], journal: Journal) -> config_file.Configuration[O]:
        """Wait for the lease, and run the chains until the process stops or the journal is to be opened again.

        Return their configuration.
        """
        self._is_engine_away = False
        try:
            if self._wait_as_standby(journal):
                with suppress(JournalError):  # the disk may be full; only the command ``trollmoves`` reads it
                    journal.record_owner(self.role, self._file)
                return self._run_chains(current, journal)
        except StartError as error:
            self._is_engine_away = is_away(journal, error)
            if self._is_engine_away:
                logger.error("%s; opening the journal again in %.0f s", error, REOPEN_DELAY)
                self._wait_for_engine()
            elif not (journal.damage or journal.replaced):
                raise
        return current

    def _wait_for_engine(self) -> None:
        self._service.notify(STATUS="waiting for the journal", WATCHDOG=1, EXTEND_TIMEOUT_USEC=int(2e6 * REOPEN_DELAY))
        with suppress(Empty):
            self._ending = self._orders.get(timeout=REOPEN_DELAY) == "stop"

    def _wait_as_standby(self, journal: Journal) -> bool:
        """Wait until no other host works with the journal; return False if the process was stopped first."""
        process = {"role": self.role, "version": __version__, "pid": os.getpid(), "config": self._file}
        handlers: dict[str, Handler] = {
            "snapshot": lambda *_: self._standby_snapshot(journal).as_dict(),
            "logs": lambda *_: {"lines": logs.recent()},
            "health": lambda *_: process | {"status": "ok", "code": 0, "problems": [], "standby": True},
            **dict.fromkeys(ACTIONS, lambda *_: _reject_order(journal)),
        }
        order = Standby(journal, self._orders, self._service, self._control, handlers, self._stop_receivers).wait()
        self._ending = order == "stop"
        return not order

    def _standby_snapshot(self, journal: Journal) -> model.Daemon:
        config = os.path.abspath(self._file)
        members = [model.Member(*row) for row in journal.members()]
        return model.Daemon(
            os.path.basename(config),
            self.role,
            config,
            journal.path,
            model.STANDBY,
            running=True,
            pid=os.getpid(),
            version=__version__,
            members=members,
        )

    def _open_journal(self, path: str, current: config_file.Configuration[O], damage: str) -> Journal | None:
        """Open the journal, waiting for disk space; return None if the process was stopped first."""
        process = current.process
        open_it = partial(
            open_journal,
            path,
            synchronous=process.synchronous,
            damage=damage,
            on_damage=lambda: self._orders.put("restart"),
            sharing=process.fleet == SHARE,
            lease=process.fleet_lease,
        )
        if is_shared(path):
            return open_when_reachable(open_it, self._orders, self._service, partial(self._keep_messages, current))
        logged = False
        while True:
            try:
                with self._service.working("opening the journal"):  # copying the rows of a damaged one takes minutes
                    return open_it()
            except JournalFull as error:
                if not logged:
                    logger.error("%s; waiting for free space", error)
                logged = True
                extension = int(2e6 * DISK_SPACE_POLL)  # µs
                status = "waiting for free space for the journal"
                self._service.notify(STATUS=status, WATCHDOG=1, EXTEND_TIMEOUT_USEC=extension)
            with suppress(Empty):
                if self._orders.get(timeout=DISK_SPACE_POLL) == "stop":
                    return None

    def _run_chains(self, current: config_file.Configuration[O], journal: Journal) -> config_file.Configuration[O]:
        """Run the chains until the process stops or the journal is damaged; return their configuration."""
        metrics = MetricsService.create(current.process)
        counters = metrics.counters if metrics else None
        scheduler = Scheduler(journal, current.process.workers, counters.count_result if counters else None)
        chains = RunningChains(current, journal, scheduler, lambda options: self.make_chain(options, runtime))
        self.chains = chains
        health = Health(journal, scheduler, chains.origins, chains.missing)
        on_announced = counters.count_announced if counters else None
        runtime = Runtime(current.process, journal, scheduler, health, on_announced, self._spool)
        self.open_shared(runtime)
        facts = {"role": self.role, "config": os.path.abspath(self._file)}
        monitor = Monitor(journal, LAST_KINDS[self.last_event], chains.options, health, facts)
        orders = OrderExecutor(journal, scheduler, self.resenders, lambda: chains.sections, chains.on_dropped)
        control = ControlServer(self._control, self.control_handlers(runtime, orders, monitor))
        reporter = Reporter(self._service, lambda: self._status_line(runtime))
        page = StatusPage(current.process, self.role, facts["config"]) if current.process.web_port else None
        scheduler.on_member_killed = chains.repeat_last_messages
        try:
            orders.pause_lanes()
            scheduler.start()
            with self.paused_input():
                chains.start()
            self._replace_receivers()
            orders.start()
            control.start()
            monitor.start()
            logger.info("%s %s runs %s, journal %s", self.role, __version__, chains, journal.path)
            if advice := self.startup_warning(current.sections.values()):
                logger.warning("%s", advice)
            if metrics:
                labels = {"role": self.role, "config": os.path.basename(self._file)}
                metrics.start(self._state_reader(runtime, metrics, monitor), labels)
            if page:
                page.start()
            reporter.start()
            self._command_loop(runtime)
            return chains.configuration
        finally:
            is_continued = journal.damage or journal.replaced or sys.exception()
            reporter.stop(is_final=self._ending or not is_continued)
            monitor.stop()
            if page:
                page.stop()
            if metrics:
                metrics.stop()
            self._stop(runtime)
            control.stop()

    def _status_line(self, runtime: Runtime) -> str:
        """Return the status of this process for the service manager."""
        stopped = len(self.chains.missing())
        missing = f", {stopped} could not be started" if stopped else ""
        return f"{self.chains} running{missing}; {runtime.scheduler.summary()}"

    def _state_reader(self, runtime: Runtime, metrics: MetricsService, monitor: Monitor) -> DaemonReader:
        return DaemonReader(
            journal=runtime.journal,
            counters=metrics.counters,
            event=self.last_event,
            chains=lambda: [chain.name for chain in self.chains],
            lanes=runtime.scheduler.lane_states,
            providers=self.provider_states,
            replayed=lambda: {c.name: count for c in self.chains if (count := c.replayed) is not None},
            alarms=monitor.alarm_states,
            lines_dropped=self._lines_dropped,
        )

    def _listen_to_signals(self, log: LogWriter) -> None:
        def hang_up(*_: object) -> None:
            log.reopen()
            self._orders.put("reload")

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._orders.put("stop"))
        signal.signal(signal.SIGHUP, hang_up)

    def _command_loop(self, runtime: Runtime) -> None:
        options = runtime.options
        retention = Retention(
            options.keep_finished * DAY,
            options.keep_announcements * DAY,
            options.max_finished,
            options.max_announcements,
        )
        pruner = JournalPruner(runtime.journal, retention, self.compactors)
        while True:
            try:
                order = self._orders.get(timeout=pruner.seconds_until_due())
            except Empty:
                pruner.step()
                continue
            if order in ("stop", "restart"):
                self._ending = order == "stop"
                if not self._ending:
                    reason = f"is unusable ({runtime.journal.damage})" if runtime.journal.damage else "was replaced"
                    logger.error("the journal %s, restarting all chains", reason)
                return
            with self.paused_input():
                self._reload()

    def _reload(self) -> None:
        """Read the configuration again and apply it."""
        self._service.notify(RELOADING=1, MONOTONIC_USEC=time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000)
        try:
            new = self.read_config()
            _log_problems(new)
            self.chains.reload(new)
        except ConfigError as error:
            logger.error("configuration not reloaded, the chains keep running unchanged: %s", error)
        finally:
            self._service.notify(READY=1)

    def _stop(self, runtime: Runtime) -> None:
        """Shut down: stop input, wait for running tasks, then close."""
        with self.paused_input():
            self.chains.stop()
            if not runtime.scheduler.stop(runtime.options.stop_timeout):
                logger.warning(
                    "transfers were still running after %g s; they will be restarted", runtime.options.stop_timeout
                )
            self.close_shared()
        logger.info("stopped")


def _reject_order(journal: Journal) -> NoReturn:
    """Reject an order for a standby: the member that works carries it out."""
    holder = find_holder(journal)
    raise OrderRejected(f"this host is a standby: give the order on {holder.name if holder else 'the host that works'}")


def _run_probes(found: config_file.Configuration[Any]) -> bool:
    """Print a line for each probe; return True if all succeeded."""
    succeeded = True
    for probe in probes(found):
        passed, line = probe.result()
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
        succeeded = succeeded and passed
    return succeeded


def nameservers_of(arguments: Sequence[str] | None) -> Sequence[str] | Literal[False] | None:
    """Return the name servers in the values of an argument ``-n``; without a host, or with ``false``, False."""
    if arguments is None:
        return None
    hosts = [host for host in arguments if host.lower() not in ("false", "none", "no", "off", "0", "")]
    return hosts or False


def _log_problems(found: config_file.Configuration[Any]) -> None:
    for warning in found.warnings:
        logger.log(logging.INFO if warning in found.legacy else logging.WARNING, "%s", warning)
    for problem in found.problems:
        logger.error("%s", problem)
