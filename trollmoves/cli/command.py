"""The frame of the command ``trollmoves``: its subcommands, and the errors that they have in common."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from trollmoves import __version__
from trollmoves.cli import actions, check, completion, explain, health, history, journal, lists, logs, status, units
from trollmoves.cli.answers import UNKNOWN, Answer, show
from trollmoves.cli.web import web
from trollmoves.errors import TrollmovesError
from trollmoves.net.urls import redact_text

EPILOG = """Exit codes, as for Nagios: 0 ok, 1 warning, 2 critical, 3 unknown. --json prints the same facts as JSON.
Most subcommands read the journal, also while the daemon is down. Only pause, resume, release, retry, resend and drop
change something: a running daemon carries them out immediately, a stopped one at its next start."""


class Parser(argparse.ArgumentParser):
    """A parser that exits with the code 3, unknown, for invalid arguments."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and the error, and exit."""
        self.print_usage(sys.stderr)
        self.exit(UNKNOWN, f"{self.prog}: {message}\n")


# Modules in the order of the help. The function ``add_parser`` of each adds the parsers of its subcommands, each with
# ``set_defaults(run=...)``: a function that gets the arguments and returns an exit code. It may raise TrollmovesError,
# which is printed in one line, with the exit code 3.
SUBCOMMANDS = (
    *(status, lists, history, explain, check, health, journal, logs),
    *(actions, web, units, completion),
)


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        prog="trollmoves",
        description="See the state of the daemons, and act on it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"trollmoves {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    for module in SUBCOMMANDS:
        module.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = make_parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and (any(one.startswith("-") for one in rest) or not hasattr(arguments, "config")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # CONFIG behind an option, where argparse does not expect it
        arguments.config += rest
    try:
        return int(arguments.run(arguments))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of a pipe has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNKNOWN
    except TrollmovesError as error:
        return show(Answer(UNKNOWN, redact_text(str(error))), arguments)
