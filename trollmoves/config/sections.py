"""Parsing and validation of one section, from an INI or a YAML file.

Problems and warnings contain no secrets.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, ClassVar, Generic, TypeVar

from trollmoves.config import options, parsers, secrets
from trollmoves.config.diagnostics import Diagnostics, did_you_mean
from trollmoves.config.ini_and_yaml import DEFAULT, as_text, set_nested
from trollmoves.config.option_table import Option, options_of, takes_parameters
from trollmoves.config.options import (
    LEGACY_IGNORED,
    LEGACY_SPELLINGS,
    PREFIX,
    ChainOptions,
    ClientOptions,
    MirrorOptions,
    MoveItOptions,
    ProcessOptions,
    ServerOptions,
)
from trollmoves.errors import BadDestination
from trollmoves.matching import patterns
from trollmoves.movers import MOVERS
from trollmoves.net import urls

ROLES: tuple[type[ChainOptions], ...] = (ServerOptions, ClientOptions, MirrorOptions)

O = TypeVar("O", bound=ChainOptions)  # noqa: E741  (one letter, as is the custom for a type)


def read_options(
    diagnostics: Diagnostics, section: str, table: Mapping[str, Option], values: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the values of the options in ``table``, without absent and invalid ones."""
    found: dict[str, Any] = {}
    for name, option in table.items():
        if text := as_text(values.get(name)):
            try:
                found[name] = option.parse(text)
            except ValueError as error:
                diagnostics.problem(section, name, error)
    return found


class SectionParser(Generic[O]):
    """Parser of one section; ``wrong`` contains the options with a problem.

    Args:
        diagnostics: gets problems and warnings.
        role: the class of the result.
        name: the name of the section.
        values: the options of the section, including those of [DEFAULT]. An empty option counts as absent.
        default: the options of [DEFAULT].
    """

    nested: ClassVar[Collection[str]] = ()  # options that a subclass reads

    def __init__(
        self, diagnostics: Diagnostics, role: type[O], name: str, values: Mapping[str, Any], default: Mapping[str, Any]
    ) -> None:
        self.name = name
        self.wrong: set[str] = set()
        self._diagnostics = diagnostics
        self._role = role
        self._default = {option: as_text(value) for option, value in default.items() if option not in self.nested}
        self._table = options_of(role)
        self._process = options_of(ProcessOptions)
        self._texts: dict[str, str] = {}
        for option, value in values.items():
            if option not in self.nested and (text := self.plain_text(option, value) or self._text_if_empty(option)):
                self._texts[option] = text

    def read(self) -> O | None:
        """Return the section, None if it is invalid."""
        found = self._plain_options()
        if takes_parameters(self._role):
            found["connection_parameters"] = self.connection_parameters()
        if self._role is ClientOptions:
            found["replacements"] = self._replacements()
        for name in self._texts:
            self._check_name(name, name in found.get("replacements", ()))
        section = self._role(name=self.name, **found)
        for kind, check in _CHECKS:
            if isinstance(section, kind):
                check(self, section)
        return None if self.wrong else section

    def plain_text(self, option: str, value: object) -> str:
        """Return the text of a value that must not have names below it."""
        if isinstance(value, dict) or (
            isinstance(value, list) and any(isinstance(item, dict | list) for item in value)
        ):
            self.problem(option, "is one value, with no names below it")
            return ""
        return as_text(value)

    def _text_if_empty(self, option: str) -> str:
        return self._table[option].if_empty if option in self._table else ""

    def problem(self, option: str, text: object) -> None:
        """Add a problem that makes the section invalid, at most one per option; [DEFAULT] reports process options."""
        inherited = self._inherited(option)
        if option not in self.wrong and not (inherited and option in self._process):
            self._diagnostics.problem(self.name, option, f"{text} (in [{DEFAULT}])" if inherited else text)
        self.wrong.add(option)

    def warn(self, option: str, text: str, *, legacy: bool = False) -> None:
        """Add a warning, see ``Diagnostics.warn``; it names [DEFAULT] if the option comes from there."""
        self._diagnostics.warn(DEFAULT if self._inherited(option) else self.name, option, text, legacy=legacy)

    def is_set(self, option: str) -> bool:
        """Return True if the section or [DEFAULT] has the option."""
        return option in self._texts

    def text(self, option: str) -> str:
        """Return the text of an option of the section or [DEFAULT]; empty if it is not set."""
        return self._texts.get(option, "")

    @contextlib.contextmanager
    def problems_of(self, option: str) -> Iterator[None]:
        """Convert a ValueError to a problem of the option."""
        try:
            yield
        except ValueError as error:
            self.problem(option, error)

    def _inherited(self, option: str) -> bool:
        return option in self._texts and self._texts[option] == self._default.get(option)

    def _plain_options(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, option in self._table.items():
            if name in self._texts:
                with self.problems_of(name):
                    found[name] = self._value(name, option, self._texts[name])
            elif option.required:
                self.problem(name, f"is missing: {option.help}")
        return found

    def _value(self, name: str, option: Option, text: str) -> object:
        if option.secret and (warning := secrets.exposure_warning(text)):
            self.warn(name, warning)
        if not option.secret:
            secrets.remember_passwords(text)
        return option.parse(text)

    def _replacements(self) -> dict[str, parsers.MetadataReplacement]:
        return {name: parsers.replacement(text) for name, text in self._texts.items() if not self._is_option_name(name)}

    def _is_option_name(self, name: str) -> bool:
        """Return True if the name is an option, so not a replacement of a metadata item."""
        return name in {*self._table, *self._process, *LEGACY_SPELLINGS, *LEGACY_IGNORED} or name.startswith(PREFIX)

    def connection_parameters(self) -> dict[str, Any]:
        """Return the connection parameters, as nested dictionaries."""
        found: dict[str, Any] = {}
        for name in LEGACY_SPELLINGS:
            if name in self._texts and f"{PREFIX}{name}" not in self._texts:
                self.add_parameter(found, name, [name], self._texts[name])
        for option, text in self._texts.items():
            if option.startswith(PREFIX):
                self.add_parameter(found, option, option.removeprefix(PREFIX).split("__"), text)
        return found

    def typed_parameters(self, option: str, given: object) -> dict[str, Any]:
        """Return the connection parameters below an option of a YAML file, which may be typed and nested."""
        found: dict[str, Any] = {}
        if not isinstance(given, dict):
            self.problem(option, "must have names below it")
            return found
        for path, value in _leaves([], given):
            self.add_parameter(found, " ".join([option, *path]), path, value, typed=True)
        return found

    def add_parameter(
        self, found: dict[str, Any], option: str, path: list[str], value: object, *, typed: bool = False
    ) -> None:
        """Parse one connection parameter and add it at its path; a ``typed`` one keeps its type if it is unknown."""
        known = options.parameters().get(path[0])
        is_group = known is not None and known.parse is parsers.group
        is_known = known is not None and len(path) == 1
        if not all(path):
            return self.problem(option, "a name is missing before or after __")
        if known is None:
            meant = did_you_mean("__".join(path), options.parameters())
            self.warn(option, f"is not a known connection parameter, and is passed to the mover{meant}")
        elif not is_group and (len(path) > 1 or isinstance(value, dict | list)):
            return self.problem(option, f"{path[0]} is one value, with no names below it")
        parameter = known if known and is_known else _unknown_parameter(path[-1])
        secrets.remember_passwords(str(value))
        keeps_type = (
            isinstance(value, dict) if is_known else typed and not (parameter.secret and isinstance(value, str))
        )
        with self.problems_of(option):
            set_nested(found, path, value if keeps_type else self._value(option, parameter, as_text(value)))
        return None

    def _check_name(self, name: str, replaces: bool) -> None:
        """Warn about a name without effect or with a surprising one."""
        has_parameters = takes_parameters(self._role)
        if name in self._table:
            pass
        elif replaces:
            if meant := did_you_mean(name, [*self._table, *self._process], 0.85):
                self.warn(name, f"replaces the metadata item of that name{meant}")
        elif name in LEGACY_SPELLINGS and has_parameters:
            effect = "is ignored, since both are set" if f"{PREFIX}{name}" in self._texts else "still works"
            self.warn(name, f"is the old spelling of {PREFIX}{name}, and {effect}", legacy=effect == "still works")
        elif name.startswith(PREFIX) and has_parameters:
            pass
        elif name in self._process:
            if not self._inherited(name):
                self.warn(name, f"is an option of the process, and has no effect here: move it to [{DEFAULT}]")
        else:
            self.warn(name, self._why_ignored(name), legacy=name in LEGACY_IGNORED)

    def _why_ignored(self, name: str) -> str:
        if name in LEGACY_IGNORED:
            return "is accepted, and has no effect"
        if name in LEGACY_SPELLINGS or name.startswith(PREFIX):
            return f"has no effect in a {self._role.role}'s section: the server connects to the destination"
        for other in ROLES:
            if name in options_of(other):
                return f"is an option of a {other.role}, and has no effect in a {self._role.role}'s section"
        if name in options.parameters():
            return f"is unknown; did you mean {PREFIX}{name}?"
        return f"is unknown, and has no effect{did_you_mean(name, [*self._table, *self._process, f'{PREFIX}...'])}"


def _leaves(path: list[str], group: Mapping[Any, Any]) -> Iterator[tuple[list[str], object]]:
    """Yield path and value of each item of nested groups; an empty group is a value, a None at the top is absent."""
    for key, value in group.items():
        if isinstance(value, dict) and value:
            yield from _leaves([*path, str(key)], value)
        elif path or value is not None:
            yield [*path, str(key)], value


def _unknown_parameter(name: str) -> Option:
    """Return the option of a parameter that is not in the table: only its name may mark it as a secret."""
    secret = secrets.is_secret(name)
    return Option(secrets.resolve if secret else parsers.parameter, None, "", secret=secret)


def _check_server(section: SectionParser[Any], chain: ServerOptions) -> None:
    if chain.files == options.OWN and chain.role == ServerOptions.role:
        _check_own_files(section, chain)
    if isinstance(chain, MirrorOptions):
        for name in options.NOT_OF_A_MIRROR:
            if section.is_set(name):
                section.warn(name, "has no effect in a mirror's section", legacy=True)
    elif chain.origin:
        with section.problems_of("origin"):
            patterns.Origin(chain.origin)
        if chain.listen:
            section.warn("listen", "has no effect together with origin")
    elif not chain.listen and not section.wrong & {"origin", "listen"}:
        section.problem("origin", "is missing: set origin or listen to select the files to announce")


def _check_own_files(section: SectionParser[Any], chain: ServerOptions) -> None:
    if section.text("fleet") != options.SHARE:
        section.problem("files", f"own is for servers that share their work: set fleet = share in [{DEFAULT}]")
    elif chain.request_port is None and "request_port" not in section.wrong:
        section.problem("files", "own needs request_port: without it give each server a journal of its own")


def _check_move_it(section: SectionParser[Any], chain: MoveItOptions) -> None:
    for name in options.NOT_OF_MOVE_IT:
        if section.is_set(name):
            section.warn(name, "has no effect in a section of move_it", legacy=True)
    if not chain.topic and "topic" not in section.wrong:
        section.warn("topic", "is missing: files are delivered, but no messages about them are published")
    for destination in chain.destinations:
        with section.problems_of("destinations"):
            _check_pattern(destination)
        try:
            check_scheme(urls.parse(destination).scheme)
        except ValueError as error:
            section.warn("destinations", f"{error}; files for it are held")


def _check_client(section: SectionParser[Any], chain: ClientOptions) -> None:
    if isinstance(chain, MirrorOptions) and chain.compression == "tar":
        section.warn("compression", "has no effect: a mirror forwards archives unchanged; let clients unpack them")
    if chain.destination:
        with section.problems_of("destination"):
            _check_destination(chain.destination)
    topics = [chain.topic, getattr(chain, "client_topic", ""), *(provider.topic for provider in chain.providers)]
    if not any(topics) and not section.wrong & {"providers", "topic"}:
        section.warn(
            "topic",
            "is missing, and no provider has one: no announcements will be received; an empty value, 'topic =', "
            "subscribes to all subjects",
        )


def _check_destination(text: str) -> None:
    """Raise ValueError if the destination is invalid for all metadata."""
    shown = urls.redacted(text)
    _check_pattern(text)
    try:
        url = urls.parse(_FIELD.sub("1", text))  # a digit is valid as host and as port
    except BadDestination:
        raise ValueError(f"invalid URL: {shown}") from None
    check_scheme(url.scheme)
    if url.scheme == "file" and not url.path.startswith("/") and not text.startswith("{"):
        raise ValueError(f"must be an absolute path: {shown}")


def _check_pattern(text: str) -> None:
    """Raise ValueError if a destination cannot be composed."""
    try:
        patterns.Pattern(text)
    except ValueError as error:
        raise ValueError(f"{urls.redacted(text)} cannot be composed: {str(error).rpartition(': ')[2]}") from None


def check_scheme(scheme: str) -> None:
    """Raise ValueError if no mover supports the scheme."""
    known = tuple(MOVERS)  # names only: to load a mover imports its library, which may not be installed on this host
    if scheme not in known:
        raise ValueError(f"unknown scheme {scheme}: use one of {', '.join(filter(None, known))}, or a path")


_FIELD = re.compile(r"\{[^{}]*\}")
_CHECKS: tuple[tuple[type[ChainOptions], Callable[[SectionParser[Any], Any], None]], ...] = (
    (ServerOptions, _check_server),
    (ClientOptions, _check_client),
    (MoveItOptions, _check_move_it),
)
