"""Declarations of options: each field of an ``OptionTable`` is one option."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from functools import partial
from typing import NamedTuple, TypeVar, cast

T = TypeVar("T")


class Option(NamedTuple):
    """The declaration of one option."""

    parse: Callable[[str], object]
    default: str | None  # as text in a file; None without a default
    help: str
    required: bool = False
    secret: bool = False
    if_empty: str = ""  # the meaning of an option without a value; with an empty text it counts as absent


def option(parse: Callable[[str], T], default: str, help_text: str) -> T:
    """Return the field of an option with a default, given as text in a file."""
    return cast(T, option_field(Option(parse, default, help_text)))


def required(parse: Callable[[str], T], help_text: str) -> T:
    """Return the field of an option without which a section is invalid."""
    return cast(T, option_field(Option(parse, "", help_text, required=True)))


def optional(parse: Callable[[str], T], help_text: str, *, secret: bool = False) -> T | None:
    """Return the field of an option that is None by default."""
    return cast(T | None, option_field(Option(parse, None, help_text, secret=secret)))


def option_field(option: Option) -> object:
    """Return the field of an option."""
    default = (lambda: None) if option.default is None else partial(option.parse, option.default)
    return field(default_factory=default, metadata={"option": option})


@dataclass(frozen=True, kw_only=True, repr=False)
class OptionTable:
    """Base class of all tables: one instance contains the validated options of one section."""

    def details(self) -> Iterable[tuple[str, object]]:
        """Return names and values that ``--check`` shows in addition to the options."""
        return ()


def options_of(role: type[OptionTable]) -> dict[str, Option]:
    """Return the options of a role by name, those of the class before inherited ones."""
    found = {item.name: item.metadata["option"] for item in fields(role) if "option" in item.metadata}
    own = [name for name in found if name in inspect.get_annotations(role)]
    return {name: found[name] for name in [*own, *(name for name in found if name not in own)]}


def takes_parameters(role: type[OptionTable]) -> bool:
    """Return True if sections of this role have connection parameters."""
    return "connection_parameters" in {item.name for item in fields(role)}
