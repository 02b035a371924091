"""``trollmoves check``: the sections a daemon would run, with all problems and warnings of its configuration."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from trollmoves.cli.answers import CRITICAL, OK, WARNING, Answer, add_json_option, show
from trollmoves.cli.selection import add_config_arguments
from trollmoves.config import removal_file
from trollmoves.config.config_file import Configuration
from trollmoves.config.daemon_kinds import detect_kind
from trollmoves.errors import ConfigError
from trollmoves.net.urls import redact_text
from trollmoves.utils.texts import counted

if TYPE_CHECKING:
    from trollmoves.daemon import Daemon

# The module and the class of each daemon; they are imported when they are needed, because that takes long.
DAEMONS: Mapping[str, tuple[str, str]] = {
    "server": ("trollmoves.server.daemon", "Server"),
    "client": ("trollmoves.client.daemon", "Client"),
    "mirror": ("trollmoves.mirror.daemon", "Mirror"),
    "dispatcher": ("trollmoves.dispatcher.daemon", "Dispatcher"),
    "move_it": ("trollmoves.move_it", "MoveIt"),
    "fetcher": ("trollmoves.fetcher", "Fetcher"),
    "s3downloader": ("trollmoves.s3downloader", "S3Downloader"),
}


def add_parser(subparsers: Any) -> None:
    """Add the parser."""
    parser = subparsers.add_parser(
        "check", help="check a configuration file", description="Check a configuration file; run nothing."
    )
    add_config_arguments(parser)
    parser.add_argument("--connect", action="store_true", help="log in to all providers and destinations too")
    parser.add_argument("--strict", action="store_true", help="exit with status 1 if there are warnings")
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand: 0 without problems, 1 with warnings if ``--strict``, 2 with problems."""
    return show(_check(arguments), arguments)


def _probe_results(found: Configuration[Any]) -> list[tuple[bool, str]]:
    from trollmoves.config.probes import probes  # imported when it is needed: it takes long

    return [probe.result() for probe in probes(found)]


def make_daemon(kind: str, config: str) -> Daemon[Any]:
    """Return a daemon that is not started."""
    module_name, class_name = DAEMONS[kind]
    module = import_module(module_name)
    make_parser: Callable[[], argparse.ArgumentParser] = module.make_parser
    daemon: Daemon[Any] = getattr(module, class_name)(make_parser().parse_args(["--check", "--", config]))
    return daemon


def _check(arguments: argparse.Namespace) -> Answer:
    if len(arguments.config) != 1:
        raise ConfigError("name one configuration file")
    (config,) = arguments.config
    kind = arguments.kind or detect_kind(config)
    if kind == "remove_it":
        return _check_removals(config, is_strict=arguments.strict)
    daemon = make_daemon(kind, config)
    try:
        found = daemon.read_config()
    except ConfigError as error:
        return Answer(CRITICAL, str(error), {"file": config, "kind": kind, "problems": [str(error)]})
    advice = daemon.startup_warning(found.sections.values())
    warnings = [*found.warnings, *daemon.host_warnings(found)]
    results = _probe_results(found) if arguments.connect else []
    problems = [str(problem) for problem in found.problems]
    failed = [line for passed, line in results if not passed]
    code = CRITICAL if problems or failed else WARNING if warnings and arguments.strict else OK
    counts = [
        counted(len(found.sections), f"{kind} chain"),
        *(counted(len(items), noun) for noun, items in (("problem", problems), ("warning", warnings)) if items),
        *([f"{len(failed)} of {counted(len(results), 'connection')} failed"] if failed else []),
    ]
    facts = {
        "file": config,
        "kind": kind,
        "chains": list(found.sections),
        "not_running": list(found.broken),
        "problems": problems,
        "warnings": [redact_text(text) for text in warnings],
        "advice": advice,
        "connections": [{"ok": passed, "text": line} for passed, line in results],
    }
    report = daemon.check_report(found).splitlines()
    extra = [f"warning: {text}" for text in warnings if text not in found.warnings]
    extra += [advice] if advice else []
    return Answer(code, f"{config}: {', '.join(counts)}", facts, [*report[1:], *extra, *(line for _, line in results)])


def _check_removals(config: str, *, is_strict: bool) -> Answer:
    try:
        found = removal_file.read(config)
    except ConfigError as error:
        return Answer(CRITICAL, str(error), {"file": config, "kind": "remove_it", "problems": [str(error)]})
    facts = {
        "file": config,
        "kind": "remove_it",
        "chains": list(found.sections),
        "not_running": [name for name in found.names if name not in found.sections],
        "problems": [str(problem) for problem in found.problems],
        "warnings": list(found.warnings),
        "advice": "",
        "connections": [],
    }
    code = CRITICAL if found.problems else WARNING if found.warnings and is_strict else OK
    verdict, *lines = found.report().splitlines()
    return Answer(code, verdict, facts, lines)
