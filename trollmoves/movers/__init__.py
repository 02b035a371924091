"""Movers: each makes one attempt to deliver one file by one protocol."""

from __future__ import annotations

import functools
import importlib
import os
from collections import UserDict
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import ParseResult

from trollmoves.errors import BadDestination, PermanentTransferError, UnknownScheme
from trollmoves.movers.base import Mover, parse_destination
from trollmoves.movers.file import FileMover
from trollmoves.movers.partials import PartialId, clean_partials, is_partial
from trollmoves.net import urls

if TYPE_CHECKING:
    from trollmoves.movers.ftp import FtpMover, FtpsMover
    from trollmoves.movers.s3 import S3Mover
    from trollmoves.movers.ssh.scp import ScpMover
    from trollmoves.movers.ssh.sftp import SftpMover

__all__ = [
    "MOVERS",
    "FileMover",
    "FtpMover",
    "FtpsMover",
    "Mover",
    "PartialId",
    "S3Mover",
    "ScpMover",
    "SftpMover",
    "clean_partials",
    "close_connections",
    "is_partial",
    "move_it",
    "mover_for",
]

# Register a new mover of this package here.
_CLASSES = {
    "": "file.FileMover",
    "file": "file.FileMover",
    "ftp": "ftp.FtpMover",
    "ftps": "ftp.FtpsMover",
    "scp": "ssh.scp.ScpMover",
    "sftp": "ssh.sftp.SftpMover",
    "s3": "s3.S3Mover",
}


class _Movers(UserDict[str, Any]):
    """Mover classes by URL scheme; a module and its library are imported on first use.

    A script may register its movers (``MOVERS["dav"] = DavMover``) or replace others before the first delivery.
    """

    def __getitem__(self, scheme: str) -> type[Mover]:
        found: str | type[Mover] = self.data[scheme]
        return _mover_class(found) if isinstance(found, str) else found


MOVERS: MutableMapping[str, type[Mover]] = _Movers(_CLASSES)


@functools.cache
def _mover_class(location: str) -> type[Mover]:
    module, _, name = location.rpartition(".")
    mover_class: type[Mover] = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    return mover_class


def __getattr__(name: str) -> Any:
    for location in _CLASSES.values():
        if location.endswith(f".{name}"):
            return _mover_class(location)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def move_it(
    pathname: str | os.PathLike[str],
    destination: str | ParseResult,
    attrs: Mapping[str, Any] | None = None,
    hook: Callable[[str, ParseResult], Any] | None = None,
    rel_path: str | None = None,
    backup_targets: Sequence[str] | None = None,
    on_opened: Callable[[int], None] | None = None,
    partial_id: PartialId | None = None,
) -> ParseResult:
    """Deliver a copy of the file ``pathname`` and return the destination that received it; any thread may call.

    The path of the result ends with ``/`` if the file kept its name in that directory.

    Args:
        pathname: path of the file.
        destination: URL or ``ParseResult``. With a trailing ``/``, or if it is an existing directory, the file keeps
            its name in that directory; else the last part is the new name. Missing directories are created.
        attrs: connection parameters; not modified.
        hook: called with the pathname and the destination after the delivery; its exceptions propagate.
        rel_path: a directory below the destination for the file.
        backup_targets: hosts tried in order if the host of the destination cannot be reached.
        on_opened: called with the descriptor of the open file before data is sent; its exceptions propagate.
        partial_id: names the partial of this delivery, so that the next attempt replaces the partial of a killed
            process.

    Raises:
        TransferError: the file was not delivered; ``temporary`` is True if the same delivery may succeed later.
            It is also a ``FileNotFoundError``, ``PermissionError``, ``ConnectionError``, ``TimeoutError`` or
            ``OSError``; a ``KeyError`` for an unknown scheme.
        ConfigError: a connection parameter is invalid.
    """
    target = parse_destination(destination)
    if rel_path:
        target = _with_subpath(target, rel_path)
    if target.scheme not in MOVERS:
        raise UnknownScheme(f"{urls.redacted(target)}: no mover knows the scheme {target.scheme!r}")
    mover = mover_for(target.scheme)(pathname, target, attrs, backup_targets)
    mover.partial_id = partial_id
    mover.on_opened = on_opened
    mover.copy()
    if hook is not None:
        hook(mover.origin, mover.destination)
    return mover.destination


def mover_for(scheme: str) -> type[Mover]:
    """Return the mover class of a scheme.

    Raises:
        UnknownScheme: no mover supports the scheme.
        PermanentTransferError: its library is not installed.
    """
    try:
        return MOVERS[scheme]
    except KeyError:
        raise UnknownScheme(f"no mover knows the scheme {scheme!r}") from None
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        raise PermanentTransferError(
            f"deliveries by {scheme} need {library}, which is not installed: pip install {library}"
        ) from error


def _with_subpath(destination: ParseResult, rel_path: str) -> ParseResult:
    if rel_path.startswith(("/", "\\")) or ".." in rel_path.replace("\\", "/").split("/"):
        raise BadDestination(
            f"{rel_path!r} is not a path below the destination: it must be relative and must not contain '..'"
        )
    return destination._replace(path=f"{destination.path.rstrip('/')}/{rel_path.strip('/')}/")


def close_connections() -> None:
    """Close the idle connections; running transfers continue."""
    from trollmoves.movers.pool import shared_pool

    shared_pool().close()
