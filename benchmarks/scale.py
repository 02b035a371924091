"""Whether a file costs the same whatever waits, was done before, or is configured beside it."""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figures import Figure
from benchmarks.flow import PATIENCE, stage
from benchmarks.witness import Cost, Receipts
from trollmoves.tests.helpers.daemons import Testbed, client_section, server_section
from trollmoves.tests.helpers.feeding import content, names
from trollmoves.tests.helpers.waiting import until

SECTIONS = 100
TURNS = 7
MOST_MEMORY = 150  # MB of each process


def long_run(logs: Path, *, count: int) -> Iterator[Figure]:
    """Move many files, a tenth at a time: what the last tenth costs beside the second one, and the memory it took."""
    with stage(logs) as one:
        rates = []
        for _ in range(10):
            rates.append(one.rate(count // 10))
            for name in os.listdir(one.pair.feeder.folder):  # as a ground station does
                os.unlink(one.pair.feeder.folder / name)
        yield Figure(
            f"the last of {count:,} files: time of each to that of the first ones", rates[1] / rates[-1], "times",
            more=False, promise="<= 1.5", kept=rates[1] / rates[-1] <= 1.5,
        )  # fmt: skip
        for name, pid in zip(("server", "client"), one.processes, strict=True):
            memory = Cost(pid).memory()
            yield Figure(
                f"memory of the {name} after {count:,} files", memory, "MB", more=False,
                promise=f"< {MOST_MEMORY} MB", kept=memory < MOST_MEMORY,
            )  # fmt: skip


def backlog(logs: Path, *, count: int) -> Iterator[Figure]:
    """Start a server and a client where many files lie already."""
    with Testbed(logs) as site:
        origin, port, published = site.directory("in"), site.port(), site.port()
        fed = list(itertools.islice(names(), count))
        for name in fed:
            (origin / name).write_bytes(content(name, size=100))
        ear = site.close_at_end(Receipts(published))
        client = site.client({"hrit": client_section(port, site.directory("out"), published)}).start()
        server = site.server({"hrit": server_section(origin, site.port())}, port)
        began = time.monotonic()
        server.start()
        yield Figure(f"start of a server before {count:,} files", time.monotonic() - began, "s", more=False)
        until(lambda: bool(ear.at), 60, "a first file")
        yield Figure("its first file at the client", min(ear.at.values()) - began, "s", more=False)
        new = "H-000-MSG4__-MSG4________-new______-000001___-209901010000-__"
        (origin / f".{new}").write_bytes(content(new))
        appeared = time.monotonic()
        os.rename(origin / f".{new}", origin / new)
        ear.wait_for([new], PATIENCE)
        yield Figure("a new file, told of meanwhile after", ear.at[new] - appeared, "s", more=False)
        ear.wait_for(fed, PATIENCE)
        yield Figure("the backlog", count / (max(ear.at.values()) - began), "files/s")
        assert server.popen
        assert client.popen
        memory = max(Cost(server.popen.pid).memory(), Cost(client.popen.pid).memory())
        yield Figure("memory of the larger process", memory, "MB", more=False, promise="< 150 MB", kept=memory < 150)


def sections(logs: Path, *, count: int, most: int = SECTIONS) -> Iterator[Figure]:
    """Compare the cost of a file with one section in server and client, and with many: side by side, in turns."""
    with Testbed(logs) as site:
        one, many = _side(site, 1), _side(site, most)
        first = itertools.count(step=10_000)
        for origins, ears, _ in (one, many):
            _spread(origins, ears, 3 * len(origins), next(first))
        for what, busy in ((f"in one of {most} sections", 1), (f"spread over {most} sections", most)):
            ratios = []
            for turn in range(TURNS):
                cost = []
                for origins, ears, pids in (one, many) if turn % 2 else (many, one):
                    used = Cost(*pids)
                    _spread(origins[:busy], ears[:busy], count // TURNS, next(first))
                    cost.append(used.cpu())
                ratios.append(cost[1] / cost[0] if turn % 2 else cost[0] / cost[1])
            times, most_times = statistics.median(ratios), 1.5 if busy == 1 else 3
            yield Figure(
                f"CPU of a file {what} to that with one", times, "times", more=False,
                promise=f"<= {most_times}", kept=times <= most_times,
            )  # fmt: skip


def _side(site: Testbed, number: int) -> tuple[list[Path], list[Receipts], list[int]]:
    """Start a server and a client with so many sections; give the origins, who hears the receipts, and the pids."""
    port = site.port()
    origins = [site.directory(f"{number}-in{n}") for n in range(number)]
    ports = [site.port() for _ in origins]
    server = {
        f"chain{n}": server_section(origin, site.port(), topic=f"/chain/{n:03d}") for n, origin in enumerate(origins)
    }
    client = {
        f"chain{n}": client_section(port, site.directory(f"{number}-out{n}"), published, topic=f"/chain/{n:03d}")
        for n, published in enumerate(ports)
    }
    ears = [site.close_at_end(Receipts(published)) for published in ports]
    processes = [
        site.server(server, port, name=f"server-{number}").start(wait=False),
        site.client(client, name=f"client-{number}").start(wait=False),
    ]
    for process in processes:
        process.wait_until_ready()
    return origins, ears, [process.popen.pid for process in processes if process.popen]


def _spread(origins: list[Path], ears: list[Receipts], count: int, first: int) -> None:
    fed: list[list[str]] = [[] for _ in origins]
    for n, name in enumerate(itertools.islice(names(first), count)):
        at = n % len(origins)
        hidden = origins[at] / f".{name}"
        hidden.write_bytes(content(name))
        os.rename(hidden, origins[at] / name)
        fed[at].append(name)
    for ear, wanted in zip(ears, fed, strict=True):
        ear.wait_for(wanted, PATIENCE)
