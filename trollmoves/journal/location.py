"""Where the journal of a daemon is: the names and directories of journals without a configured path."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import tempfile

JOURNAL_SUFFIX = ".journal"
POSTGRESQL = "postgresql://"  # begins the URL of a journal that several hosts share
LOCK_SUFFIX = ".lock"  # suffix of the lock file
MAX_HOST = 64  # characters of the name of a host in the name of a journal
SYSTEM_STATE_DIRECTORY = "/var/lib/trollmoves"  # of daemons that systemd starts


def journal_path(configured: str, config_file: str, role: str) -> str:
    """Return the path of the journal for a configuration file.

    This is ``configured`` if given, else one file per role, configuration file and host in ``$STATE_DIRECTORY``
    (systemd), ``$XDG_STATE_HOME/trollmoves`` or ``~/.local/state/trollmoves``.
    """
    if configured.startswith(POSTGRESQL):
        return configured
    if configured:
        return os.path.abspath(os.path.expanduser(configured))
    return os.path.join(state_directories()[0], journal_name(config_file, role))


def is_shared(where: str) -> bool:
    """Return True if several hosts can share the journal: it is the URL of an engine."""
    return where.startswith(POSTGRESQL)


def control_path(where: str, config_file: str, role: str) -> str:
    """Return the path next to which the control socket is: that of the journal, or the one that it would have."""
    return find_journal("", config_file, role) if is_shared(where) else where


def find_journal(configured: str, config_file: str, role: str) -> str:
    """Return the path of the journal that a daemon uses, for a process with another environment.

    Without ``configured`` it is the newest one in ``state_directories``; ``journal_path`` if there is none.
    """
    if not configured:
        name = journal_name(config_file, role)
        candidates = (os.path.join(directory, name) for directory in state_directories())
        paths = [path for path in candidates if os.path.exists(path)]
        if paths:
            return max(paths, key=os.path.getmtime)
    return journal_path(configured, config_file, role)


def journal_name(config_file: str, role: str) -> str:
    """Return the name of the journal of a configuration file that names none.

    It contains the name of this host, since hosts may share a home directory.
    """
    suffix = re.sub(r"[^A-Za-z0-9.-]", "_", f"-{socket.gethostname()}")[:MAX_HOST]
    config_file = os.path.abspath(config_file)
    stem = os.path.splitext(os.path.basename(config_file))[0]
    digest = hashlib.sha256(os.fsencode(config_file)).hexdigest()[:8]
    return f"{role}-{stem}-{digest}{suffix}{JOURNAL_SUFFIX}"


def state_directories() -> list[str]:
    """Return the directories of journals without a configured path; a process uses the first one if it can."""
    systemd = [path for path in os.environ.get("STATE_DIRECTORY", "").split(":") if path]
    home = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    own = os.path.join(home, "trollmoves")
    return list(dict.fromkeys([*systemd, own, SYSTEM_STATE_DIRECTORY, *fallback_directories()]))


def fallback_directories() -> list[str]:
    """Return the directories for journals of processes that cannot write their state directory."""
    systemd = [path for path in os.environ.get("RUNTIME_DIRECTORY", "").split(":") if path]
    return [*systemd, os.path.join(tempfile.gettempdir(), f"trollmoves-{os.getuid()}")]
