"""The queries that all engines share, on PostgreSQL."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

from trollmoves.journal.common.queries import Queries
from trollmoves.journal.postgresql.database import PostgresDatabase

_INDEX = re.compile(r" INDEXED BY \w+")


class PostgresQueries(Queries):
    """Executes the shared statements."""

    GLOB = "~"
    CHAINS = "SELECT chain FROM logs ORDER BY chain"

    _database: PostgresDatabase

    def now(self) -> float:
        return self._database.now()

    def _read(self, statement: str, parameters: Sequence[Any] = ()) -> list[Any]:
        return self._database.read(translated(statement), parameters)

    def _reading(self) -> AbstractContextManager[Callable[..., list[Any]]]:
        return nullcontext(self._read)

    def _read_until(
        self, statement: str, parameters: Sequence[Any], enough: Callable[[Sequence[object]], bool]
    ) -> list[Any]:
        return self._database.stream(translated(statement), parameters, enough)

    def _write(self, statement: str, parameters: Sequence[Any]) -> None:
        self._database.run_statement(lambda db: db.execute(translated(statement).encode(), parameters))

    @staticmethod
    def glob(pattern: str, *, brackets: bool) -> str:
        parts, rest = [], pattern
        while rest:
            end = rest.find("]", 2) if brackets and rest[0] == "[" else -1
            if end > 0:
                inner = rest[1:end].replace("\\", "\\\\")
                parts.append(f"[{inner}]")
                rest = rest[end + 1 :]
                continue
            parts.append({"*": ".*", "?": "."}.get(rest[0]) or _escaped(rest[0]))
            rest = rest[1:]
        return f"^(?:{''.join(parts)})$"


@cache
def translated(statement: str) -> str:
    """Return a shared statement in the syntax of PostgreSQL."""
    return _INDEX.sub("", statement).replace("?", "%s")


def _escaped(character: str) -> str:
    return character if character.isalnum() or character in "_/ \n-" else f"\\{character}"
