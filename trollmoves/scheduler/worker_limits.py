"""Limits the workers of lanes, and of the owners of their tasks."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable

from trollmoves.scheduler.lanes import Lane

RESERVE_FROM = 8  # minimum number of workers for which one is reserved for healthy lanes
# Workers that an owner with other workers may have, for each free worker.
HEALTHY_SHARE = 7.0  # on all of its lanes
NEW_SHARE = 1.0  # on lanes that are not healthy
FAILING_SHARE = 1 / 3  # the same, for a lane with failures


class WorkerLimits:
    """The assigned workers at one moment, and which lanes may have a further one.

    Many dead hosts cannot use up all workers: the last quarter is reserved for the first worker of lanes without
    failures, and the last worker for lanes that worked, if there are at least ``RESERVE_FROM`` workers.

    Neither can one owner: with 16 workers, it gets at most 14 on healthy lanes, 8 on lanes that are not healthy, 4 of
    these on lanes with failures; and fewer if there are other owners. A lane with several owners gets a worker if one
    of them may have it.
    """

    def __init__(self, lanes: Iterable[Lane], threads: int) -> None:
        self._threads = threads
        self.assigned = 0
        """The workers of all lanes."""
        self._unproven = 0
        self._of_owner: dict[str, int] = defaultdict(int)
        self._unproven_of_owner: dict[str, int] = defaultdict(int)
        for lane in lanes:
            if lane.workers:
                self._count(lane, lane.workers)

    def assign(self, lane: Lane) -> bool:
        """Count a further worker for a lane; return False if it must wait for the end of a task of another lane."""
        if not (lane.breaker.healthy or self._unproven < self._probing_limit(lane)):
            return False
        owners = _owners(lane)
        if owners and not any(self._may_have(owner, lane) for owner in owners):
            return False
        self._count(lane, 1)
        return True

    def _count(self, lane: Lane, workers: int) -> None:
        healthy = lane.breaker.healthy
        self.assigned += workers
        self._unproven += 0 if healthy else workers
        for owner in _owners(lane):
            self._of_owner[owner] += workers
            self._unproven_of_owner[owner] += 0 if healthy else workers

    def _probing_limit(self, lane: Lane) -> int:
        """Return the number of workers on unhealthy lanes from which this lane gets no further worker."""
        if not lane.workers and not lane.breaker.failures:
            reserved = self._threads >= RESERVE_FROM and not lane.proven
            return self._threads - 1 if reserved else sys.maxsize
        return self._threads - max(1, self._threads // 4)

    def _may_have(self, owner: str, lane: Lane) -> bool:
        if lane.breaker.healthy:
            has, share = self._of_owner[owner], HEALTHY_SHARE
        else:
            has = self._unproven_of_owner[owner]
            share = FAILING_SHARE if lane.workers or lane.breaker.failures else NEW_SHARE
        return not has or has < share * (self._threads - self.assigned)


def _owners(lane: Lane) -> tuple[str, ...]:
    return tuple(lane.owners) if lane.kind and lane.kind.by_owner else ()  # other threads add owners
