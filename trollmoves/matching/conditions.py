"""Does this message match?

Conditions are read once, from what a configuration holds (dictionaries, lists, values), and are then asked about the
metadata of each message. Nothing in them is ever run as a program.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

EXCEPT = "except"

Compare = Callable[[float, float], bool]

_OPERATORS: Mapping[str, Compare] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
}
_COMPARISON = re.compile(r"([<>=!]+)\s*(.*)", re.DOTALL)
_LONGEST_SHOWN = 80  # characters of a value: a message may hold anything


class MissingKey(Exception):
    """A condition cannot be judged, since a key is missing or its value is no number; so it does not match."""


class Condition(Protocol):
    """Something that metadata fulfil or not."""

    def mismatch_reason(self, metadata: Mapping[str, Any]) -> str:
        """Give the reason why it is not fulfilled, empty when it is; Undecided when that cannot be told."""


@dataclass(frozen=True)
class OneOf:
    """A value is equal to one of these."""

    key: str
    wanted: tuple[object, ...]

    def mismatch_reason(self, metadata: Mapping[str, Any]) -> str:
        """Compare."""
        value = _value(metadata, self.key)
        if value in self.wanted:
            return ""
        listed = ", ".join(map(_shown, self.wanted))
        return f"{self.key} is {_shown(value)}, not {f'one of {listed}' if len(self.wanted) != 1 else listed}"


@dataclass(frozen=True)
class Comparison:
    """A number stands in a relation to another one."""

    key: str
    relation: str
    number: float

    def mismatch_reason(self, metadata: Mapping[str, Any]) -> str:
        """Compare."""
        value = _value(metadata, self.key)
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise MissingKey(f"{self.key} is {_shown(value)}, which is no number") from None
        if _OPERATORS[self.relation](number, self.number):
            return ""
        return f"{self.key} is {_shown(value)}, not {self.relation} {self.number:g}"


@dataclass(frozen=True)
class AllOf:
    """All of these hold, looked at in their order."""

    conditions: tuple[Condition, ...]

    def mismatch_reason(self, metadata: Mapping[str, Any]) -> str:
        """Look for the first one that does not hold."""
        return next(filter(None, (condition.mismatch_reason(metadata) for condition in self.conditions)), "")


@dataclass(frozen=True)
class Not:
    """This does not hold, although all that it asks for is known."""

    condition: Condition

    def mismatch_reason(self, metadata: Mapping[str, Any]) -> str:
        """Turn it round."""
        return "" if self.condition.mismatch_reason(metadata) else f"all of what {EXCEPT} asks for is so"


@dataclass(frozen=True)
class AnyOfKnown:
    """At least one of these holds, and nothing before it is undecided."""

    conditions: tuple[Condition, ...]

    def mismatch_reason(self, metadata: Mapping[str, Any]) -> str:
        """Look for the first one that holds."""
        reasons = [condition.mismatch_reason(metadata) for condition in self.conditions]
        return "" if "" in reasons else "; ".join(reasons) or "none"


@dataclass(frozen=True)
class AnyOf:
    """At least one of these holds; what cannot be decided does not hold."""

    conditions: tuple[Condition, ...]

    def mismatch_reason(self, metadata: Mapping[str, Any]) -> str:
        """Look for the first one that holds."""
        reasons = []
        for condition in self.conditions:
            try:
                reason = condition.mismatch_reason(metadata)
            except MissingKey as undecided:
                reason = str(undecided)
            if not reason:
                return ""
            reasons.append(reason)
        return "; ".join(reasons) or "an empty list of conditions matches nothing"


@dataclass(frozen=True)
class Conditions:
    """The conditions of a configuration; those of two configurations can be compared. Any thread may ask."""

    condition: AnyOf

    def mismatch_reason(self, metadata: Mapping[str, Any]) -> str:
        """Give the reason why metadata do not match, empty when they do. Never raises."""
        return self.condition.mismatch_reason(metadata)

    def match(self, metadata: Mapping[str, Any]) -> bool:
        """Tell whether metadata match."""
        return not self.mismatch_reason(metadata)


def parse_conditions(given: object) -> Conditions:
    """Read what a configuration gives as conditions.

    A list means any of, a dictionary all of. In a dictionary a list means one of its values, a text that begins with
    one of ``< > = !`` is compared as a number, ``except`` turns what is in it round, and any other value is to be
    equal, with its type.

    Raises:
        ValueError: when they make no sense; says which and why.
    """
    if isinstance(given, list):
        return Conditions(AnyOf(tuple(map(_all_of, given))))
    if isinstance(given, dict):
        return Conditions(AnyOf((_all_of(given),) if given else ()))
    raise ValueError(f"conditions must be a list or keys with values, not {_shown(given)}")


def is_comparison(text: object) -> bool:
    """Tell whether a value of a configuration reads as a comparison of numbers."""
    return isinstance(text, str) and bool(_COMPARISON.match(text))


def _all_of(given: object) -> Condition:
    if not isinstance(given, dict):
        raise ValueError(f"a condition must be keys with values, not {_shown(given)}")
    return AllOf(tuple(_condition(key, value) for key, value in given.items()))


def _condition(key: object, value: object) -> Condition:
    name = key if isinstance(key, str) else str(key)
    if name == EXCEPT:
        return Not(AnyOfKnown(tuple(map(_all_of, value))) if isinstance(value, list) else _all_of(value))
    if isinstance(value, list):
        return OneOf(name, tuple(value))
    found = _COMPARISON.match(value) if isinstance(value, str) else None
    return _comparison(name, found[1], found[2]) if found else OneOf(name, (value,))


def _comparison(key: str, relation: str, text: str) -> Comparison:
    if relation not in _OPERATORS:
        meant = f"; use one of {' '.join(_OPERATORS)}"
        raise ValueError(f"the condition of {key} begins with {relation!r}, which compares nothing{meant}")
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise ValueError(f"the condition of {key} compares with no number: {_shown(relation + text)}")
    return Comparison(key, relation, number)


def _value(metadata: Mapping[str, Any], key: str) -> Any:
    try:
        return metadata[key]
    except KeyError:
        raise MissingKey(f"there is no {key}") from None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."
