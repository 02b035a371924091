"""An INI file becomes the structure of a dispatcher's configuration.

``a__b__c = v`` leads into groups; where a list is meant, the names of the group are numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from trollmoves.config import parsers
from trollmoves.config.config_file import parse_ini
from trollmoves.config.targets_yaml import TargetsFile, parse_yaml
from trollmoves.errors import ConfigError
from trollmoves.matching import conditions

_FIRST_LINE = re.compile(r"\s*(?:[#;][^\n]*\n\s*)*(.?)")


def is_ini(text: str) -> bool:
    """Tell whether a file is an INI file rather than YAML: its first line that says something is a [section]."""
    found = _FIRST_LINE.match(text)
    return bool(found) and found[1] == "["  # type: ignore[index]


def from_ini(file: str, subscriber: str) -> TargetsFile:
    """Read an INI file; ConfigError when it is none."""
    default, sections = parse_ini(file, _name)
    own = {name: {key: one for key, one in texts.items() if key not in default} for name, texts in sections.items()}
    return TargetsFile(
        default=_to_structure(file, "DEFAULT", default),
        subscriber=own.get(subscriber, {}),
        targets={name: _to_structure(file, name, texts) for name, texts in sections.items() if name != subscriber},
    )


def _name(written: str) -> str:
    """Give the name of an option: ours are not case-sensitive, but those of metadata are."""
    head, mark, rest = written.strip().partition("__")
    head = head.lower()
    if head == "dispatch_configs":
        number, more, rest = rest.partition("__")
        return f"{head}__{number}__{_name(rest)}" if more else f"{head}{mark}{number}"
    return head + mark + (rest if head in ("aliases", "conditions") else rest.lower())


def _to_structure(file: str, section: str, texts: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, given in texts.items():
        path = name.split("__")
        if path[0] not in ("topics", "conditions", "aliases", "dispatch_configs"):
            found[name] = given
        elif given:
            try:
                _set_nested(found, _keys(path), _value(path, given))
            except ValueError as error:
                raise ConfigError(str(error), file=file, section=section, option=name) from None
    return {name: _with_lists(name, value) for name, value in found.items()}


def _keys(path: list[str]) -> list[Any]:
    """Give the way to a value: what an alias stands for is a value itself, which may be a number."""
    return [*path[:-1], _scalar(path[-1])] if "aliases" in path[:3:2] and path[-1] != "aliases" else list(path)


def _set_nested(place: dict[Any, Any], path: list[Any], value: Any) -> None:
    *groups, last = path
    for group in groups:
        place = place.setdefault(group, {})
        if not isinstance(place, dict):
            raise ValueError(f"{group} has a value too: it cannot be both")
    if last in place:
        raise ValueError(f"{last} has names below it too: it cannot be both")
    place[last] = value


def _value(path: list[str], given: str) -> Any:
    if path[0] == "dispatch_configs":
        path = path[2:]
    if not path or path[0] not in ("topics", "conditions", "aliases"):
        return given
    if path[0] == "topics":
        return list(parsers.word_list(given))
    if given[0] in "[{":
        return parse_yaml(given)
    if path[0] == "aliases":
        return _scalar(given)
    parts = [part.strip() for part in given.split(",")]
    return [_scalar(part) for part in parts] if len(parts) > 1 else _scalar(given)


def _scalar(given: str) -> Any:
    """Return the number, truth, time or text that YAML would see; what is nothing of it is a text as it is."""
    if conditions.is_comparison(given):
        return given
    try:
        found = parse_yaml(given)
    except ValueError:
        return given
    return given if isinstance(found, dict | list) else found


def _with_lists(name: str, value: Any) -> Any:
    """Make lists of groups whose names are numbers, where a list is meant."""
    if not isinstance(value, dict):
        return value
    if name == "aliases":
        return value
    found = {key: _with_lists(key, item) for key, item in value.items()}
    if name in ("dispatch_configs", "conditions", conditions.EXCEPT) and found and all(map(str.isdigit, found)):
        return [found[key] for key in sorted(found, key=int)]
    return found
