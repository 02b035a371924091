"""Malicious servers: a client and a mirror stay within their directories."""

from __future__ import annotations

import io
import sqlite3
import tarfile
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import zmq
from posttroll.message import Message

from trollmoves.tests.helpers.daemons import TOPIC, Testbed, client_section, mirror_section
from trollmoves.tests.helpers.recording import HOST, RecordingSubscriber
from trollmoves.tests.helpers.waiting import until


class Rogue:
    """A server that announces anything, and replies success to every request."""

    def __init__(self) -> None:
        self._context = zmq.Context()
        self._publisher = self._context.socket(zmq.PUB)
        self._router = self._context.socket(zmq.ROUTER)
        for one in (self._publisher, self._router):
            one.setsockopt(zmq.LINGER, 0)
        self.port = self._publisher.bind_to_random_port(f"tcp://{HOST}")
        self.address = f"{HOST}:{self._router.bind_to_random_port(f'tcp://{HOST}')}"
        self.asked: list[Any] = []
        self.lie: dict[str, object] = {}
        self.kind = ""  # of the replies to requests; empty for success
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._answer)
        self._thread.start()

    def announce(self, uri: str, **data: object) -> None:
        """Announce a file."""
        data_sent = {"uri": uri, "uid": uri.rpartition("/")[2], "request_address": self.address, **data}
        self._publisher.send_string(str(Message(TOPIC, "file", data_sent)))

    def _answer(self) -> None:
        while not self._stopping.is_set():
            if self._router.poll(50):
                identity, empty, text = self._router.recv_multipart()
                asked = Message.decode(text.decode())
                self.asked.append(asked)
                kind = (self.kind or "file") if asked.type == "push" else asked.type
                answer = Message(asked.subject, kind, {**asked.data, **self.lie} if asked.data else {})
                self._router.send_multipart([identity, empty, str(answer).encode()])

    def close(self) -> None:
        """Stop."""
        self._stopping.set()
        self._thread.join(5)
        self._context.destroy(0)


class Scene:
    """A rogue server, a client with a chain for each way of receiving, and subscribers; the client runs."""

    def __init__(self, testbed: Testbed) -> None:
        self.rogue = Rogue()
        self.testbed = testbed
        testbed.call_at_end(self.rogue.close)
        self.target = testbed.directory("out")
        self.outside = testbed.directory("outside")
        ports = {name: testbed.port() for name in ("plain", "tar", "fields")}
        self.client = testbed.client(
            {
                "plain": client_section(self.rogue.port, self.target, ports["plain"]),
                "tar": client_section(self.rogue.port, self.target, ports["tar"], compression="tar", delete="true"),
                "fields": client_section(self.rogue.port, f"{self.target}/{{place}}/x", ports["fields"]),
            }
        )
        self.subscribers = {name: testbed.subscriber(port) for name, port in ports.items()}
        self.client.start()
        self.wait_for_client()

    def wait_for_client(self) -> None:
        """Announce valid files until each chain has received one."""

        def received() -> bool:
            self.rogue.announce("/a/harmless", place="here")
            return all("harmless" in subscriber.receipts() for subscriber in self.subscribers.values())

        until(received, 30, "the client receives it")

    def passed_over(self, times: int = 3) -> None:
        """Wait until all chains have logged an ignored message."""
        self.client.wait_for_line("ignored announcement of", times)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """The arrangement for the tests of this file."""
    with Testbed(tmp_path_factory.mktemp("rogue")) as testbed:
        yield Scene(testbed)


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("/a/..", None),
        ("/a/.", None),
        ("/a/", None),
        ("", None),
        ("/a/b\0c", None),
        ("/a/x1", "../outside"),
        ("/a/x2", "/etc"),
        ("/a/x3", "a\\..\\..\\b"),
        ("/a/x4", ["a"]),
    ],
)
def test_announced_names(scene: Scene, uri: str, path: object) -> None:
    """A file with a name or sub-path that leaves the destination is not requested, and the log says so."""
    scene.client.mark_log()
    asked = len(scene.rogue.asked)
    scene.rogue.announce(uri, place="here", **({} if path is None else {"path": path}))
    scene.passed_over()
    scene.rogue.announce(f"/a/after-{asked}", place="here")
    scene.subscribers["plain"].wait_for_receipts([f"after-{asked}"])
    assert not [one for one in scene.rogue.asked[asked:] if one.data["uri"] == uri]


@pytest.mark.parametrize("place", ["../outside", "a/../../outside", "..", "a\\..\\..\\outside"])
def test_metadata_in_the_destination(scene: Scene, place: str) -> None:
    """Metadata cannot lead out of the destination that they are composed into."""
    scene.client.mark_log()
    scene.rogue.announce(f"/a/fields-{abs(hash(place))}", place=place)
    scene.client.wait_for_line("metadata must not lead out of the configured destination")
    assert not list(scene.outside.iterdir())
    assert not (scene.target.parent / "x").exists()


def archive(path: Path) -> None:
    """Write an archive with one file in it."""
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("member")
        member.size = 1
        tar.addfile(member, io.BytesIO(b"x"))


def test_false_destination_in_a_reply(scene: Scene) -> None:
    """Unpacking, removal and receipts use the requested destination, whatever the reply says."""
    victim = scene.outside / "victim.tar"
    archive(victim)
    archive(scene.target / victim.name)
    scene.rogue.lie = {"destination": f"file://{HOST}{scene.outside}", "uri": str(victim)}
    scene.rogue.announce(f"/a/{victim.name}", place="here")
    scene.subscribers["tar"].wait_for_receipts(["member"])
    scene.subscribers["plain"].wait_for_receipts([victim.name])
    scene.rogue.lie = {}
    assert victim.exists()
    assert not (scene.outside / "member").exists()
    assert (scene.target / "member").read_bytes() == b"x"
    assert scene.subscribers["plain"].of_file(victim.name)[-1].data["uri"] == str(scene.target / victim.name)


def test_time_of_the_next_attempt(scene: Scene) -> None:
    """A server cannot delay the next attempt by more than a few minutes."""
    scene.rogue.kind, scene.rogue.lie = "err", {"error": "x", "temporary": True, "retry_after": 1e9}
    scene.rogue.announce("/a/later", place="here")
    (journal,) = (scene.testbed.root / "state").rglob("client-*.journal")

    def delays() -> list[float]:
        with closing(sqlite3.connect(f"{journal.as_uri()}?mode=ro", uri=True, timeout=20)) as opened:
            return [row[0] for row in opened.execute("SELECT due - created FROM tasks WHERE state = 0 AND tries > 0")]

    until(lambda: len(delays()) == 3, 20, "each chain was rejected")
    scene.rogue.kind, scene.rogue.lie = "", {}
    assert min(delays()) > 30
    assert max(delays()) < 300


def test_control_characters_in_the_log(scene: Scene) -> None:
    """A name with control characters forges no line of the log."""
    scene.client.mark_log()
    name = "x\n[CRITICAL] forged\x1b[31m"
    scene.rogue.announce(f"/a/{name}", place="here")
    scene.subscribers["plain"].wait_for_receipts([name])
    assert "\n[CRITICAL] forged" not in scene.client.lines()
    assert "\x1b" not in scene.client.lines()


def test_mirror(tmp_path: Path) -> None:
    """A mirror serves no link out of the directory into which it was fetched."""
    with Testbed(tmp_path) as testbed:
        rogue = Rogue()
        testbed.call_at_end(rogue.close)
        port, request_port = testbed.port(), testbed.port()
        copies, out, secret = testbed.directory("copies"), testbed.directory("out"), testbed.directory("secret") / "x"
        secret.write_bytes(b"secret")
        testbed.mirror({"m": mirror_section(rogue.port, copies, request_port)}, port).start(wait=False)
        subscriber: RecordingSubscriber = testbed.subscriber(port)

        def is_announced() -> bool:
            rogue.announce("/a/x")
            return bool(subscriber.of_file("x"))

        until(is_announced, 30, "the mirror announces")
        data = subscriber.of_file("x")[-1].data
        answers: list[Message] = []
        asking = threading.Thread(target=lambda: answers.append(_ask(request_port, {**data, "destination": str(out)})))
        asking.start()
        asked = until(lambda: [one for one in rogue.asked if one.type == "push"], 20, "the mirror asks")
        until(lambda: list(copies.glob("*/*")), 20, "the directory of the copy")
        directory = Path(next(iter(copies.glob("*/*"))))
        assert str(directory) in asked[0].data["destination"]
        (directory / "x").symlink_to(secret)
        answers_or_link = _ask(request_port, {**data, "destination": str(out)})
        asking.join(20)
        assert answers_or_link.type == "err"
        assert not list(out.iterdir())


def _ask(port: int, data: dict[str, Any]) -> Message:
    with zmq.Context() as context, context.socket(zmq.REQ) as peer:
        peer.setsockopt(zmq.LINGER, 0)
        peer.connect(f"tcp://{HOST}:{port}")
        peer.send_string(str(Message(TOPIC, "push", data)))
        assert peer.poll(30_000), "no answer"
        return Message.decode(peer.recv().decode())
