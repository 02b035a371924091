"""The configuration file of a dispatcher, YAML or INI. Both have the same structure and names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from trollmoves.config.config_file import Configuration, make_configuration
from trollmoves.config.diagnostics import Diagnostics, did_you_mean
from trollmoves.config.ini_and_yaml import DEFAULT, read_document
from trollmoves.config.option_table import options_of
from trollmoves.config.options import DispatcherOptions, ProcessOptions, TargetOptions
from trollmoves.config.sections import read_options
from trollmoves.config.targets import TargetParser

SUBSCRIBER = "posttroll_subscriber"
_SYNONYMS = {"addresses": "subscribe_addresses", "services": "subscribe_services"}


def read_dispatcher_config(path: str | os.PathLike[str]) -> Configuration[TargetOptions]:
    """Read a configuration file: each target is one chain.

    Raises:
        ConfigError: the file cannot be read or parsed, or the options for all targets, or all targets, are invalid.
            Its text is one line with all problems.
    """
    diagnostics = Diagnostics(os.fspath(path))
    document = read_document(diagnostics.file, diagnostics, {**options_of(ProcessOptions), **options_of(TargetOptions)})
    default = document.default
    process = _process(diagnostics, default, document.sections.pop(SUBSCRIBER, {}))
    targets = {
        name: TargetParser(diagnostics, name, values, default).read() for name, values in document.sections.items()
    }
    usable = {name: target for name, target in targets.items() if target}
    has_publishers = process.nameserver is not False or process.subscribe_addresses
    if not has_publishers and not all(target.origin for target in usable.values()):
        text = "is missing, and no name server is configured: no messages will be received"
        diagnostics.warn(SUBSCRIBER, "subscribe_addresses", text)
    return make_configuration(diagnostics, process, usable, "target", (DEFAULT, SUBSCRIBER))


def _process(diagnostics: Diagnostics, default: Mapping[str, Any], subscriber: Mapping[str, Any]) -> DispatcherOptions:
    shared = options_of(ProcessOptions)
    own = {name: option for name, option in options_of(DispatcherOptions).items() if name not in shared}
    subscriber = {_SYNONYMS.get(name, name): value for name, value in subscriber.items()}
    for name in subscriber:
        if name not in own and name not in default:
            text = f"is unknown, and has no effect{did_you_mean(name, [*own, *_SYNONYMS])}"
            diagnostics.warn(SUBSCRIBER, name, text)
    return DispatcherOptions(
        **read_options(diagnostics, DEFAULT, shared, default), **read_options(diagnostics, SUBSCRIBER, own, subscriber)
    )
