"""Explains which sections of a client or mirror request an announced file, for operators."""

from __future__ import annotations

import os
from collections.abc import Iterator

from trollmoves import unpacking
from trollmoves.config.config_file import Configuration
from trollmoves.config.options import ClientOptions, MirrorOptions
from trollmoves.errors import TrollmovesError
from trollmoves.messaging import payload
from trollmoves.messaging.messages import Message
from trollmoves.net import urls
from trollmoves.receiver.destinations import Destinations
from trollmoves.status.explanation import Explanation, Subject


def explain(configuration: Configuration[ClientOptions], subject: Subject) -> list[Explanation]:
    """Return the decision of each section about an announcement, or about a file of which only the name is known."""
    return [_explain(section, subject) for section in configuration.sections.values()]


def _explain(section: ClientOptions, subject: Subject) -> Explanation:
    topics = _topics(section)
    if subject.message is None:
        name = os.path.basename(subject.path or "")
        condition = f"for an announcement under {' or '.join(topics) or 'no topic'}"
        shown = urls.redacted(section.destination)
        return Explanation(
            section.name, bool(topics), "it has no topic", condition=condition, destination=shown, name=name
        )
    message = subject.message
    if reason := _mismatch(topics, message):
        return Explanation(section.name, False, reason)
    return _explain_match(section, message)


def _topics(section: ClientOptions) -> list[str]:
    """Return the subject prefixes that a section subscribes to."""
    own = section.client_topic or section.topic if isinstance(section, MirrorOptions) else section.topic
    return list(dict.fromkeys(filter(None, (provider.topic or own for provider in section.providers))))


def _mismatch(topics: list[str], message: Message) -> str:
    if message.type not in payload.FILE_TYPES:
        return f"messages of type {message.type} are not about files"
    if not message.subject.startswith(tuple(topics)):
        return f"its subject {message.subject} does not begin with {' or '.join(topics) or 'any topic: it has none'}"
    if not isinstance(message.data, dict) or not payload.is_address(message.data.get("request_address")):
        return "it has no request_address, so it is not an announcement of a server or mirror"
    return "" if payload.file_items(message.data) else "it names no file"


def _explain_match(section: ClientOptions, message: Message) -> Explanation:
    notes = list(_notes(section, message))
    destination = ""
    if section.destination:
        composer = Destinations(section.name, section.destination, login=None, make=False, ftp_root=section.ftp_root)
        try:
            destination = urls.redacted(composer.compose(message))
        except TrollmovesError as error:
            return Explanation(section.name, False, f"its destination cannot be composed: {error}")
    topic = section.topic if isinstance(section, MirrorOptions) else message.subject
    names = payload.file_names(message.data)
    fields = {key: value for key, value in message.data.items() if key not in payload.TRANSPORT_KEYS}
    return Explanation(section.name, True, "", None, "", topic, destination, names, fields, tuple(notes))


def _notes(section: ClientOptions, message: Message) -> Iterator[str]:
    yield f"requested from {message.data['request_address']}"
    if section.processing_delay:
        yield f"after {section.processing_delay:g} s, unless the other client of the hot spare has it"
    kind = section.compression
    if kind and any(unpacking.applies(kind, str(item["uri"])) for item in payload.file_items(message.data)):
        yield f"unpacked with {kind}"
    replaced = [name for name in section.replacements if name in message.data]
    if replaced:
        yield f"with other values of {', '.join(replaced)} in the receipt"
