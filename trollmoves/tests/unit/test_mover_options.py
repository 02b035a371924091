"""The connection parameters: their types and their description."""

from __future__ import annotations

from pathlib import Path

import pytest

import trollmoves
from trollmoves.errors import ConfigError
from trollmoves.movers import options


def test_texts_are_read() -> None:
    """A text from an INI file is converted to the option's type; a missing one is the default."""
    given = {"connection_uptime": "12.5", "hard_link": "Yes", "fsync": "0", "max_connections": "2", "use_ssl": False}
    assert options.value(given, "connection_uptime") == 12.5
    assert options.value(given, "hard_link") is True
    assert options.value(given, "fsync") is False
    assert options.value(given, "max_connections") == 2
    assert options.value(given, "use_ssl") is False
    assert options.value({}, "num_ssh_retries") == 3


def test_old_spellings() -> None:
    """The old spelling of an option goes before the new one's default."""
    assert options.first_set({"ssh_connection_timeout": "7"}, "ssh_connection_timeout", "connection_timeout") == 7
    assert options.first_set({"connection_timeout": 8}, "ssh_connection_timeout", "connection_timeout") == 8
    assert options.first_set({}, "ssh_connection_timeout", "connection_timeout") == 20


@pytest.mark.parametrize(
    ("name", "value"), [("max_connections", "many"), ("hard_link", "perhaps"), ("client_kwargs", 5)]
)
def test_nonsense_is_named_without_its_value(name: str, value: object) -> None:
    """A value of another type is an error that names the option, and keeps the value, which may be a secret."""
    with pytest.raises(ConfigError, match=name) as caught:
        options.value({name: value}, name)
    assert str(value) not in str(caught.value)


def test_unknown_names_are_found() -> None:
    """What no mover understands is found."""
    assert options.unknown_names({"key": "x", "default_fill_cache": 1, "cache_regions": True}) == [
        "cache_regions",
        "default_fill_cache",
    ]


def test_every_option_is_documented() -> None:
    """Each option is listed in the table of ``doc/movers.md`` with its help."""
    text = (Path(trollmoves.__file__).parent.parent / "doc" / "movers.md").read_text()
    for option in options.OPTIONS:
        assert f"| `{option.name}` |" in text
        assert option.help in text
