"""Feeds two receptions, kills every daemon once on the way, and says what became of the files at every end.

The exit status is 0 when every file is whole everywhere, 130 after a Ctrl-C, else 1.
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
from picture import Picture

from trollmoves.tests.helpers.daemons import Testbed
from trollmoves.tests.helpers.waiting import until

PATIENCE = 90.0  # s that is waited for files to arrive
PACE = 0.005  # s between two files
BEHIND_CLIENT_B = ("client b", "sftp", "s3")


class Ends:
    """Where files should arrive; ``counts`` says how often a whole file got each name in a directory.

    A file travels under a hidden name, so that a rename to another name is a delivery. A thread of its own counts.
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
        """Count no more."""
        self._notifier.stop()

    def has(self, name: str, wanted: dict[str, bytes]) -> bool:
        """Tell whether all of these files are at an end, whole."""
        return not self.missing(name, wanted)

    def missing(self, name: str, wanted: dict[str, bytes]) -> list[str]:
        """Give the files that are not at an end, or not whole."""
        return [file for file, content in wanted.items() if _content(self.folders[name] / file) != content]


class Story:
    """One run. ``fed`` are the files that count; those that only try whether somebody hears do not.

    ``not_heard`` are those of which client b, when it is one of 0.19.0, never heard.
    """

    def __init__(self, picture: Picture, files: int) -> None:
        self.picture = picture
        self.fed: dict[str, bytes] = {}
        self.not_heard: set[str] = set()
        self._files = files
        self._started = time.monotonic()
        self._numbers = iter(range(1, 1_000_000))
        self._chance = random.Random(1)  # noqa: S311  (contents, not secrets)
        root = picture.site.root
        folders = {"client a": root / "forecast", "client b": root / "archive"}
        folders |= {name: root / "sent" / name for name in ("file", "ftp", "sftp") if name not in picture.left_out}
        self.ends = Ends(folders)
        picture.site.call_at_end(self.ends.stop)
        self.told = {"client a": picture.ear("19013"), "client b": picture.ear("19014")}
        self.dispatched = picture.ear("19015")

    def run(self) -> None:
        """Tell it to the end; AssertionError when something does not come to pass."""
        self.say("starting two servers, a mirror, two clients, a dispatcher, and what they deliver to")
        for name, why in self.picture.left_out.items():
            self.say(f"without the target {name}: {why}")
        self.picture.start()
        self.wait_until_heard()
        part = self._files // 6
        for name in ("server a", "server b", "client a"):
            with self.feeding(part):
                self.kill(name, "while files come")
            self.wait("client a", "client b", "file")
        self.kill_mirror(part)
        self.kill_client_b(part)
        self.kill_dispatcher(self._files - 5 * part)
        self.say("waiting for the last files")
        self.wait(*self.ends.folders)
        if "s3" not in self.picture.left_out:
            until(lambda: self.wanted("s3").items() <= self.picture.stored().items(), PATIENCE, "all files are in s3")
        wanted = set(self.fed)
        until(lambda: wanted <= set(self.told["client a"].receipts()), PATIENCE, "receipts of client a")

    # -- what happens

    def kill(self, name: str, when: str) -> None:
        """Kill a daemon and start it again."""
        self.picture.daemons[name].kill()
        self.say(f"{name} killed with kill -9 {when}; {len(self.fed)} files until now")
        self.picture.daemons[name].start()

    def kill_mirror(self, files: int) -> None:
        """Kill the mirror; a client of 0.19.0 is deaf while it waits for an answer that does not come.

        It never hears what the mirror announces meanwhile: such files are not expected of it.
        """
        before = set(self.fed)
        with self.feeding(files):
            self.kill("mirror", "while files come")
        self.wait("client a", "file")
        if "client b" in self.picture.earlier:
            self.wait_until_heard()
            self.not_heard = set(self.ends.missing("client b", self.fed)) - before
            self.say(
                f"client b, of 0.19.0, has not heard of {len(self.not_heard)} files that the mirror then announced"
            )
        self.wait("client b")

    def kill_client_b(self, files: int) -> None:
        """Kill client b; one of 0.19.0 forgets what it has heard: it is given nothing meanwhile."""
        if "client b" in self.picture.earlier:
            self.kill("client b", "while nothing comes, for 0.19.0 has no journal")
            self.wait_until_heard()
            self.feed(files)
        else:
            with self.feeding(files):
                self.kill("client b", "while files come")
        self.wait("client a", "client b", "file")

    def kill_dispatcher(self, files: int) -> None:
        """Kill the dispatcher when it has heard of everything and one of its targets is away.

        A message that is published while it is dead is heard by nobody, so nothing is fed until it listens again.
        """
        ftp = self.picture.far.get("ftp")
        if ftp:
            ftp.stop()
            self.say("the FTP server goes away")
        self.feed(files)
        self.wait("file")  # what is there was noted for all targets
        self.kill("dispatcher", "with files to deliver")
        if ftp:
            ftp.start()
            self.say("the FTP server is back")

    def wait_until_heard(self) -> None:
        """Feed files that do not count until one is delivered everywhere: 0.19.0 repeats nothing to who comes late."""

        def heard() -> bool:
            name, content = self._put()
            return _within(3, lambda: all(self.ends.has(end, {name: content}) for end in self.ends.folders))

        until(heard, PATIENCE, "a file arrives everywhere")

    def feed(self, count: int) -> None:
        """Bring in so many files, each at both receptions."""
        for _ in range(count):
            name, content = self._put()
            self.fed[name] = content
            time.sleep(PACE)

    @contextmanager
    def feeding(self, count: int) -> Iterator[None]:
        """Bring in files, the half of them before what happens in the block, the others meanwhile."""
        self.feed(count // 2)
        thread = threading.Thread(target=self.feed, args=(count - count // 2,), daemon=True)
        thread.start()
        yield
        thread.join()

    def _put(self) -> tuple[str, bytes]:
        name = f"H-MSG4-{next(self._numbers):06d}"
        content = self._chance.randbytes(self._chance.randint(1_000, 50_000))
        for reception in ("reception-a", "reception-b"):
            staged = self.picture.site.root / name
            staged.write_bytes(content)
            staged.rename(self.picture.site.root / reception / name)
        return name, content

    def wait(self, *ends: str) -> None:
        """Wait until all that was fed is at these ends."""
        for end in ends:
            wanted = self.wanted(end)
            until(partial(self.ends.has, end, wanted), PATIENCE, f"all files are at {end}")

    def wanted(self, end: str) -> dict[str, bytes]:
        """Give the files that are to be at an end."""
        without = self.not_heard if end in BEHIND_CLIENT_B else set()
        return {name: content for name, content in self.fed.items() if name not in without}

    # -- what is shown

    def say(self, text: str) -> None:
        """Write a line, with the time since the start."""
        print(f"{time.monotonic() - self._started:5.1f} s  {text}", flush=True)

    def table(self) -> bool:
        """Print what became of the files; tell whether all that are wanted are whole everywhere."""
        print(f"\n{'end':<10}{'wanted':>8}{'whole':>8}{'lost':>8}{'delivered again':>18}{'told of':>10}{'again':>8}")
        lost_at_all = 0
        for end in ("client a", "client b", "file", "ftp", "sftp", "s3"):
            if end in self.picture.left_out:
                continue
            wanted, there, counts, told = self.wanted(end), self._there(end), self._delivered(end), self._told(end)
            lost = sum(there.get(name) != content for name, content in wanted.items())
            lost_at_all += lost
            print(
                f"{end:<10}{len(wanted):>8}{len(wanted) - lost:>8}{lost:>8}{_again(counts):>18}"
                f"{len(told):>10}{_again(told):>8}"
            )
        return not lost_at_all

    def _there(self, end: str) -> dict[str, bytes | None]:
        """Give what is at an end."""
        if end == "s3":
            return {**self.picture.stored()}
        return {name: _content(self.ends.folders[end] / name) for name in self.fed}

    def _delivered(self, end: str) -> Counter[str]:
        """Give how often each file was delivered to an end."""
        if end != "s3":
            return Counter({name: self.ends.counts[end][name] for name in self.fed})
        log = self.picture.daemons["dispatcher"].log.read_text()
        return Counter({name: log.count(f"[s3] delivered {name} ") for name in self.fed})

    def _told(self, end: str) -> Counter[str]:
        """Give how often each file was told to be at an end."""
        if end in self.told:
            heard = self.told[end].receipts()
        else:
            heard = [one.uid for one in self.dispatched.of_type("file") if one.message.subject == f"/sent/{end}"]
        return Counter(name for name in heard if name in self.fed)


def _again(counts: Counter[str]) -> int:
    """Give how many were more than the first of their name."""
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
    """Tell the story; give its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=200, help="how many (%(default)s)")
    parser.add_argument(
        "--earlier", type=Path, help="folder of the commands of trollmoves 0.19.0; without it all is ours"
    )
    parser.add_argument("--keep", type=Path, default=Path(".end-to-end"), help="folder for the logs (%(default)s)")
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    arguments.keep.mkdir(parents=True, exist_ok=True)
    for log in arguments.keep.glob("*.log"):
        log.unlink()
    with Testbed(arguments.keep) as site:
        try:
            story = Story(Picture(site, arguments.earlier), arguments.files)
            try:
                story.run()
            except AssertionError as error:
                story.say(str(error))
            whole = story.table()
        except KeyboardInterrupt:
            print("interrupted: ending the processes, removing the files")
            return 130
    print(f"\nWhat the daemons logged is in {arguments.keep}/.")
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
