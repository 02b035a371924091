"""Daemons as real processes, and their test environment.

A ``Testbed`` owns the folder, ports, processes and subscribers of one test; all of them end with it.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self, TypeVar

from trollmoves.journal import UNFLUSHED_SECONDS
from trollmoves.tests.helpers.feeding import PATTERN, Feeder
from trollmoves.tests.helpers.recording import HOST, RecordingSubscriber
from trollmoves.tests.helpers.waiting import TIMEOUT_FACTOR, until

REPOSITORY = Path(__file__).parents[3]
TOPIC = "/1b/hrit-segment/0deg"
MIRROR_TOPIC = "/mirrored/0deg"
LOG_SETTLES = 0.02  # s without a new line after which a running daemon has written its log
READY = 30.0  # s that a daemon has to come up on a busy machine

S = TypeVar("S")


class Closeable(Protocol):
    """A resource that a testbed can close."""

    def close(self) -> object:
        """End it."""


T = TypeVar("T", bound=Closeable)
Sections = Mapping[str, Mapping[str, object]]


def ini(sections: Sections) -> str:
    """Return the text of a configuration file."""
    lines = []
    for name, options in sections.items():
        lines += [f"[{name}]", *(f"{option} = {value}" for option, value in options.items()), ""]
    return "\n".join(lines)


def script(name: str) -> str:
    """Return the path of a command: the one in the checkout if it exists, else the installed one."""
    here = REPOSITORY / "bin" / name
    return str(here) if here.exists() else str(Path(sys.executable).with_name(name))


@dataclass
class Process:
    """A daemon in a separate process, which can be restarted; its output goes to ``log``."""

    command: Sequence[str]
    log: Path
    environment: Mapping[str, str]
    ready: Callable[[Process], bool]
    config: Path
    popen: subprocess.Popen[bytes] | None = None
    _read_from: int = field(default=0, repr=False)

    def start(self, *, wait: bool = True) -> Process:
        """Start, and wait until it is at work."""
        assert self.popen is None or self.popen.poll() is not None, "it runs already"
        self._read_from = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                [*end_with_parent(), *self.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=dict(self.environment),
            )
        if wait:
            self.wait_until_ready()
        return self

    def wait_until_ready(self) -> None:
        """Wait until it is at work; fail when it ended instead."""
        popen = self.popen
        assert popen is not None
        until(lambda: popen.poll() is not None or self.ready(self), READY, f"{self.log.stem} is at work")
        assert popen.poll() is None, f"{self.log.stem} ended:\n{self.lines()}"

    def mark_log(self) -> None:
        """Exclude all lines logged until now from ``lines``."""
        self._read_from = self.log.stat().st_size

    def lines(self) -> str:
        """Return the lines logged since the last start or ``mark_log``, once no more are being written."""
        text = self._read_log()
        while self.is_running():
            time.sleep(LOG_SETTLES)
            if (later := self._read_log()) == text:
                break
            text = later
        return text

    def _read_log(self) -> str:
        with self.log.open("rb") as log:
            log.seek(self._read_from)
            return log.read().decode(errors="replace")

    def wait_for_line(self, part: str, times: int = 1, seconds: float = 20) -> None:
        """Wait until its log contains ``part`` at least ``times`` times."""
        found = f"{part!r} in the log:\n{self._read_log()[-3000:]}"
        until(lambda: self._read_log().count(part) >= times, seconds, found)

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self.popen is not None
        self.popen.send_signal(number)

    def kill(self) -> None:
        """End it as a power cut would: no step more."""
        self.send(signal.SIGKILL)
        assert self.popen is not None
        assert self.popen.wait(10 * TIMEOUT_FACTOR) == -signal.SIGKILL

    def terminate(self, seconds: float = 20) -> int:
        """Send SIGTERM; return the exit status."""
        self.send(signal.SIGTERM)
        assert self.popen is not None
        return self.popen.wait(seconds * TIMEOUT_FACTOR)

    def is_running(self) -> bool:
        """Return True if it runs."""
        return self.popen is not None and self.popen.poll() is None

    def reconfigure(self, sections: Sections | str) -> None:
        """Replace its configuration file by rename, as a package manager or an editor does."""
        new = self.config.with_name(f".{self.config.name}.new")
        new.write_text(sections if isinstance(sections, str) else ini(sections))
        new.replace(self.config)

    def stop(self) -> None:
        """End it, whatever it does."""
        if self.popen is not None and self.popen.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.popen.pid, signal.SIGKILL)
            self.popen.wait(10 * TIMEOUT_FACTOR)


def end_with_parent() -> list[str]:
    """Return a command prefix that ends the process together with a killed test run."""
    return ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []


def _has_logged_start(process: Process) -> bool:
    return ", journal " in process.lines()


class Testbed:
    """A folder, ports, processes and subscribers of one test; all of them end with the ``with`` block.

    Files are kept on a tmpfs if there is one. Logs are in ``logs``, which pytest keeps.
    """

    __test__ = False  # not a test class, despite its name

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self._ending = ExitStack()
        self._numbers = itertools.count(1)
        shared_memory = Path("/dev/shm")
        on = shared_memory if os.access(shared_memory, os.W_OK) else logs
        self.root = Path(tempfile.mkdtemp(prefix="trollmoves-test-", dir=on))
        self._ending.callback(shutil.rmtree, self.root, ignore_errors=True)

    def __enter__(self) -> Testbed:
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.close()

    def port(self) -> int:
        """Return a port that stays reserved until the end, also while its daemon is restarted.

        The socket that reserves it never listens. Both sockets set SO_REUSEADDR, so a daemon can bind the same port.
        """
        holder = self.close_at_end(socket.socket())
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("", 0))
        return int(holder.getsockname()[1])

    def close_at_end(self, thing: T) -> T:
        """Close an object at the end of the test."""
        self._ending.callback(thing.close)
        return thing

    def call_at_end(self, end: Callable[[], object]) -> None:
        """Call a function at the end of the test."""
        self._ending.callback(end)

    def wait_until_outlived(self, role: str) -> None:
        """Wait until a daemon has recorded that it lives on after its last task."""
        (lock,) = (self.root / "state").rglob(f"{role}-*.journal.lock")
        (journal,) = (self.root / "state").rglob(f"{role}-*.journal")

        def outlived() -> bool:
            with closing(sqlite3.connect(f"{journal.as_uri()}?mode=ro", uri=True, timeout=20)) as opened:
                ((last,),) = opened.execute("SELECT max(finished) FROM tasks WHERE state <> 0")
            return bool(float(lock.read_text().split()[0]) > last + UNFLUSHED_SECONDS)

        until(outlived, 20, f"the {role} is idle")

    def enter(self, thing: AbstractContextManager[S]) -> S:
        """Enter a context that ends with the testbed."""
        return self._ending.enter_context(thing)

    def directory(self, name: str) -> Path:
        """Make a folder."""
        folder = self.root / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def feeder(self, name: str = "in", first: int = 0) -> Feeder:
        """Return a feeder of a folder."""
        return Feeder(self.directory(name), first)

    def subscriber(self, port: int, topic: str = "") -> RecordingSubscriber:
        """Return a recording subscriber to a local publisher."""
        subscriber = RecordingSubscriber(port, topic)
        self._ending.callback(subscriber.stop)
        return subscriber

    def pending_tasks(self, kind: str = "%") -> int:
        """Count the unfinished tasks of one kind, or of all kinds, in the journals of all daemons."""
        count = 0
        for journal in (self.root / "state").rglob("*.journal"):
            with closing(sqlite3.connect(f"{journal.as_uri()}?mode=ro", uri=True, timeout=20)) as opened:
                found = opened.execute("SELECT count(*) FROM tasks WHERE state = 0 AND kind LIKE ?", (kind,))
                count += found.fetchone()[0]
        return count

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the daemons: their state is in the testbed's folder."""
        kept = {key: value for key, value in os.environ.items() if key != "STATE_DIRECTORY"}
        home = self.directory("home")
        paths = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
        return kept | {"XDG_STATE_HOME": str(self.root / "state"), "HOME": str(home), "PYTHONPATH": paths}

    def config(self, sections: Sections | str, name: str = "") -> Path:
        """Write a configuration file."""
        path = self.directory("etc") / (name or f"{next(self._numbers)}.ini")
        path.write_text(sections if isinstance(sections, str) else ini(sections))
        return path

    def process(
        self,
        name: str,
        command: Sequence[str],
        config: Path,
        ready: Callable[[Process], bool] = _has_logged_start,
        environment: Mapping[str, str] | None = None,
    ) -> Process:
        """Return a process that is not started yet; it ends with the testbed."""
        log = self.logs / f"{name}.log"
        process = Process(command, log, environment or self.environment, ready, config)
        self._ending.callback(process.stop)
        return process

    def server(self, sections: Sections, port: int, *arguments: str, name: str = "server") -> Process:
        """Return a server process that publishes on ``port``; it is not started yet."""
        config = self.config(sections, f"{name}.ini")
        command = [sys.executable, script("move_it_server.py"), str(config), "-p", str(port), *arguments]
        return self.process(name, command, config)

    def client(self, sections: Sections, *arguments: str, name: str = "client") -> Process:
        """Return a client process; it is not started yet."""
        config = self.config(sections, f"{name}.ini")
        return self.process(name, [sys.executable, script("move_it_client.py"), str(config), *arguments], config)

    def mirror(self, sections: Sections, port: int, *arguments: str, name: str = "mirror") -> Process:
        """Return a mirror process that publishes on ``port``; it is not started yet."""
        config = self.config(sections, f"{name}.ini")
        command = [sys.executable, script("move_it_mirror.py"), str(config), "-p", str(port), *arguments]
        return self.process(name, command, config)

    @staticmethod
    def command(name: str, *arguments: str | Path) -> list[str]:
        """Return the command line of one of the commands."""
        return [*end_with_parent(), sys.executable, script(name), *map(str, arguments)]

    def run(self, command: str, *arguments: str | Path, seconds: float = 30) -> subprocess.CompletedProcess[str]:
        """Run one of the commands until it ends."""
        return subprocess.run(
            self.command(command, *arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds * TIMEOUT_FACTOR,
            env=self.environment,
            check=False,
        )


def server_section(origin: Path, request_port: int, **options: object) -> dict[str, object]:
    """Return a server's section that announces the segments in a folder."""
    return {
        "origin": f"{origin}/{PATTERN}",
        "topic": TOPIC,
        "request_port": request_port,
        "request_address": HOST,
        **options,
    }


def _providers(servers: int | Sequence[int]) -> str:
    ports = [servers] if isinstance(servers, int) else servers
    return " ".join(f"{HOST}:{port}" for port in ports)


def client_section(
    servers: int | Sequence[int], destination: object, publish_port: int, **options: object
) -> dict[str, object]:
    """Return a client's section that subscribes to local servers by their publish ports."""
    return {
        "providers": _providers(servers),
        "destination": destination,
        "topic": TOPIC,
        "publish_port": publish_port,
        "nameservers": "False",
        **options,
    }


def mirror_section(
    servers: int | Sequence[int], destination: object, request_port: int, **options: object
) -> dict[str, object]:
    """Return a mirror's section that subscribes to local servers by their publish ports, with a separate topic."""
    return {
        "providers": _providers(servers),
        "destination": destination,
        "client_topic": TOPIC,
        "topic": MIRROR_TOPIC,
        "request_port": request_port,
        "request_address": HOST,
        **options,
    }


class DaemonPair:
    """One server and one client, which are not started yet."""

    def __init__(self, testbed: Testbed, server: Mapping[str, object] | None = None, **client: object) -> None:
        self.feeder = testbed.feeder()
        self.target = testbed.directory("out")
        self.publish_port, self.request_port, self.client_port = testbed.port(), testbed.port(), testbed.port()
        self.server_sections = {"hrit": server_section(self.feeder.folder, self.request_port, **(server or {}))}
        self.client_sections = {"hrit": client_section(self.publish_port, self.target, self.client_port) | client}
        self.server = testbed.server(self.server_sections, self.publish_port)
        self.client = testbed.client(self.client_sections)

    def start(self) -> Self:
        """Start both."""
        self.server.start(wait=False)
        self.client.start()
        self.server.wait_until_ready()
        return self


class ServerClientPair(DaemonPair):
    """One server, one client, and a subscriber to each; the daemons are not started yet."""

    def __init__(self, testbed: Testbed, server: Mapping[str, object] | None = None, **client: object) -> None:
        super().__init__(testbed, server, **client)
        self.announced = testbed.subscriber(self.publish_port)
        self.received = testbed.subscriber(self.client_port)

    def wait_until_done(self, seconds: float = 30) -> None:
        """Wait until all files are complete at the target and have receipts."""
        self.received.wait_for_receipts(self.feeder.fed, seconds)
        assert self.feeder.missing(self.target) == []
