"""Delivers by SFTP: small files in three round trips, large ones pipelined.

paramiko's SFTP client needs five or more round trips for a small file and sends large files in blocks of 32 kB. This
one implements the part of protocol version 3 that a delivery needs, over a channel of paramiko.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
from collections.abc import Callable

import paramiko

from trollmoves.errors import (
    BadDestination,
    ConnectionFailed,
    NoSpace,
    PermissionRefused,
    TemporaryTransferError,
    TransferError,
)
from trollmoves.movers.base import SourceFile
from trollmoves.movers.pool import PROBE_TIMEOUT, Connection
from trollmoves.movers.ssh.commands import RemoteCommands, error_of
from trollmoves.movers.ssh.connection import SshMover, receive, send_all, translate_ssh_errors
from trollmoves.utils import failpoints

INIT, VERSION, OPEN, CLOSE, WRITE, LSTAT, FSTAT, REMOVE, MKDIR, STAT, RENAME = 1, 2, 3, 4, 6, 7, 8, 13, 14, 17, 18
STATUS, HANDLE, ATTRIBUTES, EXTENDED, EXTENDED_REPLY = 101, 102, 105, 200, 201
OK, NO_SUCH_FILE, PERMISSION_DENIED, FAILURE, BAD_MESSAGE, NO_CONNECTION, CONNECTION_LOST = 0, 2, 3, 4, 5, 6, 7
NO_SPACE, QUOTA = 14, 15  # of later protocol versions, but some servers send them
HAS_SIZE, HAS_PERMISSIONS = 1, 4
CREATE_NEW = 0x02 | 0x08 | 0x20  # write, create, fail if it exists
FILE_MODE, DIRECTORY_MODE = 0o664, 0o775  # before the umask of the server
CHUNK = 32768  # bytes in one write, which every server accepts
MAX_CHUNK = 261120  # the limit of OpenSSH
READ_ONLY = 1  # flag of a file system
MAX_UNCONFIRMED_BYTES = 4 << 20  # bytes sent and not confirmed: 40 MB/s over a link of 100 ms
POSIX_RENAME, FSYNC, STATVFS, LIMITS = (
    b"posix-rename@openssh.com",
    b"fsync@openssh.com",
    b"statvfs@openssh.com",
    b"limits@openssh.com",
)


class SftpConnection(Connection):
    """One SFTP channel."""

    def __init__(self, channel: paramiko.Channel, hang_up: Callable[[], None], *, fsync: bool, checksum: bool) -> None:
        """Start the protocol over a new channel.

        Raises:
            ConnectionFailed: the server does not offer SFTP.
        """
        self._channel = channel
        self._hang_up = hang_up
        self._fsync = fsync
        self._checksum = checksum
        self._commands = RemoteCommands(channel.get_transport(), channel.gettimeout())
        self._number = 0
        self._in_step = True
        self._buffer = bytearray()
        self._outbox: list[bytes] = []
        self._outbox_size = 0
        self._replies: dict[int, tuple[int, bytes]] = {}
        self._sent: tuple[str, int] | None = None
        self._extensions = self._handshake()
        self._chunk = self._longest_write()

    # Backend operations

    def is_directory(self, path: str) -> bool:
        """Return True if ``path`` is a directory."""
        return stat.S_ISDIR(self._attributes(path)[1])

    def make_directories(self, path: str) -> None:
        """Create ``path`` and missing parents."""
        attributes = struct.pack(">II", HAS_PERMISSIONS, DIRECTORY_MODE)
        code, text = self._status(MKDIR, _string(path), attributes)
        if code == NO_SUCH_FILE and path.strip("/"):
            self.make_directories(path.rstrip("/").rpartition("/")[0] or "/")
            code, text = self._status(MKDIR, _string(path), attributes)
        if code and not self.is_directory(path):
            if self._attributes(path)[1]:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
            raise self._error(code, text, path)

    def send(self, source: SourceFile, path: str) -> None:
        """Write the file: open; send the data, request the size and close; wait for all replies."""
        self._sent = None
        handle = self._open(path)
        self._in_step = False  # until all replies have arrived; after an interruption the connection is unusable
        pending, failed = self._write(source, handle)
        size_request = self._send(FSTAT, handle)
        if self._fsync and FSYNC in self._extensions:
            pending.append(self._send(EXTENDED, _string(FSYNC), handle))
        pending.append(self._send(CLOSE, handle))
        failed = self._wait_all(pending, failed)
        kind, data = self._reply(size_request)
        self._in_step = True
        if failed:
            raise self._error(*failed, path)
        if kind == ATTRIBUTES:
            self._sent = (path, _parse_attributes(data)[0])

    def size(self, path: str) -> int | None:
        """Return the size reported after the write, else request it."""
        if self._sent and self._sent[0] == path and self._sent[1] >= 0:
            return self._sent[1]
        size = self._attributes(path)[0]
        return size if size >= 0 else None

    def verify(self, source: SourceFile, path: str) -> None:
        """Compare SHA-256 sums if ``verify_checksum`` is set."""
        if self._checksum:
            self._commands.compare_sha256(source, path)

    def replace(self, partial: str, final: str) -> None:
        """Rename atomically if the server can, else remove an existing file first."""
        if POSIX_RENAME in self._extensions:
            code, text = self._status(EXTENDED, _string(POSIX_RENAME), _string(partial), _string(final))
        else:
            code, text = self._status(RENAME, _string(partial), _string(final))
            if code not in (OK, NO_SUCH_FILE, PERMISSION_DENIED) and not self.is_directory(final):
                self.remove(final)
                code, text = self._status(RENAME, _string(partial), _string(final))
        if code:
            if self.is_directory(final):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), final)
            raise self._error(code, text, final)

    def remove(self, path: str) -> None:
        """Remove ``path``."""
        code, text = self._status(REMOVE, _string(path))
        if code not in (OK, NO_SUCH_FILE):
            raise self._error(code, text, path)

    def alive(self) -> bool:
        """Return True if the channel is open and no reply is missing."""
        is_open = not (self._channel.closed or self._channel.eof_received)
        return self._in_step and is_open and bool(self._channel.get_transport().is_active())

    def probe(self) -> None:
        """Request the attributes of the root directory."""
        timeout = self._channel.gettimeout()
        self._channel.settimeout(min(PROBE_TIMEOUT, timeout))
        self._attributes("/")
        self._channel.settimeout(timeout)

    def close(self) -> None:
        """Close the channel and release the login."""
        self._commands.close()
        with contextlib.suppress(Exception):
            self._channel.close()
        self._hang_up()

    # Protocol

    def _handshake(self) -> dict[bytes, bytes]:
        with translate_ssh_errors():
            self._channel.sendall(struct.pack(">IBI", 5, INIT, 3))
        kind, data = self._packet()
        if kind != VERSION:
            raise ConnectionFailed("the server does not speak SFTP")
        extensions, position = {}, 4
        while position < len(data):
            name, position = _take_string(data, position)
            extensions[name], position = _take_string(data, position)
        return extensions

    def _longest_write(self) -> int:
        if LIMITS not in self._extensions:
            return CHUNK
        kind, data = self._reply(self._send(EXTENDED, _string(LIMITS)))
        if kind != EXTENDED_REPLY:
            return CHUNK
        return min(max(int(struct.unpack_from(">QQQ", data)[2]), CHUNK), MAX_CHUNK)

    def _open(self, path: str) -> bytes:
        attributes = struct.pack(">II", HAS_PERMISSIONS, FILE_MODE)
        kind, data = self._reply(self._send(OPEN, _string(path), struct.pack(">I", CREATE_NEW), attributes))
        if kind != HANDLE:
            code, text = _status_of(kind, data)
            if code == FAILURE and self._attributes(path)[1]:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
            raise self._error(code, text, path)
        return data  # with its length, in the form in which it is sent back

    def _write(self, source: SourceFile, handle: bytes) -> tuple[list[int], tuple[int, str] | None]:
        """Send all writes with bounded unconfirmed data; return the pending requests and the first failure."""
        pending: list[int] = []
        limit = max(2, MAX_UNCONFIRMED_BYTES // self._chunk)
        offset = 0
        with source.reader() as reader:
            while block := reader.read(self._chunk):
                pending.append(self._send(WRITE, handle, struct.pack(">QI", offset, len(block)), block))
                offset += len(block)
                failpoints.hit("sending")
                if len(pending) >= limit:
                    failed = self._failure(pending.pop(0))
                    if failed:
                        return pending, failed
        return pending, None

    def _wait_all(self, pending: list[int], failed: tuple[int, str] | None) -> tuple[int, str] | None:
        """Wait for the replies to ``pending``; return the first failure."""
        for number in pending:
            another = self._failure(number)
            failed = failed or another
        return failed

    def _failure(self, number: int) -> tuple[int, str] | None:
        code, text = _status_of(*self._reply(number))
        return (code, text) if code else None

    def _attributes(self, path: str) -> tuple[int, int]:
        """Return size and mode of ``path``; -1 and 0 if it does not exist."""
        kind, data = self._reply(self._send(STAT, _string(path)))
        return _parse_attributes(data) if kind == ATTRIBUTES else (-1, 0)

    def _status(self, kind: int, *parts: bytes) -> tuple[int, str]:
        return _status_of(*self._reply(self._send(kind, *parts)))

    def _error(self, code: int, text: str, path: str) -> Exception:
        """Return the exception for a status; version 3 has only "failure" for a full disk."""
        if code == NO_SUCH_FILE:
            return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if code == PERMISSION_DENIED:
            return PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        kind: type[TransferError] = TemporaryTransferError
        if code in (NO_SPACE, QUOTA):
            kind = NoSpace
        elif code == FAILURE:
            error = error_of(text)
            if isinstance(error, PermissionRefused) or not isinstance(error, TemporaryTransferError):
                return error
            kind = self._classify_failure(path)
        elif code == BAD_MESSAGE:
            kind = BadDestination
        elif code in (NO_CONNECTION, CONNECTION_LOST):
            kind = ConnectionFailed
        return kind(f"{path}: the server replied {text or code!r}")

    def _classify_failure(self, path: str) -> type[TransferError]:
        if STATVFS not in self._extensions:
            return TemporaryTransferError
        directory = path.rpartition("/")[0] or "/"
        kind, data = self._reply(self._send(EXTENDED, _string(STATVFS), _string(directory)))
        if kind != EXTENDED_REPLY:
            return TemporaryTransferError
        _, _, _, _, free_blocks, files, _, free_files, _, flags, _ = struct.unpack(">11Q", data[:88])
        if flags & READ_ONLY:
            return PermissionRefused
        return NoSpace if free_blocks == 0 or (files and free_files == 0) else TemporaryTransferError

    def _send(self, kind: int, *parts: bytes) -> int:
        """Send a request; return its number, which its reply carries.

        Small requests are buffered until a reply is awaited: one packet costs less than three.
        """
        self._number = (self._number + 1) & 0xFFFFFFFF
        length = 5 + sum(map(len, parts))
        self._outbox += (struct.pack(">IBI", length, kind, self._number), *parts)
        self._outbox_size += length
        if self._outbox_size >= CHUNK:
            self._flush()
        return self._number

    def _flush(self) -> None:
        if self._outbox:
            data = b"".join(self._outbox)
            self._outbox.clear()
            self._outbox_size = 0
            with translate_ssh_errors():
                send_all(self._channel, data)

    def _reply(self, number: int) -> tuple[int, bytes]:
        """Wait for one reply; store replies to other requests that arrive first."""
        self._flush()
        while number not in self._replies:
            kind, data = self._packet()
            self._replies[struct.unpack_from(">I", data)[0]] = kind, data[4:]
        return self._replies.pop(number)

    def _packet(self) -> tuple[int, bytes]:
        (length,) = struct.unpack(">I", self._read(4))
        data = self._read(length)
        return data[0], data[1:]

    def _read(self, count: int) -> bytes:
        while len(self._buffer) < count:
            with translate_ssh_errors():
                more = receive(self._channel, CHUNK)
            if not more:
                raise ConnectionFailed("the server closed the channel")
            self._buffer += more
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data


def _string(text: str | bytes) -> bytes:
    data = text if isinstance(text, bytes) else os.fsencode(text)
    return struct.pack(">I", len(data)) + data


def _take_string(data: bytes, position: int) -> tuple[bytes, int]:
    (length,) = struct.unpack_from(">I", data, position)
    end = position + 4 + length
    return data[position + 4 : end], end


def _status_of(kind: int, data: bytes) -> tuple[int, str]:
    if kind != STATUS:
        return FAILURE, f"an unexpected packet of type {kind}"
    (code,) = struct.unpack_from(">I", data)
    text = _take_string(data, 4)[0].decode("utf-8", "replace") if len(data) > 4 else ""
    return code, text


def _parse_attributes(data: bytes) -> tuple[int, int]:
    """Return size and mode; -1 and 0 if missing."""
    (flags,) = struct.unpack_from(">I", data)
    size, mode, position = -1, 0, 4
    if flags & HAS_SIZE:
        (size,) = struct.unpack_from(">Q", data, position)
        position += 8
    if flags & 2:  # owner and group
        position += 8
    if flags & HAS_PERMISSIONS:
        (mode,) = struct.unpack_from(">I", data, position)
    return size, mode


def open_sftp(
    transport: paramiko.Transport,
    timeout: float,
    hang_up: Callable[[], None],
    *,
    fsync: bool = False,
    checksum: bool = False,
) -> SftpConnection:
    """Return an SFTP connection over a new channel of ``transport``."""
    channel = transport.open_session(timeout=timeout)
    try:
        channel.settimeout(timeout)
        channel.invoke_subsystem("sftp")
        return SftpConnection(channel, hang_up, fsync=fsync, checksum=checksum)
    except BaseException:
        channel.close()
        raise


class SftpMover(SshMover):
    """Delivers to ``sftp://[user[:password]@]host[:port]/path``."""

    def open_connection(self, transport: paramiko.Transport, hang_up: Callable[[], None]) -> Connection:
        """Open one channel."""
        return open_sftp(
            transport,
            self.stall_timeout,
            hang_up,
            fsync=self.option("fsync"),
            checksum=self.option("verify_checksum"),
        )
