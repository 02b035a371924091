"""Host aliases and local addresses."""

from __future__ import annotations

import socket
import threading
import time

import netifaces
import pytest

from trollmoves.net import hosts
from trollmoves.tests.helpers.waiting import until

VALID = ["a:1", "192.0.2.7:9094", "a-b.example.org:65535", "[2001:db8::7]:9094", "[fe80::1%eth0]:9", "h_1:09"]
INVALID = [
    "", "a", "a:", ":1", "a:0", "a:65536", "a:-1", "a:1:2", "2001:db8::7:9094", "*:9094", "a b:1", "a:1\n", "a:\u0661",
    "tcp://a:1", "inproc://zeromq.zap.01", "ipc:///tmp/x:1", "127.0.0.1:0;192.0.2.7:9094", "eth0;a:1", "u@a:1", "a/b:1",
]  # fmt: skip


def test_this_host_is_known_by_all_its_names_and_addresses() -> None:
    """No host, localhost, loopback, the host name and every interface's address mean this host."""
    here = hosts.LocalHost(look_up=no_look_up)
    names: list[str | None] = [
        None,
        "",
        "localhost",
        "LocalHost.",
        "x.localhost",
        "127.0.0.1",
        "127.1.2.3",
        "::1",
        "[::1]",
        "::ffff:127.0.0.1",
    ]
    names += [socket.gethostname(), socket.gethostname().upper(), socket.gethostname().partition(".")[0]]
    for interface in netifaces.interfaces():
        found = netifaces.ifaddresses(interface)
        names += [
            entry["addr"] for family in (netifaces.AF_INET, netifaces.AF_INET6) for entry in found.get(family, [])
        ]
    assert [name for name in names if not here.is_local(name)] == []
    assert not here.is_local("203.0.113.7")
    assert not here.is_local("2001:db8::7")
    assert hosts.is_local("localhost")


def no_look_up(name: str) -> list[str]:
    """Act as a name server that must not be queried."""
    raise AssertionError(f"looked up {name}")


def test_a_name_is_looked_up_once_in_a_lifetime() -> None:
    """However many threads ask about a host, one look-up answers them until it is too old."""
    requested: list[str] = []

    def look_up(name: str) -> list[str]:
        requested.append(name)
        time.sleep(0.05)
        return ["127.0.0.1"] if name == "alias" else ["203.0.113.7"]

    here = hosts.LocalHost(lifetime=30, timeout=20, look_up=look_up)
    answers: list[bool] = []
    threads = [threading.Thread(target=lambda: answers.append(here.is_local("Alias"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [True] * 8
    assert [here.is_local("other") for _ in range(100)] == [False] * 100
    assert requested == ["alias", "other"]

    brief = hosts.LocalHost(lifetime=0.01, timeout=20, look_up=look_up)
    until(lambda: brief.is_local("alias") and requested.count("alias") >= 3, what="another look-up")


@pytest.mark.parametrize("error", [socket.gaierror("no"), OSError("no"), UnicodeError("no"), ValueError("no")])
def test_a_name_that_cannot_be_looked_up_is_another_host(error: Exception) -> None:
    """A failing look-up says no, raises nothing, and is not tried again for each file."""
    requested: list[str] = []

    def look_up(name: str) -> list[str]:
        requested.append(name)
        raise error

    here = hosts.LocalHost(timeout=20, look_up=look_up)
    assert [here.is_local("gone.example") for _ in range(10)] == [False] * 10
    assert requested == ["gone.example"]
    assert not hosts.LocalHost().is_local("a" * 300 + ".invalid")
    assert not hosts.LocalHost().is_local("no such\x00host")


def test_a_slow_look_up_is_not_waited_for() -> None:
    """Without an answer in time the host counts as another one; the answer is used when it has come."""
    go = threading.Event()

    def look_up(name: str) -> list[str]:
        go.wait(100)
        return ["127.0.0.1"]

    here = hosts.LocalHost(timeout=0.05, look_up=look_up)
    begin = time.monotonic()
    assert [here.is_local("slow.example") for _ in range(100)] == [False] * 100
    assert time.monotonic() - begin < 50
    for number in range(2 * hosts.MAX_LOOKUPS):
        assert not here.is_local(f"slow-{number}.example")
    assert sum(thread.name == "dns-lookup" for thread in threading.enumerate()) <= hosts.MAX_LOOKUPS
    go.set()
    until(lambda: here.is_local("slow.example"), what="the late answer")


def test_the_advertised_address_is_this_hosts() -> None:
    """The address to advertise is one of this host's own, the same for some time."""
    assert hosts.is_local(hosts.own_address())
    assert hosts.own_address() == hosts.own_address()
    assert ":" not in hosts.own_address()


def test_a_silent_name_server_delays_no_caller() -> None:
    """Only the first call waits, shortly; when the name server answers, and when the name moves, later calls see it."""
    answers = threading.Event()
    found = ["192.0.2.1"]

    def look_up(name: str) -> list[str]:
        answers.wait(20)
        return found if name == "source" else []

    resolver = hosts.Resolver(look_up, refresh=0.0)
    assert resolver.addresses("source") == ()
    begin = time.monotonic()
    for _ in range(100):
        assert resolver.addresses("source") == ()
    assert time.monotonic() - begin < hosts.FIRST_WAIT * 10
    answers.set()
    until(lambda: resolver.addresses("source") == ("192.0.2.1",), 10)
    found[:] = ["192.0.2.2"]
    until(lambda: resolver.addresses("source") == ("192.0.2.2",), 10)
    found.clear()  # the last addresses stay until others come
    assert resolver.addresses("source") == ("192.0.2.2",)
    assert resolver.addresses("x" * 10_000_000) == ()


def test_the_memory_of_a_resolver_is_bounded() -> None:
    """Names that nothing uses any more are forgotten."""
    resolver = hosts.Resolver(lambda name: [name], refresh=0.0)
    for number in range(hosts.MAX_CACHED_ANSWERS + 10):
        resolver.addresses(f"h{number}")
    assert len(resolver._names) == hosts.MAX_CACHED_ANSWERS


def test_look_ups_of_forgotten_names_count() -> None:
    """A look-up counts to the limit until it ends, also if its name is forgotten before."""
    begun: list[str] = []
    release = threading.Event()

    def look_up(name: str) -> list[str]:
        begun.append(name)
        release.wait(100)
        return []

    resolver = hosts.Resolver(look_up, first_wait=0.0)
    for number in range(hosts.MAX_CACHED_ANSWERS + 2 * hosts.MAX_LOOKUPS):
        resolver.addresses(f"h{number}")
    until(lambda: len(begun) == hosts.MAX_LOOKUPS, what="the look-ups have begun")
    release.set()
    until(lambda: resolver.addresses("later") == () and "later" in begun, what="a look-up after their end")
    assert len(begun) == hosts.MAX_LOOKUPS + 1


@pytest.mark.parametrize(("texts", "valid"), [(VALID, True), (INVALID, False)])
def test_host_and_port(texts: list[str], valid: bool) -> None:
    """An address of a peer is a host and a port; ZeroMQ's other notations reach sockets inside this host."""
    assert [text for text in texts if hosts.is_host_and_port(text) is not valid] == []
