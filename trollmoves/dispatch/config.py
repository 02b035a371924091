"""A dispatcher's configuration file, YAML or INI, becomes checked targets.

Both say the same by the same names; ``texts`` makes of an INI file what ``structure`` makes of a YAML file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from trollmoves import config
from trollmoves.config import Configuration
from trollmoves.dispatch.structure import File, from_yaml, text
from trollmoves.dispatch.target import STRUCTURED, TargetReader, sensible
from trollmoves.dispatch.texts import from_ini, is_ini
from trollmoves.errors import ConfigError
from trollmoves.options import DispatcherOptions, ProcessOptions, TargetOptions, table
from trollmoves.sections import DEFAULT, Findings, read_process

SUBSCRIBER = "posttroll_subscriber"
_SYNONYMS = {"addresses": "subscribe_addresses", "services": "subscribe_services"}


def read(path: str | os.PathLike[str]) -> Configuration[TargetOptions]:
    """Read a configuration file: each target is one chain.

    Raises:
        ConfigError: there is no such file, it cannot be read or understood, what is for all targets cannot be used, or
            no target can. Its text is one line and holds all that is wrong.
    """
    path = os.fspath(path)
    findings = Findings(path)
    file = from_ini(path, SUBSCRIBER) if is_ini(config.text_of(path)) else from_yaml(path, SUBSCRIBER, findings)
    process = _process(findings, file)
    targets = {name: TargetReader(findings, name, raw, file.default).read() for name, raw in file.targets.items()}
    usable = {name: target for name, target in targets.items() if target}
    if not usable and not findings.problems:
        raise ConfigError("there is no target, so nothing to run", file=path)
    if not usable or any(problem.section in (DEFAULT, SUBSCRIBER) for problem in findings.problems):
        raise config.together(path, findings.problems)
    _warn_deaf(findings, process, usable)
    return Configuration(path, process, usable, tuple(findings.warnings), tuple(findings.problems))


def _process(findings: Findings, file: File) -> DispatcherOptions:
    texts = {name: text(value) for name, value in file.default.items() if name not in STRUCTURED}
    process = read_process(findings, texts)
    found: dict[str, Any] = {item.name: getattr(process, item.name) for item in fields(ProcessOptions)}
    return DispatcherOptions(**found, **_subscriber(findings, file.subscriber))


def _subscriber(findings: Findings, given: Mapping[str, Any]) -> dict[str, Any]:
    own = {name: option for name, option in table(DispatcherOptions).items() if name not in table(ProcessOptions)}
    found: dict[str, Any] = {}
    for name, value in given.items():
        option = own.get(_SYNONYMS.get(name, name))
        if option is None:
            findings.warn(SUBSCRIBER, name, f"is unknown, and has no effect{sensible(name, [*own, *_SYNONYMS])}")
        elif value is not None and text(value):
            try:
                found[_SYNONYMS.get(name, name)] = option.parse(text(value))
            except ValueError as error:
                findings.problem(SUBSCRIBER, name, error)
    return found


def _warn_deaf(findings: Findings, process: DispatcherOptions, targets: Mapping[str, TargetOptions]) -> None:
    deaf = process.nameserver is False and not process.subscribe_addresses
    if deaf and not all(target.origin for target in targets.values()):
        findings.warn(
            SUBSCRIBER, "subscribe_addresses", "is missing, and there is no nameserver: nothing will be heard"
        )
