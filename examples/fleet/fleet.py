"""Run two clients that share their work, kill one of them, and count how many times each file is delivered.

The exit status is 0 if every file is complete and has a receipt, otherwise 1.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # use the daemons and helpers of this checkout

from trollmoves.tests.helpers.fleet_site import FleetSite, run_example
from trollmoves.tests.helpers.waiting import until

BURIAL = 60.0  # s on a busy machine; the lease lasts 3 s


def run(site: FleetSite, count: int) -> bool:
    """Create files, kill a client during the first half, and print the counts; return True if all arrived."""
    one, other = site.clients
    site.server.start()
    for client in site.clients:
        client.start(wait=False)
    for client in site.clients:
        client.wait_until_ready()
    print(f"both clients work; {count} files appear, and client-a is killed")
    site.feeder.feed(count // 2)
    until(lambda: len(site.receipts()) > count // 8, what="files have receipts")
    one.kill()
    site.feeder.feed(count - count // 2)
    other.wait_for_line("did not renew its lease", seconds=BURIAL)
    print("client-b has the files of client-a")
    until(lambda: site.receipts().keys() >= site.feeder.fed.keys(), BURIAL, "all files have receipts")
    return report(site)


def report(site: FleetSite) -> bool:
    """Print the counts; return True if all files are complete."""
    delivered = Counter(re.findall(r"\] delivered (\S+) to", site.server.lines()))
    missing = site.feeder.missing(site.arrived)
    names = [client.log.stem for client in site.clients]
    members = zip(names, (len(set(subscriber.receipts())) for subscriber in site.subscribers), strict=True)
    print(f"complete at the destination  {len(site.feeder.fed) - len(missing)} of {len(site.feeder.fed)} files")
    print(f"delivered                    {times(delivered)}")
    print(f"published                    {times(site.receipts())}")
    print(f"published by                 {', '.join(f'{name}: {number}' for name, number in members)}")
    return not missing


def times(counts: Counter[str]) -> str:
    """Return how many files have each count."""
    words = {1: "once", 2: "twice"}
    return ", ".join(
        f"{number} {words.get(count, f'{count} times')}" for count, number in sorted(Counter(counts.values()).items())
    )


if __name__ == "__main__":
    sys.exit(run_example(Path(__file__).resolve().parent, __doc__ or "", run))
