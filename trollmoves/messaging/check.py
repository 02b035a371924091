"""Checks that a publisher can be reached."""

from __future__ import annotations

import time

import zmq

from trollmoves.errors import StartError
from trollmoves.messaging import sockets

CONNECT_TIMEOUT = 5.0  # s
POLL_INTERVAL = 50  # ms


def check_publisher(address: str) -> str:
    """Connect to ``tcp://host:port``; return ``ok``, or raise StartError with the reason why it cannot be reached."""
    socket, watcher = sockets.connect_monitored(zmq.SUB, address)
    try:
        deadline = time.monotonic() + CONNECT_TIMEOUT
        while time.monotonic() < deadline:
            failure = watcher.failure()
            if watcher.is_connected:
                return "ok, connected"
            if failure:
                raise StartError(failure.reason)
            socket.poll(POLL_INTERVAL)
        raise StartError(
            f"no connection within {CONNECT_TIMEOUT:.0f} s: check that it runs there, and that no firewall blocks it"
        )
    finally:
        watcher.close()
        socket.close(0)
