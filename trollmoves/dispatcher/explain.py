"""Explains the routing of a message or a file, target by target, for operators."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

from trollmoves.config.config_file import Configuration
from trollmoves.config.options import DispatchConfig, TargetOptions
from trollmoves.dispatcher import files
from trollmoves.dispatcher.files import LocalFile
from trollmoves.dispatcher.routes import Route, format_destination, routes
from trollmoves.errors import MessageError, TrollmovesError
from trollmoves.matching.patterns import Origin, Pattern
from trollmoves.messaging import payload
from trollmoves.messaging.messages import Message
from trollmoves.status.explanation import Explanation, Subject, subject_of


def explain(configuration: Configuration[TargetOptions], argument: str) -> str:
    """Return, for each target, the destination of a message, or the reason why it has none.

    ``argument`` is the text of a message, the name of a file that contains one, or the name of a file to deliver.
    Raise ConfigError if it begins like a message and cannot be decoded.
    """
    subject = subject_of(argument)
    message, path = subject.message, subject.path
    if message:
        lines = [f"{message.subject} {message.type}: {_names(message)}"]
    else:
        lines = [f"{path}" if os.path.exists(path or "") else f"{path}: file not found"]
    found = explanations(configuration, subject)
    for target in configuration.sections.values():
        lines += [f"[{target.name}]", *(f"  {_line(one)}" for one in found if one.section == target.name)]
    lines += [f"warning: {text}" for text in configuration.warnings]
    lines += [f"problem: {text}" for text in configuration.problems]
    return "\n".join(" ".join(line.splitlines()) for line in lines) + "\n"


def explanations(configuration: Configuration[TargetOptions], subject: Subject) -> list[Explanation]:
    """Return the decisions of all targets: one for each dispatch config and file."""
    message = subject.message or Message("", "file", {"uri": subject.path, "uid": os.path.basename(subject.path or "")})
    return [
        found for target in configuration.sections.values() for found in _explain_target(target, message, subject.path)
    ]


def _line(one: Explanation) -> str:
    """Return an explanation as text."""
    route = f"dispatch config {one.route}: " if one.route else ""
    if not one.matches:
        return f"{route}no: {one.reason}"
    condition = f"{one.condition}: " if one.condition else ""
    published = f", published as {one.topic}" if one.topic else ""
    notes = "".join(f" ({note})" if note.startswith("but ") else f", {note}" for note in one.notes)
    return f"{route}{condition}to {one.destination}{published}{notes}"


def _names(message: Message) -> str:
    try:
        return ", ".join(metadata["uid"] for metadata, _ in files.items(message))
    except TrollmovesError as error:
        return str(error)


def _explain_target(target: TargetOptions, message: Message, path: str | None) -> Iterator[Explanation]:
    fields: dict[str, object] | None = {}
    if target.origin:
        fields = Origin(target.origin).parse(path) if path else None
    if reason := _mismatch(target, message, path, fields):
        yield Explanation(target.name, False, reason)
        return
    message = Message(message.subject, message.type, {**(fields or {}), **message.data}) if fields else message
    for route, config in zip(routes(target), target.dispatch_configs, strict=True):
        number = route.number if len(target.dispatch_configs) > 1 else None
        if path and not target.origin:
            yield replace(_explain_unknown(target, route, config, path), route=number)
        else:
            subject = None if path else message.subject
            yield from (replace(one, route=number) for one in _explain_route(target, route, message, subject))


def _mismatch(target: TargetOptions, message: Message, path: str | None, fields: dict[str, object] | None) -> str:
    """Return the reason why no route of a target can match, an empty string if one can."""
    if message.type not in payload.FILE_TYPES:
        return f"messages of type {message.type} are not about files"
    if message.type == "collection" and not target.collections:
        return "collections is false"
    if fields is None:
        by_origin = f"its origin is {target.origin}"
        return by_origin if path else "its files come from its origin, not from messages"
    return "" if target.dispatch_configs else "it has no dispatch config"


def _explain_unknown(target: TargetOptions, route: Route, config: DispatchConfig, path: str) -> Explanation:
    """Return the messages that would match a file with unknown metadata, and the destination."""
    conditions = " that fulfils the conditions" if config.conditions else ""
    topics = " or ".join(config.topics) or "no topic"
    condition = f"for a message under {topics}{conditions}"
    return Explanation(target.name, True, condition=condition, destination=format_destination(route.pattern(path)))


def _explain_route(target: TargetOptions, route: Route, message: Message, subject: str | None) -> Iterator[Explanation]:
    try:
        metadata_of_message = files.metadata_of(message)
        reason = route.mismatch_reason(subject, metadata_of_message)
        if reason:
            yield Explanation(target.name, False, reason)
            return
        for metadata, published in files.items(message):
            yield _explain_file(target, route, metadata, published)
    except TrollmovesError as error:
        yield Explanation(target.name, False, str(error))


def _explain_file(
    target: TargetOptions, route: Route, metadata: dict[str, object], published: dict[str, object]
) -> Explanation:
    """Return the destination of one file, also if the file is missing."""
    notes = []
    missing = ""
    try:
        file = files.look_up(metadata, published)
    except MessageError as error:
        missing = f"but not now: {error}"
        file = LocalFile(str(metadata["uri"]), 0, 0, 0, metadata, published)
    try:
        url = route.destination(file)
    except TrollmovesError as error:
        return Explanation(target.name, False, str(error))
    topic = ""
    if target.publish_topic:
        try:
            topic = Pattern(target.publish_topic).compose(published)
        except TrollmovesError as error:
            notes.append(f"not published: {error}")
    notes += [missing] if missing else []
    return Explanation(
        target.name,
        True,
        topic=topic,
        destination=format_destination(url),
        name=os.path.basename(url.path),
        fields=metadata,
        notes=tuple(notes),
    )
