"""Shows the progress of transfers: on a terminal one line that is updated, elsewhere lines at growing intervals."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TextIO

from trollmoves.utils.logs import format_bytes
from trollmoves.utils.texts import counted

REFRESH_INTERVAL = 0.2  # s between two updates on a terminal
FIRST_LINE_AFTER = 2.0  # s until the first line of a pipe or file; each further interval is twice as long
MAX_LINE_INTERVAL = 60.0  # s
BAR_WIDTH = 24  # characters, less on a narrow terminal
MIN_BAR_WIDTH = 8  # characters; a narrower bar is left out
DEFAULT_COLUMNS = 80
_CLEAR = "\r\x1b[K"


@dataclass
class Progress:
    """Counts of files and bytes, updated by the threads that deliver."""

    total: int
    """Bytes of all files."""
    files: int
    started: float = field(default_factory=time.monotonic)
    sent: int = 0
    """Bytes of the delivered files."""
    done: int = 0
    failed: int = 0
    running: dict[str, Callable[[], int]] = field(default_factory=dict)
    """The functions that return the bytes sent of each running transfer."""
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

    def line(self, columns: int = DEFAULT_COLUMNS) -> str:
        """Return the bar, files, bytes and rate, in at most ``columns`` characters; a narrow line has fewer of them."""
        sent = min(self.sent + sum(position() for position in list(self.running.values())), self.total)
        share = sent / self.total if self.total else self.done / max(self.files, 1)
        files = f"{self.done}/{self.files}"
        rate = f"{format_bytes(round(sent / self.seconds))}/s"
        size = f"{format_bytes(sent)} of {format_bytes(self.total)}"
        text = f"{self.done} of {counted(self.files, 'file')}, {size}, {rate}"
        width = min(BAR_WIDTH, columns - len(text) - len("[] "))
        if width >= MIN_BAR_WIDTH:
            filled = int(share * width)
            return f"[{'#' * filled}{'.' * (width - filled)}] {text}"
        shorter = (text, f"{files}, {share:.0%}, {rate}", f"{files} {share:.0%}")
        return next((line for line in shorter if len(line) <= columns), shorter[-1][:columns])


class ProgressDisplay:
    """Shows a ``Progress`` on a stream while its block runs; without a stream it shows nothing."""

    def __init__(self, progress: Progress, stream: TextIO | None) -> None:
        self._progress = progress
        self._stream = stream
        self._is_terminal = stream is not None and stream.isatty()
        self._end = threading.Event()
        self._lock = threading.Lock()  # guards the terminal: an error goes above the line with the progress
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> ProgressDisplay:
        """Start to show."""
        if self._stream:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, and clear the line."""
        self._end.set()
        if self._stream:
            self._thread.join()
        if self._is_terminal:
            self._write(_CLEAR)

    def error(self, text: str) -> None:
        """Print a line to stderr. Any thread."""
        with self._lock:
            if self._is_terminal:
                self._write(_CLEAR)
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()

    def _run(self) -> None:
        interval = REFRESH_INTERVAL if self._is_terminal else FIRST_LINE_AFTER
        while not self._end.wait(interval):
            with self._lock:
                if self._is_terminal:
                    self._write(f"{_CLEAR}{self._progress.line(self._columns() - 1)}")
                else:
                    self._write(f"{self._progress.line(0x7FFF_FFFF)}\n")
            if not self._is_terminal:
                interval = min(2 * interval, MAX_LINE_INTERVAL)

    def _columns(self) -> int:
        assert self._stream is not None  # noqa: S101  (only called with a terminal)
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or DEFAULT_COLUMNS
        except OSError:
            return DEFAULT_COLUMNS

    def _write(self, text: str) -> None:
        """Write to the stream; a reader that has gone ends the display, not the transfers."""
        assert self._stream is not None  # noqa: S101  (only called with a stream)
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            self._end.set()
