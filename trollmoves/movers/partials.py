"""Temporary names of files that are being sent (partials), in the directory of the final name.

``Mover.deliver`` sends a file to its partial, and renames it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trollmoves.errors import LeaseLost

if TYPE_CHECKING:
    from trollmoves.journal import Journal, Task

NAME_MAX = 255  # bytes, the limit of common file systems
TOKEN_BYTES = 6
SUFFIX = ".part"
MAX_PREFIX = 64  # bytes
VISIBLE_BYTES = 32  # of a name in a visible partial, which then has at most 50 bytes after its prefix
_TOKEN = rf"[0-9a-f]{{{2 * TOKEN_BYTES}}}\{SUFFIX}"
_PARTIAL = re.compile(rf"\..*\.{_TOKEN}|.*{_TOKEN}\..+", re.DOTALL)
_ODD = re.compile(r"[^\w.+=,@%-]")  # characters that some protocols or servers do not support
_ROOM = NAME_MAX - len(".") - len(".") - 2 * TOKEN_BYTES - len(SUFFIX)


@dataclass(frozen=True, slots=True)
class PartialId:
    """Identifies the partial of one delivery: equal for all attempts by one member of a fleet, and unique to it.

    Without a fleet it is equal for all attempts in any process. ``may_exist`` is True if an earlier attempt may have
    left the partial. ``earlier`` has the tokens of other members that tried the delivery: their partials are removed,
    so that a member that was suspended cannot rename its own. ``still`` returns False once the delivery may belong to
    another member; None if it cannot.
    """

    token: str
    may_exist: bool = False
    earlier: Sequence[str] = ()
    still: Callable[[], bool] | None = None

    def check_lease(self, label: object) -> None:
        """Raise LeaseLost with ``label`` in its text once the delivery may belong to another member."""
        if self.still and not self.still():
            raise LeaseLost(
                f"{label}: not completed, because this member could not renew its lease: another one delivers the file"
            )

    @classmethod
    def of_task(cls, journal: Journal, task: Task, started: float) -> PartialId:
        """Return the id of the delivery of a task, in a daemon that started at ``started`` by the journal's clock."""
        identity = journal.identity, task.chain, task.key
        earlier = [token_of(*identity, life) for life in task.tried_by if life != journal.life]
        token = token_of(*identity, *filter(None, [journal.life]))
        return cls(token, task.may_have_run(started), earlier, journal.still)


def token_of(*identity: str) -> str:
    """Return the token of the partials of the delivery that the texts ``identity`` name together."""
    digest = hashlib.sha256("\n".join(identity).encode("utf-8", "backslashreplace")).hexdigest()
    return digest[: 2 * TOKEN_BYTES]


def partial_path(path: str, token: str = "") -> str:
    """Return ``.NAME.TOKEN.part`` in the directory of ``path``; with a random token if none is given.

    NAME is truncated to fit 255 bytes; characters except letters, digits and ``.+=,@%-`` become ``_``.
    """
    directory, slash, name = path.rpartition("/")
    name = _ODD.sub("_", name)
    if len(name) * 4 > _ROOM:
        name = os.fsencode(name)[:_ROOM].decode("utf-8", "ignore")
    return f"{directory}{slash}.{name}.{token or os.urandom(TOKEN_BYTES).hex()}{SUFFIX}"


def visible_partial_path(path: str, token: str = "", prefix: str = "") -> str:
    """Return ``PREFIX TOKEN.part.NAME``, without a space, in the directory of ``path``; a token as ``partial_path``.

    For hosts that reject hidden names, accept only some suffixes, or limit the length of a name: only the last
    ``VISIBLE_BYTES`` of NAME are kept. Patterns that begin with a name do not match a partial.
    """
    directory, slash, name = path.rpartition("/")
    end = os.fsencode(_ODD.sub("_", name))[-VISIBLE_BYTES:].decode("utf-8", "ignore")
    return f"{directory}{slash}{prefix}{token or os.urandom(TOKEN_BYTES).hex()}{SUFFIX}.{end}"


def check_prefix(prefix: str) -> None:
    """Raise ``ValueError`` with the rule if ``prefix`` cannot begin a file name."""
    if len(os.fsencode(prefix)) > MAX_PREFIX or any(character == "/" or character < " " for character in prefix):
        raise ValueError(f"must be at most {MAX_PREFIX} bytes, without '/' and control characters")


def is_partial(name: str) -> bool:
    """Return True if ``name``, with or without a directory, has the form of a partial."""
    return SUFFIX in name and _PARTIAL.fullmatch(name.rpartition("/")[2]) is not None


def clean_partials(directory: str, older_than: float) -> list[str]:
    """Remove partials in ``directory`` that were not written for ``older_than`` seconds; return their paths.

    Killed processes leave them. A missing directory is accepted; a partial that cannot be removed is kept.
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
    # Use ctime: a partial may already have the old modification time of its origin.
    return entry.is_file(follow_symlinks=False) and status.st_ctime <= limit
