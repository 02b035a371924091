"""The orders of an operator work on running and stopped daemons, and survive a kill."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from trollmoves.control import client
from trollmoves.control.client import ControlError
from trollmoves.errors import JournalError
from trollmoves.journal import Task, record_offline
from trollmoves.orders.order import Order
from trollmoves.receiver.fetch_sources import compact_body
from trollmoves.tests.helpers.daemons import Process, ServerClientPair, Testbed
from trollmoves.tests.helpers.dispatching import TOPIC, DispatcherTestbed
from trollmoves.tests.helpers.waiting import until


def journal_of(testbed: Testbed, role: str) -> Path:
    """Return the journal of a daemon that has run."""
    (journal,) = (testbed.root / "state").rglob(f"{role}-*.journal")
    return journal


def order(testbed: Testbed, role: str, action: str, **values: Any) -> dict[str, Any]:
    """Send an order to a running daemon; return its result."""
    return client.request(str(journal_of(testbed, role)), action, **values)


def store(testbed: Testbed, role: str, action: str, **values: Any) -> None:
    """Store an order for a stopped daemon."""
    stored = Order.parse({"action": action, "by": "a test", "at": time.time(), **values})
    record_offline(str(journal_of(testbed, role)), stored.key, stored.dump())


def tasks(testbed: Testbed, role: str, kind: str) -> list[tuple[str, int]]:
    """Return key and state of the tasks of a kind."""
    with closing(sqlite3.connect(f"{journal_of(testbed, role).as_uri()}?mode=ro", uri=True, timeout=20)) as opened:
        return list(opened.execute("SELECT key, state FROM tasks WHERE kind = ?", (kind,)))


def wait_for_waiting(testbed: Testbed, role: str, kind: str, count: int) -> None:
    """Wait until this number of tasks wait."""
    until(lambda: [state for _, state in tasks(testbed, role, kind)].count(0) == count, 20, f"{count} waiting {kind}")


@pytest.fixture
def pair(testbed: Testbed) -> ServerClientPair:
    """Return a running server and client."""
    return ServerClientPair(testbed, {"probe_interval": 120}, probe_interval=120).start()


def restart_killed(process: Process) -> None:
    """Kill a daemon and start it again."""
    process.kill()
    process.start()


@pytest.mark.parametrize(("role", "name"), [("server", "this host"), ("client", "hrit")])
def test_pause_and_resume(testbed: Testbed, pair: ServerClientPair, role: str, name: str) -> None:
    """A paused destination or section accepts files and delivers none, also after a kill; then it delivers them all."""
    process = pair.server if role == "server" else pair.client
    pair.feeder.feed(3)
    pair.wait_until_done()
    assert "paused" in order(testbed, role, "pause", name=name)["text"]
    names = pair.feeder.feed(3)
    wait_for_waiting(testbed, role, "push" if role == "server" else "fetch", 3)
    restart_killed(process)
    if not os.geteuid():
        process.wait_for_line(f"{name} is paused, by root (uid 0)")
    names += pair.feeder.feed(2)
    wait_for_waiting(testbed, role, "push" if role == "server" else "fetch", 5)
    assert not [name for name in names if (pair.target / name).exists()]
    with pytest.raises(ControlError, match="is not paused"):
        order(testbed, role, "resume", name="this hos")
    assert order(testbed, role, "resume", name=name)["count"] == 5
    pair.wait_until_done()
    process.wait_for_line(f"resume {name}, ordered by")


def test_orders_for_a_stopped_daemon(testbed: Testbed, pair: ServerClientPair) -> None:
    """Orders that were stored while a daemon was down are carried out at its start, once, in their order."""
    pair.feeder.feed(1)
    pair.wait_until_done()
    with pytest.raises(JournalError, match="in use by another process"):
        store(testbed, "client", "pause", name="hrit")
    pair.client.kill()
    ended = testbed.run("trollmoves", "pause", "hrit", "-c", pair.client.config)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "stored; the daemon does not run" in ended.stdout
    pair.client.start()
    pair.feeder.feed(2)
    wait_for_waiting(testbed, "client", "fetch", 2)
    assert pair.client.terminate() == 0
    store(testbed, "client", "resume", name="hrit")
    store(testbed, "client", "resume", name="hrit")
    pair.client.start()
    pair.wait_until_done()
    assert [state for _, state in tasks(testbed, "client", "order")].count(0) == 0
    assert "resume hrit, ordered by a test at " in pair.client.lines()
    assert "hrit is not paused" in pair.client.lines()


def test_command(testbed: Testbed, pair: ServerClientPair) -> None:
    """The command gives an order to the daemons that are named, or to all running ones, as text and as JSON."""
    (name,) = pair.feeder.feed(1)
    pair.wait_until_done()
    until(lambda: not testbed.pending_tasks())
    (pair.target / name).unlink()
    ended = testbed.run("trollmoves", "resend", name, "--since", "1h", "-c", pair.server.config, "--json")
    assert ended.returncode == 0
    reply = json.loads(ended.stdout)
    assert (reply["status"], reply["daemons"][0]["state"], reply["daemons"][0]["count"]) == ("ok", "done", 1)
    until(lambda: (pair.target / name).exists())
    assert testbed.run("trollmoves", "pause", "this host").returncode == 0
    assert "paused" in pair.server.lines()
    for arguments in (["pause", "nosuch"], ["retry"], ["drop", "nosuch"], ["resend", "--since", "soon"]):
        ended = testbed.run("trollmoves", *arguments)
        assert ended.returncode == 3
        assert "Traceback" not in ended.stderr


def test_unknown_names(testbed: Testbed, pair: ServerClientPair) -> None:
    """An order for an unknown name changes nothing and names the known ones, also in a stopped daemon."""
    pair.feeder.feed(1)
    pair.wait_until_done()
    for name in ("hrti", "sftp://far"):
        with pytest.raises(
            ControlError, match=f"no section and no destination is named {name}; known are hrit, this ho"
        ):
            order(testbed, "server", "pause", name=name)
    for values in ({"name": ""}, {"name": 5}, {"name": "x" * 5000}, {}):
        with pytest.raises(ControlError):
            order(testbed, "server", "pause", **values)
    for action in ("retry", "drop"):
        with pytest.raises(ControlError, match="no waiting or failed file is named nosuchfile"):
            order(testbed, "server", action, file="nosuchfile")
    with pytest.raises(ControlError, match="no delivered file to resend"):
        order(testbed, "server", "resend", file="nosuchfile")
    with pytest.raises(ControlError):
        order(testbed, "server", "resend", file="*", to="x y://")
    pair.server.kill()
    ended = testbed.run("trollmoves", "pause", "sftp://far", "-c", pair.server.config)
    assert ended.returncode == 3
    assert "no destination is named sftp://far; known are hrit, this host" in ended.stdout


def test_release(testbed: Testbed, pair: ServerClientPair) -> None:
    """After an order to both sides, files that wait for the next attempt are sent immediately."""
    pair.target.rmdir()
    pair.target.write_text("in the way")
    names = pair.feeder.feed(2)
    pair.client.wait_for_line("not delivered", 3)
    pair.target.unlink()
    pair.target.mkdir()
    order(testbed, "server", "release", name="this host")
    order(testbed, "client", "release", name="hrit")
    pair.received.wait_for_receipts(names, 10)


def test_resend_from_the_server(testbed: Testbed, pair: ServerClientPair) -> None:
    """Delivered files are sent again: one, those since a time, and to another destination; also after compaction."""
    names = pair.feeder.feed(3)
    pair.wait_until_done()
    until(lambda: not testbed.pending_tasks())
    (pair.target / names[0]).unlink()
    assert order(testbed, "server", "resend", file=names[0])["count"] == 1
    until(lambda: (pair.target / names[0]).exists())
    pair.server.kill()
    with closing(sqlite3.connect(journal_of(testbed, "server"))) as opened, opened:
        opened.execute("UPDATE tasks SET body = '', reply = NULL WHERE kind = 'push' AND state = 1")
    for name in names:
        (pair.target / name).unlink()
    store(testbed, "server", "resend", since=time.time() - 60)
    pair.server.start()
    until(lambda: pair.feeder.all_delivered(pair.target))
    other = testbed.directory("other")
    order(testbed, "server", "resend", file="*__", to=str(other))
    until(lambda: pair.feeder.all_delivered(other))


def test_resend_from_the_client(testbed: Testbed, pair: ServerClientPair) -> None:
    """A client requests a file again, and publishes its receipt again."""
    (name,) = pair.feeder.feed(1)
    pair.wait_until_done()
    until(lambda: not testbed.pending_tasks())
    (pair.target / name).unlink()
    assert order(testbed, "client", "resend", file=name)["count"] == 1
    until(lambda: (pair.target / name).exists())
    until(lambda: len(pair.received.of_type("file")) == 2)
    until(lambda: not testbed.pending_tasks())
    pair.client.kill()
    with closing(sqlite3.connect(journal_of(testbed, "client"))) as opened, opened:
        ((body,),) = opened.execute("SELECT body FROM tasks WHERE kind = 'fetch'")
        compacted = compact_body(Task("hrit", "fetch", name, "", body))
        assert "pytroll:" not in compacted
        opened.execute("UPDATE tasks SET body = ?, reply = NULL WHERE kind = 'fetch'", (compacted,))
    (pair.target / name).unlink()
    store(testbed, "client", "resend", file=name)
    pair.client.start()
    until(lambda: (pair.target / name).exists())
    until(lambda: len(pair.received.of_type("file")) == 3)
    until(lambda: not testbed.pending_tasks())
    (pair.feeder.folder / name).unlink()
    assert order(testbed, "client", "resend", file=name)["count"] == 1
    pair.client.wait_for_line("permanently rejected")


def test_resend_to_a_destination_with_waiting_requests(testbed: Testbed, pair: ServerClientPair) -> None:
    """A file that is resent to the destination of a waiting request is delivered once; the client gets the reply."""
    pair.feeder.feed(1)
    pair.wait_until_done()
    order(testbed, "server", "pause", name="this host")
    (name,) = pair.feeder.feed(1)
    wait_for_waiting(testbed, "server", "push", 1)
    ((key, _),) = [task for task in tasks(testbed, "server", "push") if task[1] == 0]
    assert order(testbed, "server", "resend", file=name, to=key.partition(" ")[2])["count"] == 1
    assert [state for _, state in tasks(testbed, "server", "push")].count(0) == 1
    order(testbed, "server", "resume", name="this host")
    pair.received.wait_for_receipts([name], 10)


def test_retry_and_drop_of_a_failed_file(testbed: Testbed, pair: ServerClientPair) -> None:
    """A failed file is retried after its repair; a dropped one is not sent, and counts as failed no longer."""
    order(testbed, "client", "pause", name="hrit")
    first, second = pair.feeder.feed(2)
    wait_for_waiting(testbed, "client", "fetch", 2)
    kept = {name: (pair.feeder.folder / name).rename(testbed.root / name) for name in (first, second)}
    order(testbed, "client", "resume", name="hrit")
    until(lambda: sorted(tasks(testbed, "client", "fetch")) == sorted([(first, 2), (second, 2)]))
    assert order(testbed, "client", "drop", file=second)["count"] == 1
    pair.server.send(signal.SIGSTOP)  # it would announce the first file again, and the client retry without an order
    for name, path in kept.items():
        path.rename(pair.feeder.folder / name)
    assert order(testbed, "client", "retry", failed=True)["count"] == 1
    pair.server.send(signal.SIGCONT)
    until(lambda: (pair.target / first).exists())
    restart_killed(pair.client)
    until(lambda: sorted(tasks(testbed, "client", "fetch")) == sorted([(first, 1), (second, 3)]))
    assert not (pair.target / second).exists()


def test_drop_of_waiting_files(testbed: Testbed, pair: ServerClientPair) -> None:
    """Dropped files of a paused destination are not sent after the end of the pause; the others are."""
    pair.feeder.feed(1)
    pair.wait_until_done()
    order(testbed, "server", "pause", name="this host")
    first, second = pair.feeder.feed(2)
    wait_for_waiting(testbed, "server", "push", 2)
    assert order(testbed, "server", "drop", file=str(pair.feeder.folder / first))["count"] == 1
    pair.client.wait_for_line("dropped by the operator of the server")
    order(testbed, "server", "resume", name="this host")
    until(lambda: (pair.target / second).exists())
    restart_killed(pair.server)
    assert not (pair.target / first).exists()


@pytest.fixture
def dispatcher(testbed: Testbed) -> DispatcherTestbed:
    """Return a running dispatcher with one target that publishes."""
    target = {"directory": "OUT", "topics": [TOPIC], "publish_topic": "/sent"}
    return DispatcherTestbed(testbed, {"near": target}).start()


def test_dispatcher(testbed: Testbed, dispatcher: DispatcherTestbed) -> None:
    """A dispatcher pauses, drops and resends; also a delivery that was compacted is published again."""
    d = dispatcher
    order(testbed, "dispatcher", "pause", name="near")
    for name in ("a to b", "c d.nc"):
        d.publisher.publish_file(d.file(name))
    wait_for_waiting(testbed, "dispatcher", "deliver", 2)
    assert order(testbed, "dispatcher", "drop", file="a to*")["count"] == 1
    restart_killed(d.process)
    order(testbed, "dispatcher", "resume", name="near")
    assert list(d.wait_for("c d.nc")) == ["c d.nc"]
    until(lambda: not testbed.pending_tasks())
    until(lambda: len(d.subscriber.of_type("file")) == 1)
    (d.out / "c d.nc").unlink()
    order(testbed, "dispatcher", "resend", file="/*/c d.nc")
    d.wait_for("c d.nc")
    until(lambda: len(d.subscriber.of_type("file")) == 2)
    order(testbed, "dispatcher", "resend", file="c d.nc", to=f"{d.out}/other/")
    d.wait_for("other/c d.nc")
