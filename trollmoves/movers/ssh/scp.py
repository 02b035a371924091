"""Delivers by SCP: many files through one ``scp`` process on the server, or one file at a time by the ``scp`` package.

``scp -r -t /`` writes files to any directory it is sent to, so that one process serves all deliveries of a connection,
and no file name is part of a shell command. Sizes and renames use SFTP over the same login, or programs on a server
without SFTP. A server that allows one channel for each login is served by the ``scp`` package: one process a file.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import time
from abc import abstractmethod
from collections.abc import Callable
from typing import TypeVar

import paramiko
import scp

from trollmoves.errors import ConnectionFailed, NameRejected, TransferStalled
from trollmoves.movers import options
from trollmoves.movers.host_capabilities import HostCapabilities
from trollmoves.movers.pool import Connection
from trollmoves.movers.source_file import SourceFile
from trollmoves.movers.ssh.commands import RemoteCommands, error_of
from trollmoves.movers.ssh.connection import (
    MAX_QUOTED,
    ChannelRefused,
    SshMover,
    close_after,
    receive,
    send_all,
    start,
    translate_ssh_errors,
)
from trollmoves.movers.ssh.sftp import open_sftp

T = TypeVar("T")

SINK = "scp -r -t /"
BLOCK = 1 << 18  # bytes passed to paramiko in one call
MAX_REPLY = 1 << 16  # bytes
OK, WARNING, FATAL = b"\0", b"\1", b"\2"
CHANNEL_TIMEOUT = 10.0  # seconds to wait until the server has ended the channel before
CHANNEL_RETRY_DELAY = 0.02  # seconds


class CommandConnection(Connection):
    """File operations on a server without SFTP, by its programs; the owner of the commands closes them."""

    def __init__(self, commands: RemoteCommands) -> None:
        self._commands = commands

    def is_directory(self, path: str) -> bool:
        """Return True if ``test -d`` succeeds."""
        return self._commands.is_directory(path)

    def make_directories(self, path: str) -> None:
        """Create the directories by ``mkdir -p``."""
        self._commands.run("make_directories", path)

    def send(self, source: SourceFile, path: str) -> None:
        """Raise: files are sent by SCP."""
        raise NotImplementedError

    def size(self, path: str) -> int:
        """Return the size that ``wc -c`` prints."""
        return int(self._commands.run("size", path))

    def replace(self, partial: str, final: str) -> None:
        """Rename by ``mv``."""
        if self.is_directory(final):
            raise IsADirectoryError(errno.EISDIR, "Is a directory", final)
        self._commands.run("rename", partial, final)

    def remove(self, path: str) -> None:
        """Remove by ``rm``."""
        self._commands.run("remove", path)

    def alive(self) -> bool:
        """Return True: the next command starts the programs if necessary."""
        return True

    def probe(self) -> None:
        """Query the root directory."""
        self.is_directory("/")

    def close(self) -> None:
        """Do nothing."""


class _FileConnection(Connection):
    """A login with another connection over it for all operations except ``send``."""

    def __init__(
        self,
        transport: paramiko.Transport,
        timeout: float,
        hang_up: Callable[[], None],
        host: HostCapabilities | None,
        *,
        connect_timeout: float,
    ) -> None:
        self._transport = transport
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._hang_up = hang_up
        self._host = host
        self._commands = RemoteCommands(functools.partial(start, transport, timeout))
        self._open()

    def is_directory(self, path: str) -> bool:
        """Return True if ``path`` is a directory."""
        return self._run(lambda files: files.is_directory(path))

    def make_directories(self, path: str) -> None:
        """Create ``path`` and its parents."""
        self._run(lambda files: files.make_directories(path))

    def size(self, path: str) -> int | None:
        """Return the size of ``path`` in bytes."""
        return self._run(lambda files: files.size(path))

    def replace(self, partial: str, final: str) -> None:
        """Rename ``partial`` to ``final``."""
        self._run(lambda files: files.replace(partial, final))

    def remove(self, path: str) -> None:
        """Remove ``path``."""
        self._run(lambda files: files.remove(path))

    def rejects_rename(self, path: str) -> bool:
        """Return True if the server rejects renames."""
        return self._run(lambda files: files.rejects_rename(path))

    @abstractmethod
    def _open(self) -> None:
        """Open the channels that are kept; the constructor calls it last."""

    @abstractmethod
    def _close_channels(self) -> None:
        """Close all channels."""

    @abstractmethod
    def _run(self, operation: Callable[[Connection], T]) -> T:
        """Return the result of an operation of the other connection."""

    def close(self) -> None:
        """Close the channels and release the login."""
        self._close_channels()
        self._hang_up()

    def _open_files(self) -> Connection:
        """Return a connection by SFTP if the server offers it, else by programs.

        Raises:
            paramiko.ChannelException: the server allows no further channel.
        """
        try:
            return open_sftp(
                self._transport, self._timeout, lambda: None, self._host, connect_timeout=self._connect_timeout
            )
        except paramiko.ChannelException:
            raise
        except (paramiko.SSHException, ConnectionFailed):
            if not self._transport.is_active():
                raise
            return CommandConnection(self._commands)


class ScpConnection(_FileConnection):
    """One ``scp`` process that receives all files of a connection, and a connection for all other operations."""

    def _open(self) -> None:
        self._sink: paramiko.Channel | None = None
        self._directory: list[str] = []
        self._files = self._open_files()
        try:
            # Start it now: a server that allows no further channel must be known before a file is sent.
            self._start()
            if isinstance(self._files, CommandConnection):  # it opens its channel with the first command
                self.probe()
        except BaseException:
            self._close_channels()
            raise

    def _run(self, operation: Callable[[Connection], T]) -> T:
        return operation(self._files)

    def verify(self, source: SourceFile, path: str) -> None:
        """Compare SHA-256 sums."""
        self._commands.compare_sha256(source, path)

    def send(self, source: SourceFile, path: str) -> None:
        """Move the ``scp`` process to the directory of ``path`` and send the file."""
        directory, _, name = path.rpartition("/")
        parts = [part for part in directory.split("/") if part not in ("", ".")]
        if any("\n" in part or part == ".." for part in parts):
            raise NameRejected(f"{directory!r}: a path for SCP must not contain a line break or '..'")
        if self._sink is None:
            self._start()
        common = _count_common(self._directory, parts)
        if common < len(parts) and not self._files.is_directory(directory):
            # The scp process would create it with other permissions.
            raise FileNotFoundError(errno.ENOENT, "No such directory", directory)
        complete = False
        try:
            self._enter(parts, common)
            self._put(source, name)
            complete = True
        finally:
            if not complete:
                self._stop()

    def alive(self) -> bool:
        """Return True if the login is usable; an ended ``scp`` process is restarted by the next file."""
        if self._sink is not None and (self._sink.closed or self._sink.eof_received):
            self._stop()
        return self._files.alive() and bool(self._transport.is_active())

    def probe(self) -> None:
        """Request the attributes of the root directory."""
        self._files.probe()

    def _close_channels(self) -> None:
        self._stop()
        self._commands.close()
        self._files.close()

    def _start(self) -> None:
        with translate_ssh_errors():
            self._sink = self._transport.open_session(timeout=self._timeout)
            self._sink.settimeout(self._timeout)
            with close_after(self._timeout, self._sink):
                self._sink.exec_command(SINK)
        self._directory = []
        try:
            self._expect_ok()
        except BaseException:
            self._stop()
            raise

    def _stop(self) -> None:
        if self._sink is not None:
            with contextlib.suppress(Exception):
                self._sink.close()
        self._sink = None

    def _enter(self, parts: list[str], common: int) -> None:
        """Leave all but ``common`` directories of the ``scp`` process, then enter the rest of ``parts``."""
        while len(self._directory) > common:
            self._send_record(b"E\n")
            self._directory.pop()
        for part in parts[common:]:
            self._send_record(f"D0755 0 {part}\n".encode("utf-8", "surrogateescape"))
            self._directory.append(part)

    def _put(self, source: SourceFile, name: str) -> None:
        self._send_record(f"C{_mode(source)} {source.size} {name}\n".encode("utf-8", "surrogateescape"))
        with _ExactReader(source) as reader, translate_ssh_errors():
            while reader.tell() < source.size:
                block = reader.read(BLOCK)
                send_all(self._channel, block if reader.tell() < source.size else block + OK)
            if not source.size:
                send_all(self._channel, OK)
        self._expect_ok()

    @property
    def _channel(self) -> paramiko.Channel:
        if self._sink is None:
            raise ConnectionFailed("the scp process on the server has ended")
        return self._sink

    def _send_record(self, record: bytes) -> None:
        with translate_ssh_errors():
            send_all(self._channel, record)
        self._expect_ok()

    def _expect_ok(self) -> None:
        with translate_ssh_errors():
            reply = receive(self._channel, 1)
            if reply == OK:
                return
            if reply not in (b"", WARNING, FATAL):
                printed = reply + (receive(self._channel, MAX_QUOTED) if self._channel.recv_ready() else b"")
                raise ConnectionFailed(
                    f"the server does not speak SCP: it printed {printed.decode('utf-8', 'replace').strip()!r}; "
                    "its login shell must print nothing"
                )
            text = b""
            while reply and not text.endswith(b"\n") and len(text) < MAX_REPLY:
                more = receive(self._channel, MAX_REPLY)
                if not more:
                    break
                text += more
        if not reply:
            raise ConnectionFailed("the server closed the channel")
        raise error_of(text.decode("utf-8", "replace").strip())


class SingleChannelConnection(_FileConnection):
    """SCP over a login that allows one channel: SFTP, ``scp`` and other programs use it in turn.

    It costs several round trips and a new process a file. A transfer also fails with ``TransferStalled`` if the last
    data in the channel's window (about 2 MB) takes longer than ``timeout``.
    """

    def _open(self) -> None:
        self._files: Connection | None = None
        try:
            self.probe()
        except BaseException:
            self._close_channels()
            raise

    def verify(self, source: SourceFile, path: str) -> None:
        """Compare SHA-256 sums."""
        self._close_channels()
        self._retry_refused(lambda: self._commands.compare_sha256(source, path))
        self._close_channels()

    def send(self, source: SourceFile, path: str) -> None:
        """Send the file by the ``scp`` package, which quotes ``path`` for the shell of the server."""
        self._close_channels()
        self._retry_refused(lambda: self._put(source, path))

    def alive(self) -> bool:
        """Return True if the login is usable."""
        return (self._files is None or self._files.alive()) and bool(self._transport.is_active())

    def probe(self) -> None:
        """Request the attributes of the root directory."""
        self.is_directory("/")

    def _run(self, operation: Callable[[Connection], T]) -> T:
        def attempt() -> T:
            if self._files is None:
                self._files = self._open_files()
            return operation(self._files)

        return self._retry_refused(attempt)

    def _retry_refused(self, action: Callable[[], T]) -> T:
        """Return the result of ``action``, which opens a channel; repeat it while the channel before is ending."""
        deadline = time.monotonic() + min(CHANNEL_TIMEOUT, self._timeout)
        while True:
            try:
                with translate_ssh_errors():
                    return action()
            except ChannelRefused:
                if time.monotonic() > deadline:
                    raise
            time.sleep(CHANNEL_RETRY_DELAY)

    def _put(self, source: SourceFile, path: str) -> None:
        client = scp.SCPClient(
            self._transport,
            buff_size=BLOCK,
            socket_timeout=self._timeout,
        )
        try:
            with _ExactReader(source) as reader:
                client.putfo(reader, os.fsencode(path), _mode(source), source.size)
        except scp.SCPException as error:
            text = str(error).strip()
            if text.startswith("Timeout"):
                raise TransferStalled(f"SCP: {text}") from error
            if text.startswith("No response"):
                raise ConnectionFailed(f"SCP: {text}") from error
            raise error_of(text) from error
        finally:
            if client.channel is not None:
                client.channel.close()

    def _close_channels(self) -> None:
        self._commands.close()
        if self._files is not None:
            self._files.close()
        self._files = None


class _ExactReader:
    """Reads as many bytes of a source as it had when it was opened; raises if it has become shorter."""

    def __init__(self, source: SourceFile) -> None:
        self._source = source
        self._reader = source.reader()
        self._position = 0

    def __enter__(self) -> _ExactReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    def read(self, size: int) -> bytes:
        block = self._reader.read(min(size, self._source.size - self._position))
        if not block:
            self._source.check_unchanged()
            raise OSError(errno.EIO, "the file ended too early", self._source.path)
        self._position += len(block)
        return block

    def tell(self) -> int:
        return self._position


def _mode(source: SourceFile) -> str:
    return f"{source.mode & 0o777:04o}"


def _count_common(parts: list[str], others: list[str]) -> int:
    """Return the number of equal items at the beginning of two lists."""
    count = 0
    for part, other in zip(parts, others, strict=False):
        if part != other:
            break
        count += 1
    return count


class ScpMover(SshMover):
    """Delivers to ``scp://[user[:password]@]host[:port]/path``."""

    @property
    def stall_timeout(self) -> float:
        """Seconds without progress after which a transfer fails."""
        return float(options.first_set(self.attrs, "scpclient_timeout_seconds", "stall_timeout"))

    def open_connection(self, transport: paramiko.Transport, hang_up: Callable[[], None]) -> Connection:
        """Open one channel for files and one for other operations."""
        return self._open(ScpConnection, transport, hang_up)

    def open_exclusive(self, transport: paramiko.Transport, hang_up: Callable[[], None]) -> Connection:
        """Open the same channels, or one at a time if the server allows no more."""
        try:
            return self.open_connection(transport, hang_up)
        except (ChannelRefused, paramiko.ChannelException):
            return self._open(SingleChannelConnection, transport, hang_up)

    def _open(
        self, connection: type[_FileConnection], transport: paramiko.Transport, hang_up: Callable[[], None]
    ) -> Connection:
        return connection(
            transport,
            self.stall_timeout,
            hang_up,
            self.host,
            connect_timeout=self.connect_timeout,
        )
