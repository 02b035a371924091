"""New files do not wait behind those that an outage has held up."""

from __future__ import annotations

import re

from trollmoves.scheduler.lanes import PREFETCH
from trollmoves.tests.helpers.daemons import Pair, Site, client_section, server_section
from trollmoves.tests.helpers.directories import FarEnd
from trollmoves.tests.helpers.waiting import until

COUNT = 100
SOME = 15_000  # bytes that the far end takes at first


def test_after_an_outage_of_the_destination(site: Site) -> None:
    """When a destination is back, what appears now is there before most of what could not be delivered."""
    place = FarEnd(site, "ftp", site.folder("out"))
    pair = Pair(site, destination=place.url).start()
    place.proxy.refuse()
    old = pair.feeder.feed(COUNT)
    until(lambda: {one.uid for one in pair.received.of("push")} >= set(old), what="each was tried")
    place.proxy.stall_after(SOME)
    place.proxy.listen()
    until(lambda: place.proxy.sent > SOME, 60, "it takes some, and nothing more")
    before = COUNT - site.to_do("fetch")
    assert before < COUNT / 4
    new = pair.feeder.feed(5)
    until(lambda: {one.uid for one in pair.announced.of("file")} >= set(new), what="they are announced")
    until(lambda: site.to_do("fetch") == COUNT - before + len(new), what="all of the others wait")
    place.proxy.heal()
    pair.wait_until_done(80)
    order = pair.received.receipts()
    assert sorted(order) == sorted(pair.feeder.fed)
    assert max(order.index(name) for name in new) - before < (COUNT - before) * 0.7, (before, order)


def test_priority(site: Site) -> None:
    """Of sections that wait for a worker, that with the higher priority is done first."""
    place = FarEnd(site, "ftp", site.folder("far"))
    place.proxy.stall_after(0)
    priorities = {"keeps the worker": 9, "usual": 0, "urgent": 5}
    publish_port, feeders = site.port(), {}
    server: dict[str, dict[str, object]] = {"DEFAULT": {"workers": 1}}
    client = {}
    for number, (name, priority) in enumerate(priorities.items()):
        feeders[name] = site.feeder(f"in {number}", 1000 * number)
        destination = site.folder(f"out {number}") if number else place.url
        server[name] = server_section(feeders[name].folder, site.port(), topic=f"/{number}") | {"priority": priority}
        client[name] = client_section(publish_port, destination, site.port(), topic=f"/{number}")
    server_process = site.server(server, publish_port).start(wait=False)
    site.client(client).start()
    server_process.wait_until_ready()
    feeders["keeps the worker"].feed(2 * PREFETCH)  # more than is in hand: what waits is looked at before all are done
    until(lambda: place.proxy.open, what="the worker is kept")
    for name in ("usual", "urgent"):
        feeders[name].feed(8)
    until(lambda: site.to_do("push") == 2 * PREFETCH + 2 * 8, what="all is asked for")
    place.proxy.heal()
    until(lambda: not site.to_do("push"), what="all is done")
    done = re.findall(r"\[(usual|urgent)\] delivered", server_process.lines())
    assert done == ["urgent"] * 8 + ["usual"] * 8
