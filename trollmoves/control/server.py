"""The control socket: replies to requests of local commands, one JSON object per line."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pwd
import socket
import stat
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from trollmoves.control.client import MAX_REPLY, uid_of
from trollmoves.control.location import address_of, link_path, socket_path
from trollmoves.errors import TrollmovesError

logger = logging.getLogger(__name__)

MAX_REQUEST = 65_536  # bytes of a request
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
        self._connections = 0
        self._turn = asyncio.Lock()  # of the connection whose request runs
        self._stopping = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Listen. If that is not possible, log a warning: the daemon also works without the socket."""
        try:
            listener = self._listen()
        except OSError as error:
            logger.warning("no control socket at %s: %s; commands cannot reach this process", self._path, error)
            return
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, args=(self._loop, listener), name="control", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close the socket and its connections, and remove it; wait at most a second for a running request."""
        loop, self._loop = self._loop, None
        if loop is None:
            return
        loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(MAX_REST)
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

    def _run(self, loop: asyncio.AbstractEventLoop, listener: socket.socket) -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:  # its end also ends the connections
            runner.run(self._serve(listener))

    async def _serve(self, listener: socket.socket) -> None:
        server = await asyncio.start_server(self._accept, sock=listener, backlog=MAX_CONNECTIONS, limit=MAX_REQUEST)
        await self._stopping.wait()
        server.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(uid_of(writer.get_extra_info("socket")))
        self._connections += 1
        try:
            if refusal := self._refusal(peer):
                writer.write(_encode({"error": refusal}))
            else:
                await self._reply_all(reader, writer, peer)
        except asyncio.LimitOverrunError:
            writer.write(_encode({"error": f"a request must not exceed {MAX_REQUEST} bytes"}))
        except (OSError, asyncio.IncompleteReadError):
            pass  # the command ended, or was silent for too long
        finally:
            self._connections -= 1
            writer.transport.abort()

    def _refusal(self, peer: Peer) -> str:
        """Return why a new connection is rejected, an empty string if it is not."""
        if peer.uid not in (os.geteuid(), 0):
            logger.warning("rejected %s (uid %d) at the control socket", peer.name, peer.uid)
            return f"permission denied: this daemon accepts requests of uid {os.geteuid()} and of root"
        if self._connections > MAX_CONNECTIONS:
            return f"too many connections: at most {MAX_CONNECTIONS}; try again later"
        return ""

    async def _reply_all(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: Peer) -> None:
        """Reply to the requests of a connection, to each one after the reply to the last one was read."""
        writer.transport.set_write_buffer_limits(0)  # ``drain`` waits until all is sent
        while True:
            async with asyncio.timeout(TIMEOUT):
                await writer.drain()
                line = await reader.readuntil()
            async with self._turn:
                started = time.monotonic()
                writer.write(self._reply(line, peer))
                await asyncio.sleep(min(MAX_REST, time.monotonic() - started))

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


def _encode(reply: Mapping[str, Any]) -> bytes:
    return json.dumps(reply, default=str).encode() + b"\n"


def _remove_stale(path: str) -> None:
    """Remove the socket or link that a killed process left; raise OSError if another kind of file is in its place."""
    with suppress(FileNotFoundError):
        mode = os.lstat(path).st_mode
        if not (stat.S_ISSOCK(mode) or stat.S_ISLNK(mode)):
            raise FileExistsError(f"{path} must be a socket, remove it")
        os.unlink(path)
