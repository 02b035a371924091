"""Daemons and posttroll's nameserver: no first message is lost."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from trollmoves.tests.helpers.daemons import ServerClientPair, Testbed
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers.process import ServerProcess

FILES = 60
LISTENER = """
import sys
from posttroll.subscriber import Subscribe
with Subscribe(sys.argv[1], "", addr_listener=True, timeout=1, nameserver="localhost") as subscriber:
    for message in subscriber.recv(0.1):
        is_file = message is not None and message.type == "file"
        print(f"file {message.data['uid']}" if is_file else "message", flush=True)
"""


@pytest.fixture
def settings(testbed: Testbed) -> Mapping[str, str]:
    """Start a nameserver and return its settings."""
    ports = {name: testbed.port() for name in ("nameserver", "broadcast", "address_publish")}
    settings = {f"POSTTROLL_{name.upper()}_PORT": str(port) for name, port in ports.items()}
    command = [sys.executable, str(Path(sys.executable).with_name("nameserver")), "--no-multicast"]
    testbed.enter(ServerProcess(ports["nameserver"], command, testbed.root / "nameserver.log", settings))
    return settings


def test_no_receipt_of_a_new_port_is_lost(testbed: Testbed, settings: Mapping[str, str]) -> None:
    """A posttroll subscriber that follows the nameserver gets every receipt of a client on a random port."""
    pair = ServerClientPair(testbed, publish_port=0, nameservers="localhost")
    pair.client.environment = {**pair.client.environment, **settings}
    listener = testbed.process(
        "listener", [sys.executable, "-c", LISTENER, "move_it_hrit"], testbed.root, lambda one: "message" in one.lines()
    )
    listener.environment = {**listener.environment, **settings}
    listener.start()
    pair.server.start()
    pair.client.start()
    pair.client.wait_for_line("connected to")
    pair.feeder.feed()

    def are_received() -> bool:
        return {f"file {name}" for name in pair.feeder.fed} <= set(listener.lines().splitlines())

    until(are_received, 30, "the first receipt")
    assert pair.client.terminate() == 0
    pair.feeder.feed(FILES)
    pair.client.start()  # on another port, with all files to fetch
    until(are_received, 30, "all receipts")
