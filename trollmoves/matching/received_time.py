"""Times in messages, with the text that was received: it may be a name that only looks like a time."""

from __future__ import annotations

import datetime as dt
import functools
from typing import Any

CACHE_SIZE = 1000  # texts; consecutive messages share most times
MAX_CACHED_LENGTH = 40  # characters


class ReceivedTime(dt.datetime):
    """A time that keeps ``text``, from which it was read; "" for the result of a calculation."""

    text = ""

    def __deepcopy__(self, memo: object) -> ReceivedTime:
        """Return the same object: it is not modified."""
        return self


def read_time(text: str) -> ReceivedTime | str:
    """Return the time that ``text`` contains in ISO format, else ``text``."""
    return (_read_time if len(text) <= MAX_CACHED_LENGTH else _read_time.__wrapped__)(text)


@functools.lru_cache(maxsize=CACHE_SIZE)
def _read_time(text: str) -> ReceivedTime | str:
    try:
        time = ReceivedTime.fromisoformat(text)
    except ValueError:
        return text
    time.text = text
    return time


def text_of(value: Any) -> Any:
    """Return the text of a received time, and any other value unchanged."""
    return value.text or value if type(value) is ReceivedTime else value
