"""Hears requests on a port, and answers every one of them."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import zmq

from trollmoves.errors import MessageError, TrollmovesError
from trollmoves.messaging import sockets
from trollmoves.messaging.messages import Message

log = logging.getLogger(__name__)

AT_ONCE = 100  # requests handled together, so that the journal commits them together
TICK = 1.0  # s between calls of ``tick``
PAUSE = 0.1  # s after an error that nobody foresaw, so that one that stays does not fill the log
REQUESTS_HELD = 10_000  # a peer; ZeroMQ holds the peer back beyond


@dataclass(frozen=True, slots=True)
class Request:
    """One request. It may be answered from any thread; the first answer counts, what comes later is dropped.

    A second answer would be taken for that to the next request, since older peers know no other mark of it.
    """

    message: Message
    _routes: list[list[bytes]]  # one as long as there is no answer
    _replier: Replier

    def answer(self, type_: str, data: object = "") -> None:
        """Answer with a message of this type about the same subject; MessageError for data that cannot be written."""
        self.answer_with(Message(self.message.subject, type_, data).encode())

    def answer_with(self, text: str) -> None:
        """Answer with a message that is written already."""
        with suppress(IndexError):
            self._replier.send(self._routes.pop(), text)

    def refuse(self, why: str) -> None:
        """Answer ``err``, with the reason."""
        self.answer("err", why)


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
        tick: Callable[[], None] | None = None,
    ) -> None:
        """Bind the socket; StartError when the port is taken."""
        self.name = name
        self._handle = handle
        self._tick = tick
        self._socket, self.port = sockets.bind(
            zmq.ROUTER,
            sockets.tcp(bind_address, port),
            {zmq.RCVHWM: REQUESTS_HELD, zmq.SNDHWM: REQUESTS_HELD, zmq.ROUTER_HANDOVER: 1},
        )
        self._bell = sockets.Bell()
        self._outgoing: deque[tuple[list[bytes], str]] = deque()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"replier of {name}", daemon=True)

    def start(self) -> None:
        """Start to hear requests."""
        self._thread.start()

    def stop(self) -> None:
        """Send the answers that are ready, hear nothing more."""
        self._stopping = True
        self._bell.ring()
        if self._thread.is_alive():
            self._thread.join(5.0)
        elif not self._thread.ident:
            self._close()

    def _close(self) -> None:
        self._socket.close()
        self._bell.close()

    def send(self, route: list[bytes], text: str) -> None:
        """Send an answer back; any thread. One to a peer that is gone is dropped."""
        self._outgoing.append((route, text))
        self._bell.ring()

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._bell.fileno(), zmq.POLLIN)
        next_tick = 0.0
        while not self._stopping:
            try:
                ready = dict(poller.poll(max(0, int((next_tick - time.monotonic()) * 1000) + 1)))
                self._bell.silence()
                self._send_outgoing()
                if self._socket in ready:
                    busy = self._receive() >= sockets.BUSY
                    self._send_outgoing()
                    if busy:
                        time.sleep(sockets.GATHER)
                if time.monotonic() >= next_tick:
                    next_tick = time.monotonic() + TICK
                    if self._tick:
                        self._tick()
                    self._send_outgoing()
            except Exception:  # nothing that is sent makes a server deaf
                log.exception("[%s] unexpected error while answering requests", self.name)
                time.sleep(PAUSE)
        self._send_outgoing()
        self._close()

    def _receive(self) -> int:
        requests: list[Request] = []
        while len(requests) < AT_ONCE:
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            request = self._decode(frames)
            if request:
                requests.append(request)
        if requests:
            self._handle_all(requests)
        return len(requests)

    def _handle_all(self, requests: list[Request]) -> None:
        try:
            self._handle(requests)
        except Exception as error:
            known = isinstance(error, TrollmovesError)
            log.error("[%s] %d requests refused: %s", self.name, len(requests), error, exc_info=not known)
            for request in requests:
                request.refuse(str(error) if known else "internal error")

    def _decode(self, frames: list[bytes]) -> Request | None:
        route = frames[:2] if len(frames) > 1 and frames[1] == b"" else frames[:1]
        payload = frames[len(route) :]
        try:
            if len(payload) != 1:
                raise MessageError(f"one frame expected, {len(payload)} came")
            return Request(Message.decode(payload[0]), [route], self)
        except MessageError as error:
            log.warning("[%s] request refused: %s", self.name, error)
            self.send(route, Message("/", "err", str(error)).encode())
            return None

    def _send_outgoing(self) -> None:
        while self._outgoing:
            route, text = self._outgoing.popleft()
            try:
                self._socket.send_multipart([*route, text.encode()], zmq.NOBLOCK)
            except (zmq.ZMQError, UnicodeError) as error:
                log.warning("[%s] an answer was not sent: %s", self.name, error)
