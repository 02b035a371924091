"""Checks that a directory at a destination accepts files: logs in, writes a probe file and removes it."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Mapping
from typing import Any
from urllib.parse import ParseResult

from trollmoves.errors import BadDestination
from trollmoves.movers import mover_for
from trollmoves.utils.logs import format_bytes


def check_destination(directory: ParseResult, attrs: Mapping[str, Any], *, is_created: bool = True) -> str:
    """Return the result for ``directory``, which deliveries would write to; ``attrs`` are connection parameters.

    Without ``is_created`` a missing directory is an error; otherwise the directory above it must accept files.

    Raises:
        TransferError: the host, the login or the directory does not accept files. Its text contains no secret.
        ConfigError: a connection parameter is invalid.
    """
    if not directory.path.endswith("/"):
        directory = directory._replace(path=f"{directory.path}/")
    mover_class = mover_for(directory.scheme)
    with tempfile.NamedTemporaryFile() as probe:
        probe.write(b"trollmoves\n")
        probe.flush()
        mover = mover_class(probe.name, directory, attrs)
        found = mover.check(f".trollmoves-check-{secrets.token_hex(4)}")
    if not (found or is_created):
        raise BadDestination(f"the directory {directory.path} does not exist: create it, or correct the path")
    missing = "" if found else f"; the directory {directory.path} does not exist: the first delivery creates it"
    if directory.scheme in ("", "file"):
        path = directory.path
        while not os.path.isdir(path):
            if os.path.lexists(path.rstrip("/")):
                raise BadDestination(f"{path.rstrip('/')} is not a directory: remove it, or correct the path")
            path = os.path.dirname(path.rstrip("/"))
        status = os.statvfs(path)
        return f"ok, writable, {format_bytes(status.f_bavail * status.f_frsize)} free{missing}"
    return f"ok, logged in, writable{missing}"
