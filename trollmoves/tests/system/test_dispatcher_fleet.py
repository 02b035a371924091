"""Dispatchers on several hosts share the work of one journal on PostgreSQL."""

from __future__ import annotations

import signal
import sys
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from trollmoves.tests.helpers.daemons import Process, Testbed, script
from trollmoves.tests.helpers.dispatching import TOPIC, RecordedPublisher
from trollmoves.tests.helpers.journals import new_schema, shared_server
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers import postgresql

pytestmark = pytest.mark.skipif(bool(postgresql.missing()), reason=f"missing: {postgresql.missing()}")

BURST = 300
BURIAL = 40  # s until the tasks of a dead member are free, on a busy machine; the lease lasts 10 s
IN_KILL_WINDOW = BURST  # receipts of the last half second are published again, as after each kill
SIZE = 1_000_000  # bytes of a rewritten file


class DispatcherFleet:
    """A publisher, and dispatchers with one journal that all subscribe to it."""

    def __init__(self, testbed: Testbed, members: int = 2) -> None:
        self.publisher = testbed.close_at_end(RecordedPublisher(testbed.port()))
        self.source, self.out = testbed.directory("in"), testbed.directory("out")
        self.published: set[str] = set()
        ports = [testbed.port() for _ in range(members)]
        text = yaml.safe_dump(
            {
                "DEFAULT": {"journal": new_schema(shared_server()), "fleet": "share"},
                "posttroll_subscriber": {"subscribe_addresses": [self.publisher.address], "nameserver": False},
                "mail": {
                    "directory": str(self.out),
                    "dispatch_configs": [{"topics": [TOPIC]}],
                    "publish_topic": "/sent",
                },
            }
        )
        self.members: list[Process] = []
        for number, port in enumerate(ports):
            config = testbed.config(text, f"dispatcher-{number}.yaml")
            command = [sys.executable, script("dispatcher.py"), str(config), "-p", str(port), "-n", "false"]
            self.members.append(testbed.process(f"dispatcher-{number}", command, config))
        self.receipts = [testbed.subscriber(port) for port in ports]
        for member in self.members:
            member.start()
        self.publisher.wait_for_subscribers(members)

    def publish(self, first: int, count: int) -> None:
        """Create files, and publish a message about each."""
        for number in range(first, first + count):
            path = self.source / f"file{number}"
            path.write_text(f"content of {number}")
            self.published.add(path.name)
            self.publisher.publish_file(path)

    def sent(self) -> Counter[str]:
        """Return how often each file has a receipt, of any member."""
        return Counter(name for subscriber in self.receipts for name in subscriber.receipts())

    def wait_until_done(self) -> None:
        """Wait until all files have receipts; all are complete at the destination then."""
        until(lambda: self.published <= self.sent().keys(), 90, "all files have receipts")
        assert {path.name for path in self.out.iterdir() if not path.name.startswith(".")} == self.published
        for name in self.published:
            assert (self.out / name).read_text() == (self.source / name).read_text()

    def repeated(self) -> set[str]:
        """Return the files with several receipts."""
        return {name for name, count in self.sent().items() if count > 1}


@pytest.mark.slow
def test_each_file_is_delivered_once(testbed: Testbed) -> None:
    """All members receive all messages, and deliver each file once; status shows both of them at work.

    On an idle machine one member may deliver all of them.
    """
    fleet = DispatcherFleet(testbed)
    fleet.publish(0, BURST)
    fleet.wait_until_done()
    shown = testbed.run("trollmoves", "status", fleet.members[0].config).stdout
    assert shown.count(": works, holds") == 2
    for member in fleet.members:
        assert member.terminate() == 0
    assert sum(member.lines().count("] delivered ") for member in fleet.members) == BURST
    assert fleet.repeated() == set()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "suspended"])
def test_a_member_fails(testbed: Testbed, how: str) -> None:
    """The other member delivers the files of a killed or suspended one; only receipts of that one are repeated."""
    fleet = DispatcherFleet(testbed)
    failing, other = fleet.members
    fleet.publish(0, BURST)
    until(lambda: len(fleet.sent()) > BURST // 4, 30, "files are delivered")
    if how == "killed":
        failing.kill()
    else:
        failing.send(signal.SIGSTOP)
    fleet.publish(BURST, BURST)
    other.wait_for_line("did not renew its lease", seconds=BURIAL)
    if how == "killed":
        failing.start()
    else:
        failing.send(signal.SIGCONT)
        failing.wait_for_line("opening the journal as a new member", seconds=BURIAL)
    fleet.publish(2 * BURST, 20)
    fleet.wait_until_done()
    assert fleet.repeated() <= set(fleet.receipts[0].receipts())
    assert len(fleet.repeated()) <= IN_KILL_WINDOW


class Watcher:
    """Reads the versions under a final name while they change; ``seen`` has each one once, in order."""

    def __init__(self, path: Path) -> None:
        self.seen: list[int] = []
        self._path = path
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            with suppress(FileNotFoundError):
                content = self._path.read_bytes()
                assert len(content) == SIZE
                version = int(content[:8])
                if self.seen[-1:] != [version]:
                    self.seen.append(version)

    def close(self) -> None:
        """Stop reading."""
        self._stop.set()
        self._thread.join()


@pytest.mark.slow
def test_versions_of_a_file_arrive_in_order(testbed: Testbed) -> None:
    """Deliveries to one name run one after the other, also at different members; the last version stays."""
    fleet = DispatcherFleet(testbed)
    watchers = [testbed.close_at_end(Watcher(fleet.out / f"name{n}")) for n in range(2)]
    versions = 30
    for version in range(1, versions + 1):
        for number in range(len(watchers)):
            staged = fleet.source / f"staged{number}"
            staged.write_bytes(f"{version:08}".encode().ljust(SIZE, b"."))
            path = staged.rename(fleet.source / f"name{number}")
            fleet.publisher.publish_file(path, version=version)
    until(lambda: all(watcher.seen[-1:] == [versions] for watcher in watchers), 60, f"{[w.seen for w in watchers]}")
    for member in fleet.members:
        assert member.terminate() == 0
    for watcher in watchers:
        assert watcher.seen == sorted(watcher.seen)
        assert watcher.seen[-1] == versions
