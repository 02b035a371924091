"""Runs programs on an SSH server, with file names as data.

The login shell parses the command, so that it must not contain file names: ``xargs -0`` reads them from standard input.
It is started once for all operations of a connection, because a login shell may take a second to start.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable

from trollmoves.errors import (
    ConnectionFailed,
    NoSpace,
    PermissionRefused,
    TemporaryTransferError,
    TransferError,
)
from trollmoves.movers.source_file import SourceFile
from trollmoves.movers.ssh.channel import Channel
from trollmoves.movers.ssh.connection import MAX_QUOTED, translate_ssh_errors

BLOCK = 1 << 20
MAX_OUTPUT = 1 << 16  # bytes of output of one operation
_LOOP = (
    "env LC_ALL=C xargs -0 -n 3 sh -c '"
    'printf "\\0"; case "$1" in'
    ' size) wc -c < "$2";;'
    ' sha256) sha256sum -- "$2";;'
    ' is_directory) test -d "$2";;'
    ' make_directories) mkdir -p -- "$2";;'
    ' rename) mv -f -- "$2" "$3";;'
    ' remove) rm -f -- "$2";;'
    ' esac 2>&1; printf "\\0%d\\n" $?\' sh'
)
_RESULT = re.compile(rb"\0([^\0]*)\0(\d+)\n\Z")  # before the first one the login shell may print a text
_BY_TEXT: tuple[tuple[str, type[TransferError] | int], ...] = (
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
    """Return the exception for the error text of a program or server."""
    lower = text.lower()
    for phrase, kind in _BY_TEXT:
        if phrase in lower:
            return OSError(kind, text) if isinstance(kind, int) else kind(f"the server replied {text!r}")
    return TemporaryTransferError(f"the server replied {text!r}")


class RemoteCommands:
    """Runs operations, one at a time, over one channel, which ``start`` opens for a program."""

    def __init__(self, start: Callable[[str], Channel]) -> None:
        self._start = start
        self._channel: Channel | None = None

    def run(self, operation: str, path: str, other: str = "") -> str:
        """Return the output of ``operation``, one of those in ``_LOOP``, on ``path``.

        Raises:
            OSError, TransferError: the operation failed.
        """
        complete = False
        try:
            with translate_ssh_errors():
                output, code = self._exchange(operation, path, other)
            complete = True
        finally:
            if not complete:
                self.close()
        if code:
            raise error_of(output.strip() or f"{operation} ended with {code}")
        return output

    def is_directory(self, path: str) -> bool:
        """Return True if ``path`` is a directory."""
        try:
            self.run("is_directory", path)
        except ConnectionFailed:
            raise
        except TemporaryTransferError:  # test -d prints nothing
            return False
        return True

    def compare_sha256(self, source: SourceFile, path: str) -> None:
        """Raise ``TemporaryTransferError`` if the content of ``path`` differs from ``source``."""
        remote_digest = self.run("sha256", path).lstrip("\\").split(" ")[0]
        if remote_digest != source.digest("sha256"):
            raise TemporaryTransferError(f"{path}: the SHA-256 sum differs from that of the file")

    def close(self) -> None:
        """Close the channel."""
        if self._channel is not None:
            self._channel.close()
        self._channel = None

    def _exchange(self, *words: str) -> tuple[str, int]:
        if self._channel is None:
            self._channel = self._start(_LOOP)
        self._channel.send(b"".join(os.fsencode(word) + b"\0" for word in words))
        output = b""
        while not (result := _RESULT.search(output)):
            try:
                output += self._channel.receive(BLOCK)
            except ConnectionFailed as error:
                raise _no_programs(output) from error
            if len(output) > MAX_OUTPUT:
                raise _no_programs(output)
        return result[1].decode("utf-8", "replace"), int(result[2])


def _no_programs(output: bytes) -> ConnectionFailed:
    printed = output[:MAX_QUOTED].decode("utf-8", "replace").strip()
    return ConnectionFailed(f"the server does not run programs: {printed!r}")
