"""Where the control socket of a daemon is: next to its journal, or in ``$RUNTIME_DIRECTORY`` with a link there."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

SUFFIX = ".sock"
MAX_NAME = 80  # bytes of a file name that fit into an address of a socket, with the path of its directory
MAX_ADDRESS = 107  # bytes of the path in the address of a Unix socket


def link_path(journal: str) -> str:
    """Return the path through which commands find the socket of the daemon with this journal."""
    directory, name = os.path.split(journal)
    return os.path.join(directory, _short(name) + SUFFIX)


def socket_path(journal: str) -> str:
    """Return the path of the socket: in ``$RUNTIME_DIRECTORY`` (systemd) if that is set, else next to the journal."""
    runtime = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    if not runtime:
        return link_path(journal)
    stem = os.path.basename(journal).removesuffix(".journal")
    return os.path.join(runtime, f"{_short(stem)[: MAX_NAME - 10]}-{_digest(journal)[:8]}{SUFFIX}")


@contextmanager
def address_of(path: str) -> Iterator[str]:
    """Yield a path of the same file that fits into the address of a socket."""
    if len(os.fsencode(path)) <= MAX_ADDRESS:
        yield path
        return
    directory = os.open(os.path.dirname(path) or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{os.path.basename(path)}"
    finally:
        os.close(directory)


def _short(name: str) -> str:
    return name if len(os.fsencode(name)) <= MAX_NAME - len(SUFFIX) else _digest(name)[:16]


def _digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()
