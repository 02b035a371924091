"""Command ``remove_it.py``: removes old files once, for example by cron, and publishes a message about each."""

from __future__ import annotations

import argparse
import logging
import logging.handlers
import smtplib
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from email.message import EmailMessage

from trollmoves import __version__
from trollmoves.config import removal_file
from trollmoves.config.removal_file import RemovalFile
from trollmoves.config.removal_options import MailOptions
from trollmoves.errors import ConfigError, TrollmovesError
from trollmoves.filescleaner import FilesCleaner
from trollmoves.messaging.messages import own_sender
from trollmoves.messaging.publisher import Publisher
from trollmoves.utils import logs
from trollmoves.utils.log_format import RedactingFormatter

logger = logging.getLogger("trollmoves.remove_it")  # also as python -m trollmoves.remove_it

SERVICE = "remover"
SUBSCRIBER_WAIT = 3.0  # s before the first removal, in which subscribers find the publisher and connect
MAX_MAIL_LINES = 500
SMTP_TIMEOUT = 30.0  # s
MAX_LOG_BYTES = 1_000_000
LOG_BACKUPS = 10
LOG_FORMAT = "[%(asctime)s %(levelname)-8s] %(message)s"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 1 if the configuration or one of its sections cannot be used."""
    arguments = make_parser().parse_args(argv)
    try:
        found = removal_file.read(arguments.configuration_file)
        if arguments.check:
            sys.stdout.write(found.report())
            return 1 if found.problems else 0
        with _logging_to(arguments.logfile, _level(arguments)), _mailing(found.mail, enabled=arguments.mail):
            return _run(found, arguments)
    except KeyboardInterrupt:
        return 130
    except TrollmovesError as error:
        print(f"remove_it.py: {error}", file=sys.stderr)  # noqa: T201  (the final message)
        return 1


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="remove_it.py", description="Remove old files, and publish what was removed.")
    add = parser.add_argument
    add("configuration_file", help="the configuration file (INI)")
    add("--check", action="store_true", help="print the sections that would run and all errors, then exit")
    add("--dry-run", action="store_true", help="remove nothing, log what would be removed (with -v)")
    add(
        *("-c", "--config-item"),
        action="append",
        default=[],
        metavar="SECTION",
        help="run only this section; repeat it for several",
    )
    add("-l", "--logfile", metavar="FILE", help="log to this file instead of standard error")
    add("-v", "--verbose", action="store_true", help="log more")
    add("-q", "--quiet", action="store_true", help="log only errors")
    add("-m", "--mail", action="store_true", help="mail the warnings and errors, see mailhost, to and subject")
    add("--version", action="version", version=f"trollmoves {__version__}")
    return parser


def _level(arguments: argparse.Namespace) -> int:
    if arguments.verbose:
        return logging.DEBUG
    return logging.ERROR if arguments.quiet else logging.WARNING


def _run(found: RemovalFile, arguments: argparse.Namespace) -> int:
    """Clean the selected sections; return the exit status."""
    logger.info("Starting cleanup as %s", own_sender())
    for name in arguments.config_item:
        if name not in found.names:
            logger.error("No section named %s in %s", name, found.file)
    is_selected = {name: not arguments.config_item or name in arguments.config_item for name in found.names}
    for warning in found.warnings:
        logger.warning("%s", warning)
    problems = [problem for problem in found.problems if is_selected.get(problem.section, True)]
    for problem in problems:
        logger.error("%s", problem)
    sections = [options for name, options in found.sections.items() if is_selected[name]]
    size = number = 0
    with _publishing(enabled=bool(sections) and not arguments.dry_run) as publisher:
        for options in sections:
            removed = FilesCleaner(publisher, options.name, options, arguments.dry_run).clean_section()
            size += removed.size
            number += removed.number
    logger.info("# removed files: %d", number)
    logger.info("MB removed: %s", size / 1e6)
    logger.info("Thanks for using pytroll/remove_it. See you soon on pytroll.org!")
    return 1 if problems else 0


# -- messages


class _TextPublisher:
    """The interface that ``FilesCleaner`` needs."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    def send(self, text: str, /) -> None:
        self._publisher.send_encoded([text])


@contextmanager
def _publishing(*, enabled: bool) -> Iterator[_TextPublisher | None]:
    """Publish on any free port while the block runs, which starts when subscribers had time to connect."""
    if not enabled:
        yield None
        return
    publisher = Publisher(SERVICE)
    publisher.start()
    try:
        time.sleep(SUBSCRIBER_WAIT)
        yield _TextPublisher(publisher)
    finally:
        publisher.stop()


# -- log and mail


@contextmanager
def _logging_to(file: str | None, level: int) -> Iterator[None]:
    """Log to a file or to stderr while the block runs."""
    handler: logging.Handler = logging.StreamHandler()
    if file:
        try:
            handler = logging.handlers.RotatingFileHandler(
                file, maxBytes=MAX_LOG_BYTES, backupCount=LOG_BACKUPS, encoding="utf-8", errors="backslashreplace"
            )
        except OSError as error:
            raise ConfigError(f"cannot be opened: {error.strerror}", file=file) from None
    handler.setFormatter(RedactingFormatter(logging.Formatter(LOG_FORMAT)))
    handler.setLevel(level)
    root = logging.getLogger()
    root.setLevel(min(level, logging.WARNING))
    root.addHandler(handler)
    logs.limit_libraries(verbose=level == logging.DEBUG)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()


class _MailLines(logging.Handler):
    """Collects the warnings and errors of this package for the mail."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        self.n_dropped = 0
        self.setFormatter(RedactingFormatter(logging.Formatter(LOG_FORMAT)))

    def emit(self, record: logging.LogRecord) -> None:
        """Add a line, or count it if there are too many."""
        if len(self.lines) < MAX_MAIL_LINES:
            self.lines.append(self.format(record))
        else:
            self.n_dropped += 1


@contextmanager
def _mailing(options: MailOptions, *, enabled: bool) -> Iterator[None]:
    """Mail the warnings and errors of the block at its end."""
    missing = [name for name in ("mailhost", "to", "subject") if not getattr(options, name)]
    if enabled and missing:
        logger.info("no mail is sent: %s missing in [DEFAULT]", ", ".join(missing))
    if not enabled or missing:
        yield
        return
    collected = _MailLines()
    ours = logging.getLogger("trollmoves")
    ours.addHandler(collected)
    try:
        yield
    finally:
        ours.removeHandler(collected)
        if collected.lines:
            _send(options, collected)


def _send(options: MailOptions, collected: _MailLines) -> None:
    lines = [*collected.lines, *([f"({collected.n_dropped} more lines)"] if collected.n_dropped else ())]
    text = "\n".join(lines) + "\n"
    user, _, hostname = own_sender().partition("@")
    subject = options.subject.replace("{hostname}", hostname).replace("{user}", user)
    message = EmailMessage()
    try:
        message["From"] = own_sender()
        message["To"] = ", ".join(options.to)
        message["Subject"] = " ".join(subject.split())
        message.set_content(text.encode("utf-8", "backslashreplace").decode())
        with smtplib.SMTP(options.mailhost, timeout=SMTP_TIMEOUT) as smtp:
            smtp.send_message(message)
    except (OSError, ValueError) as error:
        logger.error("cannot mail the warnings to %s by %s: %s", ", ".join(options.to), options.mailhost, error)


if __name__ == "__main__":
    sys.exit(main())
