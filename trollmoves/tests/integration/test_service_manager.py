"""What daemons report to systemd, with a socket in place of systemd; test_systemd.py has the real one."""

from __future__ import annotations

import os
import re
import signal
import socket
from contextlib import closing
from pathlib import Path

import pytest

from trollmoves.journal import DONE, Task, open_journal
from trollmoves.tests.helpers.crashing import armed
from trollmoves.tests.helpers.daemons import ServerClientPair, Testbed
from trollmoves.tests.helpers.dead_mount import DeadMount
from trollmoves.tests.helpers.recording import HOST
from trollmoves.tests.helpers.service_socket import ServiceSocket, add_environment, journal_stream
from trollmoves.tests.helpers.waiting import until

WATCHDOG = 2.0  # s


def test_life_of_a_service(testbed: Testbed) -> None:
    """A daemon reports that it is ready, its status, that it works, each reload, and the stop."""
    pair = ServerClientPair(testbed)
    manager = ServiceSocket(testbed, WATCHDOG)
    add_environment(pair.server, manager.environment)
    pair.server.start()
    assert manager.wait_for("READY") == "1"
    assert manager.wait_for("STATUS") == "1 chain running; 0 tasks in flight"
    manager.wait_for("WATCHDOG", 2)
    pair.server.send(signal.SIGHUP)
    assert int(manager.wait_for("MONOTONIC_USEC")) > 0
    manager.wait_for("READY", 2)
    sections = pair.server.config.read_text()
    pair.server.reconfigure(
        f"{sections}\n[second]\norigin = {testbed.root}/{{name}}\ntopic = /x\nrequest_port = {testbed.port()}\n"
    )
    until(lambda: manager.values("STATUS")[-1].startswith("2 chains running;"), 20, "the status of both chains")
    pair.server.reconfigure(f"{sections}\n[second]\norigin = /\n")
    until(lambda: manager.values("STATUS")[-1].startswith("2 chains running;"), 20, "the status of both chains")
    pair.server.reconfigure(sections)
    until(lambda: manager.values("STATUS")[-1].startswith("1 chain running;"), 20, "the status of the last chain")
    assert pair.server.terminate() == 0
    manager.wait_for("STOPPING")


def test_recovery_of_a_journal_does_not_miss_the_watchdog(testbed: Testbed) -> None:
    """While the rows of a damaged journal are copied, the daemon reports that it works."""
    pair = ServerClientPair(testbed)
    pair.server.start()
    assert pair.server.terminate() == 0
    (path,) = (testbed.root / "state").rglob("server-*.journal")
    with closing(open_journal(str(path))) as journal:
        journal.add_tasks(
            [Task("hrit", "ack", f"{n:0500}", "ack", "", announcement_number=n, state=DONE) for n in range(20_000)]
        )
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2 // 4096 * 4096)
        file.write(os.urandom(4096))
    manager = ServiceSocket(testbed, 0.2)
    add_environment(pair.server, manager.environment)
    pair.server.start()
    assert "rows from the damaged journal" in pair.server.lines()
    names = [name for report in manager.reports for name in report]
    assert names[:3] == ["STATUS", "WATCHDOG", "EXTEND_TIMEOUT_USEC"]


@pytest.mark.parametrize(("failpoint", "thread"), [("committed", "scheduler"), ("request-received", "replier-hrit")])
def test_stuck_thread_misses_the_watchdog(testbed: Testbed, failpoint: str, thread: str) -> None:
    """A stuck scheduler or replier ends the reports, and is logged with its stack."""
    pair = ServerClientPair(testbed)
    manager = ServiceSocket(testbed, WATCHDOG)
    add_environment(pair.server, manager.environment)
    pair.server.command = armed(pair.server.command, f"{failpoint}:block")
    pair.start()
    manager.wait_for("WATCHDOG")
    pair.feeder.feed(1)
    pair.server.wait_for_line(f"the thread {thread} is stuck for ")
    until(lambda: manager.values("STATUS")[-1] == f"the thread {thread} is stuck", 10, "the status")
    assert "armed.py" in pair.server.lines()
    before = len(manager.values("WATCHDOG"))
    with pytest.raises(AssertionError):
        until(lambda: len(manager.values("WATCHDOG")) > before, WATCHDOG, timeout_factor=1)


def test_slow_destination_does_not_miss_the_watchdog(testbed: Testbed) -> None:
    """A transfer that waits for its host for longer than the watchdog's timeout does not stop the reports."""
    silent = testbed.close_at_end(socket.create_server(("127.0.0.1", 0)))
    port = silent.getsockname()[1]
    pair = ServerClientPair(testbed, destination=f"ftp://127.0.0.1:{port}/in/")
    manager = ServiceSocket(testbed, WATCHDOG)
    add_environment(pair.server, manager.environment)
    pair.start()
    pair.feeder.feed(3)
    until(lambda: "in flight" in manager.values("STATUS")[-1] and "0 tasks" not in manager.values("STATUS")[-1], 20)
    manager.wait_for("WATCHDOG", len(manager.values("WATCHDOG")) + 8)
    assert "stuck" not in pair.server.lines()


def test_dead_origin_does_not_miss_the_watchdog(testbed: Testbed) -> None:
    """A server with its origin on a dead file system goes on reporting, also when its files are requested."""
    pair = ServerClientPair(testbed)
    manager = ServiceSocket(testbed, WATCHDOG)
    add_environment(pair.server, manager.environment)
    pair.start()
    pair.feeder.feed(1)
    pair.wait_until_done()
    assert pair.client.terminate() == 0
    pair.feeder.feed(1)
    pair.server.wait_for_line("[hrit] announced ", 2)
    DeadMount(testbed, pair.feeder.folder)
    pair.client.start()
    pair.client.wait_for_line("connected to")
    manager.wait_for("WATCHDOG", len(manager.values("WATCHDOG")) + 8)
    assert "stuck" not in pair.server.lines()
    ended = testbed.run("move_it_req.py", "--ping", f"tcp://{HOST}:{pair.request_port}")
    assert " answered in " in ended.stdout, "the replay that waits for the origin delays no other reply"


def test_lines_of_the_journal(testbed: Testbed, tmp_path: Path) -> None:
    """Lines to the journal of systemd have a priority and no time, also those of a traceback."""
    pair = ServerClientPair(testbed)
    add_environment(pair.server, journal_stream(pair.server.log))
    pair.server.start()
    pair.server.reconfigure("[hrit\n")
    pair.server.wait_for_line("configuration not reloaded")
    lines = pair.server.lines().splitlines()
    assert [line for line in lines if not re.match(r"<[2-7]>\[[A-Z]+ : trollmoves[.\w]*\] \S", line)] == []
    assert any(line.startswith("<6>[INFO : trollmoves.daemon] server ") for line in lines)
    assert any(line.startswith("<3>[ERROR : trollmoves.daemon] configuration not reloaded") for line in lines)


def test_other_streams_have_times(testbed: Testbed) -> None:
    """A log that is not the journal has times and no priorities, although the service was started by systemd."""
    pair = ServerClientPair(testbed)
    add_environment(pair.server, {"JOURNAL_STREAM": "1:2"})
    pair.server.start()
    assert re.match(r"\[INFO: \d{4}-\d\d-\d\d ", pair.server.lines())
