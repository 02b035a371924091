"""Reads remote files by fsspec.

SFTP uses the logins of the movers, which reject unknown host keys. Messages choose the file system and its arguments, so
only file systems that read are allowed.
"""

from __future__ import annotations

import ftplib
import functools
import shutil
import tarfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import ParseResult, quote

import fsspec
from fsspec.implementations.sftp import SFTPFileSystem

from trollmoves.errors import (
    AuthenticationFailed,
    ConnectionFailed,
    MessageError,
    OriginChanged,
    OriginMissing,
    OriginUnreadable,
    PermanentTransferError,
    PermissionRefused,
    TemporaryTransferError,
    TrollmovesError,
)
from trollmoves.movers.base import from_os_error
from trollmoves.movers.ssh.connection import translate_ssh_errors
from trollmoves.movers.ssh.login import open_sftp
from trollmoves.net import redaction, urls

BLOCK = 1 << 20  # bytes per read
PREFETCH_REQUESTS = 64  # requests of SFTP in flight for one file
MAX_IDLE = 25.0  # s after which a kept login may have been closed by the server or a firewall
HTTP_CONNECT_TIMEOUT = 20.0  # s
HTTP_STALL_TIMEOUT = 60.0  # s without data
MAX_NESTING = 5  # file systems inside of one another
_SSH = ("sftp", "ssh")
_HTTP = ("http", "https")
# Those that read files from other hosts, and archives. Others would write caches to this host, or run programs.
ALLOWED = frozenset(
    (
        "abfs",
        "abfss",
        "adl",
        "az",
        "file",
        "ftp",
        "gcs",
        "gs",
        "hdfs",
        "http",
        "https",
        "libarchive",
        "local",
        "s3",
        "s3a",
    )
    + ("sftp", "smb", "ssh", "tar", "webhdfs", "zip")
)
_NO_OPTIONS = ("cls", "protocol", "args", "mode")  # a mode could open an archive for writing


class RemoteFile:
    """A file that fsspec reads: the chained URL ``uri``, or ``path`` in a described file system."""

    def __init__(self, uri: str, path: str = "", description: Mapping[str, Any] | None = None) -> None:
        """Raise MessageError if a file system is unknown or not allowed; opens no connection."""
        self._uri = uri
        self._path = path
        self._description = _described(description) if description else None
        _check_uri(uri)

    def read_to(self, stream: BinaryIO) -> None:
        """Write the content to ``stream``; raise TransferError, without secrets, if it is not complete."""
        secrets = [*redaction.values_of(self._description.options if self._description else {}), *_passwords(self._uri)]
        try:
            with _translate_errors(self._path or self._uri):
                self._read_to(stream)
        except TrollmovesError as error:
            redaction.remove_from_error(error, secrets)
            raise

    def _read_to(self, stream: BinaryIO) -> None:
        filesystem, path = self._open()
        if isinstance(filesystem, VerifiedSftp) and not filesystem.is_usable():
            VerifiedSftp.clear_instance_cache()
            filesystem, path = self._open()
        try:
            _copy(filesystem, path, stream)
        except Exception:
            VerifiedSftp.clear_instance_cache()  # the next attempt logs in again
            raise

    def _open(self) -> tuple[Any, str]:
        _register()
        if self._description:
            return self._description.open(), self._path
        if "::" not in self._uri and self._uri.startswith(tuple(f"{one}:" for one in _HTTP)):
            return _Description("http", [], {}).open(), self._uri
        filesystem, path = fsspec.core.url_to_fs(self._uri)
        return filesystem, str(path)


class VerifiedSftp(SFTPFileSystem):  # type: ignore[misc]
    """SFTP over the logins of the movers: unknown host keys are rejected, every wait has a limit."""

    def _connect(self) -> None:
        given = self.ssh_kwargs
        user = quote(str(given.get("username") or ""), safe="")
        login = f"{user}:{quote(str(given['password']), safe='')}" if given.get("password") else user
        host = f"[{self.host}]" if ":" in self.host else self.host
        netloc = f"{login}@{host}" if login else host
        url = ParseResult("sftp", f"{netloc}:{given['port']}" if given.get("port") else netloc, "/", "", "", "")
        names = {"key_filename": "ssh_key_filename", "passphrase": "ssh_key_passphrase"}
        self.client, self.ftp = open_sftp(
            url, {name: given[key] for key, name in names.items() if isinstance(given.get(key), str)}
        )
        self._last_used = time.monotonic()

    def is_usable(self) -> bool:
        """Return True if the login was used recently and is not closed."""
        transport = self.client.get_transport()
        return transport is not None and transport.is_active() and time.monotonic() - self._last_used < MAX_IDLE

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **_: Any) -> Any:  # noqa: ARG002
        file = self.ftp.open(path, mode)
        file.prefetch(file.stat().st_size, PREFETCH_REQUESTS)
        self._last_used = time.monotonic()
        return file


@functools.cache
def _register() -> None:
    for protocol in _SSH:
        fsspec.register_implementation(protocol, VerifiedSftp, clobber=True)


def _copy(filesystem: Any, path: str, stream: BinaryIO) -> None:
    if _protocol_of(filesystem) in _HTTP:
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


def _protocol_of(filesystem: Any) -> str:
    protocol = filesystem.protocol
    return str(protocol if isinstance(protocol, str) else protocol[0])


class _Description(NamedTuple):
    """A file system in a message, checked."""

    protocol: str
    arguments: list[Any]
    options: dict[str, Any]

    def open(self) -> Any:
        """Return the file system."""
        options = {
            name: value.open() if isinstance(value, _Description) else value for name, value in self.options.items()
        }
        if self.protocol in _HTTP:
            options["client_kwargs"] = {**options.get("client_kwargs", {}), "timeout": _http_timeout()}
        return fsspec.filesystem(self.protocol, *self.arguments, **options)


def _described(given: Mapping[str, Any], depth: int = 0) -> _Description:
    """Return the description of a file system; raise MessageError if it, or one inside of it, is not allowed."""
    if depth > MAX_NESTING:
        raise MessageError(f"its file systems are nested deeper than {MAX_NESTING} levels")
    protocol = given.get("protocol")
    protocol = protocol[0] if isinstance(protocol, list) and protocol else protocol
    _check_protocol(protocol)
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name == "target_protocol":
            _check_protocol(value)
        if name == "fo" and isinstance(value, str):
            _check_uri(value)
        if name not in _NO_OPTIONS:
            found[name] = _described(value, depth + 1) if isinstance(value, dict) and "protocol" in value else value
    arguments = given.get("args") or []
    if not all(isinstance(argument, str | int | float) for argument in arguments):
        raise MessageError("the arguments of its file system must be texts or numbers")
    return _Description(str(protocol), list(arguments), found)


def _check_uri(uri: str) -> None:
    """Raise MessageError if a part of a chained URL is not allowed."""
    for part in uri.split("::"):
        scheme, separator, _ = part.partition("://")
        if separator:
            _check_protocol(scheme)
        elif "::" in uri and "/" not in part:
            _check_protocol(part)


def _check_protocol(protocol: object) -> None:
    if protocol not in ALLOWED:
        raise MessageError(
            f"no file system for {urls.excerpt(str(protocol))!r}: use one of {', '.join(sorted(ALLOWED))}"
        )


def _passwords(uri: str) -> Iterator[str]:
    for part in uri.split("::"):
        if password := part.partition("://")[2].rpartition("@")[0].partition(":")[2]:
            yield password


def _http_timeout() -> Any:
    import aiohttp

    return aiohttp.ClientTimeout(total=None, sock_connect=HTTP_CONNECT_TIMEOUT, sock_read=HTTP_STALL_TIMEOUT)


@contextmanager
def _translate_errors(name: str) -> Iterator[None]:
    """Translate the exceptions of fsspec and its libraries."""
    shown = "::".join(urls.redacted(part) for part in name.split("::"))
    try:
        with translate_ssh_errors():
            yield
    except TrollmovesError:
        raise
    except Exception as error:
        raise _translated(error, shown) from error


def _translated(error: Exception, shown: str) -> TrollmovesError:
    if isinstance(error, FileNotFoundError):
        return OriginMissing(f"{shown}: the file does not exist")
    if isinstance(error, ImportError):
        return PermanentTransferError(f"{shown}: {error}; pip install 'trollmoves[fetcher]'")
    if isinstance(error, ftplib.error_perm):
        kind = AuthenticationFailed if str(error).startswith("530") else PermissionRefused
        return kind(f"{shown}: {error}")
    if isinstance(error, (EOFError, ftplib.Error)):
        return ConnectionFailed(f"{shown}: {str(error) or type(error).__name__}")
    if isinstance(error, (tarfile.TarError, zipfile.BadZipFile)):
        return OriginUnreadable(f"{shown}: {error}")
    if "aiohttp" in type(error).__module__:
        return _translated_http(error, shown)
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
    if isinstance(status, int) and 400 <= status < 500 and status not in (408, 425, 429):
        return OriginMissing(text)
    return ConnectionFailed(text)
