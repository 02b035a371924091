"""Unpacks archives and compressed files.

Files are unpacked in a hidden directory inside the target directory and renamed after all checks, so that they appear
completely or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from types import MappingProxyType

from trollmoves.errors import UnpackFailed
from trollmoves.unpacking.archive import unpack_archive
from trollmoves.unpacking.archive_reader import translate_os_errors
from trollmoves.unpacking.bzip import unpack_bzip
from trollmoves.unpacking.packed_file import PackedFile
from trollmoves.unpacking.staging import StagingDirectory
from trollmoves.unpacking.xrit import PROGRAM, unpack_xrit

__all__ = ["SUFFIXES", "applies", "unpack", "unpacked_name"]

BLOCK = 1 << 20  # bytes
PROGRAM_TIMEOUT = 300.0  # seconds; a segment takes less than one
SUFFIXES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"tar": (".tar", ".tar.gz", ".tgz", ".tar.bz2"), "zip": (".zip",), "xrit": ("C_",), "bzip": (".bz2",)}
)
"""The ends of the file names that each unpacker handles."""
_UNPACKED_SUFFIXES = MappingProxyType({"xrit": "__", "bzip": ""})  # which replace those of packed names


def applies(name: str, path: str) -> bool:
    """Return True if the unpacker ``name`` handles this file name; KeyError for an unknown unpacker."""
    base = os.path.basename(path)
    return any(base.endswith(suffix) and base != suffix for suffix in SUFFIXES[name])


def unpacked_name(name: str, path: str) -> str:
    """Return the name or path after unpacking; unchanged for other files and for archives."""
    if name not in _UNPACKED_SUFFIXES or not applies(name, path):
        return path
    return path.removesuffix(SUFFIXES[name][0]) + _UNPACKED_SUFFIXES[name]


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
        name: of an unpacker, a key of ``SUFFIXES``.
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
    if not applies(name, path):
        raise UnpackFailed(f"{path}: its name does not end in {' or '.join(SUFFIXES[name])}")
    with (
        PackedFile(path, on_opened) as source,
        translate_os_errors(f"{path} cannot be unpacked in {directory}"),
        StagingDirectory(source, directory) as staging,
    ):
        if name == "xrit":
            return unpack_xrit(staging, program or PROGRAM, program_timeout)
        if name == "bzip":
            return unpack_bzip(staging, max(block_size, 1))
        return unpack_archive(name, staging, max(block_size, 1))
