"""``trollmoves explain``: which sections match a file or a message, and why the others do not."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib import import_module
from typing import Any

from trollmoves.cli.answers import OK, UNKNOWN, WARNING, Answer, add_json_option, show
from trollmoves.cli.selection import add_config_arguments, selected
from trollmoves.config.config_file import Configuration
from trollmoves.net.urls import redact_text
from trollmoves.status.explanation import Explanation, Subject, subject_of
from trollmoves.utils.texts import counted, printable

Explain = Callable[[Configuration[Any], Subject], list[Explanation]]
# By kind of configuration file: the module and its function ``Explain``; imported when it is needed.
EXPLAINERS: Mapping[str, tuple[str, str]] = {
    "server": ("trollmoves.server.explain", "explain"),
    "client": ("trollmoves.receiver.explain", "explain"),
    "mirror": ("trollmoves.receiver.explain", "explain"),
    "dispatcher": ("trollmoves.dispatcher.explain", "explanations"),
    "move_it": ("trollmoves.move_it", "explain"),
    "remove_it": ("trollmoves.filescleaner", "explain"),
}


def add_parser(subparsers: Any) -> None:
    """Add the parser."""
    parser = subparsers.add_parser(
        "explain",
        help="which sections match a file or message, and why the others do not",
        description="Print what each section would do with a file or a message. Nothing is run or sent.",
    )
    parser.add_argument("subject", metavar="NAME_OR_MESSAGE", help="a file, the text of a message, or a file with one")
    add_config_arguments(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand: 0 if a section matches, 1 if none does, 3 if no configuration can be read."""
    subject = subject_of(arguments.subject)
    facts: list[dict[str, Any]] = []
    lines: list[str] = []
    problems: list[str] = []
    for daemon in selected(arguments, need_journals=False):
        if daemon.problem:
            problems.append(f"{daemon.name}: {daemon.problem}")
        if daemon.configuration is None:
            continue
        if daemon.kind not in EXPLAINERS:
            problems.append(f"{daemon.name}: explain supports {', '.join(EXPLAINERS)}, not {daemon.kind}")
            continue
        lines.append(f"{daemon.name} ({daemon.kind})")
        for one in _explainer(daemon.kind)(daemon.configuration, subject):
            facts.append({"daemon": daemon.name, "kind": daemon.kind, **_redacted(one)})
            route = f" dispatch config {one.route}" if one.route else ""
            lines.append(f"  [{one.section}]{route} {printable(redact_text(one.text()))}")
            if one.matches and one.fields:
                values = ", ".join(f"{name}={value}" for name, value in one.fields.items())
                lines.append(f"      {printable(redact_text(values))}")
    matching = [one for one in facts if one["matches"]]
    code = UNKNOWN if not facts else OK if matching else WARNING
    name = subject.path or f"{subject.message.subject} {subject.message.type}" if subject.message else subject.path
    sections = list(dict.fromkeys(f"[{one['section']}]" for one in matching))
    matched = f"matches {counted(len(sections), 'section')}: {' '.join(sections)}" if sections else "matches no section"
    lines += [printable(problem) for problem in problems]
    details = {"subject": name, "explanations": facts, "problems": problems}
    return show(Answer(code, f"{name}: {matched}", details, lines), arguments)


def _explainer(kind: str) -> Explain:
    module, function = EXPLAINERS[kind]
    found: Explain = getattr(import_module(module), function)
    return found


def _redacted(one: Explanation) -> dict[str, Any]:
    found = asdict(one)
    found["fields"] = {name: redact_text(str(value)) for name, value in one.fields.items()}
    return found
