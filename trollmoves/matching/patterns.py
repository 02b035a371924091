"""File name patterns, on trollsift, compiled once.

A pattern is trollsift's: ``H-000-{series:_<6s}-{nominal_time:%Y%m%d%H%M}``. Beyond trollsift, ``*`` and ``?`` in its
literal text are wildcards for anything but ``/``, and one field may stand in it several times in different formats
(``{time:%Y}/{time:%m}/x{time:%d}.nc``), which are then read together.

trollsift reads the pattern anew for each name; here a pattern becomes one regular expression, and a converted value
is remembered, since most values of one file name stand in the next one too. The conversions are trollsift's own.
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
from trollmoves.net.urls import redact_text

CACHE_SIZE = 64  # converted values kept for each field of a pattern

# Stand for * and ? while trollsift makes the regular expression: no file name and no option can hold them.
_ANY = "\ud800"
_ONE = "\ud801"
_WILDCARDS = {ord("*"): _ANY, ord("?"): _ONE}
_DIRECTIVE = re.compile(r"%(.)", re.DOTALL)
_WITH_YEAR = frozenset("YyGcx")
_SAMPLE = datetime(2024, 3, 15, 13, 30, 15, tzinfo=UTC)


class ComposeError(TrollmovesError):
    """A name cannot be composed from these fields; ``field`` is the first one that is missing or does not fit."""

    def __init__(self, text: str, field: str = "") -> None:
        super().__init__(text)
        self.field = field


class _Segment(NamedTuple):
    """A piece of literal text, as it is, with the field that follows it, if any."""

    literal: str
    name: str | None = None
    spec: str = ""
    conversion: str = ""


class Pattern:
    """A file name pattern.

    Any thread may use it. :meth:`parse` gives what ``trollsift.Parser(text).parse(name)`` gives wherever that matches,
    but for a line feed at the end of a name, which is no part of the pattern.

    Args:
        text: the pattern.
        compose_only: leaves out what only :meth:`parse` and :meth:`matches` need, and the limits that it sets:
            ``{a.b}``, ``{a[0]}`` and dates in formats that cannot be read back may then stand in the pattern.

    Raises:
        ValueError: when the text is no pattern; says what is wrong with it.
    """

    def __init__(self, text: str, *, compose_only: bool = False) -> None:
        self.text = text
        self._pieces = _pieces(text)
        self._reader = None if compose_only else _compile(text, self._pieces)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({_shown(self.text)})"

    @property
    def fields(self) -> list[str]:
        """The names of the fields, each once, in the order in which they stand in the pattern."""
        return list(dict.fromkeys(piece.name for piece in self._pieces if piece.name is not None))

    def parse(self, name: str) -> dict[str, Any] | None:
        """Return the values of the fields; None when the name does not match or a value cannot be converted."""
        if self._reader is None:
            raise ValueError(f"the pattern {_shown(self.text)} is for composing only")
        return self._reader.read(name)

    def matches(self, name: str) -> bool:
        """Tell whether :meth:`parse` would find the fields."""
        return self.parse(name) is not None

    def compose(self, fields: Mapping[str, Any]) -> str:
        """Return the name that these fields make; fields that are not in the pattern do not matter.

        Raises:
            ComposeError: when a field is missing, or its value does not fit its format.
        """
        try:
            return str(trollsift.formatter.vformat(self.text, (), fields))
        except (KeyError, ValueError, TypeError, AttributeError, IndexError, OverflowError):
            raise self._compose_error(fields) from None

    def globify(self) -> str:
        """Return the pattern for ``glob.glob``, as trollsift makes it."""
        return str(trollsift.globify(_format(piece._replace(conversion="") for piece in self._pieces)))

    def _compose_error(self, fields: Mapping[str, Any]) -> ComposeError:
        for piece in self._pieces:
            if piece.name is None:
                continue
            try:
                trollsift.formatter.vformat(_format([piece]), (), fields)
            except (KeyError, IndexError):
                return ComposeError(f"no {piece.name!r} to compose {_shown(self.text)} with", piece.name)
            except (ValueError, TypeError, AttributeError, OverflowError) as error:
                kind = type(fields.get(piece.name)).__name__
                return ComposeError(
                    f"the {piece.name!r} does not fit {_shown(self.text)}: {error} ({kind})", piece.name
                )
        return ComposeError(
            f"cannot compose {_shown(self.text)}"
        )  # pragma: no cover  (something fitted only on its own)


class Origin:
    """A directory and a file name pattern, from an ``origin`` option; fields may stand in the directory part too.

    Any thread may use it. The path is made absolute and normal once, here; nothing is looked up on the disk.

    Attributes:
        text: the option.
        root: the longest leading directory without field or wildcard, absolute, without a slash at its end.
        depth: how many directory levels below ``root`` the files stand; 0 when they stand in it.
        pattern: the pattern of the part below ``root``.

    Raises:
        ValueError: when the text is no pattern of a file's path; says what is wrong with it.
    """

    def __init__(self, text: str) -> None:
        first, *others = _pieces(text)
        fixed = re.split(r"[*?]", first.literal)[0].rpartition("/")
        head = fixed[0] + fixed[1]
        first = first._replace(literal=first.literal[len(head) :])
        below = [piece._replace(literal=_normal(piece.literal)) for piece in (first, *others)]
        self.text = text
        self.root = _absolute(head or ".")
        self.pattern = Pattern(_format(below))
        if self.pattern.text.endswith("/") or not self.pattern.text:
            raise ValueError(f"{_shown(text)} has no file name pattern behind its directory")
        if ".." in self.pattern.text.split("/"):
            raise ValueError(f"{_shown(text)} has a '..' behind a field")
        # A date that lacks its year (of a 29 February) may be completed further down: directories are only matched.
        self._directories = [_compile(text, level).match for level in _levels(below)]
        self.depth = len(self._directories)
        self._start = self.root.rstrip("/") + "/"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({_shown(self.text)})"

    def parse(self, path: str) -> dict[str, Any] | None:
        """Return the values of the fields in an absolute path, directory and name; None when it does not match."""
        below = self._below(path)
        if below is None or below.count("/") != self.depth:  # as many as in the pattern: no field can hold one
            return None
        return self.pattern.parse(below)

    def directory_may_match(self, relative_dir: str) -> bool:
        """Tell whether files of this origin may stand in or below a directory, given relative to the root."""
        relative_dir = relative_dir.strip("/")
        if relative_dir in ("", "."):
            return True
        level = relative_dir.count("/")
        return level < self.depth and self._directories[level](relative_dir) is not None

    def expects_directory(self, path: str) -> bool:
        """Tell whether an absolute path is the root, or a directory below it in or below which files may stand."""
        below = self._below(path.rstrip("/") + "/")
        return below is not None and self.directory_may_match(below)

    def _below(self, path: str) -> str | None:
        if "//" in path or "/." in path:
            path = _absolute(path) + ("/" if path.endswith("/") else "")
        return path[len(self._start) :] if path.startswith(self._start) else None


class _CompiledPattern(NamedTuple):
    """A compiled pattern: which groups of the regular expression make which field, and how."""

    match: Callable[[str], re.Match[str] | None]
    names: tuple[str, ...]
    groups: tuple[int, ...]
    converters: tuple[Callable[[str], Any], ...]
    joined: tuple[tuple[str, tuple[int, ...], Callable[[tuple[str, ...]], Any]], ...]

    def read(self, name: str) -> dict[str, Any] | None:
        found = self.match(name)
        if found is None:
            return None
        texts = found.group(0, *self.groups)[1:] if self.groups else ()
        try:
            fields = {
                field: convert(text) for field, convert, text in zip(self.names, self.converters, texts, strict=True)
            }
            for field, groups, join in self.joined:
                fields[field] = join(found.group(*groups))
        except (ValueError, OverflowError):
            return None
        return fields


def _compile(text: str, pieces: list[_Segment]) -> _CompiledPattern:
    specs: dict[str, list[str]] = {}
    renamed = []
    for piece in pieces:
        if piece.name is None:
            renamed.append(piece)
            continue
        _check_name(text, piece)
        known = specs.setdefault(piece.name, [])
        if piece.spec not in known:
            known.append(piece.spec)
        renamed.append(piece._replace(name=_group(piece.name, known.index(piece.spec)), conversion=""))
    for name, known in specs.items():
        _check_specs(text, name, known)
    expression = _expression(text, renamed)
    index = expression.groupindex
    single = {name: known[0] for name, known in specs.items() if len(known) == 1}
    return _CompiledPattern(
        expression.fullmatch,
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


def _expression(text: str, pieces: Iterable[_Segment]) -> re.Pattern[str]:
    template = _format(piece._replace(literal=piece.literal.translate(_WILDCARDS)) for piece in pieces)
    try:
        regex = trollsift.regex_format(template)
        # With DOTALL a field takes a line feed in a name as any other character.
        return re.compile(regex.replace(_ANY, "[^/]*?").replace(_ONE, "[^/]"), re.DOTALL)
    except KeyError as error:
        raise ValueError(f"{_shown(text)} is no pattern: trollsift knows no format {error}") from None
    except (ValueError, OverflowError, re.error) as error:
        raise ValueError(f"{_shown(text)} is no pattern: {error}") from None


def _converter(spec: str) -> Callable[[str], Any]:
    return functools.lru_cache(maxsize=CACHE_SIZE)(functools.partial(trollsift._convert, spec))


def _make_combiner(text: str, name: str, specs: list[str]) -> Callable[[tuple[str, ...]], Any]:
    """Return what makes one value of several texts of one field; raises ValueError when they contradict."""
    if not all("%" in spec for spec in specs):
        return functools.partial(_require_equal, [_converter(spec) for spec in specs])
    taken: list[int] = []
    seen: set[str] = set()
    for number in sorted(range(len(specs)), key=lambda number: -len(_directives(specs[number]))):
        directives = _directives(specs[number])
        if directives <= seen:
            continue
        if directives & seen:
            raise ValueError(f"{_shown(text)} is no pattern: the formats of {name!r} overlap in part")
        taken.append(number)
        seen |= directives
    return functools.lru_cache(maxsize=CACHE_SIZE)(functools.partial(_joined_time, specs, sorted(taken)))


def _require_equal(converters: list[Callable[[str], Any]], texts: tuple[str, ...]) -> Any:
    values = [convert(text) for convert, text in zip(converters, texts, strict=True)]
    if any(value != values[0] for value in values):
        raise ValueError("one field, several values")
    return values[0]


def _joined_time(specs: list[str], taken: list[int], texts: tuple[str, ...]) -> datetime:
    # Read in one go: a 29 February needs its year, a %I its %p.
    time = datetime.strptime("|".join(texts[n] for n in taken), "|".join(specs[n] for n in taken))  # noqa: DTZ007
    left = (number for number in range(len(specs)) if number not in taken)
    if any(time.strftime(specs[number]).lower() != texts[number].lower() for number in left):
        raise ValueError("one field, several times")
    return time


def _directives(spec: str) -> set[str]:
    return set(_DIRECTIVE.findall(spec)) - {"%"}


def _check_name(text: str, piece: _Segment) -> None:
    if not (piece.name or "").isidentifier():
        raise ValueError(f"{_shown(text)} is no pattern: {piece.name!r} is no name for a field")
    if "{" in piece.spec:
        raise ValueError(f"{_shown(text)} is no pattern: {piece.name!r} has a field in its format")


def _check_specs(text: str, name: str, specs: list[str]) -> None:
    for spec in specs:
        if "%" in spec:
            sample = spec if _directives(spec) & _WITH_YEAR else f"%Y|{spec}"  # Python warns of dates without a year
            try:
                datetime.strptime(_SAMPLE.strftime(sample), sample)  # noqa: DTZ007
            except (ValueError, re.error) as error:
                raise ValueError(f"{_shown(text)} is no pattern: {name!r} cannot be read back: {error}") from None


def _group(name: str, number: int) -> str:
    return f"{name}__{number}" if number else name


def _shown(text: object) -> str:
    return redact_text(repr(text))  # a destination with fields in it is a pattern too


def _pieces(text: str) -> list[_Segment]:
    if not isinstance(text, str):
        raise ValueError(f"{_shown(text)} is no pattern, but a {type(text).__name__}")
    if not text or "\0" in text:
        raise ValueError(f"{_shown(text)} is no pattern: it is empty or holds a NUL character")
    pieces: list[_Segment] = []
    literal = ""
    try:
        for more, name, spec, conversion in trollsift.formatter.parse(text):
            literal += more
            if name is not None:
                pieces.append(_Segment(literal, name, spec or "", conversion or ""))
                literal = ""
    except ValueError as error:
        raise ValueError(f"{_shown(text)} is no pattern: {error}") from None
    return [*pieces, _Segment(literal)]


def _format(pieces: Iterable[_Segment]) -> str:
    return "".join(
        piece.literal.replace("{", "{{").replace("}", "}}") + ("" if piece.name is None else _format_field(piece))
        for piece in pieces
    )


def _format_field(piece: _Segment) -> str:
    conversion = f"!{piece.conversion}" if piece.conversion else ""
    return f"{{{piece.name}{conversion}:{piece.spec}}}" if piece.spec else f"{{{piece.name}{conversion}}}"


def _absolute(path: str) -> str:
    return "/" + os.path.abspath(path).lstrip("/")  # POSIX leaves two slashes at the start alone


def _normal(literal: str) -> str:
    return re.sub(r"/(?:\.?/)+", "/", literal)


def _levels(pieces: list[_Segment]) -> Iterator[list[_Segment]]:
    """Yield for each directory level the pattern of the path down to it."""
    for number, piece in enumerate(pieces):
        before = pieces[:number]
        for slash in re.finditer("/", piece.literal):
            yield [*before, _Segment(piece.literal[: slash.start()])]
        if "%" in piece.spec:  # {time:%Y/%m} spans levels
            for slash in re.finditer("/", piece.spec):
                yield [*before, piece._replace(spec=piece.spec[: slash.start()])]
