"""Tracks every directory in which files may appear.

Each existing directory from ``/`` down to the origin's root is watched for its removal, and the lowest of them for the
appearance of the next. Below the root, each directory that the origin's pattern allows is watched for subdirectories
or, at the lowest level, for files. So directories may be missing at the start, be removed and be created again.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from trollmoves.matching.patterns import Origin
from trollmoves.utils.users import permission_remedy
from trollmoves.watch import inotify

Identity = tuple[int, int]
Snapshot = dict[str, tuple[int, int, int, bool]]  # name: size, mtime (ns), inode, reported

MAX_LOGGED_FAILURES = 20  # directories logged as warnings, the rest at DEBUG: many failures have the same cause

_SELF = inotify.DELETE_SELF | inotify.MOVE_SELF | inotify.ONLYDIR
_ENTRIES = inotify.CREATE | inotify.MOVED_TO
_FILES = _ENTRIES | inotify.CLOSE_WRITE
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_NO_WATCHES = "out of inotify watches, raise fs.inotify.max_user_watches"

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Directory:
    """One tracked directory."""

    path: str
    level: int  # below the root; negative above it
    identity: Identity  # of the directory at this path when it was last checked
    mask: int
    wd: int | None = None  # None: the directory has no watch and is listed periodically
    since_ns: int = 0  # skip files with an earlier status change: they existed at the start
    children: set[str] = field(default_factory=set)
    is_tracked: bool = True
    snapshot: Snapshot | None = None  # of the last listing, if it is listed periodically

    @property
    def prefix(self) -> str:
        """The path with a trailing slash."""
        return self.path if self.path == "/" else self.path + "/"


class DirectoryTree:
    """The existing directories of one origin, and their watches. Used by one thread.

    Args:
        origin: The locations where files may appear.
        instance: Holds the watches; None to list all directories periodically.
        name: The name of the chain, for the log.
    """

    def __init__(self, origin: Origin, instance: inotify.Inotify | None, name: str) -> None:
        self._origin = origin
        self._root = origin.root
        self._depth = origin.depth
        # As in a shell, a field does not match a leading dot.
        self._match_hidden = any(level.startswith(".") for level in origin.pattern.split("/")[:-1])
        self._inotify = instance
        self._name = name
        self._by_path: dict[str, Directory] = {}
        self._by_wd: dict[int, list[Directory]] = {}
        self._since_ns: dict[Identity, int] = {}
        self._failures: dict[str, int] = {}
        parts = [part for part in self._root.split("/") if part]
        self._ancestors = ["/" + "/".join(parts[:end]) for end in range(len(parts) + 1)]  # the last is the root

    def __len__(self) -> int:
        return sum(directory.level >= 0 for directory in self._by_path.values())

    def holds_files(self, directory: Directory) -> bool:
        """Return True if files of the pattern are directly in this directory."""
        return directory.level == self._depth

    def at(self, wd: int) -> list[Directory]:
        """Return the directories of a watch descriptor: several if symbolic links lead to the same directory."""
        return self._by_wd.get(wd, [])

    def get(self, path: str) -> Directory | None:
        """Return a tracked directory, or None."""
        return self._by_path.get(path)

    def rescan(self, again: bool = False) -> list[Directory]:
        """Update the tracked directories from the file system.

        Returns:
            The directories to list: new ones and those without a watch; with ``again`` all of them.
        """
        return list(self._rescan_all(again))

    def skip_present(self, directory: Directory, since_ns: int) -> None:
        """Exclude the directory's files with a status change before ``since_ns`` from all listings."""
        directory.since_ns = since_ns
        self._since_ns[directory.identity] = since_ns

    def on_event(self, wd: int, mask: int, name: str) -> list[Directory]:
        """Process an event of a directory (not of a file in it); return the directories to list, as ``rescan`` does."""
        found: list[Directory] = []
        for directory in list(self.at(wd)):
            if not directory.is_tracked:
                continue  # untracked by the previous iteration
            if mask & (inotify.DELETE_SELF | inotify.UNMOUNT | inotify.IGNORED):
                self._forget(directory)
                found += self._rescan_from(directory, again=False)
            elif mask & inotify.MOVE_SELF:
                found += self._rescan_from(directory, again=True)
            elif directory.level < self._depth:
                found += self._on_created(directory, name)
        return found

    def report_failure(self, path: str, error: OSError) -> None:
        """Log once, until the next success, that a directory cannot be watched or listed."""
        reason = error.errno or 0
        if self._failures.get(path) != reason:
            advice = f"{error.strerror or error}{permission_remedy(reason, 'read and search')}"
            if reason == errno.ENOSPC:
                advice = _NO_WATCHES
            level = logging.WARNING if len(self._failures) < MAX_LOGGED_FAILURES else logging.DEBUG
            self._failures[path] = reason
            logger.log(level, "[%s] cannot watch %s, trying to list it periodically: %s", self._name, path, advice)

    def _rescan_from(self, directory: Directory, again: bool) -> Iterator[Directory]:
        if directory.level <= 0:
            return self._rescan_all(again)
        return self._update(directory.path, directory.level, again)

    def _rescan_all(self, again: bool = False) -> Iterator[Directory]:
        """Rescan from ``/``, as any change of the root or above it requires."""
        return self._update("/", 1 - len(self._ancestors), again)

    def _on_created(self, directory: Directory, name: str) -> Iterator[Directory]:
        path = os.path.join(directory.path, name)
        if directory.level < 0:
            return self._rescan_all() if path == self._next_ancestor(directory) else iter(())
        return self._update(path, directory.level + 1) if self._may_match(path) else iter(())

    def _update(self, path: str, level: int, again: bool = False) -> Iterator[Directory]:
        directory, new = self._track(path, level, again)
        if directory is None:
            return
        list_all = new or again or directory.wd is None
        if level == self._depth:
            if list_all:
                yield directory
        elif level < 0:
            yield from self._update_ancestor(directory, again)
        else:
            for child in self._children(directory, list_all):
                yield from self._update(child, level + 1, again)

    def _update_ancestor(self, directory: Directory, again: bool) -> Iterator[Directory]:
        """Track the next ancestor; while it is missing, watch this directory for its creation."""
        child = self._next_ancestor(directory)
        while True:
            yield from self._update(child, directory.level + 1, again)
            present = child in self._by_path
            mask = _SELF if present else _SELF | _ENTRIES
            if directory.mask == mask:
                return
            directory.mask = mask
            if not self._watch(directory):
                self._forget(directory)
                return
            if present:
                return

    def _next_ancestor(self, ancestor: Directory) -> str:
        return self._ancestors[len(self._ancestors) + ancestor.level]

    def _may_match(self, path: str) -> bool:
        if os.path.basename(path).startswith(".") and not self._match_hidden:
            return False
        return self._origin.directory_may_match(os.path.relpath(path, self._root))

    def _children(self, directory: Directory, list_all: bool) -> list[str]:
        children = set(directory.children)
        if list_all:
            try:
                with os.scandir(directory.path) as entries:
                    children |= {entry.path for entry in entries if self._may_match(entry.path) and entry.is_dir()}
            except OSError as error:
                if is_gone(error):
                    self._forget(directory)
                    return []
                self.report_failure(directory.path, error)
                self._unwatch(directory)  # to list it periodically
        return sorted(children)

    def _track(self, path: str, level: int, again: bool) -> tuple[Directory | None, bool]:
        """Update one directory; return it (None if missing) and whether its watch is new."""
        identity = self._identity(path)
        known = self._by_path.get(path)
        if known is not None and known.identity != identity:
            self._forget(known)
            known = None
        if identity is None:
            return None, False
        new = known is None
        directory = known if known is not None else self._add_directory(path, level, identity)
        parent = self._by_path.get(os.path.dirname(path))
        if parent is not None and parent is not directory:
            parent.children.add(path)
        if directory.wd is None or again:
            before = directory.wd
            if not self._watch(directory):
                self._forget(directory)
                return None, False
            new = new or directory.wd != before
        return directory, new

    def _add_directory(self, path: str, level: int, identity: Identity) -> Directory:
        mask = _SELF if level < 0 else _SELF | _ENTRIES if level < self._depth else _SELF | _FILES
        directory = Directory(path, level, identity, mask)
        if self._inotify is not None:  # without events the files may come from another host, with another clock
            directory.since_ns = self._since_ns.get(identity, 0)
        self._by_path[path] = directory
        return directory

    def _watch(self, directory: Directory) -> bool:
        """Add or renew the watch of a directory; return False if the directory is gone."""
        if self._inotify is None:
            return True
        try:
            wd = self._add(self._inotify, directory)
        except OSError as error:
            self._unwatch(directory)
            if is_gone(error):
                return False
            if directory.level >= 0:
                self.report_failure(directory.path, error)
            return True
        if wd != directory.wd:
            self._unwatch(directory)
            directory.wd, directory.snapshot = wd, None
            self._by_wd.setdefault(wd, []).append(directory)
        if self._failures.pop(directory.path, None) is not None:
            logger.info("[%s] now watching %s", self._name, directory.path)
        # The directory may have been replaced before the watch was added.
        return self._identity(directory.path) == directory.identity

    def _add(self, instance: inotify.Inotify, directory: Directory) -> int:
        wd = instance.add(directory.path, directory.mask)
        combined = directory.mask
        for other in self.at(wd):
            combined |= other.mask
        if combined != directory.mask:
            wd = instance.add(directory.path, combined)
        return wd

    def _unwatch(self, directory: Directory) -> None:
        wd, directory.wd = directory.wd, None
        if wd is None:
            return
        self._by_wd[wd].remove(directory)
        if not self._by_wd[wd]:
            del self._by_wd[wd]
            if self._inotify is not None:
                self._inotify.remove(wd)

    def _forget(self, directory: Directory) -> None:
        for child in list(directory.children):
            self._forget(self._by_path[child])
        parent = self._by_path.get(os.path.dirname(directory.path))
        if parent is not None:
            parent.children.discard(directory.path)
        del self._by_path[directory.path]
        directory.is_tracked = False
        self._failures.pop(directory.path, None)
        self._unwatch(directory)

    def _identity(self, path: str) -> Identity | None:
        try:
            status = os.stat(path)
        except OSError as error:
            if not is_gone(error):
                self.report_failure(path, error)
            return None
        return (status.st_dev, status.st_ino) if stat.S_ISDIR(status.st_mode) else None


def is_gone(error: OSError) -> bool:
    """Return True if an error only means that the directory does not exist."""
    return error.errno in _GONE
