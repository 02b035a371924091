"""What becomes of a message or a file, target by target, for people."""

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

LARGEST = 2**22  # bytes of a file that is looked into for a message


def explain(configuration: Configuration[TargetOptions], given: str) -> str:
    """Say which targets a message goes to, and where, and why it does not go to the others.

    ``given`` is the text of a message, the name of a file that holds one, or the name of a file that a message tells
    of. ConfigError when it is none of them.
    """
    message = _message(given)
    path = None if message else os.path.abspath(given)
    told = message or Message("", "file", {"uri": path, "uid": os.path.basename(given)})
    lines = [f"{told.subject} {told.type}: " + _names(told) if message else _file(path or "")]
    for target in configuration.sections.values():
        lines += [f"[{target.name}]", *(f"  {line}" for line in _explain_target(target, told, path))]
    lines += [f"warning: {text}" for text in configuration.warnings]
    lines += [f"problem: {text}" for text in configuration.problems]
    return "\n".join(" ".join(line.splitlines()) for line in lines) + "\n"


def _message(given: str) -> Message | None:
    text = given.strip()
    if not text.startswith(MAGIC):
        text = _message_in(given)
    if not text:
        return None
    try:
        return Message.decode(text)
    except MessageError as error:
        raise ConfigError(f"cannot be explained: {error}", option="--explain") from None


def _message_in(file: str) -> str:
    """Give the message in a file, empty when there is none."""
    try:
        with open(file, "rb") as stream:
            text = stream.read(LARGEST).decode("utf-8", "replace").strip()
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
        yield f"no: messages of type {message.type} tell of no files"
        return
    if target.origin:
        fields = Origin(target.origin).parse(path) if path else None
        if fields is None:
            yield f"no: takes files of {target.origin}" if path else "no: listens to no messages, but has an origin"
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


def _file(path: str) -> str:
    return path if os.path.exists(path) else f"{path}: there is no such file now"


def _explain_unknown(route: Route, config: DispatchConfig, path: str) -> str:
    """Give what a message must say of a file, whose metadata are not known, and where it then goes."""
    fulfilled = " fulfils the conditions and" if config.conditions else ""
    topics = " or ".join(config.topics) or "no topic"
    return f"when a message under {topics}{fulfilled} tells of it: to {format_destination(route.pattern(path))}"


def _explain_route(target: TargetOptions, route: Route, message: Message, subject: str | None) -> Iterator[str]:
    try:
        reason = route.mismatch_reason(subject, files.metadata_of(message))
        if reason:
            yield f"no: {reason}"
            return
        for metadata, told in files.items(message):
            yield _explain_file(target, route, metadata, told)
    except TrollmovesError as error:
        yield f"no: {error}"


def _explain_file(target: TargetOptions, route: Route, metadata: dict[str, object], told: dict[str, object]) -> str:
    """Give the way of one file; one that is not here would go there all the same."""
    missing = ""
    try:
        file = files.look_up(metadata, told)
    except MessageError as error:
        missing = f" (but not now: {error})"
        file = LocalFile(str(metadata["uri"]), 0, 0, 0, metadata, told)
    try:
        url = route.destination(file)
    except TrollmovesError as error:
        return f"no: {error}"
    published = ""
    if target.publish_topic:
        try:
            published = f", published as {Pattern(target.publish_topic, compose_only=True).compose(told)}"
        except TrollmovesError as error:
            published = f", not published: {error}"
    return f"to {format_destination(url)}{published}{missing}"
