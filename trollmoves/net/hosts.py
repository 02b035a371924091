"""Hosts: how they are spelled, which of them is this one, and where others reach it."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout

import netifaces

CACHE_TTL = 60.0  # seconds for which an answer about this host holds: an address may move by DHCP, names by DNS
LOOKUP_TIMEOUT = 2.0  # seconds a caller waits for a name server; without an answer a host counts as another one
MAX_LOOKUPS = 16  # name look-ups under way at one time, and
MAX_CACHED_ANSWERS = 1000  # answers kept, so that requests naming many hosts cannot fill the process
CACHE_SIZE = 1000  # addresses of which it is remembered what they mean; the same few come again and again


def canonical(name: str) -> str:
    """Return the one spelling of a host: an address as the ``ipaddress`` module has it, a name in lower case."""
    name = name.strip("[]").rstrip(".").lower()
    return _address(name) or name


def is_address(name: str) -> bool:
    """Tell whether a host is an IP address."""
    return bool(_address(name.strip("[]")))


def is_local(host: str | None) -> bool:
    """Tell whether ``host`` is this host; see :meth:`LocalHost.is_here`."""
    return this_host().is_local(host)


def own_address() -> str:
    """Return the address under which others can reach this host; see :meth:`LocalHost.address`."""
    return this_host().address()


@functools.lru_cache(maxsize=1)
def this_host() -> LocalHost:
    """Return the one :class:`LocalHost` of this process, made when first asked for."""
    return LocalHost()


class LocalHost:
    """What is known about this host's names and addresses, each fact for ``lifetime`` seconds.

    Any thread may ask. A host that has to be looked up is looked up once in a lifetime, in a thread of its own: who
    asks waits for ``timeout`` seconds at most, and nobody waits under the lock.
    """

    def __init__(
        self,
        lifetime: float = CACHE_TTL,
        patience: float = LOOKUP_TIMEOUT,
        look_up: Callable[[str], set[str]] | None = None,
    ) -> None:
        self._lifetime = lifetime
        self._patience = patience
        self._look_up = look_up or _look_up
        self._lock = threading.Lock()
        self._addresses: tuple[float, list[str]] = (0.0, [])
        self._own: tuple[float, str] = (0.0, "")
        self._answers: dict[str, tuple[float, Future[bool]]] = {}

    def is_local(self, host: str | None) -> bool:
        """Tell whether ``host`` means this host.

        That is: no host, ``localhost``, this host's name, a loopback address, an address of one of its interfaces, or
        a name that stands for one of these. Never raises; a name that cannot be looked up is another host's.
        """
        name = (host or "").strip("[]").rstrip(".").lower()
        if name in ("", "localhost", "localhost.localdomain") or name.endswith(".localhost"):
            return True
        if _address(name):
            return self._is_own(name)
        own = socket.gethostname().lower()
        if name in (own, own.partition(".")[0]):
            return True
        return self._lookup_result(name)

    def address(self) -> str:
        """Return the IPv4 address to advertise: that of the default route's interface, else the best other one."""
        with self._lock:
            until, found = self._own
        if time.monotonic() < until:
            return found
        found = next(self._candidates(), "127.0.0.1")
        with self._lock:
            self._own = (time.monotonic() + self._lifetime, found)
        return found

    def _candidates(self) -> Iterator[str]:
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("8.8.8.8", 80))  # asks the routing table; a datagram socket sends nothing by this
            yield probe.getsockname()[0]
        own = [text for text in self._interfaces() if ":" not in text and not ipaddress.ip_address(text).is_loopback]
        with contextlib.suppress(OSError, UnicodeError):
            yield from (text for text in [socket.gethostbyname(socket.gethostname())] if text in own)
        yield from own

    def _interfaces(self) -> list[str]:
        with self._lock:
            until, found = self._addresses
        if time.monotonic() < until:
            return found
        found = list(_interface_addresses())
        with self._lock:
            self._addresses = (time.monotonic() + self._lifetime, found)
        return found

    def _is_own(self, text: str) -> bool:
        address = _address(text)
        return bool(address) and (_is_loopback(address) or address in self._interfaces())

    def _lookup_result(self, name: str) -> bool:
        now = time.monotonic()
        with self._lock:
            asked, answer = self._answers.get(name, (0.0, None))
            if answer is None or (now >= asked + self._lifetime and answer.done()):
                asked, answer = now, self._start_lookup(name, now)
        try:
            return answer.result(max(0.0, asked + self._patience - now))
        except FutureTimeout:
            return False

    def _start_lookup(self, name: str, now: float) -> Future[bool]:
        """Start a look-up and return its answer to be; the caller holds the lock."""
        answer: Future[bool] = Future()
        if len(self._answers) >= MAX_CACHED_ANSWERS:
            self._answers = {key: value for key, value in self._answers.items() if not value[1].done()}
        if sum(not pending.done() for _, pending in self._answers.values()) >= MAX_LOOKUPS:
            answer.set_result(False)
            return answer
        self._answers[name] = (now, answer)
        try:
            threading.Thread(target=self._look_up_thread, args=(name, answer), name="look-up", daemon=True).start()
        except RuntimeError:  # no more threads, or the process is about to end
            answer.set_result(False)
        return answer

    def _look_up_thread(self, name: str, answer: Future[bool]) -> None:
        here = False
        try:
            here = any(map(self._is_own, self._look_up(name))) or _is_own_fqdn(name)
        except (OSError, UnicodeError, ValueError):
            pass  # no such name, or no name server: another host
        finally:
            answer.set_result(here)


def _is_own_fqdn(name: str) -> bool:
    """Tell whether this host calls itself ``name``; its own look-up can be slow, so only when it may be so."""
    short = socket.gethostname().partition(".")[0].lower()
    return name.partition(".")[0] == short and name == socket.getfqdn().lower()


def _look_up(name: str) -> set[str]:
    return {str(info[4][0]) for info in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)}


def _interface_addresses() -> Iterator[str]:
    for interface in netifaces.interfaces():
        with contextlib.suppress(ValueError, OSError):  # it went away meanwhile
            found = netifaces.ifaddresses(interface)
            for family in (netifaces.AF_INET, netifaces.AF_INET6):
                yield from filter(None, (_address(entry.get("addr", "")) for entry in found.get(family, [])))


@functools.lru_cache(maxsize=CACHE_SIZE)
def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


@functools.lru_cache(maxsize=CACHE_SIZE)
def _address(text: str) -> str:
    """Return the one spelling of an IP address, without a zone; empty when ``text`` is none."""
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return ""
    return str(getattr(found, "ipv4_mapped", None) or found)
