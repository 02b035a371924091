"""Daemons as real processes, with files for them to move and ears to hear them.

A ``Site`` is what one test has: a folder, ports, processes and ears, all of which end with it.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import zmq
from posttroll.message import Message

from trollmoves.tests.waiting import until

REPOSITORY = Path(__file__).parents[2]
HOST = "127.0.0.1"
TOPIC = "/1b/hrit-segment/0deg"
PATTERN = "H-000-{series:6s}-{platform_name:12s}-{channel:9s}-{segment:9s}-{nominal_time:%Y%m%d%H%M}-__"
CHANNELS = [
    "VIS006",
    "VIS008",
    "IR_016",
    "IR_039",
    "WV_062",
    "WV_073",
    "IR_087",
    "IR_097",
    "IR_108",
    "IR_120",
    "IR_134",
]
READY = 30.0  # s that a daemon has to come up on a busy machine

Sections = Mapping[str, Mapping[str, object]]


# -- files


def names(first: int = 0) -> Iterator[str]:
    """Yield the names of satellite segments as they come, slot by slot, from the ``first`` one on."""

    def all_of_them() -> Iterator[str]:
        for slot in itertools.count():
            day, quarter = divmod(slot, 96)
            when = f"2025{1 + day // 28 % 12:02d}{1 + day % 28:02d}{quarter // 4:02d}{15 * (quarter % 4):02d}"
            for channel, segments in [("", 1), *((name, 8) for name in CHANNELS), ("HRV", 24)]:
                for number in range(1, segments + 1):
                    segment = f"{number:06d}" if channel else "PRO"
                    yield f"H-000-MSG4__-MSG4________-{channel:_<9s}-{segment:_<9s}-{when}-__"

    return itertools.islice(all_of_them(), first, None)


def content(name: str, version: int = 1, size: int = 1000) -> bytes:
    """Give the bytes that belong into a file: no two files, and no two versions, have the same."""
    seed = hashlib.sha256(f"{name} {version}".encode()).digest()
    return (seed * (size // len(seed) + 1))[:size]


class Feeder:
    """Puts files into a folder, each at once under its final name, as a reception system does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fed: dict[str, bytes] = {}
        self._staging = folder.with_name(f"{folder.name}-staging")
        self._names = names()
        folder.mkdir(parents=True, exist_ok=True)
        self._staging.mkdir(exist_ok=True)

    def feed(self, count: int = 1, *, size: int = 1000, pause: float = 0.0) -> list[str]:
        """Bring in so many files with ``pause`` seconds between them; return their names."""
        fed = []
        for name in itertools.islice(self._names, count):
            self.put(name, size=size)
            fed.append(name)
            if pause:
                time.sleep(pause)
        return fed

    def put(self, name: str, *, version: int = 1, size: int = 1000) -> Path:
        """Bring in one file, in place of one of that name; return its path."""
        self.fed[name] = content(name, version, size)
        staged = self._staging / name
        staged.write_bytes(self.fed[name])
        return staged.rename(self.folder / name)

    def arrived(self, target: Path) -> bool:
        """Tell whether all that was fed is at the target, whole."""
        return not self.missing(target)

    def missing(self, target: Path) -> list[str]:
        """Give the names of what is not at the target, or not whole."""
        return [name for name, wanted in self.fed.items() if not _holds(target / name, wanted)]


def _holds(path: Path, wanted: bytes) -> bool:
    try:
        return path.read_bytes() == wanted
    except FileNotFoundError:
        return False


# -- messages


@dataclass
class Heard:
    """A message and when it came (monotonic)."""

    message: Message
    at: float

    @property
    def type(self) -> str:
        """The type of the message."""
        return str(self.message.type)

    @property
    def data(self) -> Any:
        """The data of the message."""
        return self.message.data

    @property
    def uid(self) -> str:
        """The file that it is about, empty when there is none."""
        return str(self.data.get("uid", "")) if isinstance(self.data, dict) else ""


class Ear:
    """Hears a publisher, in a thread, from when it is there; it need not be there yet."""

    def __init__(self, port: int, topic: str = "") -> None:
        self.heard: list[Heard] = []
        self.texts: list[str] = []
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        for option, value in ((zmq.RCVHWM, 0), (zmq.LINGER, 0), (zmq.RECONNECT_IVL, 10), (zmq.RECONNECT_IVL_MAX, 10)):
            self._socket.setsockopt(option, value)
        self._socket.setsockopt_string(zmq.SUBSCRIBE, f"pytroll:/{topic}")
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self._socket.connect(f"tcp://{HOST}:{port}")
        self._stopping = threading.Event()
        self.connections = 0
        self._thread = threading.Thread(target=self._run, name=f"ear on {port}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Hear no more."""
        self._stopping.set()
        self._thread.join(5)
        self._socket.disable_monitor()
        self._socket.close(0)
        self._context.destroy(0)

    def of(self, *types: str) -> list[Heard]:
        """Give the messages of these types that were heard."""
        return [one for one in list(self.heard) if one.type in types]

    def about(self, name: str) -> list[Heard]:
        """Give what was heard about one file."""
        return [one for one in list(self.heard) if one.uid == name]

    def receipts(self) -> list[str]:
        """Give the names of the files that were told to be here."""
        return [one.uid for one in self.of("file")]

    def wait_for(self, count: int = 1, *types: str, seconds: float = 20) -> list[Heard]:
        """Wait until so many messages of these types (by default receipts) were heard; give all of them."""
        types = types or ("file",)
        until(lambda: len(self.of(*types)) >= count, seconds, f"{count} messages {types}: {self.texts[-3:]}")
        return self.of(*types)

    def wait_for_receipts(self, wanted: Iterable[str], seconds: float = 30) -> None:
        """Wait until each of these files was told to be here at least once."""
        wanted = set(wanted)
        until(lambda: wanted <= set(self.receipts()), seconds, f"receipts of {len(wanted)} files")

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._monitor, zmq.POLLIN)
        while not self._stopping.is_set():
            ready = dict(poller.poll(50))
            if self._monitor in ready:
                self._monitor.recv_multipart()
                self.connections += 1
            while self._socket in ready and not self._stopping.is_set():
                try:
                    text = self._socket.recv_string(zmq.NOBLOCK)
                except zmq.Again:
                    break
                self.texts.append(text)
                self.heard.append(Heard(Message(rawstr=text), time.monotonic()))


def ask(port: int, subject: str, kind: str, data: object = "", *, seconds: float = 10) -> Message:
    """Ask a server as an older client does, through one REQ socket; return the answer."""
    return Message(rawstr=ask_frames(port, str(Message(subject, kind, data)).encode(), seconds=seconds))


def ask_frames(port: int, *frames: bytes, seconds: float = 10) -> str:
    """Send any frames through a REQ socket; return the text of the answer, which has one frame."""
    context = zmq.Context()
    try:
        with context.socket(zmq.REQ) as peer:
            peer.setsockopt(zmq.LINGER, 0)
            peer.connect(f"tcp://{HOST}:{port}")
            peer.send_multipart(frames)
            assert peer.poll(int(seconds * 1000)), f"no answer to {frames!r:.200}"
            (answer,) = peer.recv_multipart()
            return str(answer.decode())
    finally:
        context.destroy(0)


# -- processes


def ini(sections: Sections) -> str:
    """Give the text of a configuration file."""
    lines = []
    for name, options in sections.items():
        lines += [f"[{name}]", *(f"{option} = {value}" for option, value in options.items()), ""]
    return "\n".join(lines)


def script(name: str) -> str:
    """Give the path of one of our commands: that of the checkout, else the installed one."""
    here = REPOSITORY / "bin" / name
    return str(here) if here.exists() else str(Path(sys.executable).with_name(name))


@dataclass
class Process:
    """A daemon in a process of its own, which can be started again and again; its lines go to ``log``."""

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
                [*_dies_with_us(), *self.command],
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

    def lines(self) -> str:
        """Give what it has logged since its last start."""
        with self.log.open("rb") as log:
            log.seek(self._read_from)
            return log.read().decode(errors="replace")

    def wait_for_line(self, part: str, times: int = 1, seconds: float = 20) -> None:
        """Wait until its log says this so often."""
        until(lambda: self.lines().count(part) >= times, seconds, f"{part!r} in the log:\n{self.lines()[-3000:]}")

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self.popen is not None
        self.popen.send_signal(number)

    def kill(self) -> None:
        """End it as a power cut would: no step more."""
        self.send(signal.SIGKILL)
        assert self.popen is not None
        assert self.popen.wait(10) == -signal.SIGKILL

    def terminate(self, seconds: float = 20) -> int:
        """Ask it to end; return its exit status."""
        self.send(signal.SIGTERM)
        assert self.popen is not None
        return self.popen.wait(seconds)

    def runs(self) -> bool:
        """Tell whether it runs."""
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
            self.popen.wait(10)


def _dies_with_us() -> list[str]:
    """Give what stands before a command so that it does not outlive a killed test run."""
    return ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []


def _says_that_it_runs(process: Process) -> bool:
    return " chains, journal " in process.lines()


class Site:
    """A folder, ports, processes and ears of one test; all of them end with the ``with`` block.

    Trees are on a tmpfs where there is one. Logs are in ``logs``, which pytest keeps.
    """

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self._ending = ExitStack()
        self._numbers = itertools.count(1)
        shared_memory = Path("/dev/shm")
        on = shared_memory if os.access(shared_memory, os.W_OK) else logs
        self.root = Path(tempfile.mkdtemp(prefix="trollmoves-test-", dir=on))
        self._ending.callback(shutil.rmtree, self.root, ignore_errors=True)

    def __enter__(self) -> Site:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.close()

    def port(self) -> int:
        """Give a port that stays ours to the end: nobody is given it for another purpose between two starts.

        The socket that holds it never listens, so another one may, as long as both allow that the address is reused.
        """
        holder = self._ending.enter_context(socket.socket())
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("", 0))
        return int(holder.getsockname()[1])

    def folder(self, name: str) -> Path:
        """Make a folder."""
        folder = self.root / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def feeder(self, name: str = "in") -> Feeder:
        """Give a feeder of a folder."""
        return Feeder(self.folder(name))

    def ear(self, port: int, topic: str = "") -> Ear:
        """Give an ear on a publisher."""
        ear = Ear(port, topic)
        self._ending.callback(ear.stop)
        return ear

    @property
    def environment(self) -> dict[str, str]:
        """The environment of our daemons: their state is in this site's folder."""
        kept = {key: value for key, value in os.environ.items() if key != "STATE_DIRECTORY"}
        home = self.folder("home")
        paths = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
        return kept | {"XDG_STATE_HOME": str(self.root / "state"), "HOME": str(home), "PYTHONPATH": paths}

    def config(self, sections: Sections | str, name: str = "") -> Path:
        """Write a configuration file."""
        path = self.folder("etc") / (name or f"{next(self._numbers)}.ini")
        path.write_text(sections if isinstance(sections, str) else ini(sections))
        return path

    def process(
        self,
        name: str,
        command: Sequence[str],
        config: Path,
        ready: Callable[[Process], bool] = _says_that_it_runs,
        environment: Mapping[str, str] | None = None,
    ) -> Process:
        """Give a process that is not started yet, and that ends with the site."""
        log = self.logs / f"{name}.log"
        process = Process(command, log, environment or self.environment, ready, config)
        self._ending.callback(process.stop)
        return process

    def server(self, sections: Sections, port: int, *arguments: str, name: str = "server") -> Process:
        """Give one of our servers, publishing on ``port``, not started yet."""
        config = self.config(sections, f"{name}.ini")
        command = [sys.executable, script("move_it_server.py"), str(config), "-p", str(port), *arguments]
        return self.process(name, command, config)

    def client(self, sections: Sections, *arguments: str, name: str = "client") -> Process:
        """Give one of our clients, not started yet."""
        config = self.config(sections, f"{name}.ini")
        return self.process(name, [sys.executable, script("move_it_client.py"), str(config), *arguments], config)

    def run(self, command: str, *arguments: str | Path, seconds: float = 30) -> subprocess.CompletedProcess[str]:
        """Run one of our commands to its end."""
        return subprocess.run(
            [*_dies_with_us(), sys.executable, script(command), *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            env=self.environment,
            check=False,
        )


def server_section(origin: Path, request_port: int, **options: object) -> dict[str, object]:
    """Give a server's section that announces the segments in a folder."""
    return {
        "origin": f"{origin}/{PATTERN}",
        "topic": TOPIC,
        "request_port": request_port,
        "request_address": HOST,
        **options,
    }


def client_section(
    servers: int | Sequence[int], destination: object, publish_port: int, **options: object
) -> dict[str, object]:
    """Give a client's section that hears servers on this host by their publish ports."""
    ports = [servers] if isinstance(servers, int) else servers
    return {
        "providers": " ".join(f"{HOST}:{port}" for port in ports),
        "destination": destination,
        "topic": TOPIC,
        "publish_port": publish_port,
        "nameservers": "False",
        **options,
    }


class Pair:
    """The usual arrangement: one server, one client, and an ear on each; nothing is started yet."""

    def __init__(self, site: Site, server: Mapping[str, object] | None = None, **client: object) -> None:
        self.feeder = site.feeder()
        self.target = site.folder("out")
        self.publish_port, self.request_port, self.client_port = site.port(), site.port(), site.port()
        self.server_sections = {"hrit": server_section(self.feeder.folder, self.request_port, **(server or {}))}
        self.client_sections = {"hrit": client_section(self.publish_port, self.target, self.client_port, **client)}
        self.server = site.server(self.server_sections, self.publish_port)
        self.client = site.client(self.client_sections)
        self.announced = site.ear(self.publish_port)
        self.received = site.ear(self.client_port)

    def start(self) -> Pair:
        """Start both."""
        self.server.start(wait=False)
        self.client.start()
        self.server.wait_until_ready()
        return self

    def wait_until_done(self, seconds: float = 30) -> None:
        """Wait until all that was fed is at the target, whole, and told of."""
        self.received.wait_for_receipts(self.feeder.fed, seconds)
        assert self.feeder.missing(self.target) == []
