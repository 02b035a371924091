"""Copies or moves files to any destination from the shell, with the movers of the daemons."""

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

REFRESH_INTERVAL = 0.2  # s between two updates of the progress line
BAR_WIDTH = 24  # characters
OK, FAILED, USAGE = 0, 1, 2
_EPILOG = """DEST is a path or a URL: file, ftp, ftps, scp, sftp or s3. With a trailing slash, or if it is an
existing directory, the files keep their names; otherwise it is the new name of a single file.
The exit code is 0 if all files were delivered, 1 if some were not, 2 if the arguments are invalid."""


@dataclass
class Progress:
    """Counts of files and bytes, updated by the threads that deliver."""

    total: int
    files: int
    started: float = field(default_factory=time.monotonic)
    sent: int = 0
    done: int = 0
    failed: int = 0
    running: dict[str, Mover] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, size: int, *, delivered: bool) -> None:
        """Count one file of ``size`` bytes."""
        with self._lock:
            self.done += delivered
            self.failed += not delivered
            self.sent += size if delivered else 0

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return max(time.monotonic() - self.started, 1e-6)

    def line(self) -> str:
        """Return the bar, files, bytes and rate."""
        in_flight = [mover.source.position for mover in list(self.running.values()) if mover.source]
        sent = min(self.sent + sum(in_flight), self.total)
        share = sent / self.total if self.total else self.done / max(self.files, 1)
        filled = int(share * BAR_WIDTH)
        return (
            f"[{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {self.done}/{self.files} files, "
            f"{format_bytes(sent)} of {format_bytes(self.total)}, {format_bytes(round(sent / self.seconds))}/s"
        )

    def summary(self, verb: str, destination: str) -> str:
        """Return the final line: files, failures, bytes, time and rate."""
        failures = f", {self.failed} failed" if self.failed else ""
        return (
            f"{verb} {self.done} of {self.files} files to {destination}{failures} "
            f"({format_bytes(self.sent)}, {self.seconds:.2f} s, {format_bytes(round(self.sent / self.seconds))}/s)"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        attrs = _attrs(arguments.option)
        origins = _origins(arguments.sources)
        destination = _destination(arguments.destination, several=len(arguments.sources) > 1 or len(origins) > 1)
    except (TrollmovesError, ValueError) as error:
        print(f"move_file.py: {error}", file=sys.stderr)  # noqa: T201  (a command for people)
        return USAGE
    if arguments.dry_run:
        for origin in origins:
            print(f"would {'move' if arguments.move else 'copy'} {origin} to {urls.redacted(destination)}")  # noqa: T201
        return OK
    try:
        return _deliver_all(arguments, origins, destination, attrs)
    finally:
        close_connections()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="move_file.py", description=__doc__, epilog=_EPILOG)
    parser.add_argument("sources", nargs="+", metavar="SRC", help="files, or patterns in quotes")
    parser.add_argument("destination", metavar="DEST", help="path or URL")
    parser.add_argument("-m", "--move", action="store_true", help="remove each file once it is delivered")
    parser.add_argument("-n", "--dry-run", action="store_true", help="only print the planned transfers")
    parser.add_argument("-j", "--jobs", type=int, default=4, help="concurrent transfers (default %(default)s)")
    parser.add_argument("-q", "--quiet", action="store_true", help="print only errors")
    parser.add_argument(
        "-b", "--backup", action="append", default=[], metavar="HOST", help="host to use if DEST does not respond"
    )
    parser.add_argument(
        "-o",
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a connection parameter, such as ssh_key_filename=PATH; NAME__KEY=VALUE for one of a group; for "
        "a secret, use file:PATH or env:VARIABLE, because the list of processes shows the command line",
    )
    return parser


def _attrs(assignments: Iterable[str]) -> dict[str, Any]:
    attrs: dict[str, Any] = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"-o {text}: must be NAME=VALUE")
        *groups, last = name.split("__")
        target = attrs
        for group in groups:
            target = target.setdefault(group, {})
        target[last] = secrets.resolve(value) if secrets.is_secret(last) else value
    unknown = options.unknown_names(attrs)
    if unknown:
        raise ValueError(f"unknown connection parameter: {', '.join(unknown)}")
    return attrs


def _origins(sources: Iterable[str]) -> list[str]:
    """Return the files; an existing source is used as it is, even if its name is also a pattern."""
    origins: list[str] = []
    for source in sources:
        matches = [source] if os.path.lexists(source) else sorted(filter(os.path.isfile, glob.glob(source)))
        if not matches:
            raise ValueError(f"{source}: no such file")
        origins += matches
    return list(dict.fromkeys(origins))


def _destination(text: str, *, several: bool) -> Any:
    """Return the parsed destination; several files can only go to a directory."""
    parsed = urls.parse(text)
    if parsed.scheme not in MOVERS:
        raise ValueError(f"unsupported scheme {parsed.scheme!r}; must be one of {', '.join(filter(None, MOVERS))}")
    if not parsed.netloc and not parsed.path.startswith("/"):
        parsed = parsed._replace(path=os.path.join(os.getcwd(), parsed.path))
    if several and not parsed.path.endswith("/"):
        parsed = parsed._replace(path=f"{parsed.path}/")
    return parsed


def _deliver_all(arguments: argparse.Namespace, origins: list[str], destination: Any, attrs: dict[str, Any]) -> int:
    progress = Progress(sum(map(_size, origins)), len(origins))
    redacted = urls.redacted(destination)
    stream = None if arguments.quiet else sys.stdout
    jobs = max(1, arguments.jobs)
    if destination.scheme != "file":
        attrs.setdefault("max_connections", jobs)
    with ThreadPoolExecutor(jobs) as threads, _ProgressBar(progress, stream):
        futures = {
            threads.submit(
                _deliver,
                MOVERS[destination.scheme](origin, destination, attrs, arguments.backup),
                progress,
                move=arguments.move,
            ): origin
            for origin in origins
        }
        try:
            for future in as_completed(futures):
                _count(future, futures[future], progress)
        except KeyboardInterrupt:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    if stream:
        print(progress.summary("moved" if arguments.move else "copied", redacted), file=stream)
    return FAILED if progress.failed else OK


def _deliver(mover: Mover, progress: Progress, *, move: bool) -> None:
    """Deliver and count one file."""
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
        hint = " (a retry may succeed)" if isinstance(error, TransferError) and error.temporary else ""
        print(f"\r{origin}: {error}{hint}", file=sys.stderr)  # noqa: T201


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return 0


class _ProgressBar:
    """Shows the progress on a terminal while its block runs."""

    def __init__(self, progress: Progress, stream: TextIO | None) -> None:
        self._progress = progress
        self._stream = stream if stream is not None and stream.isatty() else None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> None:
        if self._stream:
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if self._stream:
            self._thread.join()
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def _run(self) -> None:
        assert self._stream is not None  # noqa: S101  (the thread only runs with a stream)
        while not self._end.wait(REFRESH_INTERVAL):
            self._stream.write(f"\r\x1b[K{self._progress.line()}")
            self._stream.flush()
