"""Run it with ``make bench``."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks import crowds, dispatching, flow, movers, plot, scale
from benchmarks.figures import Figure, as_data, table
from trollmoves.tests.helpers import legacy_peer as earlier

Work = Callable[[Path], Iterator[Figure]]


def works(*, full: bool, old: bool) -> dict[str, Work]:
    """Give all there is to measure, by name, in its order."""
    times = 5 if full else 1
    return {
        "burst": partial(flow.burst, count=5000, old=old),
        "large-burst": partial(flow.burst, count=4000 * times, old=False),
        "steady": partial(flow.steady, seconds=10 * times),
        "idle": partial(flow.idle, count=300 * times, old=old),
        "small": partial(movers.small, count=500, old=old),
        "large": partial(movers.large, megabytes=200 * times),
        "fan-out": partial(crowds.fan_out, count=200 * times),
        "clients": partial(crowds.fan_out, count=100 * times, most=50),
        "fan-in": partial(crowds.fan_in, count=500 * times),
        "mirror": partial(crowds.mirror, count=1000 * times),
        "dispatcher": partial(dispatching.dispatcher, count=1000 * times, old=old),
        "dead-host": partial(crowds.dead_host, count=300 * times),
        "line": partial(crowds.long_line, count=500 * times),
        "sections": partial(scale.sections, count=7000 * times),
        "backlog": partial(scale.backlog, count=20_000 * times),
        "long": partial(scale.long_run, count=20_000 * times),
    }


def arguments() -> argparse.Namespace:
    """Read the command line."""
    names = ", ".join(works(full=False, old=False))
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__import__("benchmarks").__doc__)
    parser.add_argument("work", nargs="*", help=f"what to measure, by default all: {names}")
    parser.add_argument("--old", action="store_true", help="beside 0.19.0, which is installed into a venv of its own")
    parser.add_argument("--full", action="store_true", help="five times as much of everything; half an hour")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--plot", type=Path, help="draw the ratios to 0.19.0 into this file (SVG)")
    found = parser.parse_args()
    unknown = set(found.work) - works(full=False, old=False).keys()
    if unknown:
        parser.error(f"no such work: {', '.join(sorted(unknown))}; there is {names}")
    return found


def main() -> int:
    """Measure, and show what came out; 1 when a promise was not kept."""
    asked = arguments()
    if asked.old and isinstance(missing := earlier.python(), earlier.PeerUnavailable):
        print(f"without 0.19.0: {missing}", file=sys.stderr)
        asked.old = False
    figures: list[Figure] = []
    for name, work in works(full=asked.full, old=asked.old).items():
        if asked.work and name not in asked.work:
            continue
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="trollmoves-bench-") as logs:
            for figure in work(Path(logs)):
                figures.append(figure)
                cells = [cell for cell in figure.cells() if cell]
                print(f"{cells[0]}: {', '.join(cells[1:])}", flush=True)
        print(f"    ({name}: {time.monotonic() - began:.0f} s)", flush=True)
    print(f"\n{table(figures)}")
    if asked.json:
        asked.json.write_text(json.dumps(as_data(figures), indent=1) + "\n")
    if asked.plot and not plot.draw(figures, asked.plot):
        print("no picture: it needs matplotlib, and figures of 0.19.0 (--old)", file=sys.stderr)
    return int(any(figure.kept is False for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
