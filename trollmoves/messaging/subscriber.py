"""Receives messages from publishers, and reconnects to silent ones."""

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
from trollmoves.utils.batch_delivery import BatchDelivery, SetAside
from trollmoves.utils.logs import LogThrottle

logger = logging.getLogger(__name__)

BATCH_SIZE = 200  # messages of one publisher handled together
RETRY_DELAY = 5.0  # s before failed messages are passed to the handler again
POLL_INTERVAL = 1.0  # s between checks for silent publishers
RECONNECT_DELAY = 5.0  # s before a rejected connection is retried
UNREACHABLE_DELAY = 10.0  # s without a connection after which this is logged; later after twice the time, and so on
UNREACHABLE_INTERVAL = 3600.0  # s; upper limit between two such lines
DEFAULT_HEARTBEAT_INTERVAL = 30.0  # s; of a publisher that has not sent a heartbeat yet
SUBSCRIBE_DELAY = 0.5  # s after which a connected publisher has received the subscriptions


@dataclass(frozen=True, slots=True)
class PublisherEndpoint:
    """A publisher: its address (``tcp://host:port``) and the subscribed subject prefixes."""

    address: str
    topics: tuple[str, ...]


@dataclass(slots=True)
class _Connection:
    """The connection to one publisher."""

    endpoint: PublisherEndpoint
    socket: sockets.Socket
    watcher: sockets.ConnectionWatcher
    delivery: BatchDelivery[Message]
    last_heartbeat: float  # monotonic; the creation before the first
    down_since: float | None  # monotonic; None while connected
    next_report: float  # monotonic, if it is not connected
    interval: float = DEFAULT_HEARTBEAT_INTERVAL  # s, from its heartbeats
    is_reported: bool = False  # the log says that it cannot be reached
    connected_at: float = 0.0  # monotonic; 0 without a new connection to report
    retry_at: float = float("inf")  # monotonic, for a rejected connection, which ZeroMQ does not retry


class Subscriber:
    """The SUB sockets of one chain and their thread.

    ``on_messages`` is called on that thread with received messages of one publisher, in order, heartbeats included. If
    it raises, ``BatchDelivery`` retries the messages, while ZeroMQ queues later ones.
    """

    def __init__(
        self,
        name: str,
        endpoints: Sequence[PublisherEndpoint],
        on_messages: Callable[[str, list[Message]], None],
        *,
        alarm_scale: float = 0.0,
        on_connected: Callable[[str], None] | None = None,
        set_aside: SetAside | None = None,
        on_poll: Callable[[], None] | None = None,
        lasting: bool = False,
    ) -> None:
        """Connect; raise StartError for an invalid address.

        ``alarm_scale``: reconnect after this number of heartbeat intervals without a heartbeat; 0 leaves that to TCP
        and ZeroMQ, which detect a dead connection within half a minute. ``on_connected`` is called on the same thread
        with the address of a publisher each time it has been connected or reconnected, ``set_aside`` with a message for
        which ``on_messages`` keeps failing, and the reason. ``on_poll`` is called there at least every
        ``POLL_INTERVAL`` seconds, before received messages are handled. ``lasting`` is for publishers that cannot
        repeat messages: an interruption of less than five minutes ends neither a connection nor its queue.
        """
        self.name = name
        self._on_messages = on_messages
        self._alarm_scale = alarm_scale
        self._socket_options = {int(zmq.RCVHWM): sockets.HIGH_WATER_MARK} | (sockets.LASTING if lasting else {})
        self._on_connected = on_connected
        self._on_poll = on_poll
        self._set_aside = set_aside
        self._next_check = 0.0
        self._throttle = LogThrottle(burst=1)
        self._thread = SocketThread(
            "subscriber",
            name,
            poll_timeout=lambda: int(POLL_INTERVAL * 1000),
            process=self._process,
            close=self._disconnect_all,
            is_watched=False,  # messages wait while the journal cannot be written
        )
        self._poller = self._thread.poller
        self._connections: dict[sockets.Socket, _Connection] = {}
        self._pending: deque[PublisherEndpoint] = deque()
        for endpoint in endpoints:
            self._connect(endpoint)

    def start(self) -> None:
        """Start receiving."""
        self._thread.start()

    def stop(self) -> None:
        """Close the connections."""
        self._thread.stop()

    def _disconnect_all(self) -> None:
        for connection in self._connections.values():
            self._disconnect(connection)

    def connection_states(self) -> dict[str, bool]:
        """Return whether each publisher is connected, by address without ``tcp://``. Any thread."""
        states: dict[str, bool] = {}
        for connection in list(self._connections.values()):
            address = connection.endpoint.address.removeprefix("tcp://")
            states[address] = states.get(address, True) and connection.down_since is None
        return states

    def add_publishers(self, endpoints: Sequence[PublisherEndpoint]) -> None:
        """Connect to further publishers; any thread."""
        self._pending.extend(endpoints)
        self._thread.wake()

    def _connect(self, endpoint: PublisherEndpoint) -> _Connection:
        logger.debug(
            "[%s] connecting to %s for %s", self.name, endpoint.address, ", ".join(endpoint.topics) or "everything"
        )
        socket, watcher = sockets.connect_monitored(zmq.SUB, endpoint.address, self._socket_options)
        for topic in endpoint.topics:
            socket.setsockopt_string(zmq.SUBSCRIBE, subscription(topic))
        self._poller.register(socket, zmq.POLLIN)
        now = time.monotonic()
        connection = self._connections[socket] = _Connection(
            endpoint, socket, watcher, self._new_delivery(endpoint.address), now, now, now + UNREACHABLE_DELAY
        )
        return connection

    @staticmethod
    def _disconnect(connection: _Connection) -> None:
        connection.watcher.close()
        connection.socket.close(0)

    def _new_delivery(self, address: str) -> BatchDelivery[Message]:
        return BatchDelivery(
            partial(self._on_messages, address),
            self.name,
            source=address,
            describe=lambda message: f"message from {address}: {urls.excerpt(message.raw, 1000)}",
            stopping=self._thread.stopping,
            set_aside=self._set_aside,
            backoff_initial=RETRY_DELAY,
        )

    def _process(self, ready: list[sockets.Socket]) -> None:
        if self._on_poll:
            self._on_poll()
        for socket in ready:
            if socket in self._connections:
                self._receive(self._connections[socket])
        self._connect_pending()
        self._reconnect_silent()
        self._check_connections()

    def _connect_pending(self) -> None:
        while self._pending:
            endpoint = self._pending.popleft()
            if endpoint not in [connection.endpoint for connection in self._connections.values()]:
                logger.info("[%s] listening to %s", self.name, endpoint.address)
                try:
                    self._connect(endpoint)
                except StartError as error:
                    logger.error("[%s] %s", self.name, error)

    def _receive(self, connection: _Connection) -> None:
        messages: list[Message] = []
        for count in range(BATCH_SIZE):
            if count == 1 and not sockets.is_readable(connection.socket):  # usually there is one, or there are many
                break
            try:
                raw = connection.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            try:
                messages.append(Message.decode(raw))
            except MessageError as error:
                if (suffix := self._throttle.admit(f"malformed {connection.endpoint.address}")) is not None:
                    address = connection.endpoint.address
                    logger.warning("[%s] ignored a message from %s: %s%s", self.name, address, error, suffix)
        self._track_heartbeats(connection, messages)
        if messages:
            connection.delivery.deliver(messages)

    @staticmethod
    def _track_heartbeats(connection: _Connection, messages: list[Message]) -> None:
        for message in messages:
            if message.type == "beat" and isinstance(message.data, dict):
                interval = message.data.get("min_interval")
                if interval is not None and payload.is_seconds(interval) and interval > 0:
                    connection.interval = float(interval)
                connection.last_heartbeat = time.monotonic()

    def _reconnect_silent(self) -> None:
        if not self._alarm_scale:
            return
        now = time.monotonic()
        for connection in list(self._connections.values()):
            silence = now - connection.last_heartbeat
            # Unread messages may include heartbeats, and must not be dropped with the connection.
            if silence > self._alarm_scale * connection.interval and not connection.socket.poll(0):
                logger.warning(
                    "[%s] no heartbeat from %s for %.0f s: reconnecting",
                    self.name,
                    connection.endpoint.address,
                    silence,
                )
                self._reconnect(connection).last_heartbeat = now

    def _reconnect(self, connection: _Connection) -> _Connection:
        try:
            new = self._connect(connection.endpoint)
        except StartError as error:  # a key file has been removed
            logger.error("[%s] %s", self.name, error)
            connection.retry_at = time.monotonic() + RECONNECT_DELAY
            return connection
        new.interval, new.last_heartbeat = connection.interval, connection.last_heartbeat
        if connection.down_since is not None:
            new.down_since, new.next_report = connection.down_since, connection.next_report
            new.is_reported = connection.is_reported
        self._poller.unregister(connection.socket)
        del self._connections[connection.socket]
        self._disconnect(connection)
        return new

    def _check_connections(self) -> None:
        """Report new connections, after a delay in which the publisher receives the subscriptions."""
        now = time.monotonic()
        if now < self._next_check:
            return
        self._next_check = now + SUBSCRIBE_DELAY
        for connection in list(self._connections.values()):
            connection = self._check_failures(connection, now)
            if connection.watcher.new_connections():
                connection.connected_at = now
                self._log_connected(connection, now)
            if not connection.watcher.is_connected:
                self._log_unreachable(connection, now)
            if connection.connected_at and now - connection.connected_at >= SUBSCRIBE_DELAY:
                connection.connected_at = 0.0
                if self._on_connected:
                    self._on_connected(connection.endpoint.address)

    def _log_connected(self, connection: _Connection, now: float) -> None:
        address = connection.endpoint.address
        if connection.is_reported and connection.down_since is not None:
            logger.info("[%s] connected to %s, back after %.0f s", self.name, address, now - connection.down_since)
        else:
            logger.info("[%s] connected to %s", self.name, address)
        connection.down_since, connection.is_reported = None, False

    def _log_unreachable(self, connection: _Connection, now: float) -> None:
        if connection.down_since is None:
            connection.down_since, connection.next_report = now, now + UNREACHABLE_DELAY
        elif now >= connection.next_report:
            seconds = now - connection.down_since
            address = connection.endpoint.address
            logger.warning("[%s] cannot reach %s for %.0f s, still trying", self.name, address, seconds)
            connection.is_reported = True
            connection.next_report = now + min(seconds, UNREACHABLE_INTERVAL)

    def _check_failures(self, connection: _Connection, now: float) -> _Connection:
        """Log a failed connection, and retry it later if it was rejected; return the current connection."""
        failure = connection.watcher.failure()
        if failure and (suffix := self._throttle.admit(f"{connection.endpoint.address} {failure.reason}")) is not None:
            logger.warning(
                "[%s] cannot connect to %s: %s%s", self.name, connection.endpoint.address, failure.reason, suffix
            )
        if failure and failure.permanent:
            connection.retry_at = now + RECONNECT_DELAY
        return self._reconnect(connection) if connection.retry_at <= now else connection


def subscription(topic: str) -> str:
    """Return the ZeroMQ prefix for a subject prefix; an empty one selects all messages."""
    if topic.startswith(MAGIC):
        return topic
    return MAGIC + (topic if topic.startswith("/") or not topic else "/" + topic)
