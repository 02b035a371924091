"""The tutorial, on two hosts that are network namespaces."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from trollmoves.tests.helpers.daemons import REPOSITORY, Process, Testbed
from trollmoves.tests.helpers.network import Host, Network
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers.openssh import SSHD, OpenSsh
from trollmoves.tests.servers.process import HOST

NAMES = {"source": "source.example.org", "archive": "archive.example.org"}
BLOCK = re.compile(r"^``` \{ \.\w+ \.([\w-]+)[^}]*\}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAME = "IR_108-202501021215.hrit"


class Tutorial:
    """The blocks of the tutorial, with its directory replaced, and the daemons that they configure."""

    def __init__(self, testbed: Testbed, hosts: dict[str, Host]) -> None:
        text = (REPOSITORY / "doc/tutorial.md").read_text().replace("/tmp/tutorial", str(testbed.root))
        self.blocks: dict[str, list[str]] = {}
        for place, block in BLOCK.findall(text):
            self.blocks.setdefault(place, []).append(block)
        self.testbed, self.hosts = testbed, hosts
        self.names = testbed.root / "hosts"
        self.names.write_text("".join(f"{hosts[place].address} {name}\n" for place, name in NAMES.items()))

    def run(self, place: str, number: int) -> None:
        """Run the commands of a block on its host."""
        subprocess.run([*self.hosts[place].prefix, "sh", "-ec", self.blocks[place][number]], check=True)

    def daemon(self, role: str, place: str, number: int) -> Process:
        """Return the daemon with the configuration in this block; it is not started."""
        config = self.testbed.config(self.blocks[place][number], f"{role}.ini")
        command = self.testbed.command(f"move_it_{role}.py", config)
        assert f"move_it_{role}.py {role}.ini" in self.blocks[place][number + 1]
        return self.hosts[place].run_inside(self.testbed.process(role, command, config), self.names)


def log_in(testbed: Testbed, archive: Host) -> None:
    """Start an sshd on a host, and give the user a key and the key of the host, as step 3 does."""
    ssh = OpenSsh(testbed.directory("ssh"))
    config = testbed.root / "ssh" / "sshd_config"
    text = re.sub(r"^Port \d+", "Port 22", config.read_text(), flags=re.MULTILINE)
    config.write_text(text.replace(f"ListenAddress {HOST}", f"ListenAddress {archive.address}"))
    sshd = testbed.process("sshd", [SSHD, "-D", "-e", "-f", str(config)], config, lambda _: True)
    archive.run_inside(sshd).start()
    until(lambda: archive.run("ss", "-Hltn", "sport", "=", ":22"), 10, "sshd listens")
    keys = testbed.directory("home/.ssh")
    shutil.copy(ssh.user_key, keys / "id_ed25519")
    host_key = ssh.host_key.with_suffix(".pub").read_text()
    (keys / "known_hosts").write_text(f"{NAMES['archive']} {host_key}")


def expected_lines(tutorial: Tutorial, place: str) -> list[str]:
    """Return the log lines that the tutorial shows."""
    text = "".join(tutorial.blocks[f"{place}-log"]).replace("192.0.2.10", tutorial.hosts["source"].address)
    return text.splitlines()


def test_tutorial(testbed: Testbed) -> None:
    """The configurations and commands of the tutorial deliver its file, with the log lines that it shows."""
    network = Network(testbed)
    hosts = {place: network.host() for place in NAMES}
    tutorial = Tutorial(testbed, hosts)
    log_in(testbed, hosts["archive"])
    tutorial.run("source", 0)
    server = tutorial.daemon("server", "source", 1).start()
    client = tutorial.daemon("client", "archive", 0).start()
    client.wait_for_line("connected to tcp://source.example.org:9010")
    tutorial.run("source", 3)
    arrived = Path(testbed.root, "incoming/20250102", NAME)
    until(arrived.exists, 30, "the file arrives")
    assert arrived.read_text() == "a first segment\n"
    for process, place in ((server, "source"), (client, "archive")):
        for line in expected_lines(tutorial, place):
            process.wait_for_line(line)
