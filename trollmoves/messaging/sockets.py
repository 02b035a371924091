"""ZeroMQ sockets, made by posttroll so that its settings and its security hold for every one of them."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress

import zmq
from posttroll.backends.zmq import get_context
from posttroll.backends.zmq import socket as posttroll_socket
from posttroll.backends.zmq.socket import set_up_client_socket, set_up_server_socket

from trollmoves.allowed_clients import ANYONE, Clients
from trollmoves.errors import StartError
from trollmoves.messaging.admission import accept_filters

Socket = zmq.Socket[bytes]

MESSAGES_HELD = 100_000  # a peer, on each side of a publication; ZeroMQ drops what is beyond
MOST_SOCKETS = 16_000  # of one process; ZeroMQ's own default is 1,023
HEARTBEAT = 5_000  # ms between pings on a connection
HEARTBEAT_TIMEOUT = 15_000  # ms without a word of the peer after which a connection is dropped, and made anew
CONNECT_TIMEOUT = 5_000  # ms for a connection to come about; the kernel would try for two minutes, ever more seldom
RECONNECT = 100  # ms before the first try to connect again
RECONNECT_MOST = 500  # ms between such tries: a publisher that comes back waits a second for those who hear it
REBIND = 0.5  # s
LINGER = 1_000  # ms that a closing socket may use for what it has not sent yet
LARGEST_MESSAGE = 64 * 1024 * 1024  # bytes; whoever sends more is disconnected

_OPTIONS: dict[int, int] = {
    zmq.LINGER: LINGER,
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 30,
    zmq.TCP_KEEPALIVE_INTVL: 10,
    zmq.TCP_KEEPALIVE_CNT: 3,
    zmq.HEARTBEAT_IVL: HEARTBEAT,
    zmq.HEARTBEAT_TIMEOUT: HEARTBEAT_TIMEOUT,
    zmq.HEARTBEAT_TTL: HEARTBEAT_TIMEOUT,  # peers that send no pings themselves notice a dead connection through ours
    zmq.MAXMSGSIZE: LARGEST_MESSAGE,
}


# What a wrong address, or wrong settings of posttroll's security, come to; older versions of it raise KeyError.
_TROUBLES = (zmq.ZMQBaseError, OSError, ValueError, getattr(posttroll_socket, "ConfigurationError", KeyError), KeyError)


def _make_room() -> None:
    context = get_context()
    if context.get(zmq.MAX_SOCKETS) < MOST_SOCKETS:
        context.set(zmq.MAX_SOCKETS, min(MOST_SOCKETS, context.get(zmq.SOCKET_LIMIT)))


def connect(kind: int, address: str, options: dict[int, int] | None = None) -> Socket:
    """Give a socket that connects, and stays connected, to ``address`` (``tcp://host:port``).

    StartError when the address is none, or posttroll's settings do not allow for a socket.
    """
    _make_room()
    again = {
        zmq.RECONNECT_IVL: RECONNECT,
        zmq.RECONNECT_IVL_MAX: RECONNECT_MOST,
        zmq.CONNECT_TIMEOUT: CONNECT_TIMEOUT,
    }
    try:
        socket: Socket = set_up_client_socket(kind, address, _options(address) | again | (options or {}))
    except _TROUBLES as error:
        raise StartError(f"cannot connect to {address}: {_told(error)}") from error
    return socket


def bind(
    kind: int,
    address: str,
    options: dict[int, int] | None = None,
    ports: tuple[int, int] | None = None,
    clients: Clients = ANYONE,
) -> tuple[Socket, int]:
    """Give a socket bound to ``address`` and its port; port 0 takes a free one, within ``ports`` when given.

    A port that is taken is waited for ``REBIND`` seconds: ZeroMQ gives back that of a closed socket a little later.
    Connections from addresses that are not among the ``clients`` are closed at once.
    StartError when it is still taken then, the address is not this host's, or posttroll's settings are wrong.
    """
    _make_room()
    options = _options(address) | (options or {})
    deadline = time.monotonic() + REBIND
    while True:
        try:
            filters = accept_filters(clients, ipv6=bool(options.get(zmq.IPV6)))
            socket, port = _bound(kind, address, options, ports or (49152, 65536), filters)
        except _TROUBLES as error:
            if getattr(error, "errno", 0) != zmq.EADDRINUSE or time.monotonic() > deadline:
                raise StartError(f"cannot listen on {address}: {_told(error)}") from error
            time.sleep(0.02)
        else:
            return socket, port


def _bound(
    kind: int, address: str, options: dict[int, int], ports: tuple[int, int], filters: list[bytes]
) -> tuple[Socket, int]:
    if not filters:
        socket, port, _ = set_up_server_socket(kind, address, options, ports)
        return socket, port
    # posttroll makes and binds in one step, and takes each option once; what is bound later heeds the filters.
    socket, _, _ = set_up_server_socket(kind, "tcp://127.0.0.1:0", options, ports)
    try:
        socket.unbind(socket.getsockopt_string(zmq.LAST_ENDPOINT))
        for one in filters:
            socket.setsockopt(zmq.TCP_ACCEPT_FILTER, one)
        return socket, posttroll_socket.bind(socket, address, ports)
    except BaseException:
        socket.close(0)
        raise


def _options(address: str) -> dict[int, int]:
    return _OPTIONS | {zmq.IPV6: 1} if "[" in address else _OPTIONS


def _told(error: Exception) -> str:
    if isinstance(error, zmq.ZMQError):
        return zmq.strerror(error.errno or 0)
    return f"posttroll's setting {error} is missing" if isinstance(error, KeyError) else str(error)


def tcp(host: str, port: int) -> str:
    """Give the ZeroMQ address of a host and port; an IPv6 address is put in brackets."""
    return f"tcp://[{host}]:{port}" if ":" in host and not host.startswith("[") else f"tcp://{host}:{port}"


class Bell:
    """Wakes a thread that polls sockets: any thread rings, the polling one silences."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._ringing = False
        self._closing = threading.Lock()  # what is written must not reach whoever gets the descriptor next

    def fileno(self) -> int:
        """Give the descriptor to poll for reading."""
        return self._fd

    def ring(self) -> None:
        """Wake the polling thread; cheap when it was rung already."""
        if not self._ringing:
            self._ringing = True
            with self._closing:
                if self._fd >= 0:
                    os.eventfd_write(self._fd, 1)

    def silence(self) -> None:
        """Hear the bell: call it before looking at what it was rung for."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._fd)
        self._ringing = False

    def close(self) -> None:
        """Give the descriptor back; from now on ringing does nothing."""
        with self._closing:
            if self._fd >= 0:
                os.close(self._fd)
            self._fd = -1
