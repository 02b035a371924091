"""The control socket: replies to requests of local commands, one JSON object per line."""

from __future__ import annotations

import json
import logging
import os
import pwd
import selectors
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from trollmoves.control.location import address_of, link_path, socket_path
from trollmoves.errors import TrollmovesError

logger = logging.getLogger(__name__)

MAX_REQUEST = 65_536  # bytes of a request
MAX_REPLY = 32_000_000  # bytes of a reply
MAX_CONNECTIONS = 16
TIMEOUT = 30.0  # s for a complete request, and for reading its reply
MAX_REST = 1.0  # s; upper limit of the rest after a request
MODE = 0o600  # permissions of the socket


class Peer(NamedTuple):
    """The user of the process at the other end of a connection, as the kernel names it."""

    uid: int

    @property
    def name(self) -> str:
        """The user name, or ``uid N`` if the user has none."""
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return f"uid {self.uid}"


Handler = Callable[[Mapping[str, Any], Peer], Mapping[str, Any]]


@dataclass(slots=True, eq=False)
class _Connection:
    socket: socket.socket
    peer: Peer
    deadline: float  # monotonic
    received: bytearray = field(default_factory=bytearray)
    unsent: memoryview = field(default_factory=lambda: memoryview(b""))


class ControlServer:
    """The control socket of one daemon, with one thread.

    A request is a line ``{"request": NAME, ...}``. The reply is a line ``{"reply": {...}}`` with the result of the
    handler, or ``{"error": TEXT}``. ``handlers`` has the functions by name. They get the request and the peer, run on
    the thread of the socket, one at a time, and may raise TrollmovesError. After each request the thread rests for the
    time that the request took, so that requests use half a processor at most.
    """

    def __init__(self, journal: str, handlers: Mapping[str, Handler]) -> None:
        self._path = socket_path(journal)
        self._link = link_path(journal)
        self._handlers = handlers
        self._selector = selectors.DefaultSelector()
        self._connections: set[_Connection] = set()
        self._listener: socket.socket | None = None
        self._stopping = threading.Event()
        self._wakeup = -1
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Listen. If that is not possible, log a warning: the daemon also works without the socket."""
        try:
            self._listener = self._listen()
        except OSError as error:
            logger.warning("no control socket at %s: %s; commands cannot reach this process", self._path, error)
            return
        self._wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wakeup, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._loop, name="control", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close the socket and its connections, and remove it; wait at most a second for a running request."""
        thread, self._thread = self._thread, None
        if thread is None or self._listener is None:
            return
        self._stopping.set()
        os.eventfd_write(self._wakeup, 1)
        thread.join(MAX_REST)
        self._listener.close()
        if not thread.is_alive():
            os.close(self._wakeup)
        for path in {self._path, self._link}:
            with suppress(OSError):
                os.unlink(path)

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            _remove_stale(self._path)
            os.fchmod(listener.fileno(), MODE)  # the kernel creates the file with these permissions
            with address_of(self._path) as address:
                listener.bind(address)
            listener.listen(MAX_CONNECTIONS)
            if self._link != self._path:
                _remove_stale(self._link)
                os.symlink(self._path, self._link)
        except BaseException:
            listener.close()
            raise
        return listener

    # -- the thread

    def _loop(self) -> None:
        while not self._stopping.is_set():
            try:
                self._round()
            except Exception:  # an error in one connection must not end the thread
                logger.exception("unexpected error at the control socket, continuing in %.0f s", MAX_REST)
                self._stopping.wait(MAX_REST)
        for connection in list(self._connections):
            self._close(connection)
        self._selector.close()

    def _round(self) -> None:
        now = time.monotonic()
        due = min((c.deadline for c in self._connections), default=None)
        for key, _ in self._selector.select(None if due is None else max(0.0, due - now)):
            if key.fileobj is self._listener:
                self._accept()
            elif isinstance(key.data, _Connection):
                self._serve(key.data)
        now = time.monotonic()
        for connection in [c for c in self._connections if c.deadline <= now]:
            self._close(connection)

    def _accept(self) -> None:
        assert self._listener is not None  # noqa: S101  (for the type checker)
        try:
            opened, _ = self._listener.accept()
        except OSError as error:
            if not isinstance(error, BlockingIOError):
                logger.debug("cannot accept a connection to the control socket: %s", error)
                self._stopping.wait(0.1)  # no free descriptor
            return
        opened.setblocking(False)
        peer = peer_of(opened)
        refusal = ""
        if peer.uid not in (os.geteuid(), 0):
            refusal = f"permission denied: this daemon accepts requests of uid {os.geteuid()} and of root"
            logger.warning("rejected %s (uid %d) at the control socket", peer.name, peer.uid)
        elif len(self._connections) >= MAX_CONNECTIONS:
            refusal = f"too many connections: at most {MAX_CONNECTIONS}; try again later"
        if refusal:
            with suppress(OSError):
                opened.send(_encode({"error": refusal}))
            opened.close()
            return
        connection = _Connection(opened, peer, time.monotonic() + TIMEOUT)
        self._connections.add(connection)
        self._selector.register(opened, selectors.EVENT_READ, connection)

    def _serve(self, connection: _Connection) -> None:
        try:
            if connection.unsent:
                connection.unsent = connection.unsent[connection.socket.send(connection.unsent) :]
            elif not self._receive(connection):
                self._close(connection)
                return
            self._reply_next(connection)
        except BlockingIOError:
            pass
        except OSError:
            self._close(connection)

    def _receive(self, connection: _Connection) -> bool:
        """Read available bytes; return False at the end of the connection, or if the request is too long."""
        data = connection.socket.recv(MAX_REQUEST)
        connection.received += data
        if len(connection.received) <= MAX_REQUEST or b"\n" in connection.received[:MAX_REQUEST]:
            return bool(data)
        with suppress(OSError):
            connection.socket.send(_encode({"error": f"a request must not exceed {MAX_REQUEST} bytes"}))
        return False

    def _reply_next(self, connection: _Connection) -> None:
        """Reply to the next complete request; the other ones wait until the reply was read."""
        line, newline, rest = connection.received.partition(b"\n")
        if not connection.unsent and newline:
            connection.received = rest
            started = time.monotonic()
            connection.unsent = memoryview(self._reply(bytes(line), connection.peer))
            self._stopping.wait(min(MAX_REST, time.monotonic() - started))
            connection.deadline = time.monotonic() + TIMEOUT
        self._selector.modify(
            connection.socket, selectors.EVENT_WRITE if connection.unsent else selectors.EVENT_READ, connection
        )

    def _reply(self, line: bytes, peer: Peer) -> bytes:
        try:
            reply = _encode({"reply": self._handle(line, peer)})
        except TrollmovesError as error:
            return _encode({"error": str(error)})
        except Exception:
            logger.exception("unexpected error in a request of %s at the control socket", peer.name)
            return _encode({"error": "internal error, see the log of the daemon"})
        return reply if len(reply) <= MAX_REPLY else _encode({"error": f"the reply exceeds {MAX_REPLY} bytes"})

    def _handle(self, line: bytes, peer: Peer) -> Mapping[str, Any]:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            raise TrollmovesError("a request must be one line of JSON") from None
        name = request.get("request") if isinstance(request, dict) else None
        handler = self._handlers.get(name) if isinstance(name, str) else None
        if handler is None:
            raise TrollmovesError(f"unknown request; known ones: {', '.join(sorted(self._handlers))}")
        return handler(request, peer)

    def _close(self, connection: _Connection) -> None:
        self._connections.discard(connection)
        with suppress(KeyError):
            self._selector.unregister(connection.socket)
        connection.socket.close()


def _encode(reply: Mapping[str, Any]) -> bytes:
    return json.dumps(reply, default=str).encode() + b"\n"


def peer_of(connection: socket.socket) -> Peer:
    """Return the user at the other end of a connection."""
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return Peer(uid)


def _remove_stale(path: str) -> None:
    """Remove the socket or link that a killed process left; raise OSError if another kind of file is in its place."""
    with suppress(FileNotFoundError):
        mode = os.lstat(path).st_mode
        if not (stat.S_ISSOCK(mode) or stat.S_ISLNK(mode)):
            raise FileExistsError(f"{path} must be a socket, remove it")
        os.unlink(path)
