"""What an operator can repair costs no file."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from trollmoves.tests.helpers.daemons import ServerClientPair, Testbed
from trollmoves.tests.helpers.dispatching import TOPIC, DispatcherTestbed
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers import pyftpd

COUNT = 20
HOST = "127.0.0.1"


@pytest.fixture
def ftp(testbed: Testbed) -> pyftpd.PyFtpd:
    """Return a running FTP server."""
    if why := pyftpd.missing():
        pytest.skip(f"missing: {why}")
    server = pyftpd.PyFtpd(testbed.directory("ftpd"), testbed.directory("far"))
    testbed.enter(server)
    return server


def ftp_pair(testbed: Testbed, ftp: pyftpd.PyFtpd, password: str) -> ServerClientPair:
    """Return a server and a client that deliver over FTP with this password."""
    return ServerClientPair(testbed, destination=f"ftp://{HOST}:{ftp.port}/", login=f"{pyftpd.USER}:{password}")


def test_login_is_repaired(testbed: Testbed, ftp: pyftpd.PyFtpd) -> None:
    """A wrong password is logged once; after its repair and a reload all files arrive."""
    pair = ftp_pair(testbed, ftp, "wr0ng").start()
    names = pair.feeder.feed(COUNT)
    pair.server.wait_for_line(", held (attempt")
    for section in pair.client_sections.values():
        section["login"] = f"{pyftpd.USER}:{pyftpd.PASSWORD}"
    pair.client.reconfigure(pair.client_sections)
    pair.received.wait_for_receipts(names, 60)
    assert pair.server.lines().count(", held (attempt") == 1
    assert "works again" in pair.client.lines()


def test_probe_finds_the_repair(testbed: Testbed) -> None:
    """A file in the place of the directory is replaced; all files arrive without touching the daemons."""
    obstacle = testbed.root / "place"
    obstacle.write_text("in the way")
    pair = ServerClientPair(testbed, {"probe_interval": 2}, destination=str(obstacle / "in"), probe_interval=2).start()
    names = pair.feeder.feed(COUNT)
    pair.client.wait_for_line("not delivered")
    obstacle.unlink()
    obstacle.mkdir()
    pair.received.wait_for_receipts(names, 60)


def test_missing_field(testbed: Testbed) -> None:
    """A destination with an unknown field holds the files of a client until its configuration is repaired."""
    pair = ServerClientPair(testbed, destination=f"{testbed.root}/{{nosuchfield}}/").start()
    names = pair.feeder.feed(COUNT)
    pair.client.wait_for_line(", held (attempt")
    for section in pair.client_sections.values():
        section["destination"] = str(testbed.directory("repaired"))
    pair.client.reconfigure(pair.client_sections)
    pair.received.wait_for_receipts(names, 60)


def test_dispatcher_route_is_repaired(testbed: Testbed) -> None:
    """Messages whose destination cannot be composed are kept, and delivered after a repair and a reload."""
    d = DispatcherTestbed(testbed, {"near": {"directory": "OUT/{nosuchfield}", "topics": [TOPIC]}}).start()
    names = [f"f{number}" for number in range(COUNT)]
    for name in names:
        d.publisher.publish_file(d.file(name))
    d.process.wait_for_line(", held (attempt")
    d.reconfigure({"near": {"directory": "OUT", "topics": [TOPIC]}})
    d.process.send(signal.SIGHUP)
    d.wait_for(*names)
    assert d.process.lines().count(", held (attempt") == 1


def test_dead_port_does_not_stop_another(testbed: Testbed, ftp: pyftpd.PyFtpd) -> None:
    """A closed SSH port of a host does not stop FTP to the same host."""
    pair = ftp_pair(testbed, ftp, pyftpd.PASSWORD)
    closed = testbed.port()
    (section,) = pair.client_sections.values()
    other = {**section, "destination": f"sftp://{HOST}:{closed}/", "publish_port": testbed.port()}
    pair.client_sections["dead"] = other
    pair.client.reconfigure(pair.client_sections)
    pair.start()
    names = pair.feeder.feed(COUNT)
    pair.received.wait_for_receipts(names, 60)
    until(lambda: sorted(path.name for path in Path(ftp.root).iterdir()) == sorted(names), 20, "all files")
    assert "push ftp" not in "".join(line for line in pair.server.lines().splitlines() if "works again" in line)
