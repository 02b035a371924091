"""The control socket replies to its owner and to root, and no request harms the daemon."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from trollmoves.control import client
from trollmoves.control.client import MAX_REPLY, ControlError, NotRunning
from trollmoves.control.location import address_of, link_path, socket_path
from trollmoves.control.server import MAX_CONNECTIONS, MAX_REQUEST, ControlServer, Peer
from trollmoves.errors import TrollmovesError
from trollmoves.tests.helpers.daemons import DaemonPair, Process, Testbed
from trollmoves.tests.helpers.waiting import until


def echo(request: Mapping[str, Any], peer: Peer) -> Mapping[str, Any]:
    """Reply with the request and the peer."""
    return {"request": dict(request), "uid": peer.uid, "user": peer.name}


def broken(request: Mapping[str, Any], peer: Peer) -> Mapping[str, Any]:
    """Fail unexpectedly."""
    raise ZeroDivisionError(request, peer)


def refuse(request: Mapping[str, Any], peer: Peer) -> Mapping[str, Any]:
    """Fail with a reason."""
    raise TrollmovesError(f"{peer.uid} may not do {request['request']}")


def large(request: Mapping[str, Any], peer: Peer) -> Mapping[str, Any]:
    """Reply with as many characters as requested."""
    return {"text": "x" * int(request["size"])}


@pytest.fixture
def journal(tmp_path: Path) -> str:
    """Return the path of a journal; the directory of its socket."""
    return str(tmp_path / "server-x-1234.journal")


@pytest.fixture
def server(journal: str) -> Iterator[ControlServer]:
    """Return a running control server."""
    running = ControlServer(journal, {"echo": echo, "broken": broken, "refuse": refuse, "large": large})
    running.start()
    yield running
    running.stop()


def connect(journal: str, path: str = "") -> socket.socket:
    """Return a connection to the control socket of a journal."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(20)
    with address_of(path or link_path(journal)) as address:
        connection.connect(address)
    return connection


def exchange(journal: str, sent: bytes) -> bytes:
    """Send bytes and return the first line of the reply."""
    with connect(journal) as connection, connection.makefile("rb") as replies:
        connection.sendall(sent)
        return replies.readline()


@pytest.mark.usefixtures("server")
def test_request(journal: str) -> None:
    """A request reaches its handler with its values and the identity of the sender; the reply returns."""
    reply = client.request(journal, "echo", file="a\nb\udce4", count=[1])
    assert reply["request"] == {"request": "echo", "file": "a\nb\udce4", "count": [1]}
    assert reply["uid"] == os.geteuid()
    assert client.request(journal, "large", size=MAX_REPLY // 2)["text"] == "x" * (MAX_REPLY // 2)
    with pytest.raises(ControlError, match=f"{os.geteuid()} may not do refuse"):
        client.request(journal, "refuse")


@pytest.mark.usefixtures("server")
def test_several_requests_of_one_connection(journal: str) -> None:
    """One connection carries several requests, also if they arrive together or in pieces."""
    with connect(journal) as connection, connection.makefile("rb") as replies:
        line = json.dumps({"request": "echo"}).encode()
        connection.sendall(line + b"\n" + line + b"\n" + line[:5])
        assert [json.loads(replies.readline())["reply"]["user"] for _ in range(2)]
        connection.sendall(line[5:] + b"\n")
        assert json.loads(replies.readline())["reply"]


BAD_LINES = {
    "no JSON": b"\xff\x00hello\n",
    "empty": b"\n",
    "no object": b"[1]\n",
    "no name": b'{"request": null}\n',
    "unknown name": b'{"request": "fly"}\n',
    "unhashable name": b'{"request": {}}\n',
    "nested": b'{"request":' + b"[" * 60_000 + b"\n",
    "huge number": b'{"request":' + b"9" * 60_000 + b"\n",
    "too long": b"x" * (MAX_REQUEST + 2),
    "failing handler": b'{"request": "broken"}\n',
    "missing value": b'{"request": "large"}\n',
    "too large reply": b'{"request": "large", "size": %d}\n' % MAX_REPLY,
}


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("line", BAD_LINES)
def test_bad_line(journal: str, line: str) -> None:
    """A bad request gets an error as its reply, and later requests are not affected."""
    assert json.loads(exchange(journal, BAD_LINES[line]))["error"]
    assert client.request(journal, "echo")


@pytest.mark.usefixtures("server")
def test_too_many_connections(journal: str) -> None:
    """Connections above the limit are rejected with an error; a closed one makes room."""
    opened = [connect(journal) for _ in range(MAX_CONNECTIONS)]
    until(lambda: b"too many connections" in exchange(journal, b""))
    opened.pop().close()
    until(lambda: b"reply" in exchange(journal, b'{"request": "echo"}\n'))
    for connection in opened:
        connection.close()


@pytest.mark.usefixtures("server")
def test_silent_and_slow_connections(journal: str) -> None:
    """A connection that sends half a line, or does not read its reply, does not delay other requests."""
    with connect(journal) as silent, connect(journal) as slow:
        silent.sendall(b'{"request":')
        slow.sendall(b'{"request": "large", "size": 9000000}\n' * 3)
        started = time.monotonic()
        for _ in range(5):
            assert client.request(journal, "echo")
        assert time.monotonic() - started < 5


@pytest.mark.usefixtures("server")
def test_other_users(journal: str) -> None:
    """Only the user of the daemon and root can use the socket, also if its permissions are changed."""
    path = socket_path(journal)
    assert os.stat(path).st_mode & 0o777 == 0o600
    if os.geteuid():
        pytest.skip("only root can become another user")
    os.chmod(path, 0o666)
    directory = os.path.dirname(path)
    while directory != "/":
        os.chmod(directory, os.stat(directory).st_mode | 0o011)
        directory = os.path.dirname(directory)
    program = (
        "import os, socket, sys; os.setuid(65534); c = socket.socket(socket.AF_UNIX); "
        "c.connect(sys.argv[1]); print(c.recv(1000).decode())"
    )
    ended = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    assert "permission denied" in json.loads(ended.stdout)["error"]


def test_long_path(tmp_path: Path) -> None:
    """The path of a journal may be longer than the address of a socket, and its name too."""
    directory = tmp_path.joinpath(*("d" * 100 for _ in range(3)))
    directory.mkdir(parents=True)
    for name in ("x.journal", "y" * 200 + ".journal"):
        journal = str(directory / name)
        running = ControlServer(journal, {"echo": echo})
        running.start()
        assert client.request(journal, "echo")
        running.stop()
        with pytest.raises(NotRunning):
            client.request(journal, "echo")
    assert not list(directory.iterdir())


def test_runtime_directory(journal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With $RUNTIME_DIRECTORY the socket is there, and a command without this variable finds it."""
    runtime = tmp_path / "run"
    runtime.mkdir()
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(runtime))
    running = ControlServer(journal, {"echo": echo})
    running.start()
    monkeypatch.delenv("RUNTIME_DIRECTORY")
    (found,) = runtime.iterdir()
    assert found.is_socket()
    assert client.request(journal, "echo")
    running.stop()
    assert list(tmp_path.iterdir()) == [runtime]
    assert not list(runtime.iterdir())


def test_other_file_in_its_place(journal: str, caplog: pytest.LogCaptureFixture) -> None:
    """A file that is not a socket is kept; the daemon works without a control socket."""
    Path(link_path(journal)).write_text("keep")
    running = ControlServer(journal, {})
    running.start()
    running.stop()
    assert "no control socket" in caplog.text
    assert Path(link_path(journal)).read_text() == "keep"


def journal_of(process: Process) -> str:
    """Return the journal of a running daemon."""
    return process.lines().partition(", journal ")[2].partition("\n")[0]


def test_daemons(testbed: Testbed) -> None:
    """Server and client reply while they run; after a kill a command reports that none listens; a restart works."""
    pair = DaemonPair(testbed).start()
    for process, role in ((pair.server, "server"), (pair.client, "client")):
        journal = journal_of(process)
        assert client.request(journal, "health")["role"] == role
        process.kill()
        assert os.path.exists(link_path(journal))
        with pytest.raises(NotRunning):
            client.request(journal, "health")
        process.start()
        assert client.request(journal, "health")["role"] == role
        assert process.terminate() == 0
        assert not os.path.exists(link_path(journal))
