"""The PostgreSQL server of the tests: it starts, survives a crash, and its standby can be promoted."""

from __future__ import annotations

import pytest

from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers import postgresql
from trollmoves.tests.servers.postgresql import Postgresql

pytestmark = pytest.mark.skipif(bool(postgresql.missing()), reason=postgresql.missing())


def rows(server: Postgresql, url: str = "") -> list[int]:
    """Return the numbers in the table of a server."""
    import psycopg

    with psycopg.connect(url or server.url, autocommit=True) as db:
        return [number for (number,) in db.execute("SELECT number FROM numbers ORDER BY number")]


def test_a_committed_row_survives_a_crash_and_a_promotion() -> None:
    """A row is found after a crash of the server, on its standby, and after the promotion of the standby."""
    import psycopg

    with Postgresql() as server:
        with psycopg.connect(server.url, autocommit=True) as db:
            db.execute("CREATE TABLE numbers (number int)")
            db.execute("INSERT INTO numbers VALUES (1)")
        server.kill()
        server.start()
        assert rows(server) == [1]
        with Postgresql(primary=server) as standby:
            with psycopg.connect(server.url, autocommit=True) as db:
                db.execute("INSERT INTO numbers VALUES (2)")
            until(lambda: rows(standby) == [1, 2], what="the standby has the new row")
            server.kill()
            standby.promote()
            assert rows(standby, server.url_with(standby)) == [1, 2]
    assert not server.folder.exists()
