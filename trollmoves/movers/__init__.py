"""Movers: each makes one attempt to deliver one file by one protocol."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import ParseResult

from trollmoves.errors import BadDestination, PermanentTransferError
from trollmoves.movers.base import Mover, PartialId, clean_partials, is_partial, parse_destination
from trollmoves.movers.file import FileMover
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

# Register a new mover here.
REGISTRY: Mapping[str, str] = {
    "": "file.FileMover",
    "file": "file.FileMover",
    "ftp": "ftp.FtpMover",
    "ftps": "ftp.FtpsMover",
    "scp": "ssh.scp.ScpMover",
    "sftp": "ssh.sftp.SftpMover",
    "s3": "s3.S3Mover",
}


class _Movers(Mapping[str, type[Mover]]):
    """Mover classes by URL scheme; a module and its library are imported on first use."""

    def __getitem__(self, scheme: str) -> type[Mover]:
        return _mover_class(REGISTRY[scheme])

    def __iter__(self) -> Iterator[str]:
        return iter(REGISTRY)

    def __len__(self) -> int:
        return len(REGISTRY)


MOVERS: Mapping[str, type[Mover]] = _Movers()


@functools.cache
def _mover_class(location: str) -> type[Mover]:
    module, _, name = location.rpartition(".")
    mover_class: type[Mover] = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    return mover_class


def __getattr__(name: str) -> Any:
    for location in REGISTRY.values():
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
        ConfigError: a connection parameter is invalid.
    """
    target = parse_destination(destination)
    if rel_path:
        target = _with_subpath(target, rel_path)
    location = REGISTRY.get(target.scheme)
    if location is None:
        raise BadDestination(f"{urls.redacted(target)}: no mover knows the scheme {target.scheme!r}")
    mover = _load_mover(target.scheme, location)(pathname, target, attrs, backup_targets, partial_id)
    mover.on_opened = on_opened
    mover.copy()
    if hook is not None:
        hook(mover.origin, mover.destination)
    return mover.destination


def mover_for(scheme: str) -> type[Mover]:
    """Return the mover class of a scheme; raise PermanentTransferError if its library is not installed.

    Raises BadDestination for an unknown scheme.
    """
    location = REGISTRY.get(scheme)
    if location is None:
        raise BadDestination(f"no mover knows the scheme {scheme!r}")
    return _load_mover(scheme, location)


def _load_mover(scheme: str, location: str) -> type[Mover]:
    try:
        return _mover_class(location)
    except ModuleNotFoundError as error:
        extra = "s3" if scheme == "s3" else "ssh"
        raise PermanentTransferError(
            f"deliveries by {scheme} need {error.name}, which is not installed: pip install 'trollmoves[{extra}]'"
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
