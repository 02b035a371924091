"""Messages that arrive while PostgreSQL is away are kept on the disk, and handled in order when it is back."""

from __future__ import annotations

import re
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest

from trollmoves.journal import open_reader
from trollmoves.tests.helpers import legacy_peer as earlier
from trollmoves.tests.helpers.daemons import (
    MIRROR_TOPIC,
    Process,
    ServerClientPair,
    Testbed,
    client_section,
    mirror_section,
)
from trollmoves.tests.helpers.dispatching import TOPIC, DispatcherTestbed
from trollmoves.tests.helpers.journals import new_schema
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers import postgresql
from trollmoves.tests.servers.postgresql import Postgresql

pytestmark = [
    pytest.mark.skipif(bool(postgresql.missing()), reason=f"missing: {postgresql.missing()}"),
    pytest.mark.slow,
]

COUNT = 10
RETURN = 90  # s until the messages are handled, on a busy machine


@pytest.fixture
def engine() -> Iterator[Postgresql]:
    """Return a cluster that the test can stop."""
    with Postgresql() as server:
        yield server


def kept(testbed: Testbed) -> list[str]:
    """Return the messages in the spools of all daemons, oldest first."""
    texts: list[str] = []
    for spool in (testbed.root / "state").rglob("*.spool"):
        with (
            suppress(sqlite3.OperationalError),  # it is being created, or removed
            closing(sqlite3.connect(f"{spool.as_uri()}?mode=ro", uri=True, timeout=20)) as opened,
        ):
            texts += [text for (text,) in opened.execute("SELECT body FROM tasks WHERE state = 0 ORDER BY id")]
    return texts


def wait_until_kept(testbed: Testbed, names: list[str]) -> None:
    """Wait until the messages about these files are kept."""
    until(lambda: all(any(name in text for text in kept(testbed)) for name in names), RETURN, f"{names} are kept")


@pytest.mark.parametrize("fleet", ["standby", "share"])
def test_a_dispatcher(testbed: Testbed, engine: Postgresql, fleet: str) -> None:
    """A dispatcher that is killed and started while the engine is away delivers each file once, in order."""
    url = new_schema(engine)
    process = {"journal": url, "fleet": fleet}
    target = {"directory": "OUT", "dispatch_configs": [{"topics": [TOPIC]}], "max_transfers_per_host": 1}
    dispatcher = DispatcherTestbed(testbed, {"DEFAULT": process, "mail": target}).start()
    daemon, publisher = dispatcher.process, dispatcher.publisher

    def publish(prefix: str) -> list[str]:
        names = [f"{prefix}{number}" for number in range(COUNT)]
        for name in names:
            publisher.publish_file(dispatcher.file(name))
        return names

    names = publish("before")
    dispatcher.wait_for(*names)
    with open_reader(url) as reader:
        until(lambda: not reader.waiting(), RETURN, "all deliveries are stored as done")
    engine.stop()
    names += publish("away")
    wait_until_kept(testbed, names[COUNT:])
    daemon.kill()
    dispatcher.publisher.wait_until_unsubscribed()
    daemon.start(wait=False)
    publisher.wait_for_topics([TOPIC])
    names += publish("started")
    wait_until_kept(testbed, names[COUNT:])
    engine.start()
    daemon.wait_until_ready()
    dispatcher.wait_for(*names, seconds=RETURN)
    names += publish("back")
    dispatcher.wait_for(*names, seconds=RETURN)
    until(lambda: not list((testbed.root / "state").rglob("*.spool*")), RETURN, "no message is kept any more")
    assert daemon.terminate() == 0
    assert re.findall(r"\] delivered (\S+) to", daemon.log.read_text()) == names


@pytest.mark.parametrize(("server", "fleet"), [("old", "standby"), ("old", "share"), ("new", "share")])
def test_a_client(testbed: Testbed, engine: Postgresql, server: str, fleet: str) -> None:
    """A client that is killed and started while the engine is away fetches each announced file once."""
    pair = ServerClientPair(testbed, transfer_req_timeout=5)
    pair.client.reconfigure({"DEFAULT": {"journal": new_schema(engine), "fleet": fleet}, **pair.client_sections})
    if server == "old":
        pair.server = earlier.server(testbed, pair.server_sections, pair.publish_port)
    pair.start()
    _restart_while_away(testbed, engine, pair.client, pair)


def test_a_mirror(testbed: Testbed, engine: Postgresql) -> None:
    """A mirror that is killed and started while the engine is away announces each file of an old server once."""
    pair = ServerClientPair(testbed)
    pair.server = earlier.server(testbed, pair.server_sections, pair.publish_port)
    port = testbed.port()
    section = mirror_section(pair.publish_port, testbed.directory("copies"), testbed.port(), transfer_req_timeout=5)
    mirror = testbed.mirror({"DEFAULT": {"journal": new_schema(engine)}, "far": section}, port)
    client = client_section(port, pair.target, pair.client_port, topic=MIRROR_TOPIC, transfer_req_timeout=5)
    pair.client.reconfigure({"hrit": client})
    mirror.start()
    pair.start()
    _restart_while_away(testbed, engine, mirror, pair)


def _restart_while_away(testbed: Testbed, engine: Postgresql, daemon: Process, pair: ServerClientPair) -> None:
    """Kill and start a daemon that receives announcements while the engine is away; all files have one receipt."""
    fed: list[str] = []

    def is_announced() -> bool:
        """Feed a file; return True if it is kept, or fetched."""
        fed.extend(pair.feeder.feed())
        try:
            until(lambda: fed[-1] in pair.received.receipts() or fed[-1] in "".join(kept(testbed)), 0.5, "", 1)
        except AssertionError:
            return False
        return True

    until(is_announced, RETURN, "the daemon is connected")
    engine.stop()
    names = pair.feeder.feed(COUNT)
    wait_until_kept(testbed, names)
    daemon.kill()
    daemon.start(wait=False)
    until(is_announced, RETURN, "the daemon is connected")
    names += [fed[-1], *pair.feeder.feed(COUNT)]
    wait_until_kept(testbed, names)
    engine.start()
    daemon.wait_until_ready()
    pair.received.wait_for_receipts(names, RETURN)
    names += pair.feeder.feed(COUNT)
    pair.received.wait_for_receipts(names, RETURN)
    until(lambda: not list((testbed.root / "state").rglob("*.spool*")), RETURN, "no message is kept any more")
    assert {count for name, count in Counter(pair.received.receipts()).items() if name in names} == {1}
