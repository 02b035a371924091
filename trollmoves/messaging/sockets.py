"""ZeroMQ sockets, secured and bounded alike, as posttroll's settings say."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, overload

import posttroll
import zmq

from trollmoves.errors import StartError
from trollmoves.messaging.security import authenticator, curve_keys, handshake_errors
from trollmoves.messaging.security.access import accept_filters
from trollmoves.net.client_allowlist import ANYONE, ClientAllowlist

Socket = zmq.Socket[bytes]
Options = Mapping[int, int] | Mapping[zmq.SocketOption, int]

HIGH_WATER_MARK = 100_000  # a peer, on each side of a publication; ZeroMQ drops what is beyond
HEARTBEAT = 5_000  # ms between pings on a connection
HEARTBEAT_TIMEOUT = 15_000  # ms without a word of the peer after which a connection is dropped, and made anew
CONNECT_TIMEOUT = 5_000  # ms for a connection to come about; the kernel would try for two minutes, ever more seldom
HANDSHAKE = 10_000  # ms that a connection may take to be made
RECONNECT = 100  # ms before the first try to connect again
RECONNECT_MAX = 500  # ms between such tries: a publisher that comes back waits a second for those who hear it
BIND_TIMEOUT = 0.5  # s
LINGER = 1_000  # ms that a closing socket may use for what it has not sent yet
LARGEST_MESSAGE = 64 * 1024 * 1024  # bytes; whoever sends more is disconnected
PORTS = (49152, 65536)  # to take a free one from

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

_NOW = int(zmq.NOBLOCK)
_EVENTS, _READABLE = int(zmq.EVENTS), int(zmq.POLLIN)
_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)

# What a wrong address, or a key that is none, come to.
SOCKET_ERRORS = (zmq.ZMQBaseError, OSError, ValueError, OverflowError)


def is_readable(socket: Socket) -> bool:
    """Tell whether a message waits: to be told by ``Again`` that none does takes four times as long."""
    return bool(int(socket.get(_EVENTS)) & _READABLE)


def connect(kind: int, address: str, options: Options | None = None) -> Socket:
    """Give a socket that connects, and stays connected, to ``address`` (``tcp://host:port``).

    StartError when the address is none, or posttroll's settings do not allow for a socket.
    """
    return _connected(kind, address, options)[0]


def connect_monitored(kind: int, address: str, options: Options | None = None) -> tuple[Socket, ConnectionWatcher]:
    """Do as ``connect``, and tell whether the socket gets in. The lookout is to be closed before the socket."""
    return _connected(kind, address, options, look=True)


@overload
def _connected(
    kind: int, address: str, options: Options | None, *, look: Literal[True]
) -> tuple[Socket, ConnectionWatcher]: ...
@overload
def _connected(kind: int, address: str, options: Options | None) -> tuple[Socket, None]: ...
def _connected(
    kind: int, address: str, options: Options | None, *, look: bool = False
) -> tuple[Socket, ConnectionWatcher | None]:
    again = {
        zmq.RECONNECT_IVL: RECONNECT,
        zmq.RECONNECT_IVL_MAX: RECONNECT_MAX,
        zmq.CONNECT_TIMEOUT: CONNECT_TIMEOUT,
    }
    the_gate = authenticator.process_authenticator()
    socket = None
    try:
        socket = the_gate.new_client_socket(kind)
        _set(socket, _options(address) | again | dict(options or {}))
        lookout = ConnectionWatcher(socket, the_gate) if look else None
        try:
            socket.connect(address)
        except Exception:
            if lookout:
                lookout.close()
            raise
    except (*SOCKET_ERRORS, StartError) as error:
        if socket:
            socket.close(0)
        raise StartError(f"cannot connect to {address}: {_told(error)}") from error
    return socket, lookout


def bind(
    kind: int,
    address: str,
    options: Options | None = None,
    ports: tuple[int, int] | None = None,
    clients: ClientAllowlist = ANYONE,
) -> tuple[Socket, int]:
    """Give a socket bound to ``address`` and its port; port 0 takes a free one, within ``ports`` when given.

    A port that is taken is waited for ``REBIND`` seconds: ZeroMQ gives back that of a closed socket a little later.
    Connections from addresses that are not among the ``clients`` are closed at once.
    StartError when it is still taken then, the address is not this host's, or posttroll's settings are wrong.
    """
    wanted = _options(address) | dict(options or {})
    filters = accept_filters(clients, ipv6=bool(wanted.get(zmq.IPV6)))
    deadline = time.monotonic() + BIND_TIMEOUT
    while True:
        try:
            return _bound(kind, address, wanted, ports or PORTS, filters)
        except (*SOCKET_ERRORS, StartError) as error:
            if getattr(error, "errno", 0) != zmq.EADDRINUSE or time.monotonic() > deadline:
                raise StartError(f"cannot listen on {address}: {_told(error)}") from error
            time.sleep(0.02)


def _bound(
    kind: int, address: str, options: dict[int, int], ports: tuple[int, int], filters: Sequence[bytes]
) -> tuple[Socket, int]:
    the_gate = authenticator.process_authenticator()
    socket, door = the_gate.new_server_socket(kind, options[zmq.MAXMSGSIZE])
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
        door.close()
        socket.close(0)
        raise
    the_gate.watch(door, port)
    return socket, port


def send(socket: Socket, frames: Sequence[bytes]) -> None:
    """Send one message of several frames, without waiting: zmq.Again when there is no room for it.

    ``send_multipart`` takes twice as long: it looks at each frame, and puts its flags together for each.
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
    """Give what posttroll's settings say about keeping TCP connections alive."""
    found: dict[int, int] = {}
    for name in ("tcp_keepalive", "tcp_keepalive_cnt", "tcp_keepalive_idle", "tcp_keepalive_intvl"):
        value = posttroll.config.get(name, None)
        if value is not None:
            found[getattr(zmq, name.upper())] = int(value)
    return found


def _told(error: Exception) -> str:
    return zmq.strerror(error.errno or 0) if isinstance(error, zmq.ZMQError) else str(error)


def tcp(host: str, port: int) -> str:
    """Give the ZeroMQ address of a host and port; an IPv6 address is put in brackets."""
    return f"tcp://[{host}]:{port}" if ":" in host and not host.startswith("[") else f"tcp://{host}:{port}"


class ConnectionWatcher:
    """Tells whether a connecting socket gets in; the thread that uses the socket asks, and closes it."""

    def __init__(self, socket: Socket, the_gate: authenticator.Authenticator) -> None:
        self._socket = socket
        self._secured = curve_keys.curve_enabled()
        self._in_vain = 0  # tries since the last connection
        self._got_in = 0
        self._monitor = the_gate.monitor(socket, handshake_errors.FAILURES | int(zmq.EVENT_HANDSHAKE_SUCCEEDED))

    def failure(self) -> ConnectFailure | None:
        """Give what has kept the socket from being connected since the last look, None when nothing has.

        The other side may hang up once since it ends just then: that is none.
        """
        found = None
        while True:
            try:
                event, value = handshake_errors.parse_event(self._monitor.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return found if found and (found.permanent or self._in_vain > 1) else None
            if not event & handshake_errors.FAILURES:
                found, self._in_vain = None, 0
                self._got_in += 1
                continue
            self._in_vain += 1
            why = handshake_errors.explain_for_client(handshake_errors.classify(event, value), secured=self._secured)
            found = ConnectFailure(why, permanent=bool(event & handshake_errors.PERMANENT))

    def new_connections(self) -> int:
        """Tell how often the socket has come to be connected, as ``trouble`` saw it, since this was asked last."""
        got_in, self._got_in = self._got_in, 0
        return got_in

    def close(self) -> None:
        """Look no more."""
        self._socket.disable_monitor()  # first: ZeroMQ's own thread would wait for ever for somebody to tell
        self._monitor.close()


@dataclass(frozen=True, slots=True)
class ConnectFailure:
    """Why a socket does not get in."""

    reason: str
    permanent: bool  # ZeroMQ will not try again with this socket
