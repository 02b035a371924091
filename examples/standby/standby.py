"""Run a client with a standby, kill the one that works, and count the files that arrive.

The exit status is 0 if every file is complete and has a receipt, otherwise 1.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # use the daemons and helpers of this checkout

from trollmoves.tests.helpers.fleet_site import FleetSite, run_example
from trollmoves.tests.helpers.waiting import until

TAKEOVER = 60.0  # s on a busy machine; the lease lasts 3 s


def run(site: FleetSite, count: int) -> bool:
    """Create files, kill the working host after a half of them, and print the results; return True if all arrived."""
    first, second = site.clients
    site.server.start()
    first.start()
    second.start(wait=False)
    second.wait_for_line("waiting as standby")
    print(f"host a works, host b waits; {count} files appear, and host a is killed")
    site.feeder.feed(count // 2)
    until(lambda: len(site.receipts()) > count // 8, what="files arrive")
    first.kill()
    site.feeder.feed(count - count // 2)
    second.wait_for_line("took over the journal", seconds=TAKEOVER)
    print("host b took over the journal")
    until(lambda: site.receipts().keys() >= site.feeder.fed.keys(), TAKEOVER, "all files have receipts")
    missing = site.feeder.missing(site.arrived)
    repeated = sum(number > 1 for number in site.receipts().values())
    print(f"{count - len(missing)} of {count} files arrived, {repeated} receipts of the moment of the kill repeated")
    return not missing


if __name__ == "__main__":
    sys.exit(run_example(Path(__file__).resolve().parent, __doc__ or "", run))
