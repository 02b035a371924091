"""The texts of one section become its typed options.

Where they come from (INI, YAML) is not known here. No finding holds a secret.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from trollmoves.config import options, parsers, secrets
from trollmoves.config.options import (
    LEGACY_IGNORED,
    LEGACY_SPELLINGS,
    PREFIX,
    ChainOptions,
    ClientOptions,
    MirrorOptions,
    Option,
    ProcessOptions,
    ServerOptions,
)
from trollmoves.errors import BadDestination, ConfigError
from trollmoves.matching import patterns
from trollmoves.movers import MOVERS
from trollmoves.net import urls

DEFAULT = "DEFAULT"
ROLES: tuple[type[ChainOptions], ...] = (ServerOptions, ClientOptions, MirrorOptions)

O = TypeVar("O", bound=ChainOptions)  # noqa: E741  (one letter, as is the custom for a type)


class Diagnostics:
    """What is wrong with a file, as far as known; used by the one thread that reads it."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[ConfigError] = []
        self.warnings: list[str] = []

    def problem(self, section: str, option: str, text: object) -> None:
        """Add something that makes the section unusable."""
        line = " ".join(urls.redact_text(str(text)).splitlines())
        self.problems.append(ConfigError(line, file=self.file, section=section, option=option))

    def warn(self, section: str, option: str, text: str) -> None:
        """Add something that the file's author would want to know, once."""
        warning = str(ConfigError(text, file=self.file, section=section, option=option))
        if warning not in self.warnings:
            self.warnings.append(warning)


def read_process(findings: Diagnostics, default: Mapping[str, str]) -> ProcessOptions:
    """Read what [DEFAULT] says for the process; findings tell what cannot be read."""
    found: dict[str, Any] = {}
    for name, option in options.options_of(ProcessOptions).items():
        if default.get(name):
            try:
                found[name] = option.parse(default[name])
            except ValueError as error:
                findings.problem(DEFAULT, name, error)
    return ProcessOptions(**found)


def read_section(
    findings: Diagnostics, role: type[O], name: str, texts: Mapping[str, str], default: Mapping[str, str]
) -> O | None:
    """Read one section; None when it cannot be used.

    ``texts`` are its options with those it has from [DEFAULT], ``default`` are the latter alone. An option without a
    text counts as absent.
    """
    section = _SectionParser(findings, role, name, texts, default)
    found = section.read()
    return None if section.wrong else found


class _SectionParser(Generic[O]):
    """One section while it is read; ``wrong`` are the options with a problem."""

    def __init__(
        self, findings: Diagnostics, role: type[O], name: str, texts: Mapping[str, str], default: Mapping[str, str]
    ) -> None:
        self.name = name
        self.wrong: set[str] = set()
        self._findings = findings
        self._role = role
        self._texts = {option: text for option, text in texts.items() if text}
        self._default = default
        self._table = options.options_of(role)
        self._process = options.options_of(ProcessOptions)

    def read(self) -> O:
        """Read and check everything; options with a problem have their default."""
        found = self._plain_options()
        if options.takes_parameters(self._role):
            found["connection_parameters"] = self._connection_parameters()
        if self._role is ClientOptions:
            found["replacements"] = self._replacements()
        for name in self._texts:
            self._check_name(name, name in found.get("replacements", ()))
        section = self._role(name=self.name, **found)
        for kind, check in _CHECKS:
            if isinstance(section, kind):
                check(self, section)
        return section

    def problem(self, option: str, text: object) -> None:
        """Add something that makes the section unusable, one thing an option; [DEFAULT] is told for itself."""
        inherited = self._inherited(option)
        if option not in self.wrong and not (inherited and option in self._process):
            self._findings.problem(self.name, option, f"{text} (in [{DEFAULT}])" if inherited else text)
        self.wrong.add(option)

    def warn(self, option: str, text: str) -> None:
        """Add a warning; it is about [DEFAULT] when the option stands there."""
        self._findings.warn(DEFAULT if self._inherited(option) else self.name, option, text)

    def is_set(self, option: str) -> bool:
        """Tell whether the option stands in the section, or in [DEFAULT]."""
        return option in self._texts

    @contextlib.contextmanager
    def problems_of(self, option: str) -> Iterator[None]:
        """Make a ValueError of the block a problem of the option."""
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
                    found[name] = self._value(name, option)
            elif option.required:
                self.problem(name, f"is missing: {option.help}")
        return found

    def _value(self, name: str, option: Option) -> object:
        if option.secret and (danger := secrets.exposure_warning(self._texts[name])):
            self.warn(name, danger)
        return option.parse(self._texts[name])

    def _replacements(self) -> dict[str, parsers.MetadataReplacement]:
        return {name: parsers.replacement(text) for name, text in self._texts.items() if not self._is_option_name(name)}

    def _is_option_name(self, name: str) -> bool:
        """Tell whether the name means something to a client's section, so that it is no metadata item's."""
        return name in {*self._table, *self._process, *LEGACY_SPELLINGS, *LEGACY_IGNORED} or name.startswith(PREFIX)

    def _connection_parameters(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in LEGACY_SPELLINGS:
            if name in self._texts and f"{PREFIX}{name}" not in self._texts:
                self._add_parameter(found, name, name)
        for option in self._texts:
            if option.startswith(PREFIX):
                self._add_parameter(found, option, option.removeprefix(PREFIX))
        return found

    def _add_parameter(self, found: dict[str, Any], option: str, path: str) -> None:
        """Put the option's value at its place, as ``a__b`` in the dict ``a``."""
        *groups, last = path.split("__")
        known = options.parameters().get((groups or [last])[0])
        if not all([*groups, last]):
            return self.problem(option, "a name is missing before or behind __")
        if known is None:
            self.warn(
                option, f"is no known connection parameter, and is handed on{did_you_mean(path, options.parameters())}"
            )
        elif groups and known.parse is not parsers.group:
            return self.problem(option, f"{groups[0]} is one value, with no names below it")
        place = found
        for group in groups:
            place = place.setdefault(group, {})
            if not isinstance(place, dict):
                return self.problem(option, f"{group} has a value too: it cannot be both")
        if last in place:
            return self.problem(option, f"{last} has names below it too: it cannot be both")
        with self.problems_of(option):
            place[last] = self._value(option, _parameter(last) if groups or known is None else known)
        return None

    def _check_name(self, name: str, replaces: bool) -> None:
        """Warn about a name that does not do what its author may believe."""
        takes_parameters = options.takes_parameters(self._role)
        if name in self._table:
            pass
        elif replaces:
            if meant := did_you_mean(name, [*self._table, *self._process], 0.85):
                self.warn(name, f"replaces the metadata item of that name{meant}")
        elif name in LEGACY_SPELLINGS and takes_parameters:
            used = "is not used, since that stands here too" if f"{PREFIX}{name}" in self._texts else "still works"
            self.warn(name, f"is the old spelling of {PREFIX}{name}, and {used}")
        elif name.startswith(PREFIX) and takes_parameters:
            pass
        elif name in self._process:
            if not self._inherited(name):
                self.warn(name, f"is for the whole process, and has no effect here: it belongs into [{DEFAULT}]")
        else:
            self.warn(name, self._why_ignored(name))

    def _why_ignored(self, name: str) -> str:
        if name in LEGACY_IGNORED:
            return "is accepted, and has no effect"
        if name in LEGACY_SPELLINGS or name.startswith(PREFIX):
            return f"has no effect in a {self._role.role}'s section: the server connects to the destination"
        for other in ROLES:
            if name in options.options_of(other):
                return f"is an option of a {other.role}, and has no effect in a {self._role.role}'s section"
        if name in options.parameters():
            return f"is unknown; did you mean {PREFIX}{name}?"
        return f"is unknown, and has no effect{did_you_mean(name, [*self._table, *self._process, f'{PREFIX}...'])}"


def _parameter(name: str) -> Option:
    """Return what is known about a parameter that is in no table: only what its name says."""
    secret = secrets.is_secret(name)
    return Option(secrets.resolve if secret else parsers.parameter, None, "", secret=secret)


def did_you_mean(name: str, known: Iterable[str], likeness: float = 0.75) -> str:
    """Return the question for what was probably meant, to put behind a sentence; empty without an idea."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=likeness)
    return f"; did you mean {close[0]}?" if close else ""


def _check_server(section: _SectionParser[Any], chain: ServerOptions) -> None:
    if isinstance(chain, MirrorOptions):
        for name in options.NOT_OF_A_MIRROR:
            if section.is_set(name):
                section.warn(name, "has no effect in a mirror's section")
    elif chain.origin:
        with section.problems_of("origin"):
            patterns.Origin(chain.origin)
        if chain.listen:
            section.warn("listen", "has no effect beside origin")
    elif not chain.listen and not section.wrong & {"origin", "listen"}:
        section.problem("origin", "is missing: say which files to announce, by origin, or by listen for messages")


def _check_client(section: _SectionParser[Any], chain: ClientOptions) -> None:
    if isinstance(chain, MirrorOptions) and chain.compression == "tar":
        section.warn("compression", "has no effect: a mirror hands archives on as they are; let clients unpack them")
    if chain.destination:
        with section.problems_of("destination"):
            _check_destination(chain.destination)
    topics = [chain.topic, getattr(chain, "client_topic", ""), *(provider.topic for provider in chain.providers)]
    if not any(topics) and not chain.heartbeat and not section.wrong & {"providers", "topic"}:
        section.warn("topic", "is missing, and no provider has one: nothing will be heard")


def _check_destination(text: str) -> None:
    """Raise ValueError when no mover would take the destination, whatever the metadata are."""
    shown = urls.redacted(text)
    try:
        patterns.Pattern(text, compose_only=True)
    except ValueError as error:
        raise ValueError(f"{shown} cannot be composed: {str(error).rpartition(': ')[2]}") from None
    try:
        url = urls.parse(_FIELD.sub("1", text))  # a digit may stand for a host as for a port
    except BadDestination:
        raise ValueError(f"is no usable URL: {shown}") from None
    known = tuple(MOVERS)  # its names only: a look into it imports the mover, whose library may not be installed here
    if url.scheme not in known:
        raise ValueError(f"no mover knows {url.scheme}: use one of {', '.join(filter(None, known))}, or a path")
    if url.scheme == "file" and not url.path.startswith("/") and not text.startswith("{"):
        raise ValueError(f"is no absolute path: {shown}")


_FIELD = re.compile(r"\{[^{}]*\}")
_CHECKS: tuple[tuple[type[ChainOptions], Callable[[_SectionParser[Any], Any], None]], ...] = (
    (ServerOptions, _check_server),
    (ClientOptions, _check_client),
)
