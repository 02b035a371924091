"""Which files a chain may hand out, by where they really lie."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterable, Mapping

from trollmoves import links
from trollmoves.errors import RequestRefused
from trollmoves.logs import Seldom

log = logging.getLogger(__name__)

KNOWN_FOR = 1.0  # s for which it is taken for true where a directory leads
MOST_KNOWN = 1_000  # directories
LEADS_TO = "leads_to"  # in the mark of an announcement: digests of where links led when it was made


class Whereabouts:
    """The origin of one chain (None: its files are named by messages), and what its links may do. Any thread.

    ``rule`` is for links that lead out of the origin: ``all`` are followed, ``none`` is, or those that are ``owned``
    as ``links.strange_link`` has it.
    """

    def __init__(self, name: str, root: str | None, rule: str) -> None:
        self.name = name
        self._root = root
        self._rule = rule
        self._seldom = Seldom()
        self._directories: dict[str, tuple[str, float]] = {}  # where they lead, and until when that is taken for true

    def admitted(self, paths: Iterable[str]) -> dict[str, list[str]]:
        """Give those of the files found in the origin that may be announced; the log tells of the others.

        With each comes what is to be remembered of where it leads, a list that is empty when it leads nowhere else.
        """
        admitted: dict[str, list[str]] = {}
        for path in paths:
            if self._is_inside(self._real(path)):
                admitted[path] = []
                continue
            try:
                real, strange = links.followed(self._real_root() + path.removeprefix(self._root or ""))
            except OSError as error:
                self._tell(path, error.strerror or str(error))
                continue
            if self._is_inside(real):
                admitted[path] = []
            elif self._rule == "all" or (self._rule == "owned" and not strange):
                admitted[path] = [_digest(path, real)]
            else:
                why = f"{strange} is neither ours nor the file owner's" if self._rule == "owned" else "none is followed"
                self._tell(path, f"to {real}, and {why} (outside_links)")
        return admitted

    def _tell(self, path: str, why: str) -> None:
        if (more := self._seldom.turn()) is not None:
            log.warning("[%s] %s leads out of the origin, %s: not announced%s", self.name, path, why, more)

    def marked(self, paths: Iterable[str]) -> list[str]:
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
            if len(self._directories) > MOST_KNOWN:
                self._directories.clear()
            self._directories[directory] = real, now + KNOWN_FOR
        return real

    def check(self, path: str, real: str, mark: Mapping[str, object]) -> None:
        """Check where an announced path leads now; RequestRefused when it does not lead where it may.

        That is: nowhere else; into the origin; or where it led when it was announced.
        """
        known = mark.get(LEADS_TO)
        if path == real or self._is_inside(real) or (isinstance(known, list) and _digest(path, real) in known):
            return
        raise RequestRefused(f"{os.path.basename(path)} leads elsewhere than when it was announced")

    def _is_inside(self, real: str) -> bool:
        return self._root is not None and links.is_below(real, self._real_root())


def _digest(path: str, real: str) -> str:
    both = f"{path}\0{real}".encode("utf-8", "surrogateescape")
    return hashlib.blake2b(both, digest_size=16).hexdigest()
