"""Deliveries to other hosts: over a kept connection, and to a backup target when the first does not answer."""

from __future__ import annotations

import functools
import logging
import random
import time
from abc import abstractmethod
from collections.abc import Hashable, Iterator
from typing import NamedTuple
from urllib.parse import ParseResult

from trollmoves.errors import BadDestination, ConnectionFailed, TransferError, TransferStalled
from trollmoves.movers import options
from trollmoves.movers.base import Backend, Mover, SourceFile, translate_os_errors
from trollmoves.movers.pool import Connection, Lease, Pool, PoolLimits, shared_pool
from trollmoves.net import urls

LOG = logging.getLogger(__name__)
RETRY_DELAY = 0.3  # seconds before the second try to connect, doubled before each further one


class Endpoint(NamedTuple):
    """Whom to connect to, as whom. Never printed: it holds the password."""

    scheme: str
    host: str
    port: int | None
    user: str | None
    password: str | None

    def __repr__(self) -> str:
        return f"<Login {self.scheme}://{self.host}>"


class RemoteMover(Mover):
    """Delivers to another host; a protocol says how to ``connect``."""

    tries = 1
    """How often a connection is tried that is refused or reset, before the next backup target is."""

    @abstractmethod
    def connect(self, login: Endpoint) -> Connection:
        """Return a new connection, logged in; raises an ``OSError`` or one of our errors."""

    def copy(self) -> None:
        """Deliver to the destination, or to the first backup target that answers."""
        pool = shared_pool()
        first: TransferError | None = None
        with self.open() as source:
            for destination in self._destinations():
                self.destination = destination
                try:
                    return self._deliver_to(pool, source)
                except (ConnectionFailed, TransferStalled) as error:
                    LOG.debug("%s: does not answer: %s", urls.redacted(destination), error)
                    first = first or error
        assert first is not None  # noqa: S101  (there is always one destination)
        raise first

    def endpoint(self) -> Endpoint:
        """Return whom to connect to, of the destination as it is now."""
        return _login_of(self.destination._replace(path=""))

    def _destinations(self) -> Iterator[ParseResult]:
        first = self.destination
        yield first
        if not self.backup_targets:
            return
        for target in self.backup_targets:
            yield urls.with_host(first, target)

    def _deliver_to(self, pool: Pool, source: SourceFile) -> None:
        """Make one try; a kept connection that proves to be dead is replaced by a new one, which is no try."""
        login = self.endpoint()
        key = (login[:], repr(sorted(self.attrs.items())))
        limits = PoolLimits(self.option("max_connections"), self.option("connection_uptime"))
        while True:
            lease: Lease | None = None
            try:
                with pool.lease(key, lambda: self._connect(login), limits) as lease:
                    self._remove_stale_partials(pool, key, lease.connection)
                    return self._deliver_over(pool, key, lease.connection, source)
            except ConnectionFailed:
                if lease is None or not lease.reused:
                    raise
                pool.close_idle(key)

    def _deliver_over(self, pool: Pool, key: Hashable, connection: Connection, source: SourceFile) -> None:
        self._left: str | None = None
        try:
            with translate_os_errors(self):
                self.deliver(connection, source)
        finally:
            if self._left:
                pool.remember_stale_partial(key, self._left)

    def remove_partial(self, far: Backend, partial: str, error: BaseException) -> None:
        """Remove what a try left, at once or when there is a connection that works."""
        self._left = partial
        if isinstance(far, Connection) and far.alive() and _connection_survives(error):
            try:
                far.remove(partial)
            except (OSError, TransferError) as another:
                LOG.debug("%s: %s stays for now: %s", urls.redacted(self.destination), partial, another)
            else:
                self._left = None

    def _remove_stale_partials(self, pool: Pool, key: Hashable, connection: Connection) -> None:
        debris = pool.take_stale_partials(key)
        while debris:
            try:
                connection.remove(debris[-1])
            except TransferError as error:
                if error.outage:
                    for path in debris:
                        pool.remember_stale_partial(key, path)
                    raise
            except OSError as error:
                LOG.debug("%s: cannot remove %s: %s", urls.redacted(self.destination), debris[-1], error)
            debris.pop()

    def _connect(self, login: Endpoint) -> Connection:
        strange = options.unknown_names(self.attrs)
        if strange:
            LOG.warning("%s: connection parameters that mean nothing: %s", self._host_url, ", ".join(strange))
        for number in range(1, self.tries):
            try:
                return self._connect_once(login)
            except ConnectionFailed as error:
                LOG.debug("%s: try %d to connect failed: %s", self._host_url, number, error)
                time.sleep(RETRY_DELAY * 2 ** (number - 1) * random.uniform(0.5, 1))  # noqa: S311  (no secret)
        return self._connect_once(login)

    def _connect_once(self, login: Endpoint) -> Connection:
        with translate_os_errors(f"connecting to {self._host_url}"):
            try:
                return self.connect(login)
            except TimeoutError:
                raise
            except OSError as error:
                raise ConnectionFailed(f"connecting to {self._host_url}: {error.strerror or error}") from error

    @property
    def _host_url(self) -> str:
        return urls.redacted(self.destination._replace(path=""))


@functools.lru_cache(maxsize=64)
def _login_of(destination: ParseResult) -> Endpoint:
    """Read the URL of a host, which takes longer than a small file may."""
    host = urls.host(destination)
    if not host:
        raise BadDestination(f"{urls.redacted(destination)}: names no host")
    return Endpoint(
        destination.scheme, host, urls.port(destination), urls.user(destination), urls.password(destination)
    )


def _connection_survives(error: BaseException) -> bool:
    """Tell whether a connection can still be talked over after ``error``."""
    broken = (TimeoutError, ConnectionError, ConnectionFailed, TransferStalled)
    return isinstance(error, Exception) and not isinstance(error, broken)
