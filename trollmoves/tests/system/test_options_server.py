"""Every option of a server, through the daemon, behaves as the reference says."""

from __future__ import annotations

import bz2
import io
import os
import signal
import socket
import sqlite3
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from posttroll.message import Message
from posttroll.publisher import Publisher

from trollmoves.provider.pushes import REPLY_TTL
from trollmoves.tests.helpers.daemons import TOPIC, Process, ServerClientPair, Testbed, server_section
from trollmoves.tests.helpers.directories import RemoteDirectory
from trollmoves.tests.helpers.recording import HOST, ReceivedMessage, RecordingSubscriber, send_request
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers.process import ServerProcess, answers

# Replaces EUMETSAT's program: it "unpacks" a C_ file into a __ file, which is larger.
XRIT = """\
#!{python}
import pathlib, sys
packed = pathlib.Path(sys.argv[1])
name = packed.name[:-2] + "__"
pathlib.Path(name).write_bytes(packed.read_bytes() * 2)
print("Decompressed file:", name)
"""


def write_decompressor(folder: Path) -> Path:
    """Write a replacement of xRITDecompress; return its path."""
    program = folder / "my-xrit"
    program.write_text(XRIT.format(python=sys.executable))
    program.chmod(0o755)
    return program


def put(path: Path, data: bytes, mtime: int = 0) -> Path:
    """Create a file under its final name atomically, with a modification time in s if it is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.parent / f".{path.name}"
    staged.write_bytes(data)
    if mtime:
        os.utime(staged, (mtime, mtime))
    return staged.rename(path)


def tar(**members: bytes) -> bytes:
    """Return an archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members.items():
            information = tarfile.TarInfo(name)
            information.size = len(data)
            archive.addfile(information, io.BytesIO(data))
    return buffer.getvalue()


def zipped(**members: bytes) -> bytes:
    """Return an archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


class ServerTestbed:
    """One server with a section for each group of options, and a subscriber to its announcements."""

    def __init__(self, testbed: Testbed) -> None:
        self.testbed = testbed
        self.ports = {name: testbed.port() for name in ("plain", "fields", "bzip", "xrit", "delete", "listen")}
        self.publisher = Publisher(f"tcp://{HOST}:0", "speaker").start()
        publish_port = testbed.port()
        program = write_decompressor(testbed.root)
        sections: dict[str, dict[str, object]] = {
            "DEFAULT": {"request_address": HOST, "publisher_port": 9010, "publish_port": 9011},
            "plain": {
                "origin": f"{testbed.directory('plain')}/{{name}}.dat",
                "topic": "/plain",
                "info": "sensor=seviri;bands=a,b;;equation=a=b; ",
                "station": "Oslo",
                "origin_inotify_base_dir_skip_levels": -2,
                "connection_uptime": 20,
                "ssh_key_filename": "/no/such/key",
                "ssh_connection_timeout": 5,
                "ssh_private_key_file": "/no/such/key",
                "connection_parameters__client_kwargs__endpoint_url": "http://127.0.0.1:1",
            },
            "fields": {"origin": f"{testbed.root}/fields/{{day:%Y%m%d}}/{{name}}.dat", "topic": "/fields"},
            "bzip": {
                "origin": f"{testbed.directory('bzip')}/{{name}}.bz2",
                "topic": "/bzip",
                "compression": "bzip",
                "working_directory": testbed.directory("work"),
                "delete": "true",
                "remove_delay": 600,
            },
            "xrit": {
                "origin": f"{testbed.directory('xrit')}/{{name}}-C_",
                "topic": "/xrit",
                "compression": "xrit",
                "prog": program,
                "working_directory": testbed.directory("work"),
            },
            "delete": {
                "origin": f"{testbed.directory('delete')}/{{name}}.dat",
                "topic": "/delete",
                "delete": "true",
                "remove_delay": 1,
            },
            "listen": {
                "listen": "/spoken",
                "topic": "/heard",
                "addresses": f"{HOST}:{self.publisher.port_number}",
                "nameserver": "False",
                "services": "",
                "addr_listener": "true",
                "timeout": 1,
                "translate": "false",
                "info": "via=us",
            },
            "readable": {
                "origin": f"{testbed.directory('readable')}/{{name}}.dat",
                "topic": "/readable",
                "info": "a=b",
            },
            "tar": {"origin": f"{testbed.directory('tar')}/{{name}}.tar", "topic": "/tar", "unpack": "tar"},
            "zip": {"origin": f"{testbed.directory('zip')}/{{name}}.zip", "topic": "/zip", "unpack": "zip"},
        }
        for name, port in self.ports.items():
            sections[name]["request_port"] = port
        arguments = ["--chain-check-interval", "5", "--max-notifier-restarts", "3", "-l", str(testbed.root / "own.log")]
        self.server: Process = testbed.server(sections, publish_port, *arguments)
        self.server.ready = lambda _: ", journal " in self.log()
        self.subscriber: RecordingSubscriber = testbed.subscriber(publish_port)
        self.server.start()

    def log(self) -> str:
        """Return the log that the server writes to its own file."""
        path = self.testbed.root / "own.log"
        return path.read_text() if path.exists() else ""

    def announced(self, topic: str, name: str = "") -> ReceivedMessage:
        """Wait for the announcement of a file under a topic; return it."""

        def found() -> list[ReceivedMessage]:
            return [one for one in self.subscriber.messages if one.message.subject == topic and name in str(one.data)]

        return until(found, what=f"{topic} {name} in {self.subscriber.texts[-5:]}")[0]

    def push(self, section: str, announced: ReceivedMessage, destination: object, kind: str = "push") -> Any:
        """Request a file of a section as an older client does."""
        data = {key: value for key, value in announced.data.items() if key != "announcement"}
        return send_request(
            self.ports[section], announced.message.subject, kind, {**data, "destination": str(destination)}
        )


@pytest.fixture(scope="module")
def server_testbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerTestbed]:
    """The server."""
    with Testbed(tmp_path_factory.mktemp("server")) as testbed:
        server_testbed = ServerTestbed(testbed)
        yield server_testbed
        server_testbed.publisher.stop()


def test_all_sections_run(server_testbed: ServerTestbed) -> None:
    """Sections of all kinds share one publish port, and options of old files are accepted."""
    assert "runs 9 chains" in server_testbed.log()
    assert " ERROR" not in server_testbed.log()


def test_info_station_and_request_address(server_testbed: ServerTestbed) -> None:
    """``info`` is added to announcements, a ping returns ``station``, announcements name ``request_address``."""
    put(server_testbed.testbed.root / "plain" / "a.dat", b"a")
    data = server_testbed.announced("/plain").data
    assert data["sensor"] == "seviri"
    assert data["bands"] == ["a", "b"]
    assert data["equation"] == "a=b"
    assert data["name"] == "a"
    assert data["request_address"] == f"{HOST}:{server_testbed.ports['plain']}"
    assert send_request(server_testbed.ports["plain"], "/ping", "ping").data["station"] == "Oslo"
    assert send_request(server_testbed.ports["bzip"], "/ping", "ping").data["station"] == "unknown"


def test_empty_and_vanished_files(server_testbed: ServerTestbed) -> None:
    """An empty file is not announced, and a request for a vanished file is rejected."""
    folder = server_testbed.testbed.root / "plain"
    (folder / "empty.dat").touch()
    gone = put(folder / "gone.dat", b"gone")
    announced = server_testbed.announced("/plain", "gone.dat")
    gone.unlink()
    assert server_testbed.push("plain", announced, server_testbed.testbed.directory("nowhere")).type == "err"
    put(folder / "next.dat", b"next")
    server_testbed.announced("/plain", "next.dat")
    assert not [one for one in server_testbed.subscriber.messages if "empty.dat" in str(one.data)]


def test_fields_in_the_directory(server_testbed: ServerTestbed) -> None:
    """``origin`` may have fields in its directory, and includes directories that are created later."""
    put(server_testbed.testbed.root / "fields" / "20250102" / "a.dat", b"a")
    data = server_testbed.announced("/fields").data
    assert data["day"].isoformat()[:10] == "2025-01-02"
    assert data["name"] == "a"


def test_bzip(server_testbed: ServerTestbed) -> None:
    """With ``compression = bzip`` the file is unpacked in ``working_directory``; ``delete`` removes the archive."""
    packed = put(server_testbed.testbed.root / "bzip" / "a.bz2", bz2.compress(b"whole" * 100))
    announced = server_testbed.announced("/bzip")
    assert announced.data["uri"] == str(server_testbed.testbed.root / "work" / "a")
    until(lambda: not packed.exists())
    target = server_testbed.testbed.directory("bzip-out")
    assert server_testbed.push("bzip", announced, target).type == "file"
    assert (target / "a").read_bytes() == b"whole" * 100


def test_xrit(server_testbed: ServerTestbed) -> None:
    """With ``compression = xrit`` the program named by ``prog`` unpacks; without ``delete`` the packed file stays."""
    packed = put(server_testbed.testbed.root / "xrit" / "a-C_", b"whole" * 100)
    announced = server_testbed.announced("/xrit")
    assert announced.data["uid"] == "a-__"
    assert (server_testbed.testbed.root / "work" / "a-__").read_bytes() == b"whole" * 200
    assert packed.exists()


def test_delete(server_testbed: ServerTestbed) -> None:
    """With ``delete`` a file is removed ``remove_delay`` after its delivery or ack."""
    folder, target = server_testbed.testbed.root / "delete", server_testbed.testbed.directory("delete-out")
    pushed, acked, kept = (put(folder / f"{name}.dat", name.encode()) for name in ("pushed", "acked", "kept"))
    announced = {name: server_testbed.announced("/delete", f"{name}.dat") for name in ("pushed", "acked", "kept")}
    began = time.monotonic()
    assert server_testbed.push("delete", announced["pushed"], target).type == "file"
    assert server_testbed.push("delete", announced["acked"], target, "ack").type == "ack"
    until(lambda: not pushed.exists() and not acked.exists())
    assert time.monotonic() - began > 0.9
    assert kept.exists()
    assert (target / "pushed.dat").exists()


@pytest.mark.parametrize(("mode", "half", "whole"), [("wb", b"2", b"22"), ("r+b", b"3", b"33"), ("ab", b"4", b"44")])
def test_file_that_is_rewritten_after_its_announcement(
    server_testbed: ServerTestbed, mode: str, half: bytes, whole: bytes
) -> None:
    """No part of a file is delivered while it is truncated, overwritten or extended; then all of it is."""
    target = server_testbed.testbed.directory("rewritten-out")
    path = put(server_testbed.testbed.root / "delete" / f"rewritten-{mode[0]}.dat", b"1" * 100)
    announced = server_testbed.announced("/delete", path.name)
    with open(path, mode) as file:
        file.write(half * 50)
        file.flush()
        os.utime(path, (1, 1))
        reply = server_testbed.push("delete", announced, target)
        assert reply.type == "err"
        assert "as it is being written" in str(reply.data)
        assert not (target / path.name).exists()
        file.write(whole * 50)
    content = path.read_bytes()
    assert server_testbed.push("delete", announced, target).type == "file"
    assert (target / path.name).read_bytes() == content


def test_older_version_after_a_newer_one(server_testbed: ServerTestbed) -> None:
    """An older announcement is not delivered after a newer one of the same file."""
    target = server_testbed.testbed.directory("order-out")

    def announce(content: bytes) -> dict[str, Any]:
        known = len(server_testbed.subscriber.messages)
        put(server_testbed.testbed.root / "delete" / "order.dat", content)
        (found,) = until(
            lambda: [one for one in server_testbed.subscriber.messages[known:] if "order.dat" in str(one.data)]
        )
        return {**found.data, "destination": str(target), "request": {"id": f"test/{content!r}", "timeout": 60}}

    older, newer = announce(b"older"), announce(b"newest")
    assert send_request(server_testbed.ports["delete"], "/delete", "push", newer).type == "file"
    reply = send_request(server_testbed.ports["delete"], "/delete", "push", older)
    assert (reply.type, reply.data["superseded"], reply.data["temporary"]) == ("err", True, False)
    assert (target / "order.dat").read_bytes() == b"newest"


def test_delete_keeps_another_version(server_testbed: ServerTestbed) -> None:
    """A file that replaced the delivered one is not removed, even if it has the same size and time."""
    folder, target = server_testbed.testbed.root / "delete", server_testbed.testbed.directory("kept-out")
    path = put(folder / "replaced.dat", b"old")
    announced = server_testbed.announced("/delete", path.name)
    status = path.stat()
    assert server_testbed.push("delete", announced, target).type == "file"
    staged = folder / ".replaced.dat"
    staged.write_bytes(b"new")
    os.utime(staged, ns=(status.st_atime_ns, status.st_mtime_ns))
    staged.rename(path)
    later = put(folder / "later.dat", b"x")
    assert server_testbed.push("delete", server_testbed.announced("/delete", later.name), target).type == "file"
    until(lambda: not later.exists())
    assert path.read_bytes() == b"new"


def test_listen(server_testbed: ServerTestbed) -> None:
    """``listen`` re-announces local files that messages name; other hosts' files are ignored."""
    folder = server_testbed.testbed.directory("spoken")
    for name in ("a.dat", "b.dat", "c.dat"):
        put(folder / name, name.encode())
    host = socket.gethostname()
    messages = [
        Message("/spoken/other", "file", {"uri": "ssh://other.site.org/x/a.dat", "uid": "a.dat"}),
        Message("/spoken/gone", "file", {"uri": str(folder / "gone.dat"), "uid": "gone.dat"}),
        Message("/spoken/one", "file", {"uri": str(folder / "a.dat"), "uid": "a.dat", "orbit": 5}),
        Message(
            "/spoken/two",
            "dataset",
            {"dataset": [{"uri": f"ssh://{host}{folder / name}", "uid": name} for name in ("b.dat", "c.dat")]},
        ),
    ]

    def announced() -> list[ReceivedMessage]:
        for message in messages:
            server_testbed.publisher.send(str(message))
        time.sleep(0.2)
        return [one for one in server_testbed.subscriber.of_type("file", "dataset") if one.message.subject == "/heard"]

    until(lambda: {one.type for one in announced()} == {"file", "dataset"})
    one, both = (next(found for found in announced() if found.type == type_) for type_ in ("file", "dataset"))
    assert (one.type, one.data["uri"], one.data["orbit"]) == ("file", str(folder / "a.dat"), 5)
    assert one.data["via"] == "us"
    assert both.type == "dataset"
    target = server_testbed.testbed.directory("listen-out")
    assert server_testbed.push("listen", both, target).type == "dataset"
    assert sorted(os.listdir(target)) == ["b.dat", "c.dat"]
    assert "other.site.org" not in "".join(server_testbed.subscriber.texts)
    assert "on another host" in server_testbed.log()


def test_remote_file_descriptions(server_testbed: ServerTestbed) -> None:
    """Without ``request_port`` a message says where fsspec can read the file; ``unpack`` lists each member."""
    root = server_testbed.testbed.root
    put(root / "readable" / "a.dat", b"a")
    put(root / "tar" / "a.tar", tar(one=b"1", two=b"22"))
    put(root / "zip" / "a.zip", zipped(one=b"1", two=b"22"))
    announced = server_testbed.announced("/readable")
    assert announced.type == "file"
    assert announced.data["uri"] == f"ssh://{HOST}{root}/readable/a.dat"
    assert announced.data["filesystem"]["host"] == HOST
    assert (announced.data["a"], announced.data["name"]) == ("b", "a")
    assert "request_address" not in announced.data
    for kind in ("tar", "zip"):
        announced = server_testbed.announced(f"/{kind}")
        assert announced.type == "dataset"
        assert [item["uid"] for item in announced.data["dataset"]] == [f"{kind}://one", f"{kind}://two"]
        assert open_member(announced.data["dataset"][1]) == b"22"


def open_member(item: dict[str, Any]) -> bytes:
    """Read a member of an archive with fsspec, as a reader on this host does."""
    fsspec = pytest.importorskip("fsspec")
    description = item["filesystem"]
    filesystem = fsspec.filesystem(description["protocol"], fo=description["fo"])
    data: bytes = filesystem.cat(item["uid"].partition("://")[2])
    return data


def test_listen_through_a_name_server(testbed: Testbed) -> None:
    """``services`` are found at the ``nameserver``, also when they come later, with their ``topics``."""
    ports = {name: testbed.port() for name in ("nameserver", "broadcast", "address_publish")}
    settings = {f"POSTTROLL_{name.upper()}_PORT": str(port) for name, port in ports.items()}
    nameserver = ServerProcess(
        ports["nameserver"],
        [sys.executable, str(Path(sys.executable).with_name("nameserver")), "--no-multicast"],
        testbed.root / "nameserver.log",
        settings,
    )
    testbed.enter(nameserver)
    publish_port = testbed.port()
    section = {
        "listen": "/not-this",
        "topics": "/spoken",
        "services": "speaker",
        "nameserver": HOST,
        "timeout": 1,
        "topic": "/heard",
        "request_port": testbed.port(),
        "request_address": HOST,
    }
    server = testbed.server({"listen": section}, publish_port)
    server.environment = {**server.environment, **settings}
    subscriber = testbed.subscriber(publish_port)
    server.start()
    program = (
        "import sys, time\n"
        "from posttroll.message import Message\n"
        "from posttroll.publisher import NoisyPublisher\n"
        "publisher = NoisyPublisher('speaker', nameservers=['localhost'])\n"
        "publisher.start()\n"
        "while True:\n"
        "    for topic in ('/not-this', '/spoken'):\n"
        "        publisher.send(str(Message(topic, 'file', {'uri': sys.argv[1] + topic, 'uid': topic[1:]})))\n"
        "    time.sleep(0.3)\n"
    )
    for name in ("not-this", "spoken"):
        put(testbed.root / name, name.encode())
    publisher_log = testbed.root / "speaker.log"
    publisher = testbed.process(
        "speaker", [sys.executable, "-c", program, str(testbed.root)], publisher_log, lambda _: True
    )
    publisher.environment = {**publisher.environment, **settings}
    publisher.start()
    announced = subscriber.wait_for(1, "file", seconds=40)[0]
    assert announced.uid == "spoken"
    assert answers(ports["nameserver"])


def test_removals_outlive_the_process(testbed: Testbed) -> None:
    """A pending removal of a killed server is made after its restart."""
    pair = ServerClientPair(testbed, {"delete": "true", "remove_delay": 5}).start()
    (name,) = pair.feeder.feed()
    pair.wait_until_done()
    pair.server.kill()
    assert (pair.feeder.folder / name).exists()
    pair.server.start()
    until(lambda: not (pair.feeder.folder / name).exists())
    assert pair.feeder.all_delivered(pair.target)


def test_files_being_sent_are_not_removed(testbed: Testbed) -> None:
    """A delivered file stays while another client still receives it."""
    place = RemoteDirectory(testbed, "ftp", testbed.directory("far"))
    pair = ServerClientPair(testbed, {"delete": "true", "remove_delay": 0})
    place.proxy.stall_after(100_000)
    section = {"far": {**pair.client_sections["hrit"], "destination": place.url}}
    testbed.client(section, name="far").start()
    pair.server.start()
    (name,) = pair.feeder.feed(size=1_000_000)
    data = pair.announced.wait_for()[0].data
    until(lambda: place.proxy.sent > 100_000, what="the transfer is under way")
    data = {key: value for key, value in data.items() if key != "announcement"}
    assert send_request(pair.request_port, TOPIC, "push", data | {"destination": str(pair.target)}).type == "file"
    time.sleep(1.5)  # an absent event cannot be awaited
    assert (pair.feeder.folder / name).exists()
    place.proxy.heal()
    until(lambda: not (pair.feeder.folder / name).exists())
    assert (place.folder / name).read_bytes() == pair.feeder.fed[name]


def test_request_address_by_default(testbed: Testbed) -> None:
    """Without ``request_address`` announcements name an address of this host; ports open at ``bind_address``."""
    pair = ServerClientPair(testbed)
    section = server_section(pair.feeder.folder, pair.request_port, bind_address=HOST)
    del section["request_address"]
    pair.server.reconfigure({"hrit": section})
    pair.server.start()
    pair.feeder.feed()
    address, _, port = pair.announced.wait_for()[0].data["request_address"].rpartition(":")
    assert int(port) == pair.request_port
    socket.inet_aton(address)
    assert send_request(pair.request_port, "/ping", "ping").type == "pong"


def test_a_removed_file_returns(testbed: Testbed) -> None:
    """With ``delete`` a file that returns with its size and time, also to a stopped server, is transferred again."""
    pair = ServerClientPair(testbed, {"delete": "true", "remove_delay": 0}).start()
    path = pair.feeder.folder / next(pair.feeder.fresh_names())

    def is_transferred() -> bool:
        return pair.received.receipts().count(path.name) == count and not path.exists()

    for count in range(1, 11):
        put(path, b"content", 1_700_000_000)
        until(is_transferred, what=f"{count} transfers")
    pair.server.terminate()
    put(path, b"content", 1_700_000_000)
    pair.server.start()
    count = 11
    until(is_transferred, what="a transfer after the restart")


@pytest.mark.parametrize("how", ["pushed", "acked"])
def test_a_delivered_file_is_replaced_before_its_removal(testbed: Testbed, how: str) -> None:
    """With ``delete`` another file with the size and time of the one that waits for its removal is transferred, too."""
    pair = ServerClientPair(testbed, {"delete": "true", "remove_delay": 3})
    pair.server.start()
    path = put(pair.feeder.folder / next(pair.feeder.fresh_names()), b"content", 1_700_000_000)
    (announced,) = pair.announced.wait_for()
    data = {**announced.data, "destination": str(pair.target)}
    send_request(pair.request_port, TOPIC, "push" if how == "pushed" else "ack", data)
    delivered_at = time.time()
    staged = pair.feeder.folder / ".staged"

    def is_staged_later() -> bool:
        staged.write_bytes(b"another")
        os.utime(staged, (1_700_000_000, 1_700_000_000))
        return staged.stat().st_ctime > delivered_at + 0.05  # the clock of the disk is coarse

    until(is_staged_later)
    staged.rename(path)
    assert pair.announced.wait_for(2)[1].data["announcement"]["returned"]
    pair.client.start()
    pair.client.wait_for_line("connected to")
    pair.server.send(signal.SIGHUP)  # a new client does not request older announcements; a reload repeats them
    until(lambda: not path.exists(), what="the file is delivered and removed")
    assert (pair.target / path.name).read_bytes() == b"another"


def test_a_file_returns_before_its_delivery(testbed: Testbed) -> None:
    """A file that was moved out of the directory before a client could get it is announced again when it is back."""
    pair = ServerClientPair(testbed)
    pair.server.start()
    (name,) = pair.feeder.feed()
    pair.announced.wait_for()
    path, outside = pair.feeder.folder / name, testbed.root / "outside"
    path.rename(outside)
    pair.client.start()
    pair.received.wait_for_receipts(pair.feeder.feed())
    outside.rename(path)
    pair.wait_until_done()


@pytest.mark.parametrize(("repeat_after", "changed"), [(300, True), (0, False)], ids=["metadata", "time"])
def test_a_repeated_message(testbed: Testbed, repeat_after: int, changed: bool) -> None:
    """With ``listen`` a repeated message about an unchanged file, late or with other metadata, is acted on again."""
    speaker = Publisher(f"tcp://{HOST}:0", "speaker").start()
    pair = ServerClientPair(testbed, repeat_after=repeat_after)
    listens = {
        "listen": "/spoken",
        "addresses": f"{HOST}:{speaker.port_number}",
        "nameserver": "False",
        "topic": TOPIC,
        "request_port": pair.request_port,
        "request_address": HOST,
        "repeat_after": repeat_after,
    }
    pair.server.reconfigure({"a": listens})
    pair.start()
    path = put(testbed.root / "spoken" / "a.dat", b"content")

    def stations() -> list[str]:
        return [message.data["station"] for message in pair.received.of_type("file")]

    def speak(station: str) -> bool:
        speaker.send(str(Message("/spoken", "file", {"uri": str(path), "uid": path.name, "station": station})))
        return bool(stations())

    until(lambda: speak("first"))
    last = "second" if changed else "first"
    until(lambda: speak(last) and len(stations()) > 1)
    assert stations()[:2] == ["first", last]
    if changed:
        until(lambda: speak(last) and "ignored a repeated message about a.dat" in pair.server.lines())
        assert stations() == ["first", last]
    data = pair.announced.of_type("file")[-1].data
    data = {key: value for key, value in data.items() if key != "announcement"}  # as a legacy client
    again = testbed.directory("again")
    assert send_request(pair.request_port, TOPIC, "push", data | {"destination": str(again)}).type == "file"
    assert (again / path.name).exists()
    speaker.stop()


def test_a_legacy_client_requests_a_file_again(testbed: Testbed) -> None:
    """A request without an id is answered from the journal for a minute; later the file is transferred again."""
    pair = ServerClientPair(testbed)
    pair.server.start()
    (name,) = pair.feeder.feed()
    (announced,) = pair.announced.wait_for()
    data = {key: value for key, value in announced.data.items() if key != "announcement"}
    data["destination"] = str(pair.target)

    def is_transferred() -> bool:
        assert send_request(pair.request_port, TOPIC, "push", data).type == "file"
        return (pair.target / name).exists()

    assert is_transferred()
    (pair.target / name).unlink()
    assert not is_transferred()
    pair.server.terminate()
    (journal,) = (testbed.root / "state").rglob("server-*.journal")
    with closing(sqlite3.connect(journal)) as opened, opened:
        opened.execute("UPDATE tasks SET finished = finished - ? WHERE kind = 'push'", (REPLY_TTL + 1,))
    pair.server.start()
    assert is_transferred()
