"""Hears what publishers say, and connects anew to one that has fallen silent."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import zmq

from trollmoves.errors import MessageError, StartError
from trollmoves.messaging import payload, sockets
from trollmoves.messaging.messages import MAGIC, Message
from trollmoves.messaging.socket_thread import SocketThread
from trollmoves.net import urls
from trollmoves.utils.batch_delivery import BatchDelivery
from trollmoves.utils.logs import LogThrottle

log = logging.getLogger(__name__)

BATCH_SIZE = 200  # messages of one publisher handled together
RETRY_DELAY = 5.0  # s before failed messages are passed to the handler again
TRIES = 3  # of a batch with errors that are not temporary, before its messages are retried one by one
POLL_INTERVAL = 1.0  # s between looks for silent publishers
RECONNECT_DELAY = 5.0  # s until the next try at a publisher that has refused us
SUBSCRIBE_DELAY = 0.5  # s after which a publisher that is connected to surely has our subscriptions


@dataclass(frozen=True, slots=True)
class PublisherEndpoint:
    """A publisher to hear: its address (``tcp://host:port``) and the subject prefixes wanted from it."""

    address: str
    topics: tuple[str, ...]


@dataclass(slots=True)
class _Connection:
    """One connection."""

    provider: PublisherEndpoint
    socket: sockets.Socket
    lookout: sockets.ConnectionWatcher
    delivery: BatchDelivery[Message]
    interval: float = 0.0  # s, as its heartbeats say; 0 before the first
    beat: float = 0.0
    connected_at: float = 0.0  # monotonic; 0 when nobody is to be told
    again_at: float = float("inf")  # monotonic; when to connect anew to one that refused us: ZeroMQ will not


class Subscriber:
    """The SUB sockets of one chain and the one thread that uses them.

    ``heard`` gets the messages of one publisher that are at hand, in their order, on that thread. When it raises, the
    same messages are offered again a little later, and ZeroMQ holds the ones behind: for ever when the error is
    temporary, else some times and then one by one, so that the one to blame is left out. Heartbeats are among them.
    """

    def __init__(
        self,
        name: str,
        providers: Sequence[PublisherEndpoint],
        heard: Callable[[str, list[Message]], None],
        *,
        alarm_scale: float = 0.0,
        connected: Callable[[str], None] | None = None,
    ) -> None:
        """Connect; StartError when an address is none.

        ``alarm_scale``: connect anew after so many heartbeat intervals without a heartbeat; 0 leaves that to TCP and
        ZeroMQ, which notice a dead connection within half a minute. ``connected`` gets the address of a publisher that
        can be heard from now on, for the first time or again; on the same thread.
        """
        self.name = name
        self._heard = heard
        self._alarm_scale = alarm_scale
        self._connected = connected
        self._next_look = 0.0
        self._seldom = LogThrottle(burst=1)
        self._thread = SocketThread(
            "subscriber",
            name,
            poll_timeout=lambda: int(POLL_INTERVAL * 1000),
            process=self._process,
            close=self._disconnect_all,
        )
        self._poller = self._thread.poller
        self._ears: dict[sockets.Socket, _Connection] = {}
        self._to_follow: deque[PublisherEndpoint] = deque()
        for provider in providers:
            self._connect(provider)

    def start(self) -> None:
        """Start to hear."""
        self._thread.start()

    def stop(self) -> None:
        """Close the connections."""
        self._thread.stop()

    def _disconnect_all(self) -> None:
        for ear in self._ears.values():
            self._disconnect(ear)

    def add_publishers(self, providers: Sequence[PublisherEndpoint]) -> None:
        """Hear these too, from now on; any thread."""
        self._to_follow.extend(providers)
        self._thread.wake()

    def _connect(self, provider: PublisherEndpoint) -> _Connection:
        log.debug(
            "[%s] connecting to %s for %s", self.name, provider.address, ", ".join(provider.topics) or "everything"
        )
        options = {int(zmq.RCVHWM): sockets.HIGH_WATER_MARK}
        socket, lookout = sockets.connect_monitored(zmq.SUB, provider.address, options)
        for topic in provider.topics:
            socket.setsockopt_string(zmq.SUBSCRIBE, subscription(topic))
        self._poller.register(socket, zmq.POLLIN)
        ear = self._ears[socket] = _Connection(provider, socket, lookout, self._new_delivery(provider.address))
        return ear

    @staticmethod
    def _disconnect(ear: _Connection) -> None:
        ear.lookout.close()
        ear.socket.close(0)

    def _new_delivery(self, address: str) -> BatchDelivery[Message]:
        return BatchDelivery(
            partial(self._heard, address),
            self.name,
            describe=lambda message: f"message from {address}: {urls.excerpt(message.raw, 1000)}",
            stopping=self._thread.stopping,
            tries=TRIES,
            backoff_initial=RETRY_DELAY,
        )

    def _process(self, ready: list[sockets.Socket]) -> None:
        for socket in ready:
            if socket in self._ears:
                self._receive(self._ears[socket])
        self._connect_pending()
        self._reconnect_silent()
        self._check_connections()

    def _connect_pending(self) -> None:
        while self._to_follow:
            provider = self._to_follow.popleft()
            if provider not in [ear.provider for ear in self._ears.values()]:
                log.info("[%s] listening to %s", self.name, provider.address)
                try:
                    self._connect(provider)
                except StartError as error:
                    log.error("[%s] %s", self.name, error)

    def _receive(self, ear: _Connection) -> None:
        messages: list[Message] = []
        for count in range(BATCH_SIZE):
            if count == 1 and not sockets.is_readable(ear.socket):  # as a rule it is one, or many
                break
            try:
                raw = ear.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            try:
                messages.append(Message.decode(raw))
            except MessageError as error:
                log.warning("[%s] from %s: %s", self.name, ear.provider.address, error)
        self._track_heartbeats(ear, messages)
        if messages:
            ear.delivery.deliver(messages)

    @staticmethod
    def _track_heartbeats(ear: _Connection, messages: list[Message]) -> None:
        for message in messages:
            if message.type == "beat" and isinstance(message.data, dict):
                interval = message.data.get("min_interval")
                if interval is not None and payload.is_seconds(interval) and interval > 0:
                    ear.interval = float(interval)
                ear.beat = time.monotonic()

    def _reconnect_silent(self) -> None:
        if not self._alarm_scale:
            return
        now = time.monotonic()
        for ear in list(self._ears.values()):
            silence = now - ear.beat
            # What came and was not heard yet may hold heartbeats, and must not be dropped with the connection.
            if ear.interval and silence > self._alarm_scale * ear.interval and not ear.socket.poll(0):
                log.warning(
                    "[%s] no heartbeat from %s for %.0f s: connecting anew", self.name, ear.provider.address, silence
                )
                self._reconnect(ear).beat = now

    def _reconnect(self, ear: _Connection) -> _Connection:
        try:
            again = self._connect(ear.provider)
        except StartError as error:  # a key file was there before
            log.error("[%s] %s", self.name, error)
            ear.again_at = time.monotonic() + RECONNECT_DELAY
            return ear
        again.interval, again.beat = ear.interval, ear.beat
        self._poller.unregister(ear.socket)
        del self._ears[ear.socket]
        self._disconnect(ear)
        return again

    def _check_connections(self) -> None:
        """Tell who has come to be connected, a moment later: by then the publisher has our subscriptions."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + SUBSCRIBE_DELAY
        for ear in list(self._ears.values()):
            self._check_failures(ear, now)
            if ear.lookout.new_connections():
                ear.connected_at = now
            if ear.connected_at and now - ear.connected_at >= SUBSCRIBE_DELAY:
                ear.connected_at = 0.0
                if self._connected:
                    self._connected(ear.provider.address)

    def _check_failures(self, ear: _Connection, now: float) -> None:
        """Say who refuses us, and try again later."""
        trouble = ear.lookout.failure()
        if trouble and (more := self._seldom.admit(f"{ear.provider.address} {trouble.reason}")) is not None:
            log.warning("[%s] cannot hear %s: %s%s", self.name, ear.provider.address, trouble.reason, more)
        if trouble and trouble.permanent:
            ear.again_at = now + RECONNECT_DELAY
        if ear.again_at <= now:
            self._reconnect(ear)


def subscription(topic: str) -> str:
    """Give the ZeroMQ prefix that a subject prefix stands for ("" is everything)."""
    if topic.startswith(MAGIC):
        return topic
    return MAGIC + (topic if topic.startswith("/") or not topic else "/" + topic)
