"""File name patterns, based on trollsift, compiled once.

A pattern has trollsift's syntax: ``H-000-{series:_<6s}-{nominal_time:%Y%m%d%H%M}``. In addition, ``*`` and ``?`` in
its literal text match anything but ``/``, and a field may occur several times in different formats
(``{time:%Y}/{time:%m}/x{time:%d}.nc``), which are then parsed together.

trollsift parses the pattern again for each name; here a pattern is compiled to one regular expression, which takes
linear time for any name (``linear``). Converted values are cached, since consecutive file names share most values. The
conversions are those of trollsift.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from trollsift import parser as trollsift

from trollmoves.errors import TrollmovesError
from trollmoves.matching.linear import Groups, LinearExpression
from trollmoves.matching.received_time import text_of
from trollmoves.net.urls import redact_text

CACHE_SIZE = 64  # converted values for each field of a pattern

# Placeholders of * and ? while trollsift makes the regular expression; invalid in file names and options.
_ANY = "\ud800"
_ONE = "\ud801"
_WILDCARDS = {ord("*"): _ANY, ord("?"): _ONE}
_DIRECTIVE = re.compile(r"%(.)", re.DOTALL)
_WITH_YEAR = frozenset("YyGcx")
_SAMPLE = datetime(2024, 3, 15, 13, 30, 15, tzinfo=UTC)


class _Formatter(trollsift.StringFormatter):
    """Formats like trollsift, received times by their text if the format is not that of a time."""

    def convert_field(self, value: Any, conversion: str | None) -> Any:
        return super().convert_field(text_of(value) if conversion else value, conversion)

    def format_field(self, value: Any, format_spec: str) -> Any:
        return super().format_field(value if "%" in format_spec else text_of(value), format_spec)


_FORMATTER = _Formatter()


class ComposeError(TrollmovesError):
    """A name cannot be composed from these fields; ``field`` is the first one that is missing or invalid."""

    temporary = held = True
    blames_directory = True  # other files may have the fields

    def __init__(self, text: str, field: str = "") -> None:
        super().__init__(text)
        self.field = field


class _Segment(NamedTuple):
    """Literal text with the field after it, if any."""

    literal: str
    name: str | None = None
    spec: str = ""
    conversion: str = ""


class Pattern:
    """A pattern from which names are composed. Thread-safe.

    It may contain ``{a.b}``, ``{a[0]}`` and dates in formats that a ``Reader`` cannot parse.

    Raises:
        ValueError: the pattern is invalid; the error says why.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._segments = _segments(text)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({_redacted_repr(self.text)})"

    def compose(self, fields: Mapping[str, Any]) -> str:
        """Return the name composed from these fields; other fields are ignored.

        A received time keeps its text unless the format asks for a time (``%``): it may be a name such as ``20250101``.

        Raises:
            ComposeError: a field is missing, or its value does not fit its format.
        """
        try:
            return str(_FORMATTER.vformat(self.text, (), fields))
        except (KeyError, ValueError, TypeError, AttributeError, IndexError, OverflowError):
            raise self._compose_error(fields) from None

    def _compose_error(self, fields: Mapping[str, Any]) -> ComposeError:
        for segment in self._segments:
            if segment.name is None:
                continue
            try:
                _FORMATTER.vformat(_format([segment]), (), fields)
            except (KeyError, IndexError):
                return ComposeError(f"missing field {segment.name!r} for {_redacted_repr(self.text)}", segment.name)
            except (ValueError, TypeError, AttributeError, OverflowError) as error:
                kind = type(fields.get(segment.name)).__name__
                return ComposeError(
                    f"field {segment.name!r} does not fit {_redacted_repr(self.text)}: {error} ({kind})", segment.name
                )
        return ComposeError(
            f"cannot compose {_redacted_repr(self.text)}"
        )  # pragma: no cover  (each field fits when formatted separately)


class Origin:
    """A directory and a file name pattern, from an ``origin`` option; the directory may contain fields too.

    Thread-safe. The path is made absolute and normalized here, without access to the disk.

    Attributes:
        text: the option.
        root: the longest leading directory without field or wildcard, absolute, without a trailing slash.
        depth: the number of directory levels between ``root`` and the files; 0 if the files are directly in it.
        pattern: the text of the pattern of the path below ``root``.

    Raises:
        ValueError: the text is not a pattern of a file path; the error says why.
    """

    def __init__(self, text: str) -> None:
        first, *others = _segments(text)
        fixed = re.split(r"[*?]", first.literal)[0].rpartition("/")
        head = fixed[0] + fixed[1]
        first = first._replace(literal=first.literal[len(head) :])
        below = [segment._replace(literal=_normal(segment.literal)) for segment in (first, *others)]
        self.text = text
        self.root = _absolute(head or ".")
        self.pattern = _format(below)
        if self.pattern.endswith("/") or not self.pattern:
            raise ValueError(f"{_redacted_repr(text)} has no file name pattern after its directory")
        if ".." in self.pattern.split("/"):
            raise ValueError(f"{_redacted_repr(text)} has a '..' after a field")
        self._reader = reader(self.pattern)
        # Directories are only matched: a 29 February in one may get its year from a lower level.
        self._directories = [_compile(text, level).match for level in _levels(below)]
        self.depth = len(self._directories)
        self._start = self.root.rstrip("/") + "/"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({_redacted_repr(self.text)})"

    def parse(self, path: str) -> dict[str, Any] | None:
        """Return the values of the fields in an absolute path; None if it does not match."""
        below = self._below(path)
        if below is None or below.count("/") != self.depth:  # a field cannot contain a slash
            return None
        return self._reader.read(below)

    def directory_may_match(self, relative_dir: str) -> bool:
        """Return True if a directory, relative to the root, may contain files of this origin at any depth."""
        relative_dir = relative_dir.strip("/")
        if relative_dir in ("", "."):
            return True
        level = relative_dir.count("/")
        return level < self.depth and self._directories[level](relative_dir) is not None

    def _below(self, path: str) -> str | None:
        if "//" in path or "/." in path:
            path = _absolute(path) + ("/" if path.endswith("/") else "")
        return path[len(self._start) :] if path.startswith(self._start) else None


class Reader(NamedTuple):
    """A compiled pattern: the groups of the regular expression and the converter of each field. Thread-safe."""

    match: Callable[[str], Groups | None]
    names: tuple[str, ...]
    groups: tuple[int, ...]
    converters: tuple[Callable[[str], Any], ...]
    joined: tuple[tuple[str, tuple[int, ...], Callable[[tuple[str, ...]], Any]], ...]

    def read(self, name: str) -> dict[str, Any] | None:
        """Return the values of the fields; None if the name does not match or a value cannot be converted.

        They are those of ``trollsift.Parser(text).parse(name)`` if that matches, except that a line feed at the end of
        a name is never ignored.
        """
        found = self.match(name)
        if found is None:
            return None
        try:
            fields = {
                field: convert(found[group] or "")
                for field, convert, group in zip(self.names, self.converters, self.groups, strict=True)
            }
            for field, groups, join in self.joined:
                fields[field] = join(tuple(found[group] or "" for group in groups))
        except (ValueError, OverflowError):
            return None
        return fields


def reader(text: str) -> Reader:
    """Return the reader of names of a pattern; raise ValueError, with the reason, if the pattern is invalid."""
    return _compile(text, _segments(text))


def _compile(text: str, segments: list[_Segment]) -> Reader:
    specs: dict[str, list[str]] = {}
    renamed = []
    for segment in segments:
        if segment.name is None:
            renamed.append(segment)
            continue
        _check_name(text, segment)
        known = specs.setdefault(segment.name, [])
        if segment.spec not in known:
            known.append(segment.spec)
        renamed.append(segment._replace(name=_group(segment.name, known.index(segment.spec)), conversion=""))
    for name, known in specs.items():
        _check_specs(text, name, known)
    expression = _expression(text, renamed)
    index = expression.groupindex
    single = {name: known[0] for name, known in specs.items() if len(known) == 1}
    return Reader(
        expression.groups,
        tuple(single),
        tuple(index[_group(name, 0)] for name in single),
        tuple(_converter(spec) for spec in single.values()),
        tuple(
            (
                name,
                tuple(index[_group(name, number)] for number in range(len(known))),
                _make_combiner(text, name, known),
            )
            for name, known in specs.items()
            if len(known) > 1
        ),
    )


def _expression(text: str, segments: Iterable[_Segment]) -> LinearExpression:
    parts: list[str] = []
    names = set[str]()
    try:
        for segment in segments:
            literal = trollsift.regex_format(_format([_Segment(segment.literal.translate(_WILDCARDS))]))
            for part in re.split(f"({_ANY}|{_ONE})", literal):
                parts.append({_ANY: "[^/]*?", _ONE: "[^/]"}.get(part, part))
            if segment.name in names:
                parts.append(f"(?P={segment.name})")
            elif segment.name is not None:
                names.add(segment.name)
                parts.append(trollsift.regex_format(_format_field(segment)))
        return LinearExpression(parts)
    except KeyError as error:
        raise ValueError(f"invalid pattern {_redacted_repr(text)}: unknown trollsift format {error}") from None
    except (ValueError, OverflowError, re.error) as error:
        raise ValueError(f"invalid pattern {_redacted_repr(text)}: {error}") from None


def _converter(spec: str) -> Callable[[str], Any]:
    return functools.lru_cache(maxsize=CACHE_SIZE)(functools.partial(trollsift._convert, spec))


def _make_combiner(text: str, name: str, specs: list[str]) -> Callable[[tuple[str, ...]], Any]:
    """Return a function that converts several texts of a field to one value; it raises ValueError if they disagree."""
    if not all("%" in spec for spec in specs):
        return functools.partial(_require_equal, [_converter(spec) for spec in specs])
    needed: list[int] = []
    seen: set[str] = set()
    for number in sorted(range(len(specs)), key=lambda number: -len(_directives(specs[number]))):
        directives = _directives(specs[number])
        if directives <= seen:
            continue
        if directives & seen:
            raise ValueError(f"invalid pattern {_redacted_repr(text)}: the formats of {name!r} overlap partly")
        needed.append(number)
        seen |= directives
    return functools.lru_cache(maxsize=CACHE_SIZE)(functools.partial(_joined_time, specs, sorted(needed)))


def _require_equal(converters: list[Callable[[str], Any]], texts: tuple[str, ...]) -> Any:
    values = [convert(text) for convert, text in zip(converters, texts, strict=True)]
    if any(value != values[0] for value in values):
        raise ValueError("the field has several values")
    return values[0]


def _joined_time(specs: list[str], needed: list[int], texts: tuple[str, ...]) -> datetime:
    # Parsed together: a 29 February needs its year, %I needs %p.
    time = datetime.strptime("|".join(texts[n] for n in needed), "|".join(specs[n] for n in needed))  # noqa: DTZ007
    others = (number for number in range(len(specs)) if number not in needed)
    if any(time.strftime(specs[number]).lower() != texts[number].lower() for number in others):
        raise ValueError("the field has several times")
    return time


def _directives(spec: str) -> set[str]:
    return set(_DIRECTIVE.findall(spec)) - {"%"}


def _check_name(text: str, segment: _Segment) -> None:
    if not (segment.name or "").isidentifier():
        raise ValueError(f"invalid pattern {_redacted_repr(text)}: {segment.name!r} is not a valid field name")
    if "{" in segment.spec:
        raise ValueError(f"invalid pattern {_redacted_repr(text)}: {segment.name!r} has a field in its format")


def _check_specs(text: str, name: str, specs: list[str]) -> None:
    for spec in specs:
        if "%" in spec:
            sample = spec if _directives(spec) & _WITH_YEAR else f"%Y|{spec}"  # Python warns about dates without a year
            try:
                datetime.strptime(_SAMPLE.strftime(sample), sample)  # noqa: DTZ007
            except (ValueError, re.error) as error:
                raise ValueError(
                    f"invalid pattern {_redacted_repr(text)}: {name!r} cannot be parsed: {error}"
                ) from None


def _group(name: str, number: int) -> str:
    return f"{name}__{number}" if number else name


def _redacted_repr(text: object) -> str:
    return redact_text(repr(text))  # destinations are patterns too and may contain a login


def _segments(text: str) -> list[_Segment]:
    if not isinstance(text, str):
        raise ValueError(f"a pattern must be a text, not {type(text).__name__}: {_redacted_repr(text)}")
    if not text or "\0" in text:
        raise ValueError(f"invalid pattern {_redacted_repr(text)}: it is empty or contains a NUL character")
    segments: list[_Segment] = []
    literal = ""
    try:
        for text_before, name, spec, conversion in trollsift.formatter.parse(text):
            literal += text_before
            if name is not None:
                segments.append(_Segment(literal, name, spec or "", conversion or ""))
                literal = ""
    except ValueError as error:
        raise ValueError(f"invalid pattern {_redacted_repr(text)}: {error}") from None
    return [*segments, _Segment(literal)]


def _format(segments: Iterable[_Segment]) -> str:
    return "".join(
        segment.literal.replace("{", "{{").replace("}", "}}") + ("" if segment.name is None else _format_field(segment))
        for segment in segments
    )


def _format_field(segment: _Segment) -> str:
    conversion = f"!{segment.conversion}" if segment.conversion else ""
    return f"{{{segment.name}{conversion}:{segment.spec}}}" if segment.spec else f"{{{segment.name}{conversion}}}"


def _absolute(path: str) -> str:
    return "/" + os.path.abspath(path).lstrip("/")  # POSIX keeps two leading slashes


def _normal(literal: str) -> str:
    return re.sub(r"/(?:\.?/)+", "/", literal)


def _levels(segments: list[_Segment]) -> Iterator[list[_Segment]]:
    """Yield the pattern of the path to each directory level."""
    for number, segment in enumerate(segments):
        before = segments[:number]
        for slash in re.finditer("/", segment.literal):
            yield [*before, _Segment(segment.literal[: slash.start()])]
        if "%" in segment.spec:  # {time:%Y/%m} spans several levels
            for slash in re.finditer("/", segment.spec):
                yield [*before, segment._replace(spec=segment.spec[: slash.start()])]
