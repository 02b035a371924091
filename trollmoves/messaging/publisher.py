"""A publisher with heartbeats, which registers its address with nameservers."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from typing import Any

import posttroll
import zmq
from posttroll.bbmcast import MulticastSender, get_configured_broadcast_port

from trollmoves.errors import StartError, TrollmovesError
from trollmoves.messaging import sockets
from trollmoves.messaging.messages import NEWEST_VERSION, Message
from trollmoves.messaging.security.connection_memory import MB, Limits, MemoryLimits
from trollmoves.net import hosts
from trollmoves.net.client_allowlist import ANYONE, ClientAllowlist

logger = logging.getLogger(__name__)

SUBSCRIBER_GRACE = 1.0  # s after a start in which subscribers of the previous process reconnect
# s after a start on another port in which the nameservers publish it, and subscribers connect
NEW_PORT_GRACE = 3.0
HEARTBEAT_INTERVAL = 30  # s
# s between the first heartbeats, which come faster because subscribers of a previous process reconnect
INITIAL_HEARTBEAT_DELAYS = (1.0, 1.0, 2.0, 4.0, 8.0, 14.0)
QUEUE_BYTES = 128_000_000  # bytes of messages that are queued for slow subscribers, by the average size of messages
AVERAGED_OVER = 1000  # messages
MAX_SUBSCRIPTION_BYTES = 4096  # the sender of a longer subscription is disconnected
# ZeroMQ needs about 50 bytes for each byte of a subscription.
MEMORY_LIMITS = MemoryLimits(
    unread=Limits(64 * 1024, 2 * MB, 3 * MB),
    unsent=Limits(16 * MB, 64 * MB, 256 * MB),
)
CONNECT_POLL = 0.1  # s between checks, while a nameserver is not connected, whether the publisher stops
ADVERTISE_INTERVAL = 2.0  # s between broadcasts of the address, as in posttroll
ADVERTISE_RETRY_DELAY = 60.0  # s after a failed broadcast


class Publisher:
    """A PUB socket with a name; all threads may call ``send``."""

    def __init__(
        self,
        name: str,
        port: int = 0,
        *,
        nameservers: Sequence[str] | bool | None = None,
        bind_address: str = "*",
        clients: ClientAllowlist = ANYONE,
        heartbeat_data: Callable[[], dict[str, Any]] | None = None,
        heartbeat: bool = True,
        ports: tuple[int, int] | None = None,
        option: str = "publish_port",
    ) -> None:
        """Bind the socket; raise StartError, with the ``option`` that sets the port, if the port is in use.

        ``nameservers``: None broadcasts the address by multicast, a list registers it with these hosts, False does
        neither. ``heartbeat_data`` returns the data of a heartbeat in addition to its interval; without
        ``heartbeat`` none is sent. Only addresses in ``clients`` can connect. ``ports`` is the range for port 0, by
        default that of posttroll's configuration.
        """
        self.name = name
        self._socket, self.port, self._monitor = sockets.bind(
            zmq.PUB,
            sockets.tcp(bind_address, port),
            {zmq.SNDHWM: sockets.HIGH_WATER_MARK, zmq.MAXMSGSIZE: MAX_SUBSCRIPTION_BYTES, **sockets.LASTING},
            ports or _configured_ports(),
            clients,
            limits=MEMORY_LIMITS,
            option=option,
        )
        self.grace = NEW_PORT_GRACE if port == 0 and nameservers is not False else SUBSCRIBER_GRACE
        """Seconds after the start in which subscribers connect: messages sent earlier may be lost."""
        self._lock = threading.Lock()
        self._average_size = 0.0  # bytes
        self._queue_limit = sockets.HIGH_WATER_MARK  # messages
        self._nameservers = nameservers
        self._heartbeat_data = heartbeat_data or dict
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        if heartbeat:
            self._threads.append(threading.Thread(target=self._heartbeat_loop, name=f"heartbeat-{name}", daemon=True))
        if nameservers is not False:
            self._threads.append(threading.Thread(target=self._advertise_loop, name=f"advertiser-{name}", daemon=True))

    def start(self) -> None:
        """Start the threads that send heartbeats and advertise the address."""
        logger.info("publishing as %s on port %d", self.name, self.port)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Close the socket; queued messages get one second to be sent, later messages are dropped."""
        self._stopped.set()
        with self._lock:
            self._socket.close()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(2.0)

    def send(self, *messages: Message) -> None:
        """Publish messages in this order without blocking; raise MessageError if one cannot be encoded."""
        self.send_encoded([message.encode() for message in messages])

    def send_encoded(self, texts: Iterable[str]) -> None:
        """Publish encoded messages in this order without blocking."""
        frames = [text.encode() for text in texts]
        with self._lock:
            if not self._socket.closed:
                self._limit_queue(frames)
                for frame in frames:
                    self._socket.send(frame)
                self._monitor.add_sent(sum(map(len, frames)))
                self._monitor.drained()  # sending has read the subscriptions

    def _limit_queue(self, frames: Sequence[bytes]) -> None:
        """Limit the queue of each subscriber to QUEUE_BYTES of messages of average size; ZeroMQ counts messages."""
        for frame in frames:
            self._average_size += (len(frame) - self._average_size) / AVERAGED_OVER
        limit = min(sockets.HIGH_WATER_MARK, int(QUEUE_BYTES / max(1.0, self._average_size)))
        if not 0.8 < limit / self._queue_limit < 1.25:
            self._queue_limit = limit
            self._socket.setsockopt(zmq.SNDHWM, limit)

    def send_heartbeat(self) -> None:
        """Send a heartbeat now; if its data cannot be built, send only the interval."""
        data: dict[str, Any] = {"min_interval": HEARTBEAT_INTERVAL}
        try:
            data |= self._heartbeat_data()
        except Exception as error:
            _log_failure(error, "cannot build heartbeat data of %s, sending a bare heartbeat: %s", self.name)
        self.send(Message(f"/heartbeat/{self.name}", "beat", data))

    def _heartbeat_loop(self) -> None:
        for delay in itertools.chain(INITIAL_HEARTBEAT_DELAYS, itertools.repeat(HEARTBEAT_INTERVAL)):
            try:
                self.send_heartbeat()
            except Exception as error:
                _log_failure(error, "cannot send a heartbeat of %s, next attempt in %.0f s: %s", self.name, delay)
            if self._stopped.wait(delay):
                return

    def _advertise_loop(self) -> None:
        warned = False
        while not self._stopped.is_set():
            try:
                self._advertise()
            except Exception as error:  # every network error may be temporary
                if not warned:
                    logger.warning(
                        "cannot advertise the address of %s to nameservers, next attempt in %.0f s: %s",
                        self.name,
                        ADVERTISE_RETRY_DELAY,
                        error,
                    )
                    warned = True
                self._stopped.wait(ADVERTISE_RETRY_DELAY)

    def _advertise(self) -> None:
        port = get_configured_broadcast_port()
        sender: _NameserverRegistration | MulticastSender = (
            _NameserverRegistration(port, self._nameservers, self._stopped.is_set)
            if isinstance(self._nameservers, Sequence)
            else MulticastSender(port)
        )
        data = {
            "URI": sockets.tcp(hosts.own_address(), self.port),
            "service": [self.name],
            "supported_message_version": NEWEST_VERSION,
            "backend": posttroll.config["backend"],
        }
        with closing(sender):
            while not self._stopped.is_set():
                next_time = time.monotonic() + ADVERTISE_INTERVAL
                sender(Message(f"/address/{self.name}", "info", data).encode())
                self._stopped.wait(max(0.0, next_time - time.monotonic()))


class _NameserverRegistration:
    """Sends an address to nameservers, each on a separate socket.

    It waits up to ADVERTISE_INTERVAL for connections, since ZeroMQ drops earlier messages; an unreachable nameserver
    does not delay the others.
    """

    def __init__(self, port: int, hosts: Sequence[str], stopped: Callable[[], bool]) -> None:
        self._stopped = stopped
        options: dict[int, int] = {zmq.LINGER: 0, zmq.IMMEDIATE: 1}  # drop messages for an unreachable nameserver
        self._sockets: list[sockets.Socket] = []
        try:
            for host in hosts:
                address = f"tcp://{host}" if ":" in host else sockets.tcp(host, port)
                self._sockets.append(sockets.connect(zmq.DEALER, address, options))
        except StartError:
            self.close()
            raise

    def __call__(self, data: str) -> None:
        poller = zmq.Poller()
        for socket in self._sockets:
            with suppress(zmq.Again):
                while True:
                    socket.recv_multipart(zmq.NOBLOCK)  # discard the reply to the previous registration
            poller.register(socket, zmq.POLLOUT)
        deadline = time.monotonic() + ADVERTISE_INTERVAL
        while poller.sockets and (left := deadline - time.monotonic()) > 0:
            for socket, _ in poller.poll(int(min(left, CONNECT_POLL) * 1000)):
                with suppress(zmq.Again):
                    socket.send_multipart([b"", data.encode()], zmq.NOBLOCK)
                    poller.unregister(socket)
            if self._stopped():
                return

    def close(self) -> None:
        for socket in self._sockets:
            socket.close()


def _configured_ports() -> tuple[int, int]:
    """Return the port range for port 0 (``POSTTROLL_PUB_MIN_PORT`` and ``..._MAX_PORT``)."""
    return int(posttroll.config.get("pub_min_port", 49152)), int(posttroll.config.get("pub_max_port", 65536))


def _log_failure(error: Exception, text: str, *arguments: object) -> None:
    """Log an error; with a traceback if it is unexpected."""
    logger.error(text, *arguments, error, exc_info=not isinstance(error, TrollmovesError))
