"""A YAML file becomes the structure of a dispatcher's configuration: whom to hear, and the targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from trollmoves.config.config_file import read_text
from trollmoves.config.options import ProcessOptions, TargetOptions, options_of
from trollmoves.config.sections import DEFAULT, Diagnostics
from trollmoves.errors import ConfigError


@dataclass
class TargetsFile:
    """What stands in a file, as it is: names and values, which may be dictionaries and lists of such."""

    default: dict[str, Any] = field(default_factory=dict)
    subscriber: Mapping[str, Any] = field(default_factory=dict)
    targets: dict[str, dict[str, Any]] = field(default_factory=dict)


def from_yaml(file: str, subscriber: str, findings: Diagnostics) -> TargetsFile:
    """Read a YAML file; ConfigError when it is none."""
    found = TargetsFile()
    general = {**options_of(ProcessOptions), **options_of(TargetOptions)}
    for key, value in _load(file, findings).items():
        name = str(key)
        if name == subscriber:
            found.subscriber = _mapping(findings, name, value)
        elif name == DEFAULT:
            found.default |= _mapping(findings, name, value)
        elif name in general and not isinstance(value, dict):
            found.default[name] = value
        elif value is None or isinstance(value, dict):
            found.targets[name] = _mapping(findings, name, value)
        else:
            findings.problem(name, "", "is no target: it must have options below it")
    found.targets = {name: {**found.default, **target} for name, target in found.targets.items()}
    return found


def text(value: object) -> str:
    """Return the text as which a value would stand in an INI file."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return " ".join(map(text, value))
    return str(value).strip()


def parse_yaml(given: str) -> Any:
    """Return what a piece of YAML means; ValueError when it is none."""
    try:
        return yaml.safe_load(given)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(_why(error)) from None


class _Loader(yaml.SafeLoader):
    """Reads a document, and remembers which keys stand twice; the last one counts, as ever."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.twice: list[tuple[str, int]] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Make a dictionary."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    self.twice.append((key.value, key.start_mark.line + 1))
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _load(file: str, findings: Diagnostics) -> Mapping[Any, Any]:
    given = read_text(file)
    try:
        loader = _Loader(given)
        try:
            found = loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"is neither YAML nor INI: {_why(error)}", file=file) from None
    for key, line in loader.twice:
        findings.warn("", "", f"{key} stands twice, the second time in line {line}: that one counts")
    if found is None:
        raise ConfigError("is empty, so there is nothing to run", file=file)
    if not isinstance(found, dict):
        raise ConfigError("holds no targets: each must be a name with options below it", file=file)
    return found


def _mapping(findings: Diagnostics, name: str, value: object) -> dict[str, Any]:
    if isinstance(value, dict):
        return {str(key): item for key, item in value.items()}
    if value is not None:
        findings.problem(name, "", "must have options below it")
    return {}


def _why(error: Exception) -> str:
    """Say what is wrong, and in which line; the lines themselves are not shown, one may be a password."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return "it is nested too deeply" if isinstance(error, RecursionError) else str(error).partition("\n")[0]
    mark = error.problem_mark or error.context_mark
    where = f"line {mark.line + 1}: " if mark else ""
    hint = "; a text that begins with ! stands in quotes" if "for the tag '!" in str(error.problem) else ""
    return f"{where}{error.problem or error.context}{hint}"
