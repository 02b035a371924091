"""The PostgreSQL server of the tests: it starts, survives a crash, and its standby can be promoted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

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


def test_a_server_ends_with_a_killed_test_run() -> None:
    """A server ends if the process that started it is killed; the next one removes its directory."""
    script = (
        "import signal\nfrom trollmoves.tests.servers.postgresql import Postgresql\n"
        "server = Postgresql()\nserver.start()\nprint(server.folder, server.process.pid, flush=True)\nsignal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout
        folder, pid = started.stdout.readline().split()
        postgresql.remove_abandoned()
        assert Path(folder).exists()
        started.send_signal(signal.SIGKILL)
    until(lambda: not os.path.exists(f"/proc/{pid}"), what="the server has ended")
    postgresql.remove_abandoned()
    assert not Path(folder).exists()
