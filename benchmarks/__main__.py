"""The command line of the benchmarks: ``make bench``."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks import dispatching, fleet, fleet_hour, flow, lines, movers, peers, plot, scale, topologies
from benchmarks.figures import Figure, as_data, has_pgo, python_build, table
from trollmoves.tests.helpers import legacy_peer as earlier
from trollmoves.tests.servers import postgresql

Work = Callable[[Path], Iterator[Figure]]
BY_NAME = ("fleet-hour",)  # benchmarks that run only if they are named


def works(*, full: bool, old: bool, with_peers: bool) -> dict[str, Work]:
    """Return all benchmarks by name, in their order."""
    times = 5 if full else 1
    return {
        **(peers.works(5000) if with_peers else {}),
        "burst": partial(flow.burst, count=5000, old=old),
        "large-burst": partial(flow.burst, count=4000 * times, old=False),
        "steady": partial(flow.steady, seconds=10 * times),
        "processors": partial(flow.processors, count=5000, seconds=10 * times),
        "idle": partial(flow.idle, count=300 * times, old=old),
        "metrics": partial(flow.metrics, count=2000),
        "small": partial(movers.small, count=500, old=old),
        "large": partial(movers.large, megabytes=200 * times),
        "lines": partial(lines.lines, megabytes=100 * times, count=500 * times),
        "fan-out": partial(topologies.fan_out, count=200 * times),
        "clients": partial(topologies.fan_out, count=100 * times, most=50),
        "fan-in": partial(topologies.fan_in, count=500 * times),
        "mirror": partial(topologies.mirror, count=1000 * times),
        "dispatcher": partial(dispatching.dispatcher, count=1000 * times, old=old),
        "dead-host": partial(topologies.dead_host, count=300 * times),
        "slow-link": partial(topologies.slow_link, count=500 * times),
        "sections": partial(scale.sections, count=7000 * times),
        "backlog": partial(scale.backlog, count=20_000 * times),
        "long": partial(scale.long_run, count=20_000 * times),
        **({} if postgresql.missing() else _on_postgresql(times)),
    }


def _on_postgresql(times: int) -> dict[str, Work]:
    return {
        "fleet": partial(fleet.members, count=1000 * times),
        "waiting-rows": partial(fleet.waiting_rows, count=1_000_000),
        "growth": partial(fleet.growth, seconds=60.0 * times, rate=200.0),
        "fleet-hour": partial(fleet_hour.hour, seconds=3600.0, rate=100.0),
    }


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    names = ", ".join(works(full=False, old=False, with_peers=True))
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__import__("benchmarks").__doc__)
    parser.add_argument("work", nargs="*", help=f"benchmarks to run, by default all: {names}")
    parser.add_argument(
        "--old", action="store_true", help="compare with 0.19.0, which is installed into a separate venv"
    )
    parser.add_argument("--peers", action="store_true", help="run other programs too: lsyncd, sr3")
    parser.add_argument("--full", action="store_true", help="five times as many files; half an hour")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--plot", type=Path, help="draw the ratios to 0.19.0 into this file (SVG)")
    found = parser.parse_args()
    unknown = set(found.work) - works(full=False, old=False, with_peers=found.peers).keys()
    if unknown:
        parser.error(f"unknown benchmarks: {', '.join(sorted(unknown))}; choose from {names}")
    return found


def main() -> int:
    """Measure and print the figures; return 1 if a promise was not kept."""
    options = arguments()
    if options.old and isinstance(missing := earlier.python(), earlier.PeerUnavailable):
        print(f"without 0.19.0: {missing}", file=sys.stderr)
        options.old = False
    print(python_build(), flush=True)
    if not has_pgo():
        print("warning: users run a Python with PGO, as distributions build it; this one is up to 1.3 times as slow")
    figures: list[Figure] = []
    for name, work in works(full=options.full, old=options.old, with_peers=options.peers).items():
        if name not in options.work if options.work else name in BY_NAME:
            continue
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="trollmoves-bench-") as logs:
            for figure in work(Path(logs)):
                figures.append(figure)
                cells = [cell for cell in figure.cells() if cell]
                print(f"{cells[0]}: {', '.join(cells[1:])}", flush=True)
        print(f"    ({name}: {time.monotonic() - began:.0f} s)", flush=True)
    print(f"\n{table(figures)}")
    if options.json:
        options.json.write_text(json.dumps(as_data(figures), indent=1) + "\n")
    if options.plot and not plot.draw(figures, options.plot):
        print("no picture: matplotlib and figures of 0.19.0 (--old) are required", file=sys.stderr)
    return int(any(figure.kept is False for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
