"""The URL of a journal on PostgreSQL."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict

from trollmoves.errors import JournalUnusable

DEFAULT_SCHEMA = "trollmoves"
_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_SHOWN = ("host", "port", "target_session_attrs")
_DEFAULTS = {
    "connect_timeout": 2,  # s for each host
    "tcp_user_timeout": 5000,  # ms without an acknowledgement, after which a connection is lost
    "target_session_attrs": "read-write",  # of several hosts the primary
    "application_name": "trollmoves",
}


@dataclass(frozen=True)
class Location:
    """Where a journal is: parameters of libpq, the schema, and the file with the key for logins; ``path`` for people.

    Only ``parameters`` may contain a password.
    """

    parameters: dict[str, Any]
    schema: str
    key_file: str
    path: str


def parse_location(url: str) -> Location:
    """Return the location of ``postgresql://USER@HOST[,HOST]/DATABASE?schema=NAME&key_file=PATH``.

    All other parameters are those of libpq. JournalUnusable, without the URL in its text, if it is invalid.
    """
    base, _, query = url.partition("?")
    own = {"schema": DEFAULT_SCHEMA, "key_file": ""}
    rest = []
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in own:
            own[name] = value
        else:
            rest.append((name, value))
    if not _SCHEMA.fullmatch(own["schema"]):
        raise JournalUnusable(
            f"the schema {own['schema'][:64]!r} of the journal is invalid: it must be a lower-case name, as trollmoves"
        )
    try:
        given = conninfo_to_dict(f"{base}?{urlencode(rest)}" if rest else base)
    except ProgrammingError:
        raise JournalUnusable(
            "the URL of the journal is invalid: it must be postgresql://USER@HOST/DATABASE, special characters quoted"
        ) from None
    path = _without_secrets(given, own["schema"])
    parameters: dict[str, Any] = {**_DEFAULTS, **given}
    return Location(parameters, own["schema"], own["key_file"], path)


def _without_secrets(given: Mapping[str, Any], schema: str) -> str:
    """Return a URL for people, which also works where no password is needed."""
    user = f"{given['user']}@" if given.get("user") else ""
    shown = {name: str(given[name]) for name in _SHOWN if given.get(name)}
    query = urlencode({**shown, "schema": schema}, safe="/,:")
    return f"postgresql://{user}/{given.get('dbname') or ''}?{query}"
