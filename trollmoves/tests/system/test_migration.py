"""Upgrades from the earlier implementation, one host at a time, and rollbacks, with unchanged configuration files."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress

import pytest

from trollmoves.tests.helpers import legacy_peer as earlier
from trollmoves.tests.helpers.daemons import TOPIC, Process, ServerClientPair, Testbed, script
from trollmoves.tests.helpers.recording import HOST
from trollmoves.tests.helpers.waiting import until

OLD, NEW = "old", "new"
STOPS = 10  # s for a daemon of either version
DISPATCHER = """
posttroll_subscriber:
  subscribe_addresses: ["tcp://{host}:{port}"]
  nameserver: false
archive:
  host: ""
  directory: {folder}
  filepattern: "{{uid}}"
  dispatch_configs:
    - topics: [{topic}]
"""


class Site:
    """A server that deletes delivered files, a client, and a dispatcher for its receipts, each in one of two versions.

    It starts with the old ones.
    """

    def __init__(self, testbed: Testbed) -> None:
        self.pair = ServerClientPair(testbed, {"delete": "true", "remove_delay": 1})
        pair = self.pair
        self.archive = testbed.directory("archive")
        text = DISPATCHER.format(host=HOST, port=pair.client_port, folder=self.archive, topic=TOPIC)
        config = testbed.config(text, "dispatcher.yaml")
        dispatcher = [sys.executable, script("dispatcher.py"), str(config)]
        self.processes = {
            ("server", OLD): earlier.server(testbed, pair.server_sections, pair.publish_port),
            ("server", NEW): pair.server,
            ("client", OLD): earlier.client(testbed, pair.client_sections),
            ("client", NEW): pair.client,
            ("dispatcher", OLD): earlier.dispatcher(testbed, text),
            ("dispatcher", NEW): testbed.process("dispatcher", dispatcher, config),
        }
        self.versions = {"client": OLD, "dispatcher": OLD, "server": OLD}
        for role in self.versions:
            self.current(role).start()
        self.feed_and_deliver()

    def current(self, role: str) -> Process:
        """Return the running process of a role."""
        return self.processes[role, self.versions[role]]

    def switch(self, role: str) -> None:
        """Replace a daemon by the other version; files appear in the meantime."""
        self.stop(role)
        self.pair.feeder.feed(3)
        self.versions[role] = NEW if self.versions[role] == OLD else OLD
        self.current(role).start()
        if role == "client":  # as the documentation says
            self.repeat_announcements()
        self.feed_and_deliver()

    def stop(self, role: str) -> None:
        """Stop a daemon; one of the old version is killed if it does not end."""
        process = self.current(role)
        try:
            process.terminate(STOPS)
        except subprocess.TimeoutExpired:
            assert self.versions[role] == OLD
            process.stop()

    def repeat_announcements(self) -> None:
        """Make the server repeat its announcements: by a reload, or by a restart of the old version."""
        if self.versions["server"] == NEW:
            self.current("server").send(signal.SIGHUP)
        else:
            self.stop("server")
            self.current("server").start()

    def feed_and_deliver(self) -> None:
        """Feed files; wait until they, and all before, are delivered, published, and removed from the origin.

        The dispatcher gets the files that are fed once it is connected to the client.
        """
        feeder = self.pair.feeder
        self.connect()
        fed = feeder.feed(3)
        delivered = f"{self.versions}: all files are delivered and removed"
        until(lambda: not feeder.missing(self.pair.target) and not any(feeder.folder.iterdir()), 60, delivered)
        self.pair.received.wait_for_receipts(feeder.fed)
        until(lambda: all((self.archive / name).exists() for name in fed), 30, f"{self.versions}: {fed} are archived")

    def connect(self) -> None:
        """Feed files until one reaches the archive."""
        for _ in range(30):
            (name,) = self.pair.feeder.feed(1)
            with suppress(AssertionError):
                until((self.archive / name).exists, 2, timeout_factor=1)
                return
        raise AssertionError(f"{self.versions}: no file reaches the archive")


@pytest.mark.slow
@pytest.mark.parametrize(
    "switches",
    [
        ("server", "client", "dispatcher", "server", "client", "dispatcher"),
        ("client", "dispatcher", "server", "client", "server", "client"),
        ("dispatcher", "server", "client", "dispatcher", "server"),
    ],
    ids=["server-first", "client-first", "dispatcher-first"],
)
def test_upgrade_and_rollback(testbed: Testbed, switches: Iterable[str]) -> None:
    """The hosts are upgraded and rolled back, one is upgraded again: each file arrives once, and is removed."""
    site = Site(testbed)
    for role in switches:
        site.switch(role)
    counts = Counter(site.pair.received.receipts())
    assert {name for name in site.pair.feeder.fed if counts[name] != 1} == set()
