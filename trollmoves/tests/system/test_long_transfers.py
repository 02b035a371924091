"""A transfer that lasts longer than every timeout is done once and published once."""

from __future__ import annotations

import time

import pytest

from trollmoves.tests.helpers import legacy_peer as earlier
from trollmoves.tests.helpers.daemons import ServerClientPair, Testbed
from trollmoves.tests.helpers.directories import RemoteDirectory
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.system.test_interop import begin

SIZE = 2_000_000
TIMEOUT = 2.0  # s that a client waits for a reply
PATIENT = 6.0  # s for an old server, which uses most of it before its first sign of life
LASTS = 8.0  # s


class SlowPair(ServerClientPair):
    """A server that pushes by SCP through a proxy, and a client with short timeouts."""

    def __init__(self, testbed: Testbed, timeout: float = TIMEOUT) -> None:
        place = RemoteDirectory(testbed, "scp", testbed.directory("out"))
        self.proxy = place.proxy
        super().__init__(testbed, destination=place.url, req_timeout=timeout / 2, transfer_req_timeout=timeout)

    def transfer(self) -> str:
        """Start a transfer that takes ``LASTS`` seconds; return the name of the file."""
        self.proxy.sent = 0
        self.proxy.rate = SIZE / LASTS
        (name,) = self.feeder.feed(size=SIZE)
        return name

    def check(self, name: str) -> None:
        """Check that the file came once, complete, with one receipt."""
        assert (self.target / name).read_bytes() == self.feeder.fed[name]
        assert self.proxy.sent < 1.5 * SIZE
        assert self.received.receipts().count(name) == 1


def test_ours(testbed: Testbed) -> None:
    """Our client extends its timeout for our server, and informs its peers."""
    pair = SlowPair(testbed)
    begin(pair)
    began = time.monotonic()
    name = pair.transfer()
    pair.received.wait_for_receipts([name])
    assert time.monotonic() - began > 3 * TIMEOUT
    types = [one.type for one in pair.received.of_file(name)]
    assert types == ["push"] * (len(types) - 2) + ["ack", "file"]
    assert len(types) > 4
    pair.check(name)


def test_old_client(testbed: Testbed) -> None:
    """An old client that times out and repeats its request joins the running transfer, and publishes one receipt."""
    pair = SlowPair(testbed)
    pair.client = earlier.client(testbed, pair.client_sections)
    begin(pair)
    name = pair.transfer()
    pair.server.wait_for_line(f"delivered {name}")
    assert len([one for one in pair.received.of_file(name) if one.type == "push"]) > 0
    assert pair.proxy.sent < 1.5 * SIZE
    assert (pair.target / name).read_bytes() == pair.feeder.fed[name]
    assert pair.server.lines().count(f"delivered {name}") == 1


def test_old_server(testbed: Testbed) -> None:
    """Our client waits for an old server, which sends no keepalive, as long as it responds."""
    pair = SlowPair(testbed, PATIENT)
    pair.server = earlier.server(testbed, pair.server_sections, pair.publish_port)
    begin(pair)
    name = pair.transfer()
    pair.received.wait_for_receipts([name])
    pair.check(name)


@pytest.mark.slow
def test_restarted_old_server(testbed: Testbed) -> None:
    """Our client repeats its request to an old server that was killed and restarted."""
    pair = SlowPair(testbed)
    pair.server = earlier.server(testbed, pair.server_sections, pair.publish_port)
    begin(pair)
    name = pair.transfer()
    until(lambda: pair.proxy.sent > SIZE / 4, what="the transfer is under way")
    pair.server.kill()
    pair.proxy.cut()
    pair.proxy.rate = 0
    pair.server.start()
    pair.received.wait_for_receipts([name], 40)
    assert (pair.target / name).read_bytes() == pair.feeder.fed[name]
