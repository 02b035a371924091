"""Where a daemon's log lines go.

Whatever the way, each line passes one formatter: it leaves out the secrets of URLs, and it writes control characters
in a message as escapes, so that no file name can forge a line. A traceback keeps its lines, indented.
"""

from __future__ import annotations

import copy
import logging
import logging.config
import logging.handlers
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from trollmoves.errors import ConfigError
from trollmoves.net.urls import redact_text

FORMAT = "[%(levelname)s: %(asctime)s : %(name)s] %(message)s"
BACKUP_COUNT = 7  # log files of the days before
MAX_MESSAGE_LENGTH = 10_000  # characters of a message that are written: some of it may have come from anyone

# Other people's loggers with the level they keep even when verbose: the DEBUG lines of some hold keys and tokens, or
# tell of every packet or watch.
LIBRARY_LEVELS = {
    "posttroll": logging.NOTSET,
    "pyinotify": logging.INFO,
    "paramiko": logging.INFO,
    "botocore": logging.INFO,
    "boto3": logging.INFO,
    "s3transfer": logging.INFO,
    "urllib3": logging.INFO,
}
BURST = 20  # lines of one kind that are written at once, and
THROTTLE_SECONDS = 60.0  # s for which further ones are then counted only
MAX_KEYS = 1_000  # that are told apart
_UNITS = ("kB", "MB", "GB", "TB", "PB")


def set_up(*, file: str | None = None, config: str | None = None, verbose: bool = False) -> None:
    """Direct the log lines of this process; the main thread calls this once, before the others start.

    Without ``file`` and ``config`` they go to stderr; with both, to both. What is not said in ``config`` is logged
    from INFO on, by other packages from WARNING on.

    Args:
        file: the file to append to; a new one is begun at midnight, and the last seven are kept.
        config: a YAML file for ``logging.config.dictConfig``. Unless it says otherwise, loggers that exist already
            go on (``disable_existing_loggers: false``).
        verbose: from DEBUG on, also to the console and files of ``config``; handlers for errors only stay so.

    Raises:
        ConfigError: when one of the files cannot be used; says which and why.
    """
    settings = _read(config) if config else {}
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler.formatter, RedactingFormatter)]:
        root.removeHandler(handler)  # an earlier call's
        handler.close()
    if config:
        _apply(settings, config)
    else:
        root.setLevel(logging.INFO)
    if file:
        root.addHandler(_file_handler(file))
    elif not config:
        root.addHandler(_with_our_formatter(logging.StreamHandler()))
    _set_library_levels(_names(settings.get("loggers")), verbose)
    if verbose:
        _enable_debug(_names(settings.get("loggers")))
    for handler in _handlers():
        if not isinstance(handler.formatter, RedactingFormatter):
            handler.setFormatter(RedactingFormatter(handler.formatter))
    # A handler that fails (a full disk) would else print each lost line to stderr, with arguments as they are.
    logging.raiseExceptions = False


def format_bytes(n_bytes: int) -> str:
    """Return a number of bytes for a log line: ``2.1 MB``, in powers of 1000."""
    if n_bytes < 1000:
        return f"{n_bytes} B"
    number = float(n_bytes)
    for unit in _UNITS:
        number /= 1000
        if number < 999.95 or unit == _UNITS[-1]:
            break
    return f"{number:.1f} {unit}"


class LogThrottle:
    """Keeps those who can cause a log line from filling the log: ``burst`` lines in ``pause`` seconds. Any thread."""

    def __init__(self, burst: int = BURST, pause: float = THROTTLE_SECONDS) -> None:
        self._burst = burst
        self._pause = pause
        self._lock = threading.Lock()
        self._kinds: OrderedDict[str, tuple[float, int]] = OrderedDict()  # by kind: since when, how often

    def admit(self, kind: str = "") -> str | None:
        """Give what to write behind a line now: how many were left out since the last one. None leaves this one out."""
        now = time.monotonic()
        with self._lock:
            since, count = self._kinds.get(kind, (now, 0))
            left_out = 0
            if now - since > self._pause:
                left_out, since, count = max(0, count - self._burst), now, 0
            self._kinds[kind] = since, count + 1
            if len(self._kinds) > MAX_KEYS:
                self._kinds.popitem(last=False)
        if count >= self._burst:
            return None
        last = f" (more like this are counted only, for {self._pause:.0f} s)" if count == self._burst - 1 else ""
        return (f" (and {left_out} more before)" if left_out else "") + last


class RedactingFormatter(logging.Formatter):
    """Formats by another formatter, without secrets, and so that nothing in a message looks like another line.

    Args:
        inner: the formatter that gives the form; by default the bare message, as ``logging`` has it.
    """

    def __init__(self, inner: logging.Formatter | None = None) -> None:
        super().__init__()
        self._inner = inner or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; never raises."""
        record = copy.copy(record)
        record.msg, record.args = _message(record), None
        try:
            text = self._inner.format(record)
        except Exception:  # a form that asks for what this record does not have
            text = logging.Formatter(FORMAT).format(record)
        text = redact_text(text)
        if record.exc_info or record.exc_text or record.stack_info:
            text = "\n    ".join(line if line.isprintable() else _escaped(line) for line in text.split("\n"))
        return text


class FastRedactingFormatter(RedactingFormatter):
    """Gives ``FORMAT`` as ``CarefulFormatter`` does, at half the cost: a line is written for every file."""

    def __init__(self) -> None:
        super().__init__(logging.Formatter(FORMAT))
        self._second = (-1, "")  # the last one, as it is written

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; never raises."""
        if record.exc_info or record.exc_text or record.stack_info:
            return super().format(record)
        return redact_text(f"[{record.levelname}: {self._time(record)} : {record.name}] {_message(record)}")

    def _time(self, record: logging.LogRecord) -> str:
        second, written = self._second
        if int(record.created) != second:
            second, written = self._second = (
                int(record.created),
                time.strftime(self.default_time_format, time.localtime(record.created)),
            )
        return f"{written},{int(record.msecs):03d}"


def _message(record: logging.LogRecord) -> str:
    """Return the message as it may be written."""
    try:
        message = record.getMessage()
    except Exception as error:  # arguments that do not fit, an object that cannot be shown
        message = f"{record.msg!r} ({type(error).__name__} in its arguments)"
    else:
        if len(message) <= MAX_MESSAGE_LENGTH and message.isprintable():
            return message
    if len(message) > MAX_MESSAGE_LENGTH:
        message = f"{redact_text(message)[:MAX_MESSAGE_LENGTH]}... ({len(message)} characters)"
    return message if message.isprintable() else _escaped(message)


def _escaped(text: str) -> str:
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def _read(config: str) -> dict[str, Any]:
    try:
        with open(config, "rb") as stream:
            settings = yaml.safe_load(stream)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=config) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"is no YAML: {_one_line(error)}", file=config) from None
    if not isinstance(settings, dict):
        raise ConfigError("is no logging configuration: it holds no keys", file=config)
    return {"disable_existing_loggers": False, **settings}


def _apply(settings: dict[str, Any], config: str) -> None:
    try:
        logging.config.dictConfig(settings)
    except Exception as error:  # whatever a class or factory that is named there may raise
        causes = " ".join(map(_one_line, filter(None, (error, error.__cause__))))
        raise ConfigError(f"is no logging configuration: {causes}", file=config) from None


def _one_line(error: BaseException) -> str:
    return redact_text(" ".join(str(error).split())) or type(error).__name__


def _file_handler(file: str) -> logging.Handler:
    try:
        return _with_our_formatter(
            logging.handlers.TimedRotatingFileHandler(
                file, when="midnight", backupCount=BACKUP_COUNT, encoding="utf-8", errors="backslashreplace"
            )
        )
    except OSError as error:
        raise ConfigError(f"cannot log there: {error.strerror}", file=file) from None


def _with_our_formatter(handler: logging.Handler) -> logging.Handler:
    handler.setFormatter(FastRedactingFormatter())
    return handler


def _set_library_levels(configured: set[str], verbose: bool) -> None:
    for name, level in LIBRARY_LEVELS.items():
        if name not in configured:
            logger = logging.getLogger(name)
            logger.setLevel(level if verbose else logging.WARNING)
            for handler in [one for one in logger.handlers if type(one) is logging.StreamHandler]:
                logger.removeHandler(handler)  # pyinotify brings one, so that each of its lines would come twice


def _enable_debug(configured: set[str]) -> None:
    ours = {name for name in configured if name.split(".")[0] == "trollmoves"}
    for logger in (logging.getLogger(), *map(logging.getLogger, ours)):
        logger.setLevel(logging.DEBUG)
    for handler in _handlers():
        if isinstance(handler, logging.StreamHandler) and handler.level <= logging.WARNING:
            handler.setLevel(logging.DEBUG)


def _names(loggers: object) -> set[str]:
    return set(map(str, loggers)) if isinstance(loggers, Mapping) else set()


def _handlers() -> Iterator[logging.Handler]:
    """Yield the handlers of all loggers, and those that they hand on to."""
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    waiting = [handler for logger in loggers if isinstance(logger, logging.Logger) for handler in logger.handlers]
    seen: list[logging.Handler] = []
    while waiting:
        handler = waiting.pop()
        if handler in seen:
            continue
        seen.append(handler)
        yield handler
        further = [getattr(handler, "target", None), *getattr(getattr(handler, "listener", None), "handlers", ())]
        waiting += [other for other in further if isinstance(other, logging.Handler)]
