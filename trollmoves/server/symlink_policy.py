"""Decides which files may be served, based on their resolved paths."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterable, Mapping

from trollmoves.errors import RequestRejected
from trollmoves.provider.file_store import LINK_DIGESTS
from trollmoves.utils import symlinks
from trollmoves.utils.logs import LogThrottle

logger = logging.getLogger(__name__)

CACHE_TTL = 1.0  # s during which a resolved directory is reused
CACHE_SIZE = 1_000  # directories


class SymlinkPolicy:
    """The symbolic links that one chain may follow. Any thread.

    ``root`` is the origin; None for chains that receive file names in messages. ``rule`` applies to links that lead out
    of the origin: follow ``all``, ``none``, or only trusted ones (``owned``, see ``symlinks.resolve``).
    """

    def __init__(self, name: str, root: str | None, rule: str) -> None:
        self.name = name
        self._root = root
        self._rule = rule
        self._log_throttle = LogThrottle()
        self._directories: dict[str, tuple[str, float]] = {}  # the resolved directory, and when it expires (monotonic)

    def allowed_files(self, paths: Iterable[str]) -> dict[str, list[str]]:
        """Return the files found in the origin that may be announced, with their link digests; log the others.

        The list of digests is empty for files that lie in the origin.
        """
        allowed: dict[str, list[str]] = {}
        for path in paths:
            if self._is_inside(self._real(path)):
                allowed[path] = []
                continue
            try:
                real, untrusted = symlinks.resolve(self._real_root() + path.removeprefix(self._root or ""))
            except OSError as error:
                self._log_rejected(path, error.strerror or str(error))
                continue
            if self._is_inside(real):
                allowed[path] = []
            elif self._rule == "all" or (self._rule == "owned" and not untrusted):
                allowed[path] = [_digest(path, real)]
            else:
                owned = f"{untrusted} is owned by neither this user, root nor the owner of the file"
                reason = owned if self._rule == "owned" else "such links are not followed"
                self._log_rejected(path, f"the target is {real}, and {reason} (external_symlinks)")
        return allowed

    def _log_rejected(self, path: str, reason: str) -> None:
        if (suffix := self._log_throttle.admit()) is not None:
            logger.warning("[%s] %s leads out of the origin, not announced: %s%s", self.name, path, reason, suffix)

    def link_digests(self, paths: Iterable[str]) -> list[str]:
        """Return the link digests of files that are named in messages or were unpacked, if they lie elsewhere."""
        resolved = [(path, self._real(path)) for path in paths]
        return [_digest(path, real) for path, real in resolved if path != real and not self._is_inside(real)]

    def _real(self, path: str) -> str:
        """Return the resolved path, up to CACHE_TTL seconds old; the opened file is checked again before delivery."""
        if os.path.islink(path):
            return os.path.realpath(path)
        directory, _, name = path.rpartition("/")
        return f"{self._real_directory(directory)}/{name}"

    def _real_root(self) -> str:
        return self._real_directory(self._root or "/")

    def _real_directory(self, directory: str) -> str:
        now = time.monotonic()
        real, expires = self._directories.get(directory, ("", 0.0))
        if now > expires:
            real = os.path.realpath(directory or "/").rstrip("/")
            if len(self._directories) > CACHE_SIZE:
                self._directories.clear()
            self._directories[directory] = real, now + CACHE_TTL
        return real

    def check(self, path: str, real: str, metadata: Mapping[str, object]) -> None:
        """Raise RequestRejected if an announced path leads elsewhere than into the origin or to the announced target.

        ``metadata`` is that of the announcement.
        """
        digests = metadata.get(LINK_DIGESTS)
        if path == real or self._is_inside(real) or (isinstance(digests, list) and _digest(path, real) in digests):
            return
        raise RequestRejected(f"the link target of {os.path.basename(path)} has changed since it was announced")

    def check_opened(self, path: str, fd: int, metadata: Mapping[str, object] | None = None) -> None:
        """Raise RequestRejected if an open file, found in the origin, must not be announced.

        ``metadata`` is that of the announcement, None if the file was not announced.
        """
        try:
            real = symlinks.path_of_fd(fd, path)
        except OSError as error:
            raise RequestRejected(f"{path}: {error.strerror}") from error
        if metadata is None:
            allowed = self.allowed_files([path])
            if path not in allowed:
                raise RequestRejected(f"{path} must not be announced: it leads out of the origin")
            metadata = {LINK_DIGESTS: allowed[path]}
        self.check(path, real, metadata)

    def _is_inside(self, real: str) -> bool:
        return self._root is not None and symlinks.is_below(real, self._real_root())


def _digest(path: str, real: str) -> str:
    both = f"{path}\0{real}".encode("utf-8", "surrogateescape")
    return hashlib.blake2b(both, digest_size=16).hexdigest()
