"""Creates ZeroMQ sockets with the same bounds, secured according to posttroll's settings."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import posttroll
import zmq

from trollmoves.errors import StartError
from trollmoves.messaging.security import authenticator, curve_keys, handshake_errors
from trollmoves.messaging.security.access import accept_filters
from trollmoves.messaging.security.connection_memory import MemoryLimits
from trollmoves.messaging.security.connection_monitor import ConnectionMonitor
from trollmoves.net import hosts
from trollmoves.net.client_allowlist import ANYONE, ClientAllowlist
from trollmoves.net.ports import listen_remedy

Socket = zmq.Socket[bytes]
T = TypeVar("T")
Options = Mapping[int, int] | Mapping[zmq.SocketOption, int]

HIGH_WATER_MARK = 100_000  # messages per peer, on each side of a publication; ZeroMQ drops further ones
HEARTBEAT = 5_000  # ms between pings on a connection
HEARTBEAT_TIMEOUT = 15_000  # ms without data from the peer before a connection is closed and reopened
CONNECT_TIMEOUT = 5_000  # ms for connecting; the kernel would try for two minutes, with growing pauses
HANDSHAKE = 10_000  # ms for the handshake
RECONNECT = 100  # ms before the first attempt to reconnect
RECONNECT_MAX = 500  # ms between attempts: a restarted publisher waits a second for its subscribers
BIND_TIMEOUT = 0.5  # s
LINGER = 1_000  # ms in which a closing socket may send its queue
LARGEST_MESSAGE = 64 * 1024 * 1024  # bytes; the sender of a larger message is disconnected
PORTS = (49152, 65536)  # range for free ports

_OPTIONS: dict[int, int] = {
    zmq.LINGER: LINGER,
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 30,
    zmq.TCP_KEEPALIVE_INTVL: 10,
    zmq.TCP_KEEPALIVE_CNT: 3,
    zmq.HEARTBEAT_IVL: HEARTBEAT,
    zmq.HEARTBEAT_TIMEOUT: HEARTBEAT_TIMEOUT,
    zmq.HEARTBEAT_TTL: HEARTBEAT_TIMEOUT,  # peers that send no pings themselves notice a dead connection through ours
    zmq.HANDSHAKE_IVL: HANDSHAKE,
    zmq.MAXMSGSIZE: LARGEST_MESSAGE,
}

NEXT_ADDRESS = 10.0  # s before the next address of a name is tried
# The queue for a subscriber that does not ping is kept through an interruption: no pings, and TCP gives up late.
LASTING: dict[int, int] = {zmq.HEARTBEAT_IVL: 0, zmq.TCP_MAXRT: 300_000}  # ms

_WATCHED = handshake_errors.FAILURES | int(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
_NOW = int(zmq.NOBLOCK)
_EVENTS, _READABLE = int(zmq.EVENTS), int(zmq.POLLIN)
_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)

# Errors of invalid addresses and keys.
SOCKET_ERRORS = (zmq.ZMQBaseError, OSError, ValueError, OverflowError)


def is_readable(socket: Socket) -> bool:
    """Return True if a message can be received; receiving with ``Again`` for none takes four times as long."""
    return bool(int(socket.get(_EVENTS)) & _READABLE)


def connect(kind: int, address: str, options: Options | None = None) -> Socket:
    """Return a socket that connects, and reconnects, to ``address`` (``tcp://host:port``).

    Raise StartError if the address is invalid, or posttroll's settings allow no socket.
    """
    return _connected(kind, address, options, lambda socket: socket.connect(address))[0]


def connect_monitored(kind: int, address: str, options: Options | None = None) -> tuple[Socket, ConnectionWatcher]:
    """Return a socket as ``connect`` does, and a watcher, which must be closed before the socket.

    The watcher resolves a host name, connects the socket once there is an address, and follows the name when it moves.
    ZeroMQ would resolve it on the thread that serves all connections.
    """
    return _connected(kind, address, options, lambda socket: ConnectionWatcher(socket, address))


def _connected(kind: int, address: str, options: Options | None, connect: Callable[[Socket], T]) -> tuple[Socket, T]:
    """Return a new socket, and what ``connect`` returns for it."""
    reconnect = {
        zmq.RECONNECT_IVL: RECONNECT,
        zmq.RECONNECT_IVL_MAX: RECONNECT_MAX,
        zmq.CONNECT_TIMEOUT: CONNECT_TIMEOUT,
    }
    security = authenticator.process_authenticator()
    socket = None
    try:
        if not address.startswith("tcp://") or not hosts.is_host_and_port(address.removeprefix("tcp://")):
            # ZeroMQ's other addresses reach sockets of this process or this host, or bind a source address.
            raise StartError("the address must be tcp://host:port")
        socket = security.new_client_socket(kind)
        _set(socket, _options(address) | reconnect | dict(options or {}))
        return socket, connect(socket)
    except (*SOCKET_ERRORS, StartError) as error:
        if socket:
            socket.close(0)
        raise StartError(f"cannot connect to {address}: {_error_text(error)}") from error


def bind(
    kind: int,
    address: str,
    options: Options | None = None,
    ports: tuple[int, int] | None = None,
    clients: ClientAllowlist = ANYONE,
    *,
    limits: MemoryLimits,
    option: str = "the port",
) -> tuple[Socket, int, ConnectionMonitor]:
    """Return a socket bound to ``address``, its port, and the monitor that enforces ``limits``.

    Port 0 chooses a free one, within ``ports`` if given.

    A port in use is retried for ``BIND_TIMEOUT`` seconds: ZeroMQ releases that of a closed socket with a delay.
    Connections from addresses that are not among the ``clients`` are closed on accept. Raise StartError if the port
    stays in use, the address is not one of this host, or posttroll's settings are invalid; its text names ``option``,
    with which an operator changes the port.
    """
    all_options = _options(address) | dict(options or {})
    filters = accept_filters(clients, ipv6=bool(all_options.get(zmq.IPV6)))
    deadline = time.monotonic() + BIND_TIMEOUT
    while True:
        try:
            return _bound(kind, address, all_options, ports or PORTS, filters, limits)
        except (*SOCKET_ERRORS, StartError) as error:
            number = getattr(error, "errno", None)
            if number != zmq.EADDRINUSE or time.monotonic() > deadline:
                reason = f"{_error_text(error)}{listen_remedy(number, option)}"
                raise StartError(f"cannot listen on {address}: {reason}") from error
            time.sleep(0.02)


def _bound(
    kind: int,
    address: str,
    options: dict[int, int],
    ports: tuple[int, int],
    filters: Sequence[bytes],
    limits: MemoryLimits,
) -> tuple[Socket, int, ConnectionMonitor]:
    security = authenticator.process_authenticator()
    socket, monitor = security.new_server_socket(kind, options[zmq.MAXMSGSIZE], limits)
    try:
        _set(socket, options)
        for one in filters:
            socket.setsockopt(zmq.TCP_ACCEPT_FILTER, one)
        host, _, port_text = address.rpartition(":")
        port = int(port_text)
        if port:
            socket.bind(address)
        else:
            port = socket.bind_to_random_port(host, min_port=ports[0], max_port=ports[1])
    except Exception:
        socket.disable_monitor()
        monitor.close()
        socket.close(0)
        raise
    security.watch(monitor, port)
    return socket, port, monitor


def send(socket: Socket, frames: Sequence[bytes]) -> None:
    """Send one message of several frames without blocking; raise zmq.Again if the queue is full.

    ``send_multipart`` takes twice as long: it checks each frame and its flags.
    """
    for frame in frames[:-1]:
        socket.send(frame, _MORE)
    socket.send(frames[-1], _NOW)


def _set(socket: Socket, options: Options) -> None:
    for option, value in options.items():
        socket.setsockopt(option, value)


def _options(address: str) -> dict[int, int]:
    return _OPTIONS | _configured_keepalive() | ({zmq.IPV6: 1} if "[" in address else {})


def _configured_keepalive() -> dict[int, int]:
    """Return the TCP keepalive options of posttroll's settings."""
    found: dict[int, int] = {}
    for name in ("tcp_keepalive", "tcp_keepalive_cnt", "tcp_keepalive_idle", "tcp_keepalive_intvl"):
        value = posttroll.config.get(name, None)
        if value is not None:
            found[getattr(zmq, name.upper())] = int(value)
    return found


def _error_text(error: Exception) -> str:
    return zmq.strerror(error.errno or 0) if isinstance(error, zmq.ZMQError) else str(error)


def tcp(host: str, port: int) -> str:
    """Return the ZeroMQ address of a host and port, with an IPv6 address in brackets."""
    return f"tcp://[{host}]:{port}" if ":" in host and not host.startswith("[") else f"tcp://{host}:{port}"


def _host_name(address: str) -> str:
    """Return the host name in ``tcp://host:port``; empty if the host is an IP address."""
    host = address.removeprefix("tcp://").rpartition(":")[0]
    return "" if hosts.is_address(host) else host


class ConnectionWatcher:
    """Connects a client socket and watches its attempts; used and closed by the socket's thread.

    A socket with a host name is connected when an address of the name is known: ``failure`` looks for one.
    """

    def __init__(self, socket: Socket, address: str) -> None:
        self._socket = socket
        self._address = address
        self._host = _host_name(address)  # "" for an IP address
        self._target = ""  # the address to which the socket connects, without a name
        self._next_target = 0.0  # monotonic; another address is tried then
        self._secured = curve_keys.curve_enabled()
        self._attempts = 0  # attempts since the last connection
        self._connected = 0
        self.is_connected = False  # as of the last call of ``failure``
        self._monitor = authenticator.process_authenticator().monitor(socket, _WATCHED)
        try:
            if self._host:
                self._follow_name()
            else:
                socket.connect(address)
        except Exception:
            self.close()
            raise

    @property
    def unresolved(self) -> str:
        """The host name if no address of it is known, else an empty text."""
        return "" if self._target else self._host

    def _follow_name(self) -> None:
        """Unless connected, connect to the address of the name; if it has several, to the next one after a while."""
        now = time.monotonic()
        addresses = hosts.process_resolver().addresses(self._host)
        if not addresses or self.is_connected:
            return
        targets = [tcp(one, int(self._address.rpartition(":")[2])) for one in addresses]
        known = targets.index(self._target) if self._target in targets else -1
        target = targets[(known + 1) % len(targets)]
        if target == self._target or (known >= 0 and now < self._next_target):
            return
        if self._target:
            self._socket.disconnect(self._target)
        if "[" in target:
            self._socket.setsockopt(zmq.IPV6, 1)
        self._socket.connect(target)
        self._target, self._next_target = target, now + NEXT_ADDRESS

    def failure(self) -> ConnectFailure | None:
        """Return the failure to connect since the last call, or None.

        A single disconnect is ignored: the server may be stopping.
        """
        if self._host:
            self._follow_name()
        found = ConnectFailure(f"the name server has no address of {self.unresolved}") if self.unresolved else None
        while received := handshake_errors.next_event(self._monitor):
            event, value = received
            self.is_connected = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
            if self.is_connected:
                found, self._attempts = None, 0
                self._connected += 1
            elif event != zmq.EVENT_DISCONNECTED:
                self._attempts += 1
                error = handshake_errors.classify(event, value)
                reason = handshake_errors.explain_for_client(error, secured=self._secured)
                found = ConnectFailure(reason, permanent=bool(event & handshake_errors.PERMANENT))
        return found if found and (found.permanent or self._attempts > 1 or self.unresolved) else None

    def new_connections(self) -> int:
        """Return the number of connections that ``failure`` saw since the last call."""
        count, self._connected = self._connected, 0
        return count

    def close(self) -> None:
        """Stop watching."""
        self._socket.disable_monitor()  # first, or ZeroMQ's I/O thread would block on the full monitor
        self._monitor.close()


@dataclass(frozen=True, slots=True)
class ConnectFailure:
    """The reason why a socket cannot connect."""

    reason: str
    permanent: bool = False  # ZeroMQ does not retry with this socket
