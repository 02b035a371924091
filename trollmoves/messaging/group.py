"""Groups: several files of one log for one destination, in one request with one reply."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

MAX_FILES = 64  # of one group


@dataclass(slots=True)
class Group:
    """The files of a group request, by the numbers of their announcements, each with the id of its request."""

    log: str
    ids: dict[int, str]
    destination: str
    backup_targets: list[str] = field(default_factory=list)
    timeout: float = 0.0

    def data(self) -> dict[str, Any]:
        """Return the data of the request."""
        first = next(iter(self.ids.values()))
        return {
            "destination": self.destination,
            "backup_targets": self.backup_targets,
            "group": {"log": self.log, "files": [[number, id_] for number, id_ in self.ids.items()]},
            "request": {"id": first, "timeout": self.timeout},
        }

    @classmethod
    def load(cls, data: Any) -> Self:
        """Return the group in the data of a request."""
        group = data["group"]
        return cls(
            group["log"],
            {number: id_ for number, id_ in group["files"]},
            data["destination"],
            data["backup_targets"],
            data["request"]["timeout"],
        )
