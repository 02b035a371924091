"""``pytroll-fetcher`` and ``s3downloader.py`` fetch from real servers, and publish the paths of the files."""

from __future__ import annotations

import functools
import gc
import http.server
import json
import os
import signal
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from posttroll.message import Message

from trollmoves.config.daemon_kinds import detect_kind, section_names
from trollmoves.errors import OriginMissing, OriginUnreadable, UnknownHostKey
from trollmoves.fetcher import cli, fetch_from_message
from trollmoves.fetching import filesystems
from trollmoves.fetching.descriptions import parse_description
from trollmoves.fetching.fetch import fetch
from trollmoves.fetching.sources import LocalSource
from trollmoves.movers import PartialId
from trollmoves.s3downloader import main
from trollmoves.server.remote_files import describe, describe_members, read_archive_contents
from trollmoves.tests.helpers.daemons import REPOSITORY, Testbed
from trollmoves.tests.helpers.fetching import FETCHER, S3DOWNLOADER, TOPIC, FetchTestbed
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers import openssh, pyftpd, seaweed
from trollmoves.tests.servers.openssh import OpenSsh, ssh_children
from trollmoves.tests.servers.process import HOST
from trollmoves.tests.servers.pyftpd import USER, PyFtpd
from trollmoves.tests.servers.seaweed import BUCKET, KEY, SECRET, Seaweed, client

CONTENT = b"granule " * 5000
EXAMPLE = REPOSITORY / "examples" / "fetching"


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """Start an S3 server with some objects."""
    pytest.importorskip("boto3", reason="no boto3 (PyPI)")
    if why := seaweed.missing():
        pytest.skip(why)
    server = Seaweed(tmp_path_factory.mktemp("seaweed"))
    with server:
        bucket = client(server.port)
        for name in ("granule.nc", "b.nc", "in/a b.nc"):
            bucket.put_object(Bucket=BUCKET, Key=name, Body=CONTENT)
        bucket.put_object(Bucket=BUCKET, Key="large.nc", Body=CONTENT * 600)  # 24 MB, in parts
        yield server


@pytest.fixture(scope="module")
def ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenSsh]:
    """Start an SSH server."""
    if why := openssh.missing():
        pytest.skip(why)
    server = OpenSsh(tmp_path_factory.mktemp("openssh"))
    with server:
        yield server


def s3_options(server: Seaweed, **more: Any) -> dict[str, Any]:
    """Return the options of ``s3downloader.py`` for the server."""
    url = f"http://{HOST}:{server.port}"
    return {
        "bucket": BUCKET,
        "s3_kwargs": {"key": KEY, "secret": SECRET, "client_kwargs": {"endpoint_url": url}},
        **more,
    }


def s3_variables(server: Seaweed) -> dict[str, str]:
    """Return fsspec's variables for the server."""
    endpoint = f"http://{HOST}:{server.port}"
    return {"FSSPEC_S3_KEY": KEY, "FSSPEC_S3_SECRET": SECRET, "FSSPEC_S3_ENDPOINT_URL": endpoint}


# -- messages


def test_fetcher_publishes_as_before(testbed: Testbed) -> None:
    """The message keeps its subject and its data, except those about the place; types other than file are ignored."""
    fetcher = FetchTestbed(testbed, FETCHER, {"destination": "OUT/{sensor}/{start_time:%Y}"}).start()
    source = testbed.directory("in") / "a%20b.nc"
    source.write_bytes(CONTENT)
    data = {"sensor": "viirs", "start_time": "2026-01-02T03:04:05", "orbit": 7, "uid": "other"}
    fetcher.publisher.publish(TOPIC, "dataset", {"dataset": [{"uri": str(source), "uid": source.name}], **data})
    fetcher.publisher.publish(TOPIC, "file", {"uri": str(source), **data})
    (received,) = fetcher.fetched()
    path = f"{fetcher.out}/viirs/2026/a b.nc"
    assert str(received.message.subject) == TOPIC
    assert json.loads(received.message.encode().split(None, 6)[6]) == {**data, "uri": path, "uid": "a b.nc"}
    assert fetcher.files() == {"viirs/2026/a b.nc": CONTENT}
    assert {text.split()[0] for text in fetcher.subscriber.texts} == {f"pytroll:/{TOPIC}"}, "no heartbeats"


def test_s3downloader_publishes_as_before(testbed: Testbed, s3: Seaweed) -> None:
    """The last part of the uri names the object in the bucket; the published data have no uid."""
    downloader = FetchTestbed(testbed, S3DOWNLOADER, s3_options(s3)).start()
    more = {"orbit": 7, "uid": "u", "path": "p", "filename": "f", "compress": 1, "tst": 2, "file_list": [3]}
    downloader.publisher.publish(TOPIC, "dataset", {"uri": "s3://elsewhere/deep/granule.nc", "dataset": [], **more})
    (received,) = downloader.fetched()
    assert str(received.message.subject) == "/fetched"
    assert received.message.type == "file"
    assert received.data == {"orbit": 7, "uri": f"{downloader.out}/granule.nc"}
    members = [{"uri": f"/x/{name}", "uid": name} for name in ("b.nc", "large.nc")]
    downloader.publisher.publish(TOPIC, "dataset", {"dataset": members, "sensor": "viirs"})
    later = downloader.fetched(3)[1:]
    uris = sorted(one.data["uri"] for one in later)
    assert uris == [f"{downloader.out}/b.nc", f"{downloader.out}/large.nc"]
    assert all(one.data["sensor"] == "viirs" and set(one.data) == {"sensor", "uri"} for one in later)
    assert downloader.files() == {"granule.nc": CONTENT, "b.nc": CONTENT, "large.nc": CONTENT * 600}
    assert SECRET not in downloader.process.lines()
    assert downloader.process.terminate() == 0


def test_fetcher_reads_from_everywhere(testbed: Testbed, s3: Seaweed, ssh: OpenSsh) -> None:
    """Files, SFTP, HTTP, S3 by fsspec's configuration, members of archives, and the messages of a remote server."""
    fetcher = FetchTestbed(testbed, FETCHER, environment=s3_variables(s3))
    fetcher.give_login(ssh.user_key, ssh.known_hosts.read_text())
    fetcher.start()
    source = testbed.directory("in")
    for number in range(8):
        (source / f"f{number}.nc").write_bytes(CONTENT + bytes([number]))
    with tarfile.open(source / "a.tar", "w") as archive:
        archive.add(source / "f4.nc", "deep/f4.nc")
        archive.add(source / "f6.nc", "deep/f6.nc")
    place = f"{HOST}:{ssh.port}"
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(source))
    with http.server.ThreadingHTTPServer((HOST, 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        testbed.call_at_end(web.shutdown)
        described = describe(str(source / "f5.nc"), HOST)
        members = describe_members(str(source / "a.tar"), HOST, read_archive_contents(str(source / "a.tar"), "tar"))
        member = members["dataset"][1]
        described["filesystem"]["port"] = member["filesystem"]["target_options"]["port"] = ssh.port
        for data in (
            {"uri": f"file://{source}/f0.nc"},
            {"uri": f"ssh://{ssh.user}@{place}{source}/f1.nc"},
            {"uri": f"http://{HOST}:{web.server_port}/f2.nc?token=secret-of-the-url"},
            {"uri": f"tar://deep/f4.nc::ssh://{place}{source}/a.tar"},
            {**described, "path": str(source / "f5.nc")},
            {**member, "path": "deep/f6.nc"},
            {"uri": f"s3://{BUCKET}/in/a b.nc"},
        ):
            fetcher.publisher.publish(TOPIC, "file", {"orbit": 1, **data})
        received = fetcher.fetched(7)
    expected = {f"f{number}.nc": CONTENT + bytes([number]) for number in (0, 1, 2, 4, 5, 6)} | {"a b.nc": CONTENT}
    assert fetcher.files() == expected
    assert sorted(one.uid for one in received) == sorted(expected)
    assert all(set(one.data) == {"orbit", "uri", "uid"} for one in received)
    assert "secret-of-the-url" not in fetcher.process.lines()


@pytest.mark.parametrize("transport", ["paramiko", "openssh"])
def test_transports(transport: str, tmp_path: Path, ssh: OpenSsh, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read by both transports, with the same errors; a login serves several files and can be closed."""
    home = tmp_path / "home" / ".ssh"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home.parent))
    content = os.urandom(3_000_000)
    (tmp_path / "f.nc").write_bytes(content)
    monkeypatch.setitem(fsspec.config.conf, "sftp", {"ssh_transport": transport, "key_filename": str(ssh.user_key)})
    given = {"protocol": "sftp", "host": HOST, "port": ssh.port, "username": ssh.user, "ssh_transport": "rsh"}
    description = parse_description(given)  # a message cannot choose the transport
    children = len(ssh_children(os.getpid()))
    with pytest.raises(UnknownHostKey), (tmp_path / "out").open("wb") as stream:
        filesystems.read("", str(tmp_path / "f.nc"), description, stream)
    (home / "known_hosts").write_text(ssh.known_hosts.read_text())
    for _ in range(2):
        with (tmp_path / "out").open("wb") as stream:
            filesystems.read("", str(tmp_path / "f.nc"), description, stream)
        assert (tmp_path / "out").read_bytes() == content
    assert len(ssh_children(os.getpid())) == children + (transport == "openssh")
    with pytest.raises(OriginMissing), (tmp_path / "out").open("wb") as stream:
        filesystems.read("", str(tmp_path / "missing.nc"), description, stream)
    gc.collect()
    until(lambda: len(ssh_children(os.getpid())) == children, 10, "the login is closed")


# -- nothing is lost


def test_held_credentials(testbed: Testbed, s3: Seaweed) -> None:
    """With a wrong secret the objects are held, with one error, and fetched after a repair and a reload."""
    wrong = s3_options(s3)
    wrong["s3_kwargs"] = {**wrong["s3_kwargs"], "secret": "not-the-secret"}
    downloader = FetchTestbed(testbed, S3DOWNLOADER, wrong).start()
    for name in ("granule.nc", "b.nc"):
        downloader.publisher.publish(TOPIC, "file", {"uri": f"/x/{name}"})
    downloader.process.wait_for_line(", held (attempt")
    assert "not-the-secret" not in downloader.process.lines()
    downloader.process.reconfigure(downloader.text(s3_options(s3)))
    assert sorted(Path(one.data["uri"]).name for one in downloader.fetched(2)) == ["b.nc", "granule.nc"]
    assert downloader.process.lines().count(" held ") == 1


def test_missing_directory_is_held(testbed: Testbed, s3: Seaweed) -> None:
    """``download_destination`` is not made: objects wait until it exists."""
    downloader = FetchTestbed(testbed, S3DOWNLOADER, s3_options(s3, download_destination="OUT/later")).start()
    downloader.publisher.publish(TOPIC, "file", {"uri": "/x/granule.nc"})
    downloader.process.wait_for_line("later does not exist: create it")
    (downloader.out / "later").mkdir()
    downloader.process.send(signal.SIGHUP)
    downloader.fetched()
    assert downloader.files() == {"later/granule.nc": CONTENT}


def test_unknown_host_key_is_held(testbed: Testbed, ssh: OpenSsh) -> None:
    """A source with an unknown host key is not read until an operator has added the key."""
    fetcher = FetchTestbed(testbed, FETCHER)
    folder = fetcher.give_login(ssh.user_key, "")
    fetcher.start()
    source = testbed.directory("in") / "f.nc"
    source.write_bytes(CONTENT)
    fetcher.publisher.publish(TOPIC, "file", {"uri": f"ssh://{HOST}:{ssh.port}{source}"})
    fetcher.process.wait_for_line(", held (attempt")
    (folder / "known_hosts").write_text(ssh.known_hosts.read_text())
    fetcher.process.send(signal.SIGHUP)
    fetcher.fetched()
    assert fetcher.files() == {"f.nc": CONTENT}


BAD: tuple[Any, ...] = (
    "text",
    ["a", "list"],
    {},
    {"uri": None},
    {"uri": 7},
    {"uri": ""},
    {"uri": "/"},
    {"uri": "/in/.."},
    {"uri": "/in/%2e%2e%2fetc%2fpasswd"},
    {"uri": "unknown://host/f.nc"},
    {"uri": "simplecache::file:///etc/hostname"},
    {"uri": "http://[::1/f.nc"},
    {"path": "/etc/hostname", "filesystem": {"cls": "subprocess.Popen", "args": [["touch", "/tmp/x"]]}},
    {"path": "/etc/hostname", "filesystem": {"protocol": "filecache", "cache_storage": "/tmp/x"}},
    {"path": 5, "filesystem": {"protocol": "file"}},
    {"path": "x", "filesystem": "text"},
    {"path": "x", "filesystem": {"protocol": "zip", "fo": {"protocol": "reference", "cls": "x"}}},
)


def test_bad_messages(testbed: Testbed) -> None:
    """No message ends the process: each bad one is named in a warning, and the next good one is processed."""
    fetcher = FetchTestbed(testbed, FETCHER).start()
    source = testbed.directory("in") / "good.nc"
    source.write_bytes(CONTENT)
    for number, data in enumerate(BAD):
        fetcher.publisher.publish(f"{TOPIC}/{number}", "file", data)
    fetcher.publisher.publish_text(f"pytroll:/{TOPIC} file broken")
    fetcher.publisher.publish(TOPIC, "file", {"uri": f"{source}-missing"})
    fetcher.publisher.publish(TOPIC, "file", {"uri": str(source)})
    (received,) = fetcher.fetched()
    assert received.uid == "good.nc"
    assert fetcher.files() == {"good.nc": CONTENT}
    lines = fetcher.process.lines()
    assert [n for n in range(len(BAD)) if f"ignored message about {TOPIC}/{n}:" not in lines] == []
    assert "Traceback" not in lines
    assert "good.nc-missing" in lines
    assert fetcher.process.terminate() == 0


def test_missing_metadata_are_held(testbed: Testbed) -> None:
    """A message without a field of the destination waits for a repair of the destination, and the next ones go on."""
    fetcher = FetchTestbed(testbed, FETCHER, {"destination": "OUT/{platfrom}"}).start()
    source = testbed.directory("in") / "f.nc"
    source.write_bytes(CONTENT)
    fetcher.publisher.publish(TOPIC, "file", {"uri": str(source), "platform": "npp"})
    fetcher.process.wait_for_line("platfrom")
    fetcher.process.reconfigure(fetcher.text({"destination": "OUT/{platform}"}))
    fetcher.fetched()
    assert fetcher.files() == {"npp/f.nc": CONTENT}


def test_repeated_and_replaced(testbed: Testbed) -> None:
    """A repeated message fetches again, and the new content replaces the old one; the same text twice is one fetch."""
    fetcher = FetchTestbed(testbed, FETCHER).start()
    source = testbed.directory("in") / "f.nc"
    source.write_bytes(b"old")
    text = f'pytroll:/{TOPIC} file a@b 2026-01-01T00:00:00 v1.01 application/json {{"uri": "{source}"}}'
    fetcher.publisher.publish_text(text)
    fetcher.publisher.publish_text(text)
    fetcher.fetched()
    source.write_bytes(b"new")
    fetcher.publisher.publish(TOPIC, "file", {"uri": str(source)})
    until(lambda: fetcher.files() == {"f.nc": b"new"}, 20, "the new content")
    assert len(fetcher.fetched(2)) == 2


# -- configuration and command line


@pytest.mark.parametrize(
    ("command", "text", "part"),
    [
        (FETCHER, "destination: /x\nsubscriber_config: {}\nother: 1\n", "other: is unknown"),
        (FETCHER, "subscriber_config: {}\npublisher_config: {}\n", "destination: is missing"),
        (FETCHER, "destination: /x\nsubscriber_config: {topcis: /a}\n", "did you mean subscriber_config__topics"),
        (FETCHER, "destination: '{x'\n", "destination"),
        (FETCHER, "[ini]\n", "in.yaml"),
        (S3DOWNLOADER, "subscribe-topic: /a\npublish-topic: /b\n", "bucket: is missing"),
        (S3DOWNLOADER, "a: [", "in.yaml"),
        (S3DOWNLOADER, None, "cannot be read"),
    ],
)
def test_invalid_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, text: str | None, part: str
) -> None:
    """An invalid or missing file ends the command with status 1 and one line, which says where and why."""
    path = tmp_path / "in.yaml"
    if text is not None:
        path.write_text(text)
    assert (cli if command == FETCHER else main)(
        [*(["-c"] if command == S3DOWNLOADER else []), str(path), "--check"]
    ) == 1
    shown = capsys.readouterr().err
    assert part in shown
    assert len(shown.splitlines()) == 1


def test_check(testbed: Testbed, s3: Seaweed) -> None:
    """``--check --connect`` shows the configuration without secrets, and whether the bucket can be read."""
    downloader = FetchTestbed(testbed, S3DOWNLOADER, s3_options(s3))
    ended = testbed.run(S3DOWNLOADER, "-c", downloader.config, "--check", "--connect")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"bucket {BUCKET}: ok" in ended.stdout
    assert SECRET not in ended.stdout
    fetcher = FetchTestbed(testbed, FETCHER)
    ended = testbed.run(FETCHER, fetcher.config, "--check")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"destination                    {fetcher.out}" in ended.stdout


def test_command_line_without_configuration(testbed: Testbed) -> None:
    """Without ``-c`` s3downloader.py ends with status 1, and names the argument."""
    ended = testbed.run(S3DOWNLOADER)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "-c FILE" in ended.stderr


@pytest.mark.skipif(not EXAMPLE.exists(), reason="no checkout")
def test_example(capsys: pytest.CaptureFixture[str]) -> None:
    """The files of the example are valid, without a warning."""
    assert cli([str(EXAMPLE / "fetch.yaml"), "--check", "--strict"]) == 0
    assert main(["-c", str(EXAMPLE / "download.yaml"), "--check", "--strict"]) == 0
    assert "1 s3downloader chain" in capsys.readouterr().out


def test_kinds(testbed: Testbed) -> None:
    """The command ``trollmoves`` finds out to which process a file belongs."""
    for command, kind in ((FETCHER, "fetcher"), (S3DOWNLOADER, "s3downloader")):
        path = FetchTestbed(testbed, command, {"bucket": "b"} if command == S3DOWNLOADER else {}).config
        assert detect_kind(path) == kind
        assert section_names(path) == [kind]


# -- Python


SCRIPT = """
import sys
from trollmoves.fetcher import fetch_from_subscriber
fetch_from_subscriber(sys.argv[1], {"addresses": [sys.argv[2]], "nameserver": False, "topics": [sys.argv[3]]},
                      {"name": "mine", "port": int(sys.argv[4]), "nameservers": False})
"""


def test_fetch_from_subscriber(testbed: Testbed) -> None:
    """A script fetches until it is interrupted."""
    fetcher = FetchTestbed(testbed, FETCHER)
    command = [sys.executable, "-c", SCRIPT, str(fetcher.out), fetcher.publisher.address, TOPIC, str(fetcher.port)]
    fetcher.process = testbed.process("script", command, fetcher.config, lambda _: bool(fetcher.subscriber.connections))
    fetcher.start()
    source = testbed.directory("in") / "f.nc"
    source.write_bytes(CONTENT)
    fetcher.publisher.publish(TOPIC, "file", {"uri": str(source), "orbit": 1})
    assert fetcher.fetched()[0].data == {"orbit": 1, "uri": f"{fetcher.out}/f.nc", "uid": "f.nc"}
    fetcher.process.send(signal.SIGINT)
    assert fetcher.process.popen is not None
    assert fetcher.process.popen.wait(20) == -signal.SIGINT


def test_fetch_from_message(tmp_path: Path) -> None:
    """A script fetches the file of one message of posttroll, and gets its path."""
    (tmp_path / "f.nc").write_bytes(CONTENT)
    message = Message("/x", "file", {"uri": str(tmp_path / "f.nc"), "sensor": "viirs"})
    path = fetch_from_message(message, tmp_path / "{sensor}")
    assert path == tmp_path / "viirs" / "f.nc"
    assert path.read_bytes() == CONTENT
    with pytest.raises(OriginMissing):
        fetch_from_message(Message("/x", "file", {"uri": str(tmp_path / "missing.nc")}), str(tmp_path / "out"))


def test_a_reader_may_take_the_file_immediately(tmp_path: Path) -> None:
    """A file that is gone as soon as it has its final name counts as fetched, with its size."""
    origin, target = tmp_path / "f.nc", tmp_path / "out.nc"
    origin.write_bytes(CONTENT)

    class TakenAway(LocalSource):
        def copy_to(self, path: str, partial_id: PartialId | None) -> int:
            size = super().copy_to(path, partial_id)
            Path(path).unlink()
            return size

    assert fetch(TakenAway(str(origin)), str(target), make_directory=False) == len(CONTENT)
    assert not target.exists()


def test_a_missing_file_is_not_an_outage(tmp_path: Path) -> None:
    """A file that does not exist fails, and one that may not be read waits; other files of the host do not."""
    if why := pyftpd.missing():
        pytest.skip(why)
    root = tmp_path / "root"
    root.mkdir()
    (root / "f.nc").write_bytes(CONTENT)
    with tarfile.open(root / "a.tar", "w") as archive:
        archive.add(root / "f.nc", "f.nc")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(root))
    options = ("--permissions", "el")
    with (
        http.server.ThreadingHTTPServer((HOST, 0), handler) as web,
        PyFtpd(tmp_path / "ftp", root, options=options, password="of-the-test") as ftp,
    ):
        threading.Thread(target=web.serve_forever, daemon=True).start()
        ftp_url, http_url = f"ftp://{USER}:of-the-test@{HOST}:{ftp.port}", f"http://{HOST}:{web.server_port}"
        for uri, kind in (
            (f"{http_url}/none.nc", OriginMissing),
            (f"{ftp_url}/none.nc", OriginMissing),
            (f"tar://none.nc::file://{root}/a.tar", OriginMissing),
            (f"{ftp_url}/f.nc", OriginUnreadable),
        ):
            with pytest.raises(kind) as raised:
                fetch_from_message(Message("/x", "file", {"uri": uri}), str(tmp_path / "out"))
            assert not raised.value.outage
            assert "of-the-test" not in str(raised.value)
        web.shutdown()
    assert not list((tmp_path / "out").iterdir())
