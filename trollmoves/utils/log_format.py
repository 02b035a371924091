"""The form of a log line: removes secrets, escapes control characters.

Each line passes one formatter, regardless of its handler. It removes the secrets of URLs and escapes control characters
in messages, so that no file name can forge a line. A traceback keeps its lines, indented.
"""

from __future__ import annotations

import logging
import time

from trollmoves.net.urls import redact_text
from trollmoves.utils.texts import printable

FORMAT = "[%(levelname)s: %(asctime)s : %(name)s] %(message)s"
JOURNAL_FORMAT = "[%(levelname)s : %(name)s] %(message)s"  # the journal has the time
PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.NOTSET, 7))
_CONSTANTS = {str, int, float, bool, type(None)}
MAX_MESSAGE_LENGTH = 10_000  # characters; longer messages are truncated, because they may contain remote input


def resolved(record: logging.LogRecord) -> logging.LogRecord:
    """Return a copy with its message as printable text, without arguments; other handlers see the record unchanged."""
    copied = type(record).__new__(type(record))
    vars(copied).update(vars(record))
    copied.msg, copied.args = _message(record), None
    return copied


def is_constant(arguments: object) -> bool:
    """Return True if the arguments of a record cannot change: its text may be formatted later."""
    return not arguments or (isinstance(arguments, tuple) and _CONSTANTS.issuperset(map(type, arguments)))


class RedactingFormatter(logging.Formatter):
    """Wraps a formatter, removes secrets, and escapes control characters so that a message cannot forge a line.

    Args:
        inner: the wrapped formatter; by default, ``logging.Formatter()``, which returns only the message.
    """

    def __init__(self, inner: logging.Formatter | None = None) -> None:
        super().__init__()
        self._inner = inner or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; never raises."""
        record = resolved(record)
        try:
            text = self._inner.format(record)
        except Exception:  # the format uses an attribute that this record lacks
            text = logging.Formatter(FORMAT).format(record)
        text = redact_text(text)
        if record.exc_info or record.exc_text or record.stack_info:
            text = "\n    ".join(map(printable, text.split("\n")))
        return text


class FastRedactingFormatter(RedactingFormatter):
    """Like ``RedactingFormatter`` with ``FORMAT``, at half the cost, because a line is written for every file."""

    def __init__(self) -> None:
        super().__init__(logging.Formatter(FORMAT))
        self._second = (-1, "")  # the last second, and its text

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; never raises."""
        if record.exc_info or record.exc_text or record.stack_info:
            return super().format(record)
        return redact_text(f"[{record.levelname}: {self._time(record)} : {record.name}] {_message(record)}")

    def _time(self, record: logging.LogRecord) -> str:
        second, text = self._second
        if int(record.created) != second:
            second, text = self._second = (
                int(record.created),
                time.strftime(self.default_time_format, time.localtime(record.created)),
            )
        return f"{text},{int(record.msecs):03d}"


class JournalFormatter(RedactingFormatter):
    """Wraps a formatter for the journal of systemd: each line begins with its priority, ``<3>`` for an error."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines; never raises."""
        priority = f"<{_priority(record.levelno)}>"
        return priority + super().format(record).replace("\n", f"\n{priority}")


def _priority(level: int) -> int:
    """Return the priority of syslog(3) of a level."""
    return next(priority for least, priority in PRIORITIES if level >= least)


def _message(record: logging.LogRecord) -> str:
    """Return the message, printable and not too long."""
    try:
        message = record.getMessage()
    except Exception as error:  # mismatched arguments, or an object that cannot be converted
        message = f"{record.msg!r} ({type(error).__name__} in its arguments)"
    else:
        if len(message) <= MAX_MESSAGE_LENGTH and message.isprintable():
            return message
    if len(message) > MAX_MESSAGE_LENGTH:
        message = redact_text(message, MAX_MESSAGE_LENGTH)
    return printable(message)
