"""An hour of files through two servers and two clients that share their work by journals on PostgreSQL."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

import psycopg

from benchmarks.figures import Figure
from benchmarks.fleet import engine_cpu
from benchmarks.observers import Receipts, percentiles
from trollmoves.tests.helpers.daemons import Process, Testbed, client_section, server_section
from trollmoves.tests.helpers.feeding import content, names
from trollmoves.tests.helpers.journals import new_schema
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers.postgresql import Postgresql

KEPT = 10.0  # minutes that the journals keep finished tasks and announcements: the tables reach their full size early
SAMPLE = 60.0  # s
TICK = 0.1  # s
MAX_WAITING = 500  # files without a receipt: on a busy machine, no more are fed then
_TABLES = (
    "SELECT coalesce(sum(pg_table_size(relid)), 0), coalesce(sum(pg_indexes_size(relid)), 0), "
    "coalesce(sum(n_live_tup), 0), coalesce(sum(n_dead_tup), 0), coalesce(sum(autovacuum_count), 0), "
    "pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0') FROM pg_stat_user_tables"
)


@dataclass(frozen=True)
class Sample:
    """The state after a minute; sizes in MB, CPU in seconds since the start, latency in ms."""

    minute: float
    fed: int
    received: int
    repeated: int
    incomplete: int
    tables: float
    indexes: float
    rows: int
    dead_rows: int
    vacuums: int
    wal: float
    engine_cpu: float
    engine_memory: float
    server_memory: float
    client_memory: float
    latency_p50: float
    latency_p99: float

    def __str__(self) -> str:
        return ", ".join(f"{one.name} {getattr(self, one.name):.6g}" for one in fields(self))


class SharedWork:
    """Two servers on one directory, two clients, and the files that are fed to them."""

    def __init__(self, testbed: Testbed, database: Postgresql) -> None:
        self._database = database
        self._origin, self._out = testbed.directory("in"), testbed.directory("out")
        self._ready = testbed.directory("ready")
        keep = {"keep_finished": KEPT / 1440, "keep_announcements": KEPT / 1440}
        journals = [{"journal": new_schema(database), "fleet": "share", **keep} for _ in range(2)]
        ports, own = [testbed.port(), testbed.port()], [testbed.port(), testbed.port()]
        self.servers: list[Process] = []
        self.clients: list[Process] = []
        for n, port in enumerate(ports):
            section = server_section(self._origin, testbed.port(), delete="True", remove_delay=1)
            self.servers.append(testbed.server({"DEFAULT": journals[0], "hrit": section}, port, name=f"server-{n}"))
        for n, port in enumerate(own):
            section = client_section(ports, self._out, port)
            self.clients.append(testbed.client({"DEFAULT": journals[1], "hrit": section}, name=f"client-{n}"))
        self._receipts = [testbed.close_at_end(Receipts(port)) for port in own]
        self._names = names()
        self._fed: dict[str, float] = {}
        self._received: set[str] = set()
        self._latencies: list[float] = []
        self._repeated = self._incomplete = 0
        for one in (*self.servers, *self.clients):
            one.start(wait=False)
        for one in (*self.servers, *self.clients):
            one.wait_until_ready()
        for client in self.clients:
            client.wait_for_line("connected to", len(ports))

    def feed(self, count: int) -> None:
        """Create files."""
        for name in itertools.islice(self._names, count):
            path = self._ready / name
            path.write_bytes(content(name))
            self._fed[name] = time.monotonic()
            path.rename(self._origin / name)

    @property
    def fed(self) -> int:
        """The number of files until now."""
        return len(self._fed)

    @property
    def waiting(self) -> int:
        """The number of files without a receipt, if no file has several."""
        return len(self._fed) - sum(one.count for one in self._receipts)

    def check(self) -> None:
        """Compare and remove the files with new receipts."""
        count = 0
        for one in self._receipts:
            count += one.count  # before its names are copied
            at = dict(one.at)
            for name in at.keys() - self._received:
                self._latencies.append(at[name] - self._fed[name])
                try:
                    self._incomplete += (self._out / name).read_bytes() != content(name)
                    (self._out / name).unlink()
                except FileNotFoundError:
                    self._incomplete += 1
            self._received |= at.keys()
        self._repeated = max(0, count - len(self._received))

    def sample(self, began: float) -> Sample:
        """Measure, and begin to collect the next latencies."""
        with psycopg.connect(self._database.url, autocommit=True) as db:
            ((tables, indexes, live, dead, vacuums, wal),) = db.execute(_TABLES).fetchall()
        p50, _, p99 = percentiles(self._latencies or [0.0])
        self._latencies = []
        return Sample(
            (time.monotonic() - began) / 60,
            self.fed,
            len(self._received),
            self._repeated,
            self._incomplete,
            float(tables) / 1e6,
            float(indexes) / 1e6,
            int(live),
            int(dead),
            int(vacuums),
            float(wal) / 1e6,
            engine_cpu(self._database),
            _engine_memory(self._database),
            sum(map(_memory, self.servers)),
            sum(map(_memory, self.clients)),
            p50,
            p99,
        )

    def problems(self) -> list[str]:
        """Return the warnings and errors in the logs of the daemons."""
        lines = [line for one in (*self.servers, *self.clients) for line in one.log.read_text().splitlines()]
        return [line for line in lines if "WARNING" in line or "ERROR" in line]


def _memory(process: Process) -> float:
    assert process.popen
    return _kilobytes(Path(f"/proc/{process.popen.pid}/status"), "VmRSS:") / 1e3


def _engine_memory(database: Postgresql) -> float:
    """Return the memory of all processes of the engine in MB; memory that they share is counted once."""
    assert database.process
    main = str(database.process.pid)
    total = 0.0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if path.parent.name == main or path.read_text().rpartition(")")[2].split()[1] == main:
                total += _kilobytes(path.with_name("smaps_rollup"), "Pss:")
    return total / 1e3


def _kilobytes(path: Path, field: str) -> float:
    return next(float(line.split()[1]) for line in path.read_text().splitlines() if line.startswith(field))


def hour(logs: Path, *, seconds: float, rate: float) -> Iterator[Figure]:
    """Move files, at most ``rate`` per second; print a sample each minute."""
    with Postgresql() as database, Testbed(logs) as testbed:
        work = SharedWork(testbed, database)
        began = time.monotonic()
        samples: list[Sample] = []
        due = last = 0.0
        while (now := time.monotonic() - began) < seconds:
            due += rate * min(now - last, 1.0) if work.waiting < MAX_WAITING else 0.0
            last = now
            work.feed(int(due) - work.fed)
            if now >= SAMPLE * (len(samples) + 1):
                work.check()
                samples.append(work.sample(began))
                print(samples[-1], flush=True)
            time.sleep(TICK)

        def is_done() -> bool:
            time.sleep(1)
            work.check()
            return work.waiting <= 0

        with suppress(AssertionError):
            until(is_done, 120, "all files have receipts")
        final = work.sample(began)
        print(final, *work.problems()[-20:], sep="\n", flush=True)
        half = samples[len(samples) // 2]
        what = f"2 servers and 2 clients on PostgreSQL, {final.fed:,} files in {seconds / 60:.0f} minutes: "
        yield Figure(f"{what}files without a receipt", final.fed - final.received, "", more=False)
        yield Figure(f"{what}files with several receipts", final.repeated, "", more=False)
        yield Figure(f"{what}incomplete files", final.incomplete, "", more=False)
        for when, one in (("after a half", half), ("at the end", samples[-1])):
            yield Figure(f"{what}size of the tables, {when}", one.tables, "MB", more=False)
            yield Figure(f"{what}size of the indexes, {when}", one.indexes, "MB", more=False)
            yield Figure(f"{what}dead rows per row, {when}", one.dead_rows / max(1, one.rows), "", more=False)
            yield Figure(f"{what}memory of PostgreSQL, {when}", one.engine_memory, "MB", more=False)
            yield Figure(f"{what}memory of the servers, {when}", one.server_memory, "MB", more=False)
            yield Figure(f"{what}memory of the clients, {when}", one.client_memory, "MB", more=False)
        yield Figure(f"{what}runs of autovacuum", final.vacuums, "")
        yield Figure(f"{what}write-ahead log per file", 1e3 * final.wal / final.fed, "kB", more=False)
        yield Figure(f"{what}CPU of PostgreSQL per file", 1e6 * final.engine_cpu / final.fed, "us", more=False)
