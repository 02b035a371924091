"""Explains the routing of a message or a file, target by target, for operators."""

from __future__ import annotations

import os
from collections.abc import Iterator

from trollmoves.config.config_file import Configuration
from trollmoves.config.options import DispatchConfig, TargetOptions
from trollmoves.dispatcher import files
from trollmoves.dispatcher.files import LocalFile
from trollmoves.dispatcher.routes import Route, format_destination, routes
from trollmoves.errors import ConfigError, MessageError, TrollmovesError
from trollmoves.matching.patterns import Origin, Pattern
from trollmoves.messaging import payload
from trollmoves.messaging.messages import MAGIC, Message

MAX_MESSAGE_FILE = 2**22  # bytes read from a file that may contain a message


def explain(configuration: Configuration[TargetOptions], argument: str) -> str:
    """Return, for each target, the destination of a message, or the reason why it has none.

    ``argument`` is the text of a message, the name of a file that contains one, or the name of a file to deliver.
    Raise ConfigError if it begins like a message and cannot be decoded.
    """
    message = _message(argument)
    if message:
        path = None
        lines = [f"{message.subject} {message.type}: {_names(message)}"]
    else:
        path = os.path.abspath(argument)
        message = Message("", "file", {"uri": path, "uid": os.path.basename(argument)})
        lines = [path if os.path.exists(path) else f"{path}: file not found"]
    for target in configuration.sections.values():
        lines += [f"[{target.name}]", *(f"  {line}" for line in _explain_target(target, message, path))]
    lines += [f"warning: {text}" for text in configuration.warnings]
    lines += [f"problem: {text}" for text in configuration.problems]
    return "\n".join(" ".join(line.splitlines()) for line in lines) + "\n"


def _message(argument: str) -> Message | None:
    text = argument.strip()
    if not text.startswith(MAGIC):
        text = _message_in(argument)
    if not text:
        return None
    try:
        return Message.decode(text)
    except MessageError as error:
        raise ConfigError(f"invalid message: {error}", option="--explain") from None


def _message_in(file: str) -> str:
    """Return the text of the message in a file, or an empty string."""
    try:
        with open(file, "rb") as stream:
            text = stream.read(MAX_MESSAGE_FILE).decode("utf-8", "replace").strip()
    except (OSError, ValueError):
        return ""
    return text if text.startswith(MAGIC) else ""


def _names(message: Message) -> str:
    try:
        return ", ".join(metadata["uid"] for metadata, _ in files.items(message))
    except TrollmovesError as error:
        return str(error)


def _explain_target(target: TargetOptions, message: Message, path: str | None) -> Iterator[str]:
    if message.type not in payload.FILE_TYPES:
        yield f"no: messages of type {message.type} are not about files"
        return
    if message.type == "collection" and not target.collections:
        yield "no: collections is false"
        return
    if target.origin:
        fields = Origin(target.origin).parse(path) if path else None
        if fields is None:
            yield (
                f"no: its origin is {target.origin}"
                if path
                else "no: its files come from its origin, not from messages"
            )
            return
        message = Message("", "file", {**fields, **message.data})
    for route, config in zip(routes(target), target.dispatch_configs, strict=True):
        name = f"dispatch config {route.number}: " if len(target.dispatch_configs) > 1 else ""
        if path and not target.origin:
            yield name + _explain_unknown(route, config, path)
        else:
            yield from (
                f"{name}{line}" for line in _explain_route(target, route, message, None if path else message.subject)
            )
    if not target.dispatch_configs:
        yield "no: it has no dispatch config"


def _explain_unknown(route: Route, config: DispatchConfig, path: str) -> str:
    """Return the messages that would match a file with unknown metadata, and the destination."""
    conditions = " that fulfils the conditions" if config.conditions else ""
    topics = " or ".join(config.topics) or "no topic"
    return f"for a message under {topics}{conditions}: to {format_destination(route.pattern(path))}"


def _explain_route(target: TargetOptions, route: Route, message: Message, subject: str | None) -> Iterator[str]:
    try:
        reason = route.mismatch_reason(subject, files.metadata_of(message))
        if reason:
            yield f"no: {reason}"
            return
        for metadata, published in files.items(message):
            yield _explain_file(target, route, metadata, published)
    except TrollmovesError as error:
        yield f"no: {error}"


def _explain_file(
    target: TargetOptions, route: Route, metadata: dict[str, object], published: dict[str, object]
) -> str:
    """Return the destination of one file, also if the file is missing."""
    missing = ""
    try:
        file = files.look_up(metadata, published)
    except MessageError as error:
        missing = f" (but not now: {error})"
        file = LocalFile(str(metadata["uri"]), 0, 0, 0, metadata, published)
    try:
        url = route.destination(file)
    except TrollmovesError as error:
        return f"no: {error}"
    publication = ""
    if target.publish_topic:
        try:
            publication = f", published as {Pattern(target.publish_topic, compose_only=True).compose(published)}"
        except TrollmovesError as error:
            publication = f", not published: {error}"
    return f"to {format_destination(url)}{publication}{missing}"
