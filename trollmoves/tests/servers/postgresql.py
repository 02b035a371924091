"""PostgreSQL: a separate cluster for a test, and standbys of it.

Tests with one engine share a cluster (``shared``); each uses its own schema of the database ``postgres``.
"""

from __future__ import annotations

import fcntl
import glob
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from trollmoves.tests.helpers.waiting import TIMEOUT_FACTOR, until
from trollmoves.tests.servers.process import HOST, ServerProcess, free_port

DIRECTORY, PREFIX = "/tmp", "trollmoves-pg-"
LOCK = "lock"  # file in the directory of a cluster, locked while the process that started it lives
USER = "trollmoves"  # the owner of the cluster
_OWNERS = ("postgres", "nobody")  # users that run it when the tests run as root, which PostgreSQL rejects
_SETTINGS = """
listen_addresses = '{host}'
unix_socket_directories = '{folder}'
fsync = off
max_connections = 60
max_prepared_transactions = 0
shared_buffers = 32MB
log_min_messages = warning
log_line_prefix = '%m [%p] '
"""


def bin_directory() -> str | None:
    """Return the directory of the newest initdb: ``$PG_BIN``, or that of a Debian package; None without one."""
    packages = sorted(glob.glob("/usr/lib/postgresql/*/bin"), key=_version, reverse=True)
    candidates = [path for path in (os.environ.get("PG_BIN"), *packages) if path]
    return next((path for path in candidates if os.access(os.path.join(path, "initdb"), os.X_OK)), None)


def _version(path: str) -> float:
    return float(Path(path).parent.name)


def missing() -> str:
    """Return why the server cannot run, empty when it can."""
    if bin_directory() is None:
        return "no initdb (Debian: postgresql)"
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return "no psycopg (PyPI: psycopg[binary])"
    return "" if os.geteuid() or _owner() else "no user to run PostgreSQL (Debian: postgresql)"


def _owner() -> pwd.struct_passwd | None:
    for name in _OWNERS:
        with suppress(KeyError):
            return pwd.getpwnam(name)
    return None


def _lock(folder: Path) -> int:
    """Lock a new directory until the returned descriptor is closed, or this process ends."""
    descriptor = os.open(folder / "new", os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    (folder / "new").rename(folder / LOCK)
    return descriptor


def remove_abandoned() -> None:
    """Remove the directories of test runs that were killed; their servers have ended with them."""
    for lock in Path(DIRECTORY).glob(f"{PREFIX}*/{LOCK}"):
        with suppress(OSError), lock.open("rb") as opened:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)


class Postgresql(ServerProcess):
    """One cluster in a new directory, which is removed at the end of the ``with`` block, or by a later test run.

    The server ends with this process, also if that is killed.

    It accepts each user of this host without a password, on ``port`` of loopback and on a socket in ``folder``.
    ``primary``: the cluster of which this one is a hot standby. ``network``: whose hosts it accepts too.
    """

    def __init__(self, primary: Postgresql | None = None, network: str = "") -> None:
        remove_abandoned()
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=DIRECTORY))
        self._lock = _lock(self.folder)
        self.primary = primary
        self.network = network
        self.data = self.folder / "data"
        if os.geteuid() == 0:
            owner = _owner()
            assert owner is not None
            os.chown(self.folder, owner.pw_uid, owner.pw_gid)
        super().__init__(free_port(), [], self.folder / "server.log")
        self.command = self.program("postgres", "-D", str(self.data), "-p", str(self.port))

    def program(self, name: str, *arguments: str) -> list[str]:
        """Return the command line of a program of PostgreSQL, as the owner of the cluster."""
        directory = bin_directory()
        assert directory is not None
        command = ["setpriv", "--pdeathsig=INT"]  # the server ends with the process that started it
        if os.geteuid() == 0:
            owner = _owner()
            assert owner is not None
            command += [f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}", "--clear-groups"]
        return [*command, os.path.join(directory, name), *arguments]

    @property
    def url(self) -> str:
        """The URL of the database on the socket."""
        return f"postgresql://{USER}@/postgres?host={self.folder}&port={self.port}"

    def url_with(self, other: Postgresql) -> str:
        """Return the URL that finds the primary among this cluster and another one, by TCP."""
        hosts = f"{HOST}:{self.port},{HOST}:{other.port}"
        return f"postgresql://{USER}@{hosts}/postgres?target_session_attrs=read-write&connect_timeout=2"

    def start(self, seconds: float = 30) -> None:
        """Create the cluster at the first call; start it and wait until it accepts connections."""
        if not self.data.exists():
            self._create()
        super().start(seconds)
        until(self.is_ready, seconds, "PostgreSQL accepts connections")

    def is_ready(self) -> bool:
        """Return True if the server accepts connections."""
        ready = self.program("pg_isready", "-q", "-h", str(self.folder), "-p", str(self.port))
        return subprocess.run(ready, cwd="/").returncode == 0

    def stop(self) -> None:
        """Stop: running transactions are rolled back; a second call does nothing."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """Stop as by a crash: the next start recovers from the write-ahead log."""
        self._end(signal.SIGQUIT)

    def promote(self) -> None:
        """Make a standby the primary."""
        self._run("pg_ctl", "promote", "-w", "-D", str(self.data))

    def __enter__(self) -> Postgresql:
        """Start."""
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop without a checkpoint, and remove all files."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)

    def _end(self, signal_number: int) -> None:
        if self.process is None:
            return
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGCONT)
            os.kill(self.process.pid, signal_number)
        try:
            self.process.wait(10 * TIMEOUT_FACTOR)
        except subprocess.TimeoutExpired:
            os.kill(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.process = None

    def _create(self) -> None:
        if self.primary is None:
            self._run("initdb", "-D", str(self.data), "-U", USER, "-A", "trust", "-E", "UTF8", "--no-locale", "-N")
        else:
            source = ("-h", str(self.primary.folder), "-p", str(self.primary.port), "-U", USER)
            self._run("pg_basebackup", "-D", str(self.data), "-R", "-X", "stream", "-c", "fast", *source)
        with (self.data / "postgresql.conf").open("a", encoding="utf-8") as settings:
            settings.write(_SETTINGS.format(host="*" if self.network else HOST, folder=self.folder))
        if self.network:
            with (self.data / "pg_hba.conf").open("a", encoding="utf-8") as rules:
                rules.write(f"host all all {self.network} trust\n")

    def _run(self, name: str, *arguments: str) -> None:
        done = subprocess.run(self.program(name, *arguments), cwd="/", capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{name} failed: {done.stderr[-2000:]}")
