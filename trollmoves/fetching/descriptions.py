"""The file systems that messages name: which are allowed, and with which options."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from trollmoves.errors import MessageError
from trollmoves.net import redaction, urls

MAX_NESTING = 5  # file systems inside of one another
LOCAL = ("file", "local")
S3 = ("s3", "s3a")
HTTP = ("http", "https")
SSH = ("sftp", "ssh")
# Those that read files, and archives. Others of fsspec would write caches to this host, or run programs.
ALLOWED = frozenset(
    (*LOCAL, *S3, *HTTP, *SSH, "abfs", "abfss", "adl", "az", "ftp", "gcs", "gs", "hdfs", "libarchive", "smb")
) | {"tar", "webhdfs", "zip"}
_IPV6 = re.compile(r"\[[0-9A-Fa-f:.]*")
_LOCAL_CHOICE = ("mode", "ssh_transport")  # a mode could open an archive for writing
_NO_OPTIONS = ("cls", "protocol", "args", *_LOCAL_CHOICE)


class Description(NamedTuple):
    """A file system of fsspec; an option may be another description."""

    protocol: str
    arguments: tuple[Any, ...] = ()
    options: Mapping[str, Any] = {}

    def secrets(self) -> Iterator[str]:
        """Yield the secrets in the options."""
        yield from redaction.values_of(dict(self.options))
        for value in self.options.values():
            if isinstance(value, Description):
                yield from value.secrets()


def parse_description(given: Any, depth: int = 0) -> Description:
    """Return the description of a file system, as fsspec writes it; raise MessageError if it is not allowed."""
    if not isinstance(given, dict) or depth > MAX_NESTING:
        raise MessageError(f"its filesystem must be a dictionary, nested at most {MAX_NESTING} levels deep")
    protocol = given.get("protocol")
    protocol = protocol[0] if isinstance(protocol, list) and protocol else protocol
    _check_protocol(protocol)
    if "target_protocol" in given:
        _check_protocol(given["target_protocol"])
    if isinstance(given.get("fo"), str):
        check_uri(given["fo"])
    arguments = given.get("args") or ()
    if not isinstance(arguments, list | tuple) or not all(isinstance(one, str | int | float) for one in arguments):
        raise MessageError("the arguments of its filesystem must be a list of texts and numbers")
    for one in arguments:
        check_uri(str(one))
    options = {name: _option(value, depth) for name, value in given.items() if name not in _NO_OPTIONS}
    return Description(str(protocol), tuple(arguments), options)


def _option(value: Any, depth: int) -> Any:
    if not isinstance(value, dict):
        return value
    if "protocol" in value or "cls" in value:
        return parse_description(value, depth + 1)
    return {name: item for name, item in value.items() if name not in _LOCAL_CHOICE}


def is_chained(uri: str) -> bool:
    """Return True for a chained URL of fsspec, as ``tar://member::sftp://host/archive``."""
    return "::" in _IPV6.sub("", uri)


def check_uri(uri: str) -> None:
    """Raise MessageError if a part of a URL, which may be chained, names a file system that is not allowed."""
    for part in uri.split("::") if is_chained(uri) else (uri,):
        scheme, separator, _ = part.partition("://")
        if separator or (part != uri and "/" not in part):
            _check_protocol(scheme)


def passwords(uri: str) -> Iterator[str]:
    """Yield the passwords in a chained URL."""
    for part in uri.split("::"):
        if password := part.partition("://")[2].rpartition("@")[0].partition(":")[2]:
            yield password


def redacted(uri: str) -> str:
    """Return a chained URL without secrets."""
    return "::".join(urls.redacted(part) for part in uri.split("::"))


def _check_protocol(protocol: object) -> None:
    if not isinstance(protocol, str) or protocol not in ALLOWED:
        shown = urls.excerpt(str(protocol))
        raise MessageError(f"no file system for {shown!r} is allowed: use one of {', '.join(sorted(ALLOWED))}")
