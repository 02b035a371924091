"""A journal on PostgreSQL: clients that share their work, a large backlog, and the growth of its tables."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg

from benchmarks.figures import Figure
from benchmarks.flow import WARM_UP, WORK_TIMEOUT
from benchmarks.observers import Cost, Receipts
from trollmoves.journal import DONE, Outcome, Retention, Task
from trollmoves.journal.postgresql import PostgresJournal
from trollmoves.tests.helpers.daemons import Sections, Testbed, client_section, server_section
from trollmoves.tests.helpers.feeding import content, names
from trollmoves.tests.helpers.journals import new_schema
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers.postgresql import Postgresql

MEMBERS = (1, 2, 4)
GROUP = 20  # tasks in a claim
DEAD_LANE = 50_000  # of the waiting tasks, the oldest, belong to a lane that is not claimed
LANES = 10
ROUNDS = 10  # of the run that measures the growth
_COLUMNS = "chain, kind, key, lane, rank, due, state, tries, created, body"


def members(logs: Path, *, count: int) -> Iterator[Figure]:
    """Move a burst with one, two and four clients that share one journal, each a process on this machine."""
    for number in MEMBERS:
        with Postgresql() as database, Testbed(logs) as testbed:
            yield from _burst(testbed, database, number, count)


def _burst(testbed: Testbed, database: Postgresql, number: int, count: int) -> Iterator[Figure]:
    origin, out, port = testbed.directory("in"), testbed.directory("out"), testbed.port()
    process = {"journal": new_schema(database), "fleet": "share"}
    server = testbed.server({"hrit": server_section(origin, testbed.port())}, port)
    ports = [testbed.port() for _ in range(number)]
    sections: list[Sections] = [{"DEFAULT": process, "hrit": client_section(port, out, own)} for own in ports]
    clients = [testbed.client(one, name=f"client-{n}") for n, one in enumerate(sections)]
    observers = [testbed.close_at_end(Receipts(own)) for own in ports]
    for daemon in (server, *clients):
        daemon.start(wait=False)
    for daemon in (server, *clients):
        daemon.wait_until_ready()
    wanted = names()
    _move(origin, observers, list(itertools.islice(wanted, WARM_UP)))
    done = [len(observer.at) for observer in observers]
    cost = Cost(*(client.popen.pid for client in clients if client.popen))
    engine = engine_cpu(database)
    took = _move(origin, observers, list(itertools.islice(wanted, count)))
    engine = engine_cpu(database) - engine
    own_cpu = cost.cpu()
    shares = [len(observer.at) - before for observer, before in zip(observers, done, strict=True)]
    what = f"{number} client{'' if number == 1 else 's'}, one journal on PostgreSQL: "
    yield Figure(f"{what}burst of {count:,} files", count / took, "files/s")
    yield Figure(f"{what}CPU of PostgreSQL per file", 1e6 * engine / count, "us", more=False)
    yield Figure(f"{what}CPU of the clients per file", 1e6 * own_cpu / count, "us", more=False)
    yield Figure(f"{what}files of the client with the fewest", 100 * min(shares) / count, "%")


def _move(origin: Path, observers: list[Receipts], fed: list[str]) -> float:
    """Create files; return the seconds until each has a receipt of one of the clients."""
    ready = origin.with_name("ready")
    ready.mkdir(exist_ok=True)
    for name in fed:
        (ready / name).write_bytes(content(name))
    began = time.monotonic()
    for name in fed:
        os.rename(ready / name, origin / name)
    until(lambda: {n for one in observers for n in list(one.at)} >= set(fed), WORK_TIMEOUT, "all files have receipts")
    return time.monotonic() - began


def engine_cpu(database: Postgresql) -> float:
    """Return the CPU seconds of the engine with all its processes, also ended ones."""
    assert database.process
    main = database.process.pid
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if path.parent.name == str(main):
            ticks += sum(map(int, fields[11:15]))  # with its ended children
        elif fields[1] == str(main):
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def waiting_rows(_: Path, *, count: int) -> Iterator[Figure]:
    """Claim and finish tasks while many wait, the oldest of them in a lane that is paused."""
    with Postgresql() as database:
        url = new_schema(database)
        journal = PostgresJournal(url)
        _fill(database, url, count)
        finished, cost, engine = 0, Cost(os.getpid()), engine_cpu(database)
        began = time.monotonic()
        while time.monotonic() - began < 10:
            lane = f"lane {finished // GROUP % LANES}"
            finished += len(_claim_and_finish(journal, lane))
        took = time.monotonic() - began
        what = f"{count:,} waiting tasks in PostgreSQL: "
        yield Figure(f"{what}claimed in groups of {GROUP}, and finished", finished / took, "tasks/s")
        yield Figure(f"{what}CPU of the member per task", 1e6 * cost.cpu() / finished, "us", more=False)
        engine = engine_cpu(database) - engine
        yield Figure(f"{what}CPU of PostgreSQL per task", 1e6 * engine / finished, "us", more=False)
        began = time.monotonic()
        lanes = len(journal.lanes("chain"))
        yield Figure(f"{what}the names of its {lanes} lanes", 1e3 * (time.monotonic() - began), "ms", more=False)
        yield Figure(f"{what}size of the journal", _size(database, url), "MB", more=False)
        journal.close()


def _schema(url: str) -> str:
    return url.rpartition("schema=")[2]


def _size(database: Postgresql, url: str) -> float:
    """Return the megabytes of all tables and indexes of a journal."""
    with psycopg.connect(database.url, autocommit=True) as db:
        ((size,),) = db.execute(
            "SELECT sum(pg_total_relation_size(format('%%I.%%I', schemaname, relname)::regclass)) "
            "FROM pg_stat_user_tables WHERE schemaname = %s",
            (_schema(url),),
        ).fetchall()
    return float(size) / 1e6


def _fill(database: Postgresql, url: str, count: int) -> None:
    """Store waiting tasks."""
    with psycopg.connect(database.url, autocommit=True) as db:
        table = f"{_schema(url)}.tasks"
        rows = (
            "SELECT 'chain', 'fetch', 'file ' || n, CASE WHEN n < %s THEN 'dead lane' ELSE 'lane ' || n %% %s END, "
            "0, n / 1e6, 0, 0, n / 1e6, repeat('x', 500) FROM generate_series(1, %s) AS n"
        )
        db.execute(f"INSERT INTO {table} ({_COLUMNS}) {rows}".encode(), (DEAD_LANE, LANES, count))
        db.execute(f"VACUUM ANALYZE {table}".encode())


def _claim_and_finish(journal: PostgresJournal, lane: str) -> list[Task]:
    claimed = journal.claim("chain", lane, GROUP, journal.now())
    journal.finish([Outcome(task, DONE) for task in claimed])
    return claimed


def growth(_: Path, *, seconds: float, rate: float) -> Iterator[Figure]:
    """Store, claim, finish and prune tasks at a steady rate; compare the size of the table with that of its rows."""
    with Postgresql() as database:
        url = new_schema(database)
        journal = PostgresJournal(url)
        number, sizes = itertools.count(), []
        for _round in range(ROUNDS):
            end = time.monotonic() + seconds / ROUNDS
            while (begun := time.monotonic()) < end:
                tasks = [Task("chain", "fetch", f"file {next(number)}", "lane", "x" * 500) for _ in range(GROUP)]
                journal.finish([Outcome(task, DONE) for task, _ in journal.add_tasks(tasks)])
                time.sleep(max(0.0, begun + GROUP / rate - time.monotonic()))
            for _step in journal.prune(Retention(seconds / ROUNDS, seconds / ROUNDS, *[10_000_000] * 2), {}):
                pass
            sizes.append(_size(database, url))
        schema = _schema(url)
        with psycopg.connect(database.url, autocommit=True) as db:
            ((live, dead, vacuums),) = db.execute(
                "SELECT n_live_tup, n_dead_tup, autovacuum_count FROM pg_stat_user_tables "
                "WHERE schemaname = %s AND relname = 'tasks'",
                (schema,),
            ).fetchall()
        what = f"{rate:g} tasks/s on PostgreSQL for {seconds / 60:g} minutes: "
        yield Figure(f"{what}size of the journal, at the end", sizes[-1], "MB", more=False)
        yield Figure(f"{what}the same after a half", sizes[ROUNDS // 2], "MB", more=False)
        yield Figure(f"{what}dead rows per row", dead / max(1, live), "", more=False)
        yield Figure(f"{what}runs of autovacuum", vacuums, "")
        journal.close()
