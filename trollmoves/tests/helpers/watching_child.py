"""A separate process that runs a DirectoryWatch: it prints the paths, and ends when its standard input is closed."""

from __future__ import annotations

import logging
import os
import resource
import sys

from trollmoves.matching.patterns import Origin
from trollmoves.watch import DirectoryWatch, FoundFile
from trollmoves.watch.completeness import QUIET_SECONDS


def say(*lines: object) -> None:
    """Write lines and flush them."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def peak() -> int:
    """Return the most memory this process has had, in kB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Counter:
    """Counts files without storing them, and prints how many kB the process has grown by."""

    def __init__(self, expected: int) -> None:
        self.left = expected
        self.before = peak()

    def __call__(self, files: list[FoundFile]) -> None:
        """Count."""
        self.left -= len(files)
        if self.left <= 0:
            say("counted", f"grown {peak() - self.before}")


def recorded(files: list[FoundFile]) -> None:
    """Write the paths."""
    say(*(file.path for file in files))


if __name__ == "__main__":
    pattern, *rest = sys.argv[1:]
    options = dict(option.split("=", 1) for option in rest)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(message)s")
    if "user" in options:
        os.setresuid(*3 * [int(options["user"])])
    on_found = Counter(int(options["count"])) if "count" in options else recorded
    watch = DirectoryWatch(Origin(pattern), on_found, quiet=float(options.get("quiet", QUIET_SECONDS)))
    watch.start()
    say("started")
    sys.stdin.read()
    watch.stop()
