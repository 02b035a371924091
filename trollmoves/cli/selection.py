"""Which daemons a subcommand is about: their configuration files and journals."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from typing import Any

from trollmoves.config.config_file import Configuration
from trollmoves.config.daemon_kinds import KINDS, READERS, WITHOUT_JOURNAL, detect_kind, section_names
from trollmoves.errors import ConfigError, JournalError
from trollmoves.journal import (
    JOURNAL_SUFFIX,
    LOCK_SUFFIX,
    control_path,
    fallback_directories,
    find_journal,
    is_shared,
    open_reader,
    state_directories,
)
from trollmoves.net import urls


@dataclass(frozen=True)
class DaemonFiles:
    """The files of one daemon, running or not.

    ``config`` is an empty string if only the journal is known. ``configuration`` is None if the file is invalid as a
    whole; then ``problem`` is the reason. ``sections`` has the names of all sections, also of invalid ones.
    """

    kind: str
    config: str
    journal: str
    sections: tuple[str, ...] = ()
    configuration: Configuration[Any] | None = None
    problem: str = ""
    url: str = ""  # of a journal that several hosts share, maybe with a password; ``journal`` is without it

    @property
    def where(self) -> str:
        """The path or URL with which the journal is opened."""
        return self.url or self.journal

    @property
    def control(self) -> str:
        """The path next to which the control socket is."""
        return control_path(self.where, self.config, self.kind)

    @property
    def name(self) -> str:
        """The name for people: the configuration file without directories, else the journal."""
        return os.path.basename(self.config or self.journal)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments CONFIG, the option ``-c CONFIG`` with the same effect, and ``--kind``."""
    text = "configuration file of a daemon"
    parser.add_argument("config", nargs="*", action="extend", default=[], metavar="CONFIG", help=text)
    parser.add_argument("-c", "--config", action="append", default=[], metavar="CONFIG", help=f"{text}, as CONFIG")
    text = "the daemon that the file is for (default: as its content shows)"
    parser.add_argument("--kind", choices=KINDS, help=text)


def daemon_of(config: str, kind: str | None = None, *, needs_journal: bool = True) -> DaemonFiles:
    """Return the files of the daemon with this configuration file; ConfigError if it is unreadable or ambiguous.

    With ``needs_journal`` a file of a command without a journal is an error too.
    """
    config = os.path.abspath(config)
    kind = kind or detect_kind(config)
    if needs_journal and kind in WITHOUT_JOURNAL:
        raise ConfigError(f"it is for {kind}.py, which has no journal: use trollmoves check or explain", file=config)
    return _load(config, kind)


def selected(arguments: argparse.Namespace, *, need_journals: bool = True) -> list[DaemonFiles]:
    """Return the daemons that the arguments name; without a name all with a journal in a usual directory.

    Raises:
        ConfigError: a configuration file cannot be read, or no daemon was found.
    """
    found = _named(arguments, need_journals=need_journals) or known_daemons()
    if not found:
        directories = ", ".join(state_directories())
        raise ConfigError(f"no daemon found in {directories}: name its configuration file")
    return found


def selected_started(arguments: argparse.Namespace) -> list[DaemonFiles]:
    """Return the daemons that the arguments name; without a name all that have started with a usual journal.

    Without a name, the files are not read, so the names of configuration files are unknown. Raises as ``daemon_of``.
    """
    return _named(arguments) or [
        DaemonFiles(_kind_of(path), "", path) for path in _journals() if os.path.exists(f"{path}{LOCK_SUFFIX}")
    ]


def _named(arguments: argparse.Namespace, *, need_journals: bool = True) -> list[DaemonFiles]:
    return [daemon_of(config, arguments.kind, needs_journal=need_journals) for config in arguments.config]


def known_daemons() -> list[DaemonFiles]:
    """Return the daemons with a journal in one of the usual directories."""
    return [_daemon_with(path) for path in _journals()]


def _journals() -> list[str]:
    """Return the paths of the journals in the usual directories."""
    return [
        os.path.join(directory, name)
        for directory in state_directories()
        if os.path.isdir(directory) and os.access(directory, os.R_OK) and _is_trusted(directory)
        for name in sorted(os.listdir(directory))
        if name.endswith(JOURNAL_SUFFIX)
    ]


def _kind_of(journal: str) -> str:
    """Return the kind of daemon in the name of a journal."""
    return os.path.basename(journal).partition("-")[0]


def _is_trusted(directory: str) -> bool:
    """Return True unless a directory is in a place where each user may create it, and another user has."""
    return directory not in fallback_directories() or os.stat(directory).st_uid == os.getuid()


def _daemon_with(journal: str) -> DaemonFiles:
    """Return the daemon that has written a journal."""
    kind = _kind_of(journal)
    try:
        with open_reader(journal) as reader:
            kind, config = reader.meta.get("role", kind), reader.meta.get("config", "")
    except JournalError as error:
        return DaemonFiles(kind, "", journal, problem=str(error))
    if kind not in READERS or not os.path.exists(config):
        return DaemonFiles(kind, "", journal, problem=f"{config} does not exist" if config else "")
    try:
        return _load(config, kind, journal)
    except ConfigError as error:
        return DaemonFiles(kind, config, journal, problem=str(error))


def _load(config: str, kind: str, journal: str = "") -> DaemonFiles:
    """Return the files of a daemon; its configuration names the journal if ``journal`` does not."""
    found, option = None, ""
    names = tuple(section_names(config))
    try:
        found = READERS[kind](config)
        option, problem = found.process.journal, "; ".join(map(str, found.problems))
    except ConfigError as error:  # the journal of a daemon that does not start is of interest too
        problem = str(error)
    journal = journal or find_journal(option, config, kind)
    url = journal if is_shared(journal) else ""
    return DaemonFiles(kind, config, urls.redacted(url) or journal, names, found, problem, url)
