"""The lanes that the members of a fleet share: this member's part of each limit, outages, and tasks of other members.

One thread looks each second, and soon after an event: for due tasks that no member holds, at the parts of the limits,
the outages of lanes, the pauses of an operator, and members that were killed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from trollmoves.errors import JournalError
from trollmoves.journal import Journal, LaneDemand, Outage, Sharing
from trollmoves.scheduler.lanes import ASYNC_BURST_FACTOR, Lane, TaskKind
from trollmoves.scheduler.pauses import Pauses

logger = logging.getLogger(__name__)

LOOK_INTERVAL = 1.0  # s
MIN_INTERVAL = 0.02  # s between two looks
FIRST_INTERVAL = 0.2  # s after which a lane that is new here may get a greater part of its limit
LEFT_DELAY = 0.1  # s in which the member to which a key belongs receives the same message
# s for which an idle lane keeps a part of its limit, so that its next task starts without a transaction; unless another
# member has tasks of the lane, and no part
LINGER = 60.0
Key = tuple[str, str]  # chain and lane


@dataclass(slots=True)
class _Part:
    """This member's part of the limit of a lane; ``stored``, which others leave to it, is more until it is unused."""

    limit: int
    part: int = 0
    stored: int = 0
    wanted: bool = False
    last_work: float = 0.0  # monotonic


class LaneOwner(Protocol):
    """The scheduler, as far as it is needed here; ``Scheduler`` has the contracts."""

    on_member_killed: Callable[[], None]
    pauses: Pauses

    def set_pauses(self, pauses: Pauses) -> None:
        """Put pauses into effect."""

    def chains(self) -> set[str]:
        """Return the names of the chains."""

    def kind_of(self, chain: str, kind: str) -> TaskKind | None:
        """Return a registered kind."""

    def lane(self, chain: str, name: str) -> Lane | None:
        """Return a lane."""

    def shared_lanes(self) -> list[Lane]:
        """Return the shared lanes."""

    def look_at(self, chain: str, name: str, kind: str) -> None:
        """Read the due tasks of a lane."""

    def set_share(self, chain: str, name: str, share: int) -> None:
        """Set the part of a limit."""

    def adopt_outage(self, lane: Lane) -> None:
        """Take over ``lane.outage``."""

    def wake(self) -> None:
        """Look at all lanes."""


class SharedLanes:
    """The shared lanes of one process. Any thread."""

    def __init__(self, journal: Journal, sharing: Sharing, scheduler: LaneOwner) -> None:
        self._journal = journal
        self._sharing = sharing
        self._scheduler = scheduler
        self._parts: dict[Key, _Part] = {}
        self._condition = threading.Condition()
        self._due = 0.0  # monotonic time of the next look; guarded by the condition
        self._next_full = 0.0  # monotonic
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="shared-lanes", daemon=True)

    def start(self) -> None:
        """Start to look."""
        self._sharing.attach(self)
        self._sharing.listen(self.look_soon)
        self._thread.start()

    def stop(self) -> None:
        """Stop to look; a look that waits for the engine may end later."""
        self._stop.set()
        self.look_soon()
        if self._thread.is_alive():
            self._thread.join(LOOK_INTERVAL)

    def look_soon(self, delay: float = 0.0) -> None:
        """Look in ``delay`` seconds."""
        at = time.monotonic() + delay
        with self._condition:
            if at < self._due:
                self._due = at
                self._condition.notify()

    # -- which new tasks this member holds

    def is_shared(self, chain: str, kind: str) -> bool:
        """Return True if all members run the tasks of this kind; also while it is not registered here."""
        registered = self._scheduler.kind_of(chain, kind)
        return registered is None or registered.has_shared_lanes

    def is_requested(self, chain: str, kind: str) -> bool:
        """Return True if tasks of this kind are requested at one member, which runs them if it can."""
        registered = self._scheduler.kind_of(chain, kind)
        return registered is not None and registered.scope == "requested"

    def has_part(self, chain: str, lane: str) -> bool:
        """Return True if this member has a part of the limit of a lane."""
        part = self._parts.get((chain, lane))
        return bool(part and part.part)

    def room(self, chain: str, lane: str) -> int:
        """Return how many further tasks of a lane this member can run soon."""
        known = self._scheduler.lane(chain, lane)
        if known:
            return known.room()
        part = self._parts.get((chain, lane))
        return part.part if part else 0

    def on_free(self, *, crowded: bool) -> None:
        """Look for stored tasks that this member does not hold."""
        self.look_soon(0.0 if crowded else LEFT_DELAY)

    # -- looks

    def _loop(self) -> None:
        while not self._stop.is_set():
            with self._condition:
                while (rest := self._due - time.monotonic()) > 0:
                    self._condition.wait(rest)
                self._due = time.monotonic() + LOOK_INTERVAL
            if self._stop.is_set():
                return
            try:
                self._look()
            except JournalError as error:
                logger.debug("cannot look for tasks of other members: %s", error)  # the scheduler logs such errors
            except Exception:
                logger.exception("unexpected error in the look for tasks of other members, trying again")
            self._stop.wait(MIN_INTERVAL)

    def _look(self) -> None:
        is_full = time.monotonic() >= self._next_full
        if is_full:
            self._next_full = time.monotonic() + LOOK_INTERVAL / 2
            has_killed = self._sharing.refresh()
            self._read_pauses()
            if has_killed:
                self._scheduler.on_member_killed()
        for chain, lane, kind in self._sharing.find_work(self._scheduler.chains()):
            self._scheduler.look_at(chain, lane, kind)
        lanes = {(lane.chain, lane.name): lane for lane in self._scheduler.shared_lanes()}
        if is_full:
            self._share_outages(lanes)
        self._divide(lanes, is_full=is_full)

    def _read_pauses(self) -> None:
        pauses = Pauses(pause.key for pause in self._journal.pauses())
        if pauses.names != self._scheduler.pauses.names:
            self._scheduler.set_pauses(pauses)

    def _divide(self, lanes: dict[Key, Lane], *, is_full: bool) -> None:
        """Ask for a part of each lane that has tasks, or of which this member has too much."""
        now = time.monotonic()
        due = {key: lane for key, lane in lanes.items() if is_full or self._is_new(key, lane)}
        limits = self._read_limits(due)
        demands = [
            demand for key, lane in lanes.items() if (demand := self._demand(key, lane, now, key in due, limits))
        ]
        idle = {key: part for key, part in self._parts.items() if key not in lanes}
        released = [key for key, part in idle.items() if now - part.last_work > LINGER]
        for key in released:
            self._set_part(key, 0)
        demands += [
            LaneDemand(*key, part.limit, part.part, wants=False)
            for key, part in idle.items()
            if key not in released and (part.wanted or part.stored > part.part or key in self._sharing.starved())
        ]
        if demands or released:
            self._apply(demands, self._sharing.divide(demands, released))
        for key in released:
            del self._parts[key]

    def _apply(self, demands: Sequence[LaneDemand], numbers: Sequence[int]) -> None:
        has_grown = False
        for demand, number in zip(demands, numbers, strict=True):
            part = self._parts[demand.chain, demand.lane]
            has_grown |= number > part.part
            part.wanted, part.stored = demand.wants, max(number, demand.used)
            self._set_part((demand.chain, demand.lane), number)
        if has_grown:
            self._scheduler.wake()

    def _is_new(self, key: Key, lane: Lane) -> bool:
        part = self._parts.get(key)
        return part is None or (lane.has_work() and not part.part)

    def _read_limits(self, lanes: dict[Key, Lane]) -> dict[Key, int]:
        """Return the limits of lanes with lower ones, by one query."""
        lower = {key: (kind.lower_limits, kind.limit) for key, lane in lanes.items() if (kind := lane.kind)}
        wanted = {(chain, limits.kind) for (chain, _), (limits, _) in lower.items() if limits}
        keys = self._sharing.keys(wanted) if wanted else {}
        return {
            (chain, lane): min(limit, limits.limit(lane, keys.get((chain, limits.kind), ())))
            for (chain, lane), (limits, limit) in lower.items()
            if limits
        }

    def _demand(self, key: Key, lane: Lane, now: float, is_due: bool, limits: dict[Key, int]) -> LaneDemand | None:
        kind, part = lane.kind, self._parts.get(key)
        if kind is None:
            return None
        wants = lane.has_work()
        if part is None:
            self._next_full = now + FIRST_INTERVAL
            self.look_soon(FIRST_INTERVAL)
        if not (is_due or (part and part.stored > part.part)):
            return None
        if part is None:
            part = self._parts[key] = _Part(kind.limit)
        if is_due:
            part.limit = limits.get(key, kind.limit)
            lane.burst_factor = ASYNC_BURST_FACTOR if part.limit == kind.limit else 1
        if wants:
            part.last_work = now
        elif not part.wanted and part.stored <= part.part and key not in self._sharing.starved():
            return None
        used = min(max(part.part, lane.used()), part.stored)
        return LaneDemand(*key, part.limit, used, wants)

    def _set_part(self, key: Key, number: int) -> None:
        self._parts[key].part = number
        self._scheduler.set_share(*key, number)

    # -- outages

    def _share_outages(self, lanes: dict[Key, Lane]) -> None:
        outages = self._sharing.outages()
        for key, lane in lanes.items():
            breaker, known = lane.breaker, outages.get(key)
            if breaker.changes != lane.stored_changes:
                lane.stored_changes = breaker.changes
                lane.outage = self._outage_of(lane)
                lane.may_probe = False
                if lane.outage or known:
                    self._sharing.store_outage(*key, lane.outage)
            elif known != lane.outage:
                lane.outage = known
                lane.may_probe = False
                self._scheduler.adopt_outage(lane)
            elif known and lane.has_work() and not breaker.pause_remaining():
                lane.may_probe = self._sharing.take_probe(*key)
                if lane.may_probe:
                    self._scheduler.wake()

    def _outage_of(self, lane: Lane) -> Outage | None:
        breaker = lane.breaker
        if not breaker.failures:
            return None
        return Outage(breaker.failures, self._journal.now() + breaker.pause_remaining(), breaker.held)
