"""Receives requests on a port and replies to each of them."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import zmq

from trollmoves.errors import AccessDenied, MessageError, RequestRejected, TrollmovesError
from trollmoves.messaging import payload, sockets
from trollmoves.messaging.fair_queue import FairQueue
from trollmoves.messaging.messages import Message
from trollmoves.messaging.security import curve_keys
from trollmoves.messaging.security.access import ClientAccess, client_address, client_identity
from trollmoves.messaging.security.connection_memory import MB, Limits, MemoryLimits
from trollmoves.messaging.socket_thread import SocketThread
from trollmoves.net.client_allowlist import ANYONE, ClientAllowlist
from trollmoves.utils.logs import LogThrottle
from trollmoves.utils.rate import collect

logger = logging.getLogger(__name__)

BATCH_SIZE = 100  # requests handled together, so that the journal commits them together
BATCH_TIME = 0.005  # s that a batch should take: a request of another client waits that long
MIN_BATCH_SIZE = 30  # requests, also if the commits of the journal alone take longer than BATCH_TIME
RECEIVED_PER_HANDLED = 4  # requests received before one is handled; reveals clients over quota
TICK = 1.0  # s between calls of ``tick``
MAX_PARSED_BYTES = 65_536  # of a rejected request, to find the right form of the reply
MAX_QUEUED_REQUESTS = 100  # per connection; beyond, ZeroMQ blocks the client
MAX_QUEUED_REPLIES = 1_000  # per connection; further ones are dropped
RECEIVE_BUFFER = 64 * 1024  # bytes in the kernel for a connection: how much ZeroMQ reads between two checks
MAX_REQUEST_BYTES = 2_500_000  # the sender of a larger request is disconnected
MAX_FRAMES = 8  # of a request: ours have up to 3
MAX_VALUES = 100_000  # commas and opening brackets in a request: a value takes up to 80 bytes
MAX_DESCRIPTORS = 10_000  # remembered; the replies to connections that are not are not counted
# A received byte takes up to 32 bytes of memory.
MEMORY_LIMITS = MemoryLimits(
    unread=Limits(MAX_REQUEST_BYTES + MB, MAX_REQUEST_BYTES + MB, 4 * MB),
    unsent=Limits(16 * MB, 24 * MB, 48 * MB),
)
MAX_REJECTIONS_PER_SECOND = 100  # replies to requests over quota
THROTTLED_POLL_MS = 1  # ms between rounds while only throttled requests are pending; a reply interrupts it
RETRY_AFTER = 5.0  # s after which a client over quota may repeat a request


@dataclass(frozen=True, slots=True)
class Request:
    """One request. Any thread may reply; the first reply is sent, later ones are dropped.

    Legacy clients do not match replies by id: they would treat a second reply as that to their next request.
    """

    message: Message
    _routes: list[list[bytes]]  # one route until the reply is sent
    replier: Replier
    sender: str = ""
    """The identity of the client: its key if CURVE authenticated one, else its address."""

    def reply(self, type_: str, data: object = "") -> None:
        """Reply with a message of this type under the same subject; raise MessageError for unencodable data."""
        self.reply_encoded(Message(self.message.subject, type_, data).encode())

    def reply_encoded(self, text: str) -> None:
        """Reply with an encoded message."""
        with suppress(IndexError):
            self.replier.send(self._routes.pop(), text)

    def reply_delivered(self, changes: Mapping[str, Any], encode: Callable[[], str]) -> None:  # noqa: ARG002
        """Reply that the files are delivered, with the encoded message.

        ``changes`` are the items in which its data differ from those of the request: a member of a group needs only
        these.
        """
        self.reply_encoded(encode())

    def reject(self, reason: str) -> None:
        """Reply ``err`` with the reason."""
        self.reply("err", reason)


class TooManyRequests(RequestRejected):
    """A request of a client with too many pending requests."""

    temporary = True


class Replier:
    """A ROUTER socket and its thread.

    ``handle`` is called on that thread with received requests, in order, and must reply to each, now or later; it may
    write to the journal, but must leave transfers to worker threads. ``tick`` is called every second.
    """

    def __init__(
        self,
        name: str,
        port: int,
        handle: Callable[[list[Request]], None],
        *,
        bind_address: str = "*",
        clients: ClientAllowlist = ANYONE,
        tick: Callable[[], None] | None = None,
    ) -> None:
        """Bind the socket; raise StartError if the port is in use, or one of the ``clients`` is unknown."""
        self.name = name
        self._access = ClientAccess(clients)
        self.throttle = LogThrottle()
        self._queue = FairQueue()
        self._rejection_throttle = LogThrottle(burst=1)
        self._quota_throttle = LogThrottle(burst=1)
        self._quota_rejections = 0  # replies in the current second
        self._discarding = set[bytes]()  # connections to ignore in the current second
        self._identify = client_identity if curve_keys.curve_enabled() else client_address
        self._handle = handle
        self._tick = tick
        self._socket, self.port, self._monitor = sockets.bind(
            zmq.ROUTER,
            sockets.tcp(bind_address, port),
            {
                zmq.RCVHWM: MAX_QUEUED_REQUESTS,
                zmq.SNDHWM: MAX_QUEUED_REPLIES,
                zmq.RCVBUF: RECEIVE_BUFFER,
                zmq.ROUTER_HANDOVER: 1,
                zmq.HEARTBEAT_IVL: 0,  # a ping to a closed connection with a full queue would abort: libzmq issue 4841
                zmq.MAXMSGSIZE: MAX_REQUEST_BYTES,
            },
            limits=MEMORY_LIMITS,
            option="request_port",
        )
        self._descriptors: dict[bytes, int] = {}  # ZeroMQ's descriptors, by connection
        self._outgoing: deque[tuple[list[bytes], str]] = deque()
        self._next_tick = 0.0
        self._batch_size = BATCH_SIZE
        self._thread = SocketThread(
            "replier", name, poll_timeout=self._poll_timeout, process=self._process, close=self._close
        )
        self._thread.poller.register(self._socket, zmq.POLLIN)

    def start(self) -> None:
        """Start receiving requests."""
        self._thread.start()

    def stop(self) -> None:
        """Send the pending replies and stop receiving."""
        self._thread.stop()

    def _close(self) -> None:
        self._send_outgoing()
        self._socket.close()

    def send(self, route: list[bytes], text: str) -> None:
        """Send a reply; any thread. A reply to a disconnected client is dropped."""
        self._outgoing.append((route, text))
        self._thread.wake()

    def _poll_timeout(self) -> int:
        return 0 if self._queue.is_pending() else max(0, int((self._next_tick - time.monotonic()) * 1000) + 1)

    def _process(self, ready: list[sockets.Socket]) -> None:
        self._send_outgoing()
        if ready or self._queue.is_pending():
            received = self._receive()
            self._send_outgoing()
            if not self._queue.is_pending():
                collect(received)
        if time.monotonic() >= self._next_tick:
            self._next_tick = time.monotonic() + TICK
            self._quota_rejections = 0
            self._discarding.clear()
            if not sockets.is_readable(self._socket):
                self._monitor.drained()
            if self._tick:
                self._tick()
            self._send_outgoing()

    def _receive(self) -> int:
        started = time.monotonic()
        self._receive_from_socket()
        queued = self._queue.take(self._batch_size)
        requests = [request for client, frames in queued if (request := self._decode(list(frames), client))]
        if requests:
            self._handle_all(requests)
            seconds = time.monotonic() - started
            self._queue.took(seconds)
            affordable = int(BATCH_TIME * len(requests) / max(seconds, 1e-6))
            self._batch_size = max(MIN_BATCH_SIZE, min(affordable, BATCH_SIZE))
        elif self._queue.only_throttled_pending():
            self._thread.wakeup.clear()
            self._send_outgoing()
            self._thread.wakeup.wait(THROTTLED_POLL_MS)
        return len(requests)

    def _receive_from_socket(self) -> None:
        """Receive available requests; ZeroMQ returns one request of each connection in turn.

        A round ends at the second request over quota of a connection, so that its later requests are read slowly.
        """
        over_quota = set[bytes]()
        for count in range(RECEIVED_PER_HANDLED * self._batch_size):
            if count == 1 and not sockets.is_readable(self._socket):  # usually there is one, or there are many
                self._monitor.drained()
                return
            try:
                connection = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                self._monitor.drained()
                return
            if connection in self._discarding:
                self._receive_rest(connection)
            elif self._enqueue(connection, self._receive_rest(connection)):
                continue
            if connection in over_quota:
                return
            over_quota.add(connection)

    def _receive_rest(self, connection: bytes) -> list[zmq.Frame]:
        """Receive the remaining frames of a request, which ZeroMQ delivers as a whole; return the first few."""
        frame = self._socket.recv(zmq.NOBLOCK, copy=False)
        frames = [frame]
        while frame.more:
            frame = self._socket.recv(zmq.NOBLOCK, copy=False)
            if len(frames) <= MAX_FRAMES:
                frames.append(frame)
        if len(self._descriptors) > MAX_DESCRIPTORS:
            self._descriptors.clear()
        descriptor = self._descriptors[connection] = self._monitor.add_read(frames[-1], sum(map(len, frames)))
        if len(frames) > MAX_FRAMES:
            self._monitor.suspect(descriptor)
        return frames

    def _enqueue(self, connection: bytes, rest: list[zmq.Frame]) -> bool:
        """Queue a request if its client is allowed and within its quota; return False if over quota.

        ``connection`` is the first frame, by which ZeroMQ identifies a connection; ``rest`` are the others.
        """
        last = rest[-1]
        client = self._identify(last)
        if self._access and not self._access.allows(last):
            self._reject_unauthorized([connection, *(frame.bytes for frame in rest)], client_address(last))
        elif self._queue.has_room(client):
            self._queue.put(client, [connection, *(frame.bytes for frame in rest)])
        else:
            self._reject_over_quota(connection, rest)
            return False
        return True

    def _reject_over_quota(self, connection: bytes, rest: list[zmq.Frame]) -> None:
        """Reject a request over quota with little work; above the rate limit, discard the connection's requests."""
        client = client_address(rest[-1])
        if (suffix := self._quota_throttle.admit(client)) is not None:
            logger.warning("[%s] rejected requests of %s: too many are pending%s", self.name, client, suffix)
        self._quota_rejections += 1
        if self._quota_rejections > MAX_REJECTIONS_PER_SECOND:
            self._discarding.add(connection)
            return
        frames = [connection, *(frame.bytes for frame in rest)]
        has_id = frames[-1].find(b'"request": {', 0, MAX_PARSED_BYTES) >= 0
        self.send(_route(frames), _quota_reply(has_id, int(time.monotonic())))

    def _handle_all(self, requests: list[Request]) -> None:
        try:
            self._handle(requests)
        except Exception as error:
            is_expected = isinstance(error, TrollmovesError)
            count = "1 request" if len(requests) == 1 else f"{len(requests)} requests"
            if not is_expected:
                logger.exception("[%s] rejected %s: unexpected error", self.name, count)
            elif (suffix := self._rejection_throttle.admit(str(error))) is not None:
                logger.error("[%s] rejected %s: %s%s", self.name, count, error, suffix)
            for request in requests:
                request.reject(str(error) if is_expected else "internal error")

    def _reject_unauthorized(self, frames: list[bytes], client: str) -> None:
        """Reject the request of a client that is not allowed, with little work."""
        if (suffix := self._rejection_throttle.admit(client)) is not None:
            logger.warning("[%s] rejected a request: %s is not among the allowed clients%s", self.name, client, suffix)
        error = AccessDenied("this client is not allowed here")
        message = Message("/", "err", str(error))
        with suppress(MessageError):
            if len(frames[-1]) <= MAX_PARSED_BYTES:
                request = Message.decode(frames[-1])
                message = Message(request.subject, "err", payload.error_payload(request.data, error))
        self.send(_route(frames), message.encode())

    def _decode(self, frames: list[bytes], client: str) -> Request | None:
        route = _route(frames)
        body = frames[len(route) :]
        try:
            if len(body) != 1:
                raise MessageError(f"expected one frame, received {len(body)}")
            if len(body[0]) > MAX_VALUES and sum(map(body[0].count, b"[{,")) > MAX_VALUES:
                raise MessageError(f"the data of a request must have less than {MAX_VALUES:,} values")
            return Request(Message.decode(body[0]), [route], self, client)
        except MessageError as error:
            if (suffix := self.throttle.admit()) is not None:
                logger.warning("[%s] rejected a request: %s%s", self.name, error, suffix)
            self.send(route, Message("/", "err", str(error)).encode())
            return None

    def _send_outgoing(self) -> None:
        while self._outgoing:
            route, text = self._outgoing.popleft()
            try:
                encoded = text.encode()
                sockets.send(self._socket, [*route, encoded])
                self._monitor.add_sent(len(encoded), self._descriptors.get(route[0], -1))
            except (zmq.ZMQError, UnicodeError) as error:
                logger.warning("[%s] cannot send a reply: %s", self.name, error)


@lru_cache(maxsize=4)
def _quota_reply(has_id: bool, _second: int) -> str:
    """Return the reply to a request over quota; encoded once per second."""
    data = {"request": {"id": ""}} if has_id else None
    error = TooManyRequests("too many requests of this client are pending")
    return Message("/", "err", payload.error_payload(data, error, RETRY_AFTER)).encode()


def _route(frames: list[bytes]) -> list[bytes]:
    """Return the frames before the payload: the identity, the optional request token, an empty frame."""
    for length in (2, 3):
        if len(frames) >= length and frames[length - 1] == b"":
            return frames[:length]
    return frames[:1]
