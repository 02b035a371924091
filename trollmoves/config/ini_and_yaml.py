"""Configuration files as nested structures: INI and YAML are parsed to the same :class:`Document`.

In an INI file ``a__b__c = v`` is a value in nested groups; the items of a list have numbers as names. Only options of
the dispatcher are nested in this way.
"""

from __future__ import annotations

import configparser
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from trollmoves.config import parsers
from trollmoves.config.diagnostics import Diagnostics
from trollmoves.errors import ConfigError
from trollmoves.matching import conditions
from trollmoves.utils.users import permission_remedy

DEFAULT = "DEFAULT"
MAX_FILE_SIZE = 2**22  # bytes of a configuration file

_NESTED = ("topics", "conditions", "aliases", "dispatch_configs")  # in INI files of the dispatcher
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x85\u2028\u2029]")
_GAP = re.compile(r"^[^\s=:#;\[][^\n=:]*?[^\S\n]{200}", re.MULTILINE)  # configparser takes quadratic time for it
_FIRST_LINE = re.compile(r"\s*(?:[#;][^\n]*\n\s*)*(.?)")


@dataclass
class Document:
    """Sections by name; each maps options to text, numbers, lists or dictionaries, and includes those of [DEFAULT]."""

    default: Mapping[str, Any] = field(default_factory=dict)
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)


def read_document(file: str, diagnostics: Diagnostics, general: Collection[str]) -> Document:
    """Read a file of a dispatcher, INI or YAML.

    Args:
        file: path of the file. It is an INI file if its first line that is not a comment is a [section].
        diagnostics: gets the problems of single sections.
        general: options that belong to [DEFAULT] if they are outside of sections in a YAML file.

    Raises:
        ConfigError: the file cannot be read or parsed.
    """
    content = read_text(file)
    if not is_ini(content):
        return _from_yaml(file, content, diagnostics, general)
    flat = read_ini(file, content, nested=True)
    return Document(
        _nest(file, DEFAULT, flat.default), {name: _nest(file, name, texts) for name, texts in flat.sections.items()}
    )


def is_ini(content: str) -> bool:
    """Return True if the first line of a file that is not a comment is a [section]."""
    first = _FIRST_LINE.match(content)
    return first is not None and first[1] == "["


def read_ini(file: str, content: str, *, nested: bool = False) -> Document:
    """Parse an INI file. All values are text; ``nested`` keeps the case of names in conditions and aliases.

    Raises:
        ConfigError: the content is invalid.
    """
    if gap := _GAP.search(content):
        line = content.count("\n", 0, gap.end()) + 1
        raise ConfigError(f"line {line} has 200 blanks in or after the name of an option", file=file)
    parser = configparser.RawConfigParser()
    parser.optionxform = _normalized_name if nested else str.lower  # type: ignore[assignment,method-assign]
    try:
        parser.read_string(content)
    except configparser.DuplicateOptionError as error:
        text = f"is defined twice, the second time in line {error.lineno}"
        raise ConfigError(text, file=file, section=str(error.section), option=error.option) from None
    except configparser.DuplicateSectionError as error:
        text = f"the section is defined twice, the second time in line {error.lineno}"
        raise ConfigError(text, file=file, section=str(error.section)) from None
    except configparser.MissingSectionHeaderError as error:
        raise ConfigError(f"line {error.lineno} precedes the first [section]", file=file) from None
    except configparser.Error as error:
        # The lines are not shown: one of them may be a password without its name.
        lines = ", ".join(str(line) for line, _ in getattr(error, "errors", ())[:5])
        raise ConfigError(f"neither section nor option nor comment in line {lines}", file=file) from None
    return Document(parser.defaults(), {section: dict(parser.items(section)) for section in parser.sections()})


def read_text(file: str) -> str:
    """Return the text of a configuration file.

    Raises:
        ConfigError: the file cannot be read, is too large, or contains something else than text.
    """
    try:
        with open(file, "rb") as stream:
            data = stream.read(MAX_FILE_SIZE + 1)
    except OSError as error:
        remedy = permission_remedy(error.errno, "read")
        raise ConfigError(f"cannot be read: {error.strerror}{remedy}", file=file) from None
    if len(data) > MAX_FILE_SIZE:
        raise ConfigError(f"is larger than {MAX_FILE_SIZE} bytes", file=file)
    try:
        content = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"line {line} is not UTF-8 text", file=file) from None
    content = content.replace("\r\n", "\n").replace("\r", "\n")
    if found := _CONTROL.search(content):
        line = content.count("\n", 0, found.start()) + 1
        raise ConfigError(f"line {line} contains a control character", file=file)
    return content


def as_text(value: object) -> str:
    """Return a value as text of an INI file."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return " ".join(map(as_text, value))
    return str(value).strip()


def set_nested(group: dict[Any, Any], path: list[Any], value: Any) -> None:
    """Set the value at a path of nested dictionaries. ValueError if a name would be both a value and a group."""
    *groups, last = path
    for name in groups:
        group = group.setdefault(name, {})
        if not isinstance(group, dict):
            raise ValueError(f"{name} has a value too: it cannot be both")
    if last in group:
        raise ValueError(f"{last} has names below it too: it cannot be both")
    group[last] = value


# -- INI: nested options


def _normalized_name(name: str) -> str:
    """Return the name of an option in lower case, except for names of metadata."""
    head, separator, rest = name.strip().partition("__")
    head = head.lower()
    if head == "dispatch_configs":
        number, more, rest = rest.partition("__")
        return f"{head}__{number}__{_normalized_name(rest)}" if more else f"{head}{separator}{number}"
    return head + separator + (rest if head in ("aliases", "conditions") else rest.lower())


def _nest(file: str, section: str, texts: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, text in texts.items():
        path = name.split("__")
        if path[0] not in _NESTED:
            found[name] = text
        elif text:
            try:
                set_nested(found, _keys(path), _value(path, text))
            except ValueError as error:
                raise ConfigError(str(error), file=file, section=section, option=name) from None
    return {name: _with_lists(name, value) for name, value in found.items()}


def _keys(path: list[str]) -> list[Any]:
    """Return the keys of a path: the value that an alias replaces may be a number."""
    return [*path[:-1], _scalar(path[-1])] if "aliases" in path[:3:2] and path[-1] != "aliases" else list(path)


def _value(path: list[str], text: str) -> Any:
    name = next(iter(path[2:] if path[0] == "dispatch_configs" else path), "")
    if name not in ("topics", "conditions", "aliases"):
        return text
    if name == "topics":
        return list(parsers.word_list(text))
    if text[0] in "[{":
        return _parse_yaml(text)
    if name == "aliases" or "," not in text:
        return _scalar(text)
    return [_scalar(part.strip()) for part in text.split(",")]


def _scalar(text: str) -> Any:
    """Return the number, boolean or time of a text, by the rules of YAML, else the text."""
    if conditions.is_comparison(text):
        return text
    try:
        found = _parse_yaml(text)
    except ValueError:
        return text
    return text if isinstance(found, dict | list) else found


def _with_lists(name: str, value: Any) -> Any:
    """Convert groups with numbers as names to lists, for options that are lists."""
    if not isinstance(value, dict) or name == "aliases":
        return value
    found = {key: _with_lists(key, item) for key, item in value.items()}
    if name in ("dispatch_configs", "conditions", conditions.EXCEPT) and found and all(map(str.isdigit, found)):
        return [found[key] for key in sorted(found, key=int)]
    return found


# -- YAML


class _Loader(yaml.SafeLoader):
    """Records duplicate keys, of which the last one counts."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.duplicates: list[tuple[str, int]] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the dictionary of a node."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    self.duplicates.append((key.value, key.start_mark.line + 1))
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _from_yaml(file: str, content: str, diagnostics: Diagnostics, general: Collection[str]) -> Document:
    default: dict[str, Any] = {}
    sections: dict[str, dict[str, Any]] = {}
    for key, value in load_yaml(file, content, diagnostics).items():
        name = str(key)
        if name in general and not isinstance(value, dict):
            default[name] = value
        elif value is None or isinstance(value, dict):
            options = {str(option): item for option, item in (value or {}).items()}
            if name == DEFAULT:
                default |= options
            else:
                sections[name] = options
        else:
            diagnostics.problem(name, "", "must be a section with options below it")
    return Document(default, {name: {**default, **options} for name, options in sections.items()})


def load_yaml(file: str, content: str, diagnostics: Diagnostics) -> Mapping[Any, Any]:
    """Return the dictionary in a YAML text; raise ConfigError if there is none."""
    try:
        loader = _Loader(content)
        try:
            found = loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"is neither YAML nor INI: {_yaml_error(error)}", file=file) from None
    for key, line in loader.duplicates:
        diagnostics.warn("", "", f"{key} is defined twice, the second time in line {line}: the second one is used")
    if found is None:
        raise ConfigError("is empty, so there is nothing to run", file=file)
    if not isinstance(found, dict):
        raise ConfigError("must contain names, each with a value or with options below it", file=file)
    return found


def _parse_yaml(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(_yaml_error(error)) from None


def _yaml_error(error: Exception) -> str:
    """Return the problem and its line number; the line is not shown, since it may contain a password."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return "it is nested too deeply" if isinstance(error, RecursionError) else str(error).partition("\n")[0]
    mark = error.problem_mark or error.context_mark
    where = f"line {mark.line + 1}: " if mark else ""
    hint = "; a text that begins with ! must be quoted" if "for the tag '!" in str(error.problem) else ""
    return f"{where}{error.problem or error.context}{hint}"
