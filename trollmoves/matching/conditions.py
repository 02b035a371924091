"""Conditions on the metadata of messages.

Conditions are parsed once, from the dictionaries, lists and values of a configuration, and evaluated for each message.
Nothing in them is executed.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from trollmoves.matching.received_time import text_of

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
_MAX_REPR = 80  # characters of a value in a text; messages may contain long ones


class MissingKey(Exception):
    """A condition cannot be evaluated, because a key is missing or its value is not a number: it does not match."""


class Condition(Protocol):
    """A condition on metadata."""

    def mismatch_reason(self, metadata: Mapping[str, Any]) -> str:
        """Return the reason of a mismatch, empty for a match. Raises MissingKey if it cannot be evaluated."""


@dataclass(frozen=True)
class OneOf:
    """The value is equal to one of these."""

    key: str
    values: tuple[object, ...]

    def mismatch_reason(self, metadata: Mapping[str, Any]) -> str:
        """Compare."""
        value = _value(metadata, self.key)
        if value in self.values or text_of(value) in self.values:
            return ""
        listed = ", ".join(map(_short_repr, self.values))
        return f"{self.key} is {_short_repr(value)}, not {f'one of {listed}' if len(self.values) != 1 else listed}"


@dataclass(frozen=True)
class Comparison:
    """The value, a number, compares to ``number`` by an operator such as ``<``."""

    key: str
    operator: str
    number: float

    def mismatch_reason(self, metadata: Mapping[str, Any]) -> str:
        """Compare."""
        value = _value(metadata, self.key)
        try:
            number = float(text_of(value))
        except (TypeError, ValueError, OverflowError):
            raise MissingKey(f"{self.key} is {_short_repr(value)}, not a number") from None
        if _OPERATORS[self.operator](number, self.number):
            return ""
        return f"{self.key} is {_short_repr(value)}, not {self.operator} {self.number:g}"


@dataclass(frozen=True)
class AllOf:
    """All of these match; evaluated in order."""

    conditions: tuple[Condition, ...]

    def mismatch_reason(self, metadata: Mapping[str, Any]) -> str:
        """Return the reason of the first mismatch."""
        return next(filter(None, (condition.mismatch_reason(metadata) for condition in self.conditions)), "")


@dataclass(frozen=True)
class Not:
    """The condition does not match, although all its keys exist."""

    condition: Condition

    def mismatch_reason(self, metadata: Mapping[str, Any]) -> str:
        """Negate."""
        return "" if self.condition.mismatch_reason(metadata) else f"the conditions of {EXCEPT} match"


@dataclass(frozen=True)
class AnyOfKnown:
    """At least one of these matches, and all of them can be evaluated."""

    conditions: tuple[Condition, ...]

    def mismatch_reason(self, metadata: Mapping[str, Any]) -> str:
        """Look for the first one that holds."""
        reasons = [condition.mismatch_reason(metadata) for condition in self.conditions]
        return "" if "" in reasons else "; ".join(reasons) or "none"


@dataclass(frozen=True)
class Conditions:
    """The conditions of a configuration: at least one of them must match. Comparable, immutable and thread-safe.

    A condition that cannot be evaluated does not match.
    """

    conditions: tuple[Condition, ...]

    def mismatch_reason(self, metadata: Mapping[str, Any]) -> str:
        """Return the reason why metadata do not match, empty if they match. Never raises."""
        reasons = []
        for condition in self.conditions:
            try:
                reason = condition.mismatch_reason(metadata)
            except MissingKey as error:
                reason = str(error)
            if not reason:
                return ""
            reasons.append(reason)
        return "; ".join(reasons) or "an empty list of conditions matches nothing"


def parse_conditions(value: object) -> Conditions:
    """Parse the conditions of a configuration.

    A list means any of its items, a dictionary all of its items. In a dictionary, a list means one of its values, a
    text that begins with one of ``< > = !`` compares numbers, ``except`` negates the conditions in it, and any other
    value must be equal, including its type.

    Raises:
        ValueError: a condition is invalid; the error names it and the reason.
    """
    if isinstance(value, list):
        return Conditions(tuple(map(_all_of, value)))
    if isinstance(value, dict):
        return Conditions((_all_of(value),) if value else ())
    raise ValueError(f"conditions must be a list or keys with values, not {_short_repr(value)}")


def is_comparison(text: object) -> bool:
    """Return True if a value of a configuration is a comparison of numbers."""
    return isinstance(text, str) and bool(_COMPARISON.match(text))


def _all_of(value: object) -> Condition:
    if not isinstance(value, dict):
        raise ValueError(f"a condition must be keys with values, not {_short_repr(value)}")
    return AllOf(tuple(_condition(key, item) for key, item in value.items()))


def _condition(key: object, value: object) -> Condition:
    name = key if isinstance(key, str) else str(key)
    if name == EXCEPT:
        return Not(AnyOfKnown(tuple(map(_all_of, value))) if isinstance(value, list) else _all_of(value))
    if isinstance(value, list):
        return OneOf(name, tuple(value))
    found = _COMPARISON.match(value) if isinstance(value, str) else None
    return _comparison(name, found[1], found[2]) if found else OneOf(name, (value,))


def _comparison(key: str, symbol: str, text: str) -> Comparison:
    if symbol not in _OPERATORS:
        raise ValueError(
            f"the condition of {key} begins with the unknown operator {symbol!r}; use one of {' '.join(_OPERATORS)}"
        )
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise ValueError(f"the condition of {key} must compare with a number: {_short_repr(symbol + text)}")
    return Comparison(key, symbol, number)


def _value(metadata: Mapping[str, Any], key: str) -> Any:
    try:
        return metadata[key]
    except KeyError:
        raise MissingKey(f"{key} is missing") from None


def _short_repr(value: object) -> str:
    text = repr(text_of(value))
    return text if len(text) <= _MAX_REPR else f"{text[: _MAX_REPR - 3]}..."
