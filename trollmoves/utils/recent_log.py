"""Keeps the last warnings and errors of the log in memory, for ``trollmoves logs``."""

from __future__ import annotations

import logging
from collections import deque
from typing import Any

MAX_LINES = 500
MAX_LENGTH = 2_000  # characters of a line


class RecentLog(logging.Handler):
    """A handler that keeps its newest lines. They contain no secrets: their formatter removes them."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._lines: deque[tuple[float, str, str]] = deque(maxlen=MAX_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the line of a record."""
        self._lines.append((record.created, record.levelname, self.format(record)[:MAX_LENGTH]))

    def lines(self) -> list[dict[str, Any]]:
        """Return time (s since the epoch), level and text of the lines, oldest first. Any thread."""
        return [{"time": time, "level": level, "text": text} for time, level, text in self._lines.copy()]
