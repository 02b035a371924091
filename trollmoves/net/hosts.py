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
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field

import netifaces

_HOST_AND_PORT = re.compile(r"(?:[\w.-]{1,255}|\[[0-9A-Fa-f:.]{2,45}(?:%[\w.-]{1,32})?\]):([0-9]{1,5})", re.ASCII)

CACHE_TTL = 60.0  # seconds that facts about this host are cached: DHCP and DNS may change them
LOOKUP_TIMEOUT = 2.0  # seconds that a caller waits for DNS; on timeout the host counts as remote
MAX_LOOKUPS = 16  # concurrent DNS lookups
MAX_CACHED_ANSWERS = 1000  # bounds the memory when requests name many hosts
REFRESH = 10.0  # seconds between two look-ups of a name that a connection uses
FIRST_WAIT = 0.2  # seconds that the first call for a name waits for its look-up
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
    return this_host().addresses()


@functools.lru_cache(maxsize=1)
def process_resolver() -> Resolver:
    """Return the :class:`Resolver` of this process, created at the first call."""
    return Resolver()


class Resolver:
    """Resolves host names in separate threads, and keeps the last addresses while a name server does not answer.

    Thread-safe. No call waits for a name server, except the first one for a name, for at most ``FIRST_WAIT`` seconds.
    """

    def __init__(self, look_up: Callable[[str], Sequence[str]] | None = None, refresh: float = REFRESH) -> None:
        self._look_up = look_up or _look_up_addresses
        self._refresh = refresh
        self._lock = threading.Lock()
        self._names: OrderedDict[str, _Name] = OrderedDict()

    def addresses(self, name: str) -> tuple[str, ...]:
        """Return the last known addresses of a host, IPv4 first; empty if there are none yet.

        They are looked up again every ``refresh`` seconds, if they are used.
        """
        if len(name) > MAX_LENGTH:
            return ()
        with self._lock:
            known = self._names.get(name)
            is_new = known is None
            if known is None:
                known = self._names[name] = _Name()
                if len(self._names) > MAX_CACHED_ANSWERS:
                    self._names.popitem(last=False)
            if not known.is_running and time.monotonic() >= known.due:
                self._start(name, known)
        if is_new:
            known.answered.wait(FIRST_WAIT)
        return known.addresses

    def _start(self, name: str, known: _Name) -> None:
        """Start a look-up; the caller holds the lock."""
        if sum(other.is_running for other in self._names.values()) >= MAX_LOOKUPS:
            return
        known.is_running = True
        try:
            threading.Thread(target=self._run, args=(name, known), name="dns-lookup", daemon=True).start()
        except RuntimeError:  # no more threads, or the interpreter is shutting down
            known.is_running = False

    def _run(self, name: str, known: _Name) -> None:
        try:
            known.addresses = tuple(self._look_up(name)) or known.addresses
        except (OSError, UnicodeError, ValueError):
            pass  # unknown name or no name server: the last addresses stay
        finally:
            known.due = time.monotonic() + self._refresh
            known.is_running = False
            known.answered.set()


@dataclass(slots=True)
class _Name:
    """The last addresses of a name, and the look-up of the next ones."""

    addresses: tuple[str, ...] = ()
    due: float = 0.0  # monotonic, of the next look-up
    is_running: bool = False
    answered: threading.Event = field(default_factory=threading.Event)


@functools.lru_cache(maxsize=1)
def this_host() -> LocalHost:
    """Return the :class:`LocalHost` of this process, created at the first call."""
    return LocalHost()


class LocalHost:
    """Names and addresses of this host, each cached for ``lifetime`` seconds.

    Thread-safe. Each DNS lookup runs in a separate thread, once per lifetime: the caller waits for at most ``timeout``
    seconds, and not under the lock.
    """

    def __init__(
        self,
        lifetime: float = CACHE_TTL,
        timeout: float = LOOKUP_TIMEOUT,
        look_up: Callable[[str], set[str]] | None = None,
    ) -> None:
        self._lifetime = lifetime
        self._timeout = timeout
        self._look_up = look_up or _look_up
        self._lock = threading.Lock()
        self._addresses: tuple[float, list[str]] = (0.0, [])
        self._own: tuple[float, str] = (0.0, "")
        self._answers: dict[str, tuple[float, Future[bool]]] = {}

    def is_local(self, host: str | None) -> bool:
        """Return True if ``host`` is this host; never raises.

        This host is: no host, ``localhost``, the name of this host, a loopback address, an address of an interface, or
        a name that resolves to one of these. A name that cannot be resolved is remote.
        """
        name = (host or "").strip("[]").rstrip(".").lower()
        if name in ("", "localhost", "localhost.localdomain") or name.endswith(".localhost"):
            return True
        if len(name) > MAX_LENGTH:
            return False
        if _address(name):
            return self._is_own(name)
        own = socket.gethostname().lower()
        if name in (own, own.partition(".")[0]):
            return True
        return self._lookup_result(name)

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

    def addresses(self) -> list[str]:
        """Return the addresses of all interfaces."""
        return list(self._interfaces())

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

    def _lookup_result(self, name: str) -> bool:
        now = time.monotonic()
        with self._lock:
            started, answer = self._answers.get(name, (0.0, None))
            if answer is None or (now >= started + self._lifetime and answer.done()):
                started, answer = now, self._start_lookup(name, now)
        try:
            return answer.result(max(0.0, started + self._timeout - now))
        except FutureTimeout:
            return False

    def _start_lookup(self, name: str, now: float) -> Future[bool]:
        """Start a lookup and return its future; the caller holds the lock."""
        answer: Future[bool] = Future()
        if len(self._answers) >= MAX_CACHED_ANSWERS:
            self._answers = {key: value for key, value in self._answers.items() if not value[1].done()}
        if sum(not pending.done() for _, pending in self._answers.values()) >= MAX_LOOKUPS:
            answer.set_result(False)
            return answer
        self._answers[name] = (now, answer)
        try:
            threading.Thread(target=self._look_up_thread, args=(name, answer), name="dns-lookup", daemon=True).start()
        except RuntimeError:  # no more threads, or the interpreter is shutting down
            answer.set_result(False)
        return answer

    def _look_up_thread(self, name: str, answer: Future[bool]) -> None:
        local = False
        try:
            local = any(map(self._is_own, self._look_up(name))) or _is_own_fqdn(name)
        except (OSError, UnicodeError, ValueError):
            pass  # unknown name or no name server: remote
        finally:
            answer.set_result(local)


def _is_own_fqdn(name: str) -> bool:
    """Return True if ``name`` is the FQDN of this host; it is looked up only if the short names match (slow DNS)."""
    short = socket.gethostname().partition(".")[0].lower()
    return name.partition(".")[0] == short and name == socket.getfqdn().lower()


def _look_up(name: str) -> set[str]:
    return {str(info[4][0]) for info in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)}


def _look_up_addresses(name: str) -> list[str]:
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
