"""Servers and clients that share their work go on when PostgreSQL dies and its standby is promoted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import psycopg
import pytest

from trollmoves.journal import open_reader
from trollmoves.journal.postgresql.database import JUMP
from trollmoves.tests.helpers.daemons import Process, Sections, Testbed, client_section, server_section
from trollmoves.tests.helpers.journals import new_schema_of
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers import postgresql
from trollmoves.tests.servers.postgresql import Postgresql

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(postgresql.missing()), reason=f"missing: {postgresql.missing()}"),
]

BURST = 200
RECOVERY = 60  # s
_SYNCHRONOUS = "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'quorum'"


@pytest.fixture
def engines() -> Iterator[tuple[Postgresql, Postgresql]]:
    """Return a primary and its standby, which has all commits before they are acknowledged."""
    with Postgresql() as primary, Postgresql(primary=primary) as standby:
        with psycopg.connect(primary.url, autocommit=True) as db:
            db.execute("ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (*)'")
            db.execute("SELECT pg_reload_conf()")
            until(lambda: db.execute(_SYNCHRONOUS).fetchone(), 30, "the standby is synchronous")
        yield primary, standby


class Site:
    """Two servers of one directory, and two clients; each pair shares a journal on the engine that is the primary."""

    def __init__(self, testbed: Testbed, url: str) -> None:
        self.feeder, self.target = testbed.feeder(), testbed.directory("out")
        self.urls = [new_schema_of(url), new_schema_of(url)]
        journals = [{"journal": one, "fleet": "share", "synchronous": "full"} for one in self.urls]
        ports, own = [testbed.port(), testbed.port()], [testbed.port(), testbed.port()]
        self.servers: list[Process] = []
        self.clients: list[Process] = []
        for number, port in enumerate(ports):
            sections: Sections = {
                "DEFAULT": journals[0],
                "hrit": server_section(self.feeder.folder, testbed.port()),
            }
            self.servers.append(testbed.server(sections, port, name=f"server-{number}"))
        for number, port in enumerate(own):
            sections = {"DEFAULT": journals[1], "hrit": client_section(ports, self.target, port)}
            self.clients.append(testbed.client(sections, name=f"client-{number}"))
        self.announced = [testbed.subscriber(port) for port in ports]
        self.received = [testbed.subscriber(port) for port in own]
        for process in (*self.servers, *self.clients):
            process.start(wait=False)
        for process in (*self.servers, *self.clients):
            process.wait_until_ready()
        for client in self.clients:
            client.wait_for_line("connected to", len(ports))

    def published(self) -> Counter[str]:
        """Return how often each file has a receipt."""
        return Counter(name for one in self.received for name in one.receipts())

    def wait_until_done(self) -> None:
        """Wait until all files have receipts, and are complete."""
        until(lambda: self.feeder.fed.keys() <= self.published().keys(), RECOVERY, "all files have receipts")
        assert self.feeder.missing(self.target) == []
        for url in self.urls:
            with open_reader(url) as reader:
                until(lambda: not reader.waiting(), RECOVERY, "all tasks are stored as done")

    def numbers(self) -> dict[int, set[str]]:
        """Return the files that were announced with each number."""
        found: dict[int, set[str]] = {}
        for one in (message for each in self.announced for message in each.of_type("file")):
            found.setdefault(one.data["announcement"]["number"], set()).add(one.uid)
        return found


def test_the_engine_fails_over(testbed: Testbed, engines: tuple[Postgresql, Postgresql]) -> None:
    """All files arrive; none that was done before is delivered twice, and no number is given to two files."""
    primary, standby = engines
    site = Site(testbed, primary.url_with(standby))
    site.feeder.feed(BURST)
    site.wait_until_done()
    done = set(site.feeder.fed)
    site.feeder.feed(BURST, pause=0.01)
    primary.kill()
    site.feeder.feed(BURST // 4, pause=0.01)
    standby.promote()
    site.feeder.feed(BURST, pause=0.01)
    site.wait_until_done()
    repeated = {name for name, count in site.published().items() if count > 1}
    assert repeated & done == set()
    numbers = site.numbers()
    assert all(len(names) == 1 for names in numbers.values())
    assert max(numbers) > JUMP
