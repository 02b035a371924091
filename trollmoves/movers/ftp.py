"""Delivers by FTP, plain or under TLS.

All paths are absolute, so that the working directory does not matter; the control connection is kept. FTP replies are
vague about errors: further commands find the cause where possible.
"""

from __future__ import annotations

import contextlib
import errno
import ftplib
import io
import logging
import netrc
import re
import select
import socket
import ssl
import struct
from collections.abc import Iterator
from typing import Any

from trollmoves.errors import (
    AuthenticationFailed,
    BadDestination,
    ConnectionFailed,
    NameRejected,
    NoSpace,
    PermanentTransferError,
    PermissionRefused,
    TargetBusy,
    TemporaryTransferError,
    TooManyConnections,
    TransferError,
)
from trollmoves.movers.pool import PROBE_TIMEOUT, Connection
from trollmoves.movers.remote import Endpoint, RemoteMover
from trollmoves.movers.source_file import SourceFile
from trollmoves.movers.tcp_progress import wait_readable
from trollmoves.net.redaction import known_secrets

logger = logging.getLogger(__name__)
BLOCK = 1 << 18  # bytes per call of send
IMPLICIT_TLS_PORT = 990  # TLS starts with the connection, without AUTH TLS
FINAL_REPLY_TIMEOUT = 2.0  # seconds to wait for a reply after the data connection broke
ABORT_REPLY_TIMEOUT = 5.0  # seconds to wait for the reply to an abort, which comes after the data on the line
TLS_CLOSE_TIMEOUT = 2.0  # seconds to shut down TLS on a data connection
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
# Replies to RNFR that reject every rename; some servers give both reasons for a missing file.
_NO_RENAME = re.compile(
    r"50[0-4]|(?!.*(?:no such|not found|not exist|cannot find|can't find))"
    r".*(?:permission|privilege|denied|disallow|forbidden|prohibited|not (?:allowed|permitted|supported|implemented))",
    re.IGNORECASE | re.DOTALL,
)
# Replies 530 that reject a login because of the number of connections, not because of the credentials.
_LOGIN_LIMIT = re.compile(
    r"(?!.*(?:attempt|fail|incorrect|invalid|wrong))"
    r".*(?:too many|maximum|max\.|\blimit\b|already (?:connected|logged)|concurrent|simultaneous)",
    re.IGNORECASE | re.DOTALL,
)
_NO_SPACE = ("no space", "disk full", "quota", "insufficient storage")


class FtpConnection(Connection):
    """One control connection."""

    def __init__(self, ftp: ftplib.FTP, stall_timeout: float) -> None:
        self._ftp = ftp
        self._in_step = True
        self._stall_timeout = stall_timeout

    def is_directory(self, path: str) -> bool:
        """Return True if CWD to ``path`` succeeds."""
        try:
            with self._translate_errors():
                self._ftp.voidcmd(f"CWD {path}")
        except PermanentTransferError:
            return False
        return True

    def make_directories(self, path: str) -> None:
        """Create ``path`` and missing parents."""
        if path in ("", "/") or self.is_directory(path):
            return
        self.make_directories(path.rpartition("/")[0])
        try:
            with self._translate_errors():
                self._ftp.voidcmd(f"MKD {path}")
        except PermanentTransferError as error:
            if self.is_directory(path):  # created by a concurrent delivery
                return
            if self.size(path) is not None:  # an existing file, not a missing permission
                raise
            raise PermissionRefused(str(error)) from error

    def send(self, source: SourceFile, path: str) -> None:
        """Store over a new data connection."""
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
            if source.read_error:
                self._in_step = self._replies_soon()  # then the connection works, and the partial can be removed
                raise source.read_error
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
        """Repeat STOR: the directory exists now and may have been missing before."""
        try:
            return self._start_stor(path)
        except PermanentTransferError as error:
            raise PermissionRefused(str(error)) from error

    def _replies_soon(self) -> bool:
        """Return True if the server replies to an abort: some do not if there was no data."""
        try:
            with self._timeout(ABORT_REPLY_TIMEOUT):
                self._ftp.voidresp()
        except ftplib.Error:
            return True
        except (OSError, EOFError):
            return False
        return True

    def _read_final_reply(self, broken: OSError | None) -> None:
        """Wait for the final reply; a server that closes the data connection may send the reason, or nothing."""
        try:
            with self._timeout(self._stall_timeout if broken is None else FINAL_REPLY_TIMEOUT):
                self._ftp.voidresp()
        except ftplib.Error:
            self._in_step = True
            raise
        except (OSError, EOFError) as error:
            if broken is None:
                raise
            raise ConnectionFailed(f"the data connection broke: {broken}") from error
        if broken is not None:
            raise ConnectionFailed(f"the data connection broke: {broken}") from broken

    def size(self, path: str) -> int | None:
        """Return the size in bytes, None if the server does not support SIZE."""
        try:
            with self._translate_errors():
                return self._ftp.size(path)
        except PermanentTransferError:
            return None

    def replace(self, partial: str, final: str) -> None:
        """Rename; if the server does not replace, remove the existing file first."""
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

    def rejects_rename(self, path: str) -> bool:
        """Return True if the server rejects RNFR for another reason than the missing ``path``."""
        with self._translate_errors():
            try:
                self._ftp.sendcmd(f"RNFR {path}")
            except ftplib.error_perm as error:
                return bool(_NO_RENAME.match(str(error)))
            except ftplib.error_temp as error:
                if str(error).startswith("421"):
                    raise
        return False

    def remove(self, path: str) -> None:
        """Delete ``path``; a rejection is ignored, as it may mean a missing file."""
        with contextlib.suppress(PermanentTransferError), self._translate_errors():
            self._ftp.delete(path)

    def alive(self) -> bool:
        """Return True if the server has sent nothing: between commands it only sends a goodbye."""
        if not self._in_step or self._ftp.sock is None:
            return False
        try:
            return not select.select([self._ftp.sock], [], [], 0)[0]
        except (OSError, ValueError):
            return False

    def probe(self) -> None:
        """Send a NOOP."""
        with self._translate_errors(), self._timeout(PROBE_TIMEOUT):
            self._ftp.voidcmd("NOOP")

    def close(self) -> None:
        """Close without QUIT."""
        self._ftp.close()

    @contextlib.contextmanager
    def _timeout(self, seconds: float) -> Iterator[None]:
        """Wait at most ``seconds`` for a reply in the block, and at most the stall timeout."""
        control = self._ftp.sock
        assert control is not None  # noqa: S101  (it is connected)
        control.settimeout(min(seconds, self._stall_timeout))
        try:
            yield
        finally:
            control.settimeout(self._stall_timeout)

    @contextlib.contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Translate exceptions of ftplib."""
        try:
            yield
        except TransferError:
            raise
        except ftplib.Error as error:
            raise _to_transfer_error(error) from error
        except EOFError as error:
            self._in_step = False
            raise ConnectionFailed("the server closed the connection") from error
        except ssl.SSLError as error:
            self._in_step = False
            raise ConnectionFailed(f"TLS: {error.reason}") from error
        except OSError:
            self._in_step = False
            raise
        except ValueError as error:  # a line break, or characters missing in the encoding of the server
            raise NameRejected(f"FTP does not support this path: {error}") from error


def _send_file(source: SourceFile, data: socket.socket) -> OSError | None:
    """Send all of ``source`` and end the data; return the error, None without one."""
    try:
        _write(source, data)
        data.shutdown(socket.SHUT_WR)
    except OSError as error:
        if source.read_error:  # the server need not receive the data that is still in the buffers
            data.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        data.close()
        return error
    return None


def _write(source: SourceFile, data: socket.socket) -> None:
    with source.reader() as reader:
        while block := reader.read(BLOCK):
            data.sendall(block)
    if isinstance(data, ssl.SSLSocket):
        data.settimeout(TLS_CLOSE_TIMEOUT)
        with contextlib.suppress(OSError):  # some servers close immediately; the size is checked later
            data.unwrap()


def _to_transfer_error(error: ftplib.Error) -> TransferError:
    text = str(error)
    code = text[:3]
    if any(phrase in text.lower() for phrase in _NO_SPACE):
        kind: type[TransferError] = NoSpace
    elif code in _BY_CODE:
        kind = _BY_CODE[code]
    else:
        kind = PermanentTransferError if code.startswith("5") else TemporaryTransferError
    return kind(f"the server replied {text!r}")


def _to_login_error(error: ftplib.Error) -> TransferError:
    text = str(error)
    if text.startswith("421") or (text.startswith("530") and _LOGIN_LIMIT.match(text)):
        return TooManyConnections(f"the server replied {text!r}")
    found = _to_transfer_error(error)
    return AuthenticationFailed(f"{found}; check user and password") if type(found) is AuthenticationFailed else found


class _Ftp(ftplib.FTP):
    """FTP with replies in any encoding: only their codes and numbers matter."""

    def getline(self) -> str:
        """Return the next line; bytes that are not UTF-8 become escapes."""
        if isinstance(self.file, io.TextIOWrapper) and self.file.errors == "strict":
            self.file.reconfigure(errors="backslashreplace")
        return super().getline()

    def makepasv(self) -> tuple[str, int]:
        """Return the address for data: always the host of the control connection, whatever the server replies."""
        try:
            return super().makepasv()
        except ftplib.error_perm:
            if self.af != socket.AF_INET or self.sock is None:  # ftplib sends EPSV to an IPv6 address
                raise
            return ftplib.parse229(self.sendcmd("EPSV"), self.sock.getpeername())  # noqa: S321  (the URL selects FTP)


class _FtpTls(_Ftp, ftplib.FTP_TLS):
    """FTP over TLS; data connections resume the TLS session of the control connection, as strict servers require."""

    def connect(self, host: str = "", port: int = 0, timeout: float = -999, source_address: Any = None) -> str:
        """Connect; on port 990 start TLS before the greeting."""
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

    Without a user, ``~/.netrc`` supplies the login of the host; else the login is anonymous.
    """

    def connect(self, login: Endpoint) -> Connection:
        """Connect and log in."""
        ftp = self._client()
        connected = False
        try:
            ftp.connect(login.host, login.port or 0, timeout=self.option("connection_timeout"))
            self._log_in(ftp, *credentials(login))
            _set_up(ftp, self.option("stall_timeout"), passive=self.option("ftp_passive"))
            connected = True
        except ftplib.Error as error:
            raise _to_login_error(error) from None
        except EOFError as error:
            raise ConnectionFailed("the server closed the connection") from error
        finally:
            if not connected:
                ftp.close()
        return FtpConnection(ftp, self.option("stall_timeout"))

    def _client(self) -> ftplib.FTP:
        return _Ftp()  # the URL selects plain FTP

    def _log_in(self, ftp: ftplib.FTP, user: str, password: str) -> None:
        ftp.login(user, password)


class FtpsMover(FtpMover):
    """Delivers to ``ftps://...``: passwords and files use TLS, after AUTH TLS, or implicitly on port 990."""

    def connect(self, login: Endpoint) -> Connection:
        """Connect, check the certificate and log in."""
        try:
            return super().connect(login)
        except ssl.SSLCertVerificationError as error:
            raise AuthenticationFailed(
                f"the certificate is rejected: {error.verify_message}; see ftp_tls_ca_file"
            ) from error

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


def credentials(login: Endpoint) -> tuple[str, str]:
    """Return user and password: those of the URL, else those of ``~/.netrc`` for its host, else anonymous ones."""
    if login.user:
        return login.user, login.password or ""
    try:
        entry = netrc.netrc().authenticators(login.host)
    except FileNotFoundError:
        entry = None
    except OSError as error:
        logger.warning("ignored ~/.netrc, which cannot be read: %s", error.strerror)
        entry = None
    except netrc.NetrcParseError as error:
        # The message may contain a password of the file.
        reason = error.msg if error.msg.startswith("~") else f"line {error.lineno}, or the line before, is invalid"
        logger.warning("ignored ~/.netrc: %s", reason)
        entry = None
    except UnicodeDecodeError:
        logger.warning("ignored ~/.netrc: it is not UTF-8 text")
        entry = None
    if not entry:
        return "anonymous", "anonymous@"
    known_secrets().add(entry[2])
    return entry[0], entry[2] or ""


def _set_up(ftp: ftplib.FTP, stall_timeout: float, *, passive: bool) -> None:
    assert ftp.sock is not None  # noqa: S101  (it is connected)
    ftp.sock.settimeout(stall_timeout)
    ftp.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    ftp.timeout = stall_timeout
    ftp.set_pasv(passive)
    ftp.voidcmd("TYPE I")
