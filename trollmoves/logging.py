"""The logging of the daemons for scripts: arguments of the command line, and the set-up of the log."""

from __future__ import annotations

import argparse
import atexit
import logging

from trollmoves.utils import logs


def add_logging_options_to_parser(parser: argparse.ArgumentParser, legacy: bool = False) -> None:
    """Add the option ``-c`` for a logging configuration; with ``legacy`` also ``-l FILE`` and ``-v``."""
    parser.add_argument("-c", "--log-config", metavar="FILE", help="logging configuration (YAML, dictConfig)")
    if legacy:
        parser.add_argument("-l", "--log", metavar="FILE", help="log to this file instead of standard error")
        parser.add_argument("-v", "--verbose", action="store_true", help="log more")


def setup_logging(name: str, cmd_args: argparse.Namespace | None = None) -> logging.Logger:
    """Set up the log of this process and return a logger; ``cmd_args`` has the options of the parser.

    Call it in the main thread before other threads start. Lines that are not written yet are written at the exit.

    Raises:
        ConfigError: the log file or the logging configuration cannot be used.
    """
    file, config = getattr(cmd_args, "log", None), getattr(cmd_args, "log_config", None)
    writer = logs.set_up(
        file=None if file is None else str(file),
        config=None if config is None else str(config),
        verbose=bool(getattr(cmd_args, "verbose", False)),
    )
    atexit.register(writer.close)
    return logging.getLogger(name)
