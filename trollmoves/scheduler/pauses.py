"""Pauses by an operator: of a chain, or of a destination or source."""

from __future__ import annotations

from collections.abc import Iterable

PAUSABLE = ("push", "fetch", "deliver")  # kinds of tasks, the first word of the name of a lane


def lane_endpoint(lane: str) -> str:
    """Return the destination or source of a lane of transfers, an empty string for other lanes."""
    kind, _, endpoint = lane.partition(" ")
    return endpoint if kind in PAUSABLE else ""


def names_of(endpoint: str) -> set[str]:
    """Return the names that select a destination or source: with or without scheme, user and port."""
    scheme, separator, netloc = endpoint.rpartition("://")
    host_and_port = netloc.rpartition("@")[2]
    host, colon, port = host_and_port.rpartition(":")
    netlocs = {netloc, host_and_port, host if colon and port.isdigit() else host_and_port}
    return netlocs | {f"{scheme}{separator}{name}" for name in netlocs}


def is_endpoint(name: str) -> bool:
    """Return True for ``scheme://host``, which may be paused before it is known."""
    scheme, separator, netloc = name.partition("://")
    return bool(scheme and separator and netloc) and "/" not in netloc


def is_known(name: str, lanes: Iterable[tuple[str, str]]) -> bool:
    """Return True if one of the (chain, lane) has this destination or source."""
    return any(name in names_of(endpoint) for _, lane in lanes if (endpoint := lane_endpoint(lane)))


class Pauses:
    """The names of paused chains, destinations and sources. Immutable."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.names = frozenset(names)

    def covers(self, chain: str, lane: str) -> bool:
        """Return True if the tasks of a lane must wait."""
        if not self.names:
            return False
        endpoint = lane_endpoint(lane)
        return bool(endpoint) and (chain in self.names or not self.names.isdisjoint(names_of(endpoint)))
