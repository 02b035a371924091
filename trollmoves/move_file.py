"""Copies or moves files to any destination from the shell, with the movers of the daemons."""

from __future__ import annotations

import argparse
import glob
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn
from urllib.parse import ParseResult

from trollmoves import __version__
from trollmoves.config import secrets
from trollmoves.errors import TransferError, TrollmovesError
from trollmoves.movers import MOVERS, Mover, close_connections, mover_for, options
from trollmoves.net import urls
from trollmoves.utils.file_versions import size_of
from trollmoves.utils.logs import format_bytes
from trollmoves.utils.progress import Progress, ProgressDisplay
from trollmoves.utils.texts import counted, printable

STOP_TIMEOUT = 3.0  # s after Ctrl-C in which running transfers remove their partials
STOP_POLL = 0.02  # s
REPEATED_SIGNAL = 0.5  # s in which further signals belong to the first one
OK, FAILED, USAGE = 0, 1, 2
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CHECKSUM = "verify_checksum"
_EPILOG = """DEST is a path or a URL: file, ftp, ftps, scp, sftp or s3. With a trailing slash, or if it is an
existing directory, the files keep their names; otherwise it is the new name of a single file. A directory keeps its
name and its tree in DEST; empty directories are not copied.
The exit code is 0 if all files were delivered, 1 if some were not, 2 if the arguments are invalid, 130 after Ctrl-C."""


@dataclass(frozen=True)
class Source:
    """A file to deliver."""

    path: str
    directory: str = ""
    """The directory below the destination, relative, for a file of a tree."""


@dataclass
class Delivery:
    """The delivery of one file, and its result."""

    source: Source
    destination: ParseResult
    size: int = 0
    seconds: float = 0.0
    error: str = ""
    temporary: bool = False
    """True if a retry may succeed."""
    delivered: bool = False
    mover: Mover | None = None
    descriptor: int = -1
    """Of the open file; -1 before it is opened."""

    @property
    def holds_partial(self) -> bool:
        """True if the destination may have a partial: the connection was open before the transfer began."""
        return self.mover is not None and self.mover.source is not None

    def position(self) -> int:
        """Return the bytes that were read of the file."""
        with suppress(OSError):
            return os.lseek(self.descriptor, 0, os.SEEK_CUR)
        return 0

    def record(self) -> dict[str, Any]:
        """Return the result for ``--json``."""
        destination = self.mover.destination if self.mover else self.destination
        shown: dict[str, Any] = {"source": self.source.path, "destination": urls.redacted(destination)}
        if self.delivered:
            return {**shown, "delivered": True, "size": self.size, "seconds": round(self.seconds, 3)}
        return {**shown, "delivered": False, "error": self.error or "interrupted", "temporary": self.temporary}


class _Stopped(KeyboardInterrupt):
    """A signal asked this process to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.status = 128 + number


@dataclass
class Command:
    """One run of the command."""

    arguments: argparse.Namespace
    attrs: dict[str, Any]
    deliveries: list[Delivery]
    destination: ParseResult
    skipped: list[str]
    """Lines about sources that are not delivered."""
    stopping: threading.Event = field(default_factory=threading.Event)

    def run(self) -> int:
        """Deliver all files; return the exit code."""
        quiet = self.arguments.quiet or self.arguments.json
        progress = Progress(sum(one.size for one in self.deliveries), len(self.deliveries))
        threads = ThreadPoolExecutor(self.arguments.jobs)
        with ProgressDisplay(progress, None if quiet else sys.stdout) as display:
            for line in self.skipped:
                progress.add(0, delivered=False)
                display.error(printable(line))
            try:
                futures = {threads.submit(self._deliver, one, progress): one for one in self.deliveries}
                for future in as_completed(futures):
                    _finish(future, futures[future], progress, display)
            except _Stopped as stopped:
                threads.shutdown(wait=False, cancel_futures=True)
                is_clean = self._abort()
                code = stopped.status
            else:
                threads.shutdown()
                is_clean = True
                code = FAILED if progress.failed else OK
        interrupted = code not in (OK, FAILED)
        if self.arguments.move and self.arguments.recursive and not interrupted:
            _remove_empty(self.arguments.sources)
        self._report(progress, interrupted=interrupted, is_clean=is_clean)
        if interrupted:
            _exit(code)
        return code

    def _deliver(self, delivery: Delivery, progress: Progress) -> None:
        """Deliver and count one file."""
        started = time.monotonic()

        def on_opened(descriptor: int) -> None:
            delivery.descriptor = descriptor
            delivery.size = os.fstat(descriptor).st_size
            if self.stopping.is_set():
                raise TransferError("interrupted")

        scheme = delivery.destination.scheme
        mover = mover_for(scheme)(delivery.source.path, delivery.destination, self.attrs, self.arguments.backup)
        mover.on_opened = on_opened
        delivery.mover = mover
        progress.running[delivery.source.path] = delivery.position
        try:
            if self.arguments.move:
                mover.move()
            else:
                mover.copy()
            delivery.delivered = True
        finally:
            del progress.running[delivery.source.path]
            delivery.seconds = time.monotonic() - started
            mover.source = None
        progress.add(delivery.size, delivered=True)

    def _abort(self) -> bool:
        """Make the running transfers fail, so that they remove their partials; return False if some did not in time.

        The files become unreadable under their descriptors, which ends each protocol where it reads the next block.
        """
        self.stopping.set()
        unreadable = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for delivery in self.deliveries:
            if delivery.holds_partial and delivery.descriptor >= 0:
                os.dup2(unreadable, delivery.descriptor, inheritable=False)
        deadline = time.monotonic() + STOP_TIMEOUT
        while any(delivery.holds_partial for delivery in self.deliveries) and time.monotonic() < deadline:
            time.sleep(STOP_POLL)
        return not any(delivery.holds_partial for delivery in self.deliveries)

    def _report(self, progress: Progress, *, interrupted: bool, is_clean: bool) -> None:
        """Print the final line, or the JSON document."""
        verb = "moved" if self.arguments.move else "copied"
        redacted = printable(urls.redacted(self.destination))
        if self.arguments.json:
            document = {
                "action": verb,
                "destination": redacted,
                "delivered": progress.done,
                "failed": len(self.deliveries) + len(self.skipped) - progress.done,
                "bytes": progress.sent,
                "seconds": round(progress.seconds, 3),
                "interrupted": interrupted,
                "files": [delivery.record() for delivery in self.deliveries],
            }
            print(json.dumps(document, indent=2))  # noqa: T201
            return
        failures = f", {progress.failed} failed" if progress.failed else ""
        rate = format_bytes(round(progress.sent / progress.seconds))
        files = counted(len(self.deliveries) + len(self.skipped), "file")
        line = (
            f"{verb} {progress.done} of {files} to {redacted}{failures} "
            f"({format_bytes(progress.sent)}, {progress.seconds:.2f} s, {rate}/s)"
        )
        if interrupted:
            left = "" if is_clean else "; a transfer did not stop in time, and may leave a partial at the destination"
            _error(f"interrupted: {line}{left}")
        elif not self.arguments.quiet:
            print(line)  # noqa: T201


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    arguments = make_parser().parse_args(argv)
    try:
        _stop_on_signals()
        return _run(arguments)
    except (TrollmovesError, ValueError) as error:
        _error(printable(str(error)))
        return USAGE
    except KeyboardInterrupt as stopped:
        _error("interrupted")
        return stopped.status if isinstance(stopped, _Stopped) else 130
    except BrokenPipeError:  # the reader of a pipe has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    finally:
        close_connections()


def _run(arguments: argparse.Namespace) -> int:
    attrs = _attrs(arguments.option)
    sources, skipped = _sources(arguments.sources, recursive=arguments.recursive)
    _check_names(sources)
    several = len(sources) + len(skipped) > 1 or len(arguments.sources) > 1 or any(one.directory for one in sources)
    destination = _destination(arguments.destination, several=several)
    if arguments.verify:
        _require_checksums(destination.scheme)
        attrs[CHECKSUM] = True
    if destination.scheme not in ("", "file"):
        attrs.setdefault("max_connections", arguments.jobs)
    deliveries = [Delivery(source, _below(destination, source.directory), size_of(source.path)) for source in sources]
    if not arguments.dry_run:
        return Command(arguments, attrs, deliveries, destination, skipped).run()
    verb = "move" if arguments.move else "copy"
    for one in deliveries:
        print(printable(f"would {verb} {one.source.path} to {urls.redacted(one.destination)}"))  # noqa: T201
    for line in skipped:
        _error(printable(line))
    return FAILED if skipped else OK


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="move_file.py", description=__doc__, epilog=_EPILOG)
    add = parser.add_argument
    add("sources", nargs="+", metavar="SRC", help="files, or patterns in quotes; with -r also directories")
    add("destination", metavar="DEST", help="path or URL")
    add("-m", "--move", action="store_true", help="remove each file once it is delivered")
    add("-r", "--recursive", action="store_true", help="deliver the files of directories too, with their tree")
    add("-n", "--dry-run", action="store_true", help="only print the planned transfers")
    add(
        "-j", "--jobs", type=_jobs, default=4, metavar="N", help="concurrent transfers, 1 or more (default %(default)s)"
    )
    add("-q", "--quiet", action="store_true", help="print only errors")
    add("--verify", action="store_true", help="compare the checksums of both files after each transfer; not for FTP")
    add("--json", action="store_true", help="print the results as one JSON document; errors go to stderr too")
    add("-b", "--backup", action="append", default=[], metavar="HOST", help="host to use if DEST does not respond")
    add(
        "-o",
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a connection parameter, such as ssh_key_filename=PATH; NAME__KEY=VALUE for one of a group; for "
        "a secret, use file:PATH or env:VARIABLE, because the list of processes shows the command line",
    )
    add("--version", action="version", version=f"trollmoves {__version__}")
    return parser


def _jobs(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of transfers, 1 or more")
    return int(text)


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


def _sources(texts: Iterable[str], *, recursive: bool) -> tuple[list[Source], list[str]]:
    """Return the files, and lines about those that are skipped.

    An existing source is used as it is, even if its name is also a pattern.
    """
    found: list[Source] = []
    skipped: list[str] = []
    for text in texts:
        matches = [text] if os.path.lexists(text) else sorted(filter(_is_source, glob.glob(text)))
        if not matches:
            raise ValueError(f"{text}: no such file")
        for path in matches:
            if not os.path.isdir(path):
                found.append(Source(path))
            elif recursive:
                found += _tree(path, skipped)
            elif path == text:
                skipped.append(f"{path}: is a directory; use -r to deliver its files")
    return list({os.path.abspath(source.path): source for source in found}.values()), skipped


def _check_names(sources: Iterable[Source]) -> None:
    """Raise ValueError if two files would get one name: the later one would replace the other."""
    paths: dict[tuple[str, str], str] = {}
    for source in sources:
        other = paths.setdefault((source.directory, os.path.basename(source.path)), source.path)
        if other != source.path:
            raise ValueError(f"{other} and {source.path} would get the same name: deliver them one by one")


def _is_source(path: str) -> bool:
    return os.path.isfile(path) or os.path.isdir(path)


def _tree(top: str, skipped: list[str]) -> list[Source]:
    """Return the files of a directory; symbolic links to directories are not followed."""
    parent = os.path.dirname(os.path.abspath(top))

    def skip(error: OSError) -> None:
        skipped.append(f"{error.filename}: cannot be listed: {error.strerror}")

    found = []
    for folder, folders, names in os.walk(top, onerror=skip):
        folders.sort()
        directory = os.path.relpath(os.path.abspath(folder), parent)
        found += [Source(os.path.join(folder, name), directory) for name in sorted(names)]
    return found


def _remove_empty(sources: Iterable[str]) -> None:
    """Remove the directories that are empty after their files were moved."""
    for source in sources:
        if os.path.isdir(source) and not os.path.islink(source):
            for folder, _, _ in os.walk(source, topdown=False):
                with suppress(OSError):
                    os.rmdir(folder)


def _destination(text: str, *, several: bool) -> ParseResult:
    """Return the parsed destination; several files can only go to a directory."""
    parsed = urls.parse(text)
    if parsed.scheme not in MOVERS:
        raise ValueError(f"unsupported scheme {parsed.scheme!r}; must be one of {', '.join(filter(None, MOVERS))}")
    if not parsed.netloc and not parsed.path.startswith("/"):
        parsed = parsed._replace(path=os.path.join(_working_directory(), parsed.path))
    if several and not parsed.path.endswith("/"):
        parsed = parsed._replace(path=f"{parsed.path}/")
    return parsed


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError as error:
        raise ValueError(f"the working directory cannot be used: {error.strerror}") from None


def _below(destination: ParseResult, directory: str) -> ParseResult:
    return destination._replace(path=f"{destination.path}{directory}/") if directory else destination


def _require_checksums(scheme: str) -> None:
    """Raise ValueError if the protocol cannot compare checksums."""
    schemes = next(option.schemes for option in options.OPTIONS if option.name == CHECKSUM)
    if scheme not in schemes:
        raise ValueError(
            f"--verify: {scheme} cannot compare checksums; it works with {', '.join(filter(None, schemes))}"
        )


def _finish(future: Future[None], delivery: Delivery, progress: Progress, display: ProgressDisplay) -> None:
    """Record and print the error of a finished transfer."""
    try:
        future.result()
        return
    except TrollmovesError as error:
        delivery.error = urls.redact_text(str(error))
        delivery.temporary = isinstance(error, TransferError) and error.temporary
    except Exception as error:  # one file must not stop the others
        delivery.error = urls.redact_text(f"unexpected error: {type(error).__name__}: {error}")
    progress.add(0, delivered=False)
    hint = " (a retry may succeed)" if delivery.temporary else ""
    display.error(printable(f"{delivery.source.path}: {delivery.error}{hint}"))


def _stop_on_signals() -> None:
    """Raise ``_Stopped`` in the main thread at the first signal; exit at a later one.

    A terminal and a wrapper, as timeout(1), send the same signal twice: that counts as one.
    """
    stopped_at: list[float] = []

    def stop(number: int, _: object) -> None:
        stopped_at.append(time.monotonic())
        if len(stopped_at) == 1:
            raise _Stopped(number)
        if stopped_at[-1] - stopped_at[0] > REPEATED_SIGNAL:
            os._exit(128 + number)

    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, stop)


def _exit(code: int) -> NoReturn:
    """End the process without waiting for threads that are still connecting."""
    with suppress(OSError):
        sys.stdout.flush()
    os._exit(code)


def _error(text: str) -> None:
    with suppress(OSError):
        print(f"move_file.py: {text}", file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
