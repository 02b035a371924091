"""The sections of a configuration file, as far as a snapshot needs them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from trollmoves.config.config_file import Configuration
from trollmoves.config.options import ChainOptions, ClientOptions
from trollmoves.status.snapshot import Section


def sections_of(configuration: Configuration[Any] | None, names: Iterable[str], problem: str = "") -> list[Section]:
    """Return the sections with these names; ``problem`` is the reason if the whole file is invalid."""
    valid = configuration.sections if configuration else {}
    broken = configuration.broken if configuration else {}
    found = []
    for name in names:
        if name in valid:
            found.append(_section(valid[name]))
        else:
            found.append(Section(name, str(broken[name]) if name in broken else problem or "not valid"))
    return found


def _section(options: ChainOptions) -> Section:
    addresses: tuple[str, ...] = ()
    if isinstance(options, ClientOptions):
        addresses = tuple(dict.fromkeys(one.address for one in options.providers))
    expect_every, max_age = (float(getattr(options, name, 0) or 0) for name in ("expect_every", "max_age"))
    return Section(options.name, providers=addresses, expect_every=expect_every, max_age=max_age)
