"""Create files at two receptions, kill every daemon once, and print the results at every destination.

The exit status is 0 if every file is complete everywhere, 130 after a Ctrl-C, otherwise 1.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pyinotify
from system import System

from trollmoves.tests.helpers.daemons import Testbed
from trollmoves.tests.helpers.waiting import until

ARRIVAL_TIMEOUT = 90.0  # s to wait for files
FILE_INTERVAL = 0.005  # s between two files
BEHIND_CLIENT_B = ("client b", "sftp", "s3")


class Destinations:
    """The directories in which files arrive; ``counts`` contains the number of deliveries of each file.

    Files are sent under a hidden name, so a rename to another name is a delivery. A thread counts them.
    """

    def __init__(self, folders: dict[str, Path]) -> None:
        self.folders = folders
        self.counts = {name: Counter[str]() for name in folders}
        names = {str(folder): name for name, folder in folders.items()}
        manager = pyinotify.WatchManager()

        def count(event: pyinotify.Event) -> None:
            if not event.name.startswith("."):
                self.counts[names[event.path]][event.name] += 1

        self._notifier = pyinotify.ThreadedNotifier(manager, count)
        self._notifier.daemon = True
        for folder in folders.values():
            manager.add_watch(str(folder), pyinotify.IN_MOVED_TO)
        self._notifier.start()

    def stop(self) -> None:
        """Stop counting."""
        self._notifier.stop()

    def has(self, name: str, wanted: dict[str, bytes]) -> bool:
        """Return True if all of these files are complete at a destination."""
        return not self.missing(name, wanted)

    def missing(self, name: str, wanted: dict[str, bytes]) -> list[str]:
        """Return the files that are missing or incomplete at a destination."""
        return [file for file, content in wanted.items() if _content(self.folders[name] / file) != content]


class Scenario:
    """One run. ``created`` contains the files of the results, without those that only test the connections.

    ``missed`` contains the files with announcements that client b, if it runs 0.19.0, did not receive.
    """

    def __init__(self, system: System, files: int) -> None:
        self.system = system
        self.created: dict[str, bytes] = {}
        self.missed: set[str] = set()
        self._files = files
        self._started = time.monotonic()
        self._numbers = iter(range(1, 1_000_000))
        self._chance = random.Random(1)  # noqa: S311  (contents, not secrets)
        root = system.testbed.root
        folders = {"client a": root / "forecast", "client b": root / "archive"}
        folders |= {name: root / "sent" / name for name in ("file", "ftp", "sftp") if name not in system.omitted}
        self.destinations = Destinations(folders)
        system.testbed.call_at_end(self.destinations.stop)
        self.receipts = {"client a": system.subscriber("19013"), "client b": system.subscriber("19014")}
        self.dispatched = system.subscriber("19015")

    def run(self) -> None:
        """Run all steps; raise AssertionError if one of them fails."""
        self.say("starting two servers, a mirror, two clients, a dispatcher, and the destination servers")
        for name, why in self.system.omitted.items():
            self.say(f"without the target {name}: {why}")
        self.system.start()
        self.wait_until_connected()
        part = self._files // 6
        for name in ("server a", "server b", "client a"):
            with self.creating(part):
                self.kill(name, "while files are being created")
            self.wait("client a", "client b", "file")
        self.kill_mirror(part)
        self.kill_client_b(part)
        self.kill_dispatcher(self._files - 5 * part)
        self.say("waiting for the last files")
        self.wait(*self.destinations.folders)
        if "s3" not in self.system.omitted:
            until(
                lambda: self.wanted("s3").items() <= self.system.stored().items(),
                ARRIVAL_TIMEOUT,
                "all files are in s3",
            )
        wanted = set(self.created)
        until(lambda: wanted <= set(self.receipts["client a"].receipts()), ARRIVAL_TIMEOUT, "receipts of client a")

    # -- the steps

    def kill(self, name: str, when: str) -> None:
        """Kill a daemon and start it again."""
        self.system.daemons[name].kill()
        self.say(f"{name} killed with kill -9 {when}; {len(self.created)} files so far")
        self.system.daemons[name].start()

    def kill_mirror(self, files: int) -> None:
        """Kill the mirror; a 0.19.0 client that waits for a reply of the mirror receives no messages.

        Files that the mirror announces during that time are not expected at this client.
        """
        before = set(self.created)
        with self.creating(files):
            self.kill("mirror", "while files are being created")
        self.wait("client a", "file")
        if "client b" in self.system.legacy:
            self.wait_until_connected()
            self.missed = set(self.destinations.missing("client b", self.created)) - before
            self.say(f"client b, with 0.19.0, missed {len(self.missed)} announcements of the mirror during that time")
        self.wait("client b")

    def kill_client_b(self, files: int) -> None:
        """Kill client b; a 0.19.0 client loses received announcements, so no files are created during that time."""
        if "client b" in self.system.legacy:
            self.kill("client b", "while no files are created, because 0.19.0 has no journal")
            self.wait_until_connected()
            self.create(files)
        else:
            with self.creating(files):
                self.kill("client b", "while files are being created")
        self.wait("client a", "client b", "file")

    def kill_dispatcher(self, files: int) -> None:
        """Kill the dispatcher when it has received all messages and one of its targets is down.

        Messages that are published while it is down are lost, so no files are created during that time.
        """
        ftp = self.system.destination_servers.get("ftp")
        if ftp:
            ftp.stop()
            self.say("the FTP server is stopped")
        self.create(files)
        self.wait("file")  # the deliveries to all targets are stored now
        self.kill("dispatcher", "with files to deliver")
        if ftp:
            ftp.start()
            self.say("the FTP server is started again")

    def wait_until_connected(self) -> None:
        """Create test files until one arrives everywhere: 0.19.0 does not repeat messages for late subscribers."""

        def delivered() -> bool:
            name, content = self._put()
            return _within(
                3, lambda: all(self.destinations.has(end, {name: content}) for end in self.destinations.folders)
            )

        until(delivered, ARRIVAL_TIMEOUT, "a file arrives everywhere")

    def create(self, count: int) -> None:
        """Create this number of files, each at both receptions."""
        for _ in range(count):
            name, content = self._put()
            self.created[name] = content
            time.sleep(FILE_INTERVAL)

    @contextmanager
    def creating(self, count: int) -> Iterator[None]:
        """Create files, half of them before the block, the others during the block."""
        self.create(count // 2)
        thread = threading.Thread(target=self.create, args=(count - count // 2,), daemon=True)
        thread.start()
        yield
        thread.join()

    def _put(self) -> tuple[str, bytes]:
        name = f"H-MSG4-{next(self._numbers):06d}"
        content = self._chance.randbytes(self._chance.randint(1_000, 50_000))
        for reception in ("reception-a", "reception-b"):
            staged = self.system.testbed.root / name
            staged.write_bytes(content)
            staged.rename(self.system.testbed.root / reception / name)
        return name, content

    def wait(self, *ends: str) -> None:
        """Wait until all files are at these destinations."""
        for end in ends:
            wanted = self.wanted(end)
            until(partial(self.destinations.has, end, wanted), ARRIVAL_TIMEOUT, f"all files are at {end}")

    def wanted(self, end: str) -> dict[str, bytes]:
        """Return the files that are expected at a destination."""
        without = self.missed if end in BEHIND_CLIENT_B else set()
        return {name: content for name, content in self.created.items() if name not in without}

    # -- the output

    def say(self, text: str) -> None:
        """Write a line, with the time since the start."""
        print(f"{time.monotonic() - self._started:5.1f} s  {text}", flush=True)

    def table(self) -> bool:
        """Print the results; return True if all expected files are complete everywhere."""
        print(
            f"\n{'end':<10}{'expected':>8}{'complete':>9}{'lost':>8}{'delivered again':>18}{'receipts':>10}{'again':>8}"
        )
        lost_anywhere = 0
        for end in ("client a", "client b", "file", "ftp", "sftp", "s3"):
            if end in self.system.omitted:
                continue
            wanted, there, counts, receipts = (
                self.wanted(end),
                self._there(end),
                self._delivered(end),
                self._receipts(end),
            )
            lost = sum(there.get(name) != content for name, content in wanted.items())
            lost_anywhere += lost
            print(
                f"{end:<10}{len(wanted):>8}{len(wanted) - lost:>9}{lost:>8}{_again(counts):>18}"
                f"{len(receipts):>10}{_again(receipts):>8}"
            )
        return not lost_anywhere

    def _there(self, end: str) -> dict[str, bytes | None]:
        """Return the files at a destination."""
        if end == "s3":
            return {**self.system.stored()}
        return {name: _content(self.destinations.folders[end] / name) for name in self.created}

    def _delivered(self, end: str) -> Counter[str]:
        """Return the number of deliveries of each file to a destination."""
        if end != "s3":
            return Counter({name: self.destinations.counts[end][name] for name in self.created})
        log = self.system.daemons["dispatcher"].log.read_text()
        return Counter({name: log.count(f"[s3] delivered {name} ") for name in self.created})

    def _receipts(self, end: str) -> Counter[str]:
        """Return the number of receipts of each file at a destination."""
        if end in self.receipts:
            received = self.receipts[end].receipts()
        else:
            received = [one.uid for one in self.dispatched.of_type("file") if one.message.subject == f"/sent/{end}"]
        return Counter(name for name in received if name in self.created)


def _again(counts: Counter[str]) -> int:
    """Return the number of repetitions."""
    return sum(count - 1 for count in counts.values() if count > 1)


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _within(seconds: float, condition: Callable[[], bool]) -> bool:
    try:
        return until(condition, seconds)
    except AssertionError:
        return False


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Run the scenario; return its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=200, help="number of files (%(default)s)")
    parser.add_argument(
        "--earlier", type=Path, help="directory of the commands of trollmoves 0.19.0, for server b and client b"
    )
    parser.add_argument("--keep", type=Path, default=Path(".end-to-end"), help="folder for the logs (%(default)s)")
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    arguments.keep.mkdir(parents=True, exist_ok=True)
    for log in arguments.keep.glob("*.log"):
        log.unlink()
    with Testbed(arguments.keep) as testbed:
        try:
            scenario = Scenario(System(testbed, arguments.earlier), arguments.files)
            try:
                scenario.run()
            except AssertionError as error:
                scenario.say(str(error))
            complete = scenario.table()
        except KeyboardInterrupt:
            print("interrupted: ending the processes, removing the files")
            return 130
    print(f"\nThe logs of the daemons are in {arguments.keep}/.")
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
