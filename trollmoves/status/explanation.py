"""The decision of a section about a file or a message, and the reason if it does nothing with it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trollmoves.errors import ConfigError, MessageError
from trollmoves.messaging.messages import MAGIC, Message

MAX_MESSAGE_FILE = 2**22  # bytes read from a file that may contain a message


@dataclass(frozen=True)
class Explanation:
    """The decision of one section, or of one route of a dispatcher's target.

    ``condition`` names what else must hold, if only the name of the file is known. ``topic`` is the subject of the
    messages about the file. ``name`` is the final name at the destination. Texts contain no secrets.
    """

    section: str
    matches: bool
    reason: str = ""  # why it does not match
    route: int | None = None
    condition: str = ""
    topic: str = ""
    destination: str = ""
    name: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        """Return one line for people."""
        if not self.matches:
            return f"no: {self.reason}"
        parts = [
            f"to {self.destination}" if self.destination else "",
            f"as {self.name}" if self.name else "",
            f"topic {self.topic}" if self.topic else "",
            *self.notes,
        ]
        condition = f", {self.condition}" if self.condition else ""
        return f"yes{condition}: {', '.join(filter(None, parts)) or 'matches'}"


@dataclass(frozen=True)
class Subject:
    """The file or message that is explained; ``path`` is None for a message."""

    message: Message | None
    path: str | None
    has_directory: bool = True  # False for a name alone that is not in the working directory

    def path_below(self, root: str) -> str:
        """Return the path of the file; for a name alone, as if the file were in the directory ``root``."""
        path = self.path or ""
        return path if self.has_directory else os.path.join(root, os.path.basename(path))


def subject_of(argument: str) -> Subject:
    """Return the subject: the text of a message, the name of a file that contains one, or the name of a file.

    Raises:
        ConfigError: it begins like a message and cannot be decoded.
    """
    text = argument.strip()
    if not text.startswith(MAGIC):
        text = _message_in(argument)
    if not text:
        return Subject(None, os.path.abspath(argument), os.sep in argument or os.path.lexists(argument))
    try:
        return Subject(Message.decode(text), None)
    except MessageError as error:
        raise ConfigError(f"invalid message: {error}") from None


def _message_in(file: str) -> str:
    """Return the text of the message in a file, or an empty string."""
    try:
        with open(file, "rb") as stream:
            text = stream.read(MAX_MESSAGE_FILE).decode("utf-8", "replace").strip()
    except (OSError, ValueError):
        return ""
    return text if text.startswith(MAGIC) else ""
