"""A dispatcher delivers to real servers of every protocol, and one that does not take a file holds up no other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from trollmoves.tests.helpers.daemons import Testbed
from trollmoves.tests.helpers.directories import RemoteDirectory
from trollmoves.tests.helpers.dispatching import TOPIC, DispatcherTestbed
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers import openssh, pyftpd, seaweed
from trollmoves.tests.servers.process import ServerProcess

SCHEMES = ["ftp", "sftp", "scp", "s3"]
PASSWORD = quote(pyftpd.PASSWORD, safe="")


@dataclass
class Far:
    """A server that is not started yet, with a valid target, a target with a wrong login, and its files."""

    server: ServerProcess
    target: dict[str, Any]
    refused: dict[str, Any]
    arrived: Callable[[], dict[str, str]]


@pytest.fixture(params=SCHEMES)
def far(request: pytest.FixtureRequest, testbed: Testbed) -> Far:
    """A server of each protocol."""
    scheme = str(request.param)
    why = {"ftp": pyftpd.missing, "s3": seaweed.missing}.get(scheme, openssh.missing)()
    if why:
        pytest.skip(f"missing: {why}")
    if scheme in ("ftp", "s3"):
        return _ftp(testbed) if scheme == "ftp" else _s3(testbed)
    return _ssh(testbed, scheme)


def _ftp(testbed: Testbed) -> Far:
    root = testbed.directory("far")
    server = pyftpd.PyFtpd(testbed.directory("ftpd"), root)
    place = f"127.0.0.1:{server.port}"
    target = {"host": f"ftp://{pyftpd.USER}:{PASSWORD}@{place}", "directory": "/in/{platform_name}"}
    return Far(server, target, target | {"host": f"ftp://{pyftpd.USER}:wr0ng@{place}"}, lambda: _files(root / "in"))


def _ssh(testbed: Testbed, scheme: str) -> Far:
    root = testbed.directory("far")
    server = openssh.OpenSsh(testbed.directory("sshd"))
    parameters = {"ssh_key_filename": str(server.user_key), "ssh_known_hosts": str(server.known_hosts)}
    host = {"host": f"{scheme}://{server.user}@127.0.0.1:{server.port}", "directory": f"{root}/in/{{platform_name}}"}
    other = openssh.make_key(testbed.directory("keys") / "other")
    refused = parameters | {"ssh_key_filename": str(other)}
    return Far(
        server,
        host | {"connection_parameters": parameters},
        host | {"connection_parameters": refused},
        lambda: _files(root / "in"),
    )


def _s3(testbed: Testbed) -> Far:
    pytest.importorskip("boto3")
    server = seaweed.Seaweed(testbed.directory("s3"))
    parameters = {"endpoint_url": f"http://127.0.0.1:{server.port}", "key": seaweed.KEY, "secret": seaweed.SECRET}
    bucket = {"host": f"s3://{seaweed.BUCKET}", "directory": "in/{platform_name}"}

    def arrived() -> dict[str, str]:
        client = seaweed.client(server.port)
        try:
            names = [one["Key"] for one in client.list_objects_v2(Bucket=seaweed.BUCKET).get("Contents", ())]
            return {
                name.removeprefix("in/"): client.get_object(Bucket=seaweed.BUCKET, Key=name)["Body"].read().decode()
                for name in names
                if name.startswith("in/")
            }
        finally:
            client.close()

    refused = parameters | {"secret": "wr0ng"}
    return Far(
        server, bucket | {"connection_parameters": parameters}, bucket | {"connection_parameters": refused}, arrived
    )


def _files(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): path.read_text()
        for path in root.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def taking(target: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return a target that matches files under the usual topic."""
    return {**target, "topics": [TOPIC], **more}


def test_delivered_and_published(testbed: Testbed, far: Far) -> None:
    """Files arrive once, complete, under composed names, and are published with their path; no secret is logged."""
    pattern = "{product}_{uid}"
    targets = {"far": taking(far.target, filepattern=pattern, aliases={"product": {"ash": "a"}}, publish_topic="/sent")}
    with far.server:
        d = DispatcherTestbed(testbed, targets).start()
        names = [f"f {number}é" for number in range(20)]
        for name in (*names, *names):
            d.publisher.publish_file(
                d.file(name) if not (d.source / name).exists() else d.source / name, platform_name="n", product="ash"
            )
        expected = {f"n/a_{name}": f"content of {name}" for name in names}
        until(lambda: far.arrived() == expected, 40, "all files")
        d.subscriber.wait_for(len(names))
    recorded = [one.message for one in d.subscriber.of_type("file")]
    assert sorted(message.data["uri"].rpartition("/")[2] for message in recorded) == sorted(
        f"a_{name}" for name in names
    )
    assert {message.data["product"] for message in recorded} == {"ash"}
    assert d.process.lines().count("[far] delivered ") == len(names)
    assert d.process.terminate() == 0
    for path in [d.process.log, *(testbed.root / "state").rglob("*journal*")]:
        assert not [one for one in (pyftpd.PASSWORD, PASSWORD, seaweed.SECRET) if one.encode() in path.read_bytes()]


def test_rejected_login(testbed: Testbed, far: Far) -> None:
    """A rejected login is logged once, without the password, and holds the files until it is repaired.

    Other targets receive their files.
    """
    near = taking({"directory": "OUT"})
    targets = {"far": taking(far.refused | {"probe_interval": 1}), "near": near}
    with far.server:
        d = DispatcherTestbed(testbed, targets).start()
        names = [f"f{number}" for number in range(5)]
        for name in names:
            d.publisher.publish_file(d.file(name), platform_name="n")
        d.wait_for(*names)
        d.process.wait_for_line("[far] deliver of ", seconds=60)
        lines = [line for line in d.process.lines().splitlines() if "[far]" in line and "deliver of" in line]
        assert sum("held (attempt" in line for line in lines) == 1, lines
        assert len(lines) <= 2, lines  # an FTP server may also close the connection
        d.reconfigure({"far": taking(far.target), "near": near})
        until(lambda: set(far.arrived()) == {f"n/{name}" for name in names}, 40, "all files")
    assert "wr0ng" not in d.process.lines()


@pytest.mark.parametrize("far", ["sftp", "scp"], indirect=True)
def test_unknown_host_key(testbed: Testbed, far: Far) -> None:
    """The files for a host with an unknown key arrive when its key is in known_hosts, without touching the daemon."""
    parameters = dict(far.target["connection_parameters"])
    known = testbed.root / "known_hosts"
    known.write_text("")
    target = far.target | {"connection_parameters": parameters | {"ssh_known_hosts": str(known)}, "probe_interval": 1}
    with far.server:
        d = DispatcherTestbed(testbed, {"far": taking(target)}).start()
        names = [f"f{number}" for number in range(5)]
        for name in names:
            d.publisher.publish_file(d.file(name), platform_name="n")
        d.process.wait_for_line("held (attempt", seconds=60)
        known.write_bytes(Path(parameters["ssh_known_hosts"]).read_bytes())
        until(lambda: set(far.arrived()) == {f"n/{name}" for name in names}, 40, "all files")


@pytest.mark.parametrize("far", ["ftp", "sftp", "scp"], indirect=True)
def test_file_in_the_place_of_a_directory(testbed: Testbed, far: Far) -> None:
    """The files for a directory that is a file arrive when it is removed, without touching the daemon."""
    obstacle = testbed.directory("far") / "in"
    obstacle.write_text("in the way")
    with far.server:
        d = DispatcherTestbed(testbed, {"far": taking(far.target | {"probe_interval": 1})}).start()
        names = [f"f{number}" for number in range(5)]
        for name in names:
            d.publisher.publish_file(d.file(name), platform_name="n")
        d.process.wait_for_line("(attempt 1)", seconds=60)
        obstacle.unlink()
        until(lambda: set(far.arrived()) == {f"n/{name}" for name in names}, 40, "all files")


def test_server_returns(testbed: Testbed, far: Far) -> None:
    """Files for an absent server are logged as retried, and delivered once when it is back."""
    d = DispatcherTestbed(testbed, {"far": taking(far.target), "near": taking({"directory": "OUT"})}).start()
    names = [f"f{number}" for number in range(5)]
    for name in names:
        d.publisher.publish_file(d.file(name), platform_name="n")
    d.wait_for(*names)
    d.process.wait_for_line("will be retried", seconds=60)
    with far.server:
        until(lambda: set(far.arrived()) == {f"n/{name}" for name in names}, 60, "all files")
        d.process.wait_for_line("[far] delivered ", len(names))
    assert d.process.lines().count("[far] delivered ") == len(names)


def test_lanes_and_stop(testbed: Testbed) -> None:
    """``max_transfers_per_host`` bounds transfers to a host; ``stop_timeout`` bounds a stop; the rest comes later."""
    end = RemoteDirectory(testbed, "ftp", testbed.directory("far"))
    target = taking({"host": f"ftp://{end.address}", "directory": "/", "max_transfers_per_host": 1})
    process = {"stop_timeout": 1, "workers": 3, "synchronous": "full", "priority": 2}
    d = DispatcherTestbed(testbed, {"far": target, "near": taking({"directory": "OUT"}), "DEFAULT": process}).start()
    names = [f"f{number}" for number in range(30)]
    for name in names[:15]:
        d.publisher.publish_file(d.file(name))
    until(lambda: set(_files(end.folder)) == set(names[:15]), what="the first files")
    assert end.proxy.connections[end.port] == 1
    end.proxy.stall_after(0)
    for name in names[15:]:
        d.publisher.publish_file(d.file(name))
    d.wait_for(*names)  # so all are noted
    until(lambda: end.proxy.sent > 0, what="a transfer runs")
    assert d.process.terminate(9) == 0
    end.proxy.heal()
    end.proxy.cut()
    d.process.start()
    until(lambda: set(_files(end.folder)) == set(names), 40, "the other files")
