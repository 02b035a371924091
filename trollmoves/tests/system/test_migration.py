"""Upgrades from the earlier implementation, one host at a time, and rollbacks, with unchanged configuration files."""

from __future__ import annotations

import signal
import subprocess
from collections import Counter
from collections.abc import Iterable

import pytest

from trollmoves.tests.helpers import legacy_peer as earlier
from trollmoves.tests.helpers.daemons import Process, ServerClientPair, Testbed
from trollmoves.tests.helpers.waiting import until

OLD, NEW = "old", "new"
STOPS = 10  # s for a daemon of either version


class Site:
    """A server that deletes delivered files, and a client, each in one of two versions; it starts with the old one."""

    def __init__(self, testbed: Testbed) -> None:
        self.pair = ServerClientPair(testbed, {"delete": "true", "remove_delay": 1})
        pair = self.pair
        self.processes = {
            ("server", OLD): earlier.server(testbed, pair.server_sections, pair.publish_port),
            ("server", NEW): pair.server,
            ("client", OLD): earlier.client(testbed, pair.client_sections),
            ("client", NEW): pair.client,
        }
        self.versions = {"server": OLD, "client": OLD}
        self.current("client").start()
        self.current("server").start()
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
        """Feed files; wait until they, and all before, are delivered, published, and removed from the origin."""
        feeder = self.pair.feeder
        feeder.feed(3)
        delivered = f"{self.versions}: all files are delivered and removed"
        until(lambda: not feeder.missing(self.pair.target) and not any(feeder.folder.iterdir()), 60, delivered)
        self.pair.received.wait_for_receipts(feeder.fed)


@pytest.mark.slow
@pytest.mark.parametrize(
    "switches",
    [("server", "client", "server", "client"), ("client", "server", "client", "server", "client")],
    ids=["server-first", "client-first"],
)
def test_upgrade_and_rollback(testbed: Testbed, switches: Iterable[str]) -> None:
    """Both hosts are upgraded and rolled back, one is upgraded again: each file arrives once, and is removed."""
    site = Site(testbed)
    for role in switches:
        site.switch(role)
    counts = Counter(site.pair.received.receipts())
    assert {name for name in site.pair.feeder.fed if counts[name] != 1} == set()
