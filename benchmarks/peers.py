"""Other programs on the same work, for comparison: lsyncd with rsync."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks.calibrator import Calibrator
from benchmarks.figures import Figure
from benchmarks.observers import Arrivals
from trollmoves.tests.helpers.daemons import Testbed, end_with_parent
from trollmoves.tests.helpers.feeding import content, names
from trollmoves.tests.helpers.waiting import until

Work = Callable[[Path], Iterator[Figure]]

LSYNCD = """
settings {{ nodaemon = true, logfile = "{logs}/lsyncd.log" }}
sync {{ default.rsync, source = "{source}", target = "{target}", delay = 1, rsync = {{ archive = true }} }}
"""


def works(count: int) -> dict[str, Work]:
    """Return the benchmarks of the installed programs."""
    return {"lsyncd": partial(lsyncd, count=count)}


def lsyncd(logs: Path, *, count: int) -> Iterator[Figure]:
    """Time a burst of files through lsyncd with rsync, which begins to copy one second after the first file."""
    if missing := [name for name in ("lsyncd", "rsync") if not shutil.which(name)]:
        print(f"without lsyncd: missing: {', '.join(missing)} (Debian: apt-get install lsyncd rsync)")
        return
    with Testbed(logs) as testbed:
        staged, source, target = (testbed.directory(name) for name in ("staged", "source", "target"))
        config = testbed.root / "lsyncd.conf"
        config.write_text(LSYNCD.format(logs=logs, source=source, target=target))
        arrivals = testbed.close_at_end(Arrivals(target))
        process = subprocess.Popen([*end_with_parent(), "lsyncd", str(config)], stdout=subprocess.DEVNULL)
        try:
            (source / "first").write_text("1")
            until(lambda: "first" in arrivals.at, 30, "the first file of lsyncd")
            fed = list(itertools.islice(names(), count))
            for name in fed:
                (staged / name).write_bytes(content(name))
            began = time.monotonic()
            with Calibrator() as calibrator:
                for name in fed:
                    os.rename(staged / name, source / name)
                until(lambda: len(arrivals.at) > count, 120, "all files of lsyncd")
            rate = count / (max(arrivals.at.values()) - began)
        finally:
            process.terminate()
            _, process.returncode, usage = os.wait4(process.pid, 0)  # its processes of rsync included
        calibrated = 1e6 / count / calibrator.slowness
        cpu = usage.ru_utime + usage.ru_stime
    yield Figure(f"lsyncd with rsync: burst of {count:,} files of 1 kB", rate, "files/s")
    yield Figure("its CPU per file, if the calibrator takes 100 us", cpu * calibrated, "us", more=False)
