"""Authenticates connections to the sockets of this process (ZAP, RFC 27) and monitors them.

One authenticator per process, for its whole life: ZeroMQ allows one ZAP handler per context. Each listening socket
enforces its own ZAP domain, so that a connection can send no message before the authenticator has registered it with
the monitor of the socket, however late that is.
"""

from __future__ import annotations

import itertools
import logging
import queue
import select
import sys
import threading
import time
from dataclasses import dataclass
from functools import cache

import zmq
from zmq.utils import z85

from trollmoves.errors import StartError
from trollmoves.messaging.security import connection_monitor, curve_keys, process_memory
from trollmoves.messaging.security.connection_memory import MemoryLimits
from trollmoves.messaging.security.connection_monitor import ConnectionMonitor
from trollmoves.messaging.security.lingering import LingeringConnections
from trollmoves.messaging.wakeup import Wakeup
from trollmoves.utils.logs import LogThrottle

log = logging.getLogger(__name__)

Socket = zmq.Socket[bytes]

MIN_LIBZMQ = (4, 3, 3)  # older versions have remote vulnerabilities: CVE-2019-13132, CVE-2020-15166
MAX_QUEUED_EVENTS = 1_000  # of a listening socket: beyond, ZeroMQ's I/O thread waits for the authenticator
MAX_SOCKETS = 16_000  # of one process; ZeroMQ's own default is 1,023
KEY_RELOAD_INTERVAL = 1.0  # s; added and removed keys take effect after at most this time
MAX_ANSWERS = 50  # handshakes answered before the memory is checked
IDLE_MS = 1000
CHECK_INTERVAL_MS = 20  # between checks of the memory of connections on which data arrive
BURDENED_INTERVAL_MS = 5  # the same while many bytes are not read
RESET_INTERVAL = 1.0  # s between measurements of the usual memory of this process
MAX_GROWTH = 24_000_000  # bytes by which this memory may grow while many bytes are not read
SWITCH_INTERVAL = 0.0002  # s after which another thread continues, while a port is flooded; Python's default is 0.005
FLOOD_SECONDS = 5.0  # s after the last sign of a flood in which this is so
ERROR_DELAY = 0.1  # s after an unexpected error

_ZAP_ADDRESS = "inproc://zeromq.zap.01"
_ZAP_VERSION = b"1.0"
_ACCEPTED, _TRY_LATER, _REJECTED = b"200", b"300", b"400"  # after 300 ZeroMQ connects again


@dataclass(slots=True)
class _ClientPolicy:
    """Keys and addresses that may connect."""

    directory: str = ""  # of public keys; empty if no key is required
    addresses: frozenset[str] = frozenset()  # empty: all
    keys: frozenset[bytes] = frozenset()
    read_at: float = float("-inf")

    def rejection_reason(self, address: str, mechanism: bytes, credentials: list[bytes]) -> str:
        """Return why a connection must be rejected, or an empty string."""
        if self.addresses and address not in self.addresses:
            return "its address is not in authorized_client_addresses"
        if not self.directory:
            return ""
        if mechanism != b"CURVE" or len(credentials) != 1:
            return "it has no key"
        key = z85.encode(credentials[0])
        if self.directory == curve_keys.ANYONE or key in self._keys():
            return ""
        return f"its key {key.decode()} is not in {self.directory}"

    def _keys(self) -> frozenset[bytes]:
        if time.monotonic() - self.read_at > KEY_RELOAD_INTERVAL:
            try:
                self.keys = curve_keys.client_public_keys(self.directory)
            except OSError as error:
                log.error("cannot read client keys, rejecting all connections: %s: %s", self.directory, error.strerror)
                self.keys = frozenset()
            self.read_at = time.monotonic()
        return self.keys


class Authenticator:
    """The ZeroMQ context of a process, with the thread that authenticates and monitors connections to its servers."""

    def __init__(self) -> None:
        if zmq.zmq_version_info() < MIN_LIBZMQ:
            needed = ".".join(map(str, MIN_LIBZMQ))
            raise StartError(f"libzmq {zmq.zmq_version()} is too old: {needed} or newer is needed; update pyzmq")
        self.context = zmq.Context()
        self.context.set(zmq.MAX_SOCKETS, min(MAX_SOCKETS, int(self.context.get(zmq.SOCKET_LIMIT))))
        self._policy = _ClientPolicy()
        self._monitors: dict[Socket, ConnectionMonitor] = {}
        self._by_domain: dict[bytes, ConnectionMonitor] = {}
        self._new: queue.SimpleQueue[ConnectionMonitor] = queue.SimpleQueue()
        self._numbers = itertools.count()
        self._wakeup = Wakeup()
        self._throttle = LogThrottle(burst=1)
        self._warned: set[str] = set()
        self._zap: Socket = self.context.socket(zmq.REP)
        self._zap.bind(_ZAP_ADDRESS)
        self._poller = zmq.Poller()
        self._poller.register(self._zap, zmq.POLLIN)
        self._poller.register(self._wakeup.fileno(), zmq.POLLIN)
        self._readable = select.epoll()  # of data on the connections
        self._poller.register(self._readable.fileno(), zmq.POLLIN)
        self._lingering = LingeringConnections(self._readable)
        self._receiving = False
        self._closing = False
        self._filtering = False
        self._usual_memory = process_memory.resident_bytes()
        self._next_reset = 0.0  # monotonic
        self._was_burdened = False  # since the last reset of the memory
        self._usual_switch_interval = sys.getswitchinterval()
        self._next_check = 0.0  # monotonic
        self._flood_end = 0.0  # monotonic
        threading.Thread(target=self._run, name="authenticator", daemon=True).start()

    # -- socket creation, on any thread

    def new_server_socket(self, kind: int, most_bytes: int, limits: MemoryLimits) -> tuple[Socket, ConnectionMonitor]:
        """Return an unbound socket, secured according to posttroll's settings, and its connection monitor.

        Raise StartError if the settings are invalid.
        """
        secured = curve_keys.curve_enabled()
        pair = curve_keys.server_key_pair() if secured else None
        policy = _ClientPolicy(curve_keys.client_keys_directory() if secured else "", curve_keys.allowed_addresses())
        created: Socket = self.context.socket(kind)
        if pair:
            self._warn_readable_key("server_secret_key_file")
            created.curve_server = True
            created.curve_publickey, created.curve_secretkey = pair.public, pair.secret
        if policy.directory or policy.addresses:
            self._policy = policy
        domain = b"%d" % next(self._numbers)
        created.zap_domain = domain
        created.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        return created, ConnectionMonitor(
            self.monitor(created, connection_monitor.EVENTS, MAX_QUEUED_EVENTS),
            domain=domain,
            secured=secured,
            most_bytes=most_bytes,
            limits=limits,
            readable=self._readable,
            lingering=self._lingering,
            wake=self._wakeup.set,
        )

    def new_client_socket(self, kind: int) -> Socket:
        """Return an unconnected socket, secured according to posttroll's settings; raise StartError as above."""
        if not curve_keys.curve_enabled():
            return self.context.socket(kind)
        pair, server_key = curve_keys.client_key_pair()
        self._warn_readable_key("client_secret_key_file")
        created: Socket = self.context.socket(kind)
        created.curve_publickey, created.curve_secretkey, created.curve_serverkey = pair.public, pair.secret, server_key
        return created

    def watch(self, monitor: ConnectionMonitor, port: int) -> None:
        """Start monitoring the connections of a socket that was bound to ``port``."""
        monitor.port = port
        self._new.put(monitor)
        self._wakeup.set()

    def monitor(self, watched: Socket, events: int, most: int = 0) -> Socket:
        """Return a socket that receives the events of ``watched``; called on the thread that created ``watched``.

        ZeroMQ's I/O thread waits while more than about ``most`` events are unread; 0 is without a limit.
        """
        address = f"inproc://monitor-{next(self._numbers)}"
        watched.monitor(address, events)
        receiver: Socket = self.context.socket(zmq.PAIR)
        receiver.set(zmq.RCVHWM, most)
        receiver.set(zmq.LINGER, 0)
        receiver.connect(address)
        return receiver

    def _warn_readable_key(self, setting: str) -> None:
        path = curve_keys.readable_by_others(setting)
        if path and path not in self._warned:
            self._warned.add(path)
            log.warning("every user of this host can read the secret key in %s: chmod 600 it", path)

    # -- the authenticator's thread

    def _run(self) -> None:
        while True:
            try:
                ready = [one for one, _ in self._poller.poll(self._wait())]
                self._wakeup.clear()
                while not self._new.empty():
                    new = self._new.get()
                    self._monitors[new.monitor] = self._by_domain[new.domain] = new
                    self._poller.register(new.monitor, zmq.POLLIN)
                if self._zap in ready:
                    self._answer_zap()
                for one in ready:
                    if monitor := self._monitors.get(one):
                        self._process_monitor(monitor)
                self._check_memory()
            except zmq.ContextTerminated:
                return
            except Exception:  # bad input must neither bypass nor stop the authenticator
                log.exception("unexpected error in the authenticator")
                time.sleep(ERROR_DELAY)

    def _wait(self) -> int:
        if self._receiving:
            return self._check_interval()
        return CHECK_INTERVAL_MS if self._closing or self._filtering else IDLE_MS

    def _check_interval(self) -> int:
        return BURDENED_INTERVAL_MS if self._is_burdened() else CHECK_INTERVAL_MS

    def _is_burdened(self) -> bool:
        return any(monitor.is_burdened for monitor in self._monitors.values())

    def _check_memory(self) -> None:
        """Check the connections with new data, then wait: while data keep arriving, check at a fixed interval."""
        now = time.monotonic()
        if now >= self._next_check:
            self._check_new_data(now)
        for monitor in self._monitors.values():
            if monitor.check_due:
                monitor.check()
            if monitor.is_flooded:
                monitor.is_flooded = False
                self._flood_end = now + FLOOD_SECONDS
        self._filtering = sum(monitor.update_filter() for monitor in self._monitors.values()) > 0
        self._closing = sum(monitor.end_closing() for monitor in self._monitors.values()) > 0
        self._set_switch_interval(SWITCH_INTERVAL if now < self._flood_end else self._usual_switch_interval)
        self._lingering.close_expired()

    def _check_new_data(self, now: float) -> None:
        was_idle = not (self._receiving or self._is_burdened())
        filenos = {fileno for fileno, _ in self._readable.poll(0)}
        self._lingering.discard(filenos)
        for monitor in self._monitors.values() if filenos else ():
            monitor.on_data(filenos)
        self._check_growth(now, begins=bool(filenos) and was_idle)
        if filenos:  # otherwise the next data are checked at once: until then their descriptor remains readable
            self._next_check = now + self._check_interval() / 1000
        if bool(filenos) != self._receiving:
            self._receiving = bool(filenos)
            if self._receiving:
                self._poller.unregister(self._readable.fileno())
            else:
                self._poller.register(self._readable.fileno(), zmq.POLLIN)

    def _check_growth(self, now: float, *, begins: bool) -> None:
        """Close connections while many bytes are not read and take much more memory than their number."""
        is_due = now > self._next_reset
        if self._is_burdened() and not (begins and is_due):
            self._was_burdened = True
            if process_memory.resident_bytes() - self._usual_memory > MAX_GROWTH:
                for monitor in self._monitors.values():
                    monitor.relieve()
        elif is_due:
            if self._was_burdened:  # else the next burden could take the memory that this one has left free, unnoticed
                self._was_burdened = False
                process_memory.trim()
            self._usual_memory = process_memory.resident_bytes()
            self._next_reset = now + RESET_INTERVAL

    @staticmethod
    def _set_switch_interval(seconds: float) -> None:
        """Let this thread continue soon although others are busy: each of its calls of the kernel waits for them."""
        if sys.getswitchinterval() != seconds:
            sys.setswitchinterval(seconds)

    def _process_monitor(self, monitor: ConnectionMonitor, most: int = connection_monitor.MAX_EVENTS) -> None:
        if not monitor.process_events(most):
            self._poller.unregister(monitor.monitor)
            del self._monitors[monitor.monitor], self._by_domain[monitor.domain]
            monitor.close()

    def _admits(self, monitor: ConnectionMonitor, address: str) -> bool:
        """Return True if a connection from an address may send messages, once its bytes are counted."""
        self._process_monitor(monitor, connection_monitor.MAX_PENDING)
        return bool(address) and not monitor.refusal(address)

    def _answer_zap(self) -> None:
        """Answer the requests that wait, at most MAX_ANSWERS."""
        for _ in range(MAX_ANSWERS):
            try:
                frames = self._zap.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._answer(frames)

    def _answer(self, frames: list[bytes]) -> None:
        code, request_id, user_id = b"500", b"", b""
        try:
            _version, request_id, domain, raw_address, _identity, mechanism, *credentials = frames
            policy = self._policy
            address = raw_address.decode(errors="replace").removeprefix("::ffff:")
            monitor = self._by_domain.get(domain)
            if reason := policy.rejection_reason(address, mechanism, credentials):
                code = _REJECTED
                if (more := self._throttle.admit(address)) is not None:
                    log.warning("rejected connection from %s: %s%s", address, reason, more)
            elif monitor and not self._admits(monitor, address):
                code = _TRY_LATER
            else:
                code, user_id = _ACCEPTED, z85.encode(credentials[0]) if credentials else b""
        except Exception:
            log.exception("unexpected error while authenticating a connection")
        self._zap.send_multipart([_ZAP_VERSION, request_id, code, b"", user_id, b""])


@cache
def process_authenticator() -> Authenticator:
    """Return the authenticator of this process, created with the first socket."""
    return Authenticator()
