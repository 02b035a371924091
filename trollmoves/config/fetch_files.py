"""The configuration files of ``pytroll-fetcher`` and ``s3downloader.py``, in YAML: each process has one chain."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypeVar

from trollmoves.config.config_file import Configuration, make_configuration
from trollmoves.config.diagnostics import Diagnostics, did_you_mean
from trollmoves.config.fetch_options import FetcherOptions, S3DownloaderOptions
from trollmoves.config.ini_and_yaml import DEFAULT, load_yaml, read_text
from trollmoves.config.option_table import options_of
from trollmoves.config.options import ChainOptions, ProcessOptions
from trollmoves.config.sections import SectionParser, read_options
from trollmoves.matching.patterns import Pattern

O = TypeVar("O", bound=ChainOptions)  # noqa: E741  (one letter, as is the custom for a type)

_SUBSCRIBER, _PUBLISHER = "subscriber_config", "publisher_config"
# Arguments of posttroll without effect: services are always followed, addresses are never translated.
_IGNORED = (
    *(f"{_SUBSCRIBER}__{name}" for name in ("addr_listener", "timeout", "translate", "port")),
    *(f"{_PUBLISHER}__{name}" for name in ("aliases", "broadcast_interval")),
)


def read_fetcher_config(path: str | os.PathLike[str]) -> Configuration[FetcherOptions]:
    """Read a configuration file of ``pytroll-fetcher``.

    Raises:
        ConfigError: the file cannot be read or parsed, or is invalid. Its text is one line with all problems.
    """
    diagnostics = Diagnostics(os.fspath(path))
    return fetcher_config(diagnostics, load_yaml(diagnostics.file, read_text(diagnostics.file), diagnostics))


def fetcher_config(diagnostics: Diagnostics, given: Mapping[Any, Any]) -> Configuration[FetcherOptions]:
    """Return the configuration in the content of a file; raise ConfigError if it is invalid."""
    values = _flat(given, (_SUBSCRIBER, _PUBLISHER))
    if isinstance(given.get(_SUBSCRIBER), dict):
        _apply_posttroll_rules(values, given[_SUBSCRIBER])
    known = {**options_of(FetcherOptions), **options_of(ProcessOptions)}
    for name in [name for name in values if name not in known]:
        if name not in _IGNORED:
            diagnostics.problem(FetcherOptions.role, name, f"is unknown{did_you_mean(name, known)}")
        del values[name]
    parser = SectionParser(diagnostics, FetcherOptions, FetcherOptions.role, values, _of_process(values))
    return _configuration(diagnostics, values, parser)


def read_s3downloader_config(path: str | os.PathLike[str]) -> Configuration[S3DownloaderOptions]:
    """Read a configuration file of ``s3downloader.py``.

    Raises:
        ConfigError: the file cannot be read or parsed, or is invalid. Its text is one line with all problems.
    """
    diagnostics = Diagnostics(os.fspath(path))
    given = load_yaml(diagnostics.file, read_text(diagnostics.file), diagnostics)
    values = _flat({str(name).replace("-", "_"): value for name, value in given.items()}, ("logging",))
    return _configuration(diagnostics, values, _S3Parser(diagnostics, values))


class _S3Parser(SectionParser[S3DownloaderOptions]):
    nested = ("s3_kwargs",)

    def __init__(self, diagnostics: Diagnostics, values: Mapping[str, Any]) -> None:
        role = S3DownloaderOptions
        super().__init__(diagnostics, role, role.role, values, _of_process(values))
        self._arguments = values.get("s3_kwargs") or {}

    def connection_parameters(self) -> dict[str, Any]:
        """Return the connection parameters, which are named as the arguments of s3fs."""
        return {**super().connection_parameters(), **self.typed_parameters("s3_kwargs", self._arguments)}


def _configuration(diagnostics: Diagnostics, values: Mapping[str, Any], parser: SectionParser[O]) -> Configuration[O]:
    process = ProcessOptions(**read_options(diagnostics, DEFAULT, options_of(ProcessOptions), values))
    chain = parser.read()
    if isinstance(chain, FetcherOptions):
        with parser.problems_of("destination"):
            Pattern(chain.destination)
    usable = {parser.name: chain} if chain and not parser.wrong else {}
    return make_configuration(diagnostics, process, usable, "section", (DEFAULT, parser.name))


def _of_process(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in options_of(ProcessOptions)}


def _apply_posttroll_rules(values: dict[str, Any], subscriber: Mapping[Any, Any]) -> None:
    """Apply the rules of ``create_subscriber_from_dict_config``.

    ``services: null`` asks for no service. Without addresses ``nameserver: false`` is localhost.
    """
    if "services" in subscriber and subscriber["services"] is None:
        values[f"{_SUBSCRIBER}__nameserver"] = False
    elif not subscriber.get("addresses") and subscriber.get("nameserver") is False:
        del values[f"{_SUBSCRIBER}__nameserver"]


def _flat(given: Mapping[Any, Any], groups: tuple[str, ...]) -> dict[str, Any]:
    """Return the values by name; those below one of ``groups`` by ``group__name``."""
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key in groups and (isinstance(value, dict) or value is None):
            values |= {f"{key}__{name}": item for name, item in (value or {}).items()}
        else:
            values[str(key)] = value
    return values
