"""Deliveries to other hosts over pooled connections, with backup targets."""

from __future__ import annotations

import functools
import logging
import random
import re
import time
from abc import abstractmethod
from collections.abc import Hashable
from typing import NamedTuple
from urllib.parse import ParseResult

from trollmoves.errors import BadDestination, ConnectionFailed, TooManyConnections, TransferError, TransferStalled
from trollmoves.movers import options
from trollmoves.movers.base import Backend, Mover
from trollmoves.movers.os_errors import translate_os_errors
from trollmoves.movers.pool import Connection, Lease, Pool, PoolLimits, shared_pool
from trollmoves.movers.source_file import SourceFile
from trollmoves.net import redaction, urls

logger = logging.getLogger(__name__)
CAPACITY_RETRY_DELAYS = (0.2, 0.5, 1.0)  # seconds; a host may count a connection for a moment after it was closed
BACKUP_BUDGET = 3  # connection_timeout times this, plus stall_timeout: seconds after which no further target is tried
RETRY_DELAY = 0.3  # seconds before the second attempt to connect; doubled for each further one
_UNSENDABLE = re.compile(r"[\0\r\n\ud800-\udfff]")  # characters of a login that no protocol can send


class Endpoint(NamedTuple):
    """Scheme, host, port and credentials of a connection; ``repr`` omits the password."""

    scheme: str
    host: str
    port: int | None
    user: str | None
    password: str | None

    def __repr__(self) -> str:
        return f"<Endpoint {self.scheme}://{self.host}>"


class RemoteMover(Mover):
    """Delivers to another host; each protocol implements ``connect``."""

    tries = 1
    """Attempts to connect before the next backup target is used."""

    @abstractmethod
    def connect(self, login: Endpoint) -> Connection:
        """Return a new connection, logged in; raises ``OSError`` or ``TransferError``."""

    def copy(self) -> None:
        """Deliver to the destination, or to the first backup target that can be reached.

        If these are too slow to fail, the attempt fails, and the next one begins with the targets that are left.
        """
        pool = shared_pool()
        first: TransferError | None = None
        destinations, key = self._destinations(), (self.destination.netloc, *self.backup_targets)
        start = pool.take_next_target(key) if self.backup_targets else 0
        end = time.monotonic() + BACKUP_BUDGET * self.option("connection_timeout") + self.option("stall_timeout")
        with self.open() as source:
            for number in (*range(start, len(destinations)), *range(start)):
                if first and time.monotonic() > end:
                    pool.set_next_target(key, number)
                    break
                self.destination = destination = destinations[number]
                try:
                    return self._deliver_to(pool, source)
                except (ConnectionFailed, TransferStalled) as error:
                    self._remove_secrets(error)
                    logger.debug(
                        "%s is not available, trying the next backup target if any: %s",
                        urls.redacted(destination),
                        error,
                    )
                    first = first or error
                except Exception as error:
                    self._remove_secrets(error)
                    raise
        assert first is not None  # noqa: S101  (there is always one destination)
        raise first

    def check(self, name: str) -> bool:
        """Log in, write the origin under ``name``, and remove it there; return False without the directory."""
        try:
            with translate_os_errors(self), self.open() as source:
                login = self.endpoint()
                self.host = shared_pool().capabilities.get(self.capability_key(login), self._host_url)
                connection = self._connect(login)
                try:
                    return self.write_and_remove(connection, source, name)
                finally:
                    connection.close()
        except Exception as error:
            self._remove_secrets(error)
            raise

    def endpoint(self) -> Endpoint:
        """Return the endpoint of the current destination."""
        return _endpoint_of(self.destination._replace(path=""))

    def _remove_secrets(self, error: Exception) -> None:
        """Remove the secrets of this delivery from an exception: libraries and servers repeat their input."""
        password = self.destination.netloc.rpartition("@")[0].partition(":")[2]
        redaction.remove_from_error(error, (password, *redaction.values_of(dict(self.attrs))))

    def capability_key(self, login: Endpoint) -> Hashable:
        """Return what identifies the capabilities of the current destination, without secrets."""
        return login[:4]

    def _destinations(self) -> list[ParseResult]:
        return [self.destination, *(urls.with_host(self.destination, target) for target in self.backup_targets)]

    def _deliver_to(self, pool: Pool, source: SourceFile) -> None:
        """Make one attempt; a pooled connection that proves dead is replaced without counting as an attempt."""
        login = self.endpoint()
        key = (login[:], repr(sorted(self.attrs.items())))
        self.host = pool.capabilities.get(self.capability_key(login), self._host_url)
        limits = PoolLimits(self.option("max_connections"), self.option("connection_uptime"))
        delays = iter(CAPACITY_RETRY_DELAYS)
        while True:
            lease: Lease | None = None
            try:
                with pool.lease(key, lambda: self._connect(login), limits, self.host) as lease:
                    self._remove_stale_partials(pool, key, lease.connection)
                    return self._deliver_over(pool, key, lease.connection, source)
            except TooManyConnections:
                delay = next(delays, None)
                if delay is None:
                    raise
                # Those with other parameters may use up the logins of this user.
                pool.close_idle(lambda other: other[0] == login[:])
                time.sleep(delay)
            except ConnectionFailed:
                if lease is None or not lease.reused:
                    raise
                pool.close_idle(lambda other: other == key)

    def _deliver_over(self, pool: Pool, key: Hashable, connection: Connection, source: SourceFile) -> None:
        self._partials_left: list[str] = []
        try:
            with translate_os_errors(self):
                self.deliver(connection, source)
        finally:
            for path in self._partials_left:
                pool.remember_stale_partial(key, path)

    def remove_incomplete(self, backend: Backend, path: str, error: BaseException, *, is_final: bool) -> None:
        """Remove a file now; if the connection is broken, keep a partial for the next delivery.

        A final name is not kept: the next attempt may complete the file before.
        """
        removed = False
        if isinstance(backend, Connection) and backend.alive() and _connection_survives(error):
            try:
                backend.remove(path)
                removed = True
            except (OSError, TransferError) as removal_error:
                logger.debug("%s: cannot remove %s: %s", urls.redacted(self.destination), path, removal_error)
        if not (removed or is_final):
            self._partials_left.append(path)

    def _remove_stale_partials(self, pool: Pool, key: Hashable, connection: Connection) -> None:
        paths = pool.take_stale_partials(key)
        while paths:
            try:
                connection.remove(paths[-1])
            except TransferError as error:
                if error.outage:
                    for path in paths:
                        pool.remember_stale_partial(key, path)
                    raise
            except OSError as error:
                logger.debug("%s: cannot remove %s: %s", urls.redacted(self.destination), paths[-1], error)
            paths.pop()

    def _connect(self, login: Endpoint) -> Connection:
        unknown = options.unknown_names(self.attrs)
        if unknown:
            logger.warning("%s: ignored unknown connection parameters: %s", self._host_url, ", ".join(unknown))
        for number in range(1, self.tries):
            try:
                return self._connect_once(login)
            except ConnectionFailed as error:
                logger.debug("%s: attempt %d to connect failed: %s", self._host_url, number, error)
                time.sleep(RETRY_DELAY * 2 ** (number - 1) * random.uniform(0.5, 1))  # noqa: S311  (not for cryptography)
        return self._connect_once(login)

    def _connect_once(self, login: Endpoint) -> Connection:
        with translate_os_errors(f"connecting to {self._host_url}"):
            try:
                return self.connect(login)
            except (TimeoutError, TransferError):
                raise
            except OSError as error:
                raise ConnectionFailed(f"connecting to {self._host_url}: {error.strerror or error}") from error

    @property
    def _host_url(self) -> str:
        return urls.redacted(self.destination._replace(path=""))


@functools.lru_cache(maxsize=64)
def _endpoint_of(destination: ParseResult) -> Endpoint:
    """Parse the URL of a host; cached, as parsing may cost more than a small file."""
    host = urls.host(destination)
    if not host:
        raise BadDestination(f"{urls.redacted(destination)}: the URL has no host")
    try:
        host.encode("idna")  # as the resolver does
    except UnicodeError:
        rule = "between dots it must have 1 to 63 valid characters"
        raise BadDestination(f"{urls.redacted(destination)}: invalid host name: {rule}") from None
    return Endpoint(destination.scheme, host, urls.port(destination), *checked_login(destination))


def checked_login(destination: ParseResult) -> tuple[str | None, str | None]:
    """Return user and password of a URL; raise BadDestination if no protocol can send them."""
    user, password = urls.user(destination), urls.password(destination)
    for text in filter(None, (user, password)):
        if _UNSENDABLE.search(text):
            raise BadDestination(
                f"{urls.redacted(destination)}: user and password must be UTF-8 text without line breaks and NUL"
            )
    return user, password


def _connection_survives(error: BaseException) -> bool:
    """Return True if a connection is usable after ``error``."""
    return isinstance(error, Exception) and not isinstance(error, (TimeoutError, ConnectionError))
