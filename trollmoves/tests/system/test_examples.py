"""The examples behave as their pages say, started by the commands on the pages."""

from __future__ import annotations

import bz2
import importlib.util
import io
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from trollmoves.tests.helpers.daemons import REPOSITORY, Process, Testbed
from trollmoves.tests.helpers.directories import RemoteDirectory
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers import postgresql, seaweed
from trollmoves.tests.servers.seaweed import BUCKET, KEY, SECRET, Seaweed
from trollmoves.tests.system.test_attacks import ask_from

EXAMPLES = REPOSITORY / "examples"
PORT = re.compile(r"\b19\d\d\d\b")


class Example:
    """One example, copied to the testbed with free ports; ``run`` are its daemons by configuration."""

    def __init__(self, testbed: Testbed, name: str, **ports: int) -> None:
        self.testbed = testbed
        self.name = name
        self.ports: dict[str, int] = {key.removeprefix("p"): port for key, port in ports.items()}
        self.run: dict[str, Process] = {}
        page = (EXAMPLES / name / "README.md").read_text()
        for folder in re.findall(r"^mkdir -p (.*)$", page, re.MULTILINE):
            for one in self.moved(folder).split():
                Path(one).mkdir(parents=True)
        for line in re.findall(r"^move_it\w*\.py .*$", page, re.MULTILINE):
            script, config, *arguments = self.moved(line).split()
            path = testbed.config(self.moved((EXAMPLES / name / config).read_text()), config)
            self.run[config] = testbed.process(config, testbed.command(script, path, *arguments), path)
        assert self.run.keys() == {path.name for path in (EXAMPLES / name).glob("*.ini")}

    def moved(self, text: str) -> str:
        """Return a text of the example with the testbed's folder and ports."""

        def port(match: re.Match[str]) -> str:
            return str(self.ports.setdefault(match[0], self.testbed.port()))

        return PORT.sub(port, text.replace(f"/tmp/trollmoves-{self.name}", str(self.testbed.root)))

    def start(self) -> Example:
        """Start all daemons."""
        for process in self.run.values():
            process.start(wait=False)
        for process in self.run.values():
            process.wait_until_ready()
        return self

    def put(self, name: str, data: bytes = b"segment\n") -> Path:
        """Create a file under its final name atomically."""
        staged = self.testbed.root / "staged"
        staged.write_bytes(data)
        return staged.rename(self.testbed.root / name)

    def arrives(self, name: str, data: bytes = b"segment\n") -> None:
        """Wait until a file exists."""
        path = self.testbed.root / name
        until(path.exists, what=f"{name} arrives:\n" + "\n".join(p.lines()[-1000:] for p in self.run.values()))
        assert path.read_bytes() == data

    def says(self, config: str, part: str) -> None:
        """Wait until the log of a daemon contains a text."""
        self.run[config].wait_for_line(part)


def test_protocols(testbed: Testbed) -> None:
    """A file is delivered by every protocol."""
    if seaweed.missing() or importlib.util.find_spec("boto3") is None:
        pytest.skip(f"missing: {seaweed.missing() or 'boto3'}")
    ssh, ftp = RemoteDirectory(testbed, "sftp", testbed.root), RemoteDirectory(testbed, "ftp", testbed.root)
    s3 = Seaweed(testbed.directory("s3"))
    testbed.enter(s3)
    keys = testbed.directory("home/.aws") / "credentials"
    keys.write_text(f"[default]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n")
    example = Example(testbed, "protocols", p19022=ssh.port, p19021=ftp.port, p19333=s3.port)
    for place in (ssh, ftp):  # their servers have an address that is not used by others
        path = example.run["client.ini"].config
        path.write_text(path.read_text().replace(f"127.0.0.1:{place.port}", place.address))
    example.start()
    example.put("incoming/H-MSG4-000001")
    for protocol in ("file", "sftp", "scp", "ftp"):
        example.arrives(f"arrived/{protocol}/MSG4/H-MSG4-000001")
    example.says("client.ini", "[s3] received H-MSG4-000001")
    stored = seaweed.client(s3.port).get_object(Bucket=BUCKET, Key="arrived/MSG4/H-MSG4-000001")
    assert stored["Body"].read() == b"segment\n"


def test_end_to_end(testbed: Testbed) -> None:
    """A file that two servers announce reaches both clients and, through the dispatcher, a directory."""
    example = Example(testbed, "end-to-end")
    text = example.moved((EXAMPLES / "end-to-end" / "dispatch.yaml").read_text())
    for target in ("ftp", "sftp", "s3"):
        text = re.sub(rf"^{target}:\n(  .*\n)*", "", text, flags=re.MULTILINE)
    config = testbed.config(text, "dispatch.yaml")
    command = testbed.command("dispatcher.py", config, "-p", example.moved("19015"), "-n", "false")
    example.run["dispatch.yaml"] = testbed.process("dispatcher", command, config)
    example.start()
    for reception in "ab":
        example.put(f"reception-{reception}/H-MSG4-000001")
    for folder in ("forecast", "archive", "sent/file"):
        example.arrives(f"{folder}/H-MSG4-000001")


def test_several_servers(testbed: Testbed) -> None:
    """Files of two servers arrive once and are removed on both; one server is enough."""
    example = Example(testbed, "several-servers").start()
    both = [example.put(f"reception-{x}/H-MSG4-000001") for x in "ab"]
    example.arrives("arrived/H-MSG4-000001")
    until(lambda: not any(path.exists() for path in both), what="removal")
    servers = [example.run[f"server-{x}.ini"] for x in "ab"]
    assert sum(server.lines().count(" delivered ") for server in servers) == 1
    servers[0].kill()
    example.put("reception-b/H-MSG4-000002")
    example.arrives("arrived/H-MSG4-000002")


def test_hot_spare(testbed: Testbed) -> None:
    """The primary delivers, the spare while the primary is dead, and the primary again after its restart."""
    example = Example(testbed, "hot-spare").start()
    primary = example.run["primary.ini"]
    for client in ("primary.ini", "spare.ini"):
        example.says(client, "found peer client")
    example.put("incoming/H-MSG4-000001")
    example.says("primary.ini", "received H-MSG4-000001")
    primary.kill()
    example.put("incoming/H-MSG4-000002")
    example.says("spare.ini", "received H-MSG4-000002")
    primary.start()
    example.says("primary.ini", "H-MSG4-000002 was received by a peer")
    example.put("incoming/H-MSG4-000003")
    example.says("primary.ini", "received H-MSG4-000003")
    assert example.run["spare.ini"].lines().count("] received ") == 1


@pytest.mark.slow
@pytest.mark.skipif(bool(postgresql.missing()), reason=f"missing: {postgresql.missing()}")
@pytest.mark.parametrize("name", ["standby", "fleet"])
def test_shared_journal(name: str) -> None:
    """The survivor of two clients delivers all files, which are counted."""
    python, folder = sys.executable, EXAMPLES / name
    make = ["make", "-s", "-C", str(folder), f"PYTHON={python}", "FILES=400"]
    command = make if name == "fleet" else [python, str(folder / "standby.py"), "--files", "400"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "400 of 400 files" in done.stdout


def test_provider_topics(testbed: Testbed) -> None:
    """From each server the files of its topic arrive."""
    example = Example(testbed, "provider-topics").start()
    for name in ("geo/quicklook-1", "polar/quicklook-1", "geo/hrit-1", "polar/viirs-1"):
        example.put(name)
    example.arrives("arrived/hrit-1")
    example.arrives("arrived/viirs-1")
    assert len(list((testbed.root / "arrived").iterdir())) == 2


def test_unpacking(testbed: Testbed) -> None:
    """One kind of file is unpacked by the server, another by the client; archives are removed."""
    example = Example(testbed, "unpacking").start()
    packed = example.put("incoming/single.bz2", bz2.compress(b"segment\n"))
    example.put("incoming/both.tar", archive("one", "two"))
    for name in ("single", "one", "two"):
        example.arrives(f"arrived/{name}")
    until(lambda: not packed.exists() and not (testbed.root / "arrived" / "both.tar").exists())


def test_move_it(testbed: Testbed) -> None:
    """Files reach all destinations, unpacked if they are packed, and a delivered original is removed."""
    example = Example(testbed, "move_it").start()
    path = example.put("incoming/noaa20_202501020304.dat")
    example.put("incoming/product.bz2", bz2.compress(b"packed"))
    until(lambda: (testbed.root / "unpacked" / "product").exists(), what="the unpacked file")
    until(lambda: not path.exists(), what="the original is removed")
    assert (testbed.root / "archive" / "noaa20_202501020304.dat").read_bytes() == (
        testbed.root / "web" / "latest.dat"
    ).read_bytes()


def test_remote_files(testbed: Testbed) -> None:
    """Messages say where a file, and each file in an archive, can be read."""
    example = Example(testbed, "remote-files").start()
    page = (EXAMPLES / "remote-files" / "README.md").read_text()
    address = example.moved("127.0.0.1:19010")
    command = [sys.executable, str(EXAMPLES / "remote-files" / "listen.py"), address]
    listener = testbed.process("listen", command, testbed.root / "none", lambda _: True).start()
    wanted = [
        example.moved(line)
        for line in re.findall(r"^(?:file|dataset) .*$", page, re.MULTILINE)
        if line.endswith("FileSystem")
    ]

    def received() -> list[str]:
        example.put("incoming/a.nc")
        example.put("incoming/both.tar", archive("a", "b"))
        return sorted(set(listener.lines().splitlines()))

    until(lambda: received() == sorted(wanted), what=f"{wanted} in {listener.lines()}")


def archive(*names: str) -> bytes:
    """Return a tar archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(b"segment\n")
            tar.addfile(member, io.BytesIO(b"segment\n"))
    return buffer.getvalue()


def test_exposed_mirror(testbed: Testbed) -> None:
    """A customer gets the agreed files, a client that requests more gets none, and links cannot lead out."""
    example = Example(testbed, "exposed-mirror").start()
    secret = testbed.root / "secret"
    secret.write_text("secret")
    (testbed.root / "incoming" / "H-MSG4-000002").symlink_to(secret)
    example.put("incoming/H-MSG4-000001")
    example.arrives("customers/a/in/MSG4/H-MSG4-000001")
    example.says("mirror.ini", "is not among the allowed destinations")
    example.says("client.ini", "is not among the allowed destinations")
    example.says("server.ini", "H-MSG4-000002 leads out of the origin")
    assert not (testbed.root / "elsewhere").exists()
    assert not list((testbed.root / "customers").rglob("*000002"))
    port = example.ports["19195"]
    assert ask_from("127.0.0.9", port, "ping").type == "err"
    assert ask_from("127.0.0.1", port, "ping").type == "pong"
    for config in ("server.ini", "mirror.ini"):
        assert "without allowed_destinations" not in example.run[config].lines()


def test_every_example_is_listed() -> None:
    """The page of the examples names each of them."""
    page = (EXAMPLES / "README.md").read_text()
    folders = {path.parent.name for path in EXAMPLES.glob("*/README.md")}
    assert folders == set(re.findall(r"^\| \[([\w-]+)\]", page, re.MULTILINE))
