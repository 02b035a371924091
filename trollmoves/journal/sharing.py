"""The interface of a journal with tasks that several members of a fleet share: each one runs a part of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, Protocol


class LaneDemand(NamedTuple):
    """A lane of this member: ``limit`` is for the whole fleet, ``used`` what this member may use of it now.

    ``wants`` is True if the lane has tasks here.
    """

    chain: str
    lane: str
    limit: int
    used: int
    wants: bool


class Outage(NamedTuple):
    """An outage of a lane: the number of pauses since the last success, and the end of the last one (journal's time).

    ``held``: an operator must repair the cause.
    """

    failures: int
    paused_until: float
    held: bool


class WorkSource(Protocol):
    """The part of a scheduler that decides which new tasks this member holds. Any thread."""

    def is_shared(self, chain: str, kind: str) -> bool:
        """Return True if all members run the tasks of this kind, False if only the one that stored them does."""

    def is_requested(self, chain: str, kind: str) -> bool:
        """Return True if tasks of this kind are requested at one member, which runs them if it can."""

    def has_part(self, chain: str, lane: str) -> bool:
        """Return True if this member has a part of the limit of a lane."""

    def room(self, chain: str, lane: str) -> int:
        """Return how many further tasks of a lane this member can run soon."""

    def on_free(self, *, crowded: bool) -> None:
        """Record that tasks were stored that this member does not hold; ``crowded`` if for lack of room."""


class Sharing(Protocol):
    """The shared lanes of a fleet. Any thread; all methods except ``listen`` and ``attach`` raise JournalError."""

    def attach(self, source: WorkSource) -> None:
        """Set which new tasks this member holds; before, it holds all."""

    def listen(self, on_work: Callable[[], None]) -> None:
        """Call ``on_work`` on a separate thread when other members have stored tasks that no member holds."""

    def refresh(self) -> bool:
        """Read which members are present; return True if the last messages of a killed one are not repeated yet."""

    def set_address(self, chain: str, address: str | None) -> None:
        """Store the address (host:port) at which this member receives the requests of a chain; None if it has none."""

    def keep_files(self, chain: str, port: int | None) -> str:
        """Set whether this member has other files of a chain than others; ``port`` receives the requests for them.

        Return the place of the files, which is the same for each process with this host name and port. Then the journal
        gives only the announcements of this place, except by number; only members at this place run the tasks about
        them. If ``port`` is None, all members have the same files, and the place is empty.
        """

    def addresses(self, chain: str) -> list[str]:
        """Return these addresses of all members that work, as of the last ``refresh``; without I/O."""

    def is_first(self) -> bool:
        """Return True if this member has worked for the longest time of all that work."""

    def killed_addresses(self, chain: str) -> set[str]:
        """Return these addresses of the killed members that this one replaces."""

    def interrupted_numbers(self, chain: str, kind: str) -> set[int]:
        """Return the announcements of tasks that members held when they were killed, of those that this one replaces.

        The tasks may have been run by another member since. Requests for them cannot be answered by the killed member.
        """

    def find_work(self, chains: Collection[str]) -> list[tuple[str, str, str]]:
        """Return (chain, lane, kind) of the lanes with due tasks that no member holds."""

    def keys(self, kinds: Collection[tuple[str, str]]) -> dict[tuple[str, str], set[str]]:
        """Return the keys of all tasks of these (chain, kind), by one query."""

    def starved(self) -> Collection[tuple[str, str]]:
        """Return the (chain, lane) with tasks at members without a part, as of the last ``refresh``; without I/O."""

    def divide(self, demands: Sequence[LaneDemand], released: Collection[tuple[str, str]]) -> list[int]:
        """Return the part of the limit of each lane that this member may use, and give up the ``released`` lanes.

        The parts of all members never exceed the limit together. Members with tasks get equal parts, as soon as others
        give back: one that has too much calls this again with a smaller ``used``.
        """

    def outages(self) -> dict[tuple[str, str], Outage]:
        """Return the outages of all lanes."""

    def store_outage(self, chain: str, lane: str, outage: Outage | None) -> None:
        """Store an outage of a lane, or its end; the probe is free afterwards."""

    def take_probe(self, chain: str, lane: str) -> bool:
        """Return True if this member may probe a lane with an outage; then no other one may until the next result."""
