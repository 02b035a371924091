"""Delivers by FTP, plain or under TLS.

All paths are absolute, so that no directory is changed to or walked through; the control connection is kept. FTP
says little about what went wrong: what can be found out by asking again is.
"""

from __future__ import annotations

import contextlib
import errno
import ftplib
import logging
import netrc
import select
import socket
import ssl
from collections.abc import Iterator
from typing import Any

from trollmoves.errors import (
    AuthenticationFailed,
    BadDestination,
    ConnectionFailed,
    NoSpace,
    PermanentTransferError,
    PermissionRefused,
    TargetBusy,
    TemporaryTransferError,
    TransferError,
)
from trollmoves.movers.base import SourceFile
from trollmoves.movers.pool import PROBE_TIMEOUT, Connection
from trollmoves.movers.remote import Endpoint, RemoteMover
from trollmoves.movers.tcp_progress import wait_readable
from trollmoves.utils import failpoints

LOG = logging.getLogger(__name__)
BLOCK = 1 << 18  # bytes that are handed to the kernel at a time
IMPLICIT_TLS_PORT = 990  # where TLS begins at once, instead of after AUTH TLS
FINAL_REPLY_TIMEOUT = 2.0  # seconds to wait for an answer after the data connection broke
TLS_CLOSE_TIMEOUT = 2.0  # seconds for the end of TLS on a data connection
_BY_CODE: dict[str, type[TransferError]] = {
    "421": ConnectionFailed,
    "425": ConnectionFailed,
    "426": TemporaryTransferError,
    "450": TargetBusy,
    "452": NoSpace,
    "552": NoSpace,
    "530": AuthenticationFailed,
    "553": BadDestination,
}
_NO_SPACE = ("no space", "disk full", "quota", "insufficient storage")


class FtpConnection(Connection):
    """One control connection."""

    def __init__(self, ftp: ftplib.FTP, stall_timeout: float) -> None:
        self._ftp = ftp
        self._in_step = True
        self._stall_timeout = stall_timeout

    def is_directory(self, path: str) -> bool:
        """Tell whether one can change to ``path``."""
        try:
            with self._translate_errors():
                self._ftp.voidcmd(f"CWD {path}")
        except PermanentTransferError:
            return False
        return True

    def make_directories(self, path: str) -> None:
        """Make ``path``, from the first part on that is missing."""
        if path in ("", "/") or self.is_directory(path):
            return
        self.make_directories(path.rpartition("/")[0])
        try:
            with self._translate_errors():
                self._ftp.voidcmd(f"MKD {path}")
        except PermanentTransferError as error:
            if self.is_directory(path):  # another delivery was quicker
                return
            if self.size(path) is not None:  # a file is there, which no right to write would change
                raise
            raise PermissionRefused(str(error)) from error

    def send(self, source: SourceFile, path: str) -> None:
        """Store by a data connection of its own."""
        try:
            data = self._start_stor(path)
        except PermanentTransferError as error:
            directory = path.rpartition("/")[0]
            if directory and not self.is_directory(directory):
                raise FileNotFoundError(errno.ENOENT, str(error), directory) from error
            data = self._retry_stor(path)
        with self._translate_errors(), data:
            self._in_step = False
            broken = _send_file(source, data)
            if isinstance(broken, TimeoutError):
                raise broken
            if broken is None and self._ftp.sock is not None:
                wait_readable(self._ftp.sock, data, self._stall_timeout)
            self._read_final_reply(broken)
            self._in_step = True

    def _start_stor(self, path: str) -> socket.socket:
        with self._translate_errors():
            return self._ftp.transfercmd(f"STOR {path}")

    def _retry_stor(self, path: str) -> socket.socket:
        """Try again: the directory is there now, and may have been missing just before."""
        try:
            return self._start_stor(path)
        except PermanentTransferError as error:
            raise PermissionRefused(str(error)) from error

    def _read_final_reply(self, broken: OSError | None) -> None:
        """Wait for the answer to a transfer; who closes a data connection says why on the other one, or never."""
        control = self._ftp.sock
        assert control is not None  # noqa: S101  (it is connected)
        try:
            if broken is not None:
                control.settimeout(min(FINAL_REPLY_TIMEOUT, self._stall_timeout))
            self._ftp.voidresp()
        except ftplib.Error:
            self._in_step = True
            raise
        except (OSError, EOFError) as error:
            if broken is None:
                raise
            raise ConnectionFailed(f"the data connection broke: {broken}") from error
        finally:
            control.settimeout(self._stall_timeout)
        if broken is not None:
            raise ConnectionFailed(f"the data connection broke: {broken}") from broken

    def size(self, path: str) -> int | None:
        """Ask for the size, which not every far end can tell."""
        try:
            with self._translate_errors():
                return self._ftp.size(path)
        except PermanentTransferError:
            return None

    def replace(self, partial: str, final: str) -> None:
        """Rename; where that does not replace, remove what is there before."""
        try:
            self._rename(partial, final)
        except PermanentTransferError:
            if self.is_directory(final):
                raise
            self.remove(final)
            self._rename(partial, final)

    def _rename(self, partial: str, final: str) -> None:
        with self._translate_errors():
            self._ftp.rename(partial, final)

    def remove(self, path: str) -> None:
        """Delete ``path``; the answer does not tell a missing file from a refusal."""
        with contextlib.suppress(PermanentTransferError), self._translate_errors():
            self._ftp.delete(path)

    def alive(self) -> bool:
        """Tell whether the far end has said nothing: between commands it only speaks to say goodbye."""
        if not self._in_step or self._ftp.sock is None:
            return False
        try:
            return not select.select([self._ftp.sock], [], [], 0)[0]
        except (OSError, ValueError):
            return False

    def probe(self) -> None:
        """Send a NOOP."""
        control = self._ftp.sock
        assert control is not None  # noqa: S101  (it is alive)
        control.settimeout(min(PROBE_TIMEOUT, self._stall_timeout))
        with self._translate_errors():
            self._ftp.voidcmd("NOOP")
        control.settimeout(self._stall_timeout)

    def close(self) -> None:
        """Close without a word, which every server must bear."""
        self._ftp.close()

    @contextlib.contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Translate what ftplib raises."""
        try:
            yield
        except ftplib.Error as error:
            raise _to_transfer_error(error) from error
        except EOFError as error:
            self._in_step = False
            raise ConnectionFailed("the far end closed the connection") from error
        except ssl.SSLError as error:
            self._in_step = False
            raise ConnectionFailed(f"TLS: {error.reason}") from error
        except OSError:
            self._in_step = False
            raise
        except ValueError as error:  # a line break, or what is no text in the far end's encoding
            raise BadDestination(f"FTP cannot name such a file: {error}") from error


def _send_file(source: SourceFile, data: socket.socket) -> OSError | None:
    """Send all of ``source``, say that it was all, and return what went wrong, if anything."""
    try:
        _write(source, data)
        data.shutdown(socket.SHUT_WR)
    except OSError as error:
        data.close()
        return error
    return None


def _write(source: SourceFile, data: socket.socket) -> None:
    with source.reader() as reader:
        while block := reader.read(BLOCK):
            data.sendall(block)
            failpoints.hit("sending")
    if isinstance(data, ssl.SSLSocket):
        data.settimeout(TLS_CLOSE_TIMEOUT)
        with contextlib.suppress(OSError):  # some servers close at once; the size tells what arrived
            data.unwrap()


def _to_transfer_error(error: ftplib.Error) -> TransferError:
    text = str(error)
    code = text[:3]
    if any(words in text.lower() for words in _NO_SPACE):
        kind: type[TransferError] = NoSpace
    elif code in _BY_CODE:
        kind = _BY_CODE[code]
    else:
        kind = PermanentTransferError if code.startswith("5") else TemporaryTransferError
    return kind(f"the far end answers {text!r}")


class _FtpTls(ftplib.FTP_TLS):
    """FTP under TLS whose data connections resume the session of the control connection, as strict servers demand."""

    def connect(self, host: str = "", port: int = 0, timeout: float = -999, source_address: Any = None) -> str:
        """Connect; on the port for that, TLS comes before the greeting."""
        if port != IMPLICIT_TLS_PORT:
            return super().connect(host, port, timeout, source_address)
        self.host, self.port, self.timeout = host, port, timeout
        plain = socket.create_connection((host, port), timeout)
        self.af = plain.family
        self.sock = self.context.wrap_socket(plain, server_hostname=host)
        self.file = self.sock.makefile("r", encoding=self.encoding)
        self.welcome = self.getresp()
        return self.welcome

    def ntransfercmd(self, cmd: str, rest: int | str | None = None) -> tuple[socket.socket, int | None]:
        """Open a data connection."""
        connection, size = ftplib.FTP.ntransfercmd(self, cmd, rest)  # noqa: S321
        control = self.sock
        session = control.session if isinstance(control, ssl.SSLSocket) else None
        return self.context.wrap_socket(connection, server_hostname=self.host, session=session), size


class FtpMover(RemoteMover):
    """Delivers to ``ftp://[user[:password]@]host[:port]/path``.

    Without a user, ``~/.netrc`` is asked for the host; else the login is anonymous.
    """

    def connect(self, login: Endpoint) -> Connection:
        """Connect and log in."""
        ftp = self._client()
        connected = False
        try:
            ftp.connect(login.host, login.port or 0, timeout=self.option("connection_timeout"))
            self._log_in(ftp, *_credentials(login))
            _set_up(ftp, self.option("stall_timeout"), passive=self.option("ftp_passive"))
            connected = True
        except ftplib.Error as error:
            raise _to_transfer_error(error) from None
        except EOFError as error:
            raise ConnectionFailed("the far end closed the connection") from error
        finally:
            if not connected:
                ftp.close()
        return FtpConnection(ftp, self.option("stall_timeout"))

    def _client(self) -> ftplib.FTP:
        return ftplib.FTP()  # noqa: S321  (whether plain FTP will do, the URL says)

    def _log_in(self, ftp: ftplib.FTP, user: str, password: str) -> None:
        ftp.login(user, password)


class FtpsMover(FtpMover):
    """Delivers to ``ftps://...``: passwords and files go under TLS, begun by AUTH TLS, or at once on port 990."""

    def connect(self, login: Endpoint) -> Connection:
        """Connect, check the certificate and log in."""
        try:
            return super().connect(login)
        except ssl.SSLCertVerificationError as error:
            raise AuthenticationFailed(f"the certificate is not accepted: {error.verify_message}") from error

    def _client(self) -> ftplib.FTP:
        context = ssl.create_default_context(cafile=self.option("ftp_tls_ca_file"))
        if not self.option("ftp_tls_verify"):
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return _FtpTls(context=context)

    def _log_in(self, ftp: ftplib.FTP, user: str, password: str) -> None:
        assert isinstance(ftp, _FtpTls)  # noqa: S101  (for the type checker)
        ftp.login(user, password, secure=ftp.port != IMPLICIT_TLS_PORT)
        ftp.prot_p()


def _credentials(login: Endpoint) -> tuple[str, str]:
    if login.user:
        return login.user, login.password or ""
    try:
        found = netrc.netrc().authenticators(login.host)
    except FileNotFoundError:
        found = None
    except OSError as error:
        LOG.warning("~/.netrc cannot be read: %s", error.strerror)
        found = None
    except netrc.NetrcParseError as error:
        # What it says of a line may hold the password that stands there.
        why = error.msg if error.msg.startswith("~") else f"line {error.lineno}, or the one before, makes no sense"
        LOG.warning("~/.netrc is not used: %s", why)
        found = None
    return (found[0], found[2] or "") if found else ("anonymous", "anonymous@")


def _set_up(ftp: ftplib.FTP, stall_timeout: float, *, passive: bool) -> None:
    assert ftp.sock is not None  # noqa: S101  (it is connected)
    ftp.sock.settimeout(stall_timeout)
    ftp.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    ftp.timeout = stall_timeout
    ftp.set_pasv(passive)
    ftp.voidcmd("TYPE I")
