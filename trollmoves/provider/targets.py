"""Where requests want their files, and whether they may go there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import ParseResult

from trollmoves import hosts, urls
from trollmoves.allowed_destinations import Place, checked
from trollmoves.errors import RequestRefused
from trollmoves.messaging import contents

MOST_BACKUPS = 16  # hosts of one request, each of which may be tried


@dataclass(frozen=True, slots=True)
class Target:
    """A destination, and what is made of it for each request."""

    directory: ParseResult
    without_login: str
    lane: str
    local: str  # the directory on this host; empty when it is on another one


def target_of(data: dict[str, Any], allowed: tuple[Place, ...]) -> Target:
    """Read where a request wants its files; RequestRefused, or BadDestination, when they may not go there."""
    destination = data.get("destination")
    if not isinstance(destination, str):
        raise RequestRefused("a push needs a destination")
    target = _target(destination, allowed)
    below = [item["path"] for item in contents.items(data) if item.get("path") is not None]
    for path in below:
        if not isinstance(path, str) or contents.climbs(path):
            raise RequestRefused(f"{path!r:.100} is no path below the destination")
    if below:
        checked(allowed, target.directory, below)
    for backup in backup_targets(data):
        checked(allowed, urls.at_host(target.directory, backup), below)
    return target


def backup_targets(data: dict[str, Any]) -> list[str]:
    """Give the hosts that a request names beside that of its destination; RequestRefused when these are none."""
    found = data.get("backup_targets") or []
    if not isinstance(found, list) or len(found) > MOST_BACKUPS or not all(isinstance(one, str) for one in found):
        raise RequestRefused(f"the backup targets must be a list of at most {MOST_BACKUPS} hosts")
    return found


@lru_cache(maxsize=256)
def _target(destination: str, allowed: tuple[Place, ...]) -> Target:
    """Read a destination: the same few come with every request. BadDestination when it is none, or RequestRefused."""
    url = urls.parse(destination)
    if not url.path.startswith("/"):
        raise RequestRefused(f"the destination {urls.printable(url)} is no absolute path")
    url = checked(allowed, url)
    host = url.hostname or ""
    here = url.scheme == "file" and hosts.is_local(host)
    return Target(
        url._replace(path=url.path.rstrip("/") + "/"),  # a push always names a directory
        urls.without_login(url),
        f"push {'this host' if here else host}",
        url.path if here else "",
    )
