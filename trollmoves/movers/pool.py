"""Keeps connections open for the next delivery, each in one hand at a time.

``Pool`` owns the connections by key and is the only one who decides under its lock; connecting, probing and closing
happen outside. ``Trunks`` owns what several connections may share, as the one login of several SSH channels.
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
from typing import Generic, TypeVar

from trollmoves.errors import (
    ConnectionFailed,
    NoSpace,
    OriginChanged,
    PermanentTransferError,
    PermissionRefused,
    TargetBusy,
    TrollmovesError,
)
from trollmoves.movers.base import Backend

PROBE_AFTER_IDLE = 5.0  # seconds idle after which a connection is asked before it is used
PROBE_TIMEOUT = 5.0  # seconds a far end has for its sign of life, after which a new connection is made
QUEUE_TIMEOUT = 600.0  # seconds a delivery waits for one of the connections to a host
MAX_STALE_PARTIALS = 1000  # partials remembered a host, so that a host that stays away cannot fill the memory
# Errors after which a connection is as good as before.
KEEPS_CONNECTION = (PermanentTransferError, PermissionRefused, NoSpace, OriginChanged)

T = TypeVar("T")


class Connection(Backend):
    """A far end that one is connected to."""

    @abstractmethod
    def alive(self) -> bool:
        """Tell, without asking the far end, whether the connection still stands."""

    @abstractmethod
    def probe(self) -> None:
        """Ask the far end for a sign of life; raises when there is none within ``PROBE_TIMEOUT`` seconds."""

    @abstractmethod
    def close(self) -> None:
        """Close; never raises, nor waits for a far end that does not answer."""


@dataclass(frozen=True)
class PoolLimits:
    """How many connections to one host there may be, and for how many seconds an idle one is kept."""

    connections: int
    uptime: float


@dataclass
class Lease:
    """A connection in one hand; ``reused`` when it was open before."""

    connection: Connection
    reused: bool
    generation: int


@dataclass
class _Idle:
    connection: Connection
    since: float
    until: float


class _HostPool:
    """The connections to one host: the idle ones, and how many are in a hand or being made."""

    def __init__(self, lock: threading.Lock) -> None:
        self.free = threading.Condition(lock)
        self.idle: list[_Idle] = []
        self.busy = 0
        self.waiting = 0
        self.debris: list[str] = []

    @property
    def unused(self) -> bool:
        return not (self.idle or self.busy or self.waiting or self.debris)


class Pool:
    """Connections by key; any thread may ask for one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stations: dict[Hashable, _HostPool] = {}
        self._expiry = threading.Condition(self._lock)
        self._reaper: threading.Thread | None = None
        self._generation = 0

    def __repr__(self) -> str:
        with self._lock:
            idle = sum(len(station.idle) for station in self._stations.values())
            busy = sum(station.busy for station in self._stations.values())
            return f"<Pool: {len(self._stations)} hosts, {idle} idle, {busy} in use>"

    @contextmanager
    def lease(self, key: Hashable, connect: Callable[[], Connection], limits: PoolLimits) -> Iterator[Lease]:
        """Hand out a connection for the block, an open one or else a new one by ``connect``.

        After an error that may have left it in any state it is closed, and else kept for the next one.

        Raises:
            TargetBusy: none became free within ``QUEUE_TIMEOUT`` seconds.
            TrollmovesError: what ``connect`` raises.
        """
        lease = self._acquire(key, connect, limits)
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
        """Close what is idle, and let what is in use be closed when it is given back; the pool can be used on."""
        with self._lock:
            self._generation += 1
            leftover = [idle.connection for station in self._stations.values() for idle in station.idle]
            for station in self._stations.values():
                station.idle.clear()
                station.debris.clear()
            self._forget_unused()
            reaper = self._reaper
            self._expiry.notify_all()
        for connection in leftover:
            connection.close()
        if reaper is not None and reaper is not threading.current_thread():
            reaper.join()

    def close_idle(self, key: Hashable) -> None:
        """Close the idle connections of ``key``, as one of them was found dead."""
        with self._lock:
            station = self._stations.get(key)
            leftover = [idle.connection for idle in station.idle] if station else []
            if station:
                station.idle.clear()
        for connection in leftover:
            connection.close()

    def remember_stale_partial(self, key: Hashable, path: str) -> None:
        """Note a partial that could not be removed, for the next one who has a connection there."""
        with self._lock:
            debris = self._station(key).debris
            if len(debris) < MAX_STALE_PARTIALS:
                debris.append(path)

    def take_stale_partials(self, key: Hashable) -> list[str]:
        """Return the partials noted for ``key``, and forget them."""
        with self._lock:
            station = self._stations.get(key)
            if station is None or not station.debris:
                return []
            debris, station.debris = station.debris, []
            return debris

    def _station(self, key: Hashable) -> _HostPool:
        station = self._stations.get(key)
        if station is None:
            station = self._stations[key] = _HostPool(self._lock)
        return station

    def _forget_unused(self) -> None:
        for key in [key for key, station in self._stations.items() if station.unused]:
            del self._stations[key]

    def _acquire(self, key: Hashable, connect: Callable[[], Connection], limits: PoolLimits) -> Lease:
        deadline = time.monotonic() + QUEUE_TIMEOUT
        while True:
            idle, generation = self._acquire_slot(key, limits, deadline)
            if idle is None:
                break
            if _usable(idle):
                return Lease(idle.connection, True, generation)
            idle.connection.close()
            self._release_slot(key)
        try:
            return Lease(connect(), False, generation)
        except BaseException:
            self._release_slot(key)
            raise

    def _acquire_slot(self, key: Hashable, limits: PoolLimits, deadline: float) -> tuple[_Idle | None, int]:
        """Return an idle connection, or None when a new one may be made; either counts as busy from now on."""
        with self._lock:
            station = self._station(key)
            while not station.idle and station.busy >= max(1, limits.connections):
                station.waiting += 1
                try:
                    if not station.free.wait(deadline - time.monotonic()):
                        raise TargetBusy(f"all {limits.connections} connections to the host stay in use")
                finally:
                    station.waiting -= 1
            station.busy += 1
            return (station.idle.pop() if station.idle else None), self._generation

    def _release_slot(self, key: Hashable) -> None:
        with self._lock:
            station = self._stations[key]
            station.busy -= 1
            station.free.notify()
            if station.unused:
                del self._stations[key]

    def _release(self, key: Hashable, lease: Lease, limits: PoolLimits, *, keep: bool) -> None:
        with self._lock:
            if keep and limits.uptime > 0 and lease.generation == self._generation:
                station = self._stations[key]
                now = time.monotonic()
                station.idle.append(_Idle(lease.connection, now, now + limits.uptime))
                station.busy -= 1
                station.free.notify()
                self._start_reaper()
                return
        lease.connection.close()
        self._release_slot(key)

    def _start_reaper(self) -> None:
        if self._reaper is None:
            self._reaper = threading.Thread(target=self._reap, name="connection-reaper", daemon=True)
            self._reaper.start()

    def _reap(self) -> None:
        """Close idle connections when their time is up, as long as there are any."""
        while True:
            with self._lock:
                expired = self._expired(time.monotonic())
                following = [idle.until for station in self._stations.values() for idle in station.idle]
                if not expired and not following:
                    self._reaper = None
                    return
                if not expired:
                    self._expiry.wait(max(0.01, min(following) - time.monotonic()))
            for connection in expired:
                connection.close()

    def _expired(self, now: float) -> list[Connection]:
        found = []
        for station in self._stations.values():
            found += [idle.connection for idle in station.idle if idle.until <= now]
            station.idle = [idle for idle in station.idle if idle.until > now]
        self._forget_unused()
        return found


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
    """Return the pool of this process; a forked child has one of its own, as a connection cannot serve two."""
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
