"""Copies or moves files to any destination from the shell, by the movers that the daemons use."""

from __future__ import annotations

import argparse
import glob
import os
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any, TextIO

from trollmoves.config import secrets
from trollmoves.errors import TransferError, TrollmovesError
from trollmoves.movers import MOVERS, Mover, close_connections, options
from trollmoves.net import urls
from trollmoves.utils.logs import format_bytes

REFRESH = 0.2  # seconds between two states of the progress line
BAR = 24  # characters
OK, FAILED, USAGE = 0, 1, 2
_EPILOG = """DEST is a path or a URL: file, ftp, ftps, scp, sftp or s3. With a trailing slash, or when it is an
existing directory, it takes the files in under their names; else it is the new name of the one file.
The exit code is 0 when all files are there, 1 when some are not, 2 when the arguments make no sense."""


@dataclass
class Progress:
    """What has been delivered so far; the threads that deliver add to it."""

    total: int
    files: int
    started: float = field(default_factory=time.monotonic)
    sent: int = 0
    done: int = 0
    failed: int = 0
    running: dict[str, Mover] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, size: int, *, delivered: bool) -> None:
        """Count one file."""
        with self._lock:
            self.done += delivered
            self.failed += not delivered
            self.sent += size if delivered else 0

    @property
    def seconds(self) -> float:
        """The time since the start."""
        return max(time.monotonic() - self.started, 1e-6)

    def line(self) -> str:
        """Return the bar, files, bytes and rate."""
        under_way = [mover.source.position for mover in list(self.running.values()) if mover.source]
        sent = min(self.sent + sum(under_way), self.total)
        share = sent / self.total if self.total else self.done / max(self.files, 1)
        filled = int(share * BAR)
        return (
            f"[{'#' * filled}{'.' * (BAR - filled)}] {self.done}/{self.files} files, "
            f"{format_bytes(sent)} of {format_bytes(self.total)}, {format_bytes(round(sent / self.seconds))}/s"
        )

    def summary(self, verb: str, destination: str) -> str:
        """Return what became of it all."""
        failures = f", {self.failed} failed" if self.failed else ""
        return (
            f"{verb} {self.done} of {self.files} files to {destination}{failures} "
            f"({format_bytes(self.sent)}, {self.seconds:.2f} s, {format_bytes(round(self.sent / self.seconds))}/s)"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    given = _parser().parse_args(arguments)
    try:
        attrs = _attrs(given.option)
        origins = _origins(given.sources)
        destination = _destination(given.destination, several=len(given.sources) > 1 or len(origins) > 1)
    except (TrollmovesError, ValueError) as error:
        print(f"move_file.py: {error}", file=sys.stderr)  # noqa: T201  (a command for people)
        return USAGE
    if given.dry_run:
        for origin in origins:
            print(f"would {'move' if given.move else 'copy'} {origin} to {urls.redacted(destination)}")  # noqa: T201
        return OK
    try:
        return _deliver_all(given, origins, destination, attrs)
    finally:
        close_connections()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="move_file.py", description=__doc__, epilog=_EPILOG)
    parser.add_argument("sources", nargs="+", metavar="SRC", help="files, or patterns in quotes")
    parser.add_argument("destination", metavar="DEST", help="where to")
    parser.add_argument("-m", "--move", action="store_true", help="remove each file once it is delivered")
    parser.add_argument("-n", "--dry-run", action="store_true", help="say what would be done")
    parser.add_argument("-j", "--jobs", type=int, default=4, help="files at a time (default %(default)s)")
    parser.add_argument("-q", "--quiet", action="store_true", help="say only what goes wrong")
    parser.add_argument("-b", "--backup", action="append", default=[], metavar="HOST", help="when DEST does not answer")
    parser.add_argument(
        "-o",
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a connection parameter, as ssh_key_filename=PATH; NAME__KEY=VALUE for one of a group; for a "
        "secret, which others see in the list of processes, file:PATH or env:VARIABLE",
    )
    return parser


def _attrs(given: Iterable[str]) -> dict[str, Any]:
    attrs: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"-o {text}: must be NAME=VALUE")
        *groups, last = name.split("__")
        place = attrs
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = secrets.resolve(value) if secrets.is_secret(last) else value
    strange = options.unknown_names(attrs)
    if strange:
        raise ValueError(f"no such connection parameter: {', '.join(strange)}")
    return attrs


def _origins(sources: Iterable[str]) -> list[str]:
    """Return the files; a source that exists is taken by its name, even if it looks like a pattern."""
    found: list[str] = []
    for source in sources:
        matches = [source] if os.path.lexists(source) else sorted(filter(os.path.isfile, glob.glob(source)))
        if not matches:
            raise ValueError(f"{source}: no such file")
        found += matches
    return list(dict.fromkeys(found))


def _destination(text: str, *, several: bool) -> Any:
    """Return the parsed destination; several files can only go to a directory."""
    parsed = urls.parse(text)
    if parsed.scheme not in MOVERS:
        raise ValueError(f"no mover knows the scheme {parsed.scheme!r}; there are {', '.join(filter(None, MOVERS))}")
    if not parsed.netloc and not parsed.path.startswith("/"):
        parsed = parsed._replace(path=os.path.join(os.getcwd(), parsed.path))
    if several and not parsed.path.endswith("/"):
        parsed = parsed._replace(path=f"{parsed.path}/")
    return parsed


def _deliver_all(given: argparse.Namespace, origins: list[str], destination: Any, attrs: dict[str, Any]) -> int:
    progress = Progress(sum(map(_size, origins)), len(origins))
    printable = urls.redacted(destination)
    shown = None if given.quiet else sys.stdout
    jobs = max(1, given.jobs)
    if destination.scheme != "file":
        attrs.setdefault("max_connections", jobs)
    with ThreadPoolExecutor(jobs) as threads, _ProgressBar(progress, shown):
        futures = {
            threads.submit(
                _deliver,
                MOVERS[destination.scheme](origin, destination, attrs, given.backup),
                progress,
                move=given.move,
            ): origin
            for origin in origins
        }
        try:
            for future in as_completed(futures):
                _count(future, futures[future], progress)
        except KeyboardInterrupt:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    if shown:
        print(progress.summary("moved" if given.move else "copied", printable), file=shown)
    return FAILED if progress.failed else OK


def _deliver(mover: Mover, progress: Progress, *, move: bool) -> None:
    """Deliver one file, and count it."""
    size = _size(mover.origin)
    progress.running[mover.origin] = mover
    try:
        if move:
            mover.move()
        else:
            mover.copy()
    finally:
        del progress.running[mover.origin]
    progress.add(size, delivered=True)


def _count(future: Future[None], origin: str, progress: Progress) -> None:
    try:
        future.result()
    except TrollmovesError as error:
        progress.add(0, delivered=False)
        again = " (another try may succeed)" if isinstance(error, TransferError) and error.temporary else ""
        print(f"\r{origin}: {error}{again}", file=sys.stderr)  # noqa: T201


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return 0


class _ProgressBar:
    """Shows the progress on a terminal while its block runs."""

    def __init__(self, progress: Progress, shown: TextIO | None) -> None:
        self._progress = progress
        self._shown = shown if shown is not None and shown.isatty() else None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> None:
        if self._shown:
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if self._shown:
            self._thread.join()
            self._shown.write("\r\x1b[K")
            self._shown.flush()

    def _run(self) -> None:
        assert self._shown is not None  # noqa: S101  (it was started for that)
        while not self._end.wait(REFRESH):
            self._shown.write(f"\r\x1b[K{self._progress.line()}")
            self._shown.flush()
