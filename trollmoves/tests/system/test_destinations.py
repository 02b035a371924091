"""Destinations that cannot take files, and stale partials of killed transfers."""

from __future__ import annotations

from pathlib import Path

import pytest

from trollmoves.movers.partials import partial_path
from trollmoves.tests.helpers.daemons import MIRROR_TOPIC, ServerClientPair, Testbed, client_section, mirror_section
from trollmoves.tests.helpers.directories import RemoteDirectory
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.helpers.wall_clock import WallClock
from trollmoves.tests.servers import pyftpd
from trollmoves.tests.servers.process import HOST

TWO_HOURS = 7200


def test_destination_is_down(testbed: Testbed) -> None:
    """Files for a destination that is down do not delay others, and are delivered when it is back."""
    far = RemoteDirectory(testbed, "ftp", testbed.directory("far"))
    far.proxy.refuse()
    pair = ServerClientPair(testbed)
    port = testbed.port()
    there = client_section(pair.publish_port, far.url, port)
    pair.client.reconfigure({**pair.client_sections, "there": there})
    subscriber = testbed.subscriber(port)
    pair.start()
    pair.feeder.feed(20)
    pair.wait_until_done()
    assert subscriber.receipts() == []
    far.proxy.listen()
    subscriber.wait_for_receipts(pair.feeder.fed, 60)
    assert pair.feeder.missing(far.folder) == []


def test_destination_is_held(testbed: Testbed) -> None:
    """A destination that an operator must repair is logged once; other sections continue."""
    (testbed.root / "file").write_text("no directory")
    pair = ServerClientPair(testbed)
    wrong = client_section(
        pair.publish_port, testbed.root / "file" / "below", testbed.port(), create_target_directory="false"
    )
    pair.client.reconfigure({**pair.client_sections, "wrong": wrong})
    pair.start()
    pair.feeder.feed(3)
    pair.wait_until_done()
    pair.server.wait_for_line(", held (attempt")
    pair.feeder.feed(10)
    pair.wait_until_done()
    assert pair.server.lines().count("not delivered") == 1


@pytest.mark.parametrize("provider", ["server", "mirror"])
def test_users_of_one_url(testbed: Testbed, provider: str) -> None:
    """Two users with one URL have their own home directories: each gets every file, by a server and by a mirror."""
    if why := pyftpd.missing():
        pytest.skip(f"missing: {why}")
    homes = {pyftpd.USER: testbed.directory("home-a"), "other": testbed.directory("home-b")}
    options = ("--user", "other", str(homes["other"]))
    ftp = testbed.enter(pyftpd.PyFtpd(testbed.directory("ftpd"), homes[pyftpd.USER], options=options))
    pair = ServerClientPair(testbed)
    port, topic = pair.publish_port, {}
    if provider == "mirror":
        port, topic = testbed.port(), {"topic": MIRROR_TOPIC}
        section = mirror_section(pair.publish_port, testbed.directory("copies"), testbed.port())
        testbed.mirror({"far": section}, port).start()
    subscribers = []
    for user in homes:
        login = f"{user}:{pyftpd.PASSWORD}"
        section = client_section(port, f"ftp://{HOST}:{ftp.port}/in", testbed.port(), login=login, **topic)
        pair.client_sections[user] = section
        subscribers.append(testbed.subscriber(int(str(section["publish_port"]))))
    pair.client.reconfigure(pair.client_sections)
    pair.start()
    pair.feeder.feed(5)
    for subscriber in subscribers:
        subscriber.wait_for_receipts(pair.feeder.fed, 30)
        assert not [text for text in subscriber.texts if f"@{HOST}" in text]
    assert [pair.feeder.missing(home / "in") for home in homes.values()] == [[], []]


def test_stale_partials_are_removed(testbed: Testbed) -> None:
    """Partials of killed processes, older than an hour, are removed with the first delivery to their directory."""
    clock = WallClock(testbed.directory("clock"))
    clock.set(TWO_HOURS)
    pair = ServerClientPair(testbed)
    left = Path(partial_path(f"{pair.target}/half"))
    left.write_bytes(b"half")
    pair.start()
    pair.feeder.feed(1)
    pair.wait_until_done()
    assert left.exists()
    pair.server.kill()
    clock.of(pair.server)
    pair.server.start()
    pair.feeder.feed(1)
    pair.wait_until_done()
    until(lambda: not left.exists(), what="it is removed")
    pair.server.wait_for_line("removed stale partial file")
