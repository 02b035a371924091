"""The snapshot of a site: daemons, their chains, and the destinations or sources of these.

``as_dict`` returns it as JSON types; doc/operating.md documents the fields. Times are seconds since the epoch, ages and
delays are seconds. None means unknown, or that there is none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

OK, IDLE, BUSY, BEHIND, BACKING_OFF = "ok", "idle", "busy", "behind", "backing off"
STANDBY = "standby"  # of a daemon that waits until another host ends
HELD, PAUSED, SILENT, DOWN = "held", "paused", "silent", "down"
# From the best to the worst: the state of a chain or daemon is the worst one of its parts.
STATES = (STANDBY, IDLE, OK, BUSY, PAUSED, BEHIND, SILENT, BACKING_OFF, HELD, DOWN)
WARNING_STATES = {PAUSED, BEHIND, SILENT, BACKING_OFF}
CRITICAL_STATES = {HELD, DOWN}


def worst(states: Iterable[str]) -> str:
    """Return the worst state; that of an idle chain without any."""
    return max(states, key=STATES.index, default=IDLE)


def severity(state: str) -> int:
    """Return the exit code of a state: 0 ok, 1 warning, 2 critical."""
    return 2 if state in CRITICAL_STATES else 1 if state in WARNING_STATES else 0


@dataclass
class Traffic:
    """The files of the last ``window`` seconds, at most the newest ``RECENT_FILES``; rates are per second.

    The latency is the time from the announcement of a file, or the message about it, to its delivery.
    """

    window: float = 0.0
    files: int = 0
    bytes: int = 0
    files_per_second: float = 0.0
    bytes_per_second: float = 0.0
    latency_p50: float | None = None
    latency_p99: float | None = None


@dataclass
class Destination:
    """The transfers to one destination host, or from one source of a client or mirror: a lane.

    ``waiting`` is without ``in_flight``. ``held`` files, in both, wait until an operator repairs the cause, which is
    ``error``. ``refused`` files, of the waiting ones of a server, wait for the next request of the client.
    """

    name: str
    lane: str
    role: str  # "destination", "source" or "internal"
    state: str = IDLE
    waiting: int = 0
    in_flight: int = 0
    refused: int = 0
    held: int = 0
    failed: int = 0
    oldest_age: float | None = None
    next_attempt: float | None = None  # seconds from now
    last_file: str | None = None
    last_time: float | None = None
    error: str | None = None
    failing_for: float | None = None
    paused: bool = False  # by an operator
    total_files: int = 0
    total_bytes: int = 0
    traffic: Traffic = field(default_factory=Traffic)


@dataclass
class Provider:
    """A publisher that a chain receives from; ``up`` is None while the daemon is down."""

    address: str
    up: bool | None = None


@dataclass
class Chain:
    """One section: its destinations and providers. The counts are sums over its destinations."""

    name: str
    state: str = IDLE
    running: bool | None = None  # None while the daemon is down
    problem: str = ""  # why the section is not valid
    waiting: int = 0
    in_flight: int = 0
    held: int = 0
    failed: int = 0
    oldest_age: float | None = None
    last_file: str | None = None  # announced by a server or mirror, delivered or received otherwise
    last_time: float | None = None
    last_number: int | None = None  # of the newest announcement
    expect_every: float | None = None
    paused: bool = False
    alarms: list[str] = field(default_factory=list)
    destinations: list[Destination] = field(default_factory=list)
    providers: list[Provider] = field(default_factory=list)
    traffic: Traffic = field(default_factory=Traffic)


@dataclass
class Member:
    """A member of a fleet, which renewed its lease ``renewed`` seconds ago.

    It works if one of ``leases`` begins with "fleet". It holds ``held`` tasks; ``lanes`` has, for each lane that it
    shares with other members, its chain, name, and the part of the limit.
    """

    life: str
    name: str
    version: str
    renewed: float
    leases: list[str]
    held: int
    lanes: list[str]


@dataclass
class Daemon:
    """One daemon, running or not."""

    name: str
    kind: str
    config: str
    journal: str
    state: str = IDLE
    running: bool = False
    pid: int | None = None
    version: str | None = None
    journal_size: int | None = None
    problem: str = ""
    chains: list[Chain] = field(default_factory=list)
    members: list[Member] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return the daemon as JSON types."""
        return asdict(self)


def quantile(values: list[float], share: float) -> float | None:
    """Return the value that ``share`` of the sorted values do not exceed, None without values."""
    return values[max(0, math.ceil(share * len(values)) - 1)] if values else None
