"""Configuration files: reading, changes at a reload, and the report of ``--check``.

Errors, warnings and reports contain no secrets.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Generic, TypeVar

from trollmoves.config import secrets
from trollmoves.config.diagnostics import DID_YOU_MEAN, Diagnostics, combined_error
from trollmoves.config.ini_and_yaml import DEFAULT, read_ini, read_text
from trollmoves.config.option_table import Option, OptionTable, options_of
from trollmoves.config.options import PREFIX, SHARE, ChainOptions, MoveItOptions, ProcessOptions
from trollmoves.config.sections import SectionParser, read_options
from trollmoves.errors import ConfigError
from trollmoves.journal import is_shared
from trollmoves.net import urls
from trollmoves.net.urls import MASK
from trollmoves.utils.texts import counted

SHARING_ROLES = {"client", "server", "dispatcher"}  # daemons of which several members may work
O = TypeVar("O", bound=ChainOptions)  # noqa: E741  (one letter, as is the custom for a type)


@dataclass(frozen=True)
class Configuration(Generic[O]):
    """A file that has been read: options of the process, valid sections in their order, and the problems.

    Each warning and each problem is one sentence that names file, section and option. ``legacy`` has the warnings about
    valid options of earlier versions: a daemon logs them as information.
    """

    file: str
    process: ProcessOptions
    sections: Mapping[str, O]
    warnings: tuple[str, ...] = ()
    problems: tuple[ConfigError, ...] = ()
    legacy: frozenset[str] = frozenset()

    @property
    def broken(self) -> dict[str, ConfigError]:
        """The invalid sections, each with one error for all its problems."""
        by_section: dict[str, list[ConfigError]] = {}
        for problem in self.problems:
            by_section.setdefault(problem.section, []).append(problem)
        return {section: combined_error(self.file, problems) for section, problems in by_section.items()}


@dataclass(frozen=True)
class Changes(Generic[O]):
    """Changes of a reloaded file for the running chains, as names of sections.

    ``process`` names options of the process that differ: they take effect at the next start. ``running`` is the
    configuration after the reload, in which sections that have become invalid keep their old options.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    unchanged: tuple[str, ...]
    process: tuple[str, ...]
    running: Configuration[O]


def read(path: str | os.PathLike[str], role: type[O]) -> Configuration[O]:
    """Read an INI file: each section except [DEFAULT] is one chain of that role.

    Raises:
        ConfigError: the file cannot be read or parsed, or [DEFAULT] or all sections are invalid. Its text is one line
            with all problems.
    """
    diagnostics = Diagnostics(os.fspath(path))
    document = read_ini(diagnostics.file, read_text(diagnostics.file))
    default = document.default
    process = ProcessOptions(**read_options(diagnostics, DEFAULT, options_of(ProcessOptions), default))
    chains = {
        name: SectionParser(diagnostics, role, name, values, default).read()
        for name, values in document.sections.items()
    }
    usable = _without_port_conflicts(diagnostics, process, {name: chain for name, chain in chains.items() if chain})
    return make_configuration(diagnostics, process, usable, "section", (DEFAULT,))


def make_configuration(
    diagnostics: Diagnostics, process: ProcessOptions, usable: Mapping[str, O], noun: str, essential: Collection[str]
) -> Configuration[O]:
    """Return the configuration; ConfigError without usable sections or with a problem in an essential one."""
    if process.fleet == SHARE:
        _check_sharing(diagnostics, process, {chain.role for chain in usable.values()})
    if not usable and not diagnostics.problems:
        raise ConfigError(f"nothing to run: the file contains no {noun}", file=diagnostics.file)
    if not usable or any(problem.section in essential for problem in diagnostics.problems):
        hints = [warning for warning in diagnostics.warnings if DID_YOU_MEAN in warning]
        raise combined_error(diagnostics.file, diagnostics.problems, hints)
    return Configuration(
        diagnostics.file,
        process,
        usable,
        tuple(diagnostics.warnings),
        tuple(diagnostics.problems),
        frozenset(diagnostics.legacy),
    )


def _check_sharing(diagnostics: Diagnostics, process: ProcessOptions, roles: set[str]) -> None:
    if not is_shared(process.journal):
        text = "share needs a journal on PostgreSQL: set journal = postgresql://..."
        diagnostics.problem(DEFAULT, "fleet", text)
    for role in sorted(roles - SHARING_ROLES):
        text = f"share is not supported by a {role}, only by a client, server or dispatcher: use fleet = standby"
        diagnostics.problem(DEFAULT, "fleet", text)


def changes(old: Configuration[O], new: Configuration[O]) -> Changes[O]:
    """Compare the running configuration with the reloaded one."""
    kept = {name: chain for name, chain in old.sections.items() if name not in new.sections and name in new.broken}
    both = [name for name in new.sections if name in old.sections]
    return Changes(
        added=tuple(name for name in new.sections if name not in old.sections),
        removed=tuple(name for name in old.sections if name not in new.sections and name not in kept),
        changed=tuple(name for name in both if new.sections[name] != old.sections[name]),
        unchanged=tuple(name for name in both if new.sections[name] == old.sections[name]),
        process=tuple(
            item.name
            for item in fields(new.process)
            if getattr(new.process, item.name) != getattr(old.process, item.name)
        ),
        running=replace(new, sections={**new.sections, **kept}),
    )


def differences(old: ChainOptions, new: ChainOptions) -> Iterator[str]:
    """Yield a text for each option that differs, such as ``topic: /a -> /b``; values of secrets are masked."""
    table = options_of(type(new))
    before, after = (dict(_non_default_values(section, table)) for section in (old, new))
    names = dict.fromkeys([*before, *after])
    for name in names:
        values = [section.get(name, "default") for section in (before, after)]
        if values[0] != values[1]:
            yield urls.redact_text(f"{name}: {' -> '.join(values)}")
    if before == after:
        yield "a secret"


def check_report(configuration: Configuration[O]) -> str:
    """Return the report for ``--check``: options that differ from their defaults, then warnings and problems."""
    role = next((f"{chain.role} " for chain in configuration.sections.values()), "")
    lines = [f"{configuration.file}: {counted(len(configuration.sections), f'{role}chain')}"]
    lines += option_lines(configuration.process)
    for name, chain in configuration.sections.items():
        lines += ["", f"[{name}]", *option_lines(chain)]
    lines += problem_lines(configuration.warnings, configuration.problems)
    if configuration.broken:
        lines += ["", "not running: " + " ".join(f"[{name}]" for name in configuration.broken)]
    return report_text(lines)


def option_lines(section: OptionTable) -> Iterator[str]:
    """Return a line of a report for each option that differs from its default."""
    yield from _aligned(_non_default_values(section, options_of(type(section))))


def problem_lines(warnings: Sequence[str], problems: Sequence[ConfigError]) -> Iterator[str]:
    """Return the lines of a report for warnings and problems."""
    for noun, texts in (("warning", warnings), ("problem", problems)):
        if texts:
            yield from ("", counted(len(texts), noun), *(f"  {text}" for text in texts))


def report_text(lines: Iterable[str]) -> str:
    """Return the text of a report, without secrets."""
    return "\n".join(urls.redact_text(" ".join(line.splitlines())) for line in lines) + "\n"


def _without_port_conflicts(diagnostics: Diagnostics, process: ProcessOptions, usable: Mapping[str, O]) -> dict[str, O]:
    """Return the sections that use no port of the process or of an earlier section."""
    used: list[tuple[int, str, str]] = []
    if process.metrics_port is not None:
        used.append((process.metrics_port, process.metrics_address, DEFAULT))
    if process.web_port is not None:
        used.append((process.web_port, process.web_address, DEFAULT))
    kept = {}
    for name, chain in usable.items():
        own = [(port, chain.bind_address, option) for option, port in _ports(chain)]
        clashes = [
            (option, port, other)
            for port, address, option in own
            for used_port, used_address, other in used
            if port == used_port and (address == used_address or "*" in (address, used_address))
        ]
        for option, port, other in clashes:
            diagnostics.problem(name, option, f"port {port} is already used by [{other}]")
        if not clashes:
            kept[name] = chain
            used += [(port, address, name) for port, address, _ in own]
    return kept


def _ports(chain: ChainOptions) -> Iterator[tuple[str, int]]:
    if isinstance(chain, MoveItOptions):  # it does not listen on its request port
        return
    for option in ("request_port", "publish_port"):
        if port := getattr(chain, option, None):
            yield option, port


def _non_default_values(section: OptionTable, table: Mapping[str, Option]) -> Iterator[tuple[str, str]]:
    """Yield name and formatted value of each option that differs from its default."""
    for name, option in table.items():
        value = getattr(section, name)
        if value != (None if option.default is None else option.parse(option.default)):
            yield name, MASK if option.secret else _format_value(name, value)
    for name, value in _flat(PREFIX, getattr(section, "connection_parameters", {})):
        yield name, _format_value(name, value)
    for name, replacement in getattr(section, "replacements", {}).items():
        yield name, f"{_format_value(name, replacement.text)} (in the metadata)"
    for name, value in section.details():
        yield name, _format_value(name, value)


def _flat(prefix: str, group: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    for name, value in group.items():
        if isinstance(value, dict):
            yield from _flat(f"{prefix}{name}__", value)
        else:
            yield f"{prefix}{name}", value


def _format_value(name: str, value: object) -> str:
    """Return the value as text of a file, masked if the name is that of a secret."""
    if secrets.is_secret(name):
        return MASK
    if isinstance(value, bool | None):
        return str(bool(value)).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        return "; ".join(f"{key}={_format_value(key, item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ("," if isinstance(value, list) else " ").join(_format_value("", item) for item in value)
    return urls.redacted(value) if "://" in str(value) or "@" in str(value) else str(value)


def _aligned(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    rows = list(rows)
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        yield f"  {name:<{width}}  {value}"
