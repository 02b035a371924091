"""Unpacks one file that was compressed by bzip2."""

from __future__ import annotations

import bz2
import os

from trollmoves.errors import UnpackFailed
from trollmoves.unpacking.archive_reader import translate_damage
from trollmoves.unpacking.staging import StagingDirectory

SUFFIX = ".bz2"


def unpack_bzip(place: StagingDirectory, block_size: int) -> list[str]:
    """Install the file in ``place.packed``, whose name ends in ``.bz2``, without that suffix.

    All of it is unpacked when it is several compressed files, one after another.

    Args:
        place: where, and of what.
        block_size: bytes that are unpacked at a time; no more than some of them are in memory.

    Raises:
        UnpackFailed: it is damaged.
        OSError: it cannot be read, or the file not written.
    """
    packed = place.packed
    if not os.stat(packed).st_size:
        raise UnpackFailed(f"{packed} is damaged: it is empty")
    with place.new_file("0") as file, translate_damage(packed), bz2.BZ2File(packed) as source:
        while block := source.read(block_size):
            file.write(block)
    return place.commit({os.path.basename(packed).removesuffix(SUFFIX): file.name})
