"""Destinations of push requests, checked against the allowed destinations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import ParseResult

from trollmoves.errors import RequestRejected
from trollmoves.net import hosts, urls
from trollmoves.net.destination_allowlist import DestinationPattern, check_allowed


@dataclass(frozen=True, slots=True)
class PushDestination:
    """A destination directory, with the values derived from its URL."""

    directory: ParseResult
    without_login: str
    lane: str
    local_directory: str  # the path on this host; empty for a remote destination


def resolve_destination(
    destination: str,
    allowed: tuple[DestinationPattern, ...],
    subpaths: Iterable[str] = (),
    backup_targets: Iterable[str] = (),
) -> PushDestination:
    """Return the destination for a URL; raise RequestRejected or BadDestination if it is invalid or not allowed.

    Each of the ``backup_targets``, hosts that replace the host of the URL, must be allowed as well.
    """
    resolved = _resolve(destination, allowed)
    if subpaths:
        check_allowed(allowed, resolved.directory, subpaths)
    for host in backup_targets:
        check_allowed(allowed, urls.with_host(resolved.directory, host), subpaths)
    return resolved


@lru_cache(maxsize=256)  # clients send the same few URLs with every request
def _resolve(destination: str, allowed: tuple[DestinationPattern, ...]) -> PushDestination:
    url = urls.parse(destination)
    if not url.path.startswith("/"):
        raise RequestRejected(f"the path of the destination {urls.redacted(url)} must be absolute")
    url = check_allowed(allowed, url)
    host = url.hostname or ""
    is_local = url.scheme == "file" and hosts.is_local(host)
    return PushDestination(
        url._replace(path=url.path.rstrip("/") + "/"),  # the destination of a push is always a directory
        urls.without_login(url),
        f"push {'this host' if is_local else host}",
        url.path if is_local else "",
    )
