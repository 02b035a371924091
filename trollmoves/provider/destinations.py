"""Destinations of push requests, checked against the allowed destinations."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import ParseResult

from trollmoves.errors import BadDestination
from trollmoves.net import hosts, urls
from trollmoves.net.destination_allowlist import DestinationPattern, check_allowed


@dataclass(frozen=True, slots=True)
class PushDestination:
    """A destination directory, with the values derived from its URL."""

    directory: ParseResult
    without_login: str
    without_password: str  # identifies the destination: users of one host may have different home directories
    lane: str
    local_directory: str  # the path on this host; empty for a remote destination


@lru_cache(maxsize=256)  # clients send the same few URLs with every request
def resolve_url(destination: str, allowed: tuple[DestinationPattern, ...]) -> PushDestination:
    """Return the destination for a URL; raise BadDestination or AccessDenied if it is invalid or not allowed."""
    url = urls.parse(destination)
    if not url.path.startswith("/"):
        raise BadDestination(f"the path of the destination {urls.redacted(url)} must be absolute")
    url = check_allowed(allowed, url)
    is_local = url.scheme == "file" and hosts.is_local(url.hostname or "")
    return PushDestination(
        url._replace(path=url.path.rstrip("/") + "/"),  # the destination of a push is always a directory
        urls.without_login(url),
        urls.without_password(url),
        f"push {'this host' if is_local else urls.endpoint(url)}",
        url.path if is_local else "",
    )
