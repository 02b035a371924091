"""Kinds of tasks about files. The first word of the name of a lane is the kind of its tasks."""

from __future__ import annotations

# Kinds of tasks that move files, and the event that a success is.
EVENTS = {"fetch": "received", "push": "delivered", "deliver": "delivered"}
EVENTS_BY_KIND = {"announce": "announced", **EVENTS}  # with the announcements of the journal
FILE_KINDS = (*EVENTS, "unpack", "route", "relay")


def kind_of_lane(lane: str) -> str:
    """Return the kind of the tasks of a lane."""
    return lane.partition(" ")[0]


def is_about_files(lane: str) -> bool:
    """Return True if the tasks of a lane are about files, and not for example about their removal."""
    return kind_of_lane(lane) in FILE_KINDS
