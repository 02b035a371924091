"""Follows every directory in which files may appear.

From ``/`` down to the origin's root each directory is watched for going away, and the lowest one there is for the next
one to appear; from the root down every directory that the origin's pattern allows is watched for directories or, at the
lowest level, for files. So nothing needs to exist when this begins, and anything may go away and come back.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from trollmoves.matching.patterns import Origin
from trollmoves.watch import inotify

Identity = tuple[int, int]
Snapshot = dict[str, tuple[int, int, int, bool]]  # name: size, modification time (ns), inode, whether it was told of

MAX_LOGGED_FAILURES = 20  # directories: what makes many of them fail has the same reason, and one line in the log each

_SELF = inotify.DELETE_SELF | inotify.MOVE_SELF | inotify.ONLYDIR
_ENTRIES = inotify.CREATE | inotify.MOVED_TO
_FILES = _ENTRIES | inotify.CLOSE_WRITE
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_ADVICE = {
    errno.ENOSPC: "out of inotify watches, raise fs.inotify.max_user_watches",
    errno.EACCES: "permission denied",
}

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Directory:
    """One directory that is followed."""

    path: str
    level: int  # below the root; negative above it
    identity: Identity  # what stood at the path when it was last looked at
    mask: int
    wd: int | None = None  # None: the kernel does not tell of it, it has to be listed again and again
    since_ns: int = 0  # files whose status changed earlier were there at the start, and nobody wants them
    children: set[str] = field(default_factory=set)
    is_tracked: bool = True
    snapshot: Snapshot | None = None  # what the last listing showed, if it is listed again and again

    @property
    def prefix(self) -> str:
        """What stands before a name to make it a path."""
        return self.path if self.path == "/" else self.path + "/"


class DirectoryTree:
    """The directories of one origin that exist now, and the watches on them.

    Used by one thread.

    Args:
        origin: Says where files may be.
        instance: Where watches are made; None if everything is to be listed again and again.
        name: The chain, for the log.
    """

    def __init__(self, origin: Origin, instance: inotify.Inotify | None, name: str) -> None:
        self._origin = origin
        self._root = origin.root
        self._depth = origin.depth
        # As in a shell, only a dot that is written stands for one: a field does not find a .snapshot.
        self._hidden = any(level.startswith(".") for level in origin.pattern.text.split("/")[:-1])
        self._kernel = instance
        self._name = name
        self._by_path: dict[str, Directory] = {}
        self._by_wd: dict[int, list[Directory]] = {}
        self._old: dict[Identity, int] = {}
        self._told: dict[str, int] = {}
        parts = [part for part in self._root.split("/") if part]
        self._ancestors = ["/" + "/".join(parts[:end]) for end in range(len(parts) + 1)]  # the last one is the root

    def __len__(self) -> int:
        return sum(directory.level >= 0 for directory in self._by_path.values())

    def holds_files(self, directory: Directory) -> bool:
        """Say whether files of the pattern stand in this directory, not only below it."""
        return directory.level == self._depth

    def at(self, wd: int) -> list[Directory]:
        """Return the directories (one, unless a symbolic link leads to it too) that a watch descriptor stands for."""
        return self._by_wd.get(wd, [])

    def get(self, path: str) -> Directory | None:
        """Return a directory that is followed."""
        return self._by_path.get(path)

    def rescan(self, again: bool = False) -> list[Directory]:
        """Bring everything into line with what there is now.

        Returns:
            The directories whose files should be listed: those that are new, those without a watch, and with
            ``again`` all of them.
        """
        return list(self._rescan_all(again))

    def skip_present(self, directory: Directory, since_ns: int) -> None:
        """Remember that a directory was there at the start: its files that are older are never listed."""
        directory.since_ns = since_ns
        self._old[directory.identity] = since_ns

    def on_event(self, wd: int, mask: int, name: str) -> list[Directory]:
        """Follow what an event of a directory (not of a file in it) tells; returns what ``survey`` does."""
        found: list[Directory] = []
        for directory in list(self.at(wd)):
            if not directory.is_tracked:
                continue  # what was done for the one before has changed this one
            if mask & (inotify.DELETE_SELF | inotify.UNMOUNT | inotify.IGNORED):
                self._forget(directory)
                found += self._rescan_from(directory, again=False)
            elif mask & inotify.MOVE_SELF:
                found += self._rescan_from(directory, again=True)
            elif directory.level < self._depth:
                found += self._on_created(directory, name)
        return found

    def report_failure(self, path: str, error: OSError) -> None:
        """Log, once until it is over, that a directory cannot be watched or listed."""
        reason = error.errno or 0
        if self._told.get(path) != reason:
            advice = _ADVICE.get(reason) or error.strerror or str(error)
            level = logging.WARNING if len(self._told) < MAX_LOGGED_FAILURES else logging.DEBUG
            self._told[path] = reason
            logger.log(
                level,
                "[%s] cannot watch %s (%s); it is listed again and again instead",
                self._name,
                path,
                advice,
            )

    def _rescan_from(self, directory: Directory, again: bool) -> Iterator[Directory]:
        if directory.level <= 0:
            return self._rescan_all(again)
        return self._follow(directory.path, directory.level, again)

    def _rescan_all(self, again: bool = False) -> Iterator[Directory]:
        """Follow everything; whatever happens to the root or above it has to be dealt with from here."""
        return self._follow("/", 1 - len(self._ancestors), again)

    def _on_created(self, directory: Directory, name: str) -> Iterator[Directory]:
        path = os.path.join(directory.path, name)
        if directory.level < 0:
            return self._rescan_all() if path == self._next_ancestor(directory) else iter(())
        return self._follow(path, directory.level + 1) if self._wanted(path) else iter(())

    def _follow(self, path: str, level: int, again: bool = False) -> Iterator[Directory]:
        directory, new = self._track(path, level, again)
        if directory is None:
            return
        everything = new or again or directory.wd is None
        if level == self._depth:
            if everything:
                yield directory
        elif level < 0:
            yield from self._follow_ancestor(directory, again)
        else:
            for child in self._children(directory, everything):
                yield from self._follow(child, level + 1, again)

    def _follow_ancestor(self, directory: Directory, again: bool) -> Iterator[Directory]:
        """Follow the one way down; while it ends here, be told of what appears here."""
        child = self._next_ancestor(directory)
        while True:
            yield from self._follow(child, directory.level + 1, again)
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

    def _wanted(self, path: str) -> bool:
        if os.path.basename(path).startswith(".") and not self._hidden:
            return False
        return self._origin.directory_may_match(os.path.relpath(path, self._root))

    def _children(self, directory: Directory, everything: bool) -> list[str]:
        children = set(directory.children)
        if everything:
            try:
                with os.scandir(directory.path) as entries:
                    children |= {entry.path for entry in entries if self._wanted(entry.path) and entry.is_dir()}
            except OSError as error:
                if is_gone(error):
                    self._forget(directory)
                    return []
                self.report_failure(directory.path, error)
                self._unwatch(directory)  # so that it is listed again
        return sorted(children)

    def _track(self, path: str, level: int, again: bool) -> tuple[Directory | None, bool]:
        """Bring one directory into line; return it (None: there is none) and whether it was not watched before."""
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
        if self._kernel is not None:  # without it the files may be another host's, whose clock is not ours
            directory.since_ns = self._old.get(identity, 0)
        self._by_path[path] = directory
        return directory

    def _watch(self, directory: Directory) -> bool:
        """Make or renew the watch of a directory; False if the directory is not there any more."""
        if self._kernel is None:
            return True
        try:
            wd = self._add(self._kernel, directory)
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
        if self._told.pop(directory.path, None) is not None:
            logger.info("[%s] watching %s now", self._name, directory.path)
        # What was replaced while the watch was made is somebody else's directory.
        return self._identity(directory.path) == directory.identity

    def _add(self, instance: inotify.Inotify, directory: Directory) -> int:
        wd = instance.add(directory.path, directory.mask)
        together = directory.mask
        for other in self.at(wd):
            together |= other.mask
        if together != directory.mask:
            wd = instance.add(directory.path, together)
        return wd

    def _unwatch(self, directory: Directory) -> None:
        wd, directory.wd = directory.wd, None
        if wd is None:
            return
        self._by_wd[wd].remove(directory)
        if not self._by_wd[wd]:
            del self._by_wd[wd]
            if self._kernel is not None:
                self._kernel.remove(wd)

    def _forget(self, directory: Directory) -> None:
        for child in list(directory.children):
            self._forget(self._by_path[child])
        parent = self._by_path.get(os.path.dirname(directory.path))
        if parent is not None:
            parent.children.discard(directory.path)
        del self._by_path[directory.path]
        directory.is_tracked = False
        self._told.pop(directory.path, None)
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
    """Say whether an error only means that a directory is not there (any more)."""
    return error.errno in _GONE
