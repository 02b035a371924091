"""Asks servers, many requests at once, one request a socket."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import zmq

from trollmoves.errors import MessageError, TrollmovesError
from trollmoves.messaging import sockets
from trollmoves.messaging.messages import Message

log = logging.getLogger(__name__)

IDLE_SOCKET = 60.0  # s after which an unused connection is closed
LOOK = 1.0  # s between looks for such
PAUSE = 0.1  # s after an error that nobody foresaw, so that one that stays does not fill the log


class NoAnswer(TrollmovesError):
    """The peer did not answer in time."""

    temporary = True


class Stopping(NoAnswer):
    """This side stops before the answer came."""


Answered = Callable[[Message | TrollmovesError], None]


@dataclass(slots=True, eq=False)
class _Asked:
    """One request on its way."""

    address: str
    text: str
    deadline: float
    timeout: float
    answered: Answered
    overdue: Callable[[], bool] | None


@dataclass(slots=True, eq=False)
class _Peer:
    """The sockets to one address that wait for another request."""

    idle: deque[tuple[sockets.Socket, float]] = field(default_factory=deque)


class Requester:
    """The one thread that holds the sockets of all requests.

    Older servers take one request at a time from a socket, so each request that is open has a socket of its own.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._bell = sockets.Bell()
        self._new: deque[_Asked] = deque()
        self._open: dict[sockets.Socket, _Asked] = {}
        self._peers: dict[str, _Peer] = {}
        self._poller = zmq.Poller()
        self._poller.register(self._bell.fileno(), zmq.POLLIN)
        self._next_look = 0.0
        self._stopping = False
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name=f"requester of {name}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Close all sockets; open requests, and those that are made from now on, are answered with Stopping."""
        self._stopping = True
        self._bell.ring()
        if self._thread.is_alive():
            self._thread.join(5.0)
        elif not self._thread.ident:
            self._close_all()
        if not self._thread.is_alive():
            self._bell.close()

    def ask(
        self,
        address: str,
        text: str,
        timeout: float,
        answered: Answered,
        overdue: Callable[[], bool] | None = None,
    ) -> None:
        """Ask the server at ``host:port``; any thread, returns at once.

        ``answered`` gets the answer, or an error, on the requester's thread, and must not block. After ``timeout``
        seconds without an answer ``overdue`` is asked, there too, whether to wait once more as long; without it, or
        when it says no, ``answered`` gets NoAnswer. After the stop it gets Stopping at once, on the thread that asks.
        """
        self._new.append(_Asked(address, text, time.monotonic() + timeout, timeout, answered, overdue))
        self._bell.ring()
        if self._stopped:
            self._refuse_new()

    def _run(self) -> None:
        while not self._stopping:
            try:
                ready = self._poller.poll(self._time_to_wait())
                self._bell.silence()
                for socket, _ in ready:
                    if isinstance(socket, zmq.Socket):
                        self._take_answer(socket)
                while self._new:
                    self._send(self._new.popleft())
                if time.monotonic() >= self._next_look:
                    self._look_at_the_clock()
                if len(ready) >= sockets.BUSY:
                    time.sleep(sockets.GATHER)
            except Exception:  # one answer's trouble is not the others'
                log.exception("[%s] unexpected error while asking", self.name)
                time.sleep(PAUSE)
        self._close_all()

    def _time_to_wait(self) -> int:
        if self._new:
            return 0
        return max(0, int((self._next_look - time.monotonic()) * 1000) + 1)

    def _send(self, asked: _Asked) -> None:
        socket = None
        try:
            socket = self._socket(asked.address)
            socket.send_multipart([b"", asked.text.encode()], zmq.NOBLOCK)
        except (TrollmovesError, zmq.ZMQError, UnicodeError) as error:
            if socket:
                self._close(socket)
            self._tell(asked, NoAnswer(f"cannot ask {asked.address}: {error}"))
            return
        self._open[socket] = asked
        self._next_look = min(self._next_look, asked.deadline)

    def _socket(self, address: str) -> sockets.Socket:
        peer = self._peers.setdefault(address, _Peer())
        while peer.idle:
            idle = peer.idle.pop()[0]
            if not int(idle.get(zmq.EVENTS)) & zmq.POLLIN:
                return idle
            self._close(idle)  # a second answer to its last request
        socket = sockets.connect(zmq.DEALER, address if "://" in address else f"tcp://{address}", {zmq.LINGER: 0})
        self._poller.register(socket, zmq.POLLIN)
        return socket

    def _take_answer(self, socket: sockets.Socket) -> None:
        try:
            frames = socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return
        asked = self._open.pop(socket, None)
        if asked is None:  # a second answer: what comes next on this socket cannot be told apart
            self._discard(socket)
            return
        self._peers[asked.address].idle.append((socket, time.monotonic()))
        try:
            answer: Message | TrollmovesError = Message.decode(frames[-1])
        except MessageError as error:
            answer = error
        self._tell(asked, answer)

    def _tell(self, asked: _Asked, answer: Message | TrollmovesError) -> None:
        try:
            asked.answered(answer)
        except Exception:
            log.exception("[%s] unexpected error with an answer of %s", self.name, asked.address)

    def _look_at_the_clock(self) -> None:
        now = time.monotonic()
        for socket, asked in list(self._open.items()):
            if asked.deadline > now:
                continue
            if self._may_wait(asked):
                asked.deadline = now + asked.timeout
                continue
            del self._open[socket]
            self._close(socket)  # an answer that comes late must not be taken for the next one
            self._hang_up(asked.address)
            self._tell(asked, NoAnswer(f"no answer from {asked.address} within {asked.timeout:g} s"))
        in_use = {asked.address for asked in self._open.values()}
        for address, peer in list(self._peers.items()):
            while peer.idle and peer.idle[0][1] < now - IDLE_SOCKET:
                self._close(peer.idle.popleft()[0])
            if not peer.idle and address not in in_use:
                del self._peers[address]
        self._next_look = min([now + LOOK, *(asked.deadline for asked in self._open.values())])

    def _hang_up(self, address: str) -> None:
        """Drop the idle connections to a peer that does not answer: they may be as dead as the one that was used."""
        peer = self._peers.get(address)
        while peer and peer.idle:
            self._close(peer.idle.popleft()[0])

    def _may_wait(self, asked: _Asked) -> bool:
        try:
            return asked.overdue is not None and asked.overdue()
        except Exception:
            log.exception("[%s] unexpected error with a request to %s", self.name, asked.address)
            return False

    def _discard(self, socket: sockets.Socket) -> None:
        for peer in self._peers.values():
            peer.idle = deque(one for one in peer.idle if one[0] is not socket)
        self._close(socket)

    def _close(self, socket: sockets.Socket) -> None:
        self._poller.unregister(socket)
        socket.close()

    def _close_all(self) -> None:
        for socket, asked in list(self._open.items()):
            self._close(socket)
            self._tell(asked, Stopping("this side stops"))
        self._open.clear()
        for peer in self._peers.values():
            for socket, _ in peer.idle:
                self._close(socket)
        self._peers.clear()
        self._stopped = True  # from here on nobody but those who ask looks at what is new
        self._refuse_new()

    def _refuse_new(self) -> None:
        while self._new:
            with suppress(IndexError):  # somebody else was quicker
                self._tell(self._new.popleft(), Stopping("this side stops"))
