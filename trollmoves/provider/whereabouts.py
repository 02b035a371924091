"""Which files a chain may hand out, by where they really lie."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Mapping

from trollmoves import links
from trollmoves.errors import RequestRefused
from trollmoves.logs import Seldom

log = logging.getLogger(__name__)

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

    def admitted(self, paths: Iterable[str]) -> set[str]:
        """Give those of the files that were found in the origin that may be announced; the log tells of the others."""
        paths = list(paths)
        admitted = set()
        root = os.path.realpath(self._root or "/")
        for path, real in zip(paths, links.real_paths(paths), strict=True):
            why_not = "" if links.is_below(real, root) else self._why_not(path, root)
            if not why_not:
                admitted.add(path)
            elif (more := self._seldom.turn()) is not None:
                log.warning(
                    "[%s] %s leads out of the origin, to %s: not announced, %s%s", self.name, path, real, why_not, more
                )
        return admitted

    def _why_not(self, path: str, root: str) -> str:
        if self._rule == "all":
            return ""
        if self._rule == "none":
            return "as outside_links says"
        try:
            link = links.strange_link(root + path.removeprefix(self._root or ""))
        except OSError as error:
            return error.strerror or str(error)
        return f"since the link {link} is neither ours nor the file owner's (outside_links)" if link else ""

    def marked(self, paths: Iterable[str]) -> dict[str, str]:
        """Give what is to be remembered of files that lead out of the origin, by path: a digest of where to."""
        paths = list(paths)
        return {
            path: _digest(path, real)
            for path, real in zip(paths, links.real_paths(paths), strict=True)
            if path != real and not self._is_inside(real)
        }

    def check(self, path: str, real: str, mark: Mapping[str, object]) -> None:
        """Check where an announced path leads now; RequestRefused when it does not lead where it may.

        That is: nowhere else; into the origin; or where it led when it was announced.
        """
        known = mark.get(LEADS_TO)
        if path == real or self._is_inside(real) or (isinstance(known, list) and _digest(path, real) in known):
            return
        raise RequestRefused(f"{os.path.basename(path)} leads elsewhere than when it was announced")

    def _is_inside(self, real: str) -> bool:
        return self._root is not None and links.is_below(real, os.path.realpath(self._root))


def _digest(path: str, real: str) -> str:
    both = f"{path}\0{real}".encode("utf-8", "surrogateescape")
    return hashlib.blake2b(both, digest_size=16).hexdigest()
