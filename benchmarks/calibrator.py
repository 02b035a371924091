"""The speed of this machine during a measurement, by which figures of different moments and machines can be compared.

A process does a small piece of work ten times a second and measures its processor time. The daemons do work of the same
kind: two threads pass items to each other, encode and decode JSON, write to SQLite and rename files. So it also becomes
slower when other programs use the caches of the processor.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from queue import SimpleQueue
from tempfile import TemporaryDirectory

ITEMS = 20  # in one piece of work
MEMORY = "/dev/shm"  # noqa: S108  (its files are in a private directory)
PAUSE = 0.1  # s between two pieces
REFERENCE = 100.0  # us of processor time for an item at which figures are stated
_UID = re.compile(r"-(\d+)\.data$")


class Calibrator:
    """The process, as a context manager; after it, ``slowness`` is the time of an item relative to ``REFERENCE``."""

    slowness = 1.0

    def __enter__(self) -> Calibrator:
        command = [sys.executable, "-m", "benchmarks.calibrator"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        self._process.stdout.readline()  # it is at work
        return self

    def __exit__(self, *_: object) -> None:
        output = self._process.communicate(timeout=60)[0]
        self.slowness = float(output) / REFERENCE


class _Work:
    """Items that two threads pass to each other."""

    def __init__(self, directory: str) -> None:
        self._path = os.path.join(directory, "item")
        with open(self._path, "w"):
            pass
        self._db = sqlite3.connect(os.path.join(directory, "items.db"), isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute("CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT UNIQUE, body TEXT)")
        self._there, self._back = SimpleQueue[str | None](), SimpleQueue[str]()
        self._thread = threading.Thread(target=self._answer, daemon=True)
        self._thread.start()

    def item_time(self) -> float:
        """Do one piece of work; return the microseconds of processor time for an item."""
        began = time.process_time()
        for number in range(ITEMS):
            name = f"item-{time.monotonic_ns()}.data"
            data = {"uid": name, "uri": f"file:///data/in/{name}", "size": number, "times": [time.time()] * 4}
            self._there.put(json.dumps(data))
            self._db.execute("INSERT INTO items (name, body) VALUES (?, ?)", (name, self._back.get()))
            os.rename(self._path, f"{self._path}.new")
            os.rename(f"{self._path}.new", self._path)
        self._db.execute("DELETE FROM items")
        return (time.process_time() - began) / ITEMS * 1e6

    def close(self) -> None:
        """End the other thread."""
        self._there.put(None)
        self._thread.join()
        self._db.close()

    def _answer(self) -> None:
        while (text := self._there.get()) is not None:
            data = json.loads(text)
            found = _UID.search(data["uid"])
            data["id"] = found[1] if found else ""
            self._back.put(json.dumps({"request": data, "text": ", ".join(f"{key}={data[key]}" for key in data)}))


def _wait_for_end(ended: threading.Event) -> None:
    sys.stdin.read()
    ended.set()


def main() -> None:
    """Work until the end of stdin; print the mean time of an item."""
    ended = threading.Event()
    threading.Thread(target=_wait_for_end, args=(ended,), daemon=True).start()
    with TemporaryDirectory(dir=MEMORY if os.path.isdir(MEMORY) else None) as directory:
        work = _Work(directory)
        work.item_time()  # the first one imports and compiles
        print("working", flush=True)
        times = [work.item_time()]
        while not ended.wait(PAUSE):
            times.append(work.item_time())
        work.close()
    print(statistics.mean(times))


if __name__ == "__main__":
    main()
