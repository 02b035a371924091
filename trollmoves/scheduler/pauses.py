"""Pauses by an operator: of a chain, or of a destination or source."""

from __future__ import annotations

from collections.abc import Collection, Iterable

MAX_NAMES = 5  # names in an error
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


def lanes_named(name: str, lanes: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return the (chain, lane) that a chain, destination or source is the name of."""
    named = Pauses([name])
    return {(chain, lane) for chain, lane in lanes if named.covers(chain, lane)}


def ended_by(
    name: str, pauses: Iterable[str], sections: Collection[str], lanes: Collection[tuple[str, str]]
) -> list[str]:
    """Return the pauses that ``resume NAME`` ends: of this name, or of destinations that are all named by it.

    Args:
        name: a chain, destination or source.
        pauses: the names of the pauses in effect.
        sections: the names of all chains.
        lanes: the known (chain, lane).
    """

    def is_included(pause: str) -> bool:
        if name in sections or pause in sections:
            return False
        own = lanes_named(pause, lanes)
        return own <= lanes_named(name, lanes) if own else name in names_of(pause)

    return [pause for pause in pauses if pause == name or is_included(pause)]


def unknown_name(name: str, sections: Iterable[str], lanes: Iterable[tuple[str, str]]) -> str:
    """Return the text of the error about a name that neither a chain nor a destination or source has."""
    names = sorted({*sections, *(endpoint for _, lane in lanes if (endpoint := lane_endpoint(lane)))})
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    known = f"; known are {', '.join(names[:MAX_NAMES])}{more}" if names else ""
    return f"no section and no destination is named {name}{known}"


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
