"""The defaults for S3 that sites keep in the configuration of fsspec: its files, then its environment variables.

The files are ``*.json`` and ``*.ini`` in ``$FSSPEC_CONFIG_DIR`` or ``~/.config/fsspec``, in the order of their names;
the variables are ``FSSPEC_S3`` (JSON) and ``FSSPEC_S3_<NAME>``. Later values replace earlier ones, as in fsspec, which
need not be installed.
"""

from __future__ import annotations

import configparser
import functools
import json
import os
from collections.abc import Mapping
from typing import Any

from trollmoves.errors import ConfigError
from trollmoves.movers import options
from trollmoves.net import redaction

PROTOCOLS = ("s3", "s3a")  # names of the section; the values of the later one win
VARIABLE = "FSSPEC_"
_SYNONYMS = {"username": "key", "password": "secret"}  # of s3fs
_LOGIN = ("key", "secret", "token", "profile", "anon")


def with_s3_defaults(attrs: Mapping[str, Any], *, login: bool = False) -> Mapping[str, Any]:
    """Return connection parameters for S3, with those of fsspec's configuration that ``attrs`` does not set.

    Files are read again after a change. With ``login``, because the URL has one, no credentials are added. Any thread.

    Raises:
        ConfigError: a file cannot be read; the text names it.
    """
    found = dict(_from_files(_signature()))
    found |= _from_environment()
    if not found:
        return attrs
    known = {_SYNONYMS.get(name, name): value for name, value in found.items()}
    defaults = {
        name: value
        for name, value in known.items()
        if value is not None and options.is_known(name, "s3") and not (login and name in _LOGIN)
    }
    redaction.known_secrets().add(*redaction.values_of(defaults))
    return {**defaults, **{name: value for name, value in attrs.items() if value is not None}}


def _signature() -> tuple[tuple[str, int, int], ...]:
    """Return path, time of change (ns) and size of each file, by name."""
    directory = os.environ.get("FSSPEC_CONFIG_DIR") or os.path.join(os.path.expanduser("~"), ".config", "fsspec")
    try:
        with os.scandir(directory) as entries:
            found = [(one.path, one.stat()) for one in entries if one.name.endswith((".ini", ".json"))]
    except OSError:
        return ()
    return tuple(sorted((path, status.st_mtime_ns, status.st_size) for path, status in found))


@functools.lru_cache(maxsize=1)
def _from_files(signature: tuple[tuple[str, int, int], ...]) -> Mapping[str, Any]:
    merged: dict[str, dict[str, Any]] = {}
    for path, _, _ in signature:
        for protocol, values in _read(path).items():
            if protocol in PROTOCOLS:
                merged.setdefault(protocol, {}).update(values)
    return {name: value for protocol in PROTOCOLS for name, value in merged.get(protocol, {}).items()}


def _read(path: str) -> dict[str, dict[str, Any]]:
    try:
        with open(path, encoding="utf-8") as stream:
            text = stream.read()
        if path.endswith(".json"):
            return {protocol: dict(values) for protocol, values in json.loads(text).items() if protocol in PROTOCOLS}
        parser = configparser.ConfigParser()
        parser.read_string(text)
        return {protocol: dict(parser[protocol]) for protocol in PROTOCOLS if protocol in parser}
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=path) from None
    except (configparser.Error, ValueError, TypeError, AttributeError, RecursionError) as error:
        line = getattr(error, "lineno", 0)  # the text is not shown: it may contain a secret
        where = f" in line {line}" if line else ""
        raise ConfigError(f"the configuration of fsspec is invalid{where}: correct or remove it", file=path) from None


def _from_environment() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for protocol in PROTOCOLS:
        group = _parsed(os.environ.get(f"{VARIABLE}{protocol.upper()}", ""))
        prefix = f"{VARIABLE}{protocol.upper()}_"
        found |= group if isinstance(group, dict) else {}
        found |= {
            name.removeprefix(prefix).lower(): _parsed(value)
            for name, value in os.environ.items()
            if name.startswith(prefix)
        }
    return found


def _parsed(text: str) -> Any:
    """Return the JSON value of a text, else the text; a number stays a text, since a key may consist of digits."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return text if isinstance(value, int | float) and not isinstance(value, bool) else value
