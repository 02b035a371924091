"""A fast encoder and decoder for posttroll messages.

The text is byte for byte the one that the installed posttroll version writes (posttroll's ``message.py``):
``pytroll:/<subject> <type> <user@host> <time> <version>[ <mime> <data>]``. This module is faster because it looks up
the sender once, encodes the data once, and parses only those strings that can be a time.
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
from trollmoves.matching.received_time import ReceivedTime, read_time
from trollmoves.net import urls

MAGIC = "pytroll:/"
NEWEST_VERSION = "v1.2"
NO_DATETIME_VERSION = "v1.01"

# Values of these keys are names and addresses, and stay strings.
_NEVER_A_TIME = frozenset({"uri", "uid", "path", "request_address", "destination"})
_DIGITS = frozenset("0123456789")
MIN_TIME_LENGTH = 7  # characters: "2025W01" is the shortest text that datetime.fromisoformat accepts
MAX_DEPTH = 100  # nested dictionaries and lists: recursive functions must not exhaust the stack


@lru_cache(maxsize=1)
def own_sender() -> str:
    """Return ``user@host`` of this process; the user is a number if it has no name, as in a container."""
    uid = os.getuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    return f"{user}@{socket.gethostname()}"


@lru_cache(maxsize=1)
def _fixed_version() -> str | None:
    """Return the version that the installed posttroll writes in every message; None if it depends on the data."""
    fixed = getattr(posttroll.message, "MESSAGE_VERSION", None) or posttroll.config.get("message_version", None)
    return str(fixed) if fixed else None


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class _Encoder(json.JSONEncoder):
    """JSON encoder that writes times in ISO format; ``has_datetime`` is True once it has encoded a datetime."""

    def __init__(self, version: str | None) -> None:
        super().__init__()
        self.version = version
        self.has_datetime = False

    def default(self, o: Any) -> Any:
        if isinstance(o, (dt.datetime, dt.time)):
            self.has_datetime |= isinstance(o, dt.datetime)
            keeps_zone = (self.version or NEWEST_VERSION) > NO_DATETIME_VERSION
            if isinstance(o, ReceivedTime) and o.text and (keeps_zone or not o.tzinfo):
                return o.text
            return (o if keeps_zone else o.replace(tzinfo=None)).isoformat()
        if isinstance(o, dt.date):
            return o.isoformat()
        return super().default(o)


@dataclass(slots=True)
class Message:
    """A posttroll message: subject, type and data (a dict, list or string; "" for none)."""

    subject: str
    type: str
    data: Any = ""
    sender: str = field(default_factory=own_sender)
    time: dt.datetime = field(default_factory=_now)
    version: str | None = None
    binary: bool = False
    raw: str = field(default="", repr=False, compare=False)
    """The text that ``decode`` read; "" if the message was created here."""

    def encode(self) -> str:
        """Return the text to send, which UTF-8 can encode; raise MessageError if the data cannot be encoded."""
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
            raise MessageError(f"cannot encode the data of {self.subject} {self.type}: {error}") from error
        return text, version or (NEWEST_VERSION if encoder.has_datetime else NO_DATETIME_VERSION)

    def _head(self, version: str) -> str:
        time = self.time if version > NO_DATETIME_VERSION else self.time.replace(tzinfo=None)
        return f"{MAGIC}{_utf8_safe(self.subject)} {self.type} {self.sender} {time.isoformat()} {version}"

    def derive(self, type_: str, added: dict[str, Any] | None = None, *, without: str | None = None) -> str:
        """Return the text of a new message of this process with the same subject and data.

        The items of ``added`` are added to the data, the item ``without`` is left out. The data is copied from ``raw``
        where possible: after a change of ``data`` set ``raw`` to "".
        """
        added = added or {}
        data = self._data_text(added, without)
        if not data:
            new_data = self.data
            if added or without is not None:
                new_data = {k: value for k, value in new_data.items() if k != without} | added
            return Message(self.subject, type_, new_data).encode()
        if added:
            data = f"{data[:-1]}, {json.dumps(added)[1:]}"
        head = Message(self.subject, type_)._head(self.version or NEWEST_VERSION)
        return f"{head} application/json {data}"

    def _data_text(self, added: dict[str, Any], without: str | None) -> str:
        """Return the data from ``raw``, less the item ``without`` if it is last; "" if a new encoding is needed."""
        if not self.raw or not isinstance(self.data, dict) or not self.data or not added.keys().isdisjoint(self.data):
            return ""
        data = self.raw.split(None, 6)[6].rstrip()
        if without is None or without not in self.data:
            return data
        try:
            suffix = f", {json.dumps({without: self.data[without]})[1:]}"
        except TypeError:  # the item contains a time
            return ""
        return f"{data[: -len(suffix)]}}}" if data.endswith(suffix) else ""

    def timestamp(self) -> float:
        """Return ``time`` in seconds since the epoch; a time without a zone is in UTC."""
        return (self.time if self.time.tzinfo else self.time.replace(tzinfo=dt.UTC)).timestamp()

    @classmethod
    def decode(cls, raw: bytes | str) -> Message:
        """Return the message in ``raw``; raise MessageError with the reason if it is invalid."""
        text = _as_text(raw)
        if not text.startswith(MAGIC):
            raise MessageError(f"not a posttroll message: {_excerpt(text)}")
        parts = text[len(MAGIC) :].split(None, 6)
        if len(parts) < 7:
            _check_ending(text, len(parts))
        if text[len(MAGIC)].isspace():
            raise MessageError(f"posttroll message without a subject: {_excerpt(text)}")
        subject, type_, sender, time, version = parts[:5]
        if version > NEWEST_VERSION:
            raise MessageError(
                f"unsupported version {_excerpt(version)} of message {_excerpt(subject)}: newer than {NEWEST_VERSION}"
            )
        try:
            timestamp = dt.datetime.fromisoformat(time)
        except ValueError as error:
            raise MessageError(f"invalid timestamp {_excerpt(time)} in message {_excerpt(subject)}") from error
        mime = parts[5].lower() if len(parts) > 5 else ""
        body = parts[6] if len(parts) > 6 else ""
        data = _decode_data(mime, body, subject)
        return cls(subject, type_, data, sender, timestamp, version, mime[:6] == "binary", text)


def _as_text(raw: bytes | str) -> str:
    if isinstance(raw, str):
        return raw
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("iso-8859-1")


def _check_ending(text: str, parts: int) -> None:
    """Raise MessageError if a message ends before its version, or between the mime type and the data."""
    head_only = parts == 5 and not text[-1].isspace()
    empty_data = parts == 6 and text[-1].isspace()
    if not (head_only or empty_data):
        raise MessageError(f"truncated posttroll message: {_excerpt(text)}")


def _excerpt(text: str) -> str:
    """Return received text quoted for a log: short, without terminal control codes and without secrets."""
    return repr(urls.excerpt(text))


def _utf8_safe(text: str) -> str:
    """Return a text that UTF-8 can encode; bytes of file names that are not UTF-8 become backslash escapes."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def _decode_data(mime: str, body: str, subject: str) -> Any:
    if mime == "application/json":
        try:
            data = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise MessageError(f"invalid JSON in message {_excerpt(subject)}: {error}") from error
        return _parse_times(data)
    if mime in ("", "text/ascii", "binary/octet-stream"):
        return body
    raise MessageError(f"unknown mime type {_excerpt(mime)} in message {_excerpt(subject)}")


def _parse_times(value: Any, depth: int = 1) -> Any:
    """Convert, in place, each ISO time string inside a dict to a datetime, as posttroll does; it keeps its text."""
    if type(value) is dict:
        _parse_times_in_dict(value, depth)
    elif type(value) is list:  # posttroll does not convert strings of the outermost list
        _check_depth(depth)
        for item in value:
            _parse_times(item, depth + 1)
    return value


def _parse_times_in_dict(data: dict[str, Any], depth: int) -> dict[str, Any]:
    _check_depth(depth)
    for key, item in data.items():
        kind = type(item)
        if kind is str:
            if item[:1] in _DIGITS and key not in _NEVER_A_TIME:
                data[key] = _parse_time(item)
        elif kind is dict:
            _parse_times_in_dict(item, depth + 1)
        elif kind is list:
            data[key] = _parse_times_in_list(item, depth + 1)
    return data


def _parse_times_in_list(items: list[Any], depth: int) -> list[Any]:
    _check_depth(depth)
    return [
        _parse_time(item)
        if type(item) is str
        else _parse_times_in_list(item, depth + 1)
        if type(item) is list
        else _parse_times_in_dict(item, depth + 1)
        if type(item) is dict
        else item
        for item in items
    ]


def _check_depth(depth: int) -> None:
    if depth > MAX_DEPTH:
        raise MessageError(f"data nested deeper than {MAX_DEPTH} levels")


def _parse_time(text: str) -> ReceivedTime | str:
    return text if len(text) < MIN_TIME_LENGTH or text[0] not in _DIGITS else read_time(text)
