"""Daemons raise alarms, run their commands, and report their health."""

from __future__ import annotations

import json
import shutil
import stat
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from trollmoves.config.options import ServerOptions
from trollmoves.control import client
from trollmoves.journal import DONE, FAILED, Outcome, Task, open_journal
from trollmoves.monitor import commands
from trollmoves.monitor.alarms import Alarm, Change
from trollmoves.monitor.commands import AlarmCommands
from trollmoves.monitor.health import Health
from trollmoves.monitor.monitor import Monitor
from trollmoves.scheduler.scheduler import Scheduler
from trollmoves.tests.helpers.daemons import ServerClientPair, Testbed
from trollmoves.tests.helpers.dispatching import TOPIC, DispatcherTestbed
from trollmoves.tests.helpers.recording import HOST, send_request
from trollmoves.tests.helpers.waiting import until


def journal_of(testbed: Testbed, role: str) -> str:
    """Return the journal of a daemon."""
    (journal,) = (testbed.root / "state").rglob(f"{role}-*.journal")
    return str(journal)


def health(testbed: Testbed, role: str) -> dict[str, Any]:
    """Return the health of a daemon."""
    return client.request(journal_of(testbed, role), "health")


def recorder(testbed: Testbed) -> tuple[str, Path]:
    """Return a command that appends the facts of an alarm to a file, and the file."""
    script, out = testbed.root / "re cord.py", testbed.root / "facts"
    script.write_text(
        f"#!{sys.executable}\nimport os, json\n"
        "facts = {k: v for k, v in os.environ.items() if k.startswith('TROLLMOVES_')}\n"
        f"open({str(out)!r}, 'a').write(json.dumps(facts) + '\\n')\n"
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return f"'{script}' '$HOME; x'", out


def facts_of(out: Path) -> list[tuple[str, str]]:
    """Return alarm and state of each call of the recorder."""
    lines = out.read_text().splitlines() if out.exists() else []
    return [(facts["TROLLMOVES_ALARM"], facts["TROLLMOVES_STATE"]) for facts in map(json.loads, lines)]


def test_silent_server(testbed: Testbed) -> None:
    """A server without files raises an alarm, which a file ends; the command gets the facts of both."""
    command, out = recorder(testbed)
    pair = ServerClientPair(testbed, {"expect_every": 3, "on_alarm": command})
    pair.server.start()
    pair.server.wait_for_line("[hrit] alarm expect_every: no file for ")
    assert health(testbed, "server")["alarms"][0]["alarm"] == "expect_every"
    assert health(testbed, "server")["status"] == "warning"
    pair.feeder.feed(1)
    pair.server.wait_for_line("[hrit] alarm expect_every ended after ")
    until(lambda: facts_of(out)[:2] == [("expect_every", "started"), ("expect_every", "ended")])
    facts = json.loads(out.read_text().splitlines()[0])
    assert (facts["TROLLMOVES_CHAIN"], facts["TROLLMOVES_ROLE"]) == ("hrit", "server")
    assert facts["TROLLMOVES_CONFIG"] == str(pair.server.config)


def test_waiting_and_failed_files(testbed: Testbed) -> None:
    """A dispatcher raises alarms about files that wait too long and about failed ones; they end with an order."""
    target = {"directory": "OUT", "topics": [TOPIC], "max_age": 1, "max_failed": 0, "on_alarm": "/no/such/command"}
    d = DispatcherTestbed(testbed, {"near": target}).start()
    journal = journal_of(testbed, "dispatcher")
    client.request(journal, "pause", name="near")
    d.publisher.publish_file(d.file("a"))
    gone = d.file("b")
    d.publisher.publish_file(gone)
    d.process.wait_for_line("[near] alarm max_age: 2 files wait, the oldest for ")
    d.process.wait_for_line("cannot run /no/such/command")
    gone.unlink()
    client.request(journal, "resume", name="near")
    d.process.wait_for_line("[near] alarm max_age ended")
    d.process.wait_for_line("[near] alarm max_failed: 1 failed file; the limit is 0")
    client.request(journal, "drop", failed=True)
    d.process.wait_for_line("[near] alarm max_failed ended")
    assert d.process.lines().count("alarm max_age: ") == 1


def test_health(testbed: Testbed) -> None:
    """The health of a server is in its reply to a ping, and with all problems at the control socket."""
    pair = ServerClientPair(testbed).start()
    ended = testbed.run("trollmoves", "health", pair.server.config, pair.client.config)
    assert (ended.returncode, ended.stdout.splitlines()[0]) == (0, "OK: 2 of 2 daemons ok")
    reply = send_request(pair.request_port, "/ping", "ping").data["health"]
    assert reply == {"status": "ok", "journal": "ok", "origin": "ok", "lanes": reply["lanes"]}
    shutil.rmtree(pair.feeder.folder)
    assert health(testbed, "server")["status"] == "critical"

    def ping() -> str:
        ended = testbed.run("move_it_req.py", "--ping", f"{HOST}:{pair.request_port}")
        return ended.stdout if ended.returncode == 2 else ""

    assert "CRITICAL: journal ok, origin unreadable" in until(ping)  # the health in a reply may be a second old
    ended = testbed.run("trollmoves", "health", pair.server.config, "--json")
    assert ended.returncode == 2
    assert "[hrit] origin: No such file or directory" in json.loads(ended.stdout)["daemons"][0]["problems"]
    pair.client.kill()
    ended = testbed.run("trollmoves", "health", pair.client.config)
    assert ended.returncode == 2
    assert "no daemon listens" in ended.stdout


def test_health_of_failing_lanes(testbed: Testbed) -> None:
    """A destination that fails makes the verdict a warning, with its name."""
    pair = ServerClientPair(testbed, destination=f"sftp://{HOST}:{testbed.port()}/x").start()
    pair.feeder.feed(1)
    until(lambda: health(testbed, "server")["status"] == "warning", 30)
    assert f"push sftp://{HOST}" in health(testbed, "server")["problems"][0]
    assert send_request(pair.request_port, "/ping", "ping").data["health"]["lanes"]["failing"] == 1
    assert client.request(journal_of(testbed, "server"), "drop", failed=True)["count"] == 0  # the client waits for it


def test_health_with_held_files(testbed: Testbed) -> None:
    """A held file makes the verdict a warning, also if its lane delivers other files."""
    d = DispatcherTestbed(testbed, {"near": {"directory": "OUT/{no_such_field}", "topics": [TOPIC]}}).start()
    d.publisher.publish_file(d.file("a"))
    d.process.wait_for_line("held (attempt 1)")
    ended = testbed.run("trollmoves", "health", d.process.config)
    assert (ended.returncode, "1 file held, see trollmoves held" in ended.stdout) == (1, True)


def change(command: tuple[str, ...]) -> Change:
    """Return the start of an alarm with a command."""
    return Change(Alarm("x", "max_failed", 1.0, 2.0, 0.0, "a\0b"), True, command)


def wait_until_ended(running: AlarmCommands) -> None:
    """Poll the commands until all have ended."""

    def ended() -> bool:
        running.poll()
        return not running.busy

    until(ended)


def test_limits_of_commands(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A slow command is killed with its children, few run at the same time, and a flood is bounded."""
    running = AlarmCommands({}, time_limit=0.2)
    marks = [tmp_path / str(number) for number in range(8)]
    for mark in marks:
        running.add(change(("sh", "-c", f"touch {mark}; sleep 600")))
    until(lambda: all(mark.exists() for mark in marks[: commands.MAX_RUNNING]))
    wait_until_ended(running)
    assert all(mark.exists() for mark in marks)
    assert caplog.text.count("[x] killed sh after 0.2 s") == len(marks)
    running.add(change(("false",)))
    wait_until_ended(running)
    assert "false ended with status 1" in caplog.text
    for _ in range(commands.MAX_QUEUED + 10):
        running.add(change(("sleep", "600")))
    assert "too many alarms, not running sleep" in caplog.text
    running.stop()
    assert not running.busy


def test_daily_summary(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The summary of a chain is one line with its files of the last day."""
    caplog.set_level("INFO")
    journal = open_journal(str(tmp_path / "x.journal"))
    scheduler = Scheduler(journal, 1)
    tasks = [Task("hrit", "push", f"{n} x", "push x", "") for n in range(5)]
    added = [task for task, _ in journal.add_tasks(tasks)]
    journal.finish([Outcome(task, 1) for task in added[:3]] + [Outcome(added[3], FAILED, "error")])
    section = ServerOptions(name="hrit", origin="/x", topic="/x")
    monitor = Monitor(journal, "announce", lambda: {"hrit": section}, Health(journal, scheduler, dict, list), {})
    monitor.log_summary()
    assert (
        "[hrit] last 24 h: 0 announced, 3 delivered, 1 failed, 0 dropped; 1 waiting, the oldest for 0 s" in caplog.text
    )
    journal.close()


def test_last_file_of_a_silent_chain(tmp_path: Path) -> None:
    """The last file of a chain is known although later rounds only search newer results."""
    journal = open_journal(str(tmp_path / "x.journal"))
    scheduler = Scheduler(journal, 1)
    sections = {name: ServerOptions(name=name, origin="/x", topic="/x", expect_every=1e6) for name in ("a", "b")}
    monitor = Monitor(journal, "push", lambda: sections, Health(journal, scheduler, dict, list), {})

    def finish(key: str) -> float:
        (task,) = (task for task, _ in journal.add_tasks([Task("a", "push", key, "push x", "")]))
        journal.finish([Outcome(task, DONE)])
        return journal.last_file_time("a", "push")

    first = finish("1")
    for _ in range(2):
        assert [monitor._states(sections)[name].last_file for name in ("a", "b")] == [first, 0.0]
    assert journal.last_file_time("a", "push", journal.now()) == 0.0
    second = finish("2")
    assert monitor._states(sections)["a"].last_file == second > first
    journal.close()


class DeadMount:
    """A directory that does not respond until ``release``."""

    def __init__(self) -> None:
        self.release = threading.Event()

    def __fspath__(self) -> str:
        self.release.wait()
        return "/"


def test_health_with_a_dead_mount(tmp_path: Path) -> None:
    """A directory that does not respond is a problem of its chain only."""
    mount = DeadMount()
    journal = open_journal(str(tmp_path / "x.journal"))
    origins: dict[str, Any] = {"dead": mount, "good": str(tmp_path), "same": str(tmp_path), "gone": "/nowhere"}
    health = Health(journal, Scheduler(journal, 1), lambda: origins, list)
    health.check()
    report = health.of_daemon()
    assert report["problems"] == ["[dead] origin: does not respond", "[gone] origin: No such file or directory"]
    mount.release.set()
    origins.pop("gone")
    health.check()
    assert health.of_daemon()["status"] == "ok"
    journal.close()
