"""The status page that a daemon runs: ``web_port``."""

from __future__ import annotations

import json
import os
import signal
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

from trollmoves.tests.helpers.daemons import ServerClientPair, Testbed
from trollmoves.tests.helpers.recording import HOST
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers.process import answers

pytest.importorskip("uvicorn")
TOKEN = "a token for tests"


def child_of(pid: int) -> int:
    """Return the only child of a process, 0 if it has none."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    threads = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return int(next(iter([*children, *(one for found in threads for one in found)]), 0))


def is_running(pid: int) -> bool:
    """Return True if a process runs."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def post(port: int, token: str) -> int:
    """Order a pause by the page; return the HTTP status."""
    url, body = f"http://{HOST}:{port}/api/orders", json.dumps({"action": "pause", "name": "hrit"}).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=20) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_page_of_a_daemon(testbed: Testbed) -> None:
    """The page shows the daemon, acts with its token only, is started again, and ends with the daemon."""
    pair = ServerClientPair(testbed)
    port, token = testbed.port(), testbed.root / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    pair.server.reconfigure({"DEFAULT": {"web_port": port, "web_token_file": token}, **pair.server_sections})
    pair.server.start()
    popen = pair.server.popen
    assert popen is not None
    pair.server.wait_for_line(f"status page at http://{HOST}:{port}/")
    until(lambda: answers(port), 30, "the page")
    with urllib.request.urlopen(f"http://{HOST}:{port}/api/state", timeout=20) as reply:
        (daemon,) = json.load(reply)["daemons"]
    assert (daemon["name"], daemon["running"]) == ("server.ini", True)
    assert post(port, "wrong") in (401, 403)
    first = child_of(popen.pid)
    os.kill(first, signal.SIGKILL)
    pair.server.wait_for_line("the status page ended: exit status -9; starting it every 15 s")
    until(lambda: child_of(popen.pid) not in (0, first) and answers(port), 60, "the page again")
    second = child_of(popen.pid)
    pair.server.kill()
    until(lambda: not is_running(second), 20, "the page ends with a killed daemon")
    pair.server.start()
    until(lambda: child_of(pair.server.popen.pid) and answers(port), 30, "the page")  # type: ignore[union-attr]
    third = child_of(pair.server.popen.pid)  # type: ignore[union-attr]
    assert pair.server.terminate() == 0
    until(lambda: not is_running(third), 20, "the page ends with a stopped daemon")


def test_page_on_a_used_port(testbed: Testbed) -> None:
    """A page that cannot listen is reported with the reason; the daemon works."""
    pair = ServerClientPair(testbed)
    pair.server.reconfigure({"DEFAULT": {"web_port": pair.request_port}, **pair.server_sections})
    assert "is already used by [DEFAULT]" in testbed.run("move_it_server.py", pair.server.config, "--check").stderr
    pair.client.reconfigure({"DEFAULT": {"web_port": pair.request_port}, **pair.client_sections})
    pair.server.reconfigure(pair.server_sections)
    pair.start()
    pair.client.wait_for_line(f"cannot listen on 127.0.0.1:{pair.request_port}: Address already in use")
    pair.feeder.feed(1)
    pair.wait_until_done()
