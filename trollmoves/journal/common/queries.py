"""How the statements that all engines share are executed.

They have ``?`` for each parameter, an alias for each subquery, and the indices that SQLite shall use (``INDEXED BY``).
An engine with other rules translates them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar


class Queries(ABC):
    """The queries of one engine; JournalError if one fails."""

    GLOB: ClassVar[str] = "GLOB"  # operator for the patterns of ``glob``
    CHAINS: ClassVar[str] = (  # the chains with announcements, by a loose index scan, because there may be a million
        "WITH RECURSIVE chains (chain) AS (SELECT min(chain) FROM announcements UNION ALL SELECT (SELECT min(chain) "
        "FROM announcements a WHERE a.chain > chains.chain) FROM chains WHERE chains.chain IS NOT NULL) "
        "SELECT chain FROM chains WHERE chain IS NOT NULL"
    )

    @abstractmethod
    def now(self) -> float: ...

    @abstractmethod
    def _read(self, statement: str, parameters: Sequence[Any] = ()) -> list[Any]:
        """Return the rows of a query."""

    @staticmethod
    def glob(pattern: str, *, brackets: bool) -> str:
        """Return a pattern with ``*``, ``?`` and ``[...]`` as in a shell, for the operator ``GLOB``.

        ``brackets``: whether ``[`` begins a set.
        """
        return pattern if brackets else pattern.replace("[", "[[]")

    def glob_condition(self, columns: Sequence[str], patterns: Sequence[str], name: str) -> tuple[str, list[str]]:
        """Return the SQL condition that one column matches its pattern, and the parameters.

        The patterns contain ``name``, of which ``*`` and ``?`` make a pattern; otherwise the name is literal.
        """
        brackets = "*" in name or "?" in name
        condition = " OR ".join(f"{column} {self.GLOB} ?" for column in columns)
        return f"({condition})", [self.glob(pattern, brackets=brackets) for pattern in patterns]


class OpenQueries(Queries):
    """The queries and changes of a journal that is open for writing."""

    @abstractmethod
    def _reading(self) -> AbstractContextManager[Callable[..., list[Any]]]:
        """Return a context with a function (statement, parameters) for queries that delay no other thread."""

    def _read_many(self, statement: str, parameters: Sequence[Any]) -> list[Any]:
        """Return the rows of a query that scans many rows; it delays no other thread."""
        with self._reading() as read:
            return read(statement, parameters)

    @abstractmethod
    def _write(self, statement: str, parameters: Sequence[Any]) -> None:
        """Execute one statement in a transaction."""


def prefix_range(prefix: str) -> tuple[str, str]:
    """Return the first text that begins with a prefix, and the first one after all of these."""
    return prefix, prefix[:-1] + chr(ord(prefix[-1]) + 1)


def placeholders(values: Collection[object]) -> str:
    """Return the placeholders of values for ``IN``, which is not true for an empty list."""
    return ", ".join("?" * len(values)) or "NULL"
