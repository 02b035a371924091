"""Destination URLs: parsing, and formatting without secrets.

A destination is ``scheme://[user[:password]@]host[:port]/path``, or only a path. It has neither query nor fragment:
everything after the host is the path, unchanged, since file names may contain ``?``, ``#``, ``;``, ``%`` and ``@``.
User and password are percent-encoded where necessary. Older clients do not encode them; such destinations are accepted
if they are unambiguous.
"""

from __future__ import annotations

import functools
import os
import posixpath
import re
import unicodedata
from typing import NamedTuple
from urllib.parse import ParseResult, quote, unquote

from trollmoves.errors import BadDestination
from trollmoves.net import hosts, redaction

MASK = redaction.MASK
MAX_SHOWN = 300  # characters of a rejected URL in an error; its sender is not trusted
CACHE_SIZE = 1000  # parsed URLs; few distinct ones are in use
MAX_CACHED_LENGTH = 1000  # characters of a URL
MAX_LENGTH = 32_768  # characters of a destination; a path has at most 4096 bytes, percent-encoded three times as many
MAX_TEXT = 100_000  # characters of a text that are redacted and shown

_MAX_EXCERPT_INPUT = 4000  # characters of a text that are redacted for an excerpt
_MAX_LOGIN = 4000  # characters of a login with blanks

Url = str | ParseResult

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_HOST_AND_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+(?:%[\w.-]+)?\]|[\w.~-]*)(?::([0-9]{0,5}))?")
_LOGIN_END = re.compile(r"@(?=(?:\[[0-9A-Fa-f:.]+(?:%[\w.-]+)?\]|[\w.~-]+)(?::[0-9]{0,5})?(?:/|\Z))")
_LOOKS_ENCODED = re.compile(r"%(?=[0-9A-Fa-f]{2})")
# Start of the part that parse() splits; also with one slash too few or too many, a common mistake.
_START = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/+|//")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_QUERY = re.compile(r"[?#&;][^?#&;=/]*=.*", re.DOTALL)
# A URL inside a text ends at white space; an unencoded password may contain a blank before its "@".
_IN_TEXT = re.compile(r"(?<=://)(?:[^\s:/@\[\]]+:(?!\d+\b)[^@\n]{0,200}@)?\S*[^\s.,;:!?'\")\]}>]")
_NETLOC_IN_TEXT = re.compile(r"(?<=netloc=)(['\"])(.{0,200}?)@(?=[^@'\"]*\1)")


class _Parts(NamedTuple):
    """Parts of the text after ``://``, not validated."""

    login: str
    host_and_port: str
    path: str


def parse(text: Url, default_scheme: str = "file") -> ParseResult:
    """Parse a destination.

    The ``path`` of the result is everything after the host; ``params``, ``query`` and ``fragment`` are empty. User and
    password in its ``netloc`` are percent-encoded where necessary and otherwise unchanged: :func:`user` and
    :func:`password` decode them.

    Args:
        text: the URL, or a path on this host. A ``ParseResult`` is normalized to the same form.
        default_scheme: the scheme of a text without one.

    Raises:
        BadDestination: the URL is invalid. The error shows no password.
    """
    if isinstance(text, ParseResult):
        text = _text(text)
    if not isinstance(text, str):
        raise BadDestination(f"a destination must be a text, not {type(text).__name__}")
    if len(text) > MAX_LENGTH:
        raise BadDestination(f"a destination of {len(text)} characters is too long: at most {MAX_LENGTH} are allowed")
    return (_parsed if len(text) <= MAX_CACHED_LENGTH else _parsed.__wrapped__)(text, default_scheme)


@functools.lru_cache(maxsize=CACHE_SIZE)
def _parsed(text: str, default_scheme: str) -> ParseResult:
    stripped = text.lstrip(" \t\r\n")
    if not stripped or "\0" in stripped:
        raise BadDestination(
            "a destination must not contain a NUL character" if stripped else "the destination is empty"
        )
    scheme, rest = _scheme(stripped)
    scheme = scheme or default_scheme
    if not rest.startswith("//"):
        return ParseResult(scheme, "", rest, "", "", "")
    parts = _split(rest[2:])
    if not _is_host_and_port(parts.host_and_port):
        raise BadDestination(f"no usable host or port in {redacted(text)[:MAX_SHOWN]}")
    if parts.login and not _HOST_AND_PORT.sub(r"\1", parts.host_and_port):
        raise BadDestination(f"a login but no host in {redacted(text)[:MAX_SHOWN]}")
    netloc = f"{_encoded(parts.login)}@{parts.host_and_port}" if parts.login else parts.host_and_port
    return ParseResult(scheme, netloc, parts.path, "", "", "")


def redacted(url: object) -> str:
    """Return the URL for a log line: with its user, without password, key or token.

    Never raises, for any argument. If the end of a password is ambiguous (an unencoded password with both ``@`` and
    ``/``, or a path with an ``@`` after a login) everything that may be part of it is replaced by ``***``.
    """
    if isinstance(url, str) and "@" not in url and "//" not in url and url.isprintable():
        return url  # fast path: most are paths
    try:
        if isinstance(url, ParseResult):
            text = _text(url)
        elif isinstance(url, (bytes, bytearray)):
            text = os.fsdecode(bytes(url))
        else:
            text = str(url)
    except Exception:  # __str__ may raise anything
        return f"<{type(url).__name__}>"
    if not isinstance(url, (str, bytes, bytearray, ParseResult)):
        return redact_text(text)
    if len(text) > MAX_TEXT:
        return f"{redacted(_cut(text, MAX_TEXT))}... ({len(text)} characters)"
    return (_redacted_line if len(text) <= MAX_CACHED_LENGTH else _redacted_line.__wrapped__)(text)


@functools.lru_cache(maxsize=CACHE_SIZE)
def _redacted_line(text: str) -> str:
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], _redacted_url(text))


def redact_text(text: str, max_length: int = MAX_TEXT) -> str:
    """Return a text without the known secrets and those of the URLs in it, in linear time; fast for a text without.

    A longer text is cut to ``max_length`` characters before anything else, and its length is appended.
    """
    if len(text) > max_length:
        start = redaction.known_secrets().redact(
            text[: max_length + redaction.MAX_LENGTH]
        )  # before it is cut inside a secret
        return f"{redact_text(_cut(start, max_length), max_length)}... ({len(text)} characters)"
    text = redaction.known_secrets().redact(text)
    if "@" in text:
        if "://" in text:
            text = _IN_TEXT.sub(lambda found: _redacted_rest(found[0]), text)
        if "netloc=" in text:
            text = _NETLOC_IN_TEXT.sub(lambda found: f"{found[1]}{found[2].partition(':')[0]}@", text)
    elif "://" in text and ("?" in text or "#" in text):
        text = _IN_TEXT.sub(lambda found: _redacted_rest(found[0]) if "=" in found[0] else found[0], text)
    return text


def excerpt(text: str, max_length: int = 60) -> str:
    """Return the start of a text for an error; secrets are removed first, so that none is cut and shown in part."""
    shown = redact_text(text[:_MAX_EXCERPT_INPUT])
    return shown if len(shown) <= max_length and len(text) <= _MAX_EXCERPT_INPUT else f"{shown[: max_length - 3]}..."


def _cut(text: str, max_length: int) -> str:
    """Return the start of a text, without a URL at its end that may be cut inside a password."""
    start = text[:max_length]
    url = max(start.rfind("://"), start.rfind("netloc="))
    is_cut = url >= 0 and (max_length - url < _MAX_LOGIN or not any(map(str.isspace, start[url:])))
    return start[:url] if is_cut else start


def without_login(url: Url) -> str:
    """Return the URL without user and password, for replies and published messages.

    Raises:
        BadDestination: the URL is invalid.
    """
    return _without_login(parse(url))


@functools.lru_cache(maxsize=CACHE_SIZE)
def _without_login(parsed: ParseResult) -> str:
    return _text(parsed._replace(netloc=parsed.netloc.rpartition("@")[2]))


def endpoint(url: ParseResult) -> str:
    """Return scheme, user, host and port of a parsed URL, as ``scheme://user@host:port``, without the password."""
    return f"{url.scheme}://{netloc_without_password(url.netloc)}"


def without_password(url: Url) -> str:
    """Return the URL with its user and without its password, as the identity of a destination.

    Raises:
        BadDestination: the URL is invalid.
    """
    parsed = parse(url)
    return _text(parsed._replace(netloc=netloc_without_password(parsed.netloc).removeprefix("@")))


def netloc_without_password(netloc: str) -> str:
    """Return a netloc with its user and without its password."""
    login, at, host_and_port = netloc.rpartition("@")
    return f"{login.partition(':')[0]}{at}{host_and_port}"


def with_login(url: Url, login: str) -> str:
    """Return the URL with ``login`` (``user[:password]``, not encoded) instead of its login, if any.

    Only characters that would be misread are percent-encoded, since older servers decode nothing. A URL without a host
    is returned without the login.

    Raises:
        BadDestination: the URL is invalid.
    """
    parsed = parse(url)
    host_and_port = parsed.netloc.rpartition("@")[2]
    if not login or not host_and_port:
        return _text(parsed)
    return _text(parsed._replace(netloc=f"{_encoded(_LOOKS_ENCODED.sub('%25', login))}@{host_and_port}"))


def user(url: Url) -> str | None:
    """Return the user, decoded; None without one. Raises BadDestination for an invalid URL."""
    login, at, _ = parse(url).netloc.rpartition("@")
    return _decoded(login.partition(":")[0]) or None if at else None


def password(url: Url) -> str | None:
    """Return the password, decoded; None without one. Raises BadDestination."""
    login, _, _ = parse(url).netloc.rpartition("@")
    _, colon, secret = login.partition(":")
    return _decoded(secret) if colon else None


def host(url: Url) -> str | None:
    """Return the host in lower case, an IPv6 address without its brackets; None without one. Raises BadDestination."""
    found = _HOST_AND_PORT.fullmatch(parse(url).netloc.rpartition("@")[2])
    return (found[1].strip("[]").lower() if found else "") or None


def port(url: Url) -> int | None:
    """Return the port; None without one. Raises BadDestination."""
    found = _HOST_AND_PORT.fullmatch(parse(url).netloc.rpartition("@")[2])
    return int(found[2]) if found and found[2] else None


def with_host(url: Url, target: str) -> ParseResult:
    """Return the URL with another host, and port and login if ``target`` has them; else these and the path are kept.

    The brackets of an IPv6 address are optional. Raises BadDestination.
    """
    parsed = parse(url)
    login, at, _ = parsed.netloc.rpartition("@")
    own_login, own_at, target = target.rpartition("@")
    if own_at:
        login, at = own_login, own_at
    bare = f"[{target}]" if target.count(":") > 1 and not target.startswith("[") else target
    own = port(parsed)
    with_port = bare if own is None or bare.rpartition("]")[2].count(":") else f"{bare}:{own}"
    return parse(parsed._replace(netloc=f"{login}{at}{with_port}"))


def host_without_login(target: str) -> str:
    """Return a host of ``backup_targets`` without its login."""
    return target.rpartition("@")[2]


def join(url: ParseResult, *parts: str) -> ParseResult:
    """Return the URL with ``parts`` below its path; a leading ``/`` of a part is ignored."""
    path = url.path or ("/" if url.netloc else "")
    return url._replace(path=posixpath.join(path, *(part.lstrip("/") for part in parts)))


def _text(url: ParseResult) -> str:
    """Return the URL as a text for :func:`parse`; also for a result of another parser."""
    path = url.path
    if url.netloc and path and not path.startswith("/"):
        path = "/" + path
    for mark, more in ((";", url.params), ("?", url.query), ("#", url.fragment)):
        path += mark + more if more else ""
    if url.netloc or path.startswith("/"):
        path = f"//{url.netloc}{path}"
    return f"{url.scheme}:{path}" if url.scheme else path


def _scheme(text: str) -> tuple[str, str]:
    found = _SCHEME.match(text)
    return (found[1].lower(), text[found.end() :]) if found else ("", text)


def _split(rest: str) -> _Parts:
    """Split the text after ``://`` by the rules of URLs; if that gives no valid host, assume an unencoded login."""
    authority, slash, path = rest.partition("/")
    login, at, place = authority.rpartition("@")
    if "@" in path and (not _is_host_and_port(place) or (not at and place.endswith(":"))):
        colon = rest.find(":")
        ends = [found.start() for found in _LOGIN_END.finditer(rest) if 0 <= colon < found.start()]
        if ends:
            place, slash, path = rest[ends[-1] + 1 :].partition("/")
            return _Parts(rest[: ends[-1]], place, slash + path)
    return _Parts(login, place, slash + path)


def _is_host_and_port(text: str) -> bool:
    found = _HOST_AND_PORT.fullmatch(text)
    if not found or int(found[2] or 0) > 65535:
        return False
    return not text.startswith("[") or (":" in found[1] and hosts.is_address(found[1]))


def _encoded(login: str) -> str:
    """Encode the characters that would end the login early or change when it is decoded."""
    return "".join(map(_encoded_character, login))


def _encoded_character(char: str) -> str:
    if char.isascii() and char.isprintable() and char not in " /?#[]":
        return char
    if not char.isascii() and char.isprintable() and unicodedata.normalize("NFKC", char) == char:
        return char
    return quote(char, safe="", errors="surrogateescape")


def _decoded(text: str) -> str:
    return unquote(text, errors="surrogateescape")


def _redacted_url(text: str) -> str:
    start = _START.match(text)
    if start:
        return start[0] + _redacted_rest(text[start.end() :])
    front, at, back = text.rpartition("@")
    if not at or text.startswith(("/", ".")) or ":" not in front:
        return text  # a path on this host
    return f"{front.partition(':')[0]}:{MASK}@{back}"


def _redacted_rest(rest: str) -> str:
    """Return the text after ``://`` without its secrets (idempotent)."""
    login, place, path = _split(rest)
    name, colon, _ = login.partition(":")
    if "@" in path:
        front, _, back = path.rpartition("@")
        in_brackets = place.startswith("[") and _is_host_and_port(place)
        if colon or (not login and not in_brackets and ":" in place + front):
            return f"{name or place.partition(':')[0]}@{MASK}@{_without_query(back)}"
    if not _is_host_and_port(place):
        place = _without_query(place.partition(":")[0] + (f":{MASK}" if ":" in place else ""))
    return (f"{name}@" if name else "") + place + _without_query(path)


def _without_query(path: str) -> str:
    return _QUERY.sub(lambda found: found[0][0] + MASK, path)
