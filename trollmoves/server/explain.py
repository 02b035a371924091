"""Explains which sections of a server announce a file, for operators."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Any

from trollmoves import unpacking
from trollmoves.config.config_file import Configuration
from trollmoves.config.options import MoveItOptions, ServerOptions
from trollmoves.errors import MessageError
from trollmoves.matching.patterns import Origin
from trollmoves.messaging import payload
from trollmoves.messaging.messages import Message
from trollmoves.status.explanation import Explanation, Subject


def explain(configuration: Configuration[Any], subject: Subject) -> list[Explanation]:
    """Return the decision of each section about a file, or about each file that a message names.

    The sections are ServerOptions.
    """
    return [found for section in configuration.sections.values() for found in _explain(section, subject)]


def _explain(section: ServerOptions, subject: Subject) -> Iterator[Explanation]:
    if subject.message is None:
        root = Origin(section.origin).root if section.origin else ""
        yield _explain_file(section, subject.path_below(root))
    elif section.origin is None:
        yield _explain_message(section, subject.message)
    else:
        for uri in map(str, payload.file_uris(subject.message.data)):
            path = f"/{uri.partition('://')[2].partition('/')[2]}" if "://" in uri else uri
            yield _explain_file(section, path)


def _explain_file(section: ServerOptions, path: str) -> Explanation:
    if section.origin is None:
        topics = " or ".join(section.topics or (section.listen or "",))
        condition = f"for a message under {topics} that names it"
        return Explanation(section.name, True, condition=condition, topic=section.topic, name=os.path.basename(path))
    origin = Origin(section.origin)
    fields = origin.parse(path)
    if fields is None:
        return Explanation(section.name, False, _mismatch(origin, path))
    name = os.path.basename(path)
    if name.startswith("."):
        return Explanation(section.name, False, "its name begins with a dot: hidden files are not announced")
    notes = [*_file_problems(path)]
    if section.compression and unpacking.applies(section.compression, path):
        notes.append(f"unpacked with {section.compression} first; its contents are announced")
    is_move_it = isinstance(section, MoveItOptions)
    if section.delete:
        notes.append(
            "removed after its delivery" if is_move_it else f"removed {section.remove_delay:g} s after its delivery"
        )
    if section.request_port is None and not is_move_it:
        notes.append("read remotely by the receivers, not pushed")
    return Explanation(section.name, True, topic=section.topic, name=name, fields=fields, notes=tuple(notes))


def _mismatch(origin: Origin, path: str) -> str:
    root = origin.root.rstrip("/")
    if not path.startswith(f"{root}/"):
        return f"its directory is not below {root or '/'}"
    below = path.removeprefix(f"{root}/")
    directory, _, name = below.rpartition("/")
    levels = below.count("/")
    if levels != origin.depth:
        return f"it is at level {levels} below {root}, and the files of the origin are at level {origin.depth}"
    if directory and not origin.directory_may_match(directory):
        return f"its directory {directory} does not match {origin.text}"
    return f"its name {name} does not match {origin.text}"


def _file_problems(path: str) -> Iterator[str]:
    try:
        status = os.stat(path)
    except OSError as error:
        yield f"but not now: {error.strerror}"
        return
    if not stat.S_ISREG(status.st_mode):
        yield "but not now: it must be a regular file"
    elif not status.st_size:
        yield "but not now: it is empty"
    if os.path.islink(path):
        yield f"a symbolic link to {os.path.realpath(path)}: see external_symlinks"


def _explain_message(section: ServerOptions, message: Message) -> Explanation:
    topics = section.topics or (section.listen or "",)
    if message.type not in payload.FILE_TYPES:
        return Explanation(section.name, False, f"messages of type {message.type} are not about files")
    if not message.subject.startswith(tuple(topics)):
        return Explanation(section.name, False, f"its subject does not begin with {' or '.join(topics)}")
    try:
        names = payload.file_names(message.data)
    except MessageError as error:
        return Explanation(section.name, False, str(error))
    return Explanation(section.name, True, topic=section.topic, name=names, fields=message.data)
