"""Delivers by SFTP: small files in three round trips, large ones pipelined.

paramiko's SFTP client needs five or more round trips for a small file and sends large files in blocks of 32 kB. This
one implements the part of protocol version 3 that a delivery needs, over a channel of paramiko or of OpenSSH.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
import struct
import time
from collections.abc import Callable, Sequence

import paramiko

from trollmoves.errors import (
    BadDestination,
    ConfigError,
    ConnectionFailed,
    NoSpace,
    PermissionRefused,
    TemporaryTransferError,
    TransferError,
)
from trollmoves.movers import options, ssh_options
from trollmoves.movers.host_capabilities import HostCapabilities, Limitation
from trollmoves.movers.partials import is_partial, partial_path, token_of
from trollmoves.movers.pool import PROBE_TIMEOUT, Connection
from trollmoves.movers.remote import Endpoint
from trollmoves.movers.source_file import SourceFile
from trollmoves.movers.ssh import sftp_protocol as protocol
from trollmoves.movers.ssh.channel import Channel
from trollmoves.movers.ssh.commands import RemoteCommands, error_of
from trollmoves.movers.ssh.connection import SshMover, start
from trollmoves.movers.ssh.openssh import Login, OpenSshChannel
from trollmoves.movers.ssh.sftp_protocol import CHUNK, SftpProtocol, string

WRITING, CREATING, TRUNCATING, EXCLUSIVE = 0x02, 0x08, 0x10, 0x20  # flags of OPEN
FILE_MODE = struct.pack(">II", protocol.HAS_PERMISSIONS, 0o664)  # before the umask of the server
DIRECTORY_MODE = struct.pack(">II", protocol.HAS_PERMISSIONS, 0o775)
NO_MODE = struct.pack(">I", 0)
# Flags and attributes of OPEN, in the order in which they are tried, and the limitation of a host that needs them.
WayToOpen = tuple[int, bytes, Limitation | None]
OPEN_PARTIAL: Sequence[WayToOpen] = (
    (WRITING | CREATING | EXCLUSIVE, FILE_MODE, None),
    (WRITING | CREATING | EXCLUSIVE, NO_MODE, Limitation.NO_MODE),
    (WRITING | CREATING | TRUNCATING, NO_MODE, Limitation.NO_EXCLUSIVE_OPEN),
)
OPEN_FINAL: Sequence[WayToOpen] = (
    (WRITING | CREATING | TRUNCATING, FILE_MODE, None),
    (WRITING | CREATING | TRUNCATING, NO_MODE, Limitation.NO_MODE),
)
ERRNOS = {
    protocol.NO_SUCH_FILE: errno.ENOENT,
    protocol.PERMISSION_DENIED: errno.EACCES,
    protocol.UNSUPPORTED: errno.EOPNOTSUPP,
}
RENAME_RETRY_DELAY = 0.5  # seconds; a virus scanner may still read the partial
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

    def __init__(
        self,
        channel: Channel,
        commands: RemoteCommands,
        hang_up: Callable[[], None],
        host: HostCapabilities | None,
        timeout: float,
        *,
        fsync: bool = False,
    ) -> None:
        """Start the protocol over a new channel, whose timeout is ``timeout`` afterwards; close it on an error.

        Raises:
            ConnectionFailed: the server does not offer SFTP.
        """
        self._channel = channel
        self._hang_up = hang_up
        self._fsync = fsync
        self._commands = commands
        self._in_step = True
        self._sent: tuple[str, int, int] | None = None
        self._host = host or HostCapabilities("")
        try:
            self._protocol = SftpProtocol(channel)
            self._extensions = self._protocol.extensions
            self._chunk = self._longest_write()
        except BaseException:
            channel.close()
            raise
        channel.timeout = timeout

    # Backend operations

    def is_directory(self, path: str) -> bool:
        """Return True if ``path`` is a directory."""
        return stat.S_ISDIR(self._protocol.attributes(path).mode)

    def make_directories(self, path: str) -> None:
        """Create ``path`` and missing parents."""
        code, text = self._protocol.status(protocol.MKDIR, string(path), DIRECTORY_MODE)
        if code == protocol.NO_SUCH_FILE and path.strip("/"):
            self.make_directories(path.rstrip("/").rpartition("/")[0] or "/")
            code, text = self._protocol.status(protocol.MKDIR, string(path), DIRECTORY_MODE)
        if code and not self.is_directory(path):
            if self._protocol.attributes(path).mode:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
            raise self._error(code, text, path)

    def send(self, source: SourceFile, path: str) -> None:
        """Write the file: open; send the data, request the size and close; wait for all replies."""
        self._sent = None
        handle = self._open(path)
        self._in_step = False  # until all replies have arrived; after an interruption the connection is unusable
        pending: list[int] = []
        try:
            failed = self._write(source, handle, pending)
        except OSError:
            if source.read_error:  # the connection works, so that the partial can be removed
                pending.append(self._protocol.request(protocol.CLOSE, handle))
                self._wait_all(pending, None)
                self._in_step = True
            raise
        size_request = self._protocol.request(protocol.FSTAT, handle)
        if self._fsync and FSYNC in self._extensions:
            pending.append(self._protocol.request(protocol.EXTENDED, string(FSYNC), handle))
        pending.append(self._protocol.request(protocol.CLOSE, handle))
        failed = self._wait_all(pending, failed)
        kind, data = self._protocol.reply(size_request)
        self._in_step = True
        if failed:
            raise self._error(*failed, path, source.size)
        if kind == protocol.ATTRIBUTES:
            self._sent = (path, protocol.parse_attributes(data).size, source.size)

    def size(self, path: str) -> int | None:
        """Return the size reported after the write; request it if that is missing, or not the size of the source."""
        if self._sent is not None:
            sent_path, size, expected = self._sent
            if sent_path == path and size == expected:
                return size
        size = self._protocol.attributes(path).size
        return size if size >= 0 else None

    def verify(self, source: SourceFile, path: str) -> None:
        """Compare SHA-256 sums."""
        self._commands.compare_sha256(source, path)

    def replace(self, partial: str, final: str) -> None:
        """Rename atomically if the server can, else rename an existing file first and remove it afterwards."""
        aside = _aside_path(final)
        code, text = self._rename(partial, final)
        if code == protocol.OK:
            if self._host.lacks(Limitation.NO_REPLACEMENT):  # a killed process may have left it
                self._protocol.request_without_reply(protocol.REMOVE, string(aside))
            return
        if self.is_directory(final):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), final)
        if code != protocol.NO_SUCH_FILE and self._may_exist(final) and self._move_aside(final, aside):
            self._finish_replacement(partial, final, aside)
            return
        if code == protocol.FAILURE:
            time.sleep(RENAME_RETRY_DELAY)
            code, text = self._rename(partial, final)
        if code:
            raise self._rename_error(code, text, final)

    def rejects_rename(self, path: str) -> bool:
        """Return True if the server answers the rename of the missing ``path`` by another reason."""
        return self._rename(path, _aside_path(path))[0] in (protocol.PERMISSION_DENIED, protocol.UNSUPPORTED)

    def remove(self, path: str) -> None:
        """Remove ``path``."""
        code, text = self._protocol.status(protocol.REMOVE, string(path))
        if code not in (protocol.OK, protocol.NO_SUCH_FILE):
            raise self._error(code, text, path)

    def alive(self) -> bool:
        """Return True if the channel is open and no reply is missing."""
        return self._in_step and self._channel.alive()

    def probe(self) -> None:
        """Request the attributes of the root directory."""
        timeout = self._channel.timeout
        self._channel.timeout = min(PROBE_TIMEOUT, timeout)
        self._protocol.attributes("/")
        self._channel.timeout = timeout

    def close(self) -> None:
        """Close the channel and release the login."""
        self._commands.close()
        self._channel.close()
        self._hang_up()

    # Steps of the operations

    def _longest_write(self) -> int:
        if LIMITS not in self._extensions:
            return CHUNK
        kind, data = self._protocol.reply(self._protocol.request(protocol.EXTENDED, string(LIMITS)))
        if kind != protocol.EXTENDED_REPLY:
            return CHUNK
        return min(max(int(protocol.unpack(">QQQ", data)[2]), CHUNK), MAX_CHUNK)

    def _open(self, path: str) -> bytes:
        """Return the handle of the new file, with its length: the form in which it is sent back."""
        refused: tuple[int, str] | None = None
        for flags, attributes, limitation in self._ways_to_open(path):
            kind, data = self._protocol.reply(
                self._protocol.request(protocol.OPEN, string(path), struct.pack(">I", flags), attributes)
            )
            if kind == protocol.HANDLE:
                if refused and limitation:
                    self._host.record(limitation)
                return data
            code, text = protocol.status_of(kind, data)
            refused = refused or (code, text)
            if code in (protocol.NO_SUCH_FILE, protocol.NO_SPACE, protocol.QUOTA):
                break
            if flags & EXCLUSIVE and self._protocol.attributes(path).mode:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        assert refused is not None  # noqa: S101  (there is a last way)
        raise self._error(*refused, path)

    def _ways_to_open(self, path: str) -> Sequence[WayToOpen]:
        """Return how to open ``path``, without those that the host is known to reject."""
        ways = OPEN_PARTIAL if is_partial(path) else OPEN_FINAL
        for number in range(len(ways) - 1, 0, -1):
            limitation = ways[number][2]
            if limitation and self._host.lacks(limitation):
                return ways[number:]
        return ways

    def _write(self, source: SourceFile, handle: bytes, pending: list[int]) -> tuple[int, str] | None:
        """Send all writes with bounded unconfirmed data; add the pending requests, return the first failure."""
        limit = max(2, MAX_UNCONFIRMED_BYTES // self._chunk)
        offset = 0
        request = self._protocol.request
        with source.reader() as reader:
            while block := reader.read(self._chunk):
                pending.append(request(protocol.WRITE, handle, struct.pack(">QI", offset, len(block)), block))
                offset += len(block)
                if len(pending) >= limit:
                    failed = self._failure(pending.pop(0))
                    if failed:
                        return failed
        return None

    def _wait_all(self, pending: list[int], failed: tuple[int, str] | None) -> tuple[int, str] | None:
        """Wait for the replies to ``pending``; return the first failure."""
        for number in pending:
            another = self._failure(number)
            failed = failed or another
        return failed

    def _failure(self, number: int) -> tuple[int, str] | None:
        code, text = protocol.status_of(*self._protocol.reply(number))
        return (code, text) if code else None

    def _rename(self, old: str, new: str) -> tuple[int, str]:
        if POSIX_RENAME in self._extensions:
            code, text = self._protocol.status(protocol.EXTENDED, string(POSIX_RENAME), string(old), string(new))
            if code != protocol.UNSUPPORTED:
                return code, text
            del self._extensions[POSIX_RENAME]
        return self._protocol.status(protocol.RENAME, string(old), string(new))

    def _may_exist(self, path: str) -> bool:
        """Return False if the server reports that ``path`` is missing; it may refuse to report attributes."""
        kind, data = self._protocol.reply(self._protocol.request(protocol.STAT, string(path)))
        return kind == protocol.ATTRIBUTES or protocol.status_of(kind, data)[0] != protocol.NO_SUCH_FILE

    def _move_aside(self, final: str, aside: str) -> bool:
        """Return True if the existing file ``final`` was renamed; not if the server rejects its later removal."""
        code, _ = self._protocol.status(protocol.REMOVE, string(aside))  # a killed process may have left it
        return code in (protocol.OK, protocol.NO_SUCH_FILE) and self._rename(final, aside)[0] == protocol.OK

    def _finish_replacement(self, partial: str, final: str, aside: str) -> None:
        """Rename the partial and remove the old file ``aside``; if that fails, the old file gets its name back."""
        code, text = self._rename(partial, final)
        if code:
            self._rename(aside, final)
            raise self._rename_error(code, text, final)
        self.remove(aside)
        self._host.record(Limitation.NO_REPLACEMENT)

    def _rename_error(self, code: int, text: str, path: str) -> Exception:
        """Return the exception for a rename that failed; a failure without a known reason is a rejection."""
        error = self._error(code, text, path)
        return PermissionRefused(f"rename to {error}") if type(error) is TemporaryTransferError else error

    def _error(self, code: int, text: str, path: str, needed: int = 1) -> Exception:
        """Return the exception for a status; version 3 has only "failure" for a full disk."""
        if code in ERRNOS:
            return OSError(ERRNOS[code], os.strerror(ERRNOS[code]), path)
        kind: type[TransferError] = TemporaryTransferError
        if code in (protocol.NO_SPACE, protocol.QUOTA):
            kind = NoSpace
        elif code == protocol.FAILURE:
            error = error_of(text)
            if type(error) is not TemporaryTransferError:
                return error
            return self._examine_disk(path, needed) or TemporaryTransferError(f"{path}: the server replied {text!r}")
        elif code == protocol.BAD_MESSAGE:
            kind = BadDestination
        elif code in (protocol.NO_CONNECTION, protocol.CONNECTION_LOST):
            kind = ConnectionFailed
        return kind(f"{path}: the server replied {text or code!r}")

    def _examine_disk(self, path: str, needed: int) -> TransferError | None:
        """Return the error if the file system of ``path`` is read-only, or lacks ``needed`` bytes or an inode."""
        if STATVFS not in self._extensions:
            return None
        directory = path.rpartition("/")[0] or "/"
        kind, data = self._protocol.reply(self._protocol.request(protocol.EXTENDED, string(STATVFS), string(directory)))
        if kind != protocol.EXTENDED_REPLY:
            return None
        _, block, _, _, free_blocks, inodes, _, free_inodes, _, flags, _ = protocol.unpack(">11Q", data)
        if flags & READ_ONLY:
            return PermissionRefused(f"{directory}: the file system of the server is mounted read-only")
        if free_blocks * block < needed:
            return NoSpace(f"{directory}: the disk of the destination is full: {free_blocks * block} bytes are free")
        if inodes and not free_inodes:
            return NoSpace(f"{directory}: the disk of the destination is full: 0 of {inodes} inodes are free")
        return None


def _aside_path(final: str) -> str:
    """Return the hidden name that an existing file has until it is replaced."""
    return partial_path(final, token_of("replaced", final))


def open_sftp(
    transport: paramiko.Transport,
    timeout: float,
    hang_up: Callable[[], None],
    host: HostCapabilities | None,
    *,
    connect_timeout: float,
    fsync: bool = False,
) -> SftpConnection:
    """Return an SFTP connection over a new channel of ``transport``.

    Raises:
        TimeoutError: SFTP did not start within ``connect_timeout`` seconds.
    """
    channel = start(transport, connect_timeout, "sftp", subsystem=True)
    commands = RemoteCommands(functools.partial(start, transport, timeout))
    return SftpConnection(channel, commands, hang_up, host, timeout, fsync=fsync)


class SftpMover(SshMover):
    """Delivers to ``sftp://[user[:password]@]host[:port]/path``."""

    def connect(self, login: Endpoint) -> Connection:
        """Open a channel by paramiko, or by OpenSSH if ``ssh_transport`` selects it."""
        if self.option("ssh_transport") == ssh_options.OPENSSH:
            return self._connect_by_openssh(login)
        return super().connect(login)

    def _connect_by_openssh(self, login: Endpoint) -> Connection:
        parameters = self._openssh_login(login)
        channel = self.openssh_channel(login)

        def run(command: str) -> Channel:
            program = OpenSshChannel(parameters, (command,))
            program.timeout = max(self.connect_timeout, self.stall_timeout)
            return program

        commands, fsync = RemoteCommands(run), self.option("fsync")
        return SftpConnection(channel, commands, lambda: None, self.host, self.stall_timeout, fsync=fsync)

    def openssh_channel(self, login: Endpoint) -> OpenSshChannel:
        """Return a channel to the SFTP subsystem by OpenSSH; raises as ``OpenSshChannel``, and ConfigError."""
        return OpenSshChannel(self._openssh_login(login), ("-s", "sftp"))

    def _openssh_login(self, login: Endpoint) -> Login:
        """Return how OpenSSH logs in; raises ConfigError if that needs a secret, which only paramiko accepts."""
        if login.password is not None or self.option("password") or self.option("ssh_key_passphrase"):
            raise ConfigError(
                "openssh logs in by keys, agents and certificates only; passwords and passphrases need paramiko",
                option="connection_parameters ssh_transport",
            )
        return Login(
            login.host,
            login.port,
            login.user,
            key_file=options.first_set(self.attrs, "ssh_key_filename", "ssh_private_key_file"),
            pins=self.option("ssh_host_key"),
            known_hosts=self.option("ssh_known_hosts"),
            weak_algorithms=self.option("ssh_weak_algorithms") or "",
            connect_timeout=self.connect_timeout,
            stall_timeout=self.stall_timeout,
        )

    def open_connection(self, transport: paramiko.Transport, hang_up: Callable[[], None]) -> Connection:
        """Open one channel."""
        return open_sftp(
            transport,
            self.stall_timeout,
            hang_up,
            self.host,
            connect_timeout=self.connect_timeout,
            fsync=self.option("fsync"),
        )
