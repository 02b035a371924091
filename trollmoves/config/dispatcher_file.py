"""A dispatcher's configuration file, YAML or INI, becomes checked targets.

Both say the same by the same names; ``texts`` makes of an INI file what ``structure`` makes of a YAML file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from trollmoves.config import config_file
from trollmoves.config.config_file import Configuration
from trollmoves.config.options import DispatcherOptions, ProcessOptions, TargetOptions, options_of
from trollmoves.config.sections import DEFAULT, Diagnostics, read_process
from trollmoves.config.targets import STRUCTURED, TargetParser, did_you_mean
from trollmoves.config.targets_ini import from_ini, is_ini
from trollmoves.config.targets_yaml import TargetsFile, from_yaml, text
from trollmoves.errors import ConfigError

SUBSCRIBER = "posttroll_subscriber"
_SYNONYMS = {"addresses": "subscribe_addresses", "services": "subscribe_services"}


def read_dispatcher_config(path: str | os.PathLike[str]) -> Configuration[TargetOptions]:
    """Read a configuration file: each target is one chain.

    Raises:
        ConfigError: there is no such file, it cannot be read or understood, what is for all targets cannot be used, or
            no target can. Its text is one line and holds all that is wrong.
    """
    path = os.fspath(path)
    findings = Diagnostics(path)
    file = from_ini(path, SUBSCRIBER) if is_ini(config_file.read_text(path)) else from_yaml(path, SUBSCRIBER, findings)
    process = _process(findings, file)
    targets = {name: TargetParser(findings, name, raw, file.default).read() for name, raw in file.targets.items()}
    usable = {name: target for name, target in targets.items() if target}
    if not usable and not findings.problems:
        raise ConfigError("there is no target, so nothing to run", file=path)
    if not usable or any(problem.section in (DEFAULT, SUBSCRIBER) for problem in findings.problems):
        raise config_file.combined_error(path, findings.problems)
    _warn_no_input(findings, process, usable)
    return Configuration(path, process, usable, tuple(findings.warnings), tuple(findings.problems))


def _process(findings: Diagnostics, file: TargetsFile) -> DispatcherOptions:
    texts = {name: text(value) for name, value in file.default.items() if name not in STRUCTURED}
    process = read_process(findings, texts)
    found: dict[str, Any] = {item.name: getattr(process, item.name) for item in fields(ProcessOptions)}
    return DispatcherOptions(**found, **_subscriber(findings, file.subscriber))


def _subscriber(findings: Diagnostics, given: Mapping[str, Any]) -> dict[str, Any]:
    own = {
        name: option for name, option in options_of(DispatcherOptions).items() if name not in options_of(ProcessOptions)
    }
    found: dict[str, Any] = {}
    for name, value in given.items():
        option = own.get(_SYNONYMS.get(name, name))
        if option is None:
            findings.warn(SUBSCRIBER, name, f"is unknown, and has no effect{did_you_mean(name, [*own, *_SYNONYMS])}")
        elif value is not None and text(value):
            try:
                found[_SYNONYMS.get(name, name)] = option.parse(text(value))
            except ValueError as error:
                findings.problem(SUBSCRIBER, name, error)
    return found


def _warn_no_input(findings: Diagnostics, process: DispatcherOptions, targets: Mapping[str, TargetOptions]) -> None:
    deaf = process.nameserver is False and not process.subscribe_addresses
    if deaf and not all(target.origin for target in targets.values()):
        findings.warn(
            SUBSCRIBER, "subscribe_addresses", "is missing, and there is no nameserver: nothing will be heard"
        )
