"""``trollmoves units``: the systemd units of the daemons, one template for each kind of daemon."""

from __future__ import annotations

import argparse
import os
import pwd
import shutil
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from importlib import resources
from string import Template
from typing import Any

from trollmoves.cli.answers import CRITICAL, OK, Answer, add_json_option, show, write
from trollmoves.errors import StartError
from trollmoves.utils.texts import counted

SYSTEM_DIRECTORY = "/etc/systemd/system"
SERVICE_USER = "trollmoves"
MARK = "# Written by `trollmoves units --install`"
# The command of a kind with the option for its configuration file, if any, and the suffix of that file.
COMMANDS: Mapping[str, tuple[str, str, str]] = {
    "server": ("move_it_server.py", "", "ini"),
    "client": ("move_it_client.py", "", "ini"),
    "mirror": ("move_it_mirror.py", "", "ini"),
    "dispatcher": ("dispatcher.py", "", "yaml"),
    "move-it": ("move_it.py", "", "ini"),
    "fetcher": ("pytroll-fetcher", "", "yaml"),
    "s3downloader": ("s3downloader.py", "-c ", "yaml"),
}
_DESCRIPTION = """Print the systemd units of the daemons, or install them. Each instance runs one configuration file:
trollmoves-server@hrit.service runs /etc/trollmoves/hrit.ini. See doc/systemd.md."""


def add_parser(subparsers: Any) -> None:
    """Add the parser."""
    parser = subparsers.add_parser("units", help="print or install the systemd units", description=_DESCRIPTION)
    add = parser.add_argument
    add("--kind", action="append", choices=tuple(COMMANDS), help="only this kind of daemon; may be repeated")
    add("--install", action="store_true", help="write the units; existing ones are replaced if this command wrote them")
    add(
        "--directory", metavar="DIR", help=f"the directory to write to (default: {SYSTEM_DIRECTORY}, or that of --user)"
    )
    add("--user", action="store_true", help="units for the user manager (systemctl --user), without a service user")
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand: 0, or 2 if a unit cannot be written."""
    directory = arguments.directory or (user_directory() if arguments.user else SYSTEM_DIRECTORY)
    units = {
        os.path.join(directory, f"trollmoves-{kind}@.service"): unit(kind, user=arguments.user)
        for kind in arguments.kind or COMMANDS
    }
    if arguments.install:
        return show(_install(units, user=arguments.user), arguments)
    if arguments.json:
        return show(Answer(OK, counted(len(units), "unit"), {"units": units}), arguments)
    write("\n".join(f"# {path}\n{text}" for path, text in units.items()).rstrip("\n"))
    return OK


def unit(kind: str, *, user: bool = False) -> str:
    """Return the text of a unit; StartError if the command of the daemon is not installed.

    Args:
        kind: the kind of daemon.
        user: for the user manager, which can neither change the user nor restrict file systems.
    """
    command, option, suffix = COMMANDS[kind]
    data = resources.files("trollmoves") / "systemd"
    sandbox = (data / "sandbox-user.conf").read_text("utf-8")
    if not user:
        sandbox = (data / "sandbox.conf").read_text("utf-8") + sandbox
    text = Template((data / "trollmoves@.service").read_text("utf-8")).substitute(
        kind=kind,
        command=command,
        path=_path_of(command),
        suffix=suffix,
        option=option,
        scope="--user" if user else "--system",
        after="After=network.target" if user else "After=network-online.target\nWants=network-online.target",
        user="" if user else f"User={SERVICE_USER}\nGroup={SERVICE_USER}",
        sandbox=sandbox.rstrip("\n"),
        target="default.target" if user else "multi-user.target",
    )
    return text.replace("\n\n\n", "\n\n").replace("Type=notify\n\n", "Type=notify\n")


def user_directory() -> str:
    """Return the directory of the units of this user."""
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return os.path.join(config, "systemd", "user")


def _path_of(command: str) -> str:
    """Return the absolute path of a command: next to this one, or of this installation."""
    directories = (os.path.dirname(os.path.abspath(sys.argv[0])), sysconfig.get_path("scripts"))
    path = shutil.which(command, path=os.pathsep.join(directories)) or shutil.which(command)
    if path is None:
        raise StartError(f"cannot find {command} in {' or '.join(directories)}; install trollmoves with pip")
    if any(char.isspace() or char in "\"'\\%$" for char in path):
        raise StartError(f"{path}: a unit cannot name this path; install trollmoves in a directory without blanks")
    return os.path.abspath(path)


def _install(units: Mapping[str, str], *, user: bool) -> Answer:
    foreign = [path for path in units if _is_foreign(path)]
    if foreign:
        text = f"{', '.join(foreign)}: written by another program; remove it, or use --directory"
        return Answer(CRITICAL, text, {"units": []})
    for path, text in units.items():
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            _write(path, text)
        except OSError as error:
            hint = "; run the command as root, or with --user" if isinstance(error, PermissionError) else ""
            raise StartError(f"cannot write {path}: {error.strerror}{hint}") from None
    verdict = f"wrote {counted(len(units), 'unit')}"
    return Answer(OK, verdict, {"units": list(units)}, [*units, "", *_next_steps(user=user)])


def _is_foreign(path: str) -> bool:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return MARK not in file.readline()
    except OSError:
        return False


def _write(path: str, text: str) -> None:
    new = f"{path}.new"
    with open(new, "w", encoding="utf-8") as file:
        file.write(text)
        os.fchmod(file.fileno(), 0o644)
    os.replace(new, path)


def _next_steps(*, user: bool) -> Sequence[str]:
    steps = []
    if not user:
        try:
            pwd.getpwnam(SERVICE_USER)
        except KeyError:
            options = f"--system --user-group --home-dir /var/lib/{SERVICE_USER} --shell /usr/sbin/nologin"
            steps.append(f"useradd {options} {SERVICE_USER}")
    systemctl = "systemctl --user" if user else "systemctl"
    directory = "~/.config/trollmoves" if user else "/etc/trollmoves"
    return [
        "Next:",
        *(f"  {step}" for step in steps),
        f"  {systemctl} daemon-reload",
        f"  {systemctl} enable --now trollmoves-server@NAME    # runs {directory}/NAME.ini",
    ]
