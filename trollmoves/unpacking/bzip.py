"""Unpacks one file that was compressed by bzip2."""

from __future__ import annotations

import bz2
import os

from trollmoves.errors import UnpackFailed
from trollmoves.unpacking.archive_reader import translate_damage
from trollmoves.unpacking.staging import StagingDirectory

SUFFIX = ".bz2"


def unpack_bzip(staging: StagingDirectory, block_size: int) -> list[str]:
    """Unpack the file ``staging.packed`` to its name without ``.bz2``.

    A file of several concatenated bzip2 streams is unpacked completely.

    Args:
        staging: the staging directory.
        block_size: bytes unpacked at a time, which bounds the memory.

    Raises:
        UnpackFailed: the file is damaged.
        OSError: the file cannot be read, or the result not written.
    """
    packed = staging.packed
    if not staging.source.status.st_size:
        raise UnpackFailed(f"{packed} is damaged: it is empty")
    with staging.new_file("0") as file, translate_damage(packed), bz2.BZ2File(staging.source.reader()) as source:
        while block := source.read(block_size):
            file.write(block)
    return staging.commit({os.path.basename(packed).removesuffix(SUFFIX): file.name})
