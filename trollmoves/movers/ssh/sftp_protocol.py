"""Requests and replies of SFTP version 3 over an SSH channel; requests may be pipelined."""

from __future__ import annotations

import contextlib
import os
import struct
from typing import Any, NamedTuple

from trollmoves.errors import ConnectionFailed
from trollmoves.movers.ssh.channel import Channel
from trollmoves.movers.ssh.connection import MAX_QUOTED

INIT, VERSION, OPEN, CLOSE, WRITE, FSTAT, REMOVE, MKDIR, STAT, RENAME = 1, 2, 3, 4, 6, 8, 13, 14, 17, 18
STATUS, HANDLE, ATTRIBUTES, EXTENDED, EXTENDED_REPLY = 101, 102, 105, 200, 201
OK, NO_SUCH_FILE, PERMISSION_DENIED, FAILURE, BAD_MESSAGE, NO_CONNECTION, CONNECTION_LOST, UNSUPPORTED = (
    *(0, 2, 3, 4, 5, 6, 7, 8),
)
NO_SPACE, QUOTA = 14, 15  # of later protocol versions, but some servers send them
HAS_SIZE, HAS_OWNER, HAS_PERMISSIONS = 1, 2, 4
CHUNK = 32768  # bytes in one write, which every server accepts
MORE_TEXT_TIMEOUT = 0.2  # seconds to wait for the rest of a text that the server prints
MAX_REPLY = 1 << 16  # bytes of a packet from the server; it never sends file contents


class Attributes(NamedTuple):
    """Size in bytes and mode of a file; -1 and 0 if the server does not report them."""

    size: int = -1
    mode: int = 0


MISSING = Attributes()


class SftpProtocol:
    """Sends requests and matches the replies; used by one thread at a time.

    Each call raises ``ConnectionFailed`` if the server closes the channel or breaks the protocol, and ``TimeoutError``
    after no progress for the timeout of the channel.
    """

    def __init__(self, channel: Channel) -> None:
        """Start the protocol over a new channel.

        Raises:
            ConnectionFailed: the server does not offer SFTP, or prints a text before it starts; the error quotes it.
        """
        self._channel = channel
        self._number = 0
        self._buffer = bytearray()
        self._outbox: list[bytes] = []
        self._outbox_size = 0
        self._open: set[int] = set()
        self._ignored: set[int] = set()
        self._replies: dict[int, tuple[int, bytes]] = {}
        self.extensions = self._handshake()

    def request(self, kind: int, *parts: bytes) -> int:
        """Send a request; return its number, which its reply carries.

        Small requests are buffered until a reply is awaited: one packet costs less than three.
        """
        self._number = (self._number + 1) & 0xFFFFFFFF
        self._open.add(self._number)
        length = 5 + sum(map(len, parts))
        self._outbox += (struct.pack(">IBI", length, kind, self._number), *parts)
        self._outbox_size += length
        if self._outbox_size >= CHUNK:
            self._flush()
        return self._number

    def request_without_reply(self, kind: int, *parts: bytes) -> None:
        """Send a request; its result is ignored."""
        self._ignored.add(self.request(kind, *parts))
        self._flush()

    def reply(self, number: int) -> tuple[int, bytes]:
        """Wait for one reply; return its type and content. Replies to other requests that arrive first are stored."""
        self._flush()
        while number not in self._replies:
            kind, data = self._packet()
            (arrived,) = unpack(">I", data)
            if arrived not in self._open:
                raise ConnectionFailed("the server replied to an SFTP request that was not sent")
            self._open.discard(arrived)
            if arrived in self._ignored:
                self._ignored.discard(arrived)
            else:
                self._replies[arrived] = kind, data[4:]
        return self._replies.pop(number)

    def status(self, kind: int, *parts: bytes) -> tuple[int, str]:
        """Send a request and return the code and text of its reply."""
        return status_of(*self.reply(self.request(kind, *parts)))

    def attributes(self, path: str) -> Attributes:
        """Return size and mode of ``path``, ``MISSING`` if the server does not report any."""
        kind, data = self.reply(self.request(STAT, string(path)))
        return parse_attributes(data) if kind == ATTRIBUTES else MISSING

    def _handshake(self) -> dict[bytes, bytes]:
        try:
            self._channel.send(struct.pack(">IBI", 5, INIT, 3))
            kind, data = self._packet()
        except (ConnectionError, TimeoutError) as error:
            raise self._not_started(error) from error
        if kind != VERSION:
            raise self._not_started(ConnectionFailed("the server does not speak SFTP"))
        extensions, position = {}, 4
        while position < len(data):
            name, position = take_string(data, position)
            extensions[name], position = take_string(data, position)
        return extensions

    def _not_started(self, error: Exception) -> Exception:
        """Return the error for a server that did not start SFTP; it quotes the printed text."""
        if self._buffer:
            with contextlib.suppress(OSError):
                self._channel.timeout = MORE_TEXT_TIMEOUT
                self._buffer += self._channel.receive(MAX_QUOTED)
        printed = bytes(self._buffer[:MAX_QUOTED]).decode("utf-8", "replace").strip()
        if printed:
            return ConnectionFailed(
                f"the server printed {printed!r} before SFTP started; its login shell and its SFTP subsystem "
                "must print nothing"
            )
        return error

    def _packet(self) -> tuple[int, bytes]:
        self._fill(4)
        (length,) = struct.unpack_from(">I", self._buffer)
        if not 1 <= length <= MAX_REPLY:
            raise ConnectionFailed(
                f"the server sent an SFTP packet of {length} bytes; at most {MAX_REPLY} are accepted"
            )
        self._fill(4 + length)
        data = bytes(self._buffer[4 : 4 + length])
        del self._buffer[: 4 + length]
        return data[0], data[1:]

    def _fill(self, count: int) -> None:
        """Read until the buffer holds ``count`` bytes."""
        while len(self._buffer) < count:
            self._buffer += self._channel.receive(CHUNK)

    def _flush(self) -> None:
        if self._outbox:
            data = b"".join(self._outbox)
            self._outbox.clear()
            self._outbox_size = 0
            self._channel.send(data)


def unpack(layout: str, data: bytes, position: int = 0) -> tuple[Any, ...]:
    """Return the fields of ``data``; raises ``ConnectionFailed`` if it is too short."""
    try:
        return struct.unpack_from(layout, data, position)
    except struct.error:
        raise ConnectionFailed("the server sent an incomplete SFTP packet") from None


def string(text: str | bytes) -> bytes:
    """Return ``text`` with its length, as SFTP sends it."""
    data = text if isinstance(text, bytes) else os.fsencode(text)
    return struct.pack(">I", len(data)) + data


def take_string(data: bytes, position: int) -> tuple[bytes, int]:
    """Return the string at ``position``, and the position after it."""
    (length,) = unpack(">I", data, position)
    end = position + 4 + length
    return data[position + 4 : end], end


def status_of(kind: int, data: bytes) -> tuple[int, str]:
    """Return code and text of a status; another packet counts as a failure."""
    if kind != STATUS:
        return FAILURE, f"an unexpected packet of type {kind}"
    (code,) = unpack(">I", data)
    text = take_string(data, 4)[0].decode("utf-8", "replace") if len(data) > 4 else ""
    return code, text


def parse_attributes(data: bytes) -> Attributes:
    """Return size and mode."""
    (flags,) = unpack(">I", data)
    size, mode, position = -1, 0, 4
    if flags & HAS_SIZE:
        (size,) = unpack(">Q", data, position)
        position += 8
    if flags & HAS_OWNER:
        position += 8
    if flags & HAS_PERMISSIONS:
        (mode,) = unpack(">I", data, position)
    return Attributes(size, mode)
