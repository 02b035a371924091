"""The running sections of a configuration: their interface, the state that they share, start, reload and stop."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from trollmoves.config import config_file
from trollmoves.config.config_file import Configuration
from trollmoves.config.options import ChainOptions, ProcessOptions
from trollmoves.errors import JournalError, StartError, TrollmovesError
from trollmoves.journal import Journal, Task
from trollmoves.matching.patterns import Origin
from trollmoves.monitor.health import Health
from trollmoves.scheduler.lanes import ChainPolicy, FileStats
from trollmoves.scheduler.scheduler import Scheduler
from trollmoves.spool import Spool
from trollmoves.utils.texts import counted

logger = logging.getLogger(__name__)

O = TypeVar("O", bound=ChainOptions)  # noqa: E741  (one letter, the custom for a type)


@dataclass(frozen=True)
class Runtime:
    """State shared by all chains of a process."""

    options: ProcessOptions
    journal: Journal
    scheduler: Scheduler
    health: Health
    on_announced: Callable[[str, Sequence[FileStats]], None] | None = None  # counts announced files for the metrics
    spool: Spool | None = None  # keeps messages while a journal that several hosts share cannot be written


class Chain(ABC):
    """A running section of a configuration."""

    name: str

    @abstractmethod
    def start(self) -> None:
        """Start the chain; raise ``StartError`` if it cannot run."""

    @abstractmethod
    def stop(self) -> None:
        """Shut the chain down; also after a failed start."""

    def provider_states(self) -> Mapping[str, bool]:
        """Return whether each provider or publisher is connected, by address. Any thread."""
        return {}

    @property
    def replayed(self) -> int | None:
        """The number of announcements that the chain had missed and requested; None if it receives none. Any thread."""
        return None

    def on_reload(self) -> None:  # noqa: B027  (optional)
        """Repeat what failed, although the options are unchanged: an operator may have repaired the cause."""

    def on_dropped(self, tasks: Sequence[Task]) -> None:  # noqa: B027  (optional)
        """Handle tasks of this chain that an operator dropped. Any thread."""

    def repeat_last_messages(self) -> None:  # noqa: B027  (optional)
        """Publish the last messages of a killed member of the fleet again. Any thread."""


class RunningChains(Generic[O]):
    """The chains of a process. Its main thread starts, reloads and stops them; any thread may iterate over them.

    ``make`` returns the chain of one section; it raises ``StartError`` if the chain cannot run.
    """

    def __init__(
        self, configuration: Configuration[O], journal: Journal, scheduler: Scheduler, make: Callable[[O], Chain]
    ) -> None:
        self.configuration = configuration  # that runs; replaced, never modified
        self.start_errors: Mapping[str, str] = {}  # why chains do not run, the last one last; replaced, never modified
        self._journal = journal
        self._scheduler = scheduler
        self._make = make
        self._running: dict[str, tuple[Chain, O]] = {}
        self._lock = threading.Lock()  # guards the dict

    def __iter__(self) -> Iterator[Chain]:
        with self._lock:
            return iter([chain for chain, _ in self._running.values()])

    def __len__(self) -> int:
        return len(self._running)

    def __str__(self) -> str:
        return counted(len(self), "chain")

    @property
    def sections(self) -> tuple[str, ...]:
        """The names of all sections, also of those that do not run."""
        return tuple({**self.configuration.sections, **self.configuration.broken})

    def options(self) -> dict[str, O]:
        """Return the options of the running chains by name. Any thread."""
        with self._lock:
            return {name: options for name, (_, options) in self._running.items()}

    def missing(self) -> set[str]:
        """Return the names of the sections that do not run. Any thread."""
        return set(self.sections) - self.options().keys()

    def origins(self) -> dict[str, str]:
        """Return the watched directories by chain, without their subdirectories. Any thread."""
        return {
            name: Origin(origin).root
            for name, options in self.options().items()
            if (origin := getattr(options, "origin", None))
        }

    def start(self) -> None:
        """Start the chains of all sections; raise ``StartError`` if none can run."""
        for options in self.configuration.sections.values():
            self._start(options)
        if not self._running:
            reason = "".join(f": [{name}] {error}" for name, error in list(self.start_errors.items())[-1:])
            raise StartError(f"{self.configuration.file}: no chain could be started{reason}")

    def reload(self, new: Configuration[O]) -> None:
        """Start, stop and restart the chains that differ from a configuration."""
        old = self.configuration
        changes = config_file.changes(old, new)
        if changes.process:
            logger.warning("changes in [DEFAULT] take effect after a restart: %s", ", ".join(changes.process))
        for name in changes.removed:
            self._stop(name)
        changed = [name for name in changes.changed if self._replace(old.sections[name], new.sections[name])]
        added = [name for name in changes.added if self._start(new.sections[name])]
        unchanged = [name for name in changes.unchanged if self._retry(new.sections[name])]
        failed = len(new.sections) - len(added) - len(changed) - len(unchanged) + len(new.broken)
        logger.log(
            logging.WARNING if failed else logging.INFO,
            "configuration reloaded: %d added, %d changed, %d removed, %d unchanged%s",
            len(added),
            len(changed),
            len(changes.removed),
            len(unchanged),
            f", {failed} failed" if failed else "",
        )
        previous = {name: old.sections[name] for name in changes.changed if name not in changed}
        self.configuration = replace(changes.running, sections={**changes.running.sections, **previous})

    def stop(self) -> None:
        """Stop all chains."""
        for name in list(self._running):
            self._stop(name)

    def on_dropped(self, tasks: Sequence[Task]) -> None:
        """Pass tasks that an operator dropped to their chains. Any thread."""
        for chain in self:
            if own := [task for task in tasks if task.chain == chain.name]:
                chain.on_dropped(own)

    def repeat_last_messages(self) -> None:
        """Publish the last messages of a killed member of the fleet again. Any thread."""
        for chain in self:
            chain.repeat_last_messages()

    def _start(self, options: O) -> bool:
        name, chain = options.name, None
        self._scheduler.set_policy(name, ChainPolicy(options.priority, options.probe_interval))
        errors = {other: text for other, text in self.start_errors.items() if other != name}
        try:
            self._journal.release(name)
            chain = self._make(options)
            chain.start()
        except Exception as error:  # the other chains must run
            expected = isinstance(error, TrollmovesError)
            logger.error("[%s] cannot be started: %s", name, error, exc_info=not expected)
            self.start_errors = {**errors, name: str(error)}
            if chain:
                _stop_safely(chain)
            if isinstance(error, JournalError) and is_away(self._journal, error):
                raise  # the chains start when the journal can be opened again
            return False
        with self._lock:
            self._running[name] = chain, options
        self.start_errors = errors
        logger.info("[%s] started", name)
        return True

    def _stop(self, name: str) -> None:
        with self._lock:
            chain, _ = self._running.pop(name, (None, None))
        if chain is not None:
            _stop_safely(chain)
            logger.info("[%s] stopped", name)

    def _replace(self, old: O, new: O) -> bool:
        """Restart a chain with new options; return False if it continues with the previous ones."""
        for line in config_file.differences(old, new):
            logger.info("[%s] changed %s", new.name, line)
        self._stop(new.name)
        if self._start(new):
            return True
        logger.error("[%s] keeps its previous configuration", new.name)
        self._start(old)
        return False

    def _retry(self, options: O) -> bool:
        """Repeat what failed in a chain with unchanged options; start it if it does not run; return True if it runs."""
        if options.name not in self._running:
            return self._start(options)
        self._scheduler.retry_now(options.name)
        chain, _ = self._running[options.name]
        chain.on_reload()
        return True


def _stop_safely(chain: Chain) -> None:
    try:
        chain.stop()
    except Exception:  # the other chains must stop too
        logger.exception("[%s] unexpected error while stopping", chain.name)


def is_away(journal: Journal, error: StartError) -> bool:
    """Return True if the engine of a shared journal did not respond in time."""
    return bool(journal.life) and isinstance(error, JournalError) and error.temporary
