"""Unpacks archives and compressed files.

Files are unpacked in a hidden directory inside the target directory and renamed after all checks, so that they appear
completely or not at all. ``UNPACKERS`` is the registry of unpackers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from trollmoves.errors import UnpackFailed
from trollmoves.unpacking.archive import unpack_archive
from trollmoves.unpacking.archive_reader import translate_os_errors
from trollmoves.unpacking.bzip import unpack_bzip
from trollmoves.unpacking.packed_file import PackedFile
from trollmoves.unpacking.staging import StagingDirectory
from trollmoves.unpacking.xrit import unpack_xrit

__all__ = ["UNPACKERS", "Unpacker", "applies", "unpack", "unpacked_name"]

BLOCK = 1 << 20  # bytes
PROGRAM_TIMEOUT = 300.0  # seconds; a segment takes less than one


@dataclass(frozen=True)
class Settings:
    """Settings of the caller for one file."""

    program: str | None
    block_size: int
    program_timeout: float


@dataclass(frozen=True)
class Unpacker:
    """An unpacker for file names that end in one of ``suffixes``."""

    suffixes: tuple[str, ...]
    unpack: Callable[[StagingDirectory, Settings], list[str]]


UNPACKERS: Mapping[str, Unpacker] = MappingProxyType(
    {
        "tar": Unpacker(
            (".tar", ".tar.gz", ".tgz", ".tar.bz2"),
            lambda staging, settings: unpack_archive("tar", staging, settings.block_size),
        ),
        "zip": Unpacker((".zip",), lambda staging, settings: unpack_archive("zip", staging, settings.block_size)),
        "xrit": Unpacker(
            ("C_",), lambda staging, settings: unpack_xrit(staging, settings.program, settings.program_timeout)
        ),
        "bzip": Unpacker((".bz2",), lambda staging, settings: unpack_bzip(staging, settings.block_size)),
    }
)


_SUFFIXES = MappingProxyType({"xrit": ("C_", "__"), "bzip": (".bz2", "")})  # suffixes of packed and unpacked names


def applies(name: str, path: str) -> bool:
    """Return True if the unpacker ``name`` handles this file name; KeyError for an unknown unpacker."""
    base = os.path.basename(path)
    return any(base.endswith(suffix) and base != suffix for suffix in UNPACKERS[name].suffixes)


def unpacked_name(name: str, path: str) -> str:
    """Return the name or path after unpacking; unchanged for other files and for archives."""
    suffixes = _SUFFIXES.get(name)
    return path.removesuffix(suffixes[0]) + suffixes[1] if suffixes and applies(name, path) else path


def unpack(
    name: str,
    path: str,
    directory: str,
    *,
    program: str | None = None,
    block_size: int = BLOCK,
    program_timeout: float = PROGRAM_TIMEOUT,
    on_opened: Callable[[int], None] | None = None,
) -> list[str]:
    """Unpack the file ``path`` into ``directory``, which is created if missing; blocks until done.

    Any number of threads may call this concurrently, also for the same directory. The packed file is kept. Existing
    files of the same names are replaced atomically, so that unpacking again gives the same result.

    Args:
        name: one of ``UNPACKERS``.
        path: the packed file; its name must match the unpacker.
        directory: target directory. Permissions follow the umask and are never world-writable; files of a tar archive
            keep their modification times.
        program: for xrit, path of the program or its name in ``$PATH``; None: ``xRITDecompress``.
        block_size: bytes unpacked at a time; for archives at most 1 MiB.
        program_timeout: seconds after which the program is killed.
        on_opened: called with the descriptor of the packed file before it is read; its exceptions propagate. All
            content comes from this descriptor.

    Returns:
        Absolute paths of the files, in the archive's order; at least one.

    Raises:
        TemporaryUnpackError: the same call may succeed later.
        UnpackFailed: it fails until an operator changes something; the text names the archive and member.
        KeyError: the unpacker is unknown.
    """
    unpacker = UNPACKERS[name]
    if not applies(name, path):
        raise UnpackFailed(f"{path}: its name does not end in {' or '.join(unpacker.suffixes)}")
    with (
        PackedFile(path, on_opened) as source,
        translate_os_errors(f"{path} cannot be unpacked in {directory}"),
        StagingDirectory(source, directory) as staging,
    ):
        return unpacker.unpack(staging, Settings(program or None, max(block_size, 1), program_timeout))
