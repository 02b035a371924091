"""Which failed pushes their clients still want."""

from __future__ import annotations

import re
import sqlite3

# Of tasks ``t`` with a failure: without pushes of files that the client got from another source, or has requested to
# another destination since. For connections with ``add_functions``.
WANTED = (
    "(t.failure = 'failed' OR t.announcement_number IS NULL OR NOT EXISTS (SELECT 1 FROM tasks k "
    "WHERE k.announcement_number = t.announcement_number AND k.chain = t.chain AND (k.kind = 'ack' OR "
    "(k.kind = 'push' AND k.created > t.created AND requester(k.body) = requester(t.body)))))"
)
_REQUESTER = re.compile(r'"request": \{"id": "((?:[^"\\]|\\.)*)/')


def add_functions(db: sqlite3.Connection) -> None:
    """Add to a connection the functions of ``WANTED``."""
    db.create_function("requester", 1, _requester, deterministic=True)


def _requester(body: str) -> str | None:
    """Return the client in the body of a push, None if it is not known: a legacy client has no name."""
    found = _REQUESTER.search(body)
    return found[1] if found else None
