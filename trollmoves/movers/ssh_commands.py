"""Programs run at the far end of an SSH login, which get file names as data.

A login shell reads the command, so that no file name stands in it: ``xargs -0`` takes the names from standard input.
"""

from __future__ import annotations

import hashlib
import os

import paramiko

from trollmoves.errors import ConnectionFailed, NoSpace, PermissionRefused, TemporaryTransferError, TransferError
from trollmoves.movers.base import Source
from trollmoves.movers.ssh import ssh_told

BLOCK = 1 << 20
MOST_OUTPUT = 1 << 16  # bytes of a program's words that are kept
_BY_WORDS: tuple[tuple[str, type[Exception]], ...] = (
    ("No space left", NoSpace),
    ("quota exceeded", NoSpace),
    ("Permission denied", PermissionRefused),
    ("not permitted", PermissionRefused),
    ("Read-only file system", PermissionRefused),
    ("No such file", FileNotFoundError),
    ("Is a directory", IsADirectoryError),
    ("Not a directory", NotADirectoryError),
)


def error_of(text: str) -> Exception:
    """Return the error that a program's words mean."""
    for words, kind in _BY_WORDS:
        if words in text:
            return kind(text) if issubclass(kind, TransferError) else kind(None, text)
    return TemporaryTransferError(f"the far end answers {text!r}")


class RemoteCommands:
    """Runs one program at a time over channels of one login."""

    def __init__(self, transport: paramiko.Transport, timeout: float | None) -> None:
        self._transport = transport
        self._timeout = timeout

    def run(self, program: str, *paths: str) -> str:
        """Return what ``program`` prints, called with ``paths``.

        Raises:
            OSError: it failed, and said why.
            TransferError: the same.
        """
        code, printed = self._run(f"LC_ALL=C xargs -0 {program}", b"".join(os.fsencode(path) + b"\0" for path in paths))
        if code:
            raise error_of(printed.strip() or f"{program} ended with {code}")
        return printed

    def _run(self, command: str, data: bytes) -> tuple[int, str]:
        with ssh_told():
            channel = self._transport.open_session(timeout=self._timeout)
            try:
                channel.settimeout(self._timeout)
                channel.set_combine_stderr(True)
                channel.exec_command(f"env {command}")
                channel.sendall(data)
                channel.shutdown_write()
                printed = b""
                while more := channel.recv(BLOCK):
                    printed = (printed + more)[:MOST_OUTPUT]
                if not channel.status_event.wait(self._timeout):
                    raise ConnectionFailed(f"{command.split()[-1]} does not end")
                return channel.recv_exit_status(), printed.decode("utf-8", "replace")
            finally:
                channel.close()

    def compare_sha256(self, source: Source, path: str) -> None:
        """Raise ``TemporaryTransferError`` when ``path`` holds something else than ``source``."""
        there = self.run("sha256sum --", path).lstrip("\\").split(" ")[0]
        digest = hashlib.sha256()
        with source.reader() as reader:
            while block := reader.read(BLOCK):
                digest.update(block)
        if there != digest.hexdigest():
            raise TemporaryTransferError(f"{path}: the SHA-256 sum there is another one")
