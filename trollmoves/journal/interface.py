"""The interface of a journal, which each engine implements in a package of its own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from trollmoves.journal.records import (
    COMPACT_AFTER,
    AnnouncementRecord,
    Compactors,
    Finished,
    Outcome,
    Retention,
    Selection,
    SourcePosition,
    Task,
    Version,
)
from trollmoves.journal.sharing import Sharing
from trollmoves.journal.views import (
    AnnouncedRow,
    FailureRow,
    FinishedRow,
    JournalFacts,
    JournalStatistics,
    LaneRow,
    MemberRow,
    TaskRow,
    WaitingRow,
)


class TaskEditor(Protocol):
    """The tasks of a journal within one transaction: a row that was read stays as it is until its end."""

    def add(self, task: Task) -> tuple[Task, bool]:
        """Store a task; return it and True, or the stored one and False if it exists."""

    def find(self, chain: str, kind: str, key: str) -> Task | None:
        """Return the task with this identity, in any state; None if there is none."""

    def update_body(self, task: Task) -> None:
        """Store only the body of an existing task."""

    def reset(self, task: Task) -> None:
        """Store an existing task as ``Journal.reset_tasks`` does."""


MergeFunction = Callable[[TaskEditor, Task, Task], list[Task]]
MakeFunction = Callable[[Mapping[str, Version], int], Sequence[AnnouncementRecord]]


class Journal(Protocol):
    """An open journal: the tasks, announcements and source positions of a daemon.

    All methods may be called from any thread. Each method is one transaction, so pass many rows per call where
    possible. They raise JournalError, JournalFull if the disk is full, UnsupportedValue for a value that cannot be
    stored.
    """

    path: str  # for people, without a password
    identity: str  # of the logs of announcements; a restored or copied journal gets a new one
    life: str  # of this member of a fleet; empty if only one process can have the journal
    replaced: bool  # True if the journal was replaced while it was open; then it must be opened again

    # -- the journal

    @property
    def sharing(self) -> Sharing | None:
        """The lanes that members share; None unless several members work at the same time."""

    @property
    def damage(self) -> str:
        """Why the journal cannot be used until it is opened again; empty while it can."""

    def record_owner(self, role: str, config_file: str) -> None:
        """Store which daemon writes this journal, for the commands that read it."""

    def check_writable(self) -> None:
        """Store the current time; raise JournalError if the journal cannot be written."""

    def check_file(self) -> None:
        """Check that the files of this journal are still at its path; call it every minute.

        A removed file is written again from the open one. If the file was replaced, ``replaced`` is set, ``on_damage``
        is called, and all methods raise JournalError until the journal is reopened.
        """

    def now(self) -> float:
        """Return the time (s since the epoch) by which tasks are due. It never jumps, and restarts do not set it back.

        It starts at the wall clock, or at the last time in the journal if that is later. Any thread.
        """

    def keep_on_host(self, chain: str, kind: str, *, until_shared: bool = False) -> None:
        """Leave new tasks of this kind to members on the host of the one that stores them, if members share tasks.

        With ``until_shared`` all members can run a task as soon as a member on another host has stored it too.
        """

    def still(self) -> bool:
        """Return False once another member of the fleet may have taken over the tasks of this one; without I/O."""

    def open_reader(self) -> JournalReader:
        """Open the journal a second time, for reading; JournalError if that fails."""

    def take(self, what: str) -> bool:
        """Take a lease of the fleet, or keep it; return False if another member has it. Without a fleet return True."""

    def members(self) -> list[MemberRow]:
        """Return the present members of the fleet, oldest first; none without a fleet."""

    def close(self) -> None:
        """Write everything to the file and release its lock. May be called twice."""

    # -- tasks

    def add_tasks(
        self, tasks: Iterable[Task], sources: Iterable[tuple[str, SourcePosition]] = ()
    ) -> list[tuple[Task, bool]]:
        """Store tasks and the (chain, position) of ``sources``; return (task, created) in the order of ``tasks``.

        For a task that exists already, the stored one is returned.
        """

    def merge(
        self, tasks: Iterable[Task], sources: Iterable[tuple[str, SourcePosition]], how: MergeFunction
    ) -> list[Task]:
        """Store tasks and source positions as ``add_tasks`` does, and merge those that exist with the stored ones.

        For each task that exists, ``how(editor, task, stored)`` is called within the transaction; it must not call the
        journal, and may be called again if the transaction is repeated. Return the tasks that are new, and those that
        ``how`` returns.
        """

    def set_aside(self, chain: str, item: str, reason: str) -> None:
        """Store a file or message that cannot be processed as a failed task, for a person to find."""

    def find(self, chain: str, kind: str, key: str) -> Task | None:
        """Return the task with this identity, in any state; None if there is none."""

    def keys(self, chain: str, kind: str) -> list[str]:
        """Return the keys of all tasks of a kind, in any state."""

    def finished_for(self, chain: str, kinds: Sequence[str], number: int) -> list[Task]:
        """Return the tasks of these kinds for an announcement that are done."""

    def ended(self, ids: Collection[int]) -> list[Task]:
        """Return those of the tasks with these ids that are done, failed or dropped."""

    def reset_tasks(self, tasks: Iterable[Task], *, unless_done: bool = False) -> list[Task]:
        """Store the body, lane, rank, due time, state, tries and creation time of existing tasks, to restart them.

        Return those that were stored: not those that another member runs, or that were deleted; with ``unless_done``
        not those that are done by now.
        """

    def renew_tasks(self, tasks: Iterable[Task]) -> None:
        """Restart different finished tasks as new ones: each gets a new id, and its body and lane are stored."""

    def claim(self, chain: str, lane: str, limit: int, now: float, *, in_flight: Collection[int] = ()) -> list[Task]:
        """Return up to ``limit`` tasks of a lane due at ``now``, by rank and due time, without the ids ``in_flight``.

        The journal does not record which tasks run: a row stays waiting until it is finished, so tasks that ran when
        the process died are due again after the restart.
        """

    def next_due(self, chain: str, lane: str, now: float, *, in_flight: Collection[int] = ()) -> float | None:
        """Return the time after ``now`` at which to claim tasks of a lane again, None if it has no others that wait.

        Tasks with the ids ``in_flight`` do not count. Other tasks that are due, but could not be claimed, do.
        """

    def lanes(self, chain: str) -> list[tuple[str, str]]:
        """Return (lane, kind) of each lane with waiting tasks in a chain, by a loose index scan."""

    def finish(self, outcomes: Iterable[Outcome]) -> Finished:
        """Store outcomes and their follow-up tasks in one transaction.

        An outcome is lost if another member has taken its task over: it is not stored, and neither are its follow-ups.
        """

    def store_lanes(self) -> None:
        """Store the states of lanes that ``finish`` has kept in memory, because many tasks finished."""

    def mark_alive(self) -> float:
        """Record once, in the lock file, that this process outlived its last finished task by UNFLUSHED_SECONDS.

        Return the seconds until the next call is due, infinite without a finished task that is not recorded. It does
        not wait for the disk.
        """

    def finished_before_kill(self, chain: str, kinds: Sequence[str], seconds: float) -> list[Task]:
        """Return the tasks of these kinds that were done in the last ``seconds`` of the previous process, if killed.

        Messages that it had queued for sending may be lost although these tasks are done.
        """

    def seconds_after_kill(self) -> float:
        """Return the seconds from the kill of the previous process until this one opened the journal.

        0 if it was not killed. A shared journal returns those from the kill of another member until the first call.
        """

    def count(self, chain: str | None = None) -> dict[str, int]:
        """Return the numbers of tasks by state, of one chain or of all. This scans all of them."""

    def has_pending_for(self, chain: str, kind: str, number: int) -> bool:
        """Return True if a task of this kind for this announcement is waiting or running."""

    def newer_keys(self, task: Task, prefix: str) -> list[str]:
        """Return the keys that begin with ``prefix``, of the newer tasks of this kind that wait, run or are done."""

    def states(self, chain: str, kind: str, prefix: str, part: str) -> list[tuple[int, int]]:
        """Return (id, state) of the tasks of a kind with a key that begins with ``prefix`` and contains ``part``."""

    def pending_for(self, chain: str, kind: str, number: int) -> list[Task]:
        """Return the tasks of this kind for an announcement that are waiting or running."""

    def pending_numbers(self, chain: str, kind: str) -> set[int]:
        """Return the numbers of the announcements for which a task of this kind is waiting or running."""

    def make_due_now(self, chain: str, kind: str, number: int) -> list[Task]:
        """Make the waiting tasks for an announcement due now, and return them."""

    def release(self, chain: str, lane: str | None = None) -> None:
        """Make the failed attempts that wait in a chain, or in one of its lanes, due now."""

    def count_waiting(self, chain: str, lane: str) -> int:
        """Return the number of tasks of a lane that are waiting or running."""

    def retry(self, ids: Iterable[int]) -> list[Task]:
        """Make failed tasks waiting again, due now; return those that had failed, to be submitted to the scheduler."""

    def make_all_due_now(self, chain: str, kind: str) -> None:
        """Make all waiting tasks of a kind due now."""

    def fail_pending(
        self, chain: str, lane: str, *, exclude: Collection[int] = (), failure: str | None = None
    ) -> list[int]:
        """Mark all waiting tasks of a lane as failed, without the ids in ``exclude``; return their ids."""

    # -- announcements

    def append(self, chain: str, uris: Collection[str], make: MakeFunction) -> Sequence[AnnouncementRecord]:
        """Append the records of ``make(versions, number)`` to the log of a chain; return them when they are stored.

        ``versions`` has the version of the newest announcement of each of ``uris`` that this chain announced; the
        numbers of the records begin with ``number``. Both stay valid until the records are stored: nothing else is
        appended in between. ``make`` must not call the journal, and may be called again if the transaction is repeated.
        """

    def last_number(self, chain: str) -> int:
        """Return the number of the newest announcement of a chain, 0 if there is none."""

    def latest_announcement(self, chain: str, uri: str) -> AnnouncementRecord | None:
        """Return the newest announcement of a file, None if this chain never announced it."""

    def get_announcement(self, chain: str, number: int) -> AnnouncementRecord | None:
        """Return the announcement with this number, None if there is none."""

    def get_announcements(self, chain: str, numbers: Collection[int]) -> dict[int, AnnouncementRecord]:
        """Return the announcements with these numbers, by number, without missing ones."""

    def announcements_after(self, chain: str, number: int, limit: int) -> list[AnnouncementRecord]:
        """Return at most ``limit`` announcements with numbers above ``number``, oldest first.

        The messages of all but the last one have less than ``MAX_PAGE_LENGTH`` characters together.
        """

    def number_before(self, chain: str, created: float) -> int:
        """Return the number of the last announcement created before a time (see ``now``), 0 if there is none."""

    def newest_files(self, chain: str, limit: int) -> list[tuple[str, str]]:
        """Return (first word of the message, uid) of at most ``limit`` announcements of a chain, newest first.

        All but the last one have less than ``MAX_LIST_LENGTH`` characters together.
        """

    def undelivered_announcements(
        self, chain: str, kinds: Sequence[str], after: int, limit: int
    ) -> list[AnnouncementRecord]:
        """Return announcements after a number without a finished task of ``kinds``, oldest first.

        A dropped task counts as finished, unless another one of the announcement waits or has failed.
        The messages of all but the last one have less than ``MAX_PAGE_LENGTH`` characters together.
        """

    # -- sources

    def sources(self, chain: str) -> list[SourcePosition]:
        """Return the position of a chain in the log of each known source."""

    def rewind_source(self, chain: str, log: str) -> None:
        """Set the position in a log to its beginning."""

    def forget_source(self, chain: str, log: str) -> None:
        """Delete a log that its source has replaced."""

    # -- orders of an operator

    def add_order(self, key: str, body: str) -> None:
        """Store an order, to be carried out now or at the next start."""

    def waiting_orders(self) -> list[Task]:
        """Return the orders that are not carried out yet, oldest first."""

    def end_order(self, key: str, reply: str, *, done: bool) -> None:
        """Store the result of an order; a rejected one is dropped."""

    def pauses(self) -> list[Task]:
        """Return the pauses that are in effect; the key of each one is the name of a chain or destination."""

    def add_pause(self, name: str, body: str) -> None:
        """Store a pause."""

    def end_pause(self, name: str) -> None:
        """Store the end of a pause."""

    def recent_lanes(self) -> set[tuple[str, str]]:
        """Return (chain, lane) of finished and of the newest tasks. It reads many rows, without delaying others."""

    def select(self, selection: Selection) -> list[Task]:
        """Return at most MAX_SELECTED tasks, newest first. It reads many rows, without delaying other threads."""

    def announced_files(self, chain: str, file: str, since: float) -> list[tuple[str, AnnouncementRecord]]:
        """Return (chain, announcement) of at most MAX_SELECTED announcements, newest first, the last of each file."""

    def restart(self, tasks: Sequence[Task]) -> list[Task]:
        """Store tasks as waiting and due now, in batches; return them.

        A row keeps its id, so its order among others. A task with the id 0 replaces the row of its key by a new one.
        """

    def make_due(self, tasks: Sequence[Task]) -> None:
        """Make waiting tasks due now, in batches."""

    def drop(self, tasks: Sequence[Task]) -> list[Task]:
        """Store tasks as dropped, so that a repeated message does not restart them; return those that were dropped.

        Tasks that were finished or restarted since they were read are not dropped.
        """

    # -- numbers of tasks, for the metrics and alarms

    def statistics(self) -> JournalStatistics:
        """Return the statistics of the journal; raise JournalError if it cannot be read. Any thread.

        It takes 0.4 s of processor time for a million waiting tasks. Finished tasks cost nothing.
        """

    def last_times(self) -> dict[tuple[str, str], float]:
        """Return when the last task of each chain and kind was done, and under ``announce`` when a file was announced.

        Times are those of the journal's clock. Of the finished tasks, only the last ``MAX_SCANNED`` are searched. Raise
        JournalError if the journal cannot be read. Any thread.
        """

    def last_file_time(self, chain: str, kind: str, since: float = 0.0) -> float:
        """Return when the last task of a kind was done, or with "announce" a file was announced; 0 if none is known.

        As ``last_times``, for one chain, and only tasks that finished after ``since``. A chain without any costs 0.1 s
        of processor time if MAX_SCANNED tasks of others are searched.
        """

    def count_finished(self, since: float) -> dict[tuple[str, str, int], int]:
        """Return the number of finished tasks since a time, by chain, kind and state; announcements as "announce"."""

    def size(self) -> int:
        """Return the bytes that the journal occupies."""

    # -- pruning

    def prune(self, retention: Retention, compactors: Compactors, min_age: float = COMPACT_AFTER) -> Iterator[int]:
        """Prune once, in steps: each step is a short transaction and yields the number of rows or pages.

        Waiting tasks, the newest announcement of each chain and the newest task stay, so that numbers are not reused.
        ``compactors`` has, by kind, functions that return the compacted body of a task; they are applied ``min_age``
        seconds after the task was done, and its reply is deleted.
        """

    def history_seconds(self) -> float:
        """Return the age in seconds of the newest deleted task, infinite if none was: later history is complete."""


class JournalReader(AbstractContextManager["JournalReader"], Protocol):
    """A read-only connection to a journal, while its daemon runs or is down. One thread."""

    path: str  # for people, without a password
    meta: dict[str, str]  # "identity", "role" and "config": which daemon writes the journal

    def now(self) -> float:
        """Return the time of the journal's clock, which may be ahead of the wall clock."""

    def waiting(self) -> list[WaitingRow]:
        """Return the waiting tasks by lane, those in flight included. It reads indexes only."""

    def failures(self) -> list[FailureRow]:
        """Return the tasks with a failure by chain, lane and failure."""

    def lanes(self) -> list[LaneRow]:
        """Return the state of each lane as of its last finished attempt."""

    def finished_since(self, since: float, limit: int) -> list[FinishedRow]:
        """Return at most ``limit`` tasks that were done since a time, newest first."""

    def count_finished(self, since: float, until: float, step: float) -> list[tuple[str, int, int]]:
        """Return the numbers of files that were done in an interval: chain, number of the step, and count.

        Times are seconds since the epoch. Step ``n`` lasts from ``n * step`` to ``(n + 1) * step``.
        """

    def last_announcements(self) -> dict[str, AnnouncedRow]:
        """Return the newest announcement of each chain."""

    def pauses(self) -> dict[str, str]:
        """Return the pauses of an operator: the order by the name of a chain or destination."""

    def listed(self, name: str, limit: int) -> list[TaskRow]:
        """Return the oldest tasks in a list: "queue", "held" or "failed"."""

    def count_listed(self, name: str) -> int:
        """Return the number of tasks in such a list."""

    def tasks_for(self, chain: str, number: int) -> list[TaskRow]:
        """Return the tasks for an announcement."""

    def tasks_of_file(self, name: str, without: Sequence[str], limit: int) -> list[TaskRow]:
        """Return the newest tasks that have the name or path of a file, or a pattern for it, in their keys.

        Tasks of the kinds ``without`` are left out. It reads all tasks, in short queries.
        """

    def announcement(self, chain: str, number: int) -> AnnouncedRow | None:
        """Return an announcement, None if it was pruned."""

    def find_announcements(self, name: str, pattern: str, limit: int) -> list[AnnouncedRow]:
        """Return the newest announcements of a file, by its path, its name, or a pattern for one of them."""

    def members(self) -> list[MemberRow]:
        """Return the present members of the fleet, oldest first; none without a fleet."""

    def size(self) -> int:
        """Return the bytes that the journal occupies."""

    def facts(self) -> JournalFacts:
        """Return sizes and numbers of rows. It reads all rows."""

    def count_prunable(self, finished_before: float, announced_before: float) -> tuple[int, int]:
        """Return the numbers of finished tasks and of announcements that are older than these times."""

    def back_up(self, copy: str) -> None:
        """Copy the journal to a new file, also while the daemon writes; JournalError if that fails."""
