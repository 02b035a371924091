"""Where requests want their files, and whether they may go there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import ParseResult

from trollmoves.errors import RequestRejected
from trollmoves.messaging import payload
from trollmoves.net import hosts, urls
from trollmoves.net.destination_allowlist import DestinationPattern, check_allowed

MAX_BACKUP_TARGETS = 16  # hosts of one request, each of which may be tried


@dataclass(frozen=True, slots=True)
class PushDestination:
    """A destination, and what is made of it for each request."""

    directory: ParseResult
    without_login: str
    lane: str
    local_directory: str  # the directory on this host; empty when it is on another one


def parse_destination(data: dict[str, Any], allowed: tuple[DestinationPattern, ...]) -> PushDestination:
    """Read where a request wants its files; RequestRefused, or BadDestination, when they may not go there."""
    destination = data.get("destination")
    if not isinstance(destination, str):
        raise RequestRejected("a push needs a destination")
    target = _target(destination, allowed)
    below = [item["path"] for item in payload.file_items(data) if item.get("path") is not None]
    for path in below:
        if not isinstance(path, str) or payload.escapes_directory(path):
            raise RequestRejected(f"{path!r:.100} is no path below the destination")
    if below:
        check_allowed(allowed, target.directory, below)
    for backup in backup_targets(data):
        check_allowed(allowed, urls.with_host(target.directory, backup), below)
    return target


def backup_targets(data: dict[str, Any]) -> list[str]:
    """Give the hosts that a request names beside that of its destination; RequestRefused when these are none."""
    found = data.get("backup_targets") or []
    if not isinstance(found, list) or len(found) > MAX_BACKUP_TARGETS or not all(isinstance(one, str) for one in found):
        raise RequestRejected(f"the backup targets must be a list of at most {MAX_BACKUP_TARGETS} hosts")
    return found


@lru_cache(maxsize=256)
def _target(destination: str, allowed: tuple[DestinationPattern, ...]) -> PushDestination:
    """Read a destination: the same few come with every request. BadDestination when it is none, or RequestRefused."""
    url = urls.parse(destination)
    if not url.path.startswith("/"):
        raise RequestRejected(f"the destination {urls.redacted(url)} is no absolute path")
    url = check_allowed(allowed, url)
    host = url.hostname or ""
    here = url.scheme == "file" and hosts.is_local(host)
    return PushDestination(
        url._replace(path=url.path.rstrip("/") + "/"),  # a push always names a directory
        urls.without_login(url),
        f"push {'this host' if here else host}",
        url.path if here else "",
    )
