"""``move_it_req.py`` sends requests to a server, and prints the reply or its absence."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from trollmoves.tests.helpers import legacy_peer as earlier
from trollmoves.tests.helpers.daemons import TOPIC, ServerClientPair, Testbed
from trollmoves.tests.helpers.recording import HOST
from trollmoves.tests.helpers.waiting import until

REQ = "move_it_req.py"
MILLISECONDS = r"\d+\.\d ms"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerClientPair]:
    """A server that has announced three files."""
    with Testbed(tmp_path_factory.mktemp("pair")) as testbed:
        pair = ServerClientPair(testbed, {"station": "Norrköping"})
        pair.server.start()
        pair.feeder.feed(3)
        pair.announced.wait_for(3)
        yield pair


def failed(ended: subprocess.CompletedProcess[str], status: int = 1) -> str:
    """Check that a command ended with a status and one line; return that."""
    assert (ended.returncode, ended.stdout) == (status, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"{REQ}: ")
    return line


@pytest.mark.parametrize("form", ["tcp://{}:{}", "{}:{}"])
def test_ping(pair: ServerClientPair, testbed: Testbed, form: str) -> None:
    """A ping shows the station, the time to the reply, and the health."""
    ended = testbed.run(REQ, "--ping", form.format(HOST, pair.request_port))
    assert (ended.returncode, ended.stderr) == (0, "")
    address = f"tcp://{HOST}:{pair.request_port}"
    assert re.fullmatch(rf"station Norrköping at {address} answered in {MILLISECONDS}\nOK: .*\n", ended.stdout)


def test_info(pair: ServerClientPair, testbed: Testbed) -> None:
    """Info shows the start time of the server, then the files, the newest first, then their number."""
    ended = testbed.run(REQ, "--info", TOPIC, f"{HOST}:{pair.request_port}")
    assert (ended.returncode, ended.stderr) == (0, "")
    first, *files, last = ended.stdout.splitlines()
    assert re.fullmatch(rf"tcp://{HOST}:{pair.request_port} is up for 0:0.*", first)
    assert files == [f"{TOPIC}/{name}" for name in reversed(pair.feeder.fed)]
    assert last == "3 files"
    assert testbed.run(REQ, "--info", "/another", f"{HOST}:{pair.request_port}").stdout.endswith("\n0 files\n")


def test_extra(pair: ServerClientPair, testbed: Testbed) -> None:
    """--extra adds keys to the request's data, whole numbers as such."""
    ended = testbed.run(REQ, "--info", "/", "--extra", "max_count:1, note:x", "-v", f"{HOST}:{pair.request_port}")
    assert ended.stdout.splitlines()[-1] == "1 file (the server lists at most 1)"
    assert '{"max_count": 1, "note": "x"}' in ended.stdout
    assert testbed.run(REQ, "--ping", "--extra", "nonsense").returncode == 2


def test_spam(pair: ServerClientPair, testbed: Testbed) -> None:
    """--spam asks again and again, one line each, and Ctrl-C ends it with a summary."""
    port = str(pair.request_port)
    with interrupted(testbed, "--info", "/", "--spam", "0.05", f"{HOST}:{port}", after=3) as runs:
        pass
    (ended,) = runs
    assert ended.returncode == 0
    *lines, last = ended.stdout.splitlines()
    assert len(lines) >= 3
    line = rf"tcp://{HOST}:{port} answered info in {MILLISECONDS}, 3 files"
    assert all(re.fullmatch(line, one) for one in lines)
    times = r"\d+\.\d/\d+\.\d/\d+\.\d ms"
    assert re.fullmatch(rf"\d+ sent, {len(lines)} answered; min/median/max {times}", last)


@contextmanager
def interrupted(testbed: Testbed, *arguments: str, after: int) -> Iterator[list[subprocess.CompletedProcess[str]]]:
    """Run a command with the block until it has printed ``count`` lines; interrupt it, and return its result."""
    ended: list[subprocess.CompletedProcess[str]] = []
    out = testbed.root / "out"
    with out.open("wb") as stream:
        command = testbed.command(REQ, *arguments)
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=testbed.environment)
        try:
            yield ended
            until(lambda: len(out.read_text().splitlines()) >= after)
            process.send_signal(signal.SIGINT)
            process.wait(10)
        finally:
            process.kill()
            process.wait()
    assert "Traceback" not in out.read_text()
    ended.append(subprocess.CompletedProcess(command, process.returncode, out.read_text()))


def test_no_server(testbed: Testbed) -> None:
    """Without a reply one line names the reason, and the status is critical."""
    port = testbed.port()
    assert failed(testbed.run(REQ, "--ping", f"{HOST}:{port}"), 2).endswith(
        f"no reply from tcp://{HOST}:{port}: Connection refused"
    )
    assert "no reply" in failed(testbed.run(REQ, "--ping", "tcp://no-such-host.invalid:1"), 2)


def test_silent_server(testbed: Testbed) -> None:
    """A silent port is given up after some seconds; --spam continues and reports it."""
    listener = testbed.close_at_end(socket.socket())
    listener.bind((HOST, 0))
    listener.listen()
    address = f"{HOST}:{listener.getsockname()[1]}"
    with interrupted(testbed, "--ping", "--spam", "0", address, after=1) as runs:
        ended = testbed.run(REQ, "--info", "/", address)
    assert failed(ended).endswith(f"no reply from tcp://{address} within 5 s")
    (spam,) = runs
    assert spam.returncode == 1
    assert spam.stdout.splitlines()[0] == f"no reply from tcp://{address} within 5 s"
    assert spam.stdout.splitlines()[-1].endswith(" sent, 0 answered")


@pytest.mark.parametrize("address", ["nonsense", "http://host:1/x", "host:99999", ""])
def test_invalid_address(testbed: Testbed, address: str) -> None:
    """An invalid address is reported without a request."""
    assert failed(testbed.run(REQ, "--ping", address), 3)


def test_either_ping_or_info(testbed: Testbed) -> None:
    """One of --ping and --info must be given, and not both."""
    assert testbed.run(REQ).returncode == 2
    assert testbed.run(REQ, "--ping", "--info", "/x").returncode == 2


def test_old_server(testbed: Testbed) -> None:
    """A server of the earlier implementation answers ping and info."""
    pair = ServerClientPair(testbed)
    pair.server = earlier.server(testbed, pair.server_sections, pair.publish_port)
    pair.server.start()
    server = f"{HOST}:{pair.request_port}"
    ended = testbed.run(REQ, "--ping", server)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith(f"station unknown at tcp://{server} answered in ")
    names = pair.feeder.feed(2)
    until(lambda: names[-1] in testbed.run(REQ, "--info", TOPIC, server).stdout)
    ended = testbed.run(REQ, "--info", TOPIC, "--extra", "max_count:5", server)
    assert ended.returncode == 0
    *files, count = ended.stdout.splitlines()[1:]
    assert set(files) == {f"{TOPIC}/{name}" for name in names}
    assert count == f"{len(files)} files"  # it may know a file twice that came while it started
