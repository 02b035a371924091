"""Programs run at the far end of an SSH login, which get file names as data.

A login shell reads what is to be run, so that no file name stands there: ``xargs -0`` takes the names from standard
input. It is started once for all operations of a connection, because a login shell may take a second to start.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re

import paramiko

from trollmoves.errors import (
    ConnectionFailed,
    NoSpace,
    PermissionRefused,
    TemporaryTransferError,
    TransferError,
)
from trollmoves.movers.base import SourceFile
from trollmoves.movers.ssh.connection import translate_ssh_errors

BLOCK = 1 << 20
MOST_OUTPUT = 1 << 16  # bytes of a program's words that are kept
_LOOP = (
    "env LC_ALL=C xargs -0 -n 3 sh -c '"
    'case "$1" in'
    ' size) wc -c < "$2";;'
    ' sha256) sha256sum -- "$2";;'
    ' is_directory) test -d "$2";;'
    ' make_directories) mkdir -p -- "$2";;'
    ' rename) mv -f -- "$2" "$3";;'
    ' remove) rm -f -- "$2";;'
    ' esac 2>&1; printf "\\0%d\\n" $?\' sh'
)
_END = re.compile(rb"\0(\d+)\n\Z")
_BY_WORDS: tuple[tuple[str, type[TransferError] | int], ...] = (
    ("no space left", NoSpace),
    ("quota exceeded", NoSpace),
    ("permission denied", PermissionRefused),
    ("not permitted", PermissionRefused),
    ("read-only file system", PermissionRefused),
    ("no such file", errno.ENOENT),
    ("is a directory", errno.EISDIR),
    ("not a directory", errno.ENOTDIR),
    ("file exists", errno.ENOTDIR),
)


def error_of(text: str) -> Exception:
    """Return the error that a program's words mean."""
    lower = text.lower()
    for words, kind in _BY_WORDS:
        if words in lower:
            return OSError(kind, text) if isinstance(kind, int) else kind(f"the far end answers {text!r}")
    return TemporaryTransferError(f"the far end answers {text!r}")


class RemoteCommands:
    """Runs one operation at a time through one channel of a login."""

    def __init__(self, transport: paramiko.Transport, timeout: float | None) -> None:
        self._transport = transport
        self._timeout = timeout
        self._channel: paramiko.Channel | None = None

    def run(self, operation: str, path: str, other: str = "") -> str:
        """Return what ``operation``, one of those in the loop above, prints about ``path``.

        Raises:
            OSError: it failed, and said why.
            TransferError: the same.
        """
        whole = False
        try:
            with translate_ssh_errors():
                printed, code = self._exchange(operation, path, other)
            whole = True
        finally:
            if not whole:
                self.close()
        if code:
            raise error_of(printed.strip() or f"{operation} ended with {code}")
        return printed

    def is_directory(self, path: str) -> bool:
        """Tell whether ``path`` is a directory."""
        try:
            self.run("is_directory", path)
        except ConnectionFailed:
            raise
        except TemporaryTransferError:  # it says nothing, only no
            return False
        return True

    def compare_sha256(self, source: SourceFile, path: str) -> None:
        """Raise ``TemporaryTransferError`` when ``path`` holds something else than ``source``."""
        there = self.run("sha256", path).lstrip("\\").split(" ")[0]
        digest = hashlib.sha256()
        with source.reader() as reader:
            while block := reader.read(BLOCK):
                digest.update(block)
        if there != digest.hexdigest():
            raise TemporaryTransferError(f"{path}: the SHA-256 sum there is another one")

    def close(self) -> None:
        """End the loop."""
        if self._channel is not None:
            with contextlib.suppress(Exception):
                self._channel.close()
        self._channel = None

    def _exchange(self, *words: str) -> tuple[str, int]:
        if self._channel is None:
            self._channel = self._transport.open_session(timeout=self._timeout)
            self._channel.settimeout(self._timeout)
            self._channel.set_combine_stderr(True)
            self._channel.exec_command(_LOOP)
        self._channel.sendall(b"".join(os.fsencode(word) + b"\0" for word in words))
        printed = b""
        while not (end := _END.search(printed)):
            more = self._channel.recv(BLOCK)
            if not more:
                raise ConnectionFailed(f"no programs run there: {printed.decode('utf-8', 'replace').strip()!r}")
            printed = printed[-MOST_OUTPUT:] + more
        return printed[: end.start()].decode("utf-8", "replace"), int(end[1])
