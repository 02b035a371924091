"""Which failed pushes their clients still want."""

from __future__ import annotations

import re
import sqlite3

from trollmoves.journal.common.reader import wanted

WANTED = wanted("requester({})")  # for connections with ``add_functions``
_REQUESTER = re.compile(r'"request": \{"id": "((?:[^"\\]|\\.)*)/')


def add_functions(db: sqlite3.Connection) -> None:
    """Add to a connection the functions of ``WANTED``."""
    db.create_function("requester", 1, _requester, deterministic=True)


def _requester(body: str) -> str | None:
    """Return the client in the body of a push, None if it is not known: a legacy client has no name."""
    found = _REQUESTER.search(body)
    return found[1] if found else None
