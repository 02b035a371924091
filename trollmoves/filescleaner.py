"""Removes old files and empty directories of one section of ``remove_it.py``.

All removals act through the descriptors of open directories: an entry that is exchanged for a symbolic link during the
run neither redirects a removal nor a search. Below the configured directory a link to another directory is followed
only if it belongs to the user of this process, to root, or to the owner of that directory.
"""

from __future__ import annotations

import datetime as dt
import errno
import fnmatch
import logging
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

from trollmoves.config import removal_file
from trollmoves.config.config_file import Configuration
from trollmoves.config.removal_options import RemovalOptions
from trollmoves.messaging.messages import Message
from trollmoves.status.explanation import Explanation, Subject
from trollmoves.utils import symlinks
from trollmoves.utils.file_versions import remove_version_at, version_of

logger = logging.getLogger(__name__)

KEPT_SUFFIX = ".keep"  # files and directories with this suffix are never removed
MAX_DEPTH = 200  # parts of the path of a directory that is searched
_MAGIC = re.compile(r"[*?[]")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class TextPublisher(Protocol):
    """Publishes encoded messages, as the publishers of posttroll."""

    def send(self, text: str, /) -> Any:
        """Publish one message."""


class Removed(NamedTuple):
    """The bytes, the number and the paths of removed files and directories; in a dry run only the paths."""

    size: int
    number: int
    paths: list[str]


class _Directory(NamedTuple):
    """An open directory, and the path under which it was found."""

    fd: int
    path: str

    def join(self, name: str) -> str:
        return os.path.join(self.path, name)


class _LastPart(NamedTuple):
    """The last part of a template."""

    matches: Callable[[str], bool]
    only_directories: bool


class FilesCleaner:
    """Removes the old files of one section, and publishes a message about each. For one thread.

    Args:
        publisher: gets the text of a message of type ``del`` after each removal of a file; None publishes nothing.
        section: the name of the section.
        info: the options of the section, as text or as read from a file.
        dry_run: only log what would be removed.

    Raises:
        ConfigError: an option is invalid, or the age or the templates are missing.
    """

    def __init__(
        self,
        publisher: TextPublisher | None,
        section: str,
        info: Mapping[str, Any] | RemovalOptions,
        dry_run: bool = True,
    ) -> None:
        self.section = section
        self.dry_run = dry_run
        self._publisher = publisher
        self._options = info if isinstance(info, RemovalOptions) else removal_file.read_section(section, info)
        self._start_counting()

    def clean_section(self) -> Removed:
        """Remove the old files and directories that match a template of the section; return them."""
        base = removal_file.base_directory(self._options)
        cutoff = time.time() - self._options.age
        self._start_counting()
        if not os.path.isdir(base):
            logger.warning("Path %s missing, skipping section %s", base, self.section)
            return self._removed()
        logger.info("Cleaning in %s", base)
        for template in self._options.templates:
            if template.startswith("/"):
                self._clean_template(*_split(template), cutoff)
            else:
                self._clean_template(base, template, cutoff)
        return self._removed()

    def clean_dir(self, ref_time: dt.datetime, template: str) -> Removed:
        """Remove the files and directories that match a path pattern and are older than ``ref_time``; return them."""
        self._start_counting()
        self._clean_template(*_split(os.path.join(os.getcwd(), template)), ref_time.timestamp())
        return self._removed()

    def clean_files_and_dirs(self, paths: Iterable[str], ref_time: dt.datetime) -> Removed:
        """Remove those of the files and empty directories that are older than ``ref_time``; return them."""
        self._start_counting()
        for path in paths:
            folder, name = os.path.split(path.rstrip("/"))
            with _reported("remove", path), _opened(folder or ".") as directory:
                self._clean_entry(directory, name, ref_time.timestamp())
        return self._removed()

    def remove_file(self, path: str) -> str | None:
        """Remove a file of any age; return its path, or None if it was not removed."""
        self._start_counting()
        folder, name = os.path.split(path)
        with _reported("remove", path), _opened(folder or ".") as directory:
            status = os.stat(name, dir_fd=directory.fd)
            if stat.S_ISDIR(status.st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            self._remove_file(directory, name, status)
        return path if self._number else None

    def _start_counting(self) -> None:
        self._paths: dict[str, None] = {}
        self._size = self._number = 0

    def _removed(self) -> Removed:
        return Removed(self._size, self._number, list(self._paths))

    # -- search

    def _clean_template(self, base: str, template: str, cutoff: float) -> None:
        logger.info("Cleaning under %s", os.path.join(base, template))
        *folders, name = template.rstrip("/").split("/")
        last = _LastPart(self._matcher(name), only_directories=template.endswith("/"))
        with _reported("search", base), _opened(base) as directory:
            self._clean_below(directory, list(filter(None, folders)), last, cutoff)

    def _clean_below(self, directory: _Directory, folders: Sequence[str], last: _LastPart, cutoff: float) -> None:
        """Clean the directories that the first parts of a template select."""
        if not folders:
            self._clean_directory(directory, last, cutoff, set())
            return
        for name in self._matching(directory, folders[0]):
            with _reported("search", directory.join(name)), _opened_child(directory, name) as child:
                if child:
                    self._clean_below(child, folders[1:], last, cutoff)

    def _matching(self, directory: _Directory, pattern: str) -> list[str]:
        if not _MAGIC.search(pattern):
            return [pattern]
        return list(filter(self._matcher(pattern), os.listdir(directory.fd)))

    def _matcher(self, pattern: str) -> Callable[[str], bool]:
        return _matcher(pattern, hidden=self._options.include_hidden)

    def _clean_directory(
        self, directory: _Directory, last: _LastPart, cutoff: float, visited: set[tuple[int, int]]
    ) -> tuple[int, int]:
        """Clean a directory; return the number of its entries, and how many of them were removed."""
        with os.scandir(directory.fd) as entries:
            found = [(entry.name, _is_directory(entry)) for entry in entries]
        removed = set()
        if self._options.recursive:
            status = os.fstat(directory.fd)
            visited.add((status.st_dev, status.st_ino))
            for name in [name for name, is_directory in found if is_directory]:
                with _reported("search", directory.join(name)):
                    if self._clean_child(directory, name, last, cutoff, visited):
                        removed.add(name)
        for name, is_directory in found:
            if name not in removed and last.matches(name) and (is_directory or not last.only_directories):
                with _reported("remove", directory.join(name)):
                    if self._clean_entry(directory, name, cutoff):
                        removed.add(name)
        return len(found), len(removed)

    def _clean_child(
        self, directory: _Directory, name: str, last: _LastPart, cutoff: float, visited: set[tuple[int, int]]
    ) -> bool:
        """Clean a directory and all below it; return True if it was removed: emptied now, or empty and old."""
        with _opened_child(directory, name) as child:
            if child is None or not _is_new(child, visited):
                return False
            n_entries, n_removed = self._clean_directory(child, last, cutoff, visited)
        if n_removed < n_entries or stat.S_ISLNK(os.lstat(name, dir_fd=directory.fd).st_mode):
            return False
        return self._remove_directory(directory, name) if n_entries else self._clean_entry(directory, name, cutoff)

    # -- removal

    def _clean_entry(self, directory: _Directory, name: str, cutoff: float) -> bool:
        """Remove a file or an empty directory if it is older than ``cutoff``; return True if it was removed."""
        try:
            status = os.stat(name, dir_fd=directory.fd)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ELOOP):  # removed in the meantime, or a link that leads to no file
                return False
            raise
        if getattr(status, self._options.stat_time_method) >= cutoff:
            return False
        if not stat.S_ISDIR(status.st_mode):
            return self._remove_file(directory, name, status)
        if stat.S_ISLNK(os.lstat(name, dir_fd=directory.fd).st_mode):
            logger.debug("kept %s: a link to a directory", directory.join(name))
            return False
        return self._remove_directory(directory, name)

    def _remove_file(self, directory: _Directory, name: str, status: os.stat_result) -> bool:
        path = directory.join(name)
        if name.endswith(KEPT_SUFFIX):
            return False
        if self.dry_run:
            return self._log_dry_run(path)
        if not remove_version_at(directory.fd, name, version_of(status)):
            logger.info("kept %s: it was replaced by another file", path)
            return False
        self._count(path, status)
        if self._publisher is not None:
            self._publisher.send(Message("/deletion", "del", {"uri": path}).encode())
        return True

    def _remove_directory(self, directory: _Directory, name: str) -> bool:
        """Remove an empty directory; return True if it was removed."""
        path = directory.join(name)
        if name.endswith(KEPT_SUFFIX):
            return False
        status = os.lstat(name, dir_fd=directory.fd)
        if self.dry_run:
            with _opened_child(directory, name) as child:
                return child is not None and not os.listdir(child.fd) and self._log_dry_run(path)
        try:
            os.rmdir(name, dir_fd=directory.fd)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            logger.info("%s not empty.", path)
            return False
        self._count(path, status)
        return True

    def _count(self, path: str, status: os.stat_result) -> None:
        logger.debug("Removed %s", path)
        self._paths[path] = None
        self._size += status.st_size
        self._number += 1

    def _log_dry_run(self, path: str) -> bool:
        if path not in self._paths:
            logger.info("Would remove %s", path)
        self._paths[path] = None
        return False


def _matcher(pattern: str, *, hidden: bool) -> Callable[[str], bool]:
    """Return a function that returns True for the names that match; with a leading dot only if ``hidden``."""
    match = re.compile(fnmatch.translate(pattern)).match
    takes_hidden = hidden or pattern.startswith(".")
    return lambda name: bool(match(name)) and (takes_hidden or not name.startswith("."))


def _split(template: str) -> tuple[str, str]:
    """Return the leading directories of an absolute template without pattern, and the rest."""
    parts = template.split("/")
    first = next((index for index, part in enumerate(parts) if _MAGIC.search(part)), len(parts))
    first = min(first, len(parts) - 1 - (not parts[-1]))
    return "/".join(parts[:first]) or "/", "/".join(parts[first:])


@contextmanager
def _reported(action: str, path: str) -> Iterator[None]:
    """Log an error of one file or directory, so that the others are treated; a missing one is not an error."""
    try:
        yield
    except FileNotFoundError:
        logger.debug("%s does not exist any more", path)
    except OSError as error:
        logger.warning("Can't %s %s: %s", action, path, error.strerror)


@contextmanager
def _opened(path: str) -> Iterator[_Directory]:
    """Open a configured directory."""
    fd = os.open(path, _DIRECTORY)
    try:
        yield _Directory(fd, path)
    finally:
        os.close(fd)


@contextmanager
def _opened_child(directory: _Directory, name: str) -> Iterator[_Directory | None]:
    """Open a directory in another one; None for other entries, and for a link that is not trusted."""
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=directory.fd)
    except NotADirectoryError:
        yield None
        return
    try:
        yield _Directory(fd, directory.join(name)) if _is_trusted(directory, name, fd) else None
    finally:
        os.close(fd)


def _is_trusted(directory: _Directory, name: str, fd: int) -> bool:
    """Return True if an opened entry is a directory, or a link that may be followed."""
    path = os.path.join(symlinks.path_of_fd(directory.fd, directory.path), name)
    opened = symlinks.path_of_fd(fd, path)
    if opened == path:
        return True
    real, untrusted = symlinks.resolve(path)
    if real == opened and not untrusted:
        return True
    logger.warning(
        "not followed: %s is a link that belongs to neither this user, root, nor the owner of its target",
        directory.join(name),
    )
    return False


def _is_directory(entry: os.DirEntry[str]) -> bool:
    """Return True for a directory, and for a link to one."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_new(directory: _Directory, visited: set[tuple[int, int]]) -> bool:
    """Return True for a directory that is not visited yet, and not too deep."""
    status = os.fstat(directory.fd)
    if (status.st_dev, status.st_ino) in visited:
        return False
    if directory.path.count("/") > MAX_DEPTH:
        logger.warning("not searched: %s has more than %d parts", directory.path, MAX_DEPTH)
        return False
    return True


# -- for operators


def explain(configuration: Configuration[Any], subject: Subject) -> list[Explanation]:
    """Return for each section, RemovalOptions, if and when it removes a file, by its path; links are not followed."""
    return [_explain(section, subject) for section in configuration.sections.values()]


def _explain(section: RemovalOptions, subject: Subject) -> Explanation:
    if subject.message is not None:
        return Explanation(section.name, False, "remove_it.py receives no messages: name a file")
    path = subject.path_below(removal_file.base_directory(section))
    template = next((one for one in section.templates if _selects(section, one, path)), None)
    if template is None:
        return Explanation(section.name, False, f"no template matches {path}")
    if path.endswith(KEPT_SUFFIX):
        return Explanation(section.name, False, f"files and directories named *{KEPT_SUFFIX} are kept")
    try:
        status = os.stat(path)
    except OSError as error:
        when = f"but not now: {error.strerror}"
    else:
        left = getattr(status, section.stat_time_method) + section.age - time.time()
        when = "at the next run" if left < 0 else f"in {left:.0f} s at the earliest"
        if stat.S_ISDIR(status.st_mode):
            when += ", if it is empty then"
    note = f"removed {when}; older than {section.age} s by {section.stat_time_method}, template {template}"
    return Explanation(section.name, True, name=os.path.basename(path), notes=(note,))


def _selects(section: RemovalOptions, template: str, path: str) -> bool:
    """Return True if a template selects a path; one that is ``recursive`` selects all directories below too."""
    base, rest = _split(template) if template.startswith("/") else (removal_file.base_directory(section), template)
    if not path.startswith(f"{base.rstrip('/')}/") or (rest.endswith("/") and not os.path.isdir(path)):
        return False
    *folders, name = path.removeprefix(base).strip("/").split("/")
    *wanted, last = [part for part in rest.split("/") if part]
    if len(folders) < len(wanted) or (len(folders) > len(wanted) and not section.recursive):
        return False
    parts = [*zip(folders, wanted, strict=False)]
    if not (section.recursive and os.path.isdir(path)):
        parts.append((name, last))
    return all(_matcher(pattern, hidden=section.include_hidden)(part) for part, pattern in parts)
