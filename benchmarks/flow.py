"""Files through a server and a client: in a burst, at a steady rate, one at a time."""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.calibrator import REFERENCE, Calibrator
from benchmarks.figures import Figure
from benchmarks.observers import Arrivals, Cost, Machine, Receipts, percentiles
from trollmoves.tests.helpers import legacy_peer as earlier
from trollmoves.tests.helpers.daemons import DaemonPair, Testbed
from trollmoves.tests.helpers.feeding import content, names
from trollmoves.tests.helpers.scraping import scrape
from trollmoves.tests.helpers.waiting import until

WORK_TIMEOUT = 600.0  # s for each measurement
WARM_UP = 200  # files before the first measurement
OLD_BURST = 100  # files; 0.19.0 moves about ten per second
STEADY = 200  # files per second
LOADED = (500, 1000)  # files per second
QUIET = 0.1  # part of the machine that other programs, the calibrator included, may use during a quiet measurement


@dataclass
class Bench:
    """A running server and client, and their observers."""

    pair: DaemonPair
    receipts: Receipts
    arrivals: Arrivals
    names: Iterator[str]
    metrics_ports: Sequence[int] = ()

    def put(self, count: int, *, pause: float = 0.0) -> dict[str, float]:
        """Create files by renaming prepared ones; return the time of each."""
        staging = self.pair.feeder.folder.with_name("ready")
        staging.mkdir(exist_ok=True)
        fed = list(itertools.islice(self.names, count))
        for name in fed:
            (staging / name).write_bytes(content(name))
        appeared: dict[str, float] = {}
        next_at = time.monotonic()
        for name in fed:
            if pause:
                time.sleep(max(0.0, next_at - time.monotonic()))
                next_at += pause
            appeared[name] = time.monotonic()
            os.rename(staging / name, self.pair.feeder.folder / name)
        return appeared

    def wait_for(self, appeared: Mapping[str, float]) -> None:
        """Wait for the receipts of these files."""
        self.receipts.wait_for(appeared, WORK_TIMEOUT)

    def rate(self, count: int) -> float:
        """Return the files per second of a burst, from the first file to the last receipt."""
        appeared = self.put(count)
        self.wait_for(appeared)
        return count / (max(self.receipts.at[name] for name in appeared) - min(appeared.values()))

    @property
    def processes(self) -> tuple[int, int]:
        """The ids of the server and the client."""
        assert self.pair.server.popen
        assert self.pair.client.popen
        return self.pair.server.popen.pid, self.pair.client.popen.pid


@contextmanager
def stage(
    logs: Path,
    *,
    old: bool = False,
    options: Mapping[str, object] | None = None,
    metrics: bool = False,
    processors: Sequence[int] = (),
) -> Iterator[Bench]:
    """Start a server and a client, ours or those of 0.19.0, and move files to warm them up.

    ``processors`` are those of the server and of the client, by default all.
    """
    with Testbed(logs) as testbed:
        pair = DaemonPair(testbed, options)
        ports = [testbed.port(), testbed.port()] if metrics else []
        for port, daemon, sections in zip(
            ports, (pair.server, pair.client), (pair.server_sections, pair.client_sections), strict=False
        ):
            daemon.reconfigure({"DEFAULT": {"metrics_port": port}, **sections})
        for processor, daemon, sections in zip(
            processors, (pair.server, pair.client), (pair.server_sections, pair.client_sections), strict=False
        ):
            daemon.reconfigure({"DEFAULT": {"processors": processor}, **sections})
        if old:
            pair.server = earlier.server(testbed, pair.server_sections, pair.publish_port)
            pair.client = earlier.client(testbed, pair.client_sections)
        one = Bench(
            pair,
            testbed.close_at_end(Receipts(pair.client_port)),
            testbed.close_at_end(Arrivals(pair.target)),
            names(),
            ports,
        )
        pair.start()
        if old:  # it does not repeat messages from before the connection
            until(lambda: _arrives(one), 60, "a first file")
        else:
            one.rate(WARM_UP)
        yield one


def _arrives(one: Bench) -> bool:
    (name,) = one.put(1)
    try:
        one.receipts.wait_for([name], 1)
    except AssertionError:
        return False
    return True


def burst(logs: Path, *, count: int, old: bool) -> Iterator[Figure]:
    """Time a burst of files."""
    before = 0.0
    if old:
        with stage(logs, old=True) as one, Calibrator() as calibrator:
            before = one.rate(OLD_BURST)
        before *= calibrator.slowness
    with stage(logs) as one:
        half = one.rate(count // 2)
        cost = Cost(*one.processes)
        server, client = Cost(one.processes[0]), Cost(one.processes[1])
        with Calibrator() as calibrator:
            rate = one.rate(count)
        slowness = calibrator.slowness
        yield Figure(
            f"burst of {count:,} files of 1 kB", rate, "files/s", old=before / slowness or None,
            limit=bare_rate(logs), limit_of="rename and link", promise=">= 1,000 files/s", kept=rate >= 1000,
        )  # fmt: skip
        times = (count / rate) / (count // 2 / half)
        yield Figure(
            "its time relative to half the number", times, "times", more=False, promise="<= 3", kept=times <= 3
        )
        yield Figure("CPU of the server per file", server.cpu() / count * 1e6, "us", more=False)
        yield Figure("CPU of the client per file", client.cpu() / count * 1e6, "us", more=False)
        yield Figure(
            "CPU of both per file, if the calibrator takes 100 us",
            cost.cpu() / count * 1e6 / slowness,
            "us",
            more=False,
        )
        yield Figure("the calibrator", slowness * REFERENCE, "us", more=False)
        yield Figure("memory of both", cost.memory(), "MB", more=False)


def processors(logs: Path, *, count: int, seconds: int) -> Iterator[Figure]:
    """Repeat the burst and the steady rates with one processor for each daemon."""
    own = sorted(os.sched_getaffinity(0))[:2]
    if len(own) < 2:
        return
    with stage(logs, processors=own) as one:
        cost = Cost(*one.processes)
        rate = one.rate(count)
        yield Figure(f"a processor for each daemon: burst of {count:,} files of 1 kB", rate, "files/s")
        yield Figure("the same: CPU of both per file", cost.cpu() / count * 1e6, "us", more=False)
    for loaded in LOADED:
        for figure in _steady(logs, loaded, seconds, own):
            yield replace(figure, work=f"a processor for each daemon: {figure.work}")


def cost_of_a_file(logs: Path, count: int = 2000) -> tuple[float, bool]:
    """Return the microseconds of processor time of a file in a burst, calibrated, and whether the machine was quiet."""
    with stage(logs) as one, Calibrator() as calibrator:
        machine, cost, all_costs = Machine(), Cost(*one.processes), Cost(*one.processes, os.getpid())
        one.rate(count)
        cpu, is_quiet = cost.cpu(), machine.load_of_others(all_costs.cpu()) < QUIET
    return cpu / count * 1e6 / calibrator.slowness, is_quiet


def metrics(logs: Path, *, count: int, pairs: int = 10) -> Iterator[Figure]:
    """Compare the CPU of a burst with and without metrics, in alternating pairs; each burst includes a scrape."""
    ratios = []
    for number in range(pairs):
        costs = {}
        for enabled in (True, False) if number % 2 else (False, True):
            with stage(logs, metrics=enabled) as one:
                cost = Cost(*one.processes)
                for port in one.metrics_ports:
                    scrape(port)
                one.rate(count)
                costs[enabled] = cost.cpu()
        ratios.append(costs[True] / costs[False])
    ratio = statistics.median(ratios)
    yield Figure(
        "CPU of a file with metrics, relative to without", ratio, "times", more=False,
        promise="<= 1.03", kept=ratio <= 1.03,
    )  # fmt: skip


def steady(logs: Path, *, seconds: int) -> Iterator[Figure]:
    """Time files that are created at steady rates."""
    for rate in (STEADY, *LOADED):
        yield from _steady(logs, rate, seconds)


def _steady(logs: Path, rate: int, seconds: int, own: Sequence[int] = ()) -> Iterator[Figure]:
    with stage(logs, processors=own) as one:
        cost = Cost(*one.processes)
        appeared = one.put(rate * seconds, pause=1 / rate)
        one.wait_for(appeared)
        until(lambda: appeared.keys() <= one.arrivals.at.keys(), 30, "all files arrive")
        complete = percentiles(one.arrivals.at[name] - at for name, at in appeared.items())
        receipt = percentiles(one.receipts.at[name] - at for name, at in appeared.items())
        yield Figure(f"{rate} files/s: CPU of both per file", cost.cpu() / len(appeared) * 1e6, "us", more=False)
        for what, (p50, p95, p99) in (("complete file", complete), ("receipt", receipt)):
            promised = what == "complete file" and rate == STEADY
            work = f"{rate} files/s, creation to {what}"
            yield Figure(
                f"{work}, p50", p50, "ms", more=False,
                promise="<= 5 ms" if promised else "", kept=p50 <= 5 if promised else None,
            )  # fmt: skip
            yield Figure(f"{work}, p95", p95, "ms", more=False)
            yield Figure(
                f"{work}, p99", p99, "ms", more=False,
                promise="<= 50 ms" if promised else "", kept=p99 <= 50 if promised else None,
            )  # fmt: skip


def idle(logs: Path, *, count: int, old: bool) -> Iterator[Figure]:
    """Time single files on an idle system."""
    before = 0.0
    if old:
        with stage(logs, old=True) as one, Calibrator() as calibrator:
            before = _latency(one, 20)
        before /= calibrator.slowness
    with stage(logs) as one, Calibrator() as calibrator:
        p50 = _latency(one, count)
    yield Figure(
        "one file, creation to receipt, p50", p50, "ms", more=False, old=before * calibrator.slowness or None,
        limit=round_trip(), limit_of="ZeroMQ round trip", promise="<= 5 ms", kept=p50 <= 5,
    )  # fmt: skip


def _latency(one: Bench, count: int) -> float:
    took = []
    for _ in range(count):
        ((name, appeared),) = one.put(1).items()
        one.wait_for({name: appeared})
        took.append(one.receipts.at[name] - appeared)
        time.sleep(0.02)  # until the daemons are idle again
    return percentiles(took)[0]


def bare_rate(logs: Path, count: int = 5000) -> float:
    """Return the files per second of a loop that only renames each file and links it to a target."""
    with Testbed(logs) as testbed:
        staged, origin, target = (testbed.directory(name) for name in ("staged", "origin", "target"))
        fed = list(itertools.islice(names(), count))
        for name in fed:
            (staged / name).write_bytes(content(name))
        began = time.monotonic()
        for name in fed:
            os.rename(staged / name, origin / name)
            os.link(origin / name, target / f".{name}")
            os.rename(target / f".{name}", target / name)
        return count / (time.monotonic() - began)


def round_trip(count: int = 2000) -> float:
    """Return the milliseconds of a bare request and reply between two threads, p50."""
    import threading

    import zmq

    context = zmq.Context()
    server, client = context.socket(zmq.REP), context.socket(zmq.REQ)
    client.connect(f"tcp://127.0.0.1:{server.bind_to_random_port('tcp://127.0.0.1')}")

    def reply() -> None:
        for _ in range(count):
            server.send(server.recv())

    thread = threading.Thread(target=reply, daemon=True)
    thread.start()
    took = []
    for _ in range(count):
        began = time.monotonic()
        client.send(b"x" * 600)
        client.recv()
        took.append(time.monotonic() - began)
    thread.join(5)
    context.destroy(0)
    return percentiles(took)[0]
