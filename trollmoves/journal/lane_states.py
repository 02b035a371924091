"""The state of each lane as of its last finished attempt, so that it is known while the daemon is down."""

from __future__ import annotations

from dataclasses import dataclass

from trollmoves.journal.records import DONE, Outcome

LANE_INTERVAL = 1.0  # s between two writes of a lane that works; a failure is written immediately
MAX_SIZE = 2**63 - 1  # bytes; a larger integer cannot be stored, and a remote source may announce such a size
MAX_ERROR = 1_000  # characters of an error that are kept


@dataclass(slots=True)
class LaneChange:
    """The changes of one lane that are not stored: done tasks, their bytes, and the last failure."""

    done: int = 0
    size: int = 0
    last_id: int | None = None
    failure: str | None = None
    error: str | None = None


LaneChanges = dict[tuple[str, str], LaneChange]  # by chain and lane


def record_outcome(changes: LaneChanges, outcome: Outcome) -> None:
    """Add an outcome to the changes of its lane."""
    key = outcome.task.chain, outcome.task.lane
    change = changes.get(key)
    if change is None:
        change = changes[key] = LaneChange()
    if outcome.state == DONE:
        change.done += 1
        change.last_id = outcome.task.id
        change.failure = None
        if outcome.delivery and outcome.delivery.size:
            change.size += outcome.delivery.size
    elif outcome.failure in ("held", "outage"):
        change.failure, change.error = outcome.failure, outcome.error


def merge_changes(changes: LaneChanges, earlier: LaneChanges) -> None:
    """Add earlier changes, which contain no failure, to later ones."""
    for key, before in earlier.items():
        change = changes.setdefault(key, before)
        if change is not before:
            change.done += before.done
            change.size += before.size
            change.last_id = before.last_id if change.last_id is None else change.last_id
