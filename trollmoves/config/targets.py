"""Parsing and validation of one target of a dispatcher."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import ParseResult

from trollmoves.config import secrets
from trollmoves.config.diagnostics import Diagnostics, did_you_mean
from trollmoves.config.ini_and_yaml import as_text
from trollmoves.config.options import Alias, DispatchConfig, TargetOptions
from trollmoves.config.sections import SectionParser, check_scheme
from trollmoves.errors import BadDestination
from trollmoves.matching import conditions, patterns
from trollmoves.matching.conditions import Conditions
from trollmoves.net import hosts, urls

ALIAS_NAME = "_alias_name"
SSH = "sftp"  # the mover of `ssh://`

_DESTINATION_OPTIONS = ("host", "directory", "filepattern")
_CONFIG_OPTIONS = ("topics", "conditions", "aliases", *_DESTINATION_OPTIONS)
_TARGET_OPTIONS = ("publish_topic", "connection_parameters", "origin", "quiet_time", "collections", "repeat_after")


class TargetParser(SectionParser[TargetOptions]):
    """Parser of one target."""

    nested = ("aliases", "conditions", "connection_parameters", "dispatch_configs", "topics")

    def __init__(
        self, diagnostics: Diagnostics, name: str, values: Mapping[str, Any], default: Mapping[str, Any]
    ) -> None:
        super().__init__(diagnostics, TargetOptions, name, values, default)
        self._values = {option: value for option, value in values.items() if value is not None}
        if "dispatch_configs" in values:
            self._values.setdefault("dispatch_configs", [])

    def read(self) -> TargetOptions | None:
        """Return the target, None if it is invalid."""
        target = super().read()
        if target is None:
            return None
        if target.origin:
            with self.problems_of("origin"):
                patterns.Origin(target.origin)
        with self.problems_of("publish_topic"):
            _check_pattern(target.publish_topic)
        configs = tuple(self._with_login(target.login, config) for config in self._dispatch_configs(target))
        return None if self.wrong else replace(target, dispatch_configs=configs)

    def connection_parameters(self) -> dict[str, Any]:
        """Return the connection parameters, of which a YAML file may contain typed and nested ones."""
        given = self._values.get("connection_parameters", {})
        return {**super().connection_parameters(), **self.typed_parameters("connection_parameters", given)}

    def _with_login(self, login: str | None, config: DispatchConfig) -> DispatchConfig:
        """Add the login of the target to the URL of a host without a user."""
        if not login or self.wrong:
            return config
        if "://" not in config.host:
            self.warn("login", "has no effect on deliveries to this host")
            return config
        url = base_url(config.host)
        host = config.host if "@" in url.netloc else urls.with_login(url, login)
        return replace(config, host=host)

    # -- dispatch configs

    def _dispatch_configs(self, target: TargetOptions) -> Iterator[DispatchConfig]:
        aliases = self._aliases("aliases", self._values.get("aliases", {}))
        defaults = DispatchConfig(
            host=target.host, directory=target.directory, filepattern=target.filepattern, aliases=aliases
        )
        given = self._values.get("dispatch_configs", [])
        if "dispatch_configs" not in self._values:
            yield from self._single_config(defaults, bool(target.origin))
        elif not isinstance(given, list):
            self.problem("dispatch_configs", "must be a list")
        else:
            for name in ("topics", "conditions"):
                if name in self._values:
                    self.warn(name, "has no effect together with dispatch_configs: move it into them")
            for number, one in enumerate(given, start=1):
                where = f"dispatch_configs {number}"
                if isinstance(one, dict):
                    yield self._dispatch_config(f"{where} ", one, defaults, bool(target.origin))
                else:
                    self.problem(where, "must have names with values")
            if not given:
                self.warn("dispatch_configs", "is empty: nothing is delivered to this target")

    def _single_config(self, defaults: DispatchConfig, has_origin: bool) -> Iterator[DispatchConfig]:
        """Yield the only dispatch config of a target that has topics and conditions itself."""
        given = {name: self._values[name] for name in ("topics", "conditions") if name in self._values}
        if given or has_origin:
            yield self._dispatch_config("", given, defaults, has_origin)
        else:
            self.problem("dispatch_configs", "is missing: select the messages for this target by topics")

    def _dispatch_config(
        self, where: str, given: dict[Any, Any], defaults: DispatchConfig, has_origin: bool
    ) -> DispatchConfig:
        given = {str(name): value for name, value in given.items() if value is not None}
        for name in given:
            self._check_option(where, name)
        own: dict[str, Any] = {
            name: self.plain_text(f"{where}{name}", given[name]) for name in _DESTINATION_OPTIONS if name in given
        }
        if "aliases" in given:
            own["aliases"] = self._aliases(f"{where}aliases", given["aliases"])
        found = replace(
            defaults,
            **own,
            topics=self._topics(f"{where}topics", given.get("topics"), has_origin),
            conditions=self._conditions(f"{where}conditions", given),
        )
        self._check_destination(
            {name: f"{where}{name}" if name in own else name for name in _DESTINATION_OPTIONS}, found
        )
        return found

    def _check_option(self, where: str, name: str) -> None:
        if name in _TARGET_OPTIONS:
            self.warn(f"{where}{name}", "has no effect here: it is an option of the target")
        elif name not in _CONFIG_OPTIONS:
            self.warn(f"{where}{name}", f"is unknown, and has no effect{did_you_mean(name, _CONFIG_OPTIONS)}")

    def _topics(self, option: str, given: object, has_origin: bool) -> tuple[str, ...]:
        if has_origin:
            if given is not None:
                self.warn(option, "has no effect together with origin")
            return ()
        if given is None:
            self.problem(option, "is missing: select messages by the start of their subjects")
            return ()
        found = [as_text(one) for one in (given if isinstance(given, list) else [given])]
        if not found or not all(found):
            self.warn(
                option,
                "is empty: no message matches" if not found else "has an empty topic, which matches all messages",
            )
        return tuple(_subject(topic) for topic in found)

    def _conditions(self, option: str, given: Mapping[str, Any]) -> Conditions | None:
        if "conditions" not in given:
            return None
        found = given["conditions"]
        if found in ([], {}):
            self.warn(option, "is empty: no message matches")
        for key in _comparisons_in_lists(found):
            self.warn(option, f"the comparison of {key} in a list is compared as text: write it outside of a list")
        with self.problems_of(option):
            return conditions.parse_conditions(found)
        return None

    def _aliases(self, option: str, given: object) -> tuple[Alias, ...]:
        found = []
        for key, name, pairs in _tables(given):
            if isinstance(pairs, dict):
                name = pairs.get(ALIAS_NAME, name)
                replacements = {value: alias for value, alias in pairs.items() if value != ALIAS_NAME}
                found.append(Alias(str(key), str(key if name is None else name), replacements))
            elif pairs is not None:
                self.problem(option, "must map values to their replacements, below the name of a metadata item")
        return tuple(found)

    def _check_destination(self, names: Mapping[str, str], config: DispatchConfig) -> None:
        """Check the destination; ``names`` maps the options to their names in problems."""
        with self.problems_of(names["host"]):
            self._check_host(names["host"], config.host)
        if not config.directory and not config.filepattern.startswith("/"):
            self.problem(names["directory"], "is missing: set the directory to deliver files to")
            return
        for name in ("directory", "filepattern"):
            with self.problems_of(names[name]):
                _check_pattern(getattr(config, name))

    def _check_host(self, option: str, host: str) -> None:
        if host and "://" not in host:
            if not hosts.is_local(host.rpartition("@")[2].partition(":")[0].strip("/")):
                self.warn(
                    option,
                    "has no scheme, so files are delivered to this host; use a URL as sftp://user@host for another one",
                )
            return
        url = base_url(host)
        if host.startswith("ssh://"):
            self.warn(option, f"files are delivered by {SSH}: write {SSH}:// or scp://")
        check_scheme(url.scheme)
        if url.path.strip("/"):
            self.warn(option, "has a path, which is ignored: move it to directory")


def base_url(host: str) -> ParseResult:
    """Return the URL of a host, with its path; without a scheme it is this host. ValueError if it is invalid."""
    if "://" not in host:
        return ParseResult("file", "", "", "", "", "")
    secrets.remember_passwords(host)
    try:
        url = urls.parse(host)
    except BadDestination:
        raise ValueError(f"invalid URL: {urls.redacted(host)}") from None
    return url._replace(scheme=SSH) if url.scheme == "ssh" else url


def config_of(destination: str) -> DispatchConfig:
    """Return the dispatch config that delivers all files to a URL or path; BadDestination if it is invalid."""
    secrets.remember_passwords(destination)
    url = urls.parse(destination)
    host = url._replace(path="").geturl() if "://" in destination else ""
    directory, filepattern = os.path.split(url.path)
    if not filepattern:
        return DispatchConfig(host=host, directory=url.path or "/")
    return DispatchConfig(host=host, directory=directory, filepattern=filepattern)


def pattern_of(config: DispatchConfig) -> str:
    """Return the pattern of the paths of a dispatch config; without a file pattern, of its directories."""
    return os.path.join(config.directory, config.filepattern) if config.filepattern else config.directory


def _tables(given: object) -> Iterator[tuple[object, object, object]]:
    """Yield metadata item, alias name (None if not set) and table of values of each item in ``aliases``."""
    for group in given if isinstance(given, list) else [given]:
        if not isinstance(group, dict):
            yield "", None, group if group is not None else ""
            continue
        for key, tables in group.items():
            if key != ALIAS_NAME:
                for table in tables if isinstance(tables, list) else [tables]:
                    yield key, group.get(ALIAS_NAME), table


def _check_pattern(pattern: str) -> None:
    if pattern:
        patterns.Pattern(pattern)


def _subject(topic: str) -> str:
    topic = topic.removeprefix("pytroll:/")
    return topic if topic.startswith("/") or not topic else f"/{topic}"


def _comparisons_in_lists(given: object) -> Iterator[str]:
    """Yield the keys of conditions with a comparison inside a list, where it is plain text."""
    if isinstance(given, dict):
        for key, value in given.items():
            if key == conditions.EXCEPT:
                yield from _comparisons_in_lists(value)
            elif isinstance(value, list) and any(map(conditions.is_comparison, value)):
                yield str(key)
    elif isinstance(given, list):
        for one in given:
            yield from _comparisons_in_lists(one)
