"""Delivers by SCP: many files through one program at the far end, which is started once.

``scp -r -t /`` takes files into whatever directory it is told to enter, so that it serves every delivery of a
connection, and no file name stands in a command that a shell reads. Sizes and renames go by SFTP over the same login;
where that is not offered, by programs.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable

import paramiko

from trollmoves.errors import BadDestination, ConnectionFailed
from trollmoves.movers import options
from trollmoves.movers.base import Backend, SourceFile
from trollmoves.movers.pool import Connection
from trollmoves.movers.ssh.commands import RemoteCommands, error_of
from trollmoves.movers.ssh.connection import SshMover, receive, send_all, translate_ssh_errors
from trollmoves.movers.ssh.sftp import open_sftp
from trollmoves.utils import failpoints

SINK = "scp -r -t /"
BLOCK = 1 << 18  # bytes handed to paramiko at a time
LONGEST_ANSWER = 1 << 16
OK, WARNING, FATAL = b"\0", b"\1", b"\2"


class CommandBackend(Backend):
    """The files at a far end without SFTP, by its own programs."""

    def __init__(self, commands: RemoteCommands) -> None:
        self._commands = commands

    def is_directory(self, path: str) -> bool:
        """Ask ``test``."""
        return self._commands.is_directory(path)

    def make_directories(self, path: str) -> None:
        """Make them by ``mkdir``."""
        self._commands.run("make_directories", path)

    def send(self, source: SourceFile, path: str) -> None:
        """Not this way."""
        raise NotImplementedError

    def size(self, path: str) -> int:
        """Ask ``wc``."""
        return int(self._commands.run("size", path))

    def replace(self, partial: str, final: str) -> None:
        """Rename by ``mv``."""
        if self.is_directory(final):
            raise IsADirectoryError(errno.EISDIR, "Is a directory", final)
        self._commands.run("rename", partial, final)

    def remove(self, path: str) -> None:
        """Remove by ``rm``."""
        self._commands.run("remove", path)


class ScpConnection(Connection):
    """A sink for files, and what renames them."""

    def __init__(
        self, transport: paramiko.Transport, timeout: float, hang_up: Callable[[], None], *, checksum: bool
    ) -> None:
        self._transport = transport
        self._timeout = timeout
        self._hang_up = hang_up
        self._checksum = checksum
        self._commands = RemoteCommands(transport, timeout)
        self._sink: paramiko.Channel | None = None
        self._inside: list[str] = []
        self._files: Backend = self._choose_backend()
        try:
            # At once, so that a login that takes no further channel is known before anything is sent.
            self._start()
        except BaseException:
            self._close_channels()
            raise

    def _choose_backend(self) -> Backend:
        try:
            return open_sftp(self._transport, self._timeout, lambda: None)
        except paramiko.ChannelException:
            raise
        except (paramiko.SSHException, ConnectionFailed):
            if not self._transport.is_active():
                raise
            return CommandBackend(self._commands)

    def is_directory(self, path: str) -> bool:
        """Tell whether ``path`` is a directory."""
        return self._files.is_directory(path)

    def make_directories(self, path: str) -> None:
        """Make ``path`` and those above it."""
        self._files.make_directories(path)

    def size(self, path: str) -> int | None:
        """Return the bytes in ``path``."""
        return self._files.size(path)

    def replace(self, partial: str, final: str) -> None:
        """Rename."""
        self._files.replace(partial, final)

    def remove(self, path: str) -> None:
        """Remove ``path``."""
        self._files.remove(path)

    def verify(self, source: SourceFile, path: str) -> None:
        """Compare SHA-256 sums, when asked to."""
        if self._checksum:
            self._commands.compare_sha256(source, path)

    def send(self, source: SourceFile, path: str) -> None:
        """Have the sink enter the directory, and hand it the file."""
        directory, _, name = path.rpartition("/")
        parts = [part for part in directory.split("/") if part not in ("", ".")]
        if any("\n" in part or part == ".." for part in parts):
            raise BadDestination(f"{directory!r}: SCP cannot name such a directory")
        whole = False
        try:
            if self._sink is None:
                self._start()
            self._enter(parts, directory)
            self._put(source, name)
            whole = True
        finally:
            if not whole:
                self._stop()

    def alive(self) -> bool:
        """Tell whether the login stands; a sink that has ended is started again."""
        if self._sink is not None and (self._sink.closed or self._sink.eof_received):
            self._stop()
        files = not isinstance(self._files, Connection) or self._files.alive()
        return files and bool(self._transport.is_active())

    def probe(self) -> None:
        """Ask for the root."""
        if isinstance(self._files, Connection):
            self._files.probe()
        else:
            self._files.is_directory("/")

    def close(self) -> None:
        """Close the channels, and the login with the last one."""
        self._close_channels()
        self._hang_up()

    def _close_channels(self) -> None:
        self._stop()
        self._commands.close()
        if isinstance(self._files, Connection):
            self._files.close()

    def _start(self) -> None:
        with translate_ssh_errors():
            self._sink = self._transport.open_session(timeout=self._timeout)
            self._sink.settimeout(self._timeout)
            self._sink.exec_command(SINK)
        self._inside = []
        self._expect_ok()

    def _stop(self) -> None:
        if self._sink is not None:
            with contextlib.suppress(Exception):
                self._sink.close()
        self._sink = None

    def _enter(self, parts: list[str], directory: str) -> None:
        """Leave the directory the sink is in as far as needed, and enter ``parts``."""
        common = 0
        for here, there in zip(self._inside, parts, strict=False):
            if here != there:
                break
            common += 1
        if common < len(parts) and not self._files.is_directory(directory):
            # The sink would make it with permissions of its own.
            raise FileNotFoundError(errno.ENOENT, "No such directory", directory)
        while len(self._inside) > common:
            self._send_record(b"E\n")
            self._inside.pop()
        for part in parts[common:]:
            self._send_record(f"D0755 0 {part}\n".encode("utf-8", "surrogateescape"))
            self._inside.append(part)

    def _put(self, source: SourceFile, name: str) -> None:
        self._send_record(f"C{source.mode & 0o777:04o} {source.size} {name}\n".encode("utf-8", "surrogateescape"))
        left = source.size
        with source.reader() as reader, translate_ssh_errors():
            while left > 0:
                block = reader.read(min(BLOCK, left))
                if not block:
                    source.check_unchanged()
                    raise OSError(errno.EIO, "the file ended too early", source.path)
                left -= len(block)
                send_all(self._channel, block if left else block + OK)
                failpoints.hit("sending")
            if not source.size:
                send_all(self._channel, OK)
        self._expect_ok()

    @property
    def _channel(self) -> paramiko.Channel:
        if self._sink is None:
            raise ConnectionFailed("the sink has ended")
        return self._sink

    def _send_record(self, record: bytes) -> None:
        with translate_ssh_errors():
            send_all(self._channel, record)
        self._expect_ok()

    def _expect_ok(self) -> None:
        with translate_ssh_errors():
            answer = receive(self._channel, 1)
            if answer == OK:
                return
            text = b""
            while not text.endswith(b"\n") and len(text) < LONGEST_ANSWER:
                more = receive(self._channel, LONGEST_ANSWER)
                if not more:
                    break
                text += more
        if answer in (WARNING, FATAL):
            raise error_of(text.decode("utf-8", "replace").strip())
        if not answer:
            raise ConnectionFailed("the far end closed the channel")
        raise ConnectionFailed(f"the far end does not speak SCP: {(answer + text)[:200]!r}")


class ScpMover(SshMover):
    """Delivers to ``scp://[user[:password]@]host[:port]/path``."""

    @property
    def stall_timeout(self) -> float:
        """Seconds without a byte moving after which a transfer fails."""
        return float(options.first_set(self.attrs, "scpclient_timeout_seconds", "stall_timeout"))

    def open_connection(self, transport: paramiko.Transport, hang_up: Callable[[], None]) -> Connection:
        """Open the channels that take files and rename them."""
        return ScpConnection(transport, self.stall_timeout, hang_up, checksum=self.option("verify_checksum"))
