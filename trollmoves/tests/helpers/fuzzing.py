"""Inputs that no real peer would send: valid messages with changed parts, and plain garbage.

``TROLLMOVES_FUZZ`` multiplies the number of inputs: 1 (the default) takes seconds, 50 is for a run by hand.
"""

from __future__ import annotations

import copy
import json
import os
import random
import string
from collections.abc import Sequence
from typing import Any

SCALE = float(os.environ.get("TROLLMOVES_FUZZ", "1"))
_SEED = int(os.environ.get("TROLLMOVES_FUZZ_SEED", "7"))

ODD_TEXTS = (
    "",
    " ",
    "\0",
    "\n",
    "\r\n",
    "\u2028",
    "\ud800",
    "ÿ" * 50,
    "日本語",
    "..",
    "../../../../etc/passwd",
    "/",
    "//",
    "-rf",
    "a" * 300,
    "a" * 70_000,
    "sftp://[x",
    "sftp://user:pw@",
    "ftp://u:p@127.0.0.1:1/x",
    "scp://127.0.0.1:1/x",
    "file:///etc/passwd",
    "s3://b/k",
    "gopher://h/",
    "tcp://127.0.0.1:1",
    "127.0.0.1:1",
    "127.0.0.1:99999",
    "[::1]:1",
    "nan",
    "2025-01-02T03:04:05",
    "9999-12-31T23:59:59+14:00",
    "{x}",
    "{time:%Y%m%d",
    "%s%n%d",
    "$(id)",
    "pytroll://a b c",
)
ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    2**64,
    -(2**63),
    10**400,
    1e308,
    -0.0,
    float("nan"),
    float("inf"),
    [],
    {},
    [[]],
    [None],
    {"": ""},
    {"uri": None},
    {"uri": {"uri": []}},
    ["x"] * 300,
)
_BYTES = (b"", b"\0", b"\xff\xfe", b"\n", b" ", b"pytroll:/", b"{", b"}", b'"', b"[" * 200, b'{"a":' * 200, b"\xc3\x28")


def scaled(count: int) -> int:
    """Return how many inputs to try."""
    return max(1, int(count * SCALE))


class Fuzz:
    """Changes messages, the same way each time for the same ``seed``."""

    def __init__(self, seed: int = 0) -> None:
        self.random = random.Random(_SEED * 1000 + seed)

    def message(self, head: str, data: Any, keep: int = 0) -> bytes:
        """Return a message that was changed somewhere, but for its first ``keep`` bytes."""
        chance = self.random.random()
        if chance < 0.6:
            data = self._changed(copy.deepcopy(data))
        text = f"{head} application/json {json.dumps(data)}".encode("utf-8", "surrogatepass")
        if chance < 0.4:
            return text
        return text[:keep] + self._damaged(text[keep:])

    def frames(self, heads: Sequence[str], data: Any) -> list[bytes]:
        """Return the frames of a request that was changed somewhere."""
        chance = self.random.random()
        message = self.message(self.random.choice(heads), data)
        if chance < 0.8:
            return [b"", message]
        if chance < 0.9:
            return [message]
        return [self.random.choice((b"", message, *_BYTES)) for _ in range(self.random.randrange(1, 6))]

    def _changed(self, data: Any) -> Any:
        for _ in range(self.random.choice((1, 1, 1, 2, 3))):
            data = self._changed_once(data)
        return data

    def _changed_once(self, data: Any) -> Any:
        if not isinstance(data, dict | list) or not data or self.random.random() < 0.05:
            return self._odd()
        keys = list(data) if isinstance(data, dict) else list(range(len(data)))
        key = self.random.choice(keys)
        chance = self.random.random()
        if chance < 0.1:
            del data[key]
        elif chance < 0.2 and isinstance(data, dict):
            data[self._text()] = self._odd()
        elif isinstance(data[key], dict | list) and chance < 0.7:
            data[key] = self._changed_once(data[key])
        else:
            data[key] = self._odd(data[key])
        return data

    def _odd(self, value: Any = None) -> Any:
        chance = self.random.random()
        if chance < 0.3:
            return self._text()
        if chance < 0.6:
            return copy.deepcopy(self.random.choice(ODD_VALUES))
        if isinstance(value, str) and chance < 0.8:
            return self._damaged(value.encode("utf-8", "surrogatepass")).decode("latin-1")
        return [value] if chance < 0.9 else {"uri": value}

    def _text(self) -> str:
        if self.random.random() < 0.7:
            return self.random.choice(ODD_TEXTS[:-2] if self.random.random() < 0.99 else ODD_TEXTS)
        return "".join(self.random.choices(string.printable, k=self.random.randrange(30)))

    def _damaged(self, data: bytes) -> bytes:
        start, end = sorted((self.random.randrange(len(data) + 1), self.random.randrange(len(data) + 1)))
        kind = self.random.randrange(6)
        if kind == 0:
            return data[:start]
        if kind == 1:
            return data[:start] + data[end:]
        if kind == 2:
            return data[:end] + data[start:]
        if kind == 3:
            return data[:start] + self.random.choice(_BYTES) + data[start:]
        if kind == 4:
            return data[:start] + self.random.randbytes(self.random.randrange(1, 20)) + data[end:]
        return (
            data[:start] + bytes(byte ^ self.random.choice((0, 0, 1, 32, 128)) for byte in data[start:end]) + data[end:]
        )
