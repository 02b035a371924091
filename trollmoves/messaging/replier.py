"""Hears requests on a port, and answers every one of them."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache

import zmq

from trollmoves.errors import MessageError, RequestRejected, TrollmovesError
from trollmoves.messaging import payload, sockets
from trollmoves.messaging.fair_queue import FairQueue
from trollmoves.messaging.messages import Message
from trollmoves.messaging.security import curve_keys
from trollmoves.messaging.security.access import ClientAccess, client_address, client_identity
from trollmoves.messaging.socket_thread import SocketThread
from trollmoves.net.client_allowlist import ANYONE, ClientAllowlist
from trollmoves.utils.logs import LogThrottle
from trollmoves.utils.rate import RateMeter

log = logging.getLogger(__name__)

BATCH_SIZE = 100  # requests handled together, so that the journal commits them together
MAX_RECEIVED_PER_ROUND = 400  # requests taken from ZeroMQ before some are handled: so it shows who sends too many
TICK = 1.0  # s between calls of ``tick``
MAX_PARSED_BYTES = 65_536  # bytes of a request that are read to be polite to somebody who may not ask
REQUESTS_HELD = 1_000  # a connection; ZeroMQ holds the peer back beyond
LARGEST_REQUEST = 16 * 1024 * 1024  # bytes; whoever sends more is disconnected
MAX_REJECTIONS_PER_SECOND = 100  # requests too many that are answered in each second
THROTTLED_POLL_MS = 1  # ms of a break when only such requests wait whose senders send too many; an answer ends it
RETRY_AFTER = 5.0  # s after which one of those may ask again


@dataclass(frozen=True, slots=True)
class Request:
    """One request. It may be answered from any thread; the first answer counts, what comes later is dropped.

    A second answer would be taken for that to the next request, since older peers know no other mark of it.
    """

    message: Message
    _routes: list[list[bytes]]  # one as long as there is no answer
    _replier: Replier
    sender: str = ""
    """Whose it is: a key when CURVE has proven one, else an address."""

    def reply(self, type_: str, data: object = "") -> None:
        """Answer with a message of this type about the same subject; MessageError for data that cannot be written."""
        self.reply_encoded(Message(self.message.subject, type_, data).encode())

    def reply_encoded(self, text: str) -> None:
        """Answer with a message that is written already."""
        with suppress(IndexError):
            self._replier.send(self._routes.pop(), text)

    def log_suffix(self) -> str | None:
        """Give what to write behind a log line about a refusal; None when there have been many lately."""
        return self._replier.seldom.admit()

    def reject(self, why: str) -> None:
        """Answer ``err``, with the reason."""
        self.reply("err", why)


class TooManyRequests(RequestRejected):
    """A request of somebody of whom enough wait already."""

    temporary = True


class Replier:
    """A ROUTER socket and the one thread that uses it.

    ``handle`` gets the requests that are at hand, in their order, on that thread, and must answer each, now or later;
    it may write to the journal, but the transfers themselves are for the workers. ``tick`` is called every second.
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
        """Bind the socket; StartError when the port is taken, or one of the ``clients`` is not known."""
        self.name = name
        self._admission = ClientAccess(clients)
        self.seldom = LogThrottle()
        self._inbox = FairQueue()
        self._turned_away = LogThrottle(burst=1)
        self._put_off_seldom = LogThrottle(burst=1)
        self._put_off_count = 0  # in this second
        self._unread = set[bytes]()  # connections of whose requests nothing is looked at in this second
        self._account = client_identity if curve_keys.curve_enabled() else client_address
        self._handle = handle
        self._tick = tick
        self._socket, self.port = sockets.bind(
            zmq.ROUTER,
            sockets.tcp(bind_address, port),
            {
                zmq.RCVHWM: REQUESTS_HELD,
                zmq.SNDHWM: REQUESTS_HELD,
                zmq.ROUTER_HANDOVER: 1,
                zmq.MAXMSGSIZE: LARGEST_REQUEST,
            },
        )
        self._outgoing: deque[tuple[list[bytes], str]] = deque()
        self._next_tick = 0.0
        self._rate = RateMeter()
        self._thread = SocketThread(
            "replier", name, poll_timeout=self._poll_timeout, process=self._process, close=self._close
        )
        self._thread.poller.register(self._socket, zmq.POLLIN)

    def start(self) -> None:
        """Start to hear requests."""
        self._thread.start()

    def stop(self) -> None:
        """Send the answers that are ready, hear nothing more."""
        self._thread.stop()

    def _close(self) -> None:
        self._send_outgoing()
        self._socket.close()

    def send(self, route: list[bytes], text: str) -> None:
        """Send an answer back; any thread. One to a peer that is gone is dropped."""
        self._outgoing.append((route, text))
        self._thread.wake()

    def _poll_timeout(self) -> int:
        return 0 if self._inbox.is_pending() else max(0, int((self._next_tick - time.monotonic()) * 1000) + 1)

    def _process(self, ready: list[sockets.Socket]) -> None:
        self._send_outgoing()
        if ready or self._inbox.is_pending():
            received = self._receive()
            self._send_outgoing()
            self._rate.throttle(received)
        if time.monotonic() >= self._next_tick:
            self._next_tick = time.monotonic() + TICK
            self._put_off_count = 0
            self._unread.clear()
            if self._tick:
                self._tick()
            self._send_outgoing()

    def _receive(self) -> int:
        self._receive_from_socket()
        taken = self._inbox.take(BATCH_SIZE)
        requests = [request for who, frames in taken if (request := self._decode(list(frames), who))]
        if requests:
            self._handle_all(requests)
        elif self._inbox.only_throttled_pending():
            self._thread.wakeup.clear()
            self._send_outgoing()
            self._thread.wakeup.wait(THROTTLED_POLL_MS)
        return len(requests)

    def _receive_from_socket(self) -> None:
        """Take what is at hand from ZeroMQ, which gives one request of each connection in turn.

        While somebody sends too much one turn is enough, so that those connections are read slowly.
        """
        refused = set[bytes]()
        for count in range(MAX_RECEIVED_PER_ROUND):
            if count == 1 and not sockets.is_readable(self._socket):  # as a rule it is one, or many
                return
            try:
                first = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            if first in self._unread:
                while self._socket.recv(zmq.NOBLOCK, copy=False).more:
                    pass
            elif self._enqueue(first, self._receive_rest()):
                continue
            if first in refused:
                return
            refused.add(first)

    def _receive_rest(self) -> list[zmq.Frame]:
        """Receive what comes after the first frame of a request; ZeroMQ has the whole of it."""
        frames = [self._socket.recv(zmq.NOBLOCK, copy=False)]
        while frames[-1].more:
            frames.append(self._socket.recv(zmq.NOBLOCK, copy=False))
        return frames

    def _enqueue(self, first: bytes, rest: list[zmq.Frame]) -> bool:
        """Keep a request to be read, if its sender may ask and has not too many there; False when it has."""
        last = rest[-1]
        who = self._account(last)
        if self._admission and not self._admission.allows(last):
            self._reject_unauthorized([first, *(frame.bytes for frame in rest)], client_address(last))
        elif self._inbox.has_room(who):
            self._inbox.put(who, [first, *(frame.bytes for frame in rest)])
        else:
            self._reject_over_quota(first, rest)
            return False
        return True

    def _reject_over_quota(self, first: bytes, rest: list[zmq.Frame]) -> None:
        """Answer somebody who sends too much, with as little work as can be; and nobody once there are very many."""
        who = client_address(rest[-1])
        if (more := self._put_off_seldom.admit(who)) is not None:
            log.warning("[%s] requests of %s refused: too many of them wait%s", self.name, who, more)
        self._put_off_count += 1
        if self._put_off_count > MAX_REJECTIONS_PER_SECOND:
            self._unread.add(first)
            return
        frames = [first, *(frame.bytes for frame in rest)]
        ours = frames[-1].find(b'"request": {', 0, MAX_PARSED_BYTES) >= 0
        self.send(_route(frames), _too_many(ours, int(time.monotonic())))

    def _handle_all(self, requests: list[Request]) -> None:
        try:
            self._handle(requests)
        except Exception as error:
            known = isinstance(error, TrollmovesError)
            if not known:
                log.exception("[%s] %d requests refused", self.name, len(requests))
            elif (more := self._turned_away.admit(str(error))) is not None:
                log.error("[%s] %d requests refused: %s%s", self.name, len(requests), error, more)
            for request in requests:
                request.reject(str(error) if known else "internal error")

    def _reject_unauthorized(self, frames: list[bytes], who: str) -> None:
        """Answer somebody who may not ask, with as little work as can be."""
        more = self._turned_away.admit(who)
        if more is not None:
            log.warning("[%s] request refused: %s is not among the allowed clients%s", self.name, who, more)
        error = RequestRejected("this client is not allowed here")
        message = Message("/", "err", str(error))
        with suppress(MessageError):
            if len(frames[-1]) <= MAX_PARSED_BYTES:
                asked = Message.decode(frames[-1])
                message = Message(asked.subject, "err", payload.error_payload(asked.data, error))
        self.send(_route(frames), message.encode())

    def _decode(self, frames: list[bytes], who: str) -> Request | None:
        route = _route(frames)
        payload = frames[len(route) :]
        try:
            if len(payload) != 1:
                raise MessageError(f"one frame expected, {len(payload)} came")
            return Request(Message.decode(payload[0]), [route], self, who)
        except MessageError as error:
            if (more := self.seldom.admit()) is not None:
                log.warning("[%s] request refused: %s%s", self.name, error, more)
            self.send(route, Message("/", "err", str(error)).encode())
            return None

    def _send_outgoing(self) -> None:
        while self._outgoing:
            route, text = self._outgoing.popleft()
            try:
                sockets.send(self._socket, [*route, text.encode()])
            except (zmq.ZMQError, UnicodeError) as error:
                log.warning("[%s] an answer was not sent: %s", self.name, error)


@lru_cache(maxsize=4)
def _too_many(ours: bool, _second: int) -> str:
    """Give the answer to somebody who sends too much; it is written once a second."""
    data = {"request": {"id": ""}} if ours else None
    error = TooManyRequests("too many of your requests wait")
    return Message("/", "err", payload.error_payload(data, error, RETRY_AFTER)).encode()


def _route(frames: list[bytes]) -> list[bytes]:
    """Give what stands before the payload: the identity, what it tells its requests apart by, an empty frame."""
    for length in (2, 3):
        if len(frames) >= length and frames[length - 1] == b"":
            return frames[:length]
    return frames[:1]
