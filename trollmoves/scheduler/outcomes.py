"""Converts the result of a handler into the outcome to store."""

from __future__ import annotations

from trollmoves.journal import BACKLOG, DONE, FAILED, WAITING, Outcome, Task
from trollmoves.scheduler.lanes import Lane, Result


def to_outcome(lane: Lane, task: Task, result: Result, now: float) -> Outcome:
    """Return the outcome of an attempt of a task; ``now`` is the time of the journal. Scheduler thread."""
    if result.error is None and result.retry_in is None:
        return Outcome(task, DONE, result.reply, follow_ups=result.follow_ups, delivery=result.delivery)
    error = None if result.error is None else str(result.error)
    # With a reply and without an error, a client waits for the next attempt of one file: its lane is not blamed.
    waiting = None if result.reply is None else "held" if result.held else "retry"
    failure = result.error.failure if result.error else waiting
    reply = error if result.reply is None else result.reply
    if result.error and (result.final or not result.error.temporary):
        return Outcome(task, FAILED, reply, follow_ups=result.follow_ups, failure=failure, error=error)
    wait = result.retry_in if result.retry_in is not None else lane.retry_delay(task, result.error)
    if wait:
        task.rank = BACKLOG  # new tasks do not wait behind failed ones
    due = now + wait
    return Outcome(task, WAITING, reply, due=due, follow_ups=result.follow_ups, failure=failure, error=error)
