"""A configuration file becomes checked sections.

``read`` is for INI files; whoever adds another format makes the same ``Configuration`` of it. No text that leaves this
module, in errors, warnings or descriptions, holds a secret.
"""

from __future__ import annotations

import configparser
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Generic, TypeVar

from trollmoves.config import options, secrets
from trollmoves.config.options import PREFIX, ChainOptions, Option, ProcessOptions, SharedOptions
from trollmoves.config.sections import DEFAULT, Diagnostics, read_process, read_section
from trollmoves.errors import ConfigError
from trollmoves.net import urls
from trollmoves.net.urls import MASK

MAX_FILE_SIZE = 2**22  # bytes of a configuration file; what is larger is something else

O = TypeVar("O", bound=ChainOptions)  # noqa: E741  (one letter, as is the custom for a type)


@dataclass(frozen=True)
class Configuration(Generic[O]):
    """What a file says: options for the process, the usable sections in their order, and what is wrong with the rest.

    Each warning and each problem is one sentence that names file, section and option.
    """

    file: str
    process: ProcessOptions
    sections: Mapping[str, O]
    warnings: tuple[str, ...] = ()
    problems: tuple[ConfigError, ...] = ()

    @property
    def broken(self) -> dict[str, ConfigError]:
        """The sections that cannot be used, each with one error for all that is wrong with it."""
        by_section: dict[str, list[ConfigError]] = {}
        for problem in self.problems:
            by_section.setdefault(problem.section, []).append(problem)
        return {section: combined_error(self.file, problems) for section, problems in by_section.items()}


@dataclass(frozen=True)
class Changes(Generic[O]):
    """What a file read again changes for the chains that run; names of sections.

    ``kept`` can no longer be used as the file has them, and go on with the options they had. ``process`` are options
    of the process that differ: they count from the next start. ``running`` is what runs when all this is done, and the
    ``old`` of the next comparison.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    unchanged: tuple[str, ...]
    kept_broken: tuple[str, ...]
    process: tuple[str, ...]
    running: Configuration[O]


def read(path: str | os.PathLike[str], role: type[O]) -> Configuration[O]:
    """Read a configuration file: each section but [DEFAULT] is one chain of that role.

    Raises:
        ConfigError: there is no such file, it cannot be read or understood, [DEFAULT] cannot be used, or no section
            can. Its text is one line and holds all that is wrong.
    """
    file = os.fspath(path)
    default, texts = parse_ini(file)
    findings = Diagnostics(file)
    process = read_process(findings, default)
    read_sections = {
        name: read_section(findings, role, name, of_section, default) for name, of_section in texts.items()
    }
    usable = _without_taken_ports(findings, {name: found for name, found in read_sections.items() if found})
    if not usable and not findings.problems:
        raise ConfigError("there is no section, so nothing to run", file=file)
    if not usable or any(problem.section == DEFAULT for problem in findings.problems):
        raise combined_error(file, findings.problems)
    return Configuration(file, process, usable, tuple(findings.warnings), tuple(findings.problems))


def changes(old: Configuration[O], new: Configuration[O]) -> Changes[O]:
    """Compare what runs with what the file says now."""
    kept = {name: chain for name, chain in old.sections.items() if name not in new.sections and name in new.broken}
    both = [name for name in new.sections if name in old.sections]
    return Changes(
        added=tuple(name for name in new.sections if name not in old.sections),
        removed=tuple(name for name in old.sections if name not in new.sections and name not in kept),
        changed=tuple(name for name in both if new.sections[name] != old.sections[name]),
        unchanged=tuple(name for name in both if new.sections[name] == old.sections[name]),
        kept_broken=tuple(kept),
        process=tuple(
            item.name
            for item in fields(new.process)
            if getattr(new.process, item.name) != getattr(old.process, item.name)
        ),
        running=replace(new, sections={**new.sections, **kept}),
    )


def check_report(configuration: Configuration[O]) -> str:
    """Return what would run, for ``--check``: each option that is not at its default, then what is wrong."""
    role = next((f"{chain.role} " for chain in configuration.sections.values()), "")
    lines = [f"{configuration.file}: {_counted(len(configuration.sections), f'{role}chain')}"]
    lines += _aligned(_non_default_values(configuration.process, options.options_of(type(configuration.process))))
    for name, chain in configuration.sections.items():
        lines += ["", f"[{name}]", *_aligned(_non_default_values(chain, options.options_of(type(chain))))]
    for noun, texts in (("warning", configuration.warnings), ("problem", configuration.problems)):
        if texts:
            lines += ["", _counted(len(texts), noun), *(f"  {text}" for text in texts)]
    if configuration.broken:
        lines += ["", "does not run: " + " ".join(f"[{name}]" for name in configuration.broken)]
    return "\n".join(" ".join(line.splitlines()) for line in lines) + "\n"


def parse_ini(file: str, name: Callable[[str], str] = str.lower) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Return the options in [DEFAULT], and those of each other section together with them.

    ``name`` gives the name of an option as it counts from what is written. ConfigError when the file is no INI file.
    """
    parser = configparser.RawConfigParser()
    parser.optionxform = name  # type: ignore[assignment,method-assign]
    try:
        parser.read_string(read_text(file))
    except configparser.DuplicateOptionError as error:
        text = f"stands twice, the second time in line {error.lineno}"
        raise ConfigError(text, file=file, section=str(error.section), option=error.option) from None
    except configparser.DuplicateSectionError as error:
        text = f"there are two sections of this name, the second one in line {error.lineno}"
        raise ConfigError(text, file=file, section=str(error.section)) from None
    except configparser.MissingSectionHeaderError as error:
        raise ConfigError(f"line {error.lineno} stands before the first [section]", file=file) from None
    except configparser.Error as error:
        # The lines themselves are not shown: one of them may be a password that lost its name.
        lines = ", ".join(str(line) for line, _ in getattr(error, "errors", ())[:5])
        raise ConfigError(f"no section, option or comment in line {lines}", file=file) from None
    return dict(parser.defaults()), {section: dict(parser.items(section)) for section in parser.sections()}


def read_text(file: str) -> str:
    """Return the text of a configuration file; ConfigError when it cannot be read, or can be no such file."""
    try:
        with open(file, "rb") as stream:
            data = stream.read(MAX_FILE_SIZE + 1)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=file) from None
    if len(data) > MAX_FILE_SIZE:
        raise ConfigError(f"is larger than {MAX_FILE_SIZE} bytes", file=file)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"line {line} is no UTF-8 text", file=file) from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if found := _CONTROL.search(text):
        line = text.count("\n", 0, found.start()) + 1
        raise ConfigError(f"line {line} holds a control character", file=file)
    return text


def _without_taken_ports(findings: Diagnostics, usable: Mapping[str, O]) -> dict[str, O]:
    """Return the sections whose ports no section before them opens."""
    taken: list[tuple[int, str, str]] = []
    kept = {}
    for name, chain in usable.items():
        own = [(port, chain.bind_address, option) for option, port in _ports(chain)]
        clashes = [
            (option, port, other)
            for port, address, option in own
            for taken_port, taken_address, other in taken
            if port == taken_port and (address == taken_address or "*" in (address, taken_address))
        ]
        for option, port, other in clashes:
            findings.problem(name, option, f"{port} is the port of [{other}] already")
        if not clashes:
            kept[name] = chain
            taken += [(port, address, name) for port, address, _ in own]
    return kept


def _ports(chain: ChainOptions) -> Iterator[tuple[str, int]]:
    for option in ("request_port", "publish_port"):
        if port := getattr(chain, option, None):
            yield option, port


def combined_error(file: str, problems: Sequence[ConfigError]) -> ConfigError:
    """Return one error for several of one file."""
    sections = {problem.section for problem in problems}
    if len(problems) == 1:
        return problems[0]
    section = sections.pop() if len(sections) == 1 else ""
    prefix = str(ConfigError("", file=file, section=section))
    return ConfigError("; ".join(str(one).removeprefix(prefix) for one in problems), file=file, section=section)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _non_default_values(section: SharedOptions, table: Mapping[str, Option]) -> Iterator[tuple[str, str]]:
    """Yield name and readable value of each option that differs from its default."""
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
    """Return the value as it would stand in a file; masked when the name says that it is a secret."""
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
    return urls.redacted(value) if "://" in str(value) else str(value)


def _aligned(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    rows = list(rows)
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        yield f"  {name:<{width}}  {value}"


_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x85\u2028\u2029]")
