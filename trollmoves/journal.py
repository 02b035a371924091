"""The journal: what was announced, what is still to do, what was answered.

The only user of sqlite3. One file, one process: a second one on the same file is refused. All methods may be called
from any thread; each is one transaction, so hand over many things at a time where many are at hand.

Three tables. ``tasks`` holds whatever happens later or again; its unique key (chain, kind, key) is the suppression of
duplicates, and it survives a restart. ``announcements`` is the numbered log of each chain, from which a peer may ask
for what it missed. ``sources`` is how far a receiving chain has the log of each of its sources.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from trollmoves.errors import JournalError

WAITING, DONE, FAILED = 0, 1, 2
FRESH, BACKLOG = 0, 1  # ranks: what waits in a lower rank is claimed first

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tasks (
    id INTEGER PRIMARY KEY, chain TEXT NOT NULL, kind TEXT NOT NULL, key TEXT NOT NULL, lane TEXT NOT NULL,
    rank INTEGER NOT NULL, due REAL NOT NULL, state INTEGER NOT NULL, tries INTEGER NOT NULL, noted REAL NOT NULL,
    finished REAL, about INTEGER, body TEXT NOT NULL, reply TEXT);
CREATE UNIQUE INDEX IF NOT EXISTS tasks_key ON tasks (chain, kind, key);
CREATE INDEX IF NOT EXISTS tasks_waiting ON tasks (chain, lane, rank, due) WHERE state = 0;
CREATE INDEX IF NOT EXISTS tasks_about ON tasks (about, chain) WHERE about IS NOT NULL;
CREATE INDEX IF NOT EXISTS tasks_finished ON tasks (finished) WHERE state <> 0;
CREATE TABLE IF NOT EXISTS announcements (
    id INTEGER PRIMARY KEY, chain TEXT NOT NULL, number INTEGER NOT NULL, uri TEXT NOT NULL, uid TEXT NOT NULL,
    size INTEGER, mtime INTEGER, noted REAL NOT NULL, message TEXT NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS announcements_number ON announcements (chain, number);
CREATE INDEX IF NOT EXISTS announcements_uri ON announcements (chain, uri, number);
CREATE TABLE IF NOT EXISTS sources (
    chain TEXT NOT NULL, log TEXT NOT NULL, address TEXT NOT NULL, have INTEGER NOT NULL,
    PRIMARY KEY (chain, log)) WITHOUT ROWID;
"""
_TASK_COLUMNS = "id, chain, kind, key, lane, rank, due, state, tries, noted, about, body, reply, finished"
_TASKS_ABOUT = f"SELECT {_TASK_COLUMNS} FROM tasks WHERE about = ? AND chain = ? AND kind = ? AND state = 0"
_PRUNE_AT_ONCE = 2000  # rows in one transaction, so that pruning holds up nobody for long


@dataclass(slots=True)
class Task:
    """Something to do: who does it (chain, kind), its identity (key), what it must not crowd (lane), and its body.

    ``due``, ``noted`` and ``finished`` are seconds since the epoch. ``about`` is the number of the announcement that it
    concerns. A task may be noted as ``DONE`` already: then it only says so. ``context`` is what its maker wants to find
    again when it runs; it is not written, so it is None on a task that was read from the journal.
    """

    chain: str
    kind: str
    key: str
    lane: str
    body: str
    due: float = 0.0
    rank: int = FRESH
    about: int | None = None
    id: int = 0
    state: int = WAITING
    tries: int = 0
    noted: float = 0.0
    reply: str | None = None
    finished: float | None = None
    context: Any = None


@dataclass(slots=True)
class Outcome:
    """How one run of a task ended: ``DONE`` or ``FAILED`` with a reply, or ``WAITING`` for another try when ``due``."""

    task: Task
    state: int
    reply: str | None = None
    due: float = 0.0
    then: Sequence[Task] = field(default_factory=tuple)


@dataclass(slots=True)
class Announced:
    """One line of a chain's log: the file (uri, size, mtime in ns; None where unknown) and the message about it."""

    number: int
    uri: str
    uid: str
    size: int | None
    mtime: int | None
    message: str


@dataclass(slots=True)
class Source:
    """How far a chain has a source's log: everything up to number ``have``; ``address`` takes requests."""

    log: str
    address: str
    have: int


def journal_path(configured: str, config_file: str, role: str) -> str:
    """Say where the journal of a configuration file lives.

    ``configured`` if given, else a file of its own for each role and configuration file in ``$STATE_DIRECTORY``
    (systemd), ``$XDG_STATE_HOME/trollmoves`` or ``~/.local/state/trollmoves``.
    """
    if configured:
        return os.path.abspath(os.path.expanduser(configured))
    systemd = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    home = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    folder = systemd or os.path.join(home, "trollmoves")
    config_file = os.path.abspath(config_file)
    stem = os.path.splitext(os.path.basename(config_file))[0]
    mark = hashlib.sha256(os.fsencode(config_file)).hexdigest()[:8]
    return os.path.join(folder, f"{role}-{stem}-{mark}.journal")


class Journal:
    """An open journal; the owner of its file until ``close``."""

    def __init__(self, path: str, *, synchronous: str = "normal") -> None:
        """Open or make the journal at ``path``.

        ``synchronous``: "normal" (no committed line is lost when the process dies) or "full" (nor when power fails).
        JournalError says what to do when it cannot be used.
        """
        self.path = path
        self._lock = threading.Lock()
        self._lock_file = _lock_for_this_process(path)
        try:
            self._db = self._open()
        except (sqlite3.Error, OSError) as error:
            os.close(self._lock_file)
            raise JournalError(f"the journal {path} cannot be used: {error}") from error
        self.identity = ""
        self._killed_at: float | None = None
        try:
            self.identity = self._set_up(synchronous)
        except sqlite3.Error as error:
            self.close()
            raise JournalError(f"the journal {path} cannot be used: {error}") from error
        self._numbers: dict[str, int] = {}

    def _open(self) -> sqlite3.Connection:
        os.close(os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        return sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, cached_statements=200)

    def _set_up(self, synchronous: str) -> str:
        """Make the tables if there are none; give the identity of the journal."""
        db = self._db
        found = db.execute("PRAGMA user_version").fetchone()[0]
        if found not in (0, _SCHEMA_VERSION):
            raise sqlite3.DatabaseError(f"it was written by another version of this program (layout {found})")
        if not found and db.execute("SELECT 1 FROM sqlite_master").fetchone():
            raise sqlite3.DatabaseError("it is a database of another program")
        db.execute("PRAGMA journal_mode=WAL")
        db.execute(f"PRAGMA synchronous={'FULL' if synchronous == 'full' else 'NORMAL'}")
        db.execute("PRAGMA temp_store=MEMORY")
        db.execute("PRAGMA wal_autocheckpoint=2000")
        db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version={_SCHEMA_VERSION}; COMMIT")
        db.execute("INSERT OR IGNORE INTO meta VALUES ('identity', ?)", (uuid.uuid4().hex[:12],))
        if found and not db.execute("DELETE FROM meta WHERE key = 'closed'").rowcount:
            self._killed_at = db.execute("SELECT max(finished) FROM tasks WHERE state <> 0").fetchone()[0]
        row = db.execute("SELECT value FROM meta WHERE key = 'identity'").fetchone()
        return str(row[0])

    def close(self) -> None:
        """Write everything to the file itself and let another process have it. May be called twice."""
        with self._lock:
            if self._lock_file >= 0:
                if self.identity:
                    with suppress(sqlite3.Error):
                        self._db.execute("INSERT OR REPLACE INTO meta VALUES ('closed', '')")
                try:
                    self._db.close()
                finally:
                    os.close(self._lock_file)
                    self._lock_file = -1

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
                self._db.execute("COMMIT")
            except (sqlite3.Error, OverflowError) as error:
                self._roll_back()
                raise JournalError(f"the journal {self.path} cannot be written: {error}") from error
            except BaseException:
                self._roll_back()
                raise

    def _roll_back(self) -> None:
        self._numbers.clear()
        with suppress(sqlite3.Error):  # the first error is the one to tell
            if self._db.in_transaction:  # SQLite itself has rolled back when the disk was full
                self._db.execute("ROLLBACK")

    def _read(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        with self._lock:
            try:
                return self._db.execute(sql, parameters).fetchall()
            except (sqlite3.Error, OverflowError) as error:
                raise JournalError(f"the journal {self.path} cannot be read: {error}") from error

    # -- tasks

    def note(self, tasks: Iterable[Task], sources: Iterable[tuple[str, Source]] = ()) -> list[tuple[Task, bool]]:
        """Note each task, and how far (chain, source) was heard; give (task, is it new) in the order of ``tasks``.

        For a task that is known already, the one in the journal is given.
        """
        now = time.time()
        noted: list[tuple[Task, bool]] = []
        with self._transaction() as db:
            for task in tasks:
                noted.append((task, True) if _insert(db, task, now) else (_known(db, task), False))
            for chain, source in sources:
                db.execute(
                    "INSERT INTO sources VALUES (?, ?, ?, ?) ON CONFLICT (chain, log) DO UPDATE "
                    "SET address = excluded.address, have = max(have, excluded.have)",
                    (chain, _storable(source.log), _storable(source.address), source.have),
                )
        return noted

    def find(self, chain: str, kind: str, key: str) -> Task | None:
        """Give the task with this identity, in whatever state."""
        rows = self._read(
            f"SELECT {_TASK_COLUMNS} FROM tasks WHERE chain = ? AND kind = ? AND key = ?", (chain, kind, _storable(key))
        )
        return _task(rows[0]) if rows else None

    def keys(self, chain: str, kind: str) -> list[str]:
        """Give the keys of all tasks of a kind, in whatever state."""
        rows = self._read("SELECT key FROM tasks WHERE chain = ? AND kind = ?", (chain, kind))
        return [str(key) for (key,) in rows]

    def done_about(self, chain: str, kinds: Sequence[str], number: int) -> list[Task]:
        """Give the tasks of these kinds about an announcement that are done."""
        rows = self._read(
            f"SELECT {_TASK_COLUMNS} FROM tasks WHERE about = ? AND chain = ? AND state = 1 "
            f"AND kind IN ({','.join('?' * len(kinds))})",
            (number, chain, *kinds),
        )
        return [_task(row) for row in rows]

    def rewrite(self, tasks: Iterable[Task]) -> None:
        """Store a new body, lane, rank, due, state and time of noting of known tasks: one may start afresh."""
        with self._transaction() as db:
            for t in tasks:
                t.lane = _storable(t.lane)
                db.execute(
                    "UPDATE tasks SET body = ?, lane = ?, rank = ?, due = ?, state = ?, tries = ?, noted = ? "
                    "WHERE id = ?",
                    (_storable(t.body), t.lane, t.rank, t.due, t.state, t.tries, t.noted, t.id),
                )

    def amend(self, tasks: Iterable[Task]) -> None:
        """Store a new body of known tasks, and nothing else of them."""
        with self._transaction() as db:
            changes = [(_storable(task.body), task.id) for task in tasks]
            db.executemany("UPDATE tasks SET body = ? WHERE id = ?", changes)

    def claim(self, chain: str, lane: str, limit: int, now: float, *, taken: Collection[int] = ()) -> list[Task]:
        """Give up to ``limit`` tasks of a lane due at ``now``, lowest rank, then longest due, without those ``taken``.

        Which tasks run is a fact of this process and not of the file: a row stays waiting until it is finished, so
        that whatever ran when the process died is due again at the next start.
        """
        claimed: list[Task] = []
        for rank in (FRESH, BACKLOG):
            rows = self._read(
                f"SELECT {_TASK_COLUMNS} FROM tasks WHERE chain = ? AND lane = ? AND rank = ? AND due <= ? "
                "AND state = 0 ORDER BY due, id LIMIT ?",
                (chain, lane, rank, now, limit + len(taken)),
            )
            claimed += [_task(row) for row in rows if row[0] not in taken]
            if len(claimed) >= limit:
                break
        return claimed[:limit]

    def next_due(self, chain: str, lane: str, now: float) -> float | None:
        """Give the time after ``now`` at which the next waiting task of a lane is due, None when there is none."""
        rows = self._read(
            "SELECT min(due) FROM tasks WHERE chain = ?1 AND lane = ?2 AND rank = 0 AND state = 0 AND due > ?3 "
            "UNION ALL "
            "SELECT min(due) FROM tasks WHERE chain = ?1 AND lane = ?2 AND rank = 1 AND state = 0 AND due > ?3",
            (chain, lane, now),
        )
        return min((float(due) for (due,) in rows if due is not None), default=None)

    def lanes(self, chain: str) -> list[tuple[str, str]]:
        """Give (lane, kind) of everything that waits in a chain."""
        return [
            (str(lane), str(kind))
            for lane, kind in self._read(
                "SELECT lane, min(kind) FROM tasks WHERE chain = ? AND state = 0 GROUP BY lane", (chain,)
            )
        ]

    def finish(self, outcomes: Iterable[Outcome]) -> list[Task]:
        """Write how runs ended, and the tasks that follow from them, in one transaction; give those that are new."""
        now = time.time()
        new: list[Task] = []
        with self._transaction() as db:
            for outcome in outcomes:
                task = outcome.task
                over = outcome.state != WAITING
                db.execute(
                    "UPDATE tasks SET state = ?, rank = ?, tries = ?, due = ?, reply = ?, finished = ? WHERE id = ?",
                    (
                        outcome.state,
                        task.rank,
                        task.tries,
                        outcome.due or task.due,
                        None if outcome.reply is None else _storable(outcome.reply),
                        now if over else None,
                        task.id,
                    ),
                )
                new += [following for following in outcome.then if _insert(db, following, now)]
        return new

    def last_done(self, chain: str, kinds: Sequence[str], seconds: float) -> list[Task]:
        """Give the tasks of these kinds that were done in the last seconds of the process before, if it was killed.

        What it had sent, but had not written to the network yet, is lost although they are done.
        """
        if self._killed_at is None:
            return []
        rows = self._read(
            f"SELECT {_TASK_COLUMNS} FROM tasks WHERE state <> 0 AND finished BETWEEN ? AND ? AND chain = ? "
            f"AND state = 1 AND kind IN ({','.join('?' * len(kinds))}) ORDER BY finished, id",
            (self._killed_at - seconds, self._killed_at, chain, *kinds),
        )
        return [_task(row) for row in rows]

    def count(self, chain: str | None = None) -> dict[str, int]:
        """Count the tasks that wait, are done and have failed, of one chain or of all."""
        where, parameters = ("WHERE chain = ?", (chain,)) if chain is not None else ("", ())
        rows = self._read(f"SELECT state, count(*) FROM tasks {where} GROUP BY state", parameters)
        names = {WAITING: "waiting", DONE: "done", FAILED: "failed"}
        return dict.fromkeys(names.values(), 0) | {names[state]: number for state, number in rows}

    # -- announcements

    def announce(self, chain: str, announced: Sequence[Announced]) -> None:
        """Append to the log of a chain. The numbers must continue those of the chain (see ``last_number``)."""
        now = time.time()
        with self._transaction() as db:
            db.executemany(
                "INSERT INTO announcements (chain, number, uri, uid, size, mtime, noted, message) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (chain, a.number, _storable(a.uri), _storable(a.uid), a.size, a.mtime, now, _storable(a.message))
                    for a in announced
                ],
            )
            if announced:
                self._numbers[chain] = announced[-1].number

    def last_number(self, chain: str) -> int:
        """Give the number of the newest announcement of a chain, 0 when there was none."""
        number = self._numbers.get(chain)
        if number is None:
            with self._transaction() as db:  # nobody announces between the look and the remembering
                row = db.execute("SELECT max(number) FROM announcements WHERE chain = ?", (chain,)).fetchone()
                number = self._numbers[chain] = int(row[0] or 0)
        return number

    def announced(self, chain: str, uri: str) -> Announced | None:
        """Give the newest announcement of a file, None when this chain never announced it."""
        rows = self._read(
            "SELECT number, uri, uid, size, mtime, message FROM announcements WHERE chain = ? AND uri = ? "
            "ORDER BY number DESC LIMIT 1",
            (chain, _storable(uri)),
        )
        return Announced(*rows[0]) if rows else None

    def versions(self, chain: str, uris: Iterable[str]) -> dict[str, tuple[int | None, int | None]]:
        """Give (size, mtime) of the newest announcement of each file that this chain announced."""
        found: dict[str, tuple[int | None, int | None]] = {}
        for uri in uris:
            rows = self._read(
                "SELECT size, mtime FROM announcements WHERE chain = ? AND uri = ? ORDER BY number DESC LIMIT 1",
                (chain, _storable(uri)),
            )
            if rows:
                found[uri] = rows[0]
        return found

    def waits_about(self, chain: str, kind: str, number: int) -> bool:
        """Tell whether a task of this kind about this announcement is still waiting or running."""
        return bool(
            self._read(
                "SELECT 1 FROM tasks WHERE about = ? AND chain = ? AND kind = ? AND state = 0 LIMIT 1",
                (number, chain, kind),
            )
        )

    def hasten(self, chain: str, kind: str, number: int) -> list[Task]:
        """Make the waiting tasks about an announcement due now, and give them."""
        now = time.time()
        with self._transaction() as db:
            rows = db.execute(_TASKS_ABOUT, (number, chain, kind)).fetchall()
            db.executemany("UPDATE tasks SET due = ? WHERE id = ?", [(now, row[0]) for row in rows])
        tasks = [_task(row) for row in rows]
        for task in tasks:
            task.due = now
        return tasks

    def hasten_all(self, chain: str, kind: str) -> None:
        """Make all waiting tasks of a kind due now."""
        now = time.time()
        with self._transaction() as db:
            db.execute(
                "UPDATE tasks SET due = ? WHERE chain = ? AND kind = ? AND state = 0 AND due > ?",
                (now, chain, kind, now),
            )

    def waiting_about(self, chain: str, kind: str, number: int) -> list[Task]:
        """Give the tasks of this kind about an announcement that wait, or run."""
        return [_task(row) for row in self._read(_TASKS_ABOUT, (number, chain, kind))]

    def fail_waiting(self, chain: str, lane: str, *, but: Collection[int] = ()) -> list[int]:
        """End all waiting tasks of a lane as failed, without those in ``but``; give their ids."""
        with self._transaction() as db:
            rows = db.execute("SELECT id FROM tasks WHERE chain = ? AND lane = ? AND state = 0", (chain, lane))
            ids = [row[0] for row in rows if row[0] not in but]
            now = time.time()
            db.executemany("UPDATE tasks SET state = 2, finished = ? WHERE id = ?", [(now, id_) for id_ in ids])
        return ids

    def announcement(self, chain: str, number: int) -> Announced | None:
        """Give one announcement by its number."""
        rows = self._read(
            "SELECT number, uri, uid, size, mtime, message FROM announcements WHERE chain = ? AND number = ?",
            (chain, number),
        )
        return Announced(*rows[0]) if rows else None

    def announced_after(self, chain: str, number: int, limit: int) -> list[Announced]:
        """Give the announcements that came after ``number``, oldest first, at most ``limit``."""
        rows = self._read(
            "SELECT number, uri, uid, size, mtime, message FROM announcements WHERE chain = ? AND number > ? "
            "ORDER BY number LIMIT ?",
            (chain, number, limit),
        )
        return [Announced(*row) for row in rows]

    def number_before(self, chain: str, noted: float) -> int:
        """Give the number of the last announcement made before a time (s since the epoch), 0 when there is none."""
        rows = self._read(
            "SELECT number FROM announcements WHERE chain = ? AND noted < ? ORDER BY number DESC LIMIT 1",
            (chain, noted),
        )
        return int(rows[0][0]) if rows else 0

    def newest(self, chain: str, limit: int) -> list[Announced]:
        """Give the newest announcements of a chain, newest first."""
        rows = self._read(
            "SELECT number, uri, uid, size, mtime, message FROM announcements WHERE chain = ? "
            "ORDER BY number DESC LIMIT ?",
            (chain, limit),
        )
        return [Announced(*row) for row in rows]

    def undelivered(self, chain: str, kinds: Sequence[str], after: int, limit: int) -> list[Announced]:
        """Give announcements after a number that no finished task of ``kinds`` is about, oldest first."""
        marks = ",".join("?" * len(kinds))
        rows = self._read(
            "SELECT number, uri, uid, size, mtime, message FROM announcements a WHERE chain = ? AND number > ? "
            "AND NOT EXISTS (SELECT 1 FROM tasks t WHERE t.about = a.number AND t.chain = a.chain "
            f"AND t.kind IN ({marks}) AND t.state = 1) ORDER BY number LIMIT ?",
            (chain, after, *kinds, limit),
        )
        return [Announced(*row) for row in rows]

    # -- sources

    def sources(self, chain: str) -> list[Source]:
        """Give the sources that a chain has heard of, and how far it has each."""
        rows = self._read("SELECT log, address, have FROM sources WHERE chain = ?", (chain,))
        return [Source(*row) for row in rows]

    def forget_source(self, chain: str, log: str) -> None:
        """Forget a log that its source does not keep any more."""
        with self._transaction() as db:
            db.execute("DELETE FROM sources WHERE chain = ? AND log = ?", (chain, _storable(log)))

    # -- upkeep

    def prune(self, *, finished_before: float, announced_before: float, most_announcements: int) -> int:
        """Remove what is old (times in seconds since the epoch) or too many; give how many lines went.

        The newest announcement of each chain stays, so that its numbers go on.
        """
        removed = self._prune(
            "DELETE FROM tasks WHERE id IN (SELECT id FROM tasks WHERE state <> 0 AND finished < ? LIMIT ?)",
            finished_before,
        )
        rows = self._read("SELECT chain, max(number), count(*) FROM announcements GROUP BY chain")
        for chain, last, count in rows:
            oldest_kept = last - most_announcements if count > most_announcements else 0
            removed += self._prune(
                "DELETE FROM announcements WHERE id IN (SELECT id FROM announcements WHERE chain = ? AND number < ? "
                "AND (noted < ? OR number <= ?) LIMIT ?)",
                chain,
                last,
                announced_before,
                oldest_kept,
            )
        return removed

    def _prune(self, sql: str, *parameters: Any) -> int:
        removed = 0
        while True:
            with self._transaction() as db:
                count = db.execute(sql, (*parameters, _PRUNE_AT_ONCE)).rowcount
            removed += count
            if count < _PRUNE_AT_ONCE:
                return removed


def _insert(db: sqlite3.Connection, task: Task, now: float) -> bool:
    task.lane = _storable(task.lane)
    cursor = db.execute(
        "INSERT OR IGNORE INTO tasks (chain, kind, key, lane, rank, due, state, tries, noted, finished, about, body) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, 0, ?, ?, ?, ?)",
        (
            task.chain,
            task.kind,
            _storable(task.key),
            task.lane,
            task.rank,
            task.due or now,
            task.state,
            now,
            None if task.state == WAITING else now,
            task.about,
            _storable(task.body),
        ),
    )
    if cursor.rowcount != 1:
        return False
    task.id, task.noted, task.due = cursor.lastrowid or 0, now, task.due or now
    return True


def _known(db: sqlite3.Connection, task: Task) -> Task:
    row = db.execute(
        f"SELECT {_TASK_COLUMNS} FROM tasks WHERE chain = ? AND kind = ? AND key = ?",
        (task.chain, task.kind, _storable(task.key)),
    ).fetchone()
    return _task(row)


def _storable(text: str) -> str:
    """Give a text that SQLite can hold: the bytes of a file name that are no UTF-8 are written out."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def _task(row: Any) -> Task:
    id_, chain, kind, key, lane, rank, due, state, tries, noted, about, body, reply, finished = row
    return Task(chain, kind, key, lane, body, due, rank, about, id_, state, tries, noted, reply, finished)


def _lock_for_this_process(path: str) -> int:
    """Make the folder, and hold a lock beside the journal as long as this process lives; JournalError otherwise."""
    try:
        os.makedirs(os.path.dirname(path) or ".", mode=0o700, exist_ok=True)
        lock = os.open(path + ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise JournalError(
            f"no place for the journal: {path}: {error.strerror}; "
            "set 'journal' in [DEFAULT] to a file in a directory that this user may write"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise JournalError(f"the journal {path} cannot be locked: {error.strerror}") from error
        raise JournalError(
            f"the journal {path} is in use by another process; give each process a journal of its own"
        ) from error
    return lock
