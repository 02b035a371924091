"""Interoperation with the earlier implementation on either side, and the speed ratio."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from trollmoves.tests.helpers import legacy_peer as earlier
from trollmoves.tests.helpers.daemons import ServerClientPair, Testbed, client_section, server_section
from trollmoves.tests.helpers.feeding import Feeder, content, names
from trollmoves.tests.helpers.recording import HOST, RecordingSubscriber
from trollmoves.tests.helpers.waiting import until

COUNT = 50
OLD_COUNT = 60  # files, to measure the speed of the earlier implementation
NEW_COUNT = 2000
TIMES_FASTER = 50
TRIES = 4


def begin(pair: ServerClientPair) -> None:
    """Start both, and move one file."""
    pair.server.start()
    pair.client.start()
    connect(pair.feeder, pair.received)


def connect(feeder: Feeder, received: RecordingSubscriber) -> None:
    """Feed files until one arrives: an old server does not repeat announcements made before the subscription."""
    for name in names(100_000):
        feeder.put(name)
        with suppress(AssertionError):
            received.wait_for_receipts([name], seconds=0.5)
            break
    feeder.fed.clear()


def test_old_server(testbed: Testbed) -> None:
    """Our client gets every file from an old server, and publishes the same receipts."""
    pair = ServerClientPair(testbed)
    pair.server = earlier.server(testbed, pair.server_sections, pair.publish_port)
    begin(pair)
    names = pair.feeder.feed(COUNT)
    pair.wait_until_done(60)
    for name in names:
        announced = until(lambda name=name: pair.announced.of_file(name))[0].data  # type: ignore[misc]  # some come twice
        received_messages = pair.received.of_file(name)
        assert [one.type for one in received_messages] == ["push"] * (len(received_messages) - 2) + [
            "ack",
            "file",
        ]  # more if it is slow
        assert received_messages[-2].data == announced
        receipt = announced | {"uri": str(pair.target / name), "origin": f"{HOST}:{pair.request_port}"}
        del receipt["request_address"]
        assert received_messages[-1].data == receipt
    history = testbed.run("trollmoves", "history", names[0], "--hops", "-c", str(pair.client.config))
    assert f"{HOST}:{pair.request_port} is of an older version" in history.stdout


def test_old_server_is_restarted(testbed: Testbed) -> None:
    """Our client continues with an old server that was restarted."""
    pair = ServerClientPair(testbed, transfer_req_timeout=2)
    pair.server = earlier.server(testbed, pair.server_sections, pair.publish_port)
    begin(pair)
    pair.server.kill()
    pair.server.start()
    connect(pair.feeder, pair.received)
    pair.feeder.feed(5)
    pair.wait_until_done(60)


def test_missed_announcements_of_an_old_server(testbed: Testbed) -> None:
    """Announcements of an old server that our client missed, and cannot request, are named in the log."""
    pair = ServerClientPair(testbed)
    pair.server = earlier.server(testbed, pair.server_sections, pair.publish_port)
    begin(pair)
    known = "missed announcements can be reported but not recovered"
    pair.client.wait_for_line(known)
    assert all(line.startswith("[INFO: ") for line in pair.client.lines().splitlines() if known in line)
    assert pair.client.terminate() == 0
    before = len(pair.announced.receipts())
    missed = pair.feeder.feed(3)
    pair.announced.wait_for(before + 3, "file")
    until(lambda: time.monotonic() - pair.announced.of_type("file")[-1].at > 5)  # it may announce them once more
    pair.client.start()
    connect(pair.feeder, pair.received)
    pair.client.wait_for_line("these files are not fetched: ")
    named = pair.client.lines().partition("these files are not fetched: ")[2].partition("\n")[0].split()
    assert set(missed) <= set(named)
    assert len(set(named)) == len(named)


def test_known_file_of_an_old_server(testbed: Testbed) -> None:
    """A known file that an old server announces again is acked, so that the server removes it."""
    pair = ServerClientPair(testbed)
    sections = {"hrit": pair.server_sections["hrit"] | {"delete": "true", "remove_delay": 4}}
    pair.server = earlier.server(testbed, sections, pair.publish_port)
    begin(pair)
    (name,) = pair.feeder.feed()
    pair.received.wait_for_receipts([name])
    pair.server.kill()  # with the pending removal
    assert (pair.feeder.folder / name).exists()
    pair.server.start()
    until(lambda: not (pair.feeder.folder / name).exists(), 40, "the file is removed")


def test_upgraded_client(testbed: Testbed) -> None:
    """A client that replaces an old one fetches none of the files that the old one has received just before."""
    pair = ServerClientPair(testbed)
    old = earlier.client(testbed, pair.client_sections)
    port = testbed.port()
    pair.client.reconfigure({"hrit": pair.client_sections["hrit"] | {"publish_port": port}})
    by_new = testbed.subscriber(port)
    pair.client.start()
    pair.client.send(signal.SIGSTOP)  # so its first contact with the server is after its start, and after the files
    pair.server.start()
    old.start()
    connect(pair.feeder, pair.received)
    names = pair.feeder.feed(20)
    pair.wait_until_done(60)
    old.terminate()
    pair.client.send(signal.SIGCONT)
    pair.client.wait_for_line(f"{names[-1]} was received by the earlier version of this client")
    (last,) = pair.feeder.feed()
    by_new.wait_for_receipts([last])
    until(lambda: not testbed.pending_tasks("fetch"), 30, "all files are fetched")
    assert not set(names) & set(by_new.receipts())


def test_old_client(testbed: Testbed) -> None:
    """An old client gets every file from our server, and publishes receipts."""
    pair = ServerClientPair(testbed, login="sat:gehe1m")
    pair.client = earlier.client(testbed, pair.client_sections)
    begin(pair)
    names = pair.feeder.feed(COUNT)
    pair.wait_until_done(60)
    for name in names:
        assert [one.type for one in pair.received.of_file(name)] == ["push", "ack", "file"]
    assert not [text for text in pair.received.texts if "gehe1m" in text]
    assert not [one for one in pair.received.of_type("file") if "announcement" in one.data]


def test_old_client_of_a_server_that_is_restarted(testbed: Testbed) -> None:
    """An old client continues with our server after its restart, and gets the files it had not requested."""
    pair = ServerClientPair(testbed)
    pair.client = earlier.client(testbed, pair.client_sections)
    begin(pair)
    pair.server.kill()
    pair.feeder.feed(5)
    pair.server.start()
    pair.feeder.feed(5)
    pair.wait_until_done(60)


def test_old_and_new_server_of_the_same_files(testbed: Testbed) -> None:
    """Our client fetches files that an old and a new server announce once, and acks the other server."""
    target, client_port = testbed.directory("out"), testbed.port()
    old_feeder, new_feeder = testbed.feeder("old"), testbed.feeder("new")
    ports = [testbed.port(), testbed.port()]
    options = {"delete": "true", "remove_delay": 0}
    old = earlier.server(testbed, {"hrit": server_section(old_feeder.folder, testbed.port()) | options}, ports[0])
    new = testbed.server({"hrit": server_section(new_feeder.folder, testbed.port()) | options}, ports[1])
    client = testbed.client({"hrit": client_section(ports, target, client_port)})
    received, old_subscriber, new_subscriber = (
        testbed.subscriber(client_port),
        testbed.subscriber(ports[0]),
        testbed.subscriber(ports[1]),
    )
    old.start(wait=False)
    new.start(wait=False)
    client.start()
    old.wait_until_ready()
    new.wait_until_ready()
    connect(old_feeder, received)
    fed = old_feeder.feed(COUNT)
    assert new_feeder.feed(COUNT) == fed
    received.wait_for_receipts(fed)
    for subscriber in (old_subscriber, new_subscriber):
        until(lambda subscriber=subscriber: {one.uid for one in subscriber.of_type("file")} >= set(fed))  # type: ignore[misc]
    assert sorted(name for name in received.receipts() if name in fed) == sorted(fed)
    assert all((target / name).read_bytes() == content(name) for name in fed)
    until(lambda: not list(new_feeder.folder.iterdir()), what="the new server was told of each file")


def test_two_clients_of_one_server(testbed: Testbed) -> None:
    """An old and a new client of our server get every file, each at its destination."""
    pair = ServerClientPair(testbed)
    target, port = testbed.directory("old-out"), testbed.port()
    old = earlier.client(testbed, {"other": client_section(pair.publish_port, target, port)})
    subscriber = testbed.subscriber(port)
    old.start()
    pair.start()
    fed = pair.feeder.feed(10)
    pair.wait_until_done(60)
    subscriber.wait_for_receipts(fed)
    assert pair.feeder.missing(target) == []


@pytest.mark.slow
@pytest.mark.alone
def test_how_much_faster(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """Files that appear together arrive at least 50 times as fast as with the earlier implementation."""
    with Testbed(tmp_path) as testbed:
        old = ServerClientPair(testbed)
        old.server = earlier.server(testbed, old.server_sections, old.publish_port)
        old.client = earlier.client(testbed, old.client_sections)
        begin(old)
        old_rate = rate(old, OLD_COUNT)
    with Testbed(tmp_path) as testbed:
        new = ServerClientPair(testbed)
        begin(new)
        new_rate = 0.0
        for _ in range(TRIES):
            if new_rate <= TIMES_FASTER * old_rate:
                new_rate = max(new_rate, rate(new, NEW_COUNT))
    record_property("ratio", f"{new_rate / old_rate:.0f}")
    assert new_rate > TIMES_FASTER * old_rate, f"{new_rate:.0f} files/s against {old_rate:.1f}"


def rate(pair: ServerClientPair, count: int) -> float:
    """Return the files per second between the first appearance and the last receipt."""
    started = time.monotonic()
    pair.feeder.feed(count)
    pair.wait_until_done(100)
    return count / (pair.received.of_type("file")[-1].at - started)
