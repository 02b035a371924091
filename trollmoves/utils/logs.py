"""Logging of the daemons: its handlers and levels, and how repeated lines are limited."""

from __future__ import annotations

import logging
import logging.config
import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import yaml

from trollmoves.errors import ConfigError
from trollmoves.net.urls import redact_text
from trollmoves.utils.log_format import JOURNAL_FORMAT, FastRedactingFormatter, JournalFormatter, RedactingFormatter
from trollmoves.utils.log_writer import LogFile, LogWriter, QueuedHandler, Rotation, StderrHandler
from trollmoves.utils.recent_log import RecentLog
from trollmoves.utils.service_manager import logs_to_journal
from trollmoves.utils.users import permission_remedy

# Minimum levels of third-party loggers in verbose mode. The DEBUG lines of some contain keys and tokens, or report
# every packet or watch.
LIBRARY_LEVELS = {
    "posttroll": logging.NOTSET,
    "pyinotify": logging.INFO,
    "paramiko": logging.INFO,
    "botocore": logging.INFO,
    "boto3": logging.INFO,
    "s3transfer": logging.INFO,
    "urllib3": logging.INFO,
}
BURST = 20  # lines of one kind in THROTTLE_SECONDS
THROTTLE_SECONDS = 60.0  # s during which further lines are only counted
MAX_KEYS = 1_000  # kinds that are tracked
MAX_KIND_LENGTH = 1_000  # characters by which kinds are distinguished
_UNITS = ("kB", "MB", "GB", "TB", "PB")


def set_up(
    *,
    file: str | None = None,
    config: str | None = None,
    verbose: bool = False,
    rotation: Rotation = Rotation(),  # noqa: B008  (immutable)
) -> LogWriter:
    """Set up the logging of this process; return its writer. Called by the main thread, before other threads start.

    The writer's thread formats and writes the lines of all handlers. The caller closes the writer at the end.
    Without ``file`` and ``config`` the log goes to stderr; with both, to both. Lines to the journal of systemd have a
    priority and no time. Loggers that are not in ``config`` have
    the level INFO, third-party loggers WARNING.

    Args:
        file: the file to append to.
        config: a YAML file for ``logging.config.dictConfig``. By default, existing loggers stay
            enabled (``disable_existing_loggers: false``).
        rotation: when ``file`` is rotated; by default at midnight, and seven old files are kept.
        verbose: log at DEBUG, also to the console and files of ``config``. Handlers for errors only are unchanged.

    Raises:
        ConfigError: one of the files cannot be used; the text names it and the cause.
    """
    settings = _read(config) if config else {}
    root = logging.getLogger()
    for earlier in [handler for handler in root.handlers if isinstance(handler, QueuedHandler)]:
        root.removeHandler(earlier)
        earlier.close()
    if config:
        _apply(settings, config)
    else:
        root.setLevel(logging.INFO)
        _omit_unused_fields()
    if file:
        root.addHandler(_file_handler(file, rotation))
    elif not config:
        root.addHandler(_stderr_handler())
    root.addHandler(RecentLog())
    limit_libraries(_names(settings.get("loggers")), verbose=verbose)
    if verbose:
        _enable_debug(_names(settings.get("loggers")))
    # Otherwise a failing handler (a full disk) would print each lost line to stderr, with its secrets.
    logging.raiseExceptions = False
    return _put_behind_writer()


def recent() -> list[dict[str, Any]]:
    """Return the last warnings and errors of this process. Any thread."""
    return [line for handler in _handlers() if isinstance(handler, RecentLog) for line in handler.lines()]


def format_bytes(n_bytes: int) -> str:
    """Return a number of bytes as text in powers of 1000, such as ``2.1 MB``."""
    if n_bytes < 1000:
        return f"{n_bytes} B"
    number = float(n_bytes)
    for unit in _UNITS:
        number /= 1000
        if number < 999.95 or unit == _UNITS[-1]:
            break
    return f"{number:.1f} {unit}"


class LogThrottle:
    """Limits repeated log lines to ``burst`` lines in ``pause`` seconds for each kind. Any thread."""

    def __init__(self, burst: int = BURST, pause: float = THROTTLE_SECONDS) -> None:
        self._burst = burst
        self._pause = pause
        self._lock = threading.Lock()
        self._kinds: OrderedDict[str, tuple[float, int]] = (
            OrderedDict()
        )  # by kind: start of the period, number of lines

    def admit(self, kind: str = "") -> str | None:
        """Return the suffix of the line, which counts the suppressed lines, or None to suppress this line."""
        kind = kind[:MAX_KIND_LENGTH]
        now = time.monotonic()
        with self._lock:
            since, count = self._kinds.get(kind, (now, 0))
            suppressed = 0
            if now - since > self._pause:
                suppressed, since, count = max(0, count - self._burst), now, 0
            self._kinds[kind] = since, count + 1
            if len(self._kinds) > MAX_KEYS:
                self._kinds.popitem(last=False)
        if count >= self._burst:
            return None
        last = (
            f" (further lines of this kind are only counted for {self._pause:.0f} s)"
            if count == self._burst - 1
            else ""
        )
        return (f" ({suppressed} similar lines suppressed before)" if suppressed else "") + last


def _read(config: str) -> dict[str, Any]:
    try:
        with open(config, "rb") as stream:
            settings = yaml.safe_load(stream)
    except OSError as error:
        remedy = permission_remedy(error.errno, "read")
        raise ConfigError(f"cannot be read: {error.strerror}{remedy}", file=config) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"invalid YAML: {_one_line(error)}", file=config) from None
    if not isinstance(settings, dict):
        raise ConfigError("invalid logging configuration: must be a mapping", file=config)
    return {"disable_existing_loggers": False, **settings}


def _apply(settings: dict[str, Any], config: str) -> None:
    try:
        logging.config.dictConfig(settings)
    except Exception as error:  # a class or factory named in the file may raise any exception
        causes = " ".join(map(_one_line, filter(None, (error, error.__cause__))))
        raise ConfigError(f"invalid logging configuration: {causes}", file=config) from None


def _omit_unused_fields() -> None:
    """Let logging omit the fields that only a format of a configuration uses: a third of the cost of a line."""
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


def _one_line(error: BaseException) -> str:
    return redact_text(" ".join(str(error).split())) or type(error).__name__


def _put_behind_writer() -> LogWriter:
    """Let all handlers write redacted lines, on the thread of the returned writer."""
    for handler in _handlers():
        if not isinstance(handler.formatter, RedactingFormatter):
            wrapper = JournalFormatter if _writes_to_journal(handler) else RedactingFormatter
            handler.setFormatter(wrapper(handler.formatter))
    writer = LogWriter()
    for logger in _loggers():
        logger.handlers[:] = map(writer.queued, logger.handlers)
    return writer


def _file_handler(file: str, rotation: Rotation) -> logging.Handler:
    try:
        return _with_formatter(LogFile(file, rotation))
    except OSError as error:
        remedy = permission_remedy(error.errno, "write")
        raise ConfigError(f"cannot be opened: {error.strerror}{remedy}", file=file) from None


def _stderr_handler() -> logging.Handler:
    handler = StderrHandler()
    if _writes_to_journal(handler):
        handler.setFormatter(JournalFormatter(logging.Formatter(JOURNAL_FORMAT)))
        return handler
    return _with_formatter(handler)


def _writes_to_journal(handler: logging.Handler) -> bool:
    try:
        return isinstance(handler, logging.StreamHandler) and logs_to_journal(handler.stream.fileno())
    except (AttributeError, OSError, ValueError):  # a stream without a descriptor
        return False


def _with_formatter(handler: logging.Handler) -> logging.Handler:
    handler.setFormatter(FastRedactingFormatter())
    return handler


def limit_libraries(configured: Collection[str] = (), *, verbose: bool) -> None:
    """Set the levels of third-party loggers that are not ``configured``."""
    for name, level in LIBRARY_LEVELS.items():
        if name not in configured:
            logger = logging.getLogger(name)
            logger.setLevel(level if verbose else logging.WARNING)
            for handler in [handler for handler in logger.handlers if type(handler) is logging.StreamHandler]:
                logger.removeHandler(handler)  # pyinotify adds one, which would duplicate its lines


def _enable_debug(configured: set[str]) -> None:
    ours = {name for name in configured if name.split(".")[0] == "trollmoves"}
    for logger in (logging.getLogger(), *map(logging.getLogger, ours)):
        logger.setLevel(logging.DEBUG)
    for handler in _handlers():
        if isinstance(handler, logging.StreamHandler) and handler.level <= logging.WARNING:
            handler.setLevel(logging.DEBUG)


def _names(loggers: object) -> set[str]:
    return set(map(str, loggers)) if isinstance(loggers, Mapping) else set()


def _loggers() -> Iterator[logging.Logger]:
    yield logging.getLogger()
    yield from (logger for logger in logging.Logger.manager.loggerDict.values() if isinstance(logger, logging.Logger))


def _handlers() -> Iterator[logging.Handler]:
    """Yield the handlers of all loggers, and the handlers to which these forward records."""
    pending = [handler for logger in _loggers() for handler in logger.handlers]
    seen: list[logging.Handler] = []
    while pending:
        handler = pending.pop()
        if handler in seen:
            continue
        seen.append(handler)
        yield handler
        targets = [getattr(handler, "target", None), *getattr(getattr(handler, "listener", None), "handlers", ())]
        pending += [target for target in targets if isinstance(target, logging.Handler)]
