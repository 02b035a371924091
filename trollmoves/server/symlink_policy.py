"""Which files a chain may hand out, by where they really lie."""

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

log = logging.getLogger(__name__)

CACHE_TTL = 1.0  # s for which it is taken for true where a directory leads
CACHE_SIZE = 1_000  # directories


class SymlinkPolicy:
    """The origin of one chain (None: its files are named by messages), and what its links may do. Any thread.

    ``rule`` is for links that lead out of the origin: ``all`` are followed, ``none`` is, or those that are ``owned``
    as ``links.strange_link`` has it.
    """

    def __init__(self, name: str, root: str | None, rule: str) -> None:
        self.name = name
        self._root = root
        self._rule = rule
        self._seldom = LogThrottle()
        self._directories: dict[str, tuple[str, float]] = {}  # where they lead, and until when that is taken for true

    def allowed_files(self, paths: Iterable[str]) -> dict[str, list[str]]:
        """Give those of the files found in the origin that may be announced; the log tells of the others.

        With each comes what is to be remembered of where it leads, a list that is empty when it leads nowhere else.
        """
        admitted: dict[str, list[str]] = {}
        for path in paths:
            if self._is_inside(self._real(path)):
                admitted[path] = []
                continue
            try:
                real, strange = symlinks.resolve(self._real_root() + path.removeprefix(self._root or ""))
            except OSError as error:
                self._log_rejected(path, error.strerror or str(error))
                continue
            if self._is_inside(real):
                admitted[path] = []
            elif self._rule == "all" or (self._rule == "owned" and not strange):
                admitted[path] = [_digest(path, real)]
            else:
                why = f"{strange} is neither ours nor the file owner's" if self._rule == "owned" else "none is followed"
                self._log_rejected(path, f"to {real}, and {why} (external_symlinks)")
        return admitted

    def _log_rejected(self, path: str, why: str) -> None:
        if (more := self._seldom.admit()) is not None:
            log.warning("[%s] %s leads out of the origin, %s: not announced%s", self.name, path, why, more)

    def link_digests(self, paths: Iterable[str]) -> list[str]:
        """Give what is to be remembered of where files lead that were not found, but named, or made by us."""
        reals = [(path, self._real(path)) for path in paths]
        return [_digest(path, real) for path, real in reals if path != real and not self._is_inside(real)]

    def _real(self, path: str) -> str:
        """Give where a path leads, or led a moment ago: what is handed out in the end is looked at when it is open."""
        if os.path.islink(path):
            return os.path.realpath(path)
        directory, _, name = path.rpartition("/")
        return f"{self._real_directory(directory)}/{name}"

    def _real_root(self) -> str:
        return self._real_directory(self._root or "/")

    def _real_directory(self, directory: str) -> str:
        now = time.monotonic()
        real, until = self._directories.get(directory, ("", 0.0))
        if now > until:
            real = os.path.realpath(directory or "/").rstrip("/")
            if len(self._directories) > CACHE_SIZE:
                self._directories.clear()
            self._directories[directory] = real, now + CACHE_TTL
        return real

    def check(self, path: str, real: str, mark: Mapping[str, object]) -> None:
        """Check where an announced path leads now; RequestRefused when it does not lead where it may.

        That is: nowhere else; into the origin; or where it led when it was announced.
        """
        known = mark.get(LINK_DIGESTS)
        if path == real or self._is_inside(real) or (isinstance(known, list) and _digest(path, real) in known):
            return
        raise RequestRejected(f"{os.path.basename(path)} leads elsewhere than when it was announced")

    def _is_inside(self, real: str) -> bool:
        return self._root is not None and symlinks.is_below(real, self._real_root())


def _digest(path: str, real: str) -> str:
    both = f"{path}\0{real}".encode("utf-8", "surrogateescape")
    return hashlib.blake2b(both, digest_size=16).hexdigest()
