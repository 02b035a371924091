"""Which sources of a file reply: one that failed comes last for a while, and another member of its fleet before it."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

from trollmoves.messaging import payload
from trollmoves.messaging.messages import Message
from trollmoves.receiver.fleet_addresses import FleetAddresses
from trollmoves.scheduler.circuit_breaker import backoff

FIRST_PAUSE = 5.0  # s after the first failure of a source


class AvailableSources:
    """The sources of one chain. Any thread."""

    def __init__(self, fleets: FleetAddresses) -> None:
        self._fleets = fleets
        self._down: dict[str, tuple[float, int]] = {}  # by source: end of backoff (monotonic), number of failures

    def record_failure(self, source: str) -> None:
        """Record that a source did not reply."""
        failures = self._down.get(source, (0.0, 0))[1] + 1
        self._down[source] = (time.monotonic() + backoff(failures, initial=FIRST_PAUSE), failures)

    def record_reply(self, source: str) -> None:
        """Record that a source replied."""
        self._down.pop(source, None)

    def available_first(self, sources: dict[str, Message | str]) -> dict[str, Message | str]:
        """Return announcements by source, those of available sources first."""
        if len(sources) > 1:
            sources = {source: sources[source] for source in sorted(sources, key=self._is_down)}
        if self._fleets:
            sources = {self.available(source, text): text for source, text in sources.items()}
        return sources

    def available(self, source: str, announcement: Message | str) -> str:
        """Return the address of a source, or of another member of its fleet if it does not reply."""
        if not (self._fleets and self._is_down(source) and (metadata := _metadata(announcement))):
            return source
        others = self._fleets.others(source, metadata["log"])
        return next((member for member in others if not self._is_down(member)), source)

    def other_member(self, source: str, log: str | None, requested_from: Collection[str]) -> str:
        """Return another member of the fleet that got no request yet; empty without one, or without a log."""
        others = self._fleets.others(source, log) if log else ()
        return next((member for member in others if member not in requested_from), "")

    def _is_down(self, source: str) -> bool:
        return self._down.get(source, (0.0, 0))[0] > time.monotonic()


def _metadata(announcement: Message | str) -> dict[str, Any]:
    if isinstance(announcement, Message):
        return payload.announcement_metadata(announcement.data)
    return payload.announcement_metadata_in(announcement)
