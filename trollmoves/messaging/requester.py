"""Sends requests to servers, many concurrently."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import zmq

from trollmoves.errors import MessageError, TrollmovesError
from trollmoves.messaging import sockets
from trollmoves.messaging.messages import Message
from trollmoves.messaging.socket_thread import SocketThread
from trollmoves.utils.logs import LogThrottle
from trollmoves.utils.rate import collect

logger = logging.getLogger(__name__)

IDLE_TIMEOUT = 60.0  # s after which an unused connection is closed
CHECK_INTERVAL = 1.0  # s between checks for idle connections
REPLY_BATCH = 200  # replies read from one connection before the others are served


class NoReply(TrollmovesError):
    """The server did not reply in time."""

    temporary = True


class RequesterStopped(NoReply):
    """The requester stopped before the reply."""


OnReply = Callable[[Message | TrollmovesError], None]


@dataclass(slots=True, eq=False)
class _PendingRequest:
    """One request without a reply yet."""

    address: str
    text: str
    deadline: float
    timeout: float
    on_reply: OnReply
    extend: Callable[[], bool] | None
    shared: bool


@dataclass(slots=True, eq=False)
class _RequestSocket:
    """A socket and its pending requests, by the first frame of their envelope, which the reply repeats.

    A socket that is not shared carries one request at a time, with the empty frame of a REQ socket.
    """

    socket: sockets.Socket
    watcher: sockets.ConnectionWatcher
    address: str
    shared: bool
    pending: dict[bytes, _PendingRequest] = field(default_factory=dict)
    last_used: float = 0.0  # monotonic
    count: int = 0
    failure: str = ""  # why it is not connected
    connections: int = 0  # since the socket was created

    def send(self, request: _PendingRequest) -> None:
        if self.watcher.unresolved:
            raise NoReply(f"the name server has no address of {self.watcher.unresolved}")
        token = b""
        envelope = [token]
        if self.shared:
            self.count += 1
            token = b"%d" % self.count
            envelope = [token, b""]
        sockets.send(self.socket, [*envelope, request.text.encode()])
        self.pending[token] = request
        self.last_used = time.monotonic()


class Requester:
    """The thread with the sockets of all requests.

    Legacy servers handle one request per socket at a time, so each pending request to them has a separate socket.
    Servers of this implementation repeat the envelope of a request, as REP sockets do: one socket carries all requests.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._new: deque[_PendingRequest] = deque()
        self._sockets: dict[sockets.Socket, _RequestSocket] = {}
        # The sockets available for a request, by address and whether they are shared.
        self._free: dict[tuple[str, bool], list[_RequestSocket]] = {}
        self._next_check = 0.0
        self._throttle = LogThrottle(burst=1)
        self._stopped = False
        self._thread = SocketThread(
            "requester", name, poll_timeout=self._poll_timeout, process=self._process, close=self._close_all
        )
        self._poller = self._thread.poller

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Close all sockets; pending and later requests fail with RequesterStopped."""
        self._thread.stop()

    def send_request(
        self,
        address: str,
        text: str,
        timeout: float,
        on_reply: OnReply,
        extend: Callable[[], bool] | None = None,
        *,
        shared: bool = False,
    ) -> None:
        """Send a request to the server at ``host:port``; any thread, does not block.

        ``on_reply`` is called with the reply, or an error, on the requester's thread, and must not block. After
        ``timeout`` seconds without a reply ``extend`` is called there and returns True to wait another ``timeout``
        seconds; without it, or if it returns False, ``on_reply`` gets NoReply. After the stop ``on_reply`` gets
        RequesterStopped, on the calling thread. ``shared`` is for servers of this implementation: the request may share
        a connection with others.
        """
        self._new.append(_PendingRequest(address, text, time.monotonic() + timeout, timeout, on_reply, extend, shared))
        self._thread.wake()
        if self._stopped:
            self._fail_new()

    def _process(self, ready: list[sockets.Socket]) -> None:
        replies = sum(map(self._receive_replies, ready))
        while self._new:
            self._send(self._new.popleft())
        if time.monotonic() >= self._next_check:
            self._check_deadlines()
        collect(replies)

    def _poll_timeout(self) -> int:
        if self._new:
            return 0
        return max(0, int((self._next_check - time.monotonic()) * 1000) + 1)

    def _send(self, request: _PendingRequest) -> None:
        connection = None
        try:
            connection = self._socket_for(request.address, request.shared)
            connection.send(request)
        except (TrollmovesError, zmq.ZMQError, UnicodeError) as error:
            reason = self._end_unused(connection) if connection else ""
            self._notify(request, NoReply(f"cannot send a request to {request.address}: {reason or error}"))
            return
        self._next_check = min(self._next_check, request.deadline)

    def _end_unused(self, connection: _RequestSocket) -> str:
        """Close a connection that takes no request, unless some are pending; return why it failed, or an empty text."""
        self._check_failures(connection)  # the server may have rejected it before the request
        if not connection.pending:
            self._close(connection)
        return connection.failure.removeprefix(": ")

    def _socket_for(self, address: str, shared: bool) -> _RequestSocket:
        free = self._free.setdefault((address, shared), [])
        if shared and free:
            return free[-1]
        while free:
            connection = free.pop()
            if not sockets.is_readable(connection.socket):
                return connection
            self._close(connection)  # a second reply to its last request
        socket, watcher = sockets.connect_monitored(
            zmq.DEALER, f"tcp://{address.removeprefix('tcp://')}", {int(zmq.LINGER): 0}
        )
        self._poller.register(socket, zmq.POLLIN)
        connection = self._sockets[socket] = _RequestSocket(socket, watcher, address, shared)
        if shared:
            free.append(connection)
        return connection

    def _receive_replies(self, socket: sockets.Socket) -> int:
        """Receive available replies; return their number, or 1 for a socket that is not shared."""
        connection = self._sockets.get(socket)
        for count in range(REPLY_BATCH):
            if count == 1 and not sockets.is_readable(socket):  # usually there is one, or there are many
                return count
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return count
            if connection is None or not self._on_frames(connection, frames):
                break
        return 1

    def _on_frames(self, connection: _RequestSocket, frames: list[bytes]) -> bool:
        """Notify the sender of a request of its reply; return True if more replies may be available."""
        request = connection.pending.pop(frames[0] if len(frames) > 1 else b"", None)
        if request is None:
            if not connection.shared:  # a second reply: later replies could not be matched to a request
                self._close(connection)
            return connection.shared
        if not connection.shared:
            self._free.setdefault((connection.address, False), []).append(connection)
        elif not connection.pending and self._is_retired(connection):
            self._close(connection)
        try:
            reply: Message | TrollmovesError = Message.decode(frames[-1])
        except MessageError as error:
            reply = error
        self._notify(request, reply)
        return connection.shared and connection.socket in self._sockets

    def _notify(self, request: _PendingRequest, reply: Message | TrollmovesError) -> None:
        try:
            request.on_reply(reply)
        except TrollmovesError as error:
            logger.error("[%s] cannot handle a reply from %s: %s", self.name, request.address, error)
        except Exception:
            logger.exception("[%s] unexpected error while handling a reply from %s", self.name, request.address)

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        for connection in list(self._sockets.values()):
            if connection.socket in self._sockets:  # else it was closed together with another connection
                self._check_socket(connection, now)
        deadlines = [
            request.deadline for connection in self._sockets.values() for request in connection.pending.values()
        ]
        self._next_check = min([now + CHECK_INTERVAL, *deadlines])

    def _check_socket(self, connection: _RequestSocket, now: float) -> None:
        self._check_failures(connection)
        self._expire_requests(connection, now)
        if not connection.pending and (connection.last_used < now - IDLE_TIMEOUT or self._is_retired(connection)):
            self._close(connection)

    def _check_failures(self, connection: _RequestSocket) -> None:
        """Log failed connections; fail the requests of a rejected one, which ZeroMQ does not retry."""
        failure = connection.watcher.failure()
        if connections := connection.watcher.new_connections():
            connection.failure = ""
            connection.connections += connections
            if connection.shared and connection.connections > 1:
                self._resend(connection)
        if failure is None:
            return
        connection.failure = f": {failure.reason}"
        if (suffix := self._throttle.admit(f"{connection.address} {failure.reason}")) is not None:
            logger.warning(
                "[%s] cannot send requests to %s: %s%s", self.name, connection.address, failure.reason, suffix
            )
        if failure.permanent:
            failed = list(connection.pending.values())
            connection.pending.clear()
            self._retire(connection)
            for request in failed:
                self._notify(request, NoReply(f"no reply from {connection.address}{connection.failure}"))

    @staticmethod
    def _resend(connection: _RequestSocket) -> None:
        """Repeat requests that may be lost with the previous connection; the server recognizes them by id."""
        for token, request in list(connection.pending.items()):
            with suppress(zmq.ZMQError):  # else the request times out
                connection.send(request)
                request.deadline = time.monotonic() + request.timeout
                del connection.pending[token]

    def _expire_requests(self, connection: _RequestSocket, now: float) -> None:
        for token, request in list(connection.pending.items()):
            if request.deadline > now:
                continue
            if self._extend_deadline(request):
                request.deadline = now + request.timeout
                continue
            del connection.pending[token]
            # The socket gets no further request, and is closed after its last one: unsent requests must not reach the
            # server later, and a late reply must not be matched to another request.
            self._retire(connection)
            for idle in list(self._free.get((request.address, False), ())):  # they may be dead, too
                self._close(idle)
            self._notify(
                request, NoReply(f"no reply from {request.address} within {request.timeout:g} s{connection.failure}")
            )

    def _extend_deadline(self, request: _PendingRequest) -> bool:
        try:
            return request.extend is not None and request.extend()
        except Exception:
            logger.exception("[%s] unexpected error while extending a request to %s", self.name, request.address)
            return False

    def _is_retired(self, connection: _RequestSocket) -> bool:
        return connection not in self._free.get((connection.address, connection.shared), ())

    def _retire(self, connection: _RequestSocket) -> None:
        free = self._free.get((connection.address, connection.shared), [])
        if connection in free:
            free.remove(connection)

    def _close(self, connection: _RequestSocket) -> None:
        self._retire(connection)
        if not self._free.get((connection.address, connection.shared), True):
            del self._free[connection.address, connection.shared]
        del self._sockets[connection.socket]
        self._poller.unregister(connection.socket)
        connection.watcher.close()
        connection.socket.close()

    def _close_all(self) -> None:
        for connection in list(self._sockets.values()):
            self._close(connection)
            for request in connection.pending.values():
                self._notify(request, RequesterStopped("the requester has stopped"))
        self._stopped = True  # later requests are failed by send_request
        self._fail_new()

    def _fail_new(self) -> None:
        while self._new:
            with suppress(IndexError):  # taken by another thread
                self._notify(self._new.popleft(), RequesterStopped("the requester has stopped"))
