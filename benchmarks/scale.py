"""The cost of a file with a backlog, after many other files, and with many sections."""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figures import Figure
from benchmarks.flow import WORK_TIMEOUT, stage
from benchmarks.observers import Cost, Receipts
from trollmoves.tests.helpers.daemons import Testbed, client_section, server_section
from trollmoves.tests.helpers.feeding import content, names
from trollmoves.tests.helpers.waiting import until

SECTIONS = 100
TURNS = 7
MAX_MEMORY = 150  # MB of each process


def long_run(logs: Path, *, count: int) -> Iterator[Figure]:
    """Move many files in ten parts; compare the time of the last part with the second one, and measure the memory."""
    with stage(logs) as one:
        rates = []
        for _ in range(10):
            rates.append(one.rate(count // 10))
            for name in os.listdir(one.pair.feeder.folder):  # as a ground station does
                os.unlink(one.pair.feeder.folder / name)
        yield Figure(
            f"the last of {count:,} files: time relative to the first ones", rates[1] / rates[-1], "times",
            more=False, promise="<= 1.5", kept=rates[1] / rates[-1] <= 1.5,
        )  # fmt: skip
        for name, pid in zip(("server", "client"), one.processes, strict=True):
            memory = Cost(pid).memory()
            yield Figure(
                f"memory of the {name} after {count:,} files", memory, "MB", more=False,
                promise=f"< {MAX_MEMORY} MB", kept=memory < MAX_MEMORY,
            )  # fmt: skip


def backlog(logs: Path, *, count: int) -> Iterator[Figure]:
    """Start a server and a client with many existing files."""
    with Testbed(logs) as testbed:
        origin, port, published = testbed.directory("in"), testbed.port(), testbed.port()
        fed = list(itertools.islice(names(), count))
        for name in fed:
            (origin / name).write_bytes(content(name, size=100))
        observer = testbed.close_at_end(Receipts(published))
        client = testbed.client({"hrit": client_section(port, testbed.directory("out"), published)}).start()
        server = testbed.server({"hrit": server_section(origin, testbed.port())}, port)
        began = time.monotonic()
        server.start()
        yield Figure(f"start of a server with {count:,} existing files", time.monotonic() - began, "s", more=False)
        until(lambda: bool(observer.at), 60, "a first file")
        yield Figure("its first file at the client", min(observer.at.values()) - began, "s", more=False)
        new = "H-000-MSG4__-MSG4________-new______-000001___-209901010000-__"
        (origin / f".{new}").write_bytes(content(new))
        appeared = time.monotonic()
        os.rename(origin / f".{new}", origin / new)
        observer.wait_for([new], WORK_TIMEOUT)
        yield Figure("a new file during the backlog, receipt after", observer.at[new] - appeared, "s", more=False)
        observer.wait_for(fed, WORK_TIMEOUT)
        yield Figure("the backlog", count / (max(observer.at.values()) - began), "files/s")
        assert server.popen
        assert client.popen
        memory = max(Cost(server.popen.pid).memory(), Cost(client.popen.pid).memory())
        yield Figure("memory of the larger process", memory, "MB", more=False, promise="< 150 MB", kept=memory < 150)


def sections(logs: Path, *, count: int, most: int = SECTIONS) -> Iterator[Figure]:
    """Compare the cost of a file with one section and with many sections, in turns."""
    with Testbed(logs) as testbed:
        one, many = _side(testbed, 1), _side(testbed, most)
        first = itertools.count(step=10_000)
        for origins, receipts, _ in (one, many):
            _spread(origins, receipts, 3 * len(origins), next(first))
        for what, busy in ((f"in one of {most} sections", 1), (f"spread over {most} sections", most)):
            ratios = []
            for turn in range(TURNS):
                cost = []
                for origins, receipts, pids in (one, many) if turn % 2 else (many, one):
                    used = Cost(*pids)
                    _spread(origins[:busy], receipts[:busy], count // TURNS, next(first))
                    cost.append(used.cpu())
                ratios.append(cost[1] / cost[0] if turn % 2 else cost[0] / cost[1])
            times, most_times = statistics.median(ratios), 1.5 if busy == 1 else 3
            yield Figure(
                f"CPU of a file {what}, relative to one section", times, "times", more=False,
                promise=f"<= {most_times}", kept=times <= most_times,
            )  # fmt: skip


def _side(testbed: Testbed, number: int) -> tuple[list[Path], list[Receipts], list[int]]:
    """Start a server and a client with this number of sections; return origins, receipt observers and pids."""
    port = testbed.port()
    origins = [testbed.directory(f"{number}-in{n}") for n in range(number)]
    ports = [testbed.port() for _ in origins]
    server = {
        f"chain{n}": server_section(origin, testbed.port(), topic=f"/chain/{n:03d}") for n, origin in enumerate(origins)
    }
    client = {
        f"chain{n}": client_section(port, testbed.directory(f"{number}-out{n}"), published, topic=f"/chain/{n:03d}")
        for n, published in enumerate(ports)
    }
    receipts = [testbed.close_at_end(Receipts(published)) for published in ports]
    processes = [
        testbed.server(server, port, name=f"server-{number}").start(wait=False),
        testbed.client(client, name=f"client-{number}").start(wait=False),
    ]
    for process in processes:
        process.wait_until_ready()
    return origins, receipts, [process.popen.pid for process in processes if process.popen]


def _spread(origins: list[Path], receipts: list[Receipts], count: int, first: int) -> None:
    fed: list[list[str]] = [[] for _ in origins]
    for n, name in enumerate(itertools.islice(names(first), count)):
        at = n % len(origins)
        hidden = origins[at] / f".{name}"
        hidden.write_bytes(content(name))
        os.rename(hidden, origins[at] / name)
        fed[at].append(name)
    for observer, wanted in zip(receipts, fed, strict=True):
        observer.wait_for(wanted, WORK_TIMEOUT)
