"""A mirror re-announces files and makes them local on request, as real processes."""

from __future__ import annotations

import bz2
import copy
import json
import random
import re
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import zmq
from posttroll.message import Message

from trollmoves.tests.helpers import legacy_peer as earlier
from trollmoves.tests.helpers.daemons import (
    MIRROR_TOPIC,
    TOPIC,
    Process,
    Testbed,
    client_section,
    ini,
    mirror_section,
    server_section,
)
from trollmoves.tests.helpers.feeding import PATTERN, Feeder, content, names
from trollmoves.tests.helpers.recording import HOST, ReceivedMessage, RecordingSubscriber, send_request
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.system.test_options_server import put

ASK_AGAIN = 1  # s after which a request to a killed or stopped daemon is repeated
BURST = 300

Options = Mapping[str, object]


class Outer:
    """A client of a mirror."""

    def __init__(self, testbed: Testbed, mirror_port: int, name: str = "client", **options: object) -> None:
        self.target = testbed.directory(f"out-{name}")
        port = testbed.port()
        section = client_section(mirror_port, self.target, port, topic=MIRROR_TOPIC, transfer_req_timeout=ASK_AGAIN)
        self.sections = {name: section | options}
        self.process = testbed.client(self.sections, name=name)
        self.received = testbed.subscriber(port)


class Chain:
    """Inner servers, each with its own folder, and a mirror of them all; nothing is started yet."""

    def __init__(self, testbed: Testbed, server: Options | None = None, *, servers: int = 1, **mirror: object) -> None:
        self.testbed = testbed
        self.feeders = [testbed.feeder(f"in{n}") for n in range(servers)]
        self.request_ports = [testbed.port() for _ in self.feeders]
        self.publish_ports = [testbed.port() for _ in self.feeders]
        self.server_sections = [
            {"hrit": server_section(feeder.folder, port) | dict(server or {})}
            for feeder, port in zip(self.feeders, self.request_ports, strict=True)
        ]
        self.servers = [
            testbed.server(sections, port, name=f"server{n}")
            for n, (sections, port) in enumerate(zip(self.server_sections, self.publish_ports, strict=True))
        ]
        self.copies = testbed.directory("copies")
        self.port, self.request_port = testbed.port(), testbed.port()
        options: dict[str, object] = {"transfer_req_timeout": ASK_AGAIN, **mirror}
        self.sections = {"far": mirror_section(self.publish_ports, self.copies, self.request_port) | options}
        self.mirror = testbed.mirror(self.sections, self.port)
        self.messages = [testbed.subscriber(port) for port in self.publish_ports]
        self.mirrored = testbed.subscriber(self.port)

    @property
    def feeder(self) -> Feeder:
        """The feeder of the first server."""
        return self.feeders[0]

    @property
    def server(self) -> Process:
        """The first server."""
        return self.servers[0]

    def outer(self, name: str = "client", **options: object) -> Outer:
        """Return a client of the mirror."""
        return Outer(self.testbed, self.port, name, **options)

    def start(self, *outer: Outer) -> Chain:
        """Start all, and clients of the mirror."""
        processes = [*self.servers, self.mirror, *(one.process for one in outer)]
        for process in processes:
            process.start(wait=False)
        for process in processes:
            process.wait_until_ready()
        return self

    def announcement(self, name: str, count: int = 1) -> Any:
        """Wait until the mirror has announced a file a number of times; return the data of the newest announcement."""
        until(lambda: len(self.mirrored.of_file(name)) >= count, what=f"{name} is announced by the mirror")
        return copy.deepcopy(self.mirrored.of_file(name)[-1].data)

    def push(self, name: str, destination: object, **changes: object) -> Message:
        """Request a file from the mirror as an older client does."""
        data = {key: value for key, value in self.announcement(name).items() if key != "announcement"}
        return send_request(
            self.request_port, MIRROR_TOPIC, "push", {**data, "destination": str(destination), **changes}
        )

    def delivered(self, name: str) -> int:
        """Count the deliveries of a file by the servers."""
        return sum(process.lines().count(f" delivered {name} ") for process in self.servers)

    def files(self) -> list[Path]:
        """Return the cached files, in any directory."""
        return [path for path in self.copies.rglob("*") if path.is_file()]

    def wait_until_done(self, *outer: Outer, seconds: float = 30) -> None:
        """Wait until all files are complete and published at each client."""
        for one in outer:
            one.received.wait_for_receipts(self.feeder.fed, seconds)
            assert self.feeder.missing(one.target) == []


def test_history_over_all_hops(testbed: Testbed) -> None:
    """A client follows a file to the mirror and on to the server, which report no directory of another host."""
    chain = Chain(testbed)
    outer = chain.outer()
    chain.start(outer)
    (name,) = chain.feeder.feed()
    chain.wait_until_done(outer)
    config = ["-c", str(outer.process.config)]

    def steps(*options: str) -> list[dict[str, Any]]:
        done = testbed.run("trollmoves", "history", name, *config, "--json", *options)
        found: list[dict[str, Any]] = json.loads(done.stdout)["steps"]
        return found

    def events(kind: str) -> list[str]:
        return [step["event"] for step in found if step["kind"] == kind]

    until(lambda: [step["event"] for step in steps()] == ["received", "fetched", "receipt published"])
    until(lambda: "delivered" in [step["event"] for step in steps("--hops") if step["kind"] == "server"])
    found = steps("--hops")
    assert events("client") == ["received", "fetched", "receipt published"]
    assert {"announced", "requested", "delivered"} <= set(events("mirror"))
    assert {"written", "announced", "requested", "delivered"} <= set(events("server"))
    assert not [
        step for step in found if step["kind"] != "client" and "/" in step["destination"].removeprefix("file://")
    ]
    chain.server.kill()
    assert (
        f"no reply from tcp://{HOST}:{chain.request_ports[0]}"
        in testbed.run("trollmoves", "history", name, *config, "--hops").stdout
    )


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    """A running server and mirror, for tests that disturb neither."""
    with Testbed(tmp_path_factory.mktemp("mirror")) as testbed:
        yield Chain(testbed, info="sensor=seviri;place=far").start()


# -- received, announced, fetched


def test_announced_but_not_fetched(chain: Chain) -> None:
    """An announcement is repeated with the mirror's topic and info; nothing is fetched before a request."""
    fed = chain.feeder.feed(5)
    for number, name in enumerate(fed, start=1):
        data = chain.announcement(name)
        inner = until(lambda name=name: chain.messages[0].of_file(name))[0].data  # type: ignore[misc]
        assert data["request_address"] == f"{HOST}:{chain.request_port}"
        assert (data["sensor"], data["place"]) == ("seviri", "far")
        mark, inner_mark = data.pop("announcement"), inner.pop("announcement")
        assert (mark["number"], mark["size"], mark["mtime"]) == (number, 1000, inner_mark["mtime"])
        assert mark["log"] != inner_mark["log"]
        assert data == inner | {key: data[key] for key in ("request_address", "sensor", "place")}
    assert {one.message.subject for one in chain.mirrored.of_type("file")} == {MIRROR_TOPIC}
    assert list(chain.copies.iterdir()) == []
    assert " delivered " not in chain.server.lines()


def test_two_clients(testbed: Testbed) -> None:
    """A file that two clients request is fetched once and kept; new content is relayed again."""
    chain = Chain(testbed)
    one, other = chain.outer("one"), chain.outer("other")
    chain.start(one, other)
    fed = chain.feeder.feed(20)
    chain.wait_until_done(one, other)
    assert [chain.delivered(name) for name in fed] == [1] * 20
    assert [chain.mirror.lines().count(f" delivered {name} ") for name in fed] == [2] * 20
    assert sorted(path.name for path in chain.files()) == sorted(fed)
    receipt = one.received.of_file(fed[0])[-1].data
    assert receipt["origin"] == f"{HOST}:{chain.request_port}"
    assert receipt["uri"] == str(one.target / fed[0])
    chain.feeder.put(fed[0], version=2, size=500)
    for client in (one, other):
        until(lambda client=client: client.received.receipts().count(fed[0]) == 2)  # type: ignore[misc]
        assert (client.target / fed[0]).read_bytes() == content(fed[0], 2, 500)


def test_delayed_and_removed(testbed: Testbed) -> None:
    """A delay holds announcements back; with delete, cached files are removed later, also when fetched again."""
    chain = Chain(testbed, delay=1, delete="true", remove_delay=3)
    chain.start()
    began = time.monotonic()
    (name,) = chain.feeder.feed()
    chain.announcement(name)
    assert chain.mirrored.of_file(name)[0].at - began > 0.99
    for count in (1, 2):
        target = testbed.directory(f"target{count}")
        assert chain.push(name, target).type == "file"
        assert chain.files()
        assert (target / name).read_bytes() == content(name)
        until(lambda: not list(chain.copies.glob("*/*")), what="the copies are removed")
        assert chain.delivered(name) == count
    assert (chain.feeder.folder / name).exists()


def test_same_name_in_another_directory(testbed: Testbed) -> None:
    """Files of one name in two directories of a server are two files."""
    chain = Chain(testbed)
    folder = chain.feeder.folder
    chain.server_sections[0]["hrit"]["origin"] = f"{folder}/{{place}}/{PATTERN}"
    chain.server.reconfigure(chain.server_sections[0])
    feeders = [Feeder(folder / place) for place in ("here", "there")]
    outer = chain.outer(destination=f"{testbed.directory('places')}/{{place}}")
    chain.start(outer)
    (name,) = feeders[0].feed(size=1000)
    chain.announcement(name)
    feeders[1].feed(size=700)
    for place, size in (("here", 1000), ("there", 700)):
        path = testbed.directory("places") / place / name
        until(path.exists, what=f"{path} arrives")
        assert path.read_bytes() == content(name, size=size)


class Publisher:
    """A publisher of constructed messages."""

    def __init__(self, testbed: Testbed) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        testbed.call_at_end(lambda: context.destroy(0))
        self._socket = context.socket(zmq.XPUB)
        self.port = self._socket.bind_to_random_port(f"tcp://{HOST}")

    def wait_for_subscriber(self) -> None:
        """Wait for a subscriber."""
        assert self._socket.poll(20_000)
        self._socket.recv()

    def publish(self, kind: str, data: object, topic: str = TOPIC) -> None:
        """Publish a message."""
        self._socket.send_string(str(Message(topic, kind, data)))


def item(feeder: Feeder, name: str, **more: str) -> dict[str, str]:
    """Return the item of a message about a file."""
    return {"uri": str(feeder.folder / name), "uid": name, **more}


def test_datasets_and_collections(testbed: Testbed) -> None:
    """Messages about several files, with sub-paths, are announced unchanged, and all their files relayed."""
    publisher = Publisher(testbed)
    section = {"listen": TOPIC, "addresses": f"{HOST}:{publisher.port}", "nameserver": "False", "origin": ""}
    chain = Chain(testbed, section, delete="true", remove_delay=0)
    outer = chain.outer()
    chain.start(outer)
    publisher.wait_for_subscriber()
    one, two, three, four = chain.feeder.feed(4)
    chain.mirror.wait_for_line("started")
    publisher.publish("dataset", {"a": 1, "dataset": [item(chain.feeder, one, path="x/y"), item(chain.feeder, two)]})
    outer.received.wait_for(1, "dataset")
    inner = [{"dataset": [item(chain.feeder, three)]}, {"dataset": [item(chain.feeder, four)]}]
    publisher.publish("collection", {"b": 2, "collection": inner})
    outer.received.wait_for(1, "collection")
    chain.mirrored.wait_for(1, "collection")
    for path in (f"x/y/{one}", two, three, four):
        assert (outer.target / path).read_bytes() == content(Path(path).name)
    assert [one.type for one in chain.mirrored.of_type("dataset", "collection")] == ["dataset", "collection"]
    until(lambda: not list(chain.copies.glob("*/*")), what="all copies and directories are removed")


@pytest.mark.parametrize(("repeat_after", "changed"), [(300, True), (0, False)], ids=["metadata", "time"])
def test_a_repeated_announcement(testbed: Testbed, repeat_after: int, changed: bool) -> None:
    """A file that a legacy server announces again, late or with other metadata, is relayed and delivered again."""
    publisher = Publisher(testbed)
    chain = Chain(testbed, {"topic": "/not-relayed"}, repeat_after=repeat_after)
    chain.sections["far"]["providers"] = f"{HOST}:{publisher.port}"
    chain.mirror.reconfigure(chain.sections)
    outer = chain.outer(repeat_after=repeat_after)
    chain.start(outer)
    publisher.wait_for_subscriber()
    (name,) = chain.feeder.feed()
    chain.server.wait_for_line(f"announced {name}")

    def stations() -> list[str]:
        return [receipt.data["station"] for receipt in outer.received.of_type("file")]

    def announce(station: str) -> bool:
        address = f"{HOST}:{chain.request_ports[0]}"
        publisher.publish("file", item(chain.feeder, name, request_address=address, station=station))
        return bool(stations())

    until(lambda: announce("first"))
    last = "second" if changed else "first"
    until(lambda: announce(last) and len(stations()) > 1)
    assert stations()[:2] == ["first", last]
    until(lambda: chain.delivered(name) > 1, what="it is fetched again")


def test_a_removed_file_returns(testbed: Testbed) -> None:
    """A file that returns to a server with ``delete``, with its size and time, is relayed and delivered again."""
    chain = Chain(testbed, {"delete": "true", "remove_delay": 0})
    outer = chain.outer()
    chain.start(outer)
    path = chain.feeder.folder / next(chain.feeder.fresh_names())
    for count in range(1, 4):
        put(path, b"content", 1_700_000_000)
        until(lambda count=count: outer.received.receipts().count(path.name) == count)  # type: ignore[misc]
        until(lambda: not path.exists())
        assert chain.delivered(path.name) == count


# -- several servers


def test_topics_of_providers(testbed: Testbed) -> None:
    """A provider may have its own topic; its messages under other topics are ignored."""
    chain = Chain(testbed, servers=2)
    ports = chain.publish_ports
    chain.sections["far"]["providers"] = f"{HOST}:{ports[0]} {HOST}:{ports[1]}/other"
    chain.server_sections[1]["hrit"]["topic"] = "/other/topic"
    chain.servers[1].reconfigure(chain.server_sections[1])
    chain.mirror.reconfigure(chain.sections)
    chain.start()
    (first,) = chain.feeders[0].feed()
    (second,) = Feeder(chain.feeders[1].folder, 500).feed()
    chain.announcement(first)
    chain.announcement(second)
    assert {one.message.subject for one in chain.mirrored.of_type("file")} == {MIRROR_TOPIC}


def test_fail_over(testbed: Testbed) -> None:
    """A file of two servers is announced once, and fetched from the other when one rejects it or is down."""
    chain = Chain(testbed, servers=2).start()
    for end in ((chain.feeders[0].folder / next(names())).unlink, chain.server.kill):
        (name,) = chain.feeders[0].feed()
        chain.announcement(name)
        chain.feeders[1].feed()
        until(lambda name=name: chain.messages[1].of_file(name))  # type: ignore[misc]
        end()
        push = partial(chain.push, name, testbed.directory("out"))
        until(lambda push=push: push().type == "file", what="it is fetched from the other server")  # type: ignore[misc]
        assert (testbed.directory("out") / name).read_bytes() == content(name)
        assert len(chain.mirrored.of_file(name)) == 1
        assert f" delivered {name} " in chain.servers[1].lines()


def test_server_stops_during_the_fetch(testbed: Testbed) -> None:
    """A server that stops responding during a request is replaced by the other one."""
    chain = Chain(testbed, servers=2)
    outer = chain.outer()
    chain.start(outer)
    outer.process.send(signal.SIGSTOP)
    (name,) = chain.feeders[0].feed()
    chain.announcement(name)
    chain.feeders[1].feed()
    chain.messages[1].wait_for()
    chain.server.send(signal.SIGSTOP)
    outer.process.send(signal.SIGCONT)
    chain.feeders[1].feed()
    outer.received.wait_for_receipts(chain.feeders[1].fed)
    assert chain.feeders[1].missing(outer.target) == []


def test_other_servers_get_an_ack(testbed: Testbed) -> None:
    """A server gets an ack for an announced file that another one has delivered."""
    chain = Chain(testbed, {"delete": "true", "remove_delay": 0}, servers=2).start()
    (name,) = chain.feeders[0].feed()
    assert chain.push(name, testbed.directory("out")).type == "file"
    chain.feeders[1].feed()
    until(lambda: not list(chain.feeders[1].folder.iterdir()), what="the other server removes its file")


# -- kills


def test_killed_while_it_fetches(testbed: Testbed) -> None:
    """A client's request is served although the mirror was killed during its fetch."""
    chain = Chain(testbed)
    outer = chain.outer()
    chain.start(outer)
    outer.process.send(signal.SIGSTOP)
    (name,) = chain.feeder.feed()
    chain.announcement(name)
    chain.server.send(signal.SIGSTOP)
    outer.process.send(signal.SIGCONT)
    until(lambda: list(chain.copies.glob("*/1")), what="the mirror has begun to fetch")
    chain.mirror.kill()
    assert chain.files() == []
    chain.server.send(signal.SIGCONT)
    chain.mirror.start()
    chain.wait_until_done(outer)
    assert outer.received.receipts() == [name]


def test_killed_in_a_burst(testbed: Testbed) -> None:
    """After a mirror was killed in a burst, every file is complete and published at the client."""
    chain = Chain(testbed, delete="true", remove_delay=0)
    outer = chain.outer()
    chain.start(outer)
    chain.feeder.feed(BURST)
    moment = random.randrange(BURST)
    until(lambda: len(set(outer.received.receipts())) >= moment)
    chain.mirror.kill()
    chain.mirror.start()
    chain.wait_until_done(outer, seconds=60)
    until(lambda: not list(chain.copies.glob("*/*")), what="all copies are removed")


def test_stopped_in_a_burst(testbed: Testbed) -> None:
    """SIGTERM in a burst ends a mirror with status 0; after the restart the rest is relayed."""
    chain = Chain(testbed)
    outer = chain.outer()
    chain.start(outer)
    chain.feeder.feed(BURST)
    chain.mirrored.wait_for(random.randrange(1, BURST // 2))
    assert chain.mirror.terminate() == 0
    assert "Traceback" not in chain.mirror.lines()
    chain.mirror.start()
    chain.wait_until_done(outer, seconds=60)
    (log,) = until(
        lambda: [log for one in chain.mirrored.of_type("beat") for log in one.data["logs"] if log["number"]]
    )[-1:]
    assert {one.message.subject for one in chain.mirrored.of_type("beat")} == {"/heartbeat/move_it_mirror"}
    assert (log["topic"], log["request_address"]) == (MIRROR_TOPIC, f"{HOST}:{chain.request_port}")
    assert log["log"] == chain.mirrored.of_type("file")[0].data["announcement"]["log"]


def test_replay(testbed: Testbed) -> None:
    """Files that are announced while the mirror is down, then while the client is, arrive without intervention."""
    chain = Chain(testbed)
    outer = chain.outer()
    chain.start(outer)
    chain.feeder.feed(5)
    chain.wait_until_done(outer)
    chain.mirror.kill()
    missed = chain.feeder.feed(50)
    until(lambda: {one.uid for one in chain.messages[0].of_type("file")} >= set(missed))
    chain.mirror.start()
    chain.wait_until_done(outer)
    outer.process.terminate()
    missed = chain.feeder.feed(50)
    until(lambda: {one.uid for one in chain.mirrored.of_type("file")} >= set(missed))
    outer.process.start()
    chain.wait_until_done(outer)


def test_journal_is_lost(testbed: Testbed) -> None:
    """A mirror that lost its journal does not take old cached files for those of another file."""
    chain = Chain(testbed).start()
    first, second = chain.feeder.feed(2)
    assert chain.push(first, testbed.directory("out")).type == "file"
    chain.mirror.kill()
    for file in (testbed.root / "state" / "trollmoves").glob("mirror-*"):
        file.unlink()
    chain.feeder.put(first, version=2)
    chain.mirrored.messages.clear()
    chain.mirror.start()
    chain.feeder.feed(1)
    chain.feeder.put(second, version=2)
    chain.feeder.put(first, version=3)
    until(lambda: chain.push(first, testbed.directory("out")).type == "file")
    assert (testbed.directory("out") / first).read_bytes() == content(first, 3)


# -- rejected


def test_rejections(chain: Chain) -> None:
    """Requests for unannounced files, or with paths out of a destination, are rejected."""
    (name,) = chain.feeder.feed()
    out = chain.testbed.directory("out")
    assert chain.push(name, out, uri="/etc/passwd").type == "err"
    assert chain.push(name, out, path="../above").type == "err"
    assert chain.push(name, out, path="/above").type == "err"
    assert send_request(chain.request_port, MIRROR_TOPIC, "ack", {"uri": "/etc/passwd", "uid": "passwd"}).type == "err"
    assert send_request(chain.request_port, MIRROR_TOPIC, "ping").type == "pong"
    assert not (chain.testbed.root / "above").exists()


def test_escaping_names(testbed: Testbed) -> None:
    """A file whose name or path leads out of the cache is not announced again."""
    publisher = Publisher(testbed)
    chain = Chain(testbed)
    chain.sections["far"]["providers"] = f"{HOST}:{publisher.port}"
    chain.mirror.reconfigure(chain.sections)
    chain.mirror.start()
    for _ in range(2):  # announcements and heartbeats
        publisher.wait_for_subscriber()
    bad: list[dict[str, object]] = [
        {"uri": "/a/b", "uid": "b1", "path": "../../x"},
        {"uri": "/a/b", "uid": "b2", "path": "/x"},
        {"uri": "/a/b", "uid": "b3", "path": 5},
        {"uri": "/a/..", "uid": "b4"},
        {"uri": "/a/", "uid": "b5"},
    ]
    good: dict[str, object] = {"uri": "/a/good", "uid": "good"}
    for one in [*bad, good]:
        publisher.publish("file", {**one, "request_address": f"{HOST}:1"})
    chain.announcement("good")
    chain.mirror.wait_for_line("ignored announcement of", times=len(bad))
    assert {one.uid for one in chain.mirrored.of_type("file")} == {"good"}


def test_permanently_missing(chain: Chain) -> None:
    """Clients that wait for a file that no server has any more get an err, and nothing is left of the attempt."""
    (name,) = chain.feeder.feed()
    number = chain.announcement(name)["announcement"]["number"]
    (chain.feeder.folder / name).unlink()
    answer = chain.push(name, chain.testbed.directory("out"))
    assert (answer.type, str(answer.data)[:9]) == ("err", "127.0.0.1")
    until(lambda: not list(chain.copies.glob(f"*/{number}")), what="no directory is left")


def test_temporarily_missing(testbed: Testbed) -> None:
    """A client that requests a file while no server responds gets a temporary err, and is served later."""
    chain = Chain(testbed)
    outer = chain.outer()
    chain.start()
    (name,) = chain.feeder.feed()
    data = chain.announcement(name)
    chain.server.send(signal.SIGSTOP)
    request = data | {"destination": str(outer.target), "request": {"id": "x/1", "timeout": 60}}
    answer = send_request(chain.request_port, MIRROR_TOPIC, "push", request, seconds=20)
    assert answer.type == "err"
    assert answer.data["temporary"] is True
    chain.server.send(signal.SIGCONT)
    ask_until_it_comes(chain, request)
    assert (outer.target / name).read_bytes() == content(name)


def ask_until_it_comes(chain: Chain, request: dict[str, object]) -> None:
    """Repeat the request as a client does."""
    until(lambda: send_request(chain.request_port, MIRROR_TOPIC, "push", request, seconds=30).type == "file", 30)


# -- archives


def test_bzip(testbed: Testbed) -> None:
    """With compression, a file is announced under its unpacked name, and relayed unpacked."""
    chain = Chain(testbed, compression="bzip", delete="true", remove_delay=0)
    chain.server_sections[0]["hrit"]["origin"] = f"{chain.feeder.folder}/{{name}}"
    chain.server.reconfigure(chain.server_sections[0])
    outer = chain.outer()
    chain.start(outer)
    staged = testbed.directory("staged")
    for name, bytes_ in (("a.txt.bz2", bz2.compress(b"hello")), ("b.txt", b"plain"), ("c.bz2", b"damaged")):
        (staged / name).write_bytes(bytes_)
        (staged / name).rename(chain.feeder.folder / name)
    outer.received.wait_for_receipts(["a.txt", "b.txt"])
    assert sorted(path.name for path in outer.target.iterdir()) == ["a.txt", "b.txt"]
    assert (outer.target / "a.txt").read_bytes() == b"hello"
    chain.mirrored.wait_for_receipts(["a.txt", "b.txt", "c"])
    assert {Path(one.data["uri"]).name for one in chain.mirrored.of_type("file")} == {"a.txt", "b.txt", "c"}
    outer.process.wait_for_line("c: permanently rejected by all sources")
    until(lambda: {path.name for path in chain.files()} <= {"c.bz2"}, what="what was handed on is removed")


def test_xrit(testbed: Testbed) -> None:
    """Segments are unpacked by the program that the section names."""
    program = testbed.directory("bin") / "decompress"
    program.write_text('#!/bin/sh\ntr a-z A-Z < "$1" > "$(basename "${1%C_}")__"\n')
    program.chmod(0o755)
    chain = Chain(testbed, compression="xrit", xritdecompressor=program)
    chain.server_sections[0]["hrit"]["origin"] = f"{chain.feeder.folder}/H-{{name}}"
    chain.server.reconfigure(chain.server_sections[0])
    outer = chain.outer()
    chain.start(outer)
    staged = testbed.directory("staged") / "H-1-C_"
    staged.write_bytes(b"segment")
    staged.rename(chain.feeder.folder / staged.name)
    outer.received.wait_for_receipts(["H-1-__"])
    assert (outer.target / "H-1-__").read_bytes() == b"SEGMENT"
    assert [path.name for path in chain.files()] == ["H-1-__"]


# -- configuration


def old_configuration(chain: Chain) -> str:
    """Return a configuration of the earlier implementation: both halves mixed, no destination."""
    return ini(
        {
            "DEFAULT": {"heartbeat": "True", "delete": "True"},
            "eumetcast-hrit-0deg": {
                "providers": f"{HOST}:{chain.publish_ports[0]}",
                "client_topic": TOPIC,
                "publish_port": "0",
                "nameservers": "False",
                "req_timeout": "2",
                "transfer_req_timeout": "10",
                "heartbeat_alarm_scale": "10",
                "topic": MIRROR_TOPIC,
                "station": "norrköping",
                "request_port": chain.request_port,
                "request_address": HOST,
                "working_directory": chain.copies,
                "info": "sensor=seviri;variant=0DEG",
                "connection_uptime": "30",
                "ssh_key_filename": "/home/sat/.ssh/id_rsa",
            },
        }
    )


def test_old_configuration(testbed: Testbed) -> None:
    """A configuration file of the earlier implementation works, and --check prints the result."""
    chain = Chain(testbed)
    chain.mirror.reconfigure(old_configuration(chain))
    outer = chain.outer()
    chain.start(outer)
    chain.feeder.feed(3)
    chain.wait_until_done(outer)
    assert chain.mirrored.wait_for()[0].data["sensor"] == "seviri"
    assert send_request(chain.request_port, "/x", "ping").data["station"] == "norrköping"
    checked = testbed.run("move_it_mirror.py", chain.mirror.config, "--check")
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "eumetcast-hrit-0deg" in checked.stdout


def test_check(testbed: Testbed) -> None:
    """--check prints missing and ineffective options, and fails."""
    sections: dict[str, dict[str, object]] = {
        "far": mirror_section(9010, "/tmp/x", 9094, origin="/a/b", compression="tar"),
        "bad": {"topic": "/a"},
    }
    checked = testbed.run("move_it_mirror.py", testbed.config(sections), "--check")
    assert checked.returncode == 1
    for part in ("[far] origin: has no effect", "[far] compression: ", "[bad] request_port: ", "[bad] providers: "):
        assert part in checked.stdout


def test_reload(testbed: Testbed) -> None:
    """A changed section is restarted, an added one started, and the others are not disturbed."""
    chain = Chain(testbed)
    chain.start()
    (name,) = chain.feeder.feed()
    chain.announcement(name)
    port = testbed.port()
    added = mirror_section(chain.publish_ports, testbed.directory("copies2"), port, topic="/added")
    chain.mirror.reconfigure({**chain.sections, "second": added})
    chain.mirror.wait_for_line("1 added, 0 changed, 0 removed, 1 unchanged")
    chain.mirror.reconfigure({"far": chain.sections["far"], "second": added | {"topic": "/changed"}})
    chain.mirror.wait_for_line("0 added, 1 changed, 0 removed, 1 unchanged")
    (name,) = chain.feeder.feed()
    until(lambda: {one.message.subject for one in chain.mirrored.of_file(name)} == {MIRROR_TOPIC, "/changed"})
    assert chain.mirror.lines().count("[far] started") == 1
    both: list[ReceivedMessage] = chain.mirrored.of_file(name)
    for one in both:
        out = testbed.directory(f"out{one.data['request_address'][-5:]}".replace(":", ""))
        data = one.data | {"destination": str(out)}
        assert send_request(int(one.data["request_address"].split(":")[1]), "/x", "push", data).type == "file"
        assert (out / name).read_bytes() == content(name)


# -- the earlier implementation


def connect(chain: Chain, received: RecordingSubscriber) -> None:
    """Feed files until one arrives: old servers do not repeat announcements made before the subscription."""
    for _ in range(100):
        (name,) = chain.feeder.feed()
        with suppress(AssertionError):
            received.wait_for_receipts([name], seconds=0.5)
            chain.feeder.fed.clear()
            return
    raise AssertionError("nothing arrives")


def test_old_server_and_client(testbed: Testbed) -> None:
    """An old client of a mirror of an old server gets every file, each fetched once."""
    chain = Chain(testbed, transfer_req_timeout=30)  # an old client without a timely reply drops the file
    chain.servers[0] = earlier.server(testbed, chain.server_sections[0], chain.publish_ports[0])
    outer = chain.outer(transfer_req_timeout=60)
    outer.process = earlier.client(testbed, outer.sections)
    chain.start(outer)
    connect(chain, outer.received)
    fed = chain.feeder.feed(10)
    chain.wait_until_done(outer, seconds=60)
    assert [chain.mirror.lines().count(f" fetched {name} ") for name in fed] == [1] * 10


# -- the example


def test_example(testbed: Testbed) -> None:
    """The example relays a file to both clients, with one delivery by the server, and keeps no cached file."""
    example = Path(__file__).parents[3] / "examples" / "mirror"
    ports: dict[str, int] = {}

    def port(match: re.Match[str]) -> str:
        return str(ports.setdefault(match[0], testbed.port()))

    def config(name: str) -> Path:
        text = (example / name).read_text().replace("/tmp/trollmoves-mirror", str(testbed.root))
        text = text.replace("remove_delay = 5", "remove_delay = 1")
        return testbed.config(re.sub(r"\b19\d\d\d\b", port, text), name)

    incoming = testbed.directory("incoming")
    testbed.directory("copies")
    configs = {role: config(f"{role}.ini") for role in ("server", "mirror", "client")}
    processes = []
    for role, publish_port in (("server", "19010"), ("mirror", "19011"), ("client", "")):
        more = ["-p", str(ports.setdefault(publish_port, testbed.port()))] if publish_port else []
        command = testbed.command(f"move_it_{role}.py", configs[role], *more)
        processes.append(testbed.process(role, command, configs[role]).start())
    (testbed.root / "H-MSG4-000001").write_text("segment\n")
    (testbed.root / "H-MSG4-000001").rename(incoming / "H-MSG4-000001")
    for place in ("forecast", "archive/MSG4"):
        path = testbed.root / place / "H-MSG4-000001"
        until(path.exists, what=f"{path} arrives")
        assert path.read_text() == "segment\n"
    assert processes[0].lines().count(" delivered ") == 1
    until(lambda: not list(testbed.directory("copies").glob("*/*")), what="the copy is removed")
    assert sorted(re.findall(r"\b19\d\d\d\b", (example / "README.md").read_text())) == ["19010", "19011"]
