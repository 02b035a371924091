"""The request addresses of the servers of a fleet: each of them serves the files in their common log."""

from __future__ import annotations

from collections.abc import Sequence

from trollmoves.messaging import payload

MAX_MEMBERS = 100  # of one log, as one provider names them
MAX_LOGS = 10_000


class FleetAddresses:
    """The addresses of living members by log, as the heartbeats of the members name them. Any thread."""

    def __init__(self) -> None:
        self._members: dict[str, dict[str, Sequence[str]]] = {}  # by log and provider; the inner ones are replaced
        self._count = 0

    def __bool__(self) -> bool:
        return bool(self._members)

    def update(self, provider: str, log: str, members: object) -> Sequence[str]:
        """Record the members of a log in a heartbeat, which may be invalid; return their addresses. One thread."""
        if not isinstance(members, list):
            return ()
        addresses = tuple(filter(payload.is_address, members[:MAX_MEMBERS]))
        known = self._members.get(log, {})
        if addresses and (provider in known or self._count < MAX_LOGS):
            self._count += provider not in known
            self._members[log] = known | {provider: addresses}
        return addresses

    def others(self, source: str, log: str) -> list[str]:
        """Return the addresses of the members with a log, without ``source``; none if its server is alone."""
        known = dict.fromkeys(member for members in self._members.get(log, {}).values() for member in members)
        return [member for member in known if member != source]
