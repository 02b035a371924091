"""New files do not wait behind a backlog from an outage."""

from __future__ import annotations

import re

from trollmoves.scheduler.lanes import PREFETCH
from trollmoves.tests.helpers.daemons import ServerClientPair, Testbed, client_section, server_section
from trollmoves.tests.helpers.directories import RemoteDirectory
from trollmoves.tests.helpers.waiting import until

COUNT = 100
SOME = 15_000  # bytes that the remote server accepts at first


def test_after_an_outage_of_the_destination(testbed: Testbed) -> None:
    """After an outage of the destination, new files arrive before most of the backlog."""
    place = RemoteDirectory(testbed, "ftp", testbed.directory("out"))
    pair = ServerClientPair(testbed, destination=place.url).start()
    place.proxy.refuse()
    old = pair.feeder.feed(COUNT)
    until(lambda: {one.uid for one in pair.received.of_type("push")} >= set(old), what="each was tried")
    place.proxy.stall_after(SOME)
    place.proxy.listen()
    until(lambda: place.proxy.sent > SOME, 60, "it takes some, and nothing more")
    before = COUNT - testbed.pending_tasks("fetch")
    assert before < COUNT / 4
    new = pair.feeder.feed(5)
    until(lambda: {one.uid for one in pair.announced.of_type("file")} >= set(new), what="they are announced")
    until(lambda: testbed.pending_tasks("fetch") == COUNT - before + len(new), what="all of the others wait")
    place.proxy.heal()
    pair.wait_until_done(80)
    order = pair.received.receipts()
    assert sorted(order) == sorted(pair.feeder.fed)
    assert max(order.index(name) for name in new) - before < (COUNT - before) * 0.7, (before, order)


def test_priority(testbed: Testbed) -> None:
    """Of sections that wait for a worker, the one with the highest priority is served first."""
    place = RemoteDirectory(testbed, "ftp", testbed.directory("far"))
    place.proxy.stall_after(0)
    priorities = {"keeps the worker": 9, "usual": 0, "urgent": 5}
    publish_port, feeders = testbed.port(), {}
    server: dict[str, dict[str, object]] = {"DEFAULT": {"workers": 1}}
    client = {}
    for number, (name, priority) in enumerate(priorities.items()):
        feeders[name] = testbed.feeder(f"in {number}", 1000 * number)
        destination = testbed.directory(f"out {number}") if number else place.url
        server[name] = server_section(feeders[name].folder, testbed.port(), topic=f"/{number}") | {"priority": priority}
        client[name] = client_section(publish_port, destination, testbed.port(), topic=f"/{number}")
    server_process = testbed.server(server, publish_port).start(wait=False)
    testbed.client(client).start()
    server_process.wait_until_ready()
    feeders["keeps the worker"].feed(
        2 * PREFETCH
    )  # more than fit in flight: the journal is read again before all are done
    until(lambda: place.proxy.open, what="the worker is kept")
    for name in ("usual", "urgent"):
        feeders[name].feed(8)
    until(lambda: testbed.pending_tasks("push") == 2 * PREFETCH + 2 * 8, what="all is asked for")
    place.proxy.heal()
    until(lambda: not testbed.pending_tasks("push"), what="all is done")
    done = re.findall(r"\[(usual|urgent)\] delivered", server_process.lines())
    assert done == ["urgent"] * 8 + ["usual"] * 8
