"""A packed file becomes the files that were in it.

They appear whole or not at all: all is unpacked in a hidden directory beside the target and renamed at the end, when
nothing can be wrong any more. ``UNPACKERS`` is the registry; a new way to unpack is a line there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from trollmoves.errors import UnpackFailed
from trollmoves.unpacking.archive import unpack_archive
from trollmoves.unpacking.archive_reader import check_is_file, translate_os_errors
from trollmoves.unpacking.bzip import unpack_bzip
from trollmoves.unpacking.staging import StagingDirectory
from trollmoves.unpacking.xrit import unpack_xrit

__all__ = ["UNPACKERS", "Unpacker", "applies", "unpack", "unpacked_name"]

BLOCK = 1 << 20  # bytes
PROGRAM_TIMEOUT = 300.0  # s; a segment takes well under one


@dataclass(frozen=True)
class Settings:
    """What a caller may say about the unpacking of one file."""

    program: str | None
    block_size: int
    program_timeout: float


@dataclass(frozen=True)
class Unpacker:
    """One way to unpack: for files whose names end in one of ``suffixes``."""

    suffixes: tuple[str, ...]
    unpack: Callable[[StagingDirectory, Settings], list[str]]


UNPACKERS: Mapping[str, Unpacker] = MappingProxyType(
    {
        "tar": Unpacker(
            (".tar", ".tar.gz", ".tgz", ".tar.bz2"),
            lambda place, settings: unpack_archive("tar", place, settings.block_size),
        ),
        "zip": Unpacker((".zip",), lambda place, settings: unpack_archive("zip", place, settings.block_size)),
        "xrit": Unpacker(
            ("C_",), lambda place, settings: unpack_xrit(place, settings.program, settings.program_timeout)
        ),
        "bzip": Unpacker((".bz2",), lambda place, settings: unpack_bzip(place, settings.block_size)),
    }
)


_ENDS = MappingProxyType({"xrit": ("C_", "__"), "bzip": (".bz2", "")})  # of names, packed and unpacked


def applies(name: str, path: str) -> bool:
    """Tell by the file's name whether the unpacker ``name`` is for it; KeyError when there is no such unpacker."""
    base = os.path.basename(path)
    return any(base.endswith(suffix) and base != suffix for suffix in UNPACKERS[name].suffixes)


def unpacked_name(name: str, path: str) -> str:
    """Give what the unpacker ``name`` makes of a name or path: the same when it is for others, or for archives."""
    end = _ENDS.get(name)
    return path.removesuffix(end[0]) + end[1] if end and applies(name, path) else path


def unpack(
    name: str,
    path: str,
    directory: str,
    *,
    program: str | None = None,
    block_size: int = BLOCK,
    program_timeout: float = PROGRAM_TIMEOUT,
) -> list[str]:
    """Unpack the file ``path`` into ``directory``, which is made when it is missing; blocks until that is done.

    Any thread may call this, and any number of them at once, for one directory too. The packed file stays. What has
    the name of an unpacked file is replaced at once by it, so unpacking again gives the same.

    Args:
        name: one of ``UNPACKERS``.
        path: the packed file; its name must be one that the unpacker is for.
        directory: where the files go. Their permissions follow the umask, without writing for everyone; files of a
            tar archive keep their modification times.
        program: for xrit, the path of the program, or its name in ``$PATH``; ``xRITDecompress`` when None.
        block_size: bytes that are unpacked at a time; a megabyte at most is used for archives.
        program_timeout: seconds after which a program is ended.

    Returns:
        Absolute paths of the files, in the archive's order; at least one.

    Raises:
        TemporaryUnpackError: the same may succeed later.
        UnpackFailed: it will not before somebody mends something; the text names the archive and its bad member.
        KeyError: there is no such unpacker.
    """
    unpacker = UNPACKERS[name]
    if not applies(name, path):
        raise UnpackFailed(f"{path}: its name does not end in {' or '.join(unpacker.suffixes)}")
    check_is_file(path)
    with translate_os_errors(f"{path} cannot be unpacked in {directory}"), StagingDirectory(path, directory) as place:
        return unpacker.unpack(place, Settings(program or None, max(block_size, 1), program_timeout))
