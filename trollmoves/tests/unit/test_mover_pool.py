"""The connection pool: number, lifetime and use of its connections."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator

import pytest

from trollmoves.errors import BadDestination, ConnectionFailed, TemporaryTransferError, TooManyConnections
from trollmoves.movers.host_capabilities import HostCapabilities
from trollmoves.movers.pool import Connection, Pool, PoolLimits, SharedHandles
from trollmoves.movers.source_file import SourceFile
from trollmoves.tests.helpers.waiting import until

LIMITS = PoolLimits(connections=2, uptime=30)


class Line(Connection):
    """A connection to nowhere that remembers what happened to it."""

    def __init__(self) -> None:
        self.closed = False
        self.dead = False

    def is_directory(self, path: str) -> bool:
        """Say no."""
        return False

    def make_directories(self, path: str) -> None:
        """Do nothing."""

    def send(self, source: SourceFile, path: str) -> None:
        """Do nothing."""

    def size(self, path: str) -> int | None:
        """Say nothing."""
        return None

    def replace(self, partial: str, final: str) -> None:
        """Do nothing."""

    def remove(self, path: str) -> None:
        """Do nothing."""

    def alive(self) -> bool:
        """Report."""
        return not self.dead

    def probe(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Remember."""
        self.closed = True


@pytest.fixture
def pool() -> Iterator[Pool]:
    """Return a pool of this test's own."""
    made = Pool()
    yield made
    made.close()


def test_a_connection_is_used_again(pool: Pool) -> None:
    """The next delivery gets the connection of the last one."""
    with pool.lease("a", Line, LIMITS) as first:
        assert not first.reused
    with pool.lease("a", Line, LIMITS) as second:
        assert second.reused
        assert second.connection is first.connection
    with pool.lease("b", Line, LIMITS) as other:
        assert other.connection is not first.connection
    assert repr(pool) == "<Pool: 2 hosts, 2 idle, 0 in use>"


def test_a_connection_is_in_one_hand(pool: Pool) -> None:
    """Two deliveries at a time have two connections, a third waits for one of them."""
    got = []

    def third() -> None:
        with pool.lease("a", Line, LIMITS) as lease:
            got.append(lease.connection)

    with pool.lease("a", Line, LIMITS) as one:
        with pool.lease("a", Line, LIMITS) as two:
            assert one.connection is not two.connection
            thread = threading.Thread(target=third)
            thread.start()
            thread.join(0.1)
            assert got == []
        thread.join(50)
        assert got == [two.connection]


def test_a_broken_connection_is_not_used_again(pool: Pool) -> None:
    """After an error that may have left a connection in any state it is closed, after a refusal it is kept."""
    for error, kept in (
        (ConnectionFailed("x"), False),
        (BadDestination("x"), True),
        (TemporaryTransferError("x"), False),
    ):
        with pytest.raises(type(error)), pool.lease("a", Line, LIMITS) as lease:
            raise error
        assert isinstance(lease.connection, Line)
        assert lease.connection.closed is not kept
        pool.close()


def test_a_dead_connection_is_replaced(pool: Pool) -> None:
    """A kept connection that has died is closed, and a new one made."""
    with pool.lease("a", Line, LIMITS) as first:
        assert isinstance(first.connection, Line)
        first.connection.dead = True
    with pool.lease("a", Line, LIMITS) as second:
        assert not second.reused
    assert first.connection.closed


def test_idle_connections_end(pool: Pool) -> None:
    """An idle connection is closed when its time is up, one in use is not; then no thread is left."""
    threads = threading.active_count()
    short = PoolLimits(connections=2, uptime=0.1)
    with pool.lease("a", Line, short) as used:
        with pool.lease("a", Line, short) as idle:
            pass
        assert isinstance(idle.connection, Line)
        assert isinstance(used.connection, Line)
        until(lambda: isinstance(idle.connection, Line) and idle.connection.closed, 5, "the idle one is closed")
        assert not used.connection.closed
    until(lambda: isinstance(used.connection, Line) and used.connection.closed, 5, "the other one is closed")
    until(lambda: threading.active_count() <= threads, 5, "the thread is gone")
    assert repr(pool) == "<Pool: 0 hosts, 0 idle, 0 in use>"


def test_close_while_in_use(pool: Pool) -> None:
    """Closing keeps connections in use, which are closed on release; the pool stays usable."""
    with pool.lease("a", Line, LIMITS) as lease:
        pool.close()
        assert isinstance(lease.connection, Line)
        assert not lease.connection.closed
    assert lease.connection.closed
    with pool.lease("a", Line, LIMITS) as another:
        assert not another.reused


def test_failed_connect_frees_its_slot(pool: Pool) -> None:
    """A failed connect blocks no other thread, and leaves no connection behind."""

    def fail() -> Connection:
        raise ConnectionFailed("no server")

    for _ in range(5):
        with pytest.raises(ConnectionFailed), pool.lease("a", fail, LIMITS):
            pass
    assert repr(pool) == "<Pool: 0 hosts, 0 idle, 0 in use>"


def test_host_that_accepts_few_connections(pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    """Deliveries share the connections that the host accepts; the limit is logged once."""
    caplog.set_level("INFO")
    limits, host = PoolLimits(connections=6, uptime=30), HostCapabilities("ftp://host")
    attempts: list[int] = []
    served: list[Connection] = []

    def connect() -> Connection:
        attempts.append(1)
        if len(attempts) > 1:
            raise TooManyConnections("530 too many users")
        return Line()

    def deliver() -> None:
        with pool.lease("a", connect, limits, host) as lease:
            served.append(lease.connection)

    threads = [threading.Thread(target=deliver) for _ in range(5)]
    with pool.lease("a", connect, limits, host) as first:
        for thread in threads:
            thread.start()
        until(lambda: len(attempts) > 1, 30, "the host rejected a connection")
    for thread in threads:
        thread.join(30)
    assert served == [first.connection] * 5
    assert len(attempts) <= 6
    tried = len(attempts)
    with pool.lease("a", connect, limits, host):
        pass
    assert len(attempts) == tried
    assert caplog.text.count("it rejects further connections") == 1


def test_host_that_accepts_no_connection(pool: Pool) -> None:
    """A rejection while none is open is raised and frees its slot."""

    def connect() -> Connection:
        raise TooManyConnections("421 too many users")

    for _ in range(3):
        with pytest.raises(TooManyConnections), pool.lease("a", connect, LIMITS):
            pass
    assert repr(pool) == "<Pool: 0 hosts, 0 idle, 0 in use>"


def test_connecting_does_not_block_others(pool: Pool) -> None:
    """While one thread connects to a silent host, others deliver elsewhere."""
    go_on = threading.Event()

    def slow() -> Connection:
        go_on.wait(100)
        return Line()

    def deliver() -> None:
        with pool.lease("slow", slow, LIMITS):
            pass

    thread = threading.Thread(target=deliver)
    thread.start()
    started = time.monotonic()
    with pool.lease("quick", Line, LIMITS):
        pass
    assert time.monotonic() - started < 50
    go_on.set()
    thread.join()


def test_debris_is_bounded_and_handed_out_once(pool: Pool) -> None:
    """Partials left at a host are remembered for the next one there, up to a bound."""
    for number in range(2000):
        pool.remember_stale_partial("a", str(number))
    assert len(pool.take_stale_partials("a")) == 1000
    assert pool.take_stale_partials("a") == []
    assert pool.take_stale_partials("b") == []


def test_a_trunk_is_made_once_and_closed_by_the_last() -> None:
    """What several share is made by the first, waited for by the others, and closed by the last."""
    closed: list[object] = []
    trunks = SharedHandles(closed.append, lambda _: True, 3)
    made: list[object] = []
    ready = threading.Event()

    def make() -> object:
        ready.wait(100)
        made.append(object())
        return made[-1]

    accepted = []
    threads = [threading.Thread(target=lambda: accepted.append(trunks.acquire("a", make, 10))) for _ in range(4)]
    for thread in threads:
        thread.start()
    ready.set()
    for thread in threads:
        thread.join()
    assert len(made) == 2  # three users share one, the fourth needs another
    for trunk in accepted:
        assert len(closed) < 2
        trunks.release(trunk)
    assert sorted(map(id, closed)) == sorted(map(id, made))


def waits(thread: threading.Thread) -> bool:
    """Return True if a thread waits for another one."""
    frame = sys._current_frames().get(thread.ident or 0)
    return frame is not None and frame.f_code.co_name == "wait"


def test_failed_handle_fails_for_all_waiting() -> None:
    """A host that is down is tried once, and all waiting threads receive the error."""
    requested = []
    waiting = threading.Event()

    def make() -> object:
        requested.append(1)
        waiting.wait(100)
        raise ConnectionFailed("down")

    trunks: SharedHandles[object] = SharedHandles(lambda _: None, lambda _: True, 4)
    errors = []

    def take() -> None:
        try:
            trunks.acquire("a", make, 10)
        except ConnectionFailed as error:
            errors.append(str(error))

    threads = [threading.Thread(target=take) for _ in range(3)]
    for thread in threads:
        thread.start()
    until(lambda: requested and all(waits(thread) for thread in threads), 5)
    waiting.set()
    for thread in threads:
        thread.join()
    assert errors == ["down"] * 3
    assert len(requested) <= 2
