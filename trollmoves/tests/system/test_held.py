"""A fault that an operator can repair costs no file."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from trollmoves.tests.helpers.daemons import ServerClientPair, Testbed
from trollmoves.tests.helpers.dispatching import TOPIC, DispatcherTestbed
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers import openssh, pyftpd, seaweed
from trollmoves.tests.servers.disks import SIZE, small_disk

COUNT = 20
HOST = "127.0.0.1"
PROBE_INTERVAL = 3.0  # s
SOON = 20.0  # s; more than several probes take, less than the first pause of a lane that probes every ten minutes


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

    def is_shown_as_held() -> bool:
        (daemon,) = json.loads(testbed.run("trollmoves", "status", "--json", pair.client.config).stdout)["daemons"]
        return bool(daemon["state"] == "held")

    until(is_shown_as_held, SOON, "the client shows that the server holds its files")
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
    """Messages without the fields of the destination are kept, and delivered after a repair and a reload."""
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


@dataclass
class Fault:
    """A destination with a fault, and its repair at the far end or in the installation."""

    destination: str
    repair: Callable[[], object]
    parameters: Mapping[str, object] = field(default_factory=dict)
    client: Mapping[str, object] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


def rejected_login(testbed: Testbed) -> Fault:
    """Return an FTP host with another password, until it is set to the right one."""
    if why := pyftpd.missing():
        pytest.skip(f"missing: {why}")
    far = testbed.directory("far")
    host = testbed.enter(pyftpd.PyFtpd(testbed.directory("ftpd"), far, password="another"))

    def repair() -> None:
        host.stop()
        host.environment["FTP_TEST_PASSWORD"] = pyftpd.PASSWORD
        host.start()

    return Fault(f"ftp://{HOST}:{host.port}/", repair, client={"login": f"{pyftpd.USER}:{pyftpd.PASSWORD}"})


def changed_certificate(testbed: Testbed) -> Fault:
    """Return an FTPS host with a new certificate, until it is among the trusted ones."""
    if why := pyftpd.missing(tls=True):
        pytest.skip(f"missing: {why}")
    host = testbed.enter(pyftpd.PyFtpd(testbed.directory("ftpd"), testbed.directory("far"), tls=True))
    assert isinstance(host, pyftpd.PyFtpd)
    trusted = testbed.root / "trusted.pem"
    pyftpd.make_certificate(trusted)

    def repair() -> None:
        trusted.write_bytes(host.certificate.read_bytes())

    return Fault(
        f"ftps://{HOST}:{host.port}/",
        repair,
        {"ftp_tls_ca_file": trusted},
        {"login": f"{pyftpd.USER}:{pyftpd.PASSWORD}"},
    )


def ssh_fault(testbed: Testbed, file: str, contents: str) -> Fault:
    """Return an SSH host with a key file or known_hosts file that has other contents until the repair."""
    if why := openssh.missing():
        pytest.skip(f"missing: {why}")
    host = openssh.OpenSsh(testbed.directory("sshd"))
    testbed.enter(host)
    path = host.known_hosts.with_name(file)
    right = path.read_text()
    path.write_text(contents or right.replace(right.split()[2], openssh_key(testbed)))
    return Fault(
        f"sftp://{host.user}@{HOST}:{host.port}{testbed.directory('far')}",
        lambda: path.write_text(right),
        {"ssh_key_filename": host.user_key, "ssh_known_hosts": host.known_hosts, "num_ssh_retries": 1},
    )


def openssh_key(testbed: Testbed) -> str:
    """Return a public key that no host has."""
    return openssh.make_key(testbed.root / "other").with_suffix(".pub").read_text().split()[1]


def changed_host_key(testbed: Testbed) -> Fault:
    """Return an SSH host with another key than the known one."""
    return ssh_fault(testbed, "known_hosts", "")


def rejected_key(testbed: Testbed) -> Fault:
    """Return an SSH host that accepts no key of this user."""
    return ssh_fault(testbed, "authorized_keys", "# none\n")


def missing_bucket(testbed: Testbed) -> Fault:
    """Return an S3 service after the removal of its bucket, with a key that does not create buckets."""
    if why := seaweed.missing():
        pytest.skip(f"missing: {why}")
    service = seaweed.Seaweed(testbed.directory("weed"))
    testbed.enter(service)
    s3 = seaweed.client(service.port)
    s3.delete_bucket(Bucket=seaweed.BUCKET)
    options = {"endpoint_url": f"http://{HOST}:{service.port}", "key": seaweed.WRITER, "secret": seaweed.SECRET}
    return Fault(f"s3://{seaweed.BUCKET}/in/", lambda: s3.create_bucket(Bucket=seaweed.BUCKET), options)


def full_disk(testbed: Testbed) -> Fault:
    """Return a directory on a full disk."""
    disk = testbed.enter(small_disk(testbed.root / "small"))
    filler = disk / "filler"
    filler.write_bytes(bytes(SIZE))
    return Fault(str(disk / "in"), filler.unlink)


def missing_library(testbed: Testbed) -> Fault:
    """Return an SSH host, while the library for SSH is not installed."""
    fault = ssh_fault(testbed, "authorized_keys", "")
    stub = testbed.directory("stub") / "paramiko.py"
    stub.write_text("raise ModuleNotFoundError(\"No module named 'paramiko'\", name='paramiko')\n")
    paths = os.pathsep.join((str(stub.parent), testbed.environment["PYTHONPATH"]))
    fault.repair()
    return Fault(fault.destination, stub.unlink, fault.parameters, fault.client, {"PYTHONPATH": paths})


FAULTS = (
    rejected_login,
    changed_certificate,
    changed_host_key,
    rejected_key,
    missing_bucket,
    full_disk,
    missing_library,
)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["probe", "reload"])
@pytest.mark.parametrize("make", FAULTS)
def test_repair(testbed: Testbed, make: Callable[[Testbed], Fault], way: str) -> None:
    """All files arrive after the repair: without touching the daemons within a few probes, or soon after a reload."""
    fault = make(testbed)
    interval = PROBE_INTERVAL if way == "probe" else 600.0
    pair = ServerClientPair(
        testbed,
        {"probe_interval": interval}
        | {f"connection_parameters__{name}": value for name, value in fault.parameters.items()},
        destination=fault.destination,
        probe_interval=interval,
        **fault.client,
    )
    pair.server.environment = {**pair.server.environment, **fault.environment}
    pair.start()
    names = pair.feeder.feed(COUNT)
    pair.server.wait_for_line("not delivered")
    pair.client.wait_for_line("not delivered")
    until(lambda: not testbed.pending_tasks("push"), what="no attempt is running")
    assert pair.received.receipts() == []
    fault.repair()
    if way == "reload":
        for daemon in (pair.server, pair.client):
            daemon.send(signal.SIGHUP)
            daemon.wait_for_line("configuration reloaded")
    pair.received.wait_for_receipts(names, SOON)
    assert pair.server.lines().count("not delivered") <= 2
