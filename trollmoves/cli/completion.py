"""``trollmoves completion``: completion of all commands in a shell."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from trollmoves.cli.answers import OK, write
from trollmoves.errors import StartError

SHELLS = ("bash", "zsh", "fish")
# The module with the function make_parser of each command; they are imported when they are needed.
COMMANDS: Mapping[str, str] = {
    "trollmoves": "trollmoves.cli.command",
    "move_it_server.py": "trollmoves.server.daemon",
    "move_it_client.py": "trollmoves.client.daemon",
    "move_it_mirror.py": "trollmoves.mirror.daemon",
    "dispatcher.py": "trollmoves.dispatcher.daemon",
    "move_it.py": "trollmoves.move_it",
    "remove_it.py": "trollmoves.remove_it",
    "s3downloader.py": "trollmoves.s3downloader",
    "pytroll-fetcher": "trollmoves.fetcher",
    "move_it_req.py": "trollmoves.move_it_req",
    "move_file.py": "trollmoves.move_file",
}
# metavars and names that a shell completes as files
FILE_ARGUMENTS = {"FILE", "CONFIG", "SRC", "DEST", "config_file", "configuration_file"}
DIRECTORY_ARGUMENTS = {"DIR"}
_DESCRIPTION = """Print a script that completes all commands of trollmoves, with their options. To use it:
bash: trollmoves completion bash > ~/.local/share/bash-completion/completions/trollmoves, and in ~/.bashrc:
source ~/.local/share/bash-completion/completions/trollmoves;
zsh, in ~/.zshrc after compinit: eval "$(trollmoves completion zsh)";
fish: trollmoves completion fish > ~/.config/fish/conf.d/trollmoves.fish"""


def add_parser(subparsers: Any) -> None:
    """Add the parser."""
    parser = subparsers.add_parser(
        "completion", help="print the completion script of a shell", description=_DESCRIPTION
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell")
    parser.set_defaults(run=run, json=False)


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand."""
    try:
        import shtab
    except ModuleNotFoundError:
        raise StartError("completion needs shtab, which is not installed: pip install shtab") from None
    for name in COMMANDS:
        parser = parser_of(name)
        for action in _actions(parser):
            if {str(action.metavar), action.dest} & FILE_ARGUMENTS:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
            elif action.metavar in DIRECTORY_ARGUMENTS:
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        write(shtab.complete(parser, shell=arguments.shell))
    return OK


def parser_of(command: str) -> argparse.ArgumentParser:
    """Return the parser of a command, with its name."""
    parser: argparse.ArgumentParser = import_module(COMMANDS[command]).make_parser()
    parser.prog = command
    return parser


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield the actions of a parser and of its subparsers."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from _actions(sub)
