"""What a file says of one target becomes its checked options."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import ParseResult

from trollmoves.config import options, parsers, secrets
from trollmoves.config.options import Alias, DispatchConfig, Option, TargetOptions
from trollmoves.config.sections import Diagnostics, read_section
from trollmoves.config.targets_yaml import text
from trollmoves.errors import BadDestination
from trollmoves.matching import conditions, patterns
from trollmoves.matching.conditions import Conditions
from trollmoves.movers import MOVERS
from trollmoves.net import hosts, urls

STRUCTURED = ("aliases", "conditions", "connection_parameters", "dispatch_configs", "topics")
ALIAS_NAME = "_alias_name"
SSH = "sftp"  # what `ssh://` is delivered by

_PLACE = ("host", "directory", "filepattern")
_OF_A_CONFIG = ("topics", "conditions", "aliases", *_PLACE)
_OF_THE_TARGET = ("publish_topic", "connection_parameters", "origin")


class TargetParser:
    """One target while it is read."""

    def __init__(self, findings: Diagnostics, name: str, raw: Mapping[str, Any], default: Mapping[str, Any]) -> None:
        self._findings = findings
        self._name = name
        self._raw = {key: value for key, value in raw.items() if value is not None}
        if "dispatch_configs" in raw:
            self._raw.setdefault("dispatch_configs", [])
        self._default = default
        self._wrong = False

    def read(self) -> TargetOptions | None:
        """Read and check everything; None when the target cannot be used."""
        texts = {key: self._plain(key, value) for key, value in self._raw.items() if key not in STRUCTURED}
        default = {key: text(value) for key, value in self._default.items() if key not in STRUCTURED}
        found = read_section(self._findings, TargetOptions, self._name, texts, default)
        if found is None:
            return None
        given = self._parameters(self._raw.get("connection_parameters", {}))
        target = replace(found, connection_parameters={**found.connection_parameters, **given})
        if target.origin:
            with self._problems_of("origin"):
                patterns.Origin(target.origin)
        with self._problems_of("publish_topic"):
            _check_pattern(target.publish_topic)
        configs = (self._with_login(target.login, config) for config in self._dispatch_configs(target))
        target = replace(target, dispatch_configs=tuple(configs))
        return None if self._wrong else target

    # -- findings

    def _problem(self, option: str, problem: object) -> None:
        self._wrong = True
        self._findings.problem(self._name, option, problem)

    def _warn(self, option: str, warning: str) -> None:
        self._findings.warn(self._name, option, warning)

    @contextmanager
    def _problems_of(self, option: str) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            self._problem(option, error)

    # -- options

    def _plain(self, option: str, value: object) -> str:
        if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(one, dict | list) for one in value)):
            self._problem(option, "is one value, with no names below it")
            return ""
        return text(value)

    def _parameters(self, given: object) -> dict[str, Any]:
        """Read connection parameters as YAML has them: types are kept where nobody knows better."""
        if not isinstance(given, dict):
            self._problem("connection_parameters", "must have names below it")
            return {}
        known = options.parameters()
        found: dict[str, Any] = {}
        for key, value in self._with_secrets("connection_parameters", given).items():
            name, option = str(key), f"connection_parameters {key}"
            parameter = known.get(name)
            if value is None:
                continue
            if parameter is None:
                self._warn(option, f"is no known connection parameter, and is handed on{did_you_mean(name, known)}")
                found[name] = value
            elif isinstance(value, dict | list) != (parameter.parse is parsers.group):
                self._problem(
                    option, "must have names below it" if parameter.parse is parsers.group else "is one value"
                )
            else:
                with self._problems_of(option):
                    found[name] = value if isinstance(value, dict) else _read_parameter(parameter, value)
        return found

    def _with_secrets(self, where: str, given: Mapping[Any, Any]) -> dict[Any, Any]:
        """Return a group with the secrets in it that stand elsewhere, at any depth."""
        found = dict(given)
        for key, value in given.items():
            option = f"{where} {key}"
            if isinstance(value, dict):
                found[key] = self._with_secrets(option, value)
            elif isinstance(value, str) and secrets.is_secret(str(key)):
                if danger := secrets.exposure_warning(value):
                    self._warn(option, danger)
                with self._problems_of(option):
                    found[key] = secrets.resolve(value)
        return found

    def _with_login(self, login: str | None, config: DispatchConfig) -> DispatchConfig:
        """Put the target's login into the URL of a host, where that names no user."""
        if not login or self._wrong:
            return config
        if "://" not in config.host:
            self._warn("login", "has no effect on what goes to this host")
            return config
        url = base_url(config.host)
        host = config.host if "@" in url.netloc else urls.with_login(url, login)
        return replace(config, host=host)

    # -- dispatch configs

    def _dispatch_configs(self, target: TargetOptions) -> Iterator[DispatchConfig]:
        aliases = self._aliases("aliases", self._raw.get("aliases", {}))
        whole = DispatchConfig(
            host=target.host, directory=target.directory, filepattern=target.filepattern, aliases=aliases
        )
        given = self._raw.get("dispatch_configs", [])
        if "dispatch_configs" not in self._raw:
            yield from self._single_config(whole, bool(target.origin))
        elif not isinstance(given, list):
            self._problem("dispatch_configs", "must be a list")
        else:
            for name in ("topics", "conditions"):
                if name in self._raw:
                    self._warn(name, "has no effect beside dispatch_configs: it belongs into these")
            for number, one in enumerate(given, start=1):
                where = f"dispatch_configs {number}"
                if isinstance(one, dict):
                    yield self._dispatch_config(f"{where} ", one, whole, bool(target.origin))
                else:
                    self._problem(where, "must have names with values")
            if not given:
                self._warn("dispatch_configs", "is empty: nothing is delivered to this target")

    def _single_config(self, whole: DispatchConfig, watches: bool) -> Iterator[DispatchConfig]:
        """Read the only dispatch config of a target, of which topics and conditions stand in the target itself."""
        given = {name: self._raw[name] for name in ("topics", "conditions") if name in self._raw}
        if given or watches:
            yield self._dispatch_config("", given, whole, watches)
        else:
            self._problem("dispatch_configs", "is missing: say which messages this target gets, by topics")

    def _dispatch_config(
        self, where: str, given: dict[Any, Any], whole: DispatchConfig, watches: bool
    ) -> DispatchConfig:
        given = {str(name): value for name, value in given.items() if value is not None}
        for name in given:
            self._explain(where, name)
        own: dict[str, Any] = {name: self._plain(f"{where}{name}", given[name]) for name in _PLACE if name in given}
        if "aliases" in given:
            own["aliases"] = self._aliases(f"{where}aliases", given["aliases"])
        found = replace(
            whole,
            **own,
            topics=self._topics(f"{where}topics", given.get("topics"), watches),
            conditions=self._conditions(f"{where}conditions", given),
        )
        self._check_place({name: f"{where}{name}" if name in own else name for name in _PLACE}, found)
        return found

    def _explain(self, where: str, name: str) -> None:
        if name in _OF_THE_TARGET:
            self._warn(f"{where}{name}", "has no effect here: it counts for the whole target")
        elif name not in _OF_A_CONFIG:
            self._warn(f"{where}{name}", f"is unknown, and has no effect{did_you_mean(name, _OF_A_CONFIG)}")

    def _topics(self, option: str, given: object, watches: bool) -> tuple[str, ...]:
        if watches:
            if given is not None:
                self._warn(option, "has no effect beside origin")
            return ()
        if given is None:
            self._problem(option, "is missing: say which messages to take, by how their subjects begin")
            return ()
        found = [text(one) for one in (given if isinstance(given, list) else [given])]
        if not found or not all(found):
            self._warn(
                option, "is empty: no message is taken" if not found else "has an empty one: it takes all messages"
            )
        return tuple(_subject(topic) for topic in found)

    def _conditions(self, option: str, given: Mapping[str, Any]) -> Conditions | None:
        if "conditions" not in given:
            return None
        found = given["conditions"]
        if found in ([], {}):
            self._warn(option, "is empty: no message is taken")
        for key in _compared_as_texts(found):
            self._warn(option, f"{key} is compared with texts in a list: a comparison of numbers stands alone")
        with self._problems_of(option):
            return conditions.parse_conditions(found)
        return None

    def _aliases(self, option: str, given: object) -> tuple[Alias, ...]:
        found = []
        for key, name, pairs in _tables(given):
            if isinstance(pairs, dict):
                name = pairs.get(ALIAS_NAME, name)
                wanted = {value: alias for value, alias in pairs.items() if value != ALIAS_NAME}
                found.append(Alias(str(key), str(key if name is None else name), wanted))
            elif pairs is not None:
                self._problem(option, "must say what stands for which value, below the name of a metadata item")
        return tuple(found)

    def _check_place(self, named: Mapping[str, str], config: DispatchConfig) -> None:
        """Check where files go; ``named`` gives the names that problems are told with."""
        with self._problems_of(named["host"]):
            self._check_host(named["host"], config.host)
        if not config.directory and not config.filepattern.startswith("/"):
            self._problem(named["directory"], "is missing: say where the files go")
            return
        for name in ("directory", "filepattern"):
            with self._problems_of(named[name]):
                _check_pattern(getattr(config, name))

    def _check_host(self, option: str, host: str) -> None:
        if host and "://" not in host:
            if not hosts.is_local(host.rpartition("@")[2].partition(":")[0].strip("/")):
                self._warn(option, "has no scheme, so files go to this host; a URL as sftp://user@host goes elsewhere")
            return
        url = base_url(host)
        if host.startswith("ssh://"):
            self._warn(option, f"the files go by {SSH}: write {SSH}:// or scp://")
        known = tuple(MOVERS)  # its names only: a look into it imports the mover, whose library may not be installed
        if url.scheme not in known:
            raise ValueError(f"no mover knows {url.scheme}: use one of {', '.join(filter(None, known))}")
        if url.path.strip("/"):
            self._warn(option, "has a path, which does not count: it belongs into directory")


def base_url(host: str) -> ParseResult:
    """Give the URL of a host, with its path; ValueError when it is none. Without a scheme it is this host."""
    if "://" not in host:
        return ParseResult("file", "", "", "", "", "")
    try:
        url = urls.parse(host)
    except BadDestination:
        raise ValueError(f"is no usable URL: {urls.redacted(host)}") from None
    return url._replace(scheme=SSH) if url.scheme == "ssh" else url


def pattern_of(config: DispatchConfig) -> str:
    """Give the pattern of the paths of a dispatch config; without a file pattern, of its directories."""
    return os.path.join(config.directory, config.filepattern) if config.filepattern else config.directory


def _read_parameter(parameter: Option, value: object) -> object:
    """Read a parameter; a secret has been already."""
    return text(value) if parameter.secret else parameter.parse(text(value))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the question for what was probably meant, to put behind a sentence; empty without an idea."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.75)
    return f"; did you mean {close[0]}?" if close else ""


def _tables(given: object) -> Iterator[tuple[object, object, object]]:
    """Yield what stands under ``aliases``: the item, the name given beside it if any, and a table of values."""
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
        patterns.Pattern(pattern, compose_only=True)


def _subject(topic: str) -> str:
    topic = topic.removeprefix("pytroll:/")
    return topic if topic.startswith("/") or not topic else f"/{topic}"


def _compared_as_texts(given: object) -> Iterator[str]:
    """Yield the keys of conditions whose list holds what is a comparison elsewhere."""
    if isinstance(given, dict):
        for key, value in given.items():
            if key == conditions.EXCEPT:
                yield from _compared_as_texts(value)
            elif isinstance(value, list) and any(map(conditions.is_comparison, value)):
                yield str(key)
    elif isinstance(given, list):
        for one in given:
            yield from _compared_as_texts(one)
