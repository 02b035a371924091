"""Asks servers, many requests at once."""

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
from trollmoves.utils.rate import RateMeter

log = logging.getLogger(__name__)

IDLE_SOCKET = 60.0  # s after which an unused connection is closed
CHECK_INTERVAL = 1.0  # s between looks for such
REPLY_BATCH = 200  # of one connection, before the others have their turn


class NoReply(TrollmovesError):
    """The peer did not answer in time."""

    temporary = True


class RequesterStopped(NoReply):
    """This side stops before the answer came."""


Answered = Callable[[Message | TrollmovesError], None]


@dataclass(slots=True, eq=False)
class _PendingRequest:
    """One request on its way."""

    address: str
    text: str
    deadline: float
    timeout: float
    answered: Answered
    overdue: Callable[[], bool] | None
    shared: bool


@dataclass(slots=True, eq=False)
class _RequestSocket:
    """A socket, and the requests on it by the first frame of their envelope, which comes back with the answer.

    A line that is not shared takes one request at a time, and that has the empty frame of a REQ socket.
    """

    socket: sockets.Socket
    lookout: sockets.ConnectionWatcher
    address: str
    shared: bool
    open: dict[bytes, _PendingRequest] = field(default_factory=dict)
    used: float = 0.0  # monotonic
    count: int = 0
    trouble: str = ""  # why there is no connection
    connections: int = 0  # so far

    def send(self, asked: _PendingRequest) -> None:
        token = b""
        envelope = [token]
        if self.shared:
            self.count += 1
            token = b"%d" % self.count
            envelope = [token, b""]
        sockets.send(self.socket, [*envelope, asked.text.encode()])
        self.open[token] = asked
        self.used = time.monotonic()


class Requester:
    """The one thread that holds the sockets of all requests.

    Older servers take one request at a time from a socket, so each request to them that is open has a socket of its
    own. Ours answer with the envelope that a request came in, as REP sockets do: one socket carries all requests.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._new: deque[_PendingRequest] = deque()
        self._lines: dict[sockets.Socket, _RequestSocket] = {}
        self._free: dict[
            tuple[str, bool], list[_RequestSocket]
        ] = {}  # that take a request; by address, and whether shared
        self._next_look = 0.0
        self._pace = RateMeter()
        self._seldom = LogThrottle(burst=1)
        self._stopped = False
        self._thread = SocketThread(
            "requester", name, poll_timeout=self._poll_timeout, process=self._process, close=self._close_all
        )
        self._poller = self._thread.poller

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Close all sockets; open requests, and those that are made from now on, are answered with Stopping."""
        self._thread.stop()

    def send_request(
        self,
        address: str,
        text: str,
        timeout: float,
        answered: Answered,
        overdue: Callable[[], bool] | None = None,
        *,
        shared: bool = False,
    ) -> None:
        """Ask the server at ``host:port``; any thread, returns at once.

        ``answered`` gets the answer, or an error, on the requester's thread, and must not block. After ``timeout``
        seconds without an answer ``overdue`` is asked, there too, whether to wait once more as long; without it, or
        when it says no, ``answered`` gets NoAnswer. After the stop it gets Stopping at once, on the thread that asks.
        ``shared`` is for servers that are known to be ours: the request may share a connection with others.
        """
        self._new.append(_PendingRequest(address, text, time.monotonic() + timeout, timeout, answered, overdue, shared))
        self._thread.wake()
        if self._stopped:
            self._fail_new()

    def _process(self, ready: list[sockets.Socket]) -> None:
        answers = sum(map(self._take_answers, ready))
        while self._new:
            self._send(self._new.popleft())
        if time.monotonic() >= self._next_look:
            self._check_deadlines()
        self._pace.throttle(answers)

    def _poll_timeout(self) -> int:
        if self._new:
            return 0
        return max(0, int((self._next_look - time.monotonic()) * 1000) + 1)

    def _send(self, asked: _PendingRequest) -> None:
        line = None
        try:
            line = self._socket_for(asked.address, asked.shared)
            line.send(asked)
        except (TrollmovesError, zmq.ZMQError, UnicodeError) as error:
            if line and not line.open:
                self._close(line)
            self._notify(asked, NoReply(f"cannot ask {asked.address}: {error}"))
            return
        self._next_look = min(self._next_look, asked.deadline)

    def _socket_for(self, address: str, shared: bool) -> _RequestSocket:
        free = self._free.setdefault((address, shared), [])
        if shared and free:
            return free[-1]
        while free:
            line = free.pop()
            if not sockets.is_readable(line.socket):
                return line
            self._close(line)  # a second answer to its last request
        url = address if "://" in address else f"tcp://{address}"
        socket, lookout = sockets.connect_monitored(zmq.DEALER, url, {int(zmq.LINGER): 0})
        self._poller.register(socket, zmq.POLLIN)
        line = self._lines[socket] = _RequestSocket(socket, lookout, address, shared)
        if shared:
            free.append(line)
        return line

    def _take_answers(self, socket: sockets.Socket) -> int:
        """Take the answers that are at hand; give how many, if they may come many at a time."""
        line = self._lines.get(socket)
        for count in range(REPLY_BATCH):
            if count == 1 and not sockets.is_readable(socket):  # as a rule it is one, or many
                return count
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return count
            if line is None or not self._take_answer(line, frames):
                break
        return 1

    def _take_answer(self, line: _RequestSocket, frames: list[bytes]) -> bool:
        """Hand on an answer; tell whether more of them may be there."""
        asked = line.open.pop(frames[0] if len(frames) > 1 else b"", None)
        if asked is None:
            if not line.shared:  # a second answer: what comes next on this socket cannot be told apart
                self._close(line)
            return line.shared
        if not line.shared:
            self._free.setdefault((line.address, False), []).append(line)
        elif not line.open and self._is_retired(line):
            self._close(line)
        try:
            answer: Message | TrollmovesError = Message.decode(frames[-1])
        except MessageError as error:
            answer = error
        self._notify(asked, answer)
        return line.shared and line.socket in self._lines

    def _notify(self, asked: _PendingRequest, answer: Message | TrollmovesError) -> None:
        try:
            asked.answered(answer)
        except Exception:
            log.exception("[%s] unexpected error with an answer of %s", self.name, asked.address)

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        for line in list(self._lines.values()):
            if line.socket in self._lines:  # else it was closed for the sake of another one that is dead
                self._check_socket(line, now)
        deadlines = [asked.deadline for line in self._lines.values() for asked in line.open.values()]
        self._next_look = min([now + CHECK_INTERVAL, *deadlines])

    def _check_socket(self, line: _RequestSocket, now: float) -> None:
        self._check_failures(line)
        self._expire_requests(line, now)
        if not line.open and (line.used < now - IDLE_SOCKET or self._is_retired(line)):
            self._close(line)

    def _check_failures(self, line: _RequestSocket) -> None:
        """Say who refuses us; ZeroMQ will not try again, so whoever waits on this line waits in vain."""
        trouble = line.lookout.failure()
        if connections := line.lookout.new_connections():
            line.trouble = ""
            line.connections += connections
            if line.shared and line.connections > 1:
                self._resend(line)
        if trouble is None:
            return
        line.trouble = f": {trouble.reason}"
        if (more := self._seldom.admit(f"{line.address} {trouble.reason}")) is not None:
            log.warning("[%s] cannot ask %s: %s%s", self.name, line.address, trouble.reason, more)
        if trouble.permanent:
            waiting = list(line.open.values())
            line.open.clear()
            self._retire(line)
            for asked in waiting:
                self._notify(asked, NoReply(f"no answer from {line.address}{line.trouble}"))

    @staticmethod
    def _resend(line: _RequestSocket) -> None:
        """Ask anew, on a connection that is back, what was lost with the one before: ours know it by its id."""
        for token, asked in list(line.open.items()):
            with suppress(zmq.ZMQError):  # else it is overdue one day
                line.send(asked)
                asked.deadline = time.monotonic() + asked.timeout
                del line.open[token]

    def _expire_requests(self, line: _RequestSocket, now: float) -> None:
        for token, asked in list(line.open.items()):
            if asked.deadline > now:
                continue
            if self._extend_deadline(asked):
                asked.deadline = now + asked.timeout
                continue
            del line.open[token]
            # No further request takes this line, and it is closed with its last one: what it could not send so far
            # must not reach the server one day, and a late answer not be taken for that to another request.
            self._retire(line)
            self._close_idle(asked.address)
            self._notify(asked, NoReply(f"no answer from {asked.address} within {asked.timeout:g} s{line.trouble}"))

    def _close_idle(self, address: str) -> None:
        """Drop the idle connections to a peer that does not answer: they may be as dead as the one that was used."""
        for idle in list(self._free.get((address, False), ())):
            self._close(idle)

    def _extend_deadline(self, asked: _PendingRequest) -> bool:
        try:
            return asked.overdue is not None and asked.overdue()
        except Exception:
            log.exception("[%s] unexpected error with a request to %s", self.name, asked.address)
            return False

    def _is_retired(self, line: _RequestSocket) -> bool:
        return line not in self._free.get((line.address, line.shared), ())

    def _retire(self, line: _RequestSocket) -> None:
        free = self._free.get((line.address, line.shared), [])
        if line in free:
            free.remove(line)

    def _close(self, line: _RequestSocket) -> None:
        self._retire(line)
        if not self._free.get((line.address, line.shared), True):
            del self._free[line.address, line.shared]
        del self._lines[line.socket]
        self._poller.unregister(line.socket)
        line.lookout.close()
        line.socket.close()

    def _close_all(self) -> None:
        for line in list(self._lines.values()):
            self._close(line)
            for asked in line.open.values():
                self._notify(asked, RequesterStopped("this side stops"))
        self._stopped = True  # from here on nobody but those who ask looks at what is new
        self._fail_new()

    def _fail_new(self) -> None:
        while self._new:
            with suppress(IndexError):  # somebody else was quicker
                self._notify(self._new.popleft(), RequesterStopped("this side stops"))
