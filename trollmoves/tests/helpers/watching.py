"""Runs a DirectoryWatch and records the files that it reports."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from trollmoves.matching.patterns import Origin
from trollmoves.tests.helpers.waiting import until
from trollmoves.watch import DirectoryWatch, FoundFile

HELD = ("anon_inode:inotify", "anon_inode:[eventfd]")
CHILD = Path(__file__).with_name("watching_child.py")


class RecordedFiles:
    """Records the files that a DirectoryWatch reports; may be called by any thread."""

    def __init__(self) -> None:
        self.files: list[FoundFile] = []
        self.batches: list[int] = []

    def __call__(self, files: list[FoundFile]) -> None:
        """Record files."""
        self.batches.append(len(files))
        self.files += files

    @property
    def paths(self) -> list[str]:
        """All paths, in the order in which they were reported."""
        return [file.path for file in list(self.files)]

    @property
    def names(self) -> list[str]:
        """The base names."""
        return [os.path.basename(path) for path in self.paths]

    def wait_for(self, *paths: str | Path, times: int = 1, seconds: float = 20) -> None:
        """Wait until each of these was reported at least ``times`` times."""
        expected = {str(path) for path in paths}

        def there() -> bool:
            count = Counter(self.paths)
            return all(count[path] >= times for path in expected)

        until(there, seconds, f"{sorted(expected)[:3]} among {self.paths[-5:]}")

    def of_path(self, path: str | Path) -> list[FoundFile]:
        """Return all reports of one path."""
        return [file for file in list(self.files) if file.path == str(path)]


@contextmanager
def watching(pattern: str | Path, **options: Any) -> Iterator[RecordedFiles]:
    """Run a DirectoryWatch and yield the reported files."""
    recorded = RecordedFiles()
    watch = DirectoryWatch(Origin(str(pattern)), recorded, **options)
    watch.start()
    try:
        yield recorded
    finally:
        watch.stop()


def write(path: str | Path, content: str = "content") -> str:
    """Write a file in place; return its path."""
    with open(path, "w") as file:
        file.write(content)
    return str(path)


def move_in(path: str | Path, content: str = "content") -> str:
    """Write a file under a hidden name, rename it, and return its path."""
    head, tail = os.path.split(path)
    partial = os.path.join(head, f".{tail}.part")
    write(partial, content)
    os.rename(partial, path)
    return str(path)


def sentinel(recorded: RecordedFiles, path: str | Path) -> None:
    """Add a file and wait until it is reported: all earlier events have then been processed."""
    recorded.wait_for(move_in(path))


def age(path: str | Path, seconds: float) -> None:
    """Set a file's modification time to ``seconds`` ago."""
    then = time.time() - seconds
    os.utime(path, (then, then))


@contextmanager
def public_directory() -> Iterator[Path]:
    """Make a directory that every user can read, and remove it in the end."""
    with tempfile.TemporaryDirectory() as path:
        os.chmod(path, 0o755)
        yield Path(path)


def open_watches() -> list[str]:
    """Return the threads and the descriptors that a Watch or a FileWatch of this process holds, by name."""
    names = [thread.name for thread in threading.enumerate()]
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            names.append(os.readlink(f"/proc/self/fd/{fd}"))
    return sorted(
        name for name in names if name.startswith(("watch-", "file-watch")) or name in HELD or os.path.isdir(name)
    )


class Child:
    """A process that runs a Watch, so that it can be stopped, limited or be another user."""

    def __init__(self, pattern: str | Path, *, prefix: tuple[str, ...] = (), **options: Any) -> None:
        arguments = [str(pattern), *(f"{name}={value}" for name, value in options.items())]
        where = [str(Path(__file__).parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(where)}
        self.process = subprocess.Popen(
            [*prefix, sys.executable, str(CHILD), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.PIPE,
            text=True,
            errors="surrogateescape",
            env=environment,
        )
        self.paths: list[str] = []
        self.started = False
        self.log: list[str] = []
        self._threads = [
            threading.Thread(target=self._read_paths, daemon=True),
            threading.Thread(target=self._read_log, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Child:
        until(lambda: self.started or self.process.poll() is not None, what=f"a child: {self.log}")
        assert self.process.poll() is None, self.log
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGCONT)
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            assert self.process.wait(20) == 0, self.log
        finally:
            self.process.kill()
            self.process.wait()
            for thread in self._threads:
                thread.join()

    def wait_for(self, *paths: str | Path, seconds: float = 30) -> None:
        """Wait until each of these was reported to the child."""
        expected = {str(path) for path in paths}
        until(lambda: expected <= set(self.paths), seconds, f"{len(expected)} files, {self.log[-5:]}")

    def _read_paths(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            text = line.rstrip("\n")
            if text == "started":
                self.started = True
            else:
                self.paths.append(text)

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line.rstrip("\n"))
