"""Host names: canonical form, detection of this host, and the address to advertise."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import re
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import netifaces

_HOST_AND_PORT = re.compile(r"(?:[\w.-]{1,255}|\[[0-9A-Fa-f:.]{2,45}(?:%[\w.-]{1,32})?\]):([0-9]{1,5})", re.ASCII)

CACHE_TTL = 60.0  # seconds that facts about this host are cached: DHCP and DNS may change them
LOOKUP_TIMEOUT = 2.0  # seconds that a caller waits for the first answer; without it the host counts as remote
MAX_LOOKUPS = 16  # concurrent DNS lookups
MAX_CACHED_ANSWERS = 1000  # bounds the memory when requests name many hosts
REFRESH = 10.0  # seconds between two look-ups of a name that a connection uses
FIRST_WAIT = 0.2  # seconds after the first call for a name in which callers wait for its addresses
CACHE_SIZE = 1000  # parsed addresses; few distinct ones are in use
MAX_LENGTH = 255  # characters of a host name or address


def canonical(name: str) -> str:
    """Return the canonical form of a host: an address as ``ipaddress`` formats it, a name in lower case."""
    name = name.strip("[]").rstrip(".").lower()
    return _address(name) or name if len(name) <= MAX_LENGTH else name


def is_address(name: str) -> bool:
    """Return True if a host is an IP address."""
    return len(name) <= MAX_LENGTH and bool(_address(name.strip("[]")))


def is_host_and_port(text: str) -> bool:
    """Return True if ``text`` is a host name or an address, an IPv6 address in brackets, then a colon and a port."""
    match = _HOST_AND_PORT.fullmatch(text)
    return bool(match and 0 < int(match[1]) < 65536)


def is_local(host: str | None) -> bool:
    """Return True if ``host`` is this host; see :meth:`LocalHost.is_local`."""
    return this_host().is_local(host)


def own_address() -> str:
    """Return the address to advertise for this host; see :meth:`LocalHost.address`."""
    return this_host().address()


def own_addresses() -> list[str]:
    """Return the addresses of the interfaces of this host."""
    return list(_interface_addresses())


@functools.lru_cache(maxsize=1)
def process_resolver() -> Resolver:
    """Return the :class:`Resolver` of this process, created at the first call."""
    return Resolver()


class Resolver:
    """Resolves host names in separate threads, and keeps the last addresses while a name server does not answer.

    Thread-safe. Calls only wait for the first addresses of a name, until ``first_wait`` seconds after the first call.
    """

    def __init__(
        self,
        look_up: Callable[[str], Sequence[str]] | None = None,
        refresh: float = REFRESH,
        first_wait: float = FIRST_WAIT,
    ) -> None:
        self._look_up = look_up or _look_up
        self._refresh = refresh
        self._first_wait = first_wait
        self._lock = threading.Lock()
        self._names: OrderedDict[str, _Name] = OrderedDict()
        self._running = 0  # look-ups, also of names that are forgotten

    def addresses(self, name: str) -> tuple[str, ...]:
        """Return the last known addresses of a host, IPv4 first; empty if there are none yet.

        They are looked up again every ``refresh`` seconds, if they are used.
        """
        if len(name) > MAX_LENGTH:
            return ()
        now = time.monotonic()
        with self._lock:
            known = self._names.get(name)
            if known is None:
                known = self._names[name] = _Name()
                if len(self._names) > MAX_CACHED_ANSWERS:
                    self._names.popitem(last=False)
            if not known.is_running and now >= known.due:
                self._start(name, known, now)
        if known.is_running:
            known.answered.wait(max(0.0, known.started + self._first_wait - now))
        return known.addresses

    def _start(self, name: str, known: _Name, now: float) -> None:
        """Start a look-up; the caller holds the lock."""
        if self._running >= MAX_LOOKUPS:
            return
        try:
            threading.Thread(target=self._run, args=(name, known), name="dns-lookup", daemon=True).start()
        except RuntimeError:  # no more threads, or the interpreter is shutting down
            return
        known.is_running, known.started = True, now
        self._running += 1

    def _run(self, name: str, known: _Name) -> None:
        try:
            known.addresses = tuple(self._look_up(name)) or known.addresses
        except (OSError, UnicodeError, ValueError):
            pass  # unknown name or no name server: the last addresses stay
        finally:
            with self._lock:
                known.due = time.monotonic() + self._refresh
                known.is_running = False
                self._running -= 1
            known.answered.set()


@dataclass(slots=True)
class _Name:
    """The last addresses of a name, and the look-up of the next ones."""

    addresses: tuple[str, ...] = ()
    due: float = 0.0  # monotonic, of the next look-up
    started: float = 0.0  # monotonic, of the last look-up
    is_running: bool = False
    answered: threading.Event = field(default_factory=threading.Event)  # by the first look-up


@functools.lru_cache(maxsize=1)
def this_host() -> LocalHost:
    """Return the :class:`LocalHost` of this process, created at the first call."""
    return LocalHost()


class LocalHost:
    """Names and addresses of this host, each cached for ``lifetime`` seconds. Thread-safe.

    A caller waits for DNS for at most ``timeout`` seconds, and only at the first look-up of a name.
    """

    def __init__(
        self,
        lifetime: float = CACHE_TTL,
        timeout: float = LOOKUP_TIMEOUT,
        look_up: Callable[[str], Sequence[str]] | None = None,
    ) -> None:
        self._lifetime = lifetime
        self._look_up = look_up or _look_up
        self._resolver = Resolver(self._look_up_own, lifetime, timeout)
        self._lock = threading.Lock()
        self._addresses: tuple[float, list[str]] = (0.0, [])
        self._own: tuple[float, str] = (0.0, "")

    def is_local(self, host: str | None) -> bool:
        """Return True if ``host`` is this host; never raises.

        This host is: no host, ``localhost``, the name of this host, a loopback address, an address of an interface, or
        a name that resolves to one of these. A name that was never resolved is remote.
        """
        name = (host or "").strip("[]").rstrip(".").lower()
        if name in ("", "localhost", "localhost.localdomain") or name.endswith(".localhost"):
            return True
        if len(name) > MAX_LENGTH:
            return False
        if _address(name):
            return self._is_own(name)
        own = socket.gethostname().lower()
        return name in (own, own.partition(".")[0]) or any(map(self._is_own, self._resolver.addresses(name)))

    def address(self) -> str:
        """Return the IPv4 address to advertise: on the default route's interface, else the best other one."""
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
            probe.connect(("8.8.8.8", 80))  # looks up the route; connecting a datagram socket sends nothing
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

    def _look_up_own(self, name: str) -> Sequence[str]:
        """Return the addresses of a host, with a loopback address if its name is the FQDN of this host."""
        found = self._look_up(name)
        return (*found, "127.0.0.1") if not any(map(self._is_own, found)) and _is_own_fqdn(name) else found


def _is_own_fqdn(name: str) -> bool:
    """Return True if ``name`` is the FQDN of this host; it is looked up only if the short names match (slow DNS)."""
    short = socket.gethostname().partition(".")[0].lower()
    return name.partition(".")[0] == short and name == socket.getfqdn().lower()


def _look_up(name: str) -> list[str]:
    """Return the addresses of a host, IPv4 first."""
    found = [str(info[4][0]) for info in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)]
    return sorted(dict.fromkeys(found), key=lambda address: ":" in address)


def _interface_addresses() -> Iterator[str]:
    for interface in netifaces.interfaces():
        with contextlib.suppress(ValueError, OSError):  # the interface has been removed
            found = netifaces.ifaddresses(interface)
            for family in (netifaces.AF_INET, netifaces.AF_INET6):
                yield from filter(None, (_address(entry.get("addr", "")) for entry in found.get(family, [])))


@functools.lru_cache(maxsize=CACHE_SIZE)
def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


@functools.lru_cache(maxsize=CACHE_SIZE)
def _address(text: str) -> str:
    """Return the canonical form of an IP address, without a zone; empty if ``text`` is not an address."""
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return ""
    return str(getattr(found, "ipv4_mapped", None) or found)
