"""Push requests, parsed and checked once when they are received."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import Any

from trollmoves.errors import RequestRejected
from trollmoves.messaging import payload
from trollmoves.messaging.messages import Message
from trollmoves.net import urls
from trollmoves.net.destination_allowlist import DestinationPattern, check_allowed
from trollmoves.provider.destinations import PushDestination, resolve_url

MAX_BACKUP_TARGETS = 16  # alternative hosts of one request


@dataclass(frozen=True, slots=True)
class PushRequest:
    """A push request of valid form. Its announcement and its destination are checked separately."""

    message: Message
    files: list[dict[str, Any]]  # each ``uri`` is a string, each ``path`` stays below the destination
    announcement: dict[str, Any]  # ``log`` and ``number`` of the announcement; {} from legacy clients
    destination: str
    backup_targets: list[str]
    id: str | None = None
    timeout: float = 0.0  # s that the client waits for a reply; 0 for clients that do not accept "wait"
    unless_delivered_to: list[Any] | tuple[()] = ()  # after a delivery to one of these clients, none is needed

    @classmethod
    def parse(cls, message: Message) -> PushRequest:
        """Parse a message; raise RequestRejected if its form is invalid."""
        data = message.data
        files, metadata = requested_files(data), payload.request_metadata(data)
        destination, backups = data.get("destination"), data.get("backup_targets") or []
        if not isinstance(destination, str):
            raise RequestRejected("a push request must name a destination")
        for item in files:
            if (path := item.get("path")) is not None and (
                not isinstance(path, str) or payload.escapes_directory(path)
            ):
                raise RequestRejected(f"{path!r:.100} must be a path below the destination")
        if (
            not isinstance(backups, list)
            or len(backups) > MAX_BACKUP_TARGETS
            or not all(isinstance(host, str) for host in backups)
        ):
            raise RequestRejected(f"the backup targets must be a list of at most {MAX_BACKUP_TARGETS} hosts")
        extras = {key: metadata[key] for key in ("id", "timeout", "unless_delivered_to") if key in metadata}
        return cls(message, files, payload.announcement_metadata(data), destination, backups, **extras)

    @property
    def uris(self) -> list[str]:
        """The URIs of the files."""
        return [item["uri"] for item in self.files]

    @property
    def file_names(self) -> str:
        """The base names of the files, for log lines."""
        return ", ".join(map(payload.file_name, self.uris))

    def targets(self, destination: PushDestination) -> dict[str, dict[str, Any]]:
        """Return the requested files by their final URLs, without passwords, and their own URIs."""
        base = destination.without_password.rstrip("/")
        return {
            f"{base}/{str(item.get('path') or '').strip('/')}/{os.path.basename(item['uri'])}\n{item['uri']}": item
            for item in self.files
        }

    def turn(self, destination: PushDestination) -> str:
        """Return the turn of the task: pushes to one final name run one after the other."""
        item = self.files[0]
        path = f"{destination.without_password}\n{item.get('path') or ''}\n{os.path.basename(item['uri'])}"
        return hashlib.sha256(path.encode("utf-8", "backslashreplace")).hexdigest()[:32]

    def resolve_destination(self, allowed: tuple[DestinationPattern, ...]) -> PushDestination:
        """Return the destination; raise BadDestination or AccessDenied if it is invalid or not allowed."""
        resolved = resolve_url(self.destination, allowed)
        subpaths = [item["path"] for item in self.files if item.get("path") is not None]
        if subpaths:
            check_allowed(allowed, resolved.directory, subpaths)
        for host in self.backup_targets:
            check_allowed(allowed, urls.with_host(resolved.directory, host), subpaths)
        return resolved


def requested_files(data: Any) -> list[dict[str, Any]]:
    """Return the dictionaries that describe the files of a request; raise RequestRejected if its form is invalid."""
    if not isinstance(data, dict):
        raise RequestRejected("the data of a request must be a dictionary")
    files = payload.file_items(data)
    if not files or not all(isinstance(item["uri"], str) for item in files):
        raise RequestRejected("a request must name at least one file by a string")
    return files
