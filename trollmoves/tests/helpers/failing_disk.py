"""A small FUSE file system in memory, with reads or writes that fail with a chosen error, such as EDQUOT."""

from __future__ import annotations

import enum
import errno
import os
import stat
import struct
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from trollmoves.tests.helpers.daemons import Testbed
from trollmoves.tests.helpers.fuse_mount import FuseMount

MAX_WRITE = 128 * 1024
ROOT = 1  # the node of the directory

_HEADER = struct.Struct("=IIQQ16x")  # of a request: length, operation, number, node
_SET = struct.Struct("=I4x8xQ8xQQQIIII")  # valid, size, times in s, times in ns, mode
_ATTRIBUTES = struct.Struct("=6Q10I")
_OPENED = struct.pack("=QII", 0, 1, 0)  # without the kernel's cache
_MODE, _SIZE, _MTIME, _MTIME_NOW = 1 << 0, 1 << 3, 1 << 5, 1 << 8


class Call(enum.IntEnum):
    """The operations that the file system knows."""

    LOOKUP, FORGET, GETATTR, SETATTR = 1, 2, 3, 4
    UNLINK, RENAME, OPEN, READ, WRITE, STATFS, RELEASE = 10, 12, 14, 15, 16, 17, 18
    INIT, OPENDIR, READDIR, RELEASEDIR, CREATE, BATCH_FORGET, RENAME2 = 26, 27, 28, 29, 35, 42, 45


@dataclass
class _Node:
    number: int
    mode: int
    data: bytearray = field(default_factory=bytearray)
    mtime_ns: int = field(default_factory=time.time_ns)

    def attributes(self) -> bytes:
        seconds, ns = divmod(self.mtime_ns, 10**9)
        size = len(self.data)
        return _ATTRIBUTES.pack(
            *(self.number, size, -(-size // 512), seconds, seconds, seconds, ns, ns, ns, self.mode, 1, 0, 0, 0, 4096, 0)
        )

    def entry(self) -> bytes:
        return struct.pack("=QQQQII", self.number, 0, 0, 0, 0, 0) + self.attributes()


class FailingDisk:
    """A directory of files in memory; ``fail`` lets its reads or writes fail, until ``work``."""

    def __init__(self, testbed: Testbed, directory: Path) -> None:
        """Mount it over a directory, or skip; processes that use it must be created later, to end before it."""
        self._mount = FuseMount(b"failing", directory)
        self._fd = self._mount.fd
        self._errors: dict[int, int] = {}
        self._nodes = {ROOT: _Node(ROOT, stat.S_IFDIR | 0o755)}
        self._names: dict[bytes, int] = {}
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        testbed.call_at_end(self._end)

    def fail(self, call: Call, error: int) -> None:
        """Let a kind of calls fail with an errno."""
        self._errors[call] = error

    def work(self) -> None:
        """Let all calls succeed."""
        self._errors.clear()

    def _end(self) -> None:
        self._mount.unmount()
        self._thread.join(10)
        os.close(self._fd)

    def _serve(self) -> None:
        with suppress(OSError):  # after the end of the mount
            while True:
                request = os.read(self._fd, MAX_WRITE + 8192)
                length, call, number, node = _HEADER.unpack_from(request)
                if call in (Call.FORGET, Call.BATCH_FORGET):
                    continue
                error, reply = 0, b""
                try:
                    reply = self._reply(call, node, request[_HEADER.size : length])
                except OSError as caught:
                    error = caught.errno or errno.EIO
                os.write(self._fd, struct.pack("=IiQ", 16 + len(reply), -error, number) + reply)

    def _reply(self, call: int, node: int, body: bytes) -> bytes:
        if call in self._errors:
            raise OSError(self._errors[call], "")
        handler = getattr(self, f"_{Call(call).name.lower()}", None) if call in set(Call) else None
        if handler is None:
            raise OSError(errno.ENOSYS, "")
        return bytes(handler(self._nodes[node] if node else None, body))

    def _init(self, _: object, body: bytes) -> bytes:
        major, minor, readahead = struct.unpack_from("=III", body)
        return struct.pack("=IIIIHHIIHHI28x", major, min(minor, 31), readahead, 0, 16, 12, MAX_WRITE, 1, 0, 0, 0)

    def _lookup(self, _: _Node, body: bytes) -> bytes:
        try:
            return self._nodes[self._names[body.rstrip(b"\0")]].entry()
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, "") from None

    def _getattr(self, node: _Node, _: bytes) -> bytes:
        return struct.pack("=QII", 0, 0, 0) + node.attributes()

    def _setattr(self, node: _Node, body: bytes) -> bytes:
        valid, size, _, mtime, _, _, mtime_ns, _, mode = _SET.unpack_from(body)
        if valid & _MODE:
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(mode)
        if valid & _SIZE:
            node.data[size:] = b""
            node.data += bytes(size - len(node.data))
            node.mtime_ns = time.time_ns()
        if valid & _MTIME:
            node.mtime_ns = time.time_ns() if valid & _MTIME_NOW else mtime * 10**9 + mtime_ns
        return self._getattr(node, b"")

    def _create(self, _: _Node, body: bytes) -> bytes:
        _, mode = struct.unpack_from("=II", body)
        node = _Node(len(self._nodes) + 1, mode)
        self._nodes[node.number] = node
        self._names[body[16:].rstrip(b"\0")] = node.number
        return node.entry() + _OPENED

    def _open(self, _: _Node, __: bytes) -> bytes:
        return _OPENED

    def _read(self, node: _Node, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("=QQI", body)
        return bytes(node.data[offset : offset + size])

    def _write(self, node: _Node, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("=QQI", body)
        node.data += bytes(max(0, offset - len(node.data)))
        node.data[offset : offset + size] = body[40 : 40 + size]
        node.mtime_ns = time.time_ns()
        return struct.pack("=II", size, 0)

    def _unlink(self, _: _Node, body: bytes) -> bytes:
        if self._names.pop(body.rstrip(b"\0"), None) is None:
            raise FileNotFoundError(errno.ENOENT, "")
        return b""

    def _rename(self, _: _Node, body: bytes, offset: int = 8) -> bytes:
        old, new = body[offset:].split(b"\0")[:2]
        if old not in self._names:
            raise FileNotFoundError(errno.ENOENT, "")
        self._names[new] = self._names.pop(old)
        return b""

    def _rename2(self, node: _Node, body: bytes) -> bytes:
        return self._rename(node, body, 16)

    def _statfs(self, _: _Node, __: bytes) -> bytes:
        return struct.pack("=5QIII28x", 10**6, 10**6, 10**6, 10**6, 10**6, 4096, 255, 4096)

    def _readdir(self, _: _Node, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("=QQI", body)
        found = b""
        for place, (name, number) in list(enumerate(self._names.items(), 1))[offset:]:
            entry = struct.pack("=QQII", number, place, len(name), stat.S_IFREG >> 12) + name
            entry += bytes(-len(entry) % 8)
            if len(found) + len(entry) > size:
                break
            found += entry
        return found

    def _release(self, _: _Node, __: bytes) -> bytes:
        return b""

    _opendir, _releasedir = _open, _release
