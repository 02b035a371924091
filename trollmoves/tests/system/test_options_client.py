"""Every option of a client, through the daemons, behaves as the reference says."""

from __future__ import annotations

import bz2
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from posttroll.message import Message
from posttroll.publisher import Publisher

from trollmoves.tests.helpers.daemons import TOPIC, ServerClientPair, Testbed, client_section, server_section
from trollmoves.tests.helpers.directories import RemoteDirectory
from trollmoves.tests.helpers.recording import HOST, ReceivedMessage, RecordingSubscriber
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers.process import PROXY_HOST, answers
from trollmoves.tests.system.test_options_server import put, tar, write_decompressor

SECRET = "s3cr3t/pass@word"
CHAINS = ("plain", "tar", "bzip", "xrit", "map", "beats", "topics", "listed", "ftp")


class ClientTestbed:
    """One server, and one client with a section for each group of options, each with a subscriber."""

    def __init__(self, testbed: Testbed) -> None:
        self.testbed = testbed
        publish_port, self.nameserver_port = testbed.port(), testbed.port()
        self.publisher = Publisher(f"tcp://{HOST}:0", "speaker").start()
        folders = ("plain", "tar", "bzip", "xrit", "map", "ftp", "first", "second")
        server: dict[str, dict[str, object]] = {"DEFAULT": {"request_address": HOST}}
        for name in folders:
            origin = f"{testbed.directory(f'in/{name}')}/{{name}}.{{end}}"
            server[name] = {
                "origin": origin,
                "topic": f"/{name}",
                "request_port": testbed.port(),
                "info": "channel=VIS",
            }
        server["map"]["info"] = "satellite=G16;sensor=abi;bands=a,b;destination_name=x;area=euro"
        server["plain"]["info"] = f"channel=VIS;login={'kept'};topic=kept;timeliness=NRT"
        server["listed"] = {
            "listen": "/spoken",
            "addresses": f"{HOST}:{self.publisher.port_number}",
            "nameserver": "False",
            "topic": "/listed",
            "request_port": testbed.port(),
        }
        self.server = testbed.server(server, publish_port)
        place = RemoteDirectory(testbed, "ftp", testbed.directory("far"))
        provider = f"{HOST}:{publish_port}"
        program = write_decompressor(testbed.root)
        out = testbed.root / "out"
        options: dict[str, dict[str, object]] = {
            "plain": {
                "topic": "/plain",
                "destination": f"{out}/plain/{{channel}}",
                "login": f"sat:{SECRET}",
                "req_timeout": 2,
                "transfer_req_timeout": 20,
                "heartbeat": "False",
                "heartbeat_alarm_scale": 0,
                "block_size": 512,
            },
            "tar": {"compression": "tar", "delete": "true", "destination": f"{out}/tar"},
            "bzip": {"compression": "bzip", "block_size": 16, "destination": f"{out}/bzip"},
            "xrit": {"compression": "xrit", "xritdecompressor": program, "destination": f"{out}/xrit"},
            "map": {
                "destination": f"{out}/map",
                "satellite": "G16:GOES-16|G17:GOES-17",
                "area": "asia:Asia|africa:Africa",
                "sensor": "imager",
                "bands": "a:A",
                "absent": "nothing",
            },
            "beats": {"topic": None, "destination": f"{out}/beats"},
            "topics": {"providers": f"{provider}/first {provider}/second", "topic": "", "destination": f"{out}/topics"},
            "listed": {"destination": f"{out}/listed"},
            "ftp": {
                "destination": f"{place.url}below/{{channel}}",
                "ftp_root": place.folder,
                "create_target_directory": "true",
            },
        }
        self.ports = {name: testbed.port() for name in CHAINS}
        client: dict[str, dict[str, object]] = {"DEFAULT": {"nameservers": "False", "providers": provider}}
        for name, port in self.ports.items():
            section = {"topic": f"/{name}", "publish_port": port, **options[name]}
            client[name] = {option: value for option, value in section.items() if value is not None}
        self.client = testbed.client(client, "-v")
        self.subscribers: dict[str, RecordingSubscriber] = {
            name: testbed.subscriber(port) for name, port in self.ports.items()
        }
        self.server.start(wait=False)
        self.client.start()
        self.server.wait_until_ready()

    def put(self, folder: str, name: str, data: bytes) -> Path:
        """Create a file on the server's side."""
        return put(self.testbed.root / "in" / folder / name, data)

    def receipt(self, chain: str) -> ReceivedMessage:
        """Wait for the first receipt of a section; return it."""
        types = ("file", "dataset", "collection")
        return until(
            lambda: self.subscribers[chain].of_type(*types), what=f"receipt of {chain}: {self.client.lines()[-2000:]}"
        )[0]


@pytest.fixture(scope="module")
def client_testbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClientTestbed]:
    """Both daemons."""
    with Testbed(tmp_path_factory.mktemp("client")) as testbed:
        client_testbed = ClientTestbed(testbed)
        yield client_testbed
        client_testbed.publisher.stop()


def test_destination_and_login(client_testbed: ClientTestbed) -> None:
    """``destination`` is composed and created; ``login`` is never published; options replace no metadata."""
    client_testbed.put("plain", "a.dat", b"a")
    data = client_testbed.receipt("plain").data
    target = client_testbed.testbed.root / "out" / "plain" / "VIS"
    assert data["uri"] == str(target / "a.dat")
    assert (target / "a.dat").read_bytes() == b"a"
    assert (data["topic"], data["login"], data["timeliness"]) == ("kept", "kept", "NRT")
    assert not [
        text for subscriber in client_testbed.subscribers.values() for text in subscriber.texts if SECRET in text
    ]
    assert SECRET not in client_testbed.client.lines() + client_testbed.server.lines()


def test_tar(client_testbed: ClientTestbed) -> None:
    """With ``compression = tar`` the members are published, and with ``delete`` the archive is removed."""
    client_testbed.put("tar", "a.tar", tar(one=b"1", two=b"22"))
    received = client_testbed.receipt("tar")
    target = client_testbed.testbed.root / "out" / "tar"
    assert received.type == "dataset"
    assert [item["uri"] for item in received.data["dataset"]] == [str(target / "one"), str(target / "two")]
    until(lambda: sorted(os.listdir(target)) == ["one", "two"])


def test_bzip(client_testbed: ClientTestbed) -> None:
    """With ``compression = bzip`` the unpacked file is published; without ``delete`` the archive stays."""
    client_testbed.put("bzip", "a.bz2", bz2.compress(b"whole" * 100))
    received = client_testbed.receipt("bzip")
    target = client_testbed.testbed.root / "out" / "bzip"
    assert (received.type, received.data["uid"]) == ("file", "a")
    assert (target / "a").read_bytes() == b"whole" * 100
    assert (target / "a.bz2").exists()


def test_xrit(client_testbed: ClientTestbed) -> None:
    """With ``compression = xrit`` the program named by ``xritdecompressor`` unpacks."""
    client_testbed.put("xrit", "a.b-C_", b"whole")
    assert client_testbed.receipt("xrit").data["uid"] == "a.b-__"
    assert (client_testbed.testbed.root / "out" / "xrit" / "a.b-__").read_bytes() == b"wholewhole"


def test_replacements(client_testbed: ClientTestbed) -> None:
    """Any other key replaces the metadata item of its name, through a map if it is one; unmapped values stay."""
    client_testbed.put("map", "a.dat", b"a")
    data = client_testbed.receipt("map").data
    assert (data["satellite"], data["sensor"], data["area"], data["bands"]) == ("GOES-16", "imager", "euro", ["a", "b"])
    assert "absent" not in data


def test_topics_of_providers(client_testbed: ClientTestbed) -> None:
    """A provider's own topics replace the common one, also several of one provider; others are ignored."""
    client_testbed.put("first", "a.dat", b"a")
    client_testbed.put("second", "b.dat", b"b")
    client_testbed.subscribers["topics"].wait_for_receipts(["a.dat", "b.dat"])
    assert sorted(os.listdir(client_testbed.testbed.root / "out" / "topics")) == ["a.dat", "b.dat"]


def test_heartbeats_only(client_testbed: ClientTestbed) -> None:
    """A section without a topic runs, sends heartbeats, and fetches nothing."""
    assert client_testbed.subscribers["beats"].wait_for(1, "beat")
    assert client_testbed.subscribers["beats"].of_type("push", "file") == []


def test_datasets_and_collections(client_testbed: ClientTestbed) -> None:
    """All files of a dataset or collection are fetched and published together, with their new places."""
    folder, target = client_testbed.testbed.directory("spoken"), client_testbed.testbed.root / "out" / "listed"
    items = [{"uri": str(put(folder / name, name.encode())), "uid": name} for name in ("a", "b", "c", "d")]
    messages = [
        Message("/spoken", "dataset", {"dataset": items[:2]}),
        Message("/spoken", "collection", {"collection": [{"dataset": [items[2]]}, items[3] | {"path": "below"}]}),
    ]

    def received() -> list[ReceivedMessage]:
        for message in messages:
            client_testbed.publisher.send(str(message))
        return client_testbed.subscribers["listed"].of_type("dataset", "collection")

    until(lambda: {one.type for one in received()} == {"dataset", "collection"})
    data_by_type = {one.type: one.data for one in received()}
    assert [item["uri"] for item in data_by_type["dataset"]["dataset"]] == [f"{target}/a", f"{target}/b"]
    assert data_by_type["collection"]["collection"][0]["dataset"][0]["uri"] == f"{target}/c"
    assert data_by_type["collection"]["collection"][1]["uri"] == f"{target}/below/d"
    assert [(target / name).read_text() for name in ("a", "b", "c", "below/d")] == ["a", "b", "c", "below/d"[-1]]


def test_ftp_root(client_testbed: ClientTestbed) -> None:
    """``ftp_root`` is the local directory of a remote destination; subdirectories are created."""
    client_testbed.put("ftp", "a.dat", b"a")
    data = client_testbed.receipt("ftp").data
    assert (client_testbed.testbed.root / "far" / "below" / "VIS" / "a.dat").read_bytes() == b"a"
    assert data["uri"].endswith("/below/VIS/a.dat")


def test_backup_targets(testbed: Testbed) -> None:
    """When the destination's host does not respond, the next of ``backup_targets`` gets the file, as published."""
    place = RemoteDirectory(testbed, "sftp", testbed.directory("far"))
    dead = place.url.replace(PROXY_HOST, "127.0.0.9")
    pair = ServerClientPair(
        testbed,
        {"connection_parameters__num_ssh_retries": 1},
        destination=dead,
        backup_targets=f"127.0.0.8 {PROXY_HOST}",
    ).start()
    (name,) = pair.feeder.feed()
    (receipt,) = pair.received.wait_for()
    assert (place.folder / name).exists()
    assert receipt.data["uri"] == f"{place.folder}/{name}"
    assert "backup_targets" not in receipt.data
    assert pair.received.of_type("push")[0].data["backup_targets"] == ["127.0.0.8", PROXY_HOST]


def test_directories_are_not_created(testbed: Testbed) -> None:
    """Without ``create_target_directory`` a client creates no directory."""
    place = RemoteDirectory(testbed, "ftp", testbed.directory("far"))
    root = testbed.directory("root")
    pair = ServerClientPair(
        testbed, destination=f"{place.url}a/b", ftp_root=root, create_target_directory="False"
    ).start()
    (name,) = pair.feeder.feed()
    pair.received.wait_for_receipts([name])
    assert os.listdir(root) == []


def test_retry_period_expires(testbed: Testbed) -> None:
    """A file that cannot be delivered is requested again, and after ``retry_for`` dropped with one error."""
    pair = ServerClientPair(testbed, {"retry_for": 1}, destination="sftp://127.0.0.9:1/x", retry_for=8).start()
    pair.feeder.feed()
    pair.client.wait_for_line("giving up on ", seconds=40)
    assert len(pair.received.of_type("push")) > 1
    assert pair.client.lines().count(" ERROR") + pair.client.lines().count("[ERROR") == 1
    assert pair.received.receipts() == []


def test_held_destination(testbed: Testbed) -> None:
    """A file in the place of the directory holds the files; they arrive after the repair and a reload."""
    obstacle = testbed.root / "a-file"
    obstacle.write_text("in the way")
    pair = ServerClientPair(testbed, destination=f"{obstacle}/below").start()
    names = pair.feeder.feed(20)
    pair.server.wait_for_line(", held (attempt")
    pair.client.wait_for_line("not delivered")
    obstacle.unlink()
    obstacle.mkdir()
    pair.client.send(signal.SIGHUP)
    pair.received.wait_for_receipts(names, 60)
    assert pair.server.lines().count(", held (attempt") == 1
    assert pair.client.lines().count("not delivered") <= 3


def test_name_servers(testbed: Testbed) -> None:
    """A client accepts a list for ``nameservers``, and none for multicast, and publishes in either case."""
    for number, nameservers in enumerate(("localhost 127.0.0.1", "")):
        pair = ServerClientPair(testbed, nameservers=nameservers)
        pair.feeder = testbed.feeder(f"in{number}", 100 * number)
        pair.server_sections["hrit"]["origin"] = str(pair.server_sections["hrit"]["origin"]).replace(
            "/in/", f"/in{number}/"
        )
        pair.server.reconfigure(pair.server_sections)
        pair.start()
        pair.feeder.feed()
        pair.wait_until_done()
        pair.server.stop()
        pair.client.stop()


def test_heartbeat_alarm(testbed: Testbed) -> None:
    """With ``heartbeat_alarm_scale`` a client reconnects to a silent provider, and receives from it again."""
    pair = ServerClientPair(testbed, heartbeat_alarm_scale=0.05).start()
    pair.client.wait_for_line(": reconnecting")
    pair.feeder.feed(3)
    pair.wait_until_done()


@pytest.mark.parametrize(("repeat_after", "changed"), [(300, True), (0, False)], ids=["metadata", "time"])
def test_a_repeated_announcement(testbed: Testbed, repeat_after: int, changed: bool) -> None:
    """A file that a legacy server announces again, late or with other metadata, is fetched and published again."""
    request_port, publish_port = testbed.port(), testbed.port()
    origin, out = testbed.directory("in"), testbed.root / "out"
    speaker = Publisher(f"tcp://{HOST}:0", "move_it_server").start()
    section = server_section(origin, request_port) | {"origin": f"{origin}/{{name}}.dat"}
    server = testbed.server({"a": section}, testbed.port())
    client = testbed.client({"a": client_section(speaker.port_number, out, publish_port, repeat_after=repeat_after)})
    subscriber = testbed.subscriber(publish_port)
    server.start()
    client.start()
    client.wait_for_line("connected to")
    for name in ("a.dat", "b.dat"):
        put(origin / name, b"a")
        server.wait_for_line(f"announced {name}")

    def announce(name: str, station: str) -> bool:
        data = {"uri": str(origin / name), "uid": name, "request_address": f"{HOST}:{request_port}", "station": station}
        speaker.send(Message(TOPIC, "file", data).encode())
        return bool(receipts(name))

    def receipts(name: str) -> list[ReceivedMessage]:
        return [message for message in subscriber.of_type("file") if message.data["uid"] == name]

    def is_fetched_again() -> bool:
        announce("a.dat", last)
        return "fetching a.dat again: " in client.lines()

    until(lambda: announce("b.dat", "first"), what="the client has subscribed")
    announce("a.dat", "first")
    until(lambda: receipts("a.dat"))
    last = "second" if changed else "first"
    until(is_fetched_again)  # an announcement before the end of the first fetch is not another one
    until(lambda: len(receipts("a.dat")) > 1)
    assert [message.data["station"] for message in receipts("a.dat")][:2] == ["first", last]
    if changed:
        until(lambda: is_fetched_again() and "ignored a repeated announcement of a.dat" in client.lines())
        assert len(receipts("a.dat")) == 2
    speaker.stop()


def test_any_publish_port(testbed: Testbed) -> None:
    """A ``publish_port`` of 0, or none, is any free port, which the log names."""
    pair = ServerClientPair(testbed, publish_port=0, bind_address=HOST)
    pair.client.start()
    port = int(pair.client.lines().partition("publishing as move_it_hrit on port ")[2].split()[0])
    assert answers(port)


def test_empty_topic(testbed: Testbed) -> None:
    """An empty ``topic`` subscribes to all subjects."""
    pair = ServerClientPair(testbed, topic="").start()
    pair.feeder.feed(3)
    pair.wait_until_done()
