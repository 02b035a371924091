"""``--check`` with its options: warnings about this host, ``--strict``, and the probes of ``--connect``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from trollmoves.messaging.publisher import Publisher
from trollmoves.tests.helpers.daemons import Testbed, client_section, mirror_section, server_section
from trollmoves.tests.servers import asyncsshd, pyftpd, seaweed
from trollmoves.tests.servers.asyncsshd import AsyncSshd
from trollmoves.tests.servers.process import HOST, free_port
from trollmoves.tests.servers.pyftpd import PyFtpd
from trollmoves.tests.servers.seaweed import Seaweed

COMMANDS = {"server": "move_it_server.py", "client": "move_it_client.py", "mirror": "move_it_mirror.py"}
WRONG = "wr0ng.pass"


def section(testbed: Testbed, role: str, **options: object) -> dict[str, object]:
    """Return a valid section without warnings."""
    if role == "server":
        return server_section(testbed.directory("in"), testbed.port()) | options
    if role == "client":
        return client_section(testbed.port(), testbed.directory("out"), testbed.port()) | options
    return mirror_section(testbed.port(), testbed.directory("out"), testbed.port()) | options


@pytest.mark.parametrize(
    ("role", "options", "warning"),
    [
        ("server", {"origin": "/no/such/directory/{name}.dat"}, "origin: the directory /no/such/directory/ does not"),
        ("server", {"request_port": 9010}, "request_port: 9010 is also the port for announcements"),
        ("mirror", {"request_port": 9010}, "request_port: 9010 is also the port for announcements"),
        ("server", {"bind_address": "127.0.0.1", "request_address": ""}, "bind_address: 127.0.0.1 is only reachable"),
        ("client", {"destination": "/data/{start_tme}/"}, "the field {start_tme} is not common in messages"),
        ("client", {"no_such_option": ""}, ""),
    ],
)
def test_warnings_about_this_host(testbed: Testbed, role: str, options: dict[str, object], warning: str) -> None:
    """--check warns about a doubtful section; with --strict its status is then 1."""
    config = testbed.config({"hrit": section(testbed, role, **options)})
    checked = testbed.run(COMMANDS[role], config, "--check")
    strict = testbed.run(COMMANDS[role], config, "--check", "--strict")
    assert (checked.returncode, checked.stderr) == (0, "")
    assert warning in checked.stdout
    assert ("warning: " in checked.stdout) == bool(warning)
    assert strict.returncode == (1 if warning else 0)


def test_an_unknown_option_fails_a_strict_check(testbed: Testbed) -> None:
    """With --strict an unknown option makes the status 1."""
    config = testbed.config({"hrit": section(testbed, "server", request_adress="host")})
    assert testbed.run(COMMANDS["server"], config, "--check").returncode == 0
    assert testbed.run(COMMANDS["server"], config, "--check", "--strict").returncode == 1


@pytest.mark.parametrize("role", ["client", "mirror", "server"])
def test_providers(testbed: Testbed, role: str) -> None:
    """--check --connect prints a line for each provider, and fails if one cannot be reached."""
    up = Publisher("move_it_server", 0, bind_address=HOST, nameservers=False)
    testbed.call_at_end(up.stop)
    down = free_port()
    if role == "server":
        addresses = {"addresses": f"tcp://{HOST}:{up.port} tcp://{HOST}:{down}", "listen": "/a", "nameserver": "False"}
        options = {k: v for k, v in section(testbed, role).items() if k != "origin"} | addresses
    else:
        options = section(testbed, role, providers=f"{HOST}:{up.port} {HOST}:{down}")
    found = testbed.run(COMMANDS[role], testbed.config({"hrit": options}), "--check", "--connect")
    assert found.returncode == 1
    assert f"[hrit] provider tcp://{HOST}:{up.port}: ok" in found.stdout
    assert f"[hrit] provider tcp://{HOST}:{down}: FAILED: no connection within 5 s" in found.stdout


def test_a_local_destination(testbed: Testbed) -> None:
    """--check --connect writes to a local destination, shows its free space, and leaves nothing behind."""
    up = Publisher("move_it_server", 0, bind_address=HOST, nameservers=False)
    testbed.call_at_end(up.stop)
    out = testbed.directory("out")
    options = section(testbed, "client", providers=f"{HOST}:{up.port}", destination=f"{out}/{{start_time:%Y}}/")
    config = testbed.config({"hrit": options})
    found = testbed.run(COMMANDS["client"], config, "--check", "--connect")
    assert found.returncode == 0, found
    assert f"[hrit] destination file://{out}/: ok, writable, " in found.stdout
    assert list(out.iterdir()) == []
    out.rmdir()
    missing = testbed.run(COMMANDS["client"], config, "--check", "--connect")
    assert missing.returncode == 0, missing
    assert f" free; the directory {out}/ does not exist: the first delivery creates it" in missing.stdout
    assert not out.exists()
    out.touch()
    blocked = testbed.run(COMMANDS["client"], config, "--check", "--connect")
    assert blocked.returncode == 1, blocked


def _target(host: str, directory: str, **parameters: Any) -> dict[str, Any]:
    return {"host": host, "directory": directory, "topics": ["/a"], "connection_parameters": parameters}


def _check(testbed: Testbed, *targets: dict[str, Any]) -> tuple[int, str]:
    subscriber = {"subscribe_addresses": [], "nameserver": False}
    text = yaml.safe_dump({"posttroll_subscriber": subscriber, **{f"t{n}": t for n, t in enumerate(targets)}})
    found = testbed.run("dispatcher.py", testbed.config(text, "d.yaml"), "--check", "--connect", seconds=60)
    assert found.stderr == ""
    assert WRONG not in found.stdout
    return found.returncode, found.stdout


@pytest.mark.skipif(bool(pyftpd.missing()), reason=pyftpd.missing())
def test_an_ftp_destination(testbed: Testbed, tmp_path: Path) -> None:
    """--check --connect logs in by FTP, writes, and reports a wrong password and a missing directory."""
    root = testbed.directory("ftp")
    (root / "in").mkdir()
    with PyFtpd(tmp_path / "ftp", root) as server:
        host = f"ftp://{pyftpd.USER}:{pyftpd.PASSWORD}@{HOST}:{server.port}"
        status, text = _check(testbed, _target(host, "/in"))
        assert (status, pyftpd.PASSWORD in text) == (0, False), text
        assert f"[t0] destination ftp://{pyftpd.USER}@{HOST}:{server.port}/in: ok, logged in, writable" in text
        assert list((root / "in").iterdir()) == []
        wrong = f"ftp://{pyftpd.USER}:{WRONG}@{HOST}:{server.port}"
        status, text = _check(testbed, _target(wrong, "/in"), _target(host, "/none"))
        assert status == 1
        assert text.count("FAILED") == 1, text
        assert "ok, logged in, writable; the directory /none/ does not exist: the first delivery creates it" in text


@pytest.mark.skipif(bool(asyncsshd.missing()), reason=asyncsshd.missing())
@pytest.mark.parametrize("scheme", ["sftp", "scp"])
def test_an_ssh_destination(testbed: Testbed, tmp_path: Path, scheme: str) -> None:
    """--check --connect logs in by SSH, writes, and reports an unknown host key and a wrong password."""
    out = testbed.directory("out")
    with AsyncSshd(tmp_path / "ssh") as server:
        assert isinstance(server, AsyncSshd)
        (testbed.directory("home") / ".ssh").mkdir()
        host = f"{scheme}://{server.user}@{HOST}:{server.port}"
        status, text = _check(testbed, _target(host, str(out), password=asyncsshd.PASSWORD))
        assert status == 1
        assert "FAILED" in text
        known = testbed.directory("home") / ".ssh" / "known_hosts"
        known.write_text(server.known_hosts.read_text())
        status, text = _check(testbed, _target(host, str(out), password=asyncsshd.PASSWORD))
        assert (status, asyncsshd.PASSWORD in text) == (0, False), text
        assert "ok, logged in, writable" in text
        assert list(out.iterdir()) == []
        status, text = _check(testbed, _target(host, str(out), password=WRONG))
        assert status == 1


@pytest.mark.slow
@pytest.mark.skipif(bool(seaweed.missing()), reason=seaweed.missing())
def test_an_s3_destination(testbed: Testbed, tmp_path: Path) -> None:
    """--check --connect writes an object and removes it, and reports a wrong secret."""
    with Seaweed(tmp_path / "s3") as server:
        good = {"endpoint_url": f"http://{HOST}:{server.port}", "key": seaweed.KEY, "secret": seaweed.SECRET}
        status, text = _check(testbed, _target(f"s3://{seaweed.BUCKET}", "in", **good))
        assert (status, seaweed.SECRET in text) == (0, False), text
        assert "Contents" not in seaweed.client(server.port).list_objects_v2(Bucket=seaweed.BUCKET, Prefix="in")
        wrong = _target(f"s3://{seaweed.BUCKET}", "in", **good | {"secret": WRONG})
        status, text = _check(testbed, wrong)
        assert status == 1
        assert "FAILED" in text
