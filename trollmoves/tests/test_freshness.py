"""New files do not wait behind those that an outage has held up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from trollmoves.tests.daemons import Pair, Site, client_section, server_section
from trollmoves.tests.places import FarEnd
from trollmoves.tests.waiting import until

COUNT = 100


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A site for one test."""
    with Site(tmp_path) as site:
        yield site


def test_after_an_outage_of_the_destination(site: Site) -> None:
    """When a destination is back, what appears now is there before most of what could not be delivered."""
    place = FarEnd(site, "ftp", site.folder("out"))
    pair = Pair(site, destination=place.url).start()
    place.proxy.refuse()
    old = pair.feeder.feed(COUNT)
    until(lambda: {one.uid for one in pair.received.of("push")} >= set(old), what="each was tried")
    place.proxy.rate = 25_000
    place.proxy.listen()
    pair.received.wait_for(5, "file", seconds=60)
    before = len(pair.received.receipts())
    new = pair.feeder.feed(5)
    pair.wait_until_done(80)
    order = pair.received.receipts()
    assert sorted(order) == sorted(pair.feeder.fed)
    assert COUNT - before > 20, "too few were left for this to tell anything"
    assert max(order.index(name) for name in new) - before < (COUNT - before) * 0.7, (before, order)


def test_priority(site: Site) -> None:
    """Of two sections with much to do, that with the higher priority is done first."""
    feeders = {name: site.feeder(name, first) for name, first in (("usual", 0), ("urgent", 1000))}
    publish_port, port = site.port(), {name: site.port() for name in feeders}
    server: dict[str, dict[str, object]] = {"DEFAULT": {"workers": 1}}
    client = {}
    for name, feeder in feeders.items():
        server[name] = server_section(feeder.folder, site.port(), topic=f"/{name}")
        client[name] = client_section(publish_port, site.folder(f"out-{name}"), port[name], topic=f"/{name}")
    server["urgent"]["priority"] = client["urgent"]["priority"] = 5
    ears = {name: site.ear(number) for name, number in port.items()}
    for feeder in feeders.values():
        feeder.feed(8, size=10_000_000)
    server_process = site.server(server, publish_port).start(wait=False)
    site.client(client).start()
    server_process.wait_until_ready()
    for name, feeder in feeders.items():
        ears[name].wait_for_receipts(feeder.fed, 60)
    middle = {name: sorted(one.at for one in ears[name].of("file"))[4] for name in ears}
    assert middle["urgent"] < middle["usual"]
