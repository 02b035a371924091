"""The name under which a file travels, beside its final name and hidden."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from dataclasses import dataclass

NAME_MAX = 255  # bytes in one file name, on every file system that counts
TOKEN_BYTES = 6
SUFFIX = ".part"
_PARTIAL = re.compile(rf"\..*\.[0-9a-f]{{{2 * TOKEN_BYTES}}}\{SUFFIX}", re.DOTALL)
_ODD = re.compile(r"[^\w.+=,@%-]")  # what some protocol or server cannot say, and a partial need not keep
_ROOM = NAME_MAX - len(".") - len(".") - 2 * TOKEN_BYTES - len(SUFFIX)


@dataclass(frozen=True, slots=True)
class PartialId:
    """Whose a partial is: each try of one delivery has the same, by whichever process; no other delivery has it.

    ``tried`` says that there may have been a try before, which may have left its partial.
    """

    token: str
    may_exist: bool = False

    @classmethod
    def for_delivery(cls, *identity: str, tried: bool) -> PartialId:
        """Make the mark of what these texts together name, wherever that is sent from."""
        digest = hashlib.sha256("\n".join(identity).encode("utf-8", "backslashreplace")).hexdigest()
        return cls(digest[: 2 * TOKEN_BYTES], tried)


def partial_path(path: str, token: str = "") -> str:
    """Return a name beside ``path`` that no other transfer uses, ``.NAME.TOKEN.part``; without a token a new one.

    NAME is cut to fit 255 bytes, and has ``_`` for what is no letter, digit or one of ``.+=,@%-``.
    """
    directory, slash, name = path.rpartition("/")
    name = _ODD.sub("_", name)
    if len(name) * 4 > _ROOM:
        name = _truncate(name)
    return f"{directory}{slash}.{name}.{token or os.urandom(TOKEN_BYTES).hex()}{SUFFIX}"


def _truncate(name: str) -> str:
    encoded = os.fsencode(name)
    return name if len(encoded) <= _ROOM else encoded[:_ROOM].decode("utf-8", "ignore")


def is_partial(name: str) -> bool:
    """Tell whether ``name``, with or without a directory, is one that ``partial_path`` makes."""
    return name.endswith(SUFFIX) and _PARTIAL.fullmatch(name.rpartition("/")[2]) is not None


def clean_partials(directory: str, older_than: float) -> list[str]:
    """Remove the partials in ``directory`` that nobody has written to for ``older_than`` seconds; return their paths.

    They are what a process leaves that was killed in the middle. A directory that is missing has none; a partial that
    cannot be removed is left to the next time.
    """
    limit = time.time() - older_than
    removed = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError), os.scandir(directory) as entries:
        for entry in entries:
            if is_partial(entry.name) and _unused_since(entry, limit):
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)
                    removed.append(entry.path)
    return removed


def _unused_since(entry: os.DirEntry[str], limit: float) -> bool:
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:
        return False
    # The change time counts, as a partial may have been given the old modification time of its origin already.
    return entry.is_file(follow_symlinks=False) and status.st_ctime <= limit
