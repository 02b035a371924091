"""A transfer that lasts longer than every time-out is done once and told once, whoever asks whom."""

from __future__ import annotations

import time

import pytest

from trollmoves.tests.helpers import legacy_peer as earlier
from trollmoves.tests.helpers.daemons import ServerClientPair, Testbed
from trollmoves.tests.helpers.directories import RemoteDirectory
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.system.test_interop import begin

SIZE = 2_000_000
TIMEOUT = 2.0  # s that a client waits for an answer
PATIENT = 6.0  # s for an old server, which has most of it to say that it is there
LASTS = 8.0  # s


class SlowPair(ServerClientPair):
    """A server that pushes by SCP through a proxy, and a client with short time-outs."""

    def __init__(self, testbed: Testbed, timeout: float = TIMEOUT) -> None:
        place = RemoteDirectory(testbed, "scp", testbed.directory("out"))
        self.proxy = place.proxy
        super().__init__(testbed, destination=place.url, req_timeout=timeout / 2, transfer_req_timeout=timeout)

    def transfer(self) -> str:
        """Begin a transfer that takes ``LASTS`` seconds; return the name of the file."""
        self.proxy.sent = 0
        self.proxy.rate = SIZE / LASTS
        (name,) = self.feeder.feed(size=SIZE)
        return name

    def check(self, name: str) -> None:
        """Check that the file came once, whole, and was told of once."""
        assert (self.target / name).read_bytes() == self.feeder.fed[name]
        assert self.proxy.sent < 1.5 * SIZE
        assert self.received.receipts().count(name) == 1


def test_ours(testbed: Testbed) -> None:
    """Our client goes on waiting for our server, and tells its peers that it does."""
    pair = SlowPair(testbed)
    begin(pair)
    began = time.monotonic()
    name = pair.transfer()
    pair.received.wait_for_receipts([name])
    assert time.monotonic() - began > 3 * TIMEOUT
    heard = [one.type for one in pair.received.of_file(name)]
    assert heard == ["push"] * (len(heard) - 2) + ["ack", "file"]
    assert len(heard) > 4
    pair.check(name)


def test_old_client(testbed: Testbed) -> None:
    """An old client that gives up and asks again joins the transfer that runs, and tells of the file once."""
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
    """Our client waits for an old server, which never says that it is at work, as long as that is there."""
    pair = SlowPair(testbed, PATIENT)
    pair.server = earlier.server(testbed, pair.server_sections, pair.publish_port)
    begin(pair)
    name = pair.transfer()
    pair.received.wait_for_receipts([name])
    pair.check(name)


@pytest.mark.slow
def test_old_server_that_is_started_anew(testbed: Testbed) -> None:
    """Our client does not wait for an old server that was killed and started again: it asks again."""
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
