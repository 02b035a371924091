"""Makes the kernel drop the connection requests of some addresses, before they cost this process anything."""

from __future__ import annotations

import ctypes
import ipaddress
import socket
import struct
from collections.abc import Iterable

MAX_ADDRESSES = 100  # in the filter of one socket: the kernel limits its size

# A program of the classic Berkeley packet filter. Loads at _HEADER and above read the IP header.
_HEADER = 0xFFF00000
_LOAD_BYTE, _LOAD_WORD, _SHIFT_RIGHT, _IF_EQUAL, _JUMP, _RETURN = 0x30, 0x20, 0x74, 0x15, 0x05, 0x06
_SOURCE_4, _SOURCE_6 = 12, 8  # offsets in the headers
_DROP, _ACCEPT = 0, 0xFFFFFFFF
_ATTACH_FILTER, _DETACH_FILTER = 26, 27  # of the socket options, which Python does not name


def drop_connections(listener: int, port: int, addresses: Iterable[str]) -> None:
    """Let the kernel drop connection requests from ``addresses`` only, until the next call.

    Established connections stay: each has the filter that was set when it was established. ``listener`` is the
    descriptor of the listening socket of ``port``; another one is left alone. Raise OSError if the kernel cannot.
    """
    borrowed = socket.socket(fileno=listener)
    try:
        if borrowed.getsockname()[1] != port or not borrowed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return
        if program := _program(list(addresses)[-MAX_ADDRESSES:]):
            memory = ctypes.create_string_buffer(program, len(program))
            count, where = len(program) // 8, ctypes.addressof(memory)
            borrowed.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("HP", count, where))
        else:
            borrowed.setsockopt(socket.SOL_SOCKET, _DETACH_FILTER, 0)
    finally:
        borrowed.detach()


def _program(addresses: Iterable[str]) -> bytes:
    """Return the filter that drops packets from these addresses; empty without addresses."""
    parsed = [ipaddress.ip_address(address) for address in addresses]
    if not parsed:
        return b""
    old = [part for one in parsed if one.version == 4 for part in _drop_if_equal(one.packed, _SOURCE_4)]
    new = [part for one in parsed if one.version == 6 for part in _drop_if_equal(one.packed, _SOURCE_6)]
    old.append(_instruction(_RETURN, _ACCEPT))
    new.append(_instruction(_RETURN, _ACCEPT))
    version = [
        _instruction(_LOAD_BYTE, _HEADER),
        _instruction(_SHIFT_RIGHT, 4),
        _instruction(_IF_EQUAL, 4, 1, 0),
        _instruction(_JUMP, len(old)),
    ]
    return b"".join(version + old + new)


def _drop_if_equal(address: bytes, offset: int) -> list[bytes]:
    """Return the instructions that drop a packet from an address."""
    words = struct.unpack(f">{len(address) // 4}I", address)
    found = []
    for number, word in enumerate(words):
        found.append(_instruction(_LOAD_WORD, _HEADER + offset + 4 * number))
        found.append(_instruction(_IF_EQUAL, word, 0, 2 * (len(words) - number) - 1))
    return [*found, _instruction(_RETURN, _DROP)]


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
