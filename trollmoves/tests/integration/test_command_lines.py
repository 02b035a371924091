"""What all commands have in common: version, man page, and completion in shells."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import trollmoves
from trollmoves.cli.command import main
from trollmoves.cli.completion import COMMANDS, SHELLS, parser_of
from trollmoves.tests.helpers.daemons import REPOSITORY, Testbed

FISH = 'source {script}; complete -C "{words}" | cut -f 1'
BASH = """source {script}
COMP_WORDS=({words} '')
[ -z "{last}" ] || COMP_WORDS=({words})
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
$(complete -p {command} | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield the long options of a parser and its subparsers, without hidden ones."""
    for action in parser._actions:
        if action.help == argparse.SUPPRESS:
            continue
        yield from (text for text in action.option_strings if text.startswith("--") and text != "--help")
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                yield name
                yield from options(sub)


def test_each_command_is_listed() -> None:
    """Each command has a parser for its man page and completion."""
    if not (REPOSITORY / "bin").is_dir():
        pytest.skip("the package is installed without its sources")
    assert set(COMMANDS) == set(os.listdir(REPOSITORY / "bin")), "add the command to COMMANDS"


@pytest.mark.parametrize("command", COMMANDS)
def test_version(testbed: Testbed, command: str) -> None:
    """Each command prints its version."""
    done = testbed.run(command, "--version")
    assert (done.returncode, done.stdout) == (0, f"trollmoves {trollmoves.__version__}\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_man_page(command: str) -> None:
    """The man page of each command has all its options and subcommands."""
    if not (REPOSITORY / "man").is_dir():
        pytest.skip("the package is installed without its sources")
    page = (REPOSITORY / "man" / f"{command}.1").read_text().replace("\\-", "-")
    missing = [option for option in options(parser_of(command)) if option not in page]
    assert missing == [], "run: make man"


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with the completion script of each shell."""
    folder = tmp_path_factory.mktemp("completion")
    with Testbed(folder) as testbed:
        for shell in SHELLS:
            done = testbed.run("trollmoves", "completion", shell)
            assert done.returncode == 0, done.stderr
            (folder / shell).write_text(done.stdout)
    return folder


@pytest.mark.parametrize("shell", ["bash", "fish"])
@pytest.mark.parametrize(
    ("words", "expected"), [("trollmoves units --ins", "--install"), ("move_it_server.py --ch", "--check")]
)
def test_completion(scripts: Path, shell: str, words: str, expected: str) -> None:
    """A shell with the script completes options."""
    if not shutil.which(shell):
        pytest.skip(f"missing: no {shell} (Debian: {shell})")
    text = BASH if shell == "bash" else FISH
    command = text.format(script=scripts / shell, words=words, command=words.split()[0], last=words.split()[-1])
    done = subprocess.run([shell, "-c", command], capture_output=True, text=True, check=False)
    assert expected in done.stdout.splitlines(), done.stderr


def test_completion_of_zsh(scripts: Path) -> None:
    """The script registers all commands with zsh."""
    if not shutil.which("zsh"):
        pytest.skip("missing: no zsh (Debian: zsh)")
    registered = f'autoload -U compinit; compinit -D; eval "$(cat {scripts}/zsh)"; print -l ${{(k)_comps}}'
    done = subprocess.run(["zsh", "-fc", registered], capture_output=True, text=True, check=False)
    assert set(COMMANDS) <= set(done.stdout.splitlines()), done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        *(["status"], ["queue"], ["held"], ["failed"], ["health"], ["journal"], ["logs"], ["check"], ["web"]),
        *(["history", "x"], ["explain", "x"], ["pause", "x"], ["resume", "x"], ["release", "x"]),
        *(["retry", "x"], ["resend", "x"], ["drop", "x"], ["retry", "--failed"], ["drop", "--failed"]),
    ],
    ids=" ".join,
)
def test_configuration_files(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Each subcommand takes a configuration file as an argument, before and behind an option, and as an option."""
    for given in (["/none.ini"], ["-c", "/none.ini"], ["--kind", "server", "/none.ini"]):
        assert main([*arguments, *given]) in (2, 3)
        assert "/none.ini: " in capsys.readouterr().out, given


def test_other_arguments_are_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown option, and an argument of a subcommand without configuration, are errors."""
    for arguments in (["status", "--nosuch"], ["completion", "bash", "x"]):
        with pytest.raises(SystemExit, match="3"):
            main(arguments)
        assert "unrecognized arguments: " in capsys.readouterr().err
