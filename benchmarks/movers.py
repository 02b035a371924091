"""The movers: many small files to one host, and one large one."""

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
from trollmoves.tests.servers.pyftpd import USER, PyFtpd

THREADS = 4
SMALL = 10_000  # bytes
PASSWORD = "plain"  # noqa: S105  (of a server that lives for seconds; 0.19.0 takes none that a URL must encode)
PROMISED = {"sftp": 40.0, "scp": 3.0, "ftp": 1.0}  # times the rate of 0.19.0; of ftp that of its one thread
OLD_COUNT = {"sftp": 60, "scp": 30, "ftp": 200}


class Place:
    """Servers, keys and files."""

    def __init__(self, site: Testbed) -> None:
        self.files, self.out, self.home = site.directory("files"), site.directory("out"), site.directory("home")
        self._ssh = OpenSsh(site.directory("sshd"))
        site.enter(self._ssh)
        self._ftp = PyFtpd(site.directory("ftpd"), self.out, password=PASSWORD)
        site.enter(self._ftp)
        keys = site.directory("home/.ssh")  # 0.19.0 looks nowhere else
        keys.chmod(0o700)
        shutil.copy(self._ssh.known_hosts, keys / "known_hosts")
        shutil.copy(self._ssh.user_key, keys / "id_ed25519")
        shutil.copy(self._ssh.user_key.with_suffix(".pub"), keys / "id_ed25519.pub")

    @property
    def key(self) -> Path:
        """The key file to log in with."""
        return self._ssh.user_key

    def url(self, scheme: str, folder: str) -> str:
        """Give the URL of a directory, which is made."""
        (self.out / folder).mkdir(exist_ok=True)
        if scheme == "ftp":
            return f"ftp://{USER}:{PASSWORD}@127.0.0.1:{self._ftp.port}/{folder}/"
        return f"{scheme}://{self._ssh.user}@127.0.0.1:{self._ssh.port}{self.out}/{folder}/"

    def make(self, count: int, size: int) -> None:
        """Make the files to move."""
        for number in range(count):
            with (self.files / f"f{number}").open("wb") as file:
                for _ in range(max(1, size // 1_000_000)):
                    file.write(os.urandom(min(size, 1_000_000)))

    def seconds(self, python: str, scheme: str, count: int, threads: int) -> float | None:
        """Give the seconds that it took; None when most of it failed."""
        url = self.url(scheme, f"{scheme}-{Path(python).parent.parent.name}-{threads}")
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {
            "HOME": str(self.home)
        }
        if python == sys.executable:
            environment["PYTHONPATH"] = str(REPOSITORY)
        command = [python, "-P", str(Path(__file__).with_name("one_mover.py")), url, str(self.files), str(count)]
        key = "-" if scheme == "ftp" else str(self.key)
        done = subprocess.run(
            [*command, str(threads), key, *([] if python == sys.executable else ["named"])],
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

    def openssh(self, cipher: str | None = None) -> float:
        """Give the seconds that OpenSSH's own sftp takes for the first of the files."""
        options = ["-q", "-o", f"UserKnownHostsFile={self._ssh.known_hosts}", "-o", "IdentitiesOnly=yes"]
        options += ["-i", str(self.key), *(["-c", cipher] if cipher else [])]
        command = ["sftp", *options, "-b", "-", "-P", str(self._ssh.port), f"{self._ssh.user}@127.0.0.1"]
        began = time.monotonic()
        subprocess.run(
            command, input=f"put {self.files}/f0 {self.out}/openssh\n".encode(), check=True, stdout=subprocess.DEVNULL
        )
        return time.monotonic() - began


def small(logs: Path, *, count: int, old: bool) -> Iterator[Figure]:
    """Time many small files to one host, four at once."""
    interpreter = earlier.python() if old else None
    with Testbed(logs) as site:
        place = Place(site)
        place.make(max(count, *OLD_COUNT.values()), SMALL)
        for scheme, promised in PROMISED.items():
            before = None
            if isinstance(interpreter, Path):
                threads = 1 if scheme == "ftp" else THREADS
                took = place.seconds(str(interpreter), scheme, OLD_COUNT[scheme], threads)
                before = OLD_COUNT[scheme] / took if took else None
            took = place.seconds(sys.executable, scheme, count, THREADS)
            rate = count / took if took else 0.0
            of_one = " (1 thread)" if scheme == "ftp" else ""
            yield Figure(
                f"{scheme}: {count} files of 10 kB, {THREADS} at once", rate, "files/s", old=before,
                promise=f">= {promised:.0f}x{of_one}" if before else "",
                kept=rate >= promised * before if before else None,
            )  # fmt: skip


def large(logs: Path, *, megabytes: int) -> Iterator[Figure]:
    """Time one large file by SFTP and SCP, beside OpenSSH's sftp with its own choice of cipher."""
    with Testbed(logs) as site:
        place = Place(site)
        place.make(1, megabytes * 1_000_000)
        rounds = 3
        limit = min(place.openssh() for _ in range(rounds))
        gcm = min(place.openssh("aes128-gcm@openssh.com") for _ in range(rounds))
        for scheme in ("sftp", "scp"):
            took = [place.seconds(sys.executable, scheme, 1, 1) for _ in range(rounds)]
            best = min((one for one in took if one), default=float("inf"))
            yield Figure(
                f"{scheme}: one file of {megabytes} MB", megabytes / best, "MB/s", limit=megabytes / limit,
                limit_of="OpenSSH's sftp", promise="within 1.3 times its time", kept=best <= 1.3 * limit,
            )  # fmt: skip
        yield Figure(f"OpenSSH's sftp with AES-GCM: {megabytes} MB", megabytes / gcm, "MB/s")
