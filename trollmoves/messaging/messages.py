"""Posttroll messages, read and written cheaply.

The text is the one that posttroll writes (``pytroll:/<subject> <type> <user@host> <time> <version>[ <mime> <data>]``,
posttroll's ``message.py``), to the byte and for the posttroll version that is installed; only the way there is shorter:
the sender is looked up once, the data is encoded once, and only strings that can be a time are tried as one.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import pwd
import socket
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import posttroll
import posttroll.message

from trollmoves.errors import MessageError
from trollmoves.net import urls

MAGIC = "pytroll:/"
NEWEST_VERSION = "v1.2"
NO_DATETIME_VERSION = "v1.01"

# Values under these keys are names and addresses: a file called "20250101" stays one.
_NEVER_A_TIME = frozenset({"uri", "uid", "path", "request_address", "destination"})
_DIGITS = frozenset("0123456789")
MIN_TIME_LENGTH = 7  # "2025W01", the shortest text that datetime.fromisoformat accepts
MAX_DEPTH = 100  # dictionaries and lists within one another: whoever walks through data must not run out of stack


@lru_cache(maxsize=1)
def own_sender() -> str:
    """Give ``user@host`` of this process."""
    return f"{pwd.getpwuid(os.getuid()).pw_name}@{socket.gethostname()}"


@lru_cache(maxsize=1)
def _fixed_version() -> str | None:
    """Give the version that the installed posttroll writes on every message, None where it decides by the data."""
    fixed = getattr(posttroll.message, "MESSAGE_VERSION", None) or posttroll.config.get("message_version", None)
    return str(fixed) if fixed else None


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class _Encoder(json.JSONEncoder):
    """JSON with times in ISO form; remembers whether a time was met."""

    def __init__(self, version: str | None) -> None:
        super().__init__()
        self.version = version
        self.met_datetime = False

    def default(self, o: Any) -> Any:
        if isinstance(o, (dt.datetime, dt.time)):
            self.met_datetime |= isinstance(o, dt.datetime)
            return (o if (self.version or NEWEST_VERSION) > NO_DATETIME_VERSION else o.replace(tzinfo=None)).isoformat()
        if isinstance(o, dt.date):
            return o.isoformat()
        return super().default(o)


@dataclass(slots=True)
class Message:
    """One message: what it is about, what kind it is, and its data (a dict, list or string; "" for none)."""

    subject: str
    type: str
    data: Any = ""
    sender: str = field(default_factory=own_sender)
    time: dt.datetime = field(default_factory=_now)
    version: str | None = None
    binary: bool = False
    raw: str = field(default="", repr=False, compare=False)
    """What it was read from."""

    def encode(self) -> str:
        """Give the text for the wire, which is UTF-8; MessageError when the data cannot be written."""
        version = self.version or _fixed_version()
        if not self.data:
            return self._head(version or NO_DATETIME_VERSION)
        if isinstance(self.data, str):
            mime = "binary/octet-stream" if self.binary else "text/ascii"
            return f"{self._head(version or NO_DATETIME_VERSION)} {mime} {_utf8_safe(self.data)}"
        text, version = self._encode_json(version)
        return f"{self._head(version)} application/json {text}"

    def _encode_json(self, version: str | None) -> tuple[str, str]:
        encoder = _Encoder(version)
        try:
            text = encoder.encode(self.data)
        except (TypeError, ValueError, RecursionError) as error:
            raise MessageError(f"cannot write the data of {self.subject} {self.type}: {error}") from error
        return text, version or (NEWEST_VERSION if encoder.met_datetime else NO_DATETIME_VERSION)

    def _head(self, version: str) -> str:
        time = self.time if version > NO_DATETIME_VERSION else self.time.replace(tzinfo=None)
        return f"{MAGIC}{_utf8_safe(self.subject)} {self.type} {self.sender} {time.isoformat()} {version}"

    def derive(self, type_: str, added: dict[str, Any] | None = None, *, without: str | None = None) -> str:
        """Give the text of a message of ours about the same, with the same data, some items more and one less.

        The data of a message that was read is not written anew: it must be as it was read, or ``text`` emptied.
        """
        added = added or {}
        data = self._data_text(added, without)
        if not data:
            kept = self.data
            if added or without is not None:
                kept = {key: value for key, value in kept.items() if key != without} | added
            return Message(self.subject, type_, kept).encode()
        if added:
            data = f"{data[:-1]}, {json.dumps(added)[1:]}"
        head = Message(self.subject, type_)._head(self.version or NEWEST_VERSION)
        return f"{head} application/json {data}"

    def _data_text(self, added: dict[str, Any], without: str | None) -> str:
        """Give the text of the data as it was read, without an item at its end; "" when more must be changed in it."""
        if not self.raw or not isinstance(self.data, dict) or not self.data or not added.keys().isdisjoint(self.data):
            return ""
        data = self.raw.split(None, 6)[6].rstrip()
        if without is None or without not in self.data:
            return data
        try:
            end = f", {json.dumps({without: self.data[without]})[1:]}"
        except TypeError:  # there is a time in it
            return ""
        return f"{data[: -len(end)]}}}" if data.endswith(end) else ""

    def timestamp(self) -> float:
        """Give its time in seconds since the epoch; a time without a zone is UTC."""
        return (self.time if self.time.tzinfo else self.time.replace(tzinfo=dt.UTC)).timestamp()

    @classmethod
    def decode(cls, raw: bytes | str) -> Message:
        """Read a message; MessageError, saying why, for whatever is none."""
        text = _as_text(raw)
        if not text.startswith(MAGIC):
            raise MessageError(f"no posttroll message: {_excerpt(text)}")
        parts = text[len(MAGIC) :].split(None, 6)
        if len(parts) < 7:
            _check_ending(text, len(parts))
        if text[len(MAGIC)].isspace():
            raise MessageError(f"posttroll message without a subject: {_excerpt(text)}")
        subject, type_, sender, time, version = parts[:5]
        if version > NEWEST_VERSION:
            raise MessageError(
                f"message version {_excerpt(version)} of {_excerpt(subject)} is newer than {NEWEST_VERSION}"
            )
        try:
            when = dt.datetime.fromisoformat(time)
        except ValueError as error:
            raise MessageError(f"no time: {_excerpt(time)} in the message about {_excerpt(subject)}") from error
        mime = parts[5].lower() if len(parts) > 5 else ""
        body = parts[6] if len(parts) > 6 else ""
        return cls(subject, type_, _decode_data(mime, body, subject), sender, when, version, mime[:6] == "binary", text)


def _as_text(raw: bytes | str) -> str:
    if isinstance(raw, str):
        return raw
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("iso-8859-1")


def _check_ending(text: str, parts: int) -> None:
    """Refuse a message that ends before its version, or between the type of its data and the data."""
    head_only = parts == 5 and not text[-1].isspace()
    empty_data = parts == 6 and text[-1].isspace()
    if not (head_only or empty_data):
        raise MessageError(f"posttroll message cut short: {_excerpt(text)}")


def _excerpt(text: str) -> str:
    """Quote what a stranger sent, so that it fills no log, no terminal obeys it and no secret is in it."""
    return repr(urls.excerpt(text))


def _utf8_safe(text: str) -> str:
    """Give a text that UTF-8 can hold: the bytes of a file name that are none are written out."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def _decode_data(mime: str, body: str, subject: str) -> Any:
    if mime == "application/json":
        try:
            data = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise MessageError(f"no JSON in the message about {_excerpt(subject)}: {error}") from error
        return _parse_times(data)
    if mime in ("", "text/ascii", "binary/octet-stream"):
        return body
    raise MessageError(f"unknown mime type {_excerpt(mime)} in the message about {_excerpt(subject)}")


def _parse_times(value: Any, depth: int = 1) -> Any:
    """Replace, in place, each string in a dict that reads as an ISO time by that time, as posttroll does."""
    if type(value) is dict:
        _with_times_in_dict(value, depth)
    elif type(value) is list:  # the outermost one: posttroll leaves its strings alone
        _check_depth(depth)
        for item in value:
            _parse_times(item, depth + 1)
    return value


def _with_times_in_dict(data: dict[str, Any], depth: int) -> dict[str, Any]:
    _check_depth(depth)
    for key, item in data.items():
        kind = type(item)
        if kind is str:
            if item[:1] in _DIGITS and key not in _NEVER_A_TIME:
                data[key] = _parse_time(item)
        elif kind is dict:
            _with_times_in_dict(item, depth + 1)
        elif kind is list:
            data[key] = _with_times_in_list(item, depth + 1)
    return data


def _with_times_in_list(items: list[Any], depth: int) -> list[Any]:
    _check_depth(depth)
    return [
        _parse_time(item)
        if type(item) is str
        else _with_times_in_list(item, depth + 1)
        if type(item) is list
        else _with_times_in_dict(item, depth + 1)
        if type(item) is dict
        else item
        for item in items
    ]


def _check_depth(depth: int) -> None:
    if depth > MAX_DEPTH:
        raise MessageError(f"data nested deeper than {MAX_DEPTH} levels")


def _parse_time(text: str) -> dt.datetime | str:
    if len(text) < MIN_TIME_LENGTH or text[0] not in _DIGITS:
        return text
    try:
        return dt.datetime.fromisoformat(text)
    except ValueError:
        return text
