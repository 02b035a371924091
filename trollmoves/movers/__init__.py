"""Movers: one file, one try, one destination, one protocol each."""

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
]

# A new mover is one line here.
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
    """The mover of each URL scheme; its module, with the library underneath, is imported when first asked for."""

    def __getitem__(self, scheme: str) -> type[Mover]:
        return _mover_class(REGISTRY[scheme])

    def __iter__(self) -> Iterator[str]:
        return iter(REGISTRY)

    def __len__(self) -> int:
        return len(REGISTRY)


MOVERS: Mapping[str, type[Mover]] = _Movers()


@functools.cache
def _mover_class(place: str) -> type[Mover]:
    module, _, name = place.rpartition(".")
    found: type[Mover] = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    return found


def __getattr__(name: str) -> Any:
    for place in REGISTRY.values():
        if place.endswith(f".{name}"):
            return _mover_class(place)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def move_it(
    pathname: str | os.PathLike[str],
    destination: str | ParseResult,
    attrs: Mapping[str, Any] | None = None,
    hook: Callable[[str, ParseResult], Any] | None = None,
    rel_path: str | None = None,
    backup_targets: Sequence[str] | None = None,
    check: Callable[[int], None] | None = None,
    mark: PartialId | None = None,
) -> ParseResult:
    """Deliver a copy of the file ``pathname``, and return the destination that took it; any thread may call.

    Args:
        pathname: the file.
        destination: URL, or ``ParseResult``. With a trailing ``/`` the file keeps its name; without it an existing
            directory takes the file in, else the last part is the new name. Missing directories are made.
        attrs: connection parameters, only read.
        hook: called with the pathname and the destination when the file is there; what it raises is raised.
        rel_path: a directory below the destination, which takes the file in.
        backup_targets: hosts tried in turn when the destination's cannot be reached.
        check: called with the descriptor of the open file before anything is sent; what it raises is raised.
        mark: names the partial of this delivery, so that its next try replaces what a killed process left.

    Raises:
        TransferError: the file was not delivered; its ``temporary`` tells whether the same may succeed later.
        ConfigError: a connection parameter makes no sense.
    """
    target = parse_destination(destination)
    if rel_path:
        target = _with_subpath(target, rel_path)
    place = REGISTRY.get(target.scheme)
    if place is None:
        raise BadDestination(f"{urls.redacted(target)}: no mover knows the scheme {target.scheme!r}")
    mover = _load_mover(target.scheme, place)(pathname, target, attrs, backup_targets, mark)
    mover.on_opened = check
    mover.copy()
    if hook is not None:
        hook(mover.origin, mover.destination)
    return mover.destination


def _load_mover(scheme: str, place: str) -> type[Mover]:
    try:
        return _mover_class(place)
    except ModuleNotFoundError as error:
        extra = "s3" if scheme == "s3" else "ssh"
        raise PermanentTransferError(
            f"deliveries by {scheme} need {error.name}, which is not installed: pip install 'trollmoves[{extra}]'"
        ) from error


def _with_subpath(destination: ParseResult, rel_path: str) -> ParseResult:
    if rel_path.startswith(("/", "\\")) or ".." in rel_path.replace("\\", "/").split("/"):
        raise BadDestination(f"{rel_path!r} is no path below the destination")
    return destination._replace(path=f"{destination.path.rstrip('/')}/{rel_path.strip('/')}/")


def close_connections() -> None:
    """Close the connections that deliveries have left open for the next one; running transfers are not disturbed."""
    from trollmoves.movers.pool import shared_pool

    shared_pool().close()
