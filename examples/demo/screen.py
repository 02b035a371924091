"""The output of the demo: sentences, one line of progress, a table."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterable

BAR = 16  # columns
_REDRAW, _LINE = 0.1, 1.0  # s between two updates of the progress: on a terminal, elsewhere


class Screen:
    """Writes to standard output; on a terminal the progress is one line that is redrawn. One thread uses it."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._terminal = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._colours = self._terminal and not os.environ.get("NO_COLOR")
        self._full, self._empty = ("█", "░") if "utf" in (sys.stdout.encoding or "").lower() else ("#", ".")
        self._next_progress = 0.0
        self._line_open = False

    def title(self, text: str) -> None:
        """Write a heading."""
        self._write(f"\n{self.style(text, '1')}\n")

    def say(self, text: str = "") -> None:
        """Write a sentence."""
        self._write(f"  {text}" if text else "")

    def event(self, text: str) -> None:
        """Write an event, with the time since the start."""
        self._write(f"  {self.style(self._clock(), '2')}  {text}")

    def progress(self, done: int, total: int, rate: float, last: str, *, final: bool = False) -> None:
        """Show the progress; may be called at any rate. A ``final`` line is not overwritten."""
        now = time.monotonic()
        if now < self._next_progress and not final:
            return
        self._next_progress = now + (_REDRAW if self._terminal else _LINE)
        counts = f"{done:>{len(f'{total:,}')},} of {total:,}  {rate:>4.0f} files/s"
        if not self._terminal:
            self._write(f"  {self._clock()}  {counts}  {last}")
            return
        filled = BAR * done // max(total, 1)
        line = f"  {self._clock()}  {self._full * filled}{self._empty * (BAR - filled)}  {counts}  "
        room = shutil.get_terminal_size().columns - len(line) - 1
        self._write(line + _shortened(last, room), end="\n" if final else "")
        self._line_open = not final

    def table(self, rows: Iterable[tuple[str, str, str]]) -> None:
        """Write rows of name, value and remark."""
        rows = list(rows)
        names = max(len(name) for name, _, _ in rows)
        values = max(len(value) for _, value, _ in rows)
        for name, value, remark in rows:
            self._write(
                f"  {name:<{names}}  {self.style(f'{value:>{values}}', '1')}  {self.style(remark, '2')}".rstrip()
            )

    def style(self, text: str, code: str) -> str:
        """Return the text with a colour or weight if the terminal supports it."""
        return f"\x1b[{code}m{text}\x1b[0m" if self._colours and text else text

    def end(self) -> None:
        """End the progress line."""
        if self._line_open:
            self._write("", end="")

    def _clock(self) -> str:
        seconds = int(time.monotonic() - self._started)
        return f"{seconds // 60}:{seconds % 60:02d}"

    def _write(self, text: str, end: str = "\n") -> None:
        if self._line_open:
            sys.stdout.write("\r\x1b[K")
            self._line_open = False
        sys.stdout.write(text + end)
        sys.stdout.flush()


def _shortened(text: str, room: int) -> str:
    """Return the text, without its middle if it is too long."""
    if len(text) <= room:
        return text
    half = max(room - 2, 0) // 2
    return f"{text[:half]}..{text[-half:]}" if half else ""
