"""Decides who may connect to the sockets of this process, and watches over those who do.

A process has one gate, for as long as it lives: ZeroMQ asks one handler a context (ZAP, RFC 27) about everyone who
connects to a secured socket. Our sockets have a domain that must be asked about, so without the gate nobody gets in.
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from dataclasses import dataclass
from functools import cache

import zmq
from zmq.utils import z85

from trollmoves.messaging.security import connection_monitor, curve_keys
from trollmoves.messaging.security.connection_monitor import ConnectionMonitor
from trollmoves.messaging.wakeup import Wakeup
from trollmoves.utils.logs import LogThrottle

log = logging.getLogger(__name__)

Socket = zmq.Socket[bytes]

MAX_SOCKETS = 16_000  # of one process; ZeroMQ's own default is 1,023
KEY_RELOAD_INTERVAL = (
    1.0  # s between looks at the keys, at most: who is added may connect then, who is removed no longer
)
ERROR_DELAY = 0.1  # s after an error that nobody foresaw

_DOMAIN = b"*"
_ZAP_ADDRESS = "inproc://zeromq.zap.01"
_ZAP_VERSION = b"1.0"


@dataclass(slots=True)
class _ClientPolicy:
    """Who may connect."""

    directory: str = ""  # of public keys; empty when none is needed
    addresses: frozenset[str] = frozenset()  # empty when any will do
    keys: frozenset[bytes] = frozenset()
    read_at: float = float("-inf")

    def rejection_reason(self, address: str, mechanism: bytes, credentials: list[bytes]) -> str:
        """Give why somebody may not come in; empty when it may."""
        if self.addresses and address not in self.addresses:
            return "its address is none of authorized_client_addresses"
        if not self.directory:
            return ""
        if mechanism != b"CURVE" or len(credentials) != 1:
            return "it has no key"
        key = z85.encode(credentials[0])
        if self.directory == curve_keys.ANYONE or key in self._keys():
            return ""
        return f"its key {key.decode()} is none of those in {self.directory}"

    def _keys(self) -> frozenset[bytes]:
        if time.monotonic() - self.read_at > KEY_RELOAD_INTERVAL:
            try:
                self.keys = curve_keys.client_public_keys(self.directory)
            except OSError as error:
                log.error("nobody can be let in: %s: %s", self.directory, error.strerror)
                self.keys = frozenset()
            self.read_at = time.monotonic()
        return self.keys


class Authenticator:
    """The ZeroMQ context of a process, and the one thread that watches over its listening sockets."""

    def __init__(self) -> None:
        self.context = zmq.Context()
        self.context.set(zmq.MAX_SOCKETS, min(MAX_SOCKETS, int(self.context.get(zmq.SOCKET_LIMIT))))
        self._guests = _ClientPolicy()
        self._doors: dict[Socket, ConnectionMonitor] = {}
        self._new: queue.SimpleQueue[ConnectionMonitor] = queue.SimpleQueue()
        self._numbers = itertools.count()
        self._bell = Wakeup()
        self._seldom = LogThrottle(burst=1)
        self._warned: set[str] = set()
        self._zap: Socket = self.context.socket(zmq.REP)
        self._zap.bind(_ZAP_ADDRESS)
        self._poller = zmq.Poller()
        self._poller.register(self._zap, zmq.POLLIN)
        self._poller.register(self._bell.fileno(), zmq.POLLIN)
        threading.Thread(target=self._run, name="authenticator", daemon=True).start()

    # -- for those who make sockets, on any thread

    def new_server_socket(self, kind: int, most_bytes: int) -> tuple[Socket, ConnectionMonitor]:
        """Give a socket that is secured as posttroll's settings say, not bound yet, and its door.

        StartError when the settings are wrong.
        """
        secured = curve_keys.curve_enabled()
        pair = curve_keys.server_key_pair() if secured else None
        guests = _ClientPolicy(curve_keys.client_keys_directory() if secured else "", curve_keys.allowed_addresses())
        made: Socket = self.context.socket(kind)
        if pair:
            self._warn_readable_key("server_secret_key_file")
            made.curve_server = True
            made.curve_publickey, made.curve_secretkey = pair.public, pair.secret
        if guests.directory or guests.addresses:
            self._guests = guests
            made.zap_domain = _DOMAIN
            made.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        return made, ConnectionMonitor(
            self.monitor(made, connection_monitor.EVENTS), secured=secured, most_bytes=most_bytes
        )

    def new_client_socket(self, kind: int) -> Socket:
        """Give a socket that is secured as posttroll's settings say, not connected yet. StartError as above."""
        if not curve_keys.curve_enabled():
            return self.context.socket(kind)
        pair, theirs = curve_keys.client_key_pair()
        self._warn_readable_key("client_secret_key_file")
        made: Socket = self.context.socket(kind)
        made.curve_publickey, made.curve_secretkey, made.curve_serverkey = pair.public, pair.secret, theirs
        return made

    def watch(self, door: ConnectionMonitor, port: int) -> None:
        """Watch over a socket from now on; it was bound to a port."""
        door.port = port
        self._new.put(door)
        self._bell.set()

    def monitor(self, watched: Socket, events: int) -> Socket:
        """Give the socket on which ZeroMQ tells what happens to another one; the thread that made that one calls."""
        address = f"inproc://monitor-{next(self._numbers)}"
        watched.monitor(address, events)
        told: Socket = self.context.socket(zmq.PAIR)
        told.set(zmq.RCVHWM, 0)  # were it full, ZeroMQ's own thread would wait
        told.set(zmq.LINGER, 0)
        told.connect(address)
        return told

    def _warn_readable_key(self, setting: str) -> None:
        path = curve_keys.readable_by_others(setting)
        if path and path not in self._warned:
            self._warned.add(path)
            log.warning("every user of this host can read the secret key in %s: chmod 600 it", path)

    # -- the gate's own thread

    def _run(self) -> None:
        while True:
            try:
                ready = [one for one, _ in self._poller.poll(int(1000 * KEY_RELOAD_INTERVAL))]
                self._bell.clear()
                if self._zap in ready:
                    self._answer_zap()
                for one in ready:
                    if one in self._doors:
                        self._process_monitor(one)
                while not self._new.empty():
                    door = self._new.get()
                    self._doors[door.monitor] = door
                    self._poller.register(door.monitor, zmq.POLLIN)
            except zmq.ContextTerminated:
                return
            except Exception:  # nothing that anybody sends opens the gate, or closes it
                log.exception("unexpected error at the gate")
                time.sleep(ERROR_DELAY)

    def _process_monitor(self, monitor: Socket) -> None:
        door = self._doors[monitor]
        if not door.process_events():
            self._poller.unregister(monitor)
            del self._doors[monitor]
            door.close()

    def _answer_zap(self) -> None:
        frames = self._zap.recv_multipart()
        code, who = b"500", b""
        try:
            _version, _request, _domain, raw_address, _identity, mechanism, *credentials = frames
            guests = self._guests
            address = raw_address.decode(errors="replace").removeprefix("::ffff:")
            refusal = guests.rejection_reason(address, mechanism, credentials)
            code = b"400" if refusal else b"200"
            who = b"" if refusal or not credentials else z85.encode(credentials[0])
            if refusal and (more := self._seldom.admit(address)) is not None:
                log.warning("%s did not get in: %s%s", address, refusal, more)
        except Exception:
            log.exception("unexpected error with somebody who wants to connect")
        self._zap.send_multipart([_ZAP_VERSION, frames[1], code, b"", who, b""])


@cache
def process_authenticator() -> Authenticator:
    """Give the gate of this process; made when the first socket is."""
    return Authenticator()
