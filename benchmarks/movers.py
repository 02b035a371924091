"""The movers: many small files to one host, and one large file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figures import Figure
from trollmoves.tests.helpers import legacy_peer as earlier
from trollmoves.tests.helpers.daemons import REPOSITORY, Testbed
from trollmoves.tests.servers.openssh import OpenSsh
from trollmoves.tests.servers.process import HOST
from trollmoves.tests.servers.pyftpd import USER, PyFtpd

THREADS = 4
SMALL = 10_000  # bytes
PASSWORD = "plain"  # noqa: S105  (of a temporary server; 0.19.0 does not support encoded characters)
PROMISED = {"sftp": 40.0, "scp": 3.0, "ftp": 1.0}  # times the rate of 0.19.0; for ftp, with its single thread
OLD_COUNT = {"sftp": 60, "scp": 30, "ftp": 200}


class MoverBench:
    """Servers, keys and files."""

    def __init__(self, testbed: Testbed) -> None:
        self.files, self.out, self.home = (
            testbed.directory("files"),
            testbed.directory("out"),
            testbed.directory("home"),
        )
        self._ssh = OpenSsh(testbed.directory("sshd"))
        testbed.enter(self._ssh)
        self._ftp = PyFtpd(testbed.directory("ftpd"), self.out, password=PASSWORD)
        testbed.enter(self._ftp)
        keys = testbed.directory("home/.ssh")  # the only directory that 0.19.0 reads
        keys.chmod(0o700)
        shutil.copy(self._ssh.known_hosts, keys / "known_hosts")
        shutil.copy(self._ssh.user_key, keys / "id_ed25519")
        shutil.copy(self._ssh.user_key.with_suffix(".pub"), keys / "id_ed25519.pub")

    @property
    def key(self) -> Path:
        """The private key file."""
        return self._ssh.user_key

    @property
    def ssh_port(self) -> int:
        """The port that the SSH benchmarks connect to."""
        return self._ssh.port

    def use_port(self, port: int) -> None:
        """Connect to this port of a relay to the SSH server."""
        self._ssh.port = port
        for known in (self._ssh.known_hosts, self.home / ".ssh" / "known_hosts"):
            with known.open("a") as file:
                file.write(self._ssh.known_as(HOST, port))

    def url(self, scheme: str, folder: str) -> str:
        """Create a directory and return its URL."""
        (self.out / folder).mkdir(exist_ok=True)
        if scheme == "ftp":
            return f"ftp://{USER}:{PASSWORD}@127.0.0.1:{self._ftp.port}/{folder}/"
        return f"{scheme}://{self._ssh.user}@127.0.0.1:{self._ssh.port}{self.out}/{folder}/"

    def make(self, count: int, size: int) -> None:
        """Create the files to move."""
        for number in range(count):
            with (self.files / f"f{number}").open("wb") as file:
                for _ in range(max(1, size // 1_000_000)):
                    file.write(os.urandom(min(size, 1_000_000)))

    def seconds(self, python: str, scheme: str, count: int, threads: int, transport: str = "") -> float | None:
        """Return the seconds for all files; None if a file failed. ``transport`` is the value of ``ssh_transport``."""
        url = self.url(scheme, f"{scheme}-{Path(python).parent.parent.name}-{threads}")
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {
            "HOME": str(self.home)
        }
        if python == sys.executable:
            environment["PYTHONPATH"] = str(REPOSITORY)
        command = [python, "-P", str(Path(__file__).with_name("one_mover.py")), url, str(self.files), str(count)]
        key = "-" if scheme == "ftp" else str(self.key)
        done = subprocess.run(
            [*command, str(threads), key, transport, *([] if python == sys.executable else ["named"])],
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        if not done.stdout:
            return None
        took, failed = done.stdout.split()
        return float(took) if int(failed) == 0 else None

    def openssh(self, cipher: str | None = None, count: int = 1) -> float:
        """Return the seconds that OpenSSH's sftp takes for the first ``count`` files."""
        options = ["-q", "-o", f"UserKnownHostsFile={self._ssh.known_hosts}", "-o", "IdentitiesOnly=yes"]
        options += ["-i", str(self.key), *(["-c", cipher] if cipher else [])]
        command = ["sftp", *options, "-b", "-", "-P", str(self._ssh.port), f"{self._ssh.user}@127.0.0.1"]
        puts = "".join(f"put {self.files}/f{number} {self.out}/openssh{number}\n" for number in range(count))
        began = time.monotonic()
        subprocess.run(command, input=puts.encode(), check=True, stdout=subprocess.DEVNULL)
        return time.monotonic() - began


def small(logs: Path, *, count: int, old: bool) -> Iterator[Figure]:
    """Time many small files to one host, four concurrently."""
    interpreter = earlier.python() if old else None
    with Testbed(logs) as testbed:
        bench = MoverBench(testbed)
        bench.make(max(count, *OLD_COUNT.values()), SMALL)
        for scheme, promised in PROMISED.items():
            before = None
            if isinstance(interpreter, Path):
                threads = 1 if scheme == "ftp" else THREADS
                took = bench.seconds(str(interpreter), scheme, OLD_COUNT[scheme], threads)
                before = OLD_COUNT[scheme] / took if took else None
            took = bench.seconds(sys.executable, scheme, count, THREADS)
            rate = count / took if took else 0.0
            of_one = " (1 thread)" if scheme == "ftp" else ""
            yield Figure(
                f"{scheme}: {count} files of 10 kB, {THREADS} concurrent", rate, "files/s", old=before,
                promise=f">= {promised:.0f}x{of_one}" if before else "",
                kept=rate >= promised * before if before else None,
            )  # fmt: skip


def large(logs: Path, *, megabytes: int) -> Iterator[Figure]:
    """Time one large file by SFTP and SCP, compared with OpenSSH's sftp and its default cipher."""
    with Testbed(logs) as testbed:
        bench = MoverBench(testbed)
        bench.make(1, megabytes * 1_000_000)
        rounds = 3
        limit = min(bench.openssh() for _ in range(rounds))
        gcm = min(bench.openssh("aes128-gcm@openssh.com") for _ in range(rounds))
        for scheme in ("sftp", "scp"):
            took = [bench.seconds(sys.executable, scheme, 1, 1) for _ in range(rounds)]
            best = min((one for one in took if one), default=float("inf"))
            yield Figure(
                f"{scheme}: one file of {megabytes} MB", megabytes / best, "MB/s", limit=megabytes / limit,
                limit_of="OpenSSH's sftp", promise="within 1.3 times its time", kept=best <= 1.3 * limit,
            )  # fmt: skip
        yield Figure(f"OpenSSH's sftp with AES-GCM: {megabytes} MB", megabytes / gcm, "MB/s")
