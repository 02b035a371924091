"""Connections to PostgreSQL: a small pool, repeated transactions, the clock of the engine, and errors.

A transaction is repeated on a new connection if the engine was restarted, replaced by its standby, or ended it because
of a deadlock. When the connection is lost during a commit, it is not known whether the engine has stored the changes;
each change has the time of its call (``now``), so that the repetition recognizes its rows.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import psycopg
from psycopg import errors, sql

from trollmoves.errors import JournalError, JournalFull, JournalUnusable, UnsupportedValue
from trollmoves.journal.clock import boot_time
from trollmoves.journal.postgresql.location import Location
from trollmoves.journal.postgresql.schema import LAYOUT, layout_of, prepare_schema

logger = logging.getLogger(__name__)

T = TypeVar("T")
Connection = psycopg.Connection[tuple[Any, ...]]

MAX_CONNECTIONS = 4
REPEAT_SECONDS = 3.0  # s for which a call is repeated before it raises JournalError
REPEAT_DELAY = 0.1  # s between two attempts
MAX_DOUBTFUL = 1000  # calls with an unknown result that are remembered
JUMP = 1_000_000  # numbers and ids that are left out after a fail-over, which may have lost the last ones
STATEMENT_TIMEOUT = 60  # s
LOCK_TIMEOUT = 10  # s
IDLE_TIMEOUT = 5  # s in which a transaction must continue, less than a lease: a suspended process keeps its locks
# With the last one, another member holds a task of the same turn: the repetition takes this into account.
_CONFLICTS = (errors.DeadlockDetected, errors.SerializationFailure, errors.LockNotAvailable, errors.UniqueViolation)
# The last two: the engine has become a standby, or has closed the connection of a suspended process.
_LOST = (
    *(psycopg.OperationalError, psycopg.InterfaceError),
    *(errors.ReadOnlySqlTransaction, errors.IdleInTransactionSessionTimeout),
)
_REJECTED = (
    "authentication failed", "no pg_hba.conf entry", "does not exist", "no password supplied", "certificate", "SSL",
)  # fmt: skip  # in errors of a connection, which have no code


class PostgresDatabase:
    """The connections of a process to one journal. Any thread."""

    def __init__(self, location: Location, synchronous_commit: str = "", *, creates: bool = True) -> None:
        """Connect, and create or migrate the tables, unless ``creates`` is False.

        ``synchronous_commit``: as in PostgreSQL, empty for its setting.

        Raises:
            JournalUnusable: the engine rejects the login, or the tables are those of another version.
            JournalError: the engine cannot be reached now.
        """
        self.location = location
        self.path = location.path
        self._creates = creates
        self._synchronous_commit = synchronous_commit
        self._idle: deque[Connection] = deque()
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._closed = False
        self._offset = 0.0  # of the engine's clock from CLOCK_BOOTTIME
        self._clock_lock = threading.Lock()
        self.doubtful: deque[float] = deque(maxlen=MAX_DOUBTFUL)  # times of calls with an unknown result
        self.damage = ""
        self.member = 0  # the id of this process as a member; 0 for a reader
        meta = dict(self.read("SELECT key, value FROM meta WHERE key IN ('identity', 'time')"))
        self.identity = meta["identity"]
        self._advance_clock(float(meta.get("time", 0)) - boot_time())

    # -- clock

    def now(self) -> float:
        """Return the time (s since the epoch) of the engine's clock. It never jumps back."""
        return self._offset + boot_time()

    def measure_clock(self) -> None:
        """Compare the clock with that of the engine; a later one is adopted."""
        self._repeat(self._measure_clock, "read")

    def _measure_clock(self, db: Connection) -> None:
        before = boot_time()
        row = db.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()
        assert row is not None  # noqa: S101
        self._advance_clock(row[0] - (before + boot_time()) / 2)

    def _advance_clock(self, offset: float) -> None:
        with self._clock_lock:
            self._offset = max(self._offset, offset)

    # -- transactions

    def run(self, work: Callable[[Connection], T], now: float = 0.0, *, fenced: bool = True) -> T:
        """Return the result of ``work`` in one transaction, which is repeated if the connection is lost.

        ``now`` is the time in the rows that it changes; ``doubtful`` has it after an attempt with an unknown result.
        If ``fenced``, raise JournalError if this member was buried; it is not buried before the transaction ends.
        """

        def transaction(db: Connection) -> T:
            with db.transaction():
                if fenced and self.member:
                    self._check_present(db)
                return work(db)

        return self._repeat(transaction, "written", now)

    def _check_present(self, db: Connection) -> None:
        """Lock the row of this member, so that it is not buried now: nothing would free the tasks that it stores."""
        row = db.execute("SELECT 1 FROM members WHERE id = %s AND NOT gone FOR KEY SHARE", (self.member,)).fetchone()
        if row is None:
            raise JournalError(
                f"the journal {self.path} cannot be written: another member has taken over the tasks of this one"
            )

    def run_statement(self, work: Callable[[Connection], T], now: float = 0.0) -> T:
        """Return the result of ``work``, which executes one statement, so that no transaction must be begun."""
        return self._repeat(work, "written", now)

    def read(self, statement: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> list[Any]:
        """Return the rows of a query."""
        return self._repeat(lambda db: db.execute(statement.encode(), parameters).fetchall(), "read")

    def fetch(self, statement: str, parameters: Sequence[Any] | Mapping[str, Any]) -> list[Any]:
        """Execute a statement that changes rows, and return the rows that it returns; ``run`` has the errors."""
        return self.run(lambda db: db.execute(statement.encode(), parameters).fetchall())

    def stream(self, statement: str, parameters: Sequence[Any], enough: Callable[[Any], bool]) -> list[Any]:
        """Return the rows of a query, through the first one for which ``enough`` returns True."""

        def work(db: Connection) -> list[Any]:
            rows = []
            with db.transaction(), db.cursor("rows") as cursor:
                cursor.itersize = 200
                for row in cursor.execute(statement.encode(), parameters):
                    rows.append(row)
                    if enough(row):
                        break
            return rows

        return self._repeat(work, "read")

    def _repeat(self, work: Callable[[Connection], T], participle: str, now: float = 0.0) -> T:
        deadline = time.monotonic() + REPEAT_SECONDS
        while True:
            sent = False
            try:
                with self.connection() as db:
                    sent = True
                    return work(db)
            except _CONFLICTS as error:
                self._give_up(error, participle, deadline)
            except _LOST as error:
                if now and sent and now not in self.doubtful:
                    self.doubtful.append(now)
                self._give_up(error, participle, deadline)
            except (psycopg.Error, UnicodeError) as error:
                raise self.to_journal_error(participle, error) from error
            time.sleep(REPEAT_DELAY)

    def _give_up(self, error: Exception, participle: str, deadline: float) -> None:
        if time.monotonic() > deadline or self._closed or not _is_temporary(error):
            raise self.to_journal_error(participle, error) from error

    def to_journal_error(self, participle: str, error: Exception) -> JournalError:
        """Return the JournalError for an error of the engine; its text has no value of a row and no password."""
        primary = error.diag.message_primary if isinstance(error, psycopg.Error) else None
        reason = primary or (type(error).__name__ if isinstance(error, psycopg.DataError) else str(error).strip())
        text = f"the journal {self.path} cannot be {participle}: {reason}"
        if isinstance(error, (psycopg.DataError, errors.ProgramLimitExceeded, UnicodeError)):
            return UnsupportedValue(text)
        if isinstance(error, errors.DiskFull):
            return JournalFull(text)
        return JournalError(text) if _is_temporary(error) else JournalUnusable(text)

    # -- connections

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """Yield a connection; one with an unfinished transaction or an error is closed afterwards."""
        if self.damage:
            raise JournalError(f"the journal {self.path} cannot be used: {self.damage}")
        with self._slots:
            db = self._take()
            try:
                yield db
            finally:
                if self._closed or db.closed or db.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                    db.close()
                else:
                    self._idle.append(db)

    def _take(self) -> Connection:
        while self._idle:
            with suppress(IndexError):
                db = self._idle.pop()
                if not db.closed:
                    return db
        return self.connect()

    def connect(self) -> Connection:
        """Open a connection that is not in the pool; raises as psycopg."""
        try:
            db = psycopg.connect(**self.location.parameters, autocommit=True)
        except psycopg.OperationalError as error:
            if any(text in str(error) for text in _REJECTED):
                raise JournalUnusable(f"the journal {self.path} rejects this host: {_first_line(error)}") from None
            raise
        try:
            self._set_up(db)
        except BaseException:
            db.close()
            raise
        return db

    def _set_up(self, db: Connection) -> None:
        timeouts = (STATEMENT_TIMEOUT, LOCK_TIMEOUT, IDLE_TIMEOUT)
        db.execute(
            sql.SQL(
                "SET search_path TO {}; SET enable_seqscan TO off; SET statement_timeout TO {}; "
                "SET lock_timeout TO {}; SET idle_in_transaction_session_timeout TO {}; SET client_encoding TO 'UTF8'"
            ).format(sql.Identifier(self.location.schema), *(sql.Literal(f"{n}s") for n in timeouts))
        )
        if self._synchronous_commit:
            db.execute(sql.SQL("SET synchronous_commit TO {}").format(sql.Literal(self._synchronous_commit)))
        if self._creates:
            prepare_schema(db, self.location.schema)
        elif (layout := layout_of(db, self.location.schema)) < LAYOUT:
            raise JournalError(
                f"the journal {self.path} is of an earlier version: run `trollmoves journal migrate`"
                if layout
                else f"the journal {self.path} does not exist: its daemon has not run yet, or uses another one"
            )
        self._measure_clock(db)
        self._check_timeline(db)

    def _check_timeline(self, db: Connection) -> None:
        """After a fail-over, leave out numbers and ids: the new primary may lack the last commits of the old one."""
        timeline, known = db.execute(
            "SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8), "
            "(SELECT value FROM meta WHERE key = 'timeline')"
        ).fetchone() or ("", None)
        if timeline == known:
            return
        with db.transaction():
            db.execute("INSERT INTO meta VALUES ('timeline', %s) ON CONFLICT (key) DO NOTHING", (timeline,))
            row = db.execute("SELECT value FROM meta WHERE key = 'timeline' FOR UPDATE").fetchone()
            if row and row[0] != timeline:
                db.execute("UPDATE meta SET value = %s WHERE key = 'timeline'", (timeline,))
                db.execute("UPDATE logs SET last = last + %s", (JUMP,))
                for table in ("tasks", "announcements", "members"):
                    db.execute(
                        "SELECT setval(pg_get_serial_sequence(%s, 'id'), "
                        "nextval(pg_get_serial_sequence(%s, 'id')) + %s)",
                        (table, table, JUMP),
                    )
                logger.warning(
                    "the journal %s is on a new primary: the numbers of all logs continue after a gap", self.path
                )

    def size(self) -> int:
        """Return the bytes of all tables and indexes."""
        ((size,),) = self.read(
            "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint FROM pg_class c "
            "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relkind = 'r'",
            (self.location.schema,),
        )
        return int(size)

    def close_connections(self) -> None:
        """Close all connections; later calls raise JournalError."""
        self._closed = True
        self.damage = self.damage or "it was closed"
        while self._idle:
            self._idle.pop().close()


def _is_temporary(error: Exception) -> bool:
    if isinstance(error, (errors.InsufficientPrivilege, errors.UndefinedTable, errors.UndefinedColumn)):
        return False
    return isinstance(error, (*_LOST, *_CONFLICTS))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
