"""Numbers and values as text on one line."""

from __future__ import annotations


def counted(number: object, noun: str) -> str:
    """Return a number and its noun, such as ``1 file`` or ``2 files``."""
    if number == 1:
        return f"{number} {noun}"
    return f"{number} {noun[:-1]}ies" if noun.endswith("y") else f"{number} {noun}s"


def printable(value: object) -> str:
    """Return a value as text, with control characters, invalid characters and line ends escaped."""
    text = str(value)
    return text if text.isprintable() else "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
