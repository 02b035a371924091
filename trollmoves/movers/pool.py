"""Keeps connections open for later deliveries; each is used by one delivery at a time.

``Pool`` owns the connections by key and changes them under its lock; connecting, probing and closing happen without
the lock. ``SharedHandles`` owns values that several connections share, such as the SSH login of several channels.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from trollmoves.errors import (
    ConnectionFailed,
    NoSpace,
    OriginChanged,
    PermanentTransferError,
    PermissionRefused,
    TargetBusy,
    TooManyConnections,
    TrollmovesError,
)
from trollmoves.movers.base import Backend
from trollmoves.movers.host_capabilities import CapabilityCache, HostCapabilities, Limitation

PROBE_AFTER_IDLE = 5.0  # seconds; a connection idle longer is probed before reuse
PROBE_TIMEOUT = 5.0  # seconds to wait for the reply to a probe; then a new connection is made
QUEUE_TIMEOUT = 600.0  # seconds a delivery waits for a free connection to a host
HOST_LIMIT_TTL = 600.0  # seconds until a host that rejected a connection is tried with more again
MAX_NEXT_TARGETS = 1000  # destinations with backup targets that were not all tried
MAX_STALE_PARTIALS = 1000  # per host; bounds the memory for a host that stays down
# Errors after which a connection can be reused.
KEEPS_CONNECTION = (PermanentTransferError, PermissionRefused, NoSpace, OriginChanged)

T = TypeVar("T")


class Connection(Backend):
    """A backend over a connection."""

    @abstractmethod
    def alive(self) -> bool:
        """Return True if the connection is open, without a request to the server."""

    @abstractmethod
    def probe(self) -> None:
        """Send a request; raises if the server does not reply within ``PROBE_TIMEOUT`` seconds."""

    @abstractmethod
    def close(self) -> None:
        """Close; must not raise, nor wait for the server."""


@dataclass(frozen=True)
class PoolLimits:
    """Maximum number of connections to one host, and seconds that an idle one is kept."""

    connections: int
    uptime: float


@dataclass
class Lease:
    """A connection in use; ``reused`` is True if it was open before."""

    connection: Connection
    reused: bool
    generation: int


@dataclass
class _Idle:
    connection: Connection
    since: float
    until: float


class _HostPool:
    """The idle connections to one host, and the number of those in use or being made.

    ``limit`` is the number of connections that the host accepts, until the monotonic time ``limit_until``.
    """

    def __init__(self, lock: threading.Lock) -> None:
        self.free = threading.Condition(lock)
        self.idle: list[_Idle] = []
        self.busy = 0
        self.waiting = 0
        self.stale_partials: list[str] = []
        self.limit = 0
        self.limit_until = 0.0

    @property
    def unused(self) -> bool:
        return not (self.idle or self.busy or self.waiting or self.stale_partials or self.is_limited)

    @property
    def is_limited(self) -> bool:
        return time.monotonic() < self.limit_until

    def max_busy(self, limits: PoolLimits) -> int:
        return max(1, min(self.limit, limits.connections) if self.is_limited else limits.connections)


class Pool:
    """Connections by key, and the capabilities of their hosts; any thread may call."""

    def __init__(self) -> None:
        self.capabilities = CapabilityCache()
        self._lock = threading.Lock()
        self._host_pools: dict[Hashable, _HostPool] = {}
        self._expiry = threading.Condition(self._lock)
        self._reaper: threading.Thread | None = None
        self._generation = 0
        self._next_targets: dict[Hashable, int] = {}

    def __repr__(self) -> str:
        with self._lock:
            idle = sum(len(host_pool.idle) for host_pool in self._host_pools.values())
            busy = sum(host_pool.busy for host_pool in self._host_pools.values())
            return f"<Pool: {len(self._host_pools)} hosts, {idle} idle, {busy} in use>"

    @contextmanager
    def lease(
        self,
        key: Hashable,
        connect: Callable[[], Connection],
        limits: PoolLimits,
        host: HostCapabilities | None = None,
    ) -> Iterator[Lease]:
        """Yield an idle connection, or a new one made by ``connect``.

        After the block it is kept for later deliveries, or closed if an error left it in an unknown state. If the host
        rejects a connection with ``TooManyConnections`` while others are open, this delivery waits for one of those,
        and no more are made for ``HOST_LIMIT_TTL`` seconds; ``host`` records that.

        Raises:
            TargetBusy: none became free within ``QUEUE_TIMEOUT`` seconds.
            TooManyConnections: the host rejects a connection although none of ``key`` is open.
            TrollmovesError: raised by ``connect``.
        """
        lease = self._acquire(key, connect, limits, host)
        keep = False
        try:
            yield lease
            keep = True
        except KEEPS_CONNECTION:
            keep = lease.connection.alive()
            raise
        finally:
            self._release(key, lease, limits, keep=keep)

    def close(self) -> None:
        """Close idle connections now and busy ones on release; the pool stays usable."""
        with self._lock:
            self._generation += 1
            idle_connections = [idle.connection for host_pool in self._host_pools.values() for idle in host_pool.idle]
            for host_pool in self._host_pools.values():
                host_pool.idle.clear()
                host_pool.stale_partials.clear()
            self._forget_unused()
            reaper = self._reaper
            self._expiry.notify_all()
        for connection in idle_connections:
            connection.close()
        if reaper is not None and reaper is not threading.current_thread():
            reaper.join()

    def close_idle(self, selects: Callable[[Any], bool]) -> None:
        """Close the idle connections of the keys for which ``selects`` returns True."""
        with self._lock:
            host_pools = [host_pool for key, host_pool in self._host_pools.items() if selects(key)]
            idle_connections = [idle.connection for host_pool in host_pools for idle in host_pool.idle]
            for host_pool in host_pools:
                host_pool.idle.clear()
        for connection in idle_connections:
            connection.close()

    def remember_stale_partial(self, key: Hashable, path: str) -> None:
        """Store a partial that could not be removed, for the next delivery to this host."""
        with self._lock:
            paths = self._host_pool(key).stale_partials
            if len(paths) < MAX_STALE_PARTIALS:
                paths.append(path)

    def take_stale_partials(self, key: Hashable) -> list[str]:
        """Return the stored partials of ``key`` and clear the list."""
        with self._lock:
            host_pool = self._host_pools.get(key)
            if host_pool is None or not host_pool.stale_partials:
                return []
            paths, host_pool.stale_partials = host_pool.stale_partials, []
            return paths

    def set_next_target(self, key: Hashable, number: int) -> None:
        """Store the number of the target with which the next delivery to ``key`` begins."""
        with self._lock:
            self._next_targets[key] = number
            if len(self._next_targets) > MAX_NEXT_TARGETS:
                del self._next_targets[next(iter(self._next_targets))]

    def take_next_target(self, key: Hashable) -> int:
        """Return the stored number of a target and forget it; 0 without one."""
        with self._lock:
            return self._next_targets.pop(key, 0)

    def _host_pool(self, key: Hashable) -> _HostPool:
        host_pool = self._host_pools.get(key)
        if host_pool is None:
            host_pool = self._host_pools[key] = _HostPool(self._lock)
        return host_pool

    def _forget_unused(self) -> None:
        for key in [key for key, host_pool in self._host_pools.items() if host_pool.unused]:
            del self._host_pools[key]

    def _acquire(
        self, key: Hashable, connect: Callable[[], Connection], limits: PoolLimits, host: HostCapabilities | None
    ) -> Lease:
        deadline = time.monotonic() + QUEUE_TIMEOUT
        while True:
            idle, generation = self._acquire_slot(key, limits, deadline)
            if idle is not None and _usable(idle):
                return Lease(idle.connection, True, generation)
            if idle is not None:
                idle.connection.close()
                self._release_slot(key)
                continue
            try:
                return Lease(connect(), False, generation)
            except BaseException as error:
                self._release_slot(key)
                if not isinstance(error, TooManyConnections) or not self._limit_to_open(key):
                    raise
            if host is not None:
                host.record(Limitation.FEW_CONNECTIONS)

    def _limit_to_open(self, key: Hashable) -> bool:
        """Make no more connections than those that are open or being made; return False without any."""
        with self._lock:
            host_pool = self._host_pools.get(key)
            count = host_pool.busy + len(host_pool.idle) if host_pool else 0
            if host_pool and count:
                host_pool.limit, host_pool.limit_until = count, time.monotonic() + HOST_LIMIT_TTL
            return count > 0

    def _acquire_slot(self, key: Hashable, limits: PoolLimits, deadline: float) -> tuple[_Idle | None, int]:
        """Return an idle connection, or None if a new one may be made; count it as busy."""
        with self._lock:
            host_pool = self._host_pool(key)
            while not host_pool.idle and host_pool.busy >= host_pool.max_busy(limits):
                host_pool.waiting += 1
                try:
                    if not host_pool.free.wait(deadline - time.monotonic()):
                        raise TargetBusy(
                            f"all {host_pool.busy} connections to the host are in use; see max_connections"
                        )
                finally:
                    host_pool.waiting -= 1
            host_pool.busy += 1
            return (host_pool.idle.pop() if host_pool.idle else None), self._generation

    def _release_slot(self, key: Hashable) -> None:
        with self._lock:
            host_pool = self._host_pools[key]
            host_pool.busy -= 1
            host_pool.free.notify()
            if host_pool.unused:
                del self._host_pools[key]

    def _release(self, key: Hashable, lease: Lease, limits: PoolLimits, *, keep: bool) -> None:
        with self._lock:
            if keep and limits.uptime > 0 and lease.generation == self._generation:
                host_pool = self._host_pools[key]
                now = time.monotonic()
                host_pool.idle.append(_Idle(lease.connection, now, now + limits.uptime))
                host_pool.busy -= 1
                host_pool.free.notify()
                self._start_reaper()
                return
        lease.connection.close()
        self._release_slot(key)

    def _start_reaper(self) -> None:
        if self._reaper is None:
            self._reaper = threading.Thread(target=self._reap, name="connection-reaper", daemon=True)
            self._reaper.start()

    def _reap(self) -> None:
        """Close idle connections when they expire; return when none is left."""
        while True:
            with self._lock:
                expired = self._expired(time.monotonic())
                deadlines = [idle.until for host_pool in self._host_pools.values() for idle in host_pool.idle]
                if not expired and not deadlines:
                    self._reaper = None
                    return
                if not expired:
                    self._expiry.wait(max(0.01, min(deadlines) - time.monotonic()))
            for connection in expired:
                connection.close()

    def _expired(self, now: float) -> list[Connection]:
        expired = []
        for host_pool in self._host_pools.values():
            expired += [idle.connection for idle in host_pool.idle if idle.until <= now]
            host_pool.idle = [idle for idle in host_pool.idle if idle.until > now]
        self._forget_unused()
        return expired


def _usable(idle: _Idle) -> bool:
    if not idle.connection.alive():
        return False
    if time.monotonic() - idle.since < PROBE_AFTER_IDLE:
        return True
    try:
        idle.connection.probe()
    except (OSError, TrollmovesError):
        return False
    return True


def shared_pool() -> Pool:
    """Return the pool of this process; a forked child gets a new one, as processes cannot share a connection."""
    return _pool_of(os.getpid())


@functools.lru_cache(maxsize=1)
def _pool_of(process: int) -> Pool:  # noqa: ARG001  (the key)
    return Pool()


@dataclass(eq=False)
class SharedHandle(Generic[T]):
    """One value with several users: ``value`` is available, or raises, when ``future`` is done."""

    key: Hashable
    future: Future[T] = field(default_factory=Future)
    users: int = 1
    full: bool = False

    @property
    def value(self) -> T:
        """The shared value."""
        return self.future.result(0)


class SharedHandles(Generic[T]):
    """Values that several connections share, by key: made once, closed by the last user. Any thread may call."""

    def __init__(self, close: Callable[[T], None], alive: Callable[[T], bool], users: int) -> None:
        self._lock = threading.Lock()
        self._handles: dict[Hashable, list[SharedHandle[T]]] = {}
        self._close = close
        self._alive = alive
        self._users = users

    def acquire(
        self, key: Hashable, make: Callable[[], T], timeout: float, *, exclusive: bool = False
    ) -> SharedHandle[T]:
        """Return a handle with room for one more user, made by ``make`` if there is none.

        Concurrent callers wait up to ``timeout`` seconds for the first one, so that a host that is down gets one
        attempt to connect. With ``exclusive`` the handle is new and gets no other users.
        """
        with self._lock:
            handle, new = self._find(key, exclusive=exclusive)
        if new:
            self._make(handle, make)
        try:
            handle.future.result(timeout)
        except BaseException as error:
            self.release(handle)
            if isinstance(error, TrollmovesError):
                raise type(error)(*error.args) from error
            if not handle.future.done():
                raise ConnectionFailed(f"another thread did not connect within {timeout:g} s") from error
            raise
        return handle

    def release_full(self, handle: SharedHandle[T]) -> None:
        """Release ``handle`` and add no more users to it."""
        handle.full = True
        self.release(handle)

    def release(self, handle: SharedHandle[T]) -> None:
        """End one use; close the value after the last one."""
        with self._lock:
            handle.users -= 1
            if handle.users:
                return
            self._handles[handle.key].remove(handle)
            if not self._handles[handle.key]:
                del self._handles[handle.key]
        with suppress(Exception):  # ``value`` raises if it was never made
            self._close(handle.value)

    def _find(self, key: Hashable, *, exclusive: bool) -> tuple[SharedHandle[T], bool]:
        for handle in () if exclusive else self._handles.get(key, ()):
            if handle.users < self._users and not handle.full and self._is_usable(handle):
                handle.users += 1
                return handle, False
        handle = SharedHandle(key, full=exclusive)
        self._handles.setdefault(key, []).append(handle)
        return handle, True

    def _is_usable(self, handle: SharedHandle[T]) -> bool:
        if not handle.future.done():
            return True
        return handle.future.exception() is None and self._alive(handle.value)

    def _make(self, handle: SharedHandle[T], make: Callable[[], T]) -> None:
        try:
            handle.future.set_result(make())
        except BaseException as error:
            handle.future.set_exception(error)
