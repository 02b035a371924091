"""Interoperation with the earlier implementation over network protocols."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from trollmoves.tests.helpers import legacy_peer as earlier
from trollmoves.tests.helpers.daemons import ServerClientPair, Testbed
from trollmoves.tests.helpers.directories import RemoteDirectory
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.system.test_interop import begin, connect

COUNT = 10


@pytest.mark.parametrize("scheme", ["ftp", "scp"])
@pytest.mark.parametrize("old", ["server", "client"])
def test_old_peer(tmp_path: Path, old: str, scheme: str) -> None:
    """Every file arrives complete, with its destination in the receipt."""
    with Testbed(tmp_path) as testbed:
        place = RemoteDirectory(testbed, scheme, testbed.directory("out"))
        pair = ServerClientPair(testbed, destination=place.url)
        if old == "server":
            pair.server = earlier.server(testbed, pair.server_sections, pair.publish_port)
        else:
            pair.client = earlier.client(testbed, pair.client_sections)
        begin(pair)
        names = pair.feeder.feed(COUNT)
        pair.wait_until_done(60)
        uris = {one.uid: one.data["uri"] for one in pair.received.of_type("file")}
        for name in names:
            assert [one.type for one in pair.received.of_file(name)][-2:] == ["ack", "file"]
            assert pair.received.receipts().count(name) == 1
            path = name if scheme == "ftp" else f"{pair.target}/{name}".lstrip("/")
            assert uris[name].endswith(f"/{path}")


def test_repeated_announcements_of_an_old_server(tmp_path: Path) -> None:
    """Announcements that an old server repeats after its restart are not fetched again."""
    with Testbed(tmp_path) as testbed:
        pair = ServerClientPair(testbed)
        pair.server = earlier.server(testbed, pair.server_sections, pair.publish_port)
        begin(pair)
        names = pair.feeder.feed(COUNT)
        pair.wait_until_done()
        for _ in range(10):  # until the test, and therefore the client, has reconnected
            announced = len(pair.announced.of_type("file"))
            pair.server.kill()
            pair.server.start()
            with suppress(AssertionError):
                until(lambda: len(pair.announced.of_type("file")) >= announced + COUNT, 5, timeout_factor=1)  # noqa: B023
                break
        else:
            raise AssertionError("it does not announce all of it again")
        connect(pair.feeder, pair.received)
        assert [pair.received.receipts().count(name) for name in names] == [1] * COUNT
