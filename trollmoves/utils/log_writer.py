"""Writes log lines on one thread, so that a log that cannot be written never blocks the work.

A record goes through a bounded queue, and this thread formats it. If the queue is full, further records are dropped and
counted; a line in their place reports the number. A line also reports the number of lines that a log file or stderr did
not accept.
"""

from __future__ import annotations

import io
import logging
import logging.handlers
import os
import select
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from trollmoves.utils.log_format import is_constant, resolved
from trollmoves.utils.texts import counted

logger = logging.getLogger(__name__)

MAX_QUEUED = 10_000  # records; some 1.5 kB each
COLLECT_SECONDS = 0.01  # s in which further lines are collected, so that no line interrupts the work
BATCH_SIZE = 200  # records that are written in one round
FLUSH_TIMEOUT = 2.0  # s at the end of the process for the lines that are not written yet
BACKUP_COUNT = 7  # log files of previous days


class QueuedHandler(logging.Handler):
    """Passes records to the writer, which calls the target on its own thread. Never blocks. Any thread."""

    def __init__(self, target: logging.Handler, writer: LogWriter) -> None:
        super().__init__(target.level)
        self.target = target
        self._writer = writer

    def handle(self, record: logging.LogRecord) -> bool:
        """Queue the record; without the lock of a handler, because the queue needs none."""
        self._writer.put(self.target, record)
        return True

    def close(self) -> None:
        """End the writer, and close the target."""
        if self._writer.close():
            self.target.close()
        super().close()


class LogWriter:
    """The thread that writes the log, and its queue."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[tuple[Any, ...]] = SimpleQueue()
        self._handlers: dict[logging.Handler, QueuedHandler] = {}
        self._lock = threading.Lock()  # guards the counts of dropped records
        self._dropped: Counter[logging.Handler] | None = None  # by handler, since the queue is full
        self.dropped = 0  # records since the start
        self._closed = False
        self._traceback = logging.Formatter()
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def queued(self, handler: logging.Handler) -> logging.Handler:
        """Return the handler that queues records for ``handler``. Main thread, before other threads start."""
        if isinstance(handler, QueuedHandler | logging.NullHandler):
            return handler
        return self._handlers.setdefault(handler, QueuedHandler(handler, self))

    def put(self, handler: logging.Handler, record: logging.LogRecord) -> None:
        """Queue a record for a handler, or drop and count it. Never blocks. Any thread."""
        if self._queue.qsize() >= MAX_QUEUED:
            self._drop(handler)
            return
        self._dropped = None
        if record.exc_info or not is_constant(record.args):
            record = resolved(record)  # its arguments may change, and a traceback keeps the objects of its frames
            if record.exc_info:
                record.exc_text = record.exc_text or self._traceback.formatException(record.exc_info)
                record.exc_info = None
        self._queue.put((handler.handle, record))

    def reopen(self) -> None:
        """Open the log files again by their names, as a log rotation needs it. Also in a signal handler."""
        self._queue.put((self._reopen,))

    def close(self) -> bool:
        """Write the queued lines within ``FLUSH_TIMEOUT``; return False if this was not possible."""
        self._queue.put((self._end,))
        self._thread.join(FLUSH_TIMEOUT)
        return not self._thread.is_alive()

    def _drop(self, handler: logging.Handler) -> None:
        with self._lock:
            if self._dropped is None:
                self._dropped = Counter()
                self._queue.put((self._report_dropped, self._dropped))
            self._dropped[handler] += 1
            self.dropped += 1

    # -- the writer's thread

    def _report_dropped(self, dropped: Counter[logging.Handler]) -> None:
        with self._lock:
            if self._dropped is dropped:
                self._dropped = None
        for handler, count in dropped.items():
            handler.handle(_report(count, "the log was not written fast enough"))

    def _end(self) -> None:
        self._closed = True

    def _reopen(self) -> None:
        for handler in self._handlers:
            if isinstance(handler, logging.FileHandler):
                _reopen_file(handler)

    def _run(self) -> None:
        while not self._closed:
            actions = [self._queue.get()]
            time.sleep(COLLECT_SECONDS)
            with suppress(Empty):
                while len(actions) < BATCH_SIZE:
                    actions.append(self._queue.get_nowait())
            for action, *arguments in actions:
                with suppress(Exception):  # of a handler in a logging configuration; the others must go on
                    action(*arguments)
            for handler in self._handlers:
                if isinstance(handler, _LineHandler):
                    handler.flush()


class _LineHandler(logging.StreamHandler[io.TextIOWrapper]):
    """Collects the lines of a round and writes them together. Log writer's thread only."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._lines: list[str] = []
        super().__init__(*arguments, **options)

    def emit(self, record: logging.LogRecord) -> None:
        """Add a line to those that ``flush`` writes."""
        self._lines.append(self.format(record))

    def flush(self) -> None:
        """Write the collected lines. Those that the stream does not accept are counted, and reported later."""
        if self._lines:
            text = "\n".join(self._lines) + "\n"
            self._lines.clear()
            self.stream.write(text)

    def _open_lines(self, file: str | int, name: str) -> io.TextIOWrapper:
        raw = _LineFile(file, name, lambda count, why: self.format(_report(count, why)))
        return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", newline="", write_through=True)


class StderrHandler(_LineHandler):
    """Writes lines to stderr."""

    def __init__(self) -> None:
        super().__init__(self._open_lines(sys.stderr.fileno() if sys.stderr else os.devnull, "standard error"))


class Rotation(NamedTuple):
    """When a log file is rotated: at midnight after this number of days; old files beyond ``backups`` are removed."""

    days: int = 1
    backups: int = BACKUP_COUNT
    utc: bool = False


class LogFile(_LineHandler, logging.handlers.TimedRotatingFileHandler):
    """Appends lines to a file that is rotated at midnight.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, file: str, rotation: Rotation = Rotation()) -> None:  # noqa: B008  (immutable)
        super().__init__(file, when="midnight", interval=rotation.days, backupCount=rotation.backups, utc=rotation.utc)

    def _open(self) -> io.TextIOWrapper:
        return self._open_lines(self.baseFilename, f"the log file {self.baseFilename}")

    def emit(self, record: logging.LogRecord) -> None:
        """Add a line to those that ``flush`` writes; begin a new file before the first line of a day."""
        if self.shouldRollover(record):
            self.flush()
            self.doRollover()
        super().emit(record)

    def doRollover(self) -> None:  # noqa: N802  (logging's name)
        """Begin the file of a new day; if this is not possible, continue in the previous file."""
        previous, self.stream = self.stream, None
        try:
            super().doRollover()
            self.stream = self.stream or self._open()
        except OSError as error:
            _print(f"cannot rotate the log file {self.baseFilename}: {error.strerror}; continuing in the previous file")
            self.stream = previous
        else:
            if previous:
                previous.close()
        self.rolloverAt = self.computeRollover(int(time.time()))

    def reopen(self) -> None:
        """Open the file again by its name; raise OSError and continue in the previous file if this is not possible."""
        if previous := self.setStream(self._open()):
            previous.close()


class _LineFile(io.FileIO):
    """An unbuffered file of whole lines.

    Lines that cannot be written are counted. The next line that can be written follows a report of their number, and
    begins on a new line.
    """

    def __init__(self, file: str | int, name: str, report: Callable[[int, str], str]) -> None:
        super().__init__(file, "a", closefd=isinstance(file, str))
        self._shown_name = name
        self._report = report
        self._lost = 0  # lines
        self._cause = ""
        self._is_torn = False  # the last line in the file is incomplete

    def write(self, lines: Any) -> int:
        """Write lines, or count them; never raises."""
        lines = bytes(lines)
        start = "\n" * self._is_torn + (f"{self._report(self._lost, self._cause)}\n" if self._lost else "")
        data = start.encode("utf-8", "backslashreplace") + lines
        written = 0
        try:
            while written < len(data):
                written += super().write(data[written:]) or 0
        except OSError as error:
            if not self._lost:
                _print(f"cannot write to {self._shown_name}: {error.strerror}; lines are dropped and counted")
            self._cause = str(error.strerror)
        if written >= len(data) - len(lines):
            self._lost = 0  # they are reported
        self._lost += data[max(written, len(data) - len(lines)) :].count(b"\n")
        if written:
            self._is_torn = not data[:written].endswith(b"\n")
        return len(lines)


def _reopen_file(handler: logging.FileHandler) -> None:
    file = handler.baseFilename
    try:
        if isinstance(handler, LogFile):
            handler.reopen()
        elif previous := handler.setStream(open(file, "a", encoding=handler.encoding, errors=handler.errors)):  # noqa: SIM115
            previous.close()
    except OSError as error:
        _print(f"cannot open the log file {file} again: {error.strerror}; continuing in the previous file until SIGHUP")
    else:
        logger.info("opened the log file %s again", file)


def _report(count: int, cause: str) -> logging.LogRecord:
    text = f"{counted(count, 'log line')} dropped: {cause}"
    return logger.makeRecord(logger.name, logging.WARNING, __file__, 0, text, (), None)


def _print(text: str) -> None:
    """Print a line to stderr unless this would block."""
    if not sys.stderr:
        return
    poll = select.poll()
    poll.register(sys.stderr.fileno(), select.POLLOUT)
    if poll.poll(0):
        with suppress(OSError):
            os.write(sys.stderr.fileno(), f"{text}\n".encode("utf-8", "backslashreplace"))
