"""A TCP proxy that cuts, stalls, slows down and counts."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections import Counter

from trollmoves.tests.servers.process import HOST, PROXY_HOST

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close by a reset
_NEVER = 1 << 62
_BUFFER = 1 << 16  # bytes that a connection may hold: they pass also after a reset, at the rate of the proxy


class Proxy:
    """Passes connections to ``PROXY_HOST`` on to ``HOST``, port by port; a ``with`` block starts and ends it.

    ``sent`` counts the bytes from clients to servers since the last ``arm``, ``connections`` those
    ever made, by port.
    """

    def __init__(self, *ports: int) -> None:
        self.ports = ports
        self.connections: Counter[int] = Counter()  # by port
        self.sent = 0
        self.rate = 0.0  # bytes a second from clients to servers, 0 for no bound
        self._cut_at = _NEVER
        self._stall_at = _NEVER
        self._lock = threading.Lock()
        self._listeners: list[socket.socket] = []
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._healthy = threading.Event()
        self._healthy.set()

    def __enter__(self) -> Proxy:
        """Listen."""
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        """End all connections."""
        self.refuse()
        self.heal()
        self.cut()

    @property
    def open(self) -> int:
        """Return the number of open connections."""
        with self._lock:
            return len(self._pairs)

    def listen(self) -> None:
        """Accept connections."""
        for port in self.ports:
            listener = socket.create_server((PROXY_HOST, port), backlog=64)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            self._listeners.append(listener)
            threading.Thread(target=self._accept, args=(listener, port), name="proxy", daemon=True).start()

    def refuse(self) -> None:
        """Accept no more connections; open ones stay open."""
        for listener in self._listeners:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self._listeners.clear()

    def cut_after(self, count: int) -> None:
        """Reset all connections, once, when ``count`` more bytes have been sent."""
        with self._lock:
            self.sent, self._cut_at = 0, count

    def stall_after(self, count: int) -> None:
        """Stop forwarding in both directions after ``count`` more bytes, until ``heal`` is called."""
        with self._lock:
            self.sent, self._stall_at = 0, count

    def heal(self) -> None:
        """Pass all on again."""
        with self._lock:
            self._cut_at = self._stall_at = _NEVER
        self.rate = 0.0
        self._healthy.set()

    def cut(self) -> None:
        """Reset all connections now."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RD)  # wakes the thread that is blocked in recv
                end.close()

    def _accept(self, listener: socket.socket, port: int) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            self.connections[port] += 1
            try:
                server = socket.create_connection((HOST, port), 5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair = (client, server)
            with self._lock:
                self._pairs.append(pair)
            for source, target, counted in ((client, server, True), (server, client, False)):
                arguments = (pair, source, target, counted)
                threading.Thread(target=self._pass_on, args=arguments, name="proxy", daemon=True).start()

    def _pass_on(
        self, pair: tuple[socket.socket, socket.socket], source: socket.socket, target: socket.socket, counted: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(8192):
                if counted:
                    data = self._counted(data)
                self._healthy.wait()
                if self.rate and counted:
                    time.sleep(len(data) / self.rate)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
            if counted:
                return  # the other direction may continue
        self._end(pair)

    def _counted(self, data: bytes) -> bytes:
        with self._lock:
            self.sent += len(data)
            cut = self.sent > self._cut_at
            if self.sent > self._stall_at:
                self._healthy.clear()
            if cut:
                self._cut_at = _NEVER
        if cut:
            self.cut()
            raise ConnectionResetError
        return data

    def _end(self, pair: tuple[socket.socket, socket.socket]) -> None:
        with self._lock:
            if pair in self._pairs:
                self._pairs.remove(pair)
        for end in pair:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
