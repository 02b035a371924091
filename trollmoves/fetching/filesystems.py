"""Reads remote files by fsspec. SFTP uses the logins of the movers, which reject unknown host keys."""

from __future__ import annotations

import functools
import shutil
import tarfile
import time
import weakref
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO
from urllib.parse import ParseResult, quote

import fsspec
from fsspec.implementations.sftp import SFTPFileSystem

from trollmoves.errors import (
    AuthenticationFailed,
    ConnectionFailed,
    OriginChanged,
    OriginMissing,
    OriginUnreadable,
    PermanentTransferError,
    PermissionRefused,
    TemporaryTransferError,
    TrollmovesError,
)
from trollmoves.fetching.descriptions import HTTP, SSH, Description, is_chained, passwords, redacted
from trollmoves.movers.os_errors import from_os_error
from trollmoves.movers.ssh.connection import translate_ssh_errors
from trollmoves.movers.ssh.login import open_sftp
from trollmoves.net import redaction, urls

BLOCK = 1 << 20  # bytes per read
PREFETCH_REQUESTS = 64  # requests of SFTP in flight for one file
MAX_IDLE = 25.0  # s after which a kept login may have been closed by the server or a firewall
HTTP_CONNECT_TIMEOUT = 20.0  # s
HTTP_STALL_TIMEOUT = 60.0  # s without data


def read(uri: str, path: str, description: Description | None, stream: BinaryIO) -> None:
    """Write a file to ``stream``: the chained URL ``uri``, or ``path`` in the file system of ``description``.

    Connections are kept for the next file that the calling thread reads.

    Raises:
        TransferError: not all of the file was read; the text contains no secret.
    """
    try:
        with _translate_errors(redacted(path or uri)):
            filesystem, name = _open(uri, path, description)
            if isinstance(filesystem, VerifiedSftp) and not filesystem.is_usable():
                VerifiedSftp.clear_instance_cache()
                filesystem, name = _open(uri, path, description)
            _copy(filesystem, name, stream)
    except TrollmovesError as error:
        VerifiedSftp.clear_instance_cache()  # the next attempt logs in again
        redaction.remove_from_error(error, [*passwords(uri), *(description.secrets() if description else ())])
        raise


def _open(uri: str, path: str, description: Description | None) -> tuple[Any, str]:
    _register()
    if description:
        return _filesystem(description), path
    scheme = uri.partition(":")[0]
    if is_chained(uri) or scheme not in (*HTTP, *SSH):
        filesystem, path = fsspec.core.url_to_fs(uri)
        return filesystem, path
    if scheme in HTTP:
        return _filesystem(Description("http")), uri
    url = urls.parse(uri)
    login = {"port": urls.port(url), "username": urls.user(url), "password": urls.password(url)}
    given = {name: value for name, value in login.items() if value is not None}
    return _filesystem(Description("sftp", (), {"host": urls.host(url), **given})), url.path


def _filesystem(description: Description) -> Any:
    options = {
        name: _filesystem(value) if isinstance(value, Description) else value
        for name, value in description.options.items()
    }
    if description.protocol in HTTP:
        given = options.get("client_kwargs")
        options["client_kwargs"] = {**(given if isinstance(given, dict) else {}), "timeout": _http_timeout()}
    return fsspec.filesystem(description.protocol, *description.arguments, **options)


class VerifiedSftp(SFTPFileSystem):  # type: ignore[misc]
    """SFTP over the logins of the movers: unknown host keys are rejected, every wait has a limit."""

    def _connect(self) -> None:
        given = self.ssh_kwargs
        user = quote(str(given.get("username") or ""), safe="")
        login = f"{user}:{quote(str(given['password']), safe='')}" if given.get("password") else user
        host = f"[{self.host}]" if ":" in self.host else self.host
        netloc = f"{login}@{host}" if login else host
        url = ParseResult("sftp", f"{netloc}:{given['port']}" if given.get("port") else netloc, "/", "", "", "")
        names = {
            "key_filename": "ssh_key_filename",
            "passphrase": "ssh_key_passphrase",
            "ssh_transport": "ssh_transport",
        }
        opened = open_sftp(url, {name: given[key] for key, name in names.items() if isinstance(given.get(key), str)})
        self.ftp, self._is_open = opened.client, opened.is_open
        weakref.finalize(self, opened.close)
        self._last_used = time.monotonic()

    def is_usable(self) -> bool:
        """Return True if the login was used recently and is not closed."""
        return self._is_open() and time.monotonic() - self._last_used < MAX_IDLE

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        file = self.ftp.open(path, mode)
        file.prefetch(file.stat().st_size, PREFETCH_REQUESTS)
        self._last_used = time.monotonic()
        return file


@functools.cache
def _register() -> None:
    for protocol in SSH:
        fsspec.register_implementation(protocol, VerifiedSftp, clobber=True)


def _copy(filesystem: Any, path: str, stream: BinaryIO) -> None:
    protocols = (filesystem.protocol,) if isinstance(filesystem.protocol, str) else filesystem.protocol
    if set(protocols) & set(HTTP):
        filesystem.get_file(path, stream)
        return
    before = _version(filesystem, path)
    with filesystem.open(path, "rb") as file:
        shutil.copyfileobj(file, stream, BLOCK)
    filesystem.invalidate_cache()
    if _version(filesystem, path) != before:
        raise OriginChanged(f"{path}: was modified while it was being read")
    size, expected = stream.tell(), before[0]
    if expected is not None and size != expected:
        raise TemporaryTransferError(f"{path}: {size} of {expected} bytes arrived")


def _version(filesystem: Any, path: str) -> tuple[int | None, object]:
    info = filesystem.info(path)
    return info.get("size"), info.get("mtime")


def _http_timeout() -> Any:
    import aiohttp

    return aiohttp.ClientTimeout(total=None, sock_connect=HTTP_CONNECT_TIMEOUT, sock_read=HTTP_STALL_TIMEOUT)


@contextmanager
def _translate_errors(shown: str) -> Iterator[None]:
    """Translate the exceptions of fsspec and its libraries; ``shown`` is the file."""
    try:
        with translate_ssh_errors():
            yield
    except TrollmovesError:
        raise
    except Exception as error:  # a library may raise any exception
        raise _translated(error, shown) from error


def _translated(error: Exception, shown: str) -> TrollmovesError:
    text = f"{shown}: {str(error) or type(error).__name__}"
    library = type(error).__module__.partition(".")[0]
    if library == "aiohttp":
        return _translated_http(error, shown)
    if library == "ftplib":
        return _FTP_ERRORS.get(str(error)[:3], ConnectionFailed)(text)
    for kinds, translate in _TRANSLATIONS:
        if isinstance(error, kinds):
            return translate(text)
    if isinstance(error, OSError):
        return from_os_error(error, shown)
    return OriginUnreadable(f"{shown}: {type(error).__name__}: {error}")


def _translated_http(error: Exception, shown: str) -> TrollmovesError:
    status = getattr(error, "status", 0)
    text = f"{shown}: {status or type(error).__name__} {getattr(error, 'message', '') or ''}".rstrip()
    if status == 401:
        return AuthenticationFailed(text)
    if status == 403:
        return PermissionRefused(text)
    is_missing = isinstance(status, int) and 400 <= status < 500 and status not in (408, 425, 429)
    return OriginMissing(text) if is_missing else ConnectionFailed(text)


_FTP_ERRORS = {"530": AuthenticationFailed, **dict.fromkeys(("450", "550", "551", "553"), OriginUnreadable)}  # by code
_TRANSLATIONS = (
    (FileNotFoundError, lambda text: OriginMissing(f"{text}: the file does not exist")),
    (ImportError, lambda text: PermanentTransferError(f"{text}; pip install 'trollmoves[fetcher]'")),
    (EOFError, ConnectionFailed),
    ((tarfile.TarError, zipfile.BadZipFile), OriginUnreadable),
)
