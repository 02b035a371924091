"""Limits of the concurrent requests to one source."""

from __future__ import annotations

from functools import partial

from trollmoves.receiver.limited_queues import LimitedQueues


def test_limit_per_key() -> None:
    """At most ``limit`` calls of a key run, later ones start in order; other keys are not affected."""
    queues = LimitedQueues(2)
    started: list[str] = []
    for name in ("a1", "a2", "a3", "b1", "a4"):
        queues.run(name[0], partial(started.append, name))
    assert started == ["a1", "a2", "b1"]
    for _ in range(4):
        queues.done("a")
    queues.done("b")
    assert started == ["a1", "a2", "b1", "a3", "a4"]
    queues.run("a", partial(started.append, "a5"))
    assert started[-1] == "a5"
