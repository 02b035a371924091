"""Fuzzing of running daemons: malformed and mutated messages stop no daemon and no delivery."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import zmq

from trollmoves.tests.helpers.daemons import (
    TOPIC,
    Process,
    ServerClientPair,
    Testbed,
    client_section,
    mirror_section,
    server_section,
)
from trollmoves.tests.helpers.dispatching import DispatcherTestbed, RecordedPublisher
from trollmoves.tests.helpers.feeding import Feeder
from trollmoves.tests.helpers.fuzzing import SCALE, Fuzz, scaled
from trollmoves.tests.helpers.recording import HOST, RecordingSubscriber, send_request
from trollmoves.tests.helpers.waiting import until

log = logging.getLogger(__name__)

AT_ONCE = 200  # requests in transit
PEERS = 8
UNFORESEEN = ("Traceback", "internal error", "unexpected error")
STAMP = "sat@elsewhere 2025-01-02T03:04:05.678 v1.01"


@pytest.fixture
def testbed(tmp_path: Path) -> Iterator[Testbed]:
    """A testbed for daemons."""
    with Testbed(tmp_path) as found:
        yield found


def memory(process: Process) -> int:
    """Return the resident memory of a process in MB."""
    assert process.popen is not None
    status = Path(f"/proc/{process.popen.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) // 1000


def assert_sound(process: Process, tried: int, seconds: float) -> None:
    """Check that a daemon runs and has logged no unexpected error."""
    assert process.is_running()
    lines = process.lines()
    for word in UNFORESEEN:
        at = lines.find(word)
        assert at < 0, f"after {tried} inputs: {lines[max(0, at - 1500) : at + 3000]}"
    log.info("%s: %d inputs, %.0f/s, %d MB", process.log.stem, tried, tried / seconds, memory(process))


class Crowd:
    """Clients that send random data to a server; from time to time one disconnects and another connects."""

    def __init__(self, port: int) -> None:
        self._address = f"tcp://{HOST}:{port}"
        self._context = zmq.Context()
        self._peers = [self._peer() for _ in range(PEERS)]
        self._sent = 0

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.destroy(0)

    def _peer(self) -> zmq.Socket[bytes]:
        peer = self._context.socket(zmq.DEALER)
        peer.setsockopt(zmq.LINGER, 0)
        peer.connect(self._address)
        return peer

    def send(self, frames: list[bytes]) -> None:
        """Send frames through one of the clients."""
        number = self._sent % PEERS
        self._peers[number].send_multipart(frames)
        self._sent += 1
        if self._sent % AT_ONCE == 0:
            self.drain()
        if self._sent % 5000 == 0:
            self._peers[number].close(0)
            self._peers[number] = self._peer()

    def drain(self) -> None:
        """Wait until everything sent has been processed: the ping that each client sends last is answered."""
        for peer in self._peers:
            token = f"{time.monotonic_ns()}"
            peer.send_multipart([b"", f"pytroll://{token} ping {STAMP}".encode()])
            while True:
                assert peer.poll(60_000), "a ping is not answered"
                if f"pytroll://{token} pong" in peer.recv_multipart()[-1].decode(errors="replace"):
                    break


def heads(*kinds: str) -> list[str]:
    """Return prefixes of valid messages."""
    return [f"pytroll:/{TOPIC} {kind} {STAMP}" for kind in kinds]


def requests(announced: dict[str, Any], out: Path) -> list[dict[str, Any]]:
    """Return the data of valid requests for an announced file."""
    mark = {"id": "fuzz/hrit/1", "timeout": 5.0, "unless_delivered_to": ["other/hrit"]}
    plain = {key: value for key, value in announced.items() if key != "announcement"}
    log = announced.get("announcement", {}).get("log", "")
    return [
        announced | {"destination": f"file://{HOST}{out}", "request": mark},
        plain | {"destination": f"file://{HOST}{out}", "backup_targets": ["127.0.0.1"]},
        announced | {"destination": f"sftp://sat:pw@{HOST}:1{out}", "request": mark | {"id": "fuzz/x/2"}},
        announced,
        {"max_count": 3},
        {"log": log, "after": 0, "max_count": 10, "until": 5},
    ]


def attack(port: int, announced: dict[str, Any], out: Path, count: int, seed: int) -> None:
    """Send mutated requests to a request port."""
    fuzz, valid = Fuzz(seed), requests(announced, out)
    kinds = heads("push", "push", "push", "ack", "info", "ping", "replay", "wait", "file", "pong")
    with Crowd(port) as crowd:
        for _ in range(count):
            crowd.send(fuzz.frames(kinds, fuzz.random.choice(valid)))
        crowd.drain()


def publish_invalid(publisher: RecordedPublisher, announced: list[dict[str, Any]], count: int, seed: int) -> None:
    """Publish mutated announcements and heartbeats to the subscribers of their topic."""
    fuzz = Fuzz(seed)
    beat = {"min_interval": 30, "logs": [{"log": "x/hrit", "number": 3, "request_address": f"{HOST}:1"}], "client": "x"}
    keep = len(f"pytroll:/{TOPIC}")
    for number in range(count):
        if number % 10 == 0:
            message = fuzz.message(
                f"pytroll://heartbeat/move_it_server beat {STAMP}", beat, len("pytroll://heartbeat/")
            )
        else:
            (head,) = heads(fuzz.random.choice(("file", "file", "file", "dataset", "collection", "push", "ack", "del")))
            message = fuzz.message(head, fuzz.random.choice(announced), keep)
        publisher.publish_bytes(message)


def strange_announcements(address: str) -> list[dict[str, Any]]:
    """Return the data of announcements of a server with the request port ``address``."""
    one = {
        "uid": "strange",
        "uri": f"file://{HOST}/nowhere/strange",
        "request_address": address,
        "start_time": "2025-01-02T03:04:05",
        "announcement": {"log": "stranger/hrit", "number": 5, "size": 3, "mtime": 1},
    }
    dataset = [{"uid": f"part{n}", "uri": f"/nowhere/part{n}", "path": "below"} for n in range(3)]
    rest = {key: value for key, value in one.items() if key not in ("uid", "uri")}
    return [
        one,
        {key: value for key, value in one.items() if key != "announcement"},
        rest | {"dataset": dataset},
        rest | {"collection": [{"dataset": dataset, "time": "2025-01-02"}]},
    ]


@pytest.mark.slow
def test_server(testbed: Testbed) -> None:
    """A server that receives arbitrary requests still serves its announced files."""
    count, out = scaled(20_000), testbed.directory("out")
    pair = ServerClientPair(testbed, {"allowed_destinations": str(testbed.root), "station": "x"}, destination=out)
    pair.start()
    pair.feeder.feed(1)
    pair.wait_until_done()
    pair.announced.wait_for()
    (announced,) = [json.loads(text.split(None, 6)[6]) for text in pair.announced.texts if " file " in text]
    started = time.monotonic()
    attack(pair.request_port, announced, out / "fuzz", count, 1)
    pair.feeder.feed(1)
    pair.wait_until_done(60)
    assert_sound(pair.server, count, time.monotonic() - started)


@pytest.mark.slow
def test_client(testbed: Testbed) -> None:
    """A client that receives arbitrary messages still fetches valid announcements."""
    count, stranger = scaled(20_000), testbed.port()
    feeder, out = testbed.feeder(), testbed.directory("out")
    published, request_port, client_port = testbed.port(), testbed.port(), testbed.port()
    publisher = testbed.close_at_end(RecordedPublisher(stranger))
    server = testbed.server({"hrit": server_section(feeder.folder, request_port)}, published)
    client = testbed.client({"hrit": client_section([published, stranger], out, client_port)})
    subscriber = testbed.subscriber(client_port)
    with ExitStack() as ending:
        server.start()
        client.start()
        publisher.wait_for_topics([TOPIC])
        liar = ending.enter_context(Liar())
        started = time.monotonic()
        publish_invalid(publisher, strange_announcements(f"{HOST}:{liar.port}"), count, 2)
        wait_until_processed(publisher, server, feeder, subscriber, client)
        assert_sound(client, count, time.monotonic() - started)


@pytest.mark.slow
def test_mirror(testbed: Testbed) -> None:
    """A mirror that receives arbitrary messages and requests still announces and relays files."""
    count, stranger = scaled(10_000), testbed.port()
    feeder, out = testbed.feeder(), testbed.directory("out")
    published, mirrored, request_port = testbed.port(), testbed.port(), testbed.port()
    publisher = testbed.close_at_end(RecordedPublisher(stranger))
    server = testbed.server({"hrit": server_section(feeder.folder, testbed.port())}, published)
    section = mirror_section(
        [published, stranger], testbed.directory("copies"), request_port, allowed_destinations=str(testbed.root)
    )
    mirror = testbed.mirror({"hrit": section}, mirrored)
    announced = testbed.subscriber(mirrored)
    server.start()
    mirror.start()
    publisher.wait_for_topics([TOPIC])
    with Liar() as liar:
        data = handed_on(feeder, announced, request_port, out)
        started = time.monotonic()
        attack(request_port, data, out / "fuzz", count, 3)
        publish_invalid(publisher, strange_announcements(f"{HOST}:{liar.port}"), count, 4)
        handed_on(feeder, announced, request_port, out)
        assert_sound(mirror, 2 * count, time.monotonic() - started)


def handed_on(feeder: Feeder, announced: RecordingSubscriber, port: int, out: Path) -> dict[str, Any]:
    """Feed a file, wait until a mirror announces it, and request it; return its announcement."""
    (name,) = feeder.feed(1)
    until(lambda: announced.of_file(name), 100, "it is announced")
    text = next(text for text in announced.texts if name in text)
    data: dict[str, Any] = json.loads(text.split(None, 6)[6])
    wanted = {key: value for key, value in data.items() if key != "announcement"}
    answer = send_request(port, TOPIC, "push", wanted | {"destination": f"file://{HOST}{out}"}, seconds=100)
    assert answer.type == "file", answer
    assert (out / name).exists()
    return data


@pytest.mark.slow
def test_dispatcher(testbed: Testbed) -> None:
    """A dispatcher that receives arbitrary messages still delivers."""
    count = scaled(20_000)
    conditions = [{"sensor": ["viirs", "avhrr"], "orbit": ">5"}, {"except": {"platform_name": "NOAA-21"}}]
    target = {
        "directory": "OUT/all/{platform_name}/{time:%Y%m%d}",
        "filepattern": "{uid}",
        "publish_topic": "/sent/{platform_name}",
        "aliases": {"platform_name": {"Suomi-NPP": "npp"}},
        "dispatch_configs": [{"topics": ["/level2/viirs"], "conditions": conditions}],
    }
    plain = {"directory": "OUT/plain", "dispatch_configs": [{"topics": ["/level2/viirs"]}]}
    dispatching = DispatcherTestbed(testbed, {"all": target, "plain": plain}).start()
    strange = dispatching.file("strange")
    one = {"uri": str(strange), "uid": "strange", "sensor": "viirs", "orbit": 7, "platform_name": "Suomi-NPP"}
    client_port = [
        one | {"time": "2025-01-02T03:04:05"},
        {"dataset": [one, one], "sensor": ["viirs"], "time": "2025-01-02T03:04:05"},
        {"collection": [{"dataset": [one]}], "orbit": "9"},
    ]
    fuzz, started = Fuzz(5), time.monotonic()
    keep = len("pytroll://level2/viirs")
    for _ in range(count):
        kind = fuzz.random.choice(("file", "file", "dataset", "collection", "beat"))
        message = fuzz.message(f"pytroll://level2/viirs {kind} {STAMP}", fuzz.random.choice(client_port), keep)
        dispatching.publisher.publish_bytes(message)
    dispatching.publisher.publish_file(dispatching.file("proper"))
    dispatching.wait_for("plain/proper", seconds=120)
    assert_sound(dispatching.process, count, time.monotonic() - started)


class Liar:
    """A request port that replies with random data, or not at all."""

    def __init__(self) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self.port = self._socket.bind_to_random_port(f"tcp://{HOST}")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._answer, daemon=True)
        self.asked = 0

    def __enter__(self) -> Liar:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(10)
        self._context.destroy(0)

    def _answer(self) -> None:
        fuzz = Fuzz(6)
        kinds = heads("file", "dataset", "err", "wait", "replay", "info", "pong", "collection", "unknown")
        data = {"uid": "strange", "uri": "/nowhere/strange", "destination": "/x", "error": "no", "retry_after": 1.0}
        numbers = {"log": "stranger/hrit", "numbers": [1, 2], "messages": ["pytroll://x file a@b 2025-01-01 v1.01"]}
        while not self._stopping.is_set():
            if not self._socket.poll(100):
                continue
            identity, *_ = self._socket.recv_multipart()
            self.asked += 1
            if fuzz.random.random() < 0.99:
                self._socket.send_multipart([identity, *fuzz.frames(kinds, fuzz.random.choice((data, numbers)))])


def wait_until_processed(
    publisher: RecordedPublisher, server: Process, feeder: Feeder, subscriber: RecordingSubscriber, fuzzed: Process
) -> None:
    """Wait until all fuzzed messages are processed, and a valid file sent after them is fetched."""
    with Liar() as last:
        source = strange_announcements(f"{HOST}:{last.port}")[1]
        announced = source | {"uid": "last", "uri": f"file://{HOST}/nowhere/last"}
        publisher.publish(TOPIC, "file", announced)
        until(lambda: last.asked, 120 * max(1, SCALE), "the last message is processed")
    (name,) = feeder.feed(1)
    subscriber.wait_for_receipts([name], 120)
    assert server.is_running()
    assert fuzzed.is_running()
