"""One order of an operator, as it is sent, stored and logged."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from trollmoves.errors import TrollmovesError

PAUSE, RESUME, RELEASE, RETRY, RESEND, DROP = "pause", "resume", "release", "retry", "resend", "drop"
ACTIONS = (PAUSE, RESUME, RELEASE, RETRY, RESEND, DROP)
OF_A_LANE = (PAUSE, RESUME, RELEASE)  # actions that name a chain or a destination
MAX_TEXT = 4096  # characters of each value


class OrderRejected(TrollmovesError):
    """An order cannot be carried out; the text names the value and the remedy."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """An order.

    ``name`` is a chain or destination (pause, resume, release). The others concern the tasks of ``file`` (a name, a
    path or a pattern), all ``failed`` ones, or those that finished after ``since`` (s since the epoch), in one
    ``chain`` or in all. ``to`` is another destination for ``resend``. ``by`` is the user, ``at`` the time.
    """

    action: str
    name: str = ""
    file: str = ""
    failed: bool = False
    since: float = 0.0
    to: str = ""
    chain: str = ""
    by: str = ""
    at: float = 0.0

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Order:
        """Return the order with these values; raise OrderRejected if they are invalid. Other values are ignored."""
        found = {item.name: values[item.name] for item in fields(cls) if item.name in values}
        for item in fields(cls):
            if not _TYPES[str(item.type)](found.get(item.name, item.default)):
                raise OrderRejected(f"{item.name} must be a {_NAMES[str(item.type)]}")
        order = cls(**found)
        order._check()
        return order

    def _check(self) -> None:
        if self.action not in ACTIONS:
            raise OrderRejected(f"unknown action {self.action!r:.40}: use one of {', '.join(ACTIONS)}")
        if self.action in OF_A_LANE:
            if not self.name:
                raise OrderRejected(f"{self.action} needs the name of a section or a destination")
        elif self.action == RESEND:
            if not (self.file or self.since):
                raise OrderRejected("resend needs a file, or a time since which files were delivered")
        elif bool(self.file) == self.failed:
            raise OrderRejected(f"{self.action} needs either a file or --failed")

    def dump(self) -> str:
        """Return the order as JSON for the journal."""
        return json.dumps({name: value for name, value in asdict(self).items() if value})

    @property
    def key(self) -> str:
        """The key of the order in the journal."""
        return f"{self.at:.6f} {self.action} {self.by}"

    def __str__(self) -> str:
        """Return the order for people."""
        since = time.strftime("since %Y-%m-%d %H:%M:%S", time.localtime(self.since)) if self.since else ""
        parts = (
            *(self.action, self.name, self.file, "all failed files" if self.failed else "", since),
            f"of [{self.chain}]" if self.chain else "",
            f"to {self.to}" if self.to else "",
        )
        return " ".join(filter(None, parts))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e12


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT and "\0" not in value


_TYPES: Mapping[str, Callable[[object], bool]] = {
    "str": _is_text,
    "bool": lambda value: isinstance(value, bool),
    "float": _is_number,
}
_NAMES = {"str": f"text of at most {MAX_TEXT} characters", "bool": "truth value", "float": "number of seconds"}
