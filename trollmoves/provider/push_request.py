"""Push requests, parsed and checked once when they are received."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trollmoves.errors import RequestRejected
from trollmoves.messaging import payload
from trollmoves.messaging.messages import Message
from trollmoves.net.destination_allowlist import DestinationPattern
from trollmoves.provider.destinations import PushDestination, resolve_destination

MAX_BACKUP_TARGETS = 16  # alternative hosts of one request


@dataclass(frozen=True, slots=True)
class PushRequest:
    """A push request of valid form. Its announcement and its destination are checked separately."""

    message: Message
    files: list[dict[str, Any]]
    """The dictionaries that describe the files; each ``uri`` is a string, each ``path`` stays below the destination."""
    announcement: dict[str, Any]
    """``log`` and ``number`` of the announcement; {} from legacy clients."""
    id: str | None
    timeout: float
    """Seconds that the client waits for a reply; 0 for clients that do not accept "wait"."""
    unless_delivered_to: list[Any]
    """Clients after whose delivery this client no longer needs the files."""
    destination: str
    subpaths: list[str]
    backup_targets: list[str]

    @classmethod
    def parse(cls, message: Message) -> PushRequest:
        """Parse a message; raise RequestRejected if its form is invalid."""
        data = message.data
        files = requested_files(data)
        destination = data.get("destination")
        if not isinstance(destination, str):
            raise RequestRejected("a push request must name a destination")
        subpaths = [item["path"] for item in files if item.get("path") is not None]
        for path in subpaths:
            if not isinstance(path, str) or payload.escapes_directory(path):
                raise RequestRejected(f"{path!r:.100} must be a path below the destination")
        metadata = payload.request_metadata(data)
        return cls(
            message,
            files,
            payload.announcement_metadata(data),
            metadata.get("id"),
            metadata.get("timeout", 0.0),
            metadata.get("unless_delivered_to", []),
            destination,
            subpaths,
            _backup_targets(data),
        )

    @property
    def uris(self) -> list[str]:
        """The URIs of the files."""
        return [item["uri"] for item in self.files]

    @property
    def file_names(self) -> str:
        """The base names of the files, for log lines."""
        return ", ".join(map(payload.file_name, self.uris))

    def resolve_destination(self, allowed: tuple[DestinationPattern, ...]) -> PushDestination:
        """Return the destination; raise RequestRejected or BadDestination if it is invalid or not allowed."""
        return resolve_destination(self.destination, allowed, self.subpaths, self.backup_targets)


def requested_files(data: Any) -> list[dict[str, Any]]:
    """Return the dictionaries that describe the files of a request; raise RequestRejected if its form is invalid."""
    if not isinstance(data, dict):
        raise RequestRejected("the data of a request must be a dictionary")
    files = payload.file_items(data)
    if not files or not all(isinstance(item["uri"], str) for item in files):
        raise RequestRejected("a request must name at least one file by a string")
    return files


def _backup_targets(data: dict[str, Any]) -> list[str]:
    found = data.get("backup_targets") or []
    if not isinstance(found, list) or len(found) > MAX_BACKUP_TARGETS or not all(isinstance(one, str) for one in found):
        raise RequestRejected(f"the backup targets must be a list of at most {MAX_BACKUP_TARGETS} hosts")
    return found
