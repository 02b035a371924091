"""Starts the daemons of the demo as processes."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]  # runs the daemons of this checkout, not installed ones
HOST = "127.0.0.1"
START_TIMEOUT = 20.0  # s until a daemon listens
STOP_TIMEOUT = 15.0  # s from SIGTERM until a daemon has ended


class NotRunning(Exception):
    """A daemon did not start, or has ended unexpectedly."""


class Process:
    """One process, with its output in NAME.log in a folder; it opens ``ports``."""

    def __init__(self, command: str, folder: Path, name: str, arguments: list[str], ports: list[int]) -> None:
        self.name = name
        self._log, self._output = folder / f"{name}.log", folder / f"{name}.out"
        self._command = [sys.executable, str(CHECKOUT / "bin" / command), *arguments]
        self._ports = ports
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, pause: Callable[[float], None]) -> None:
        """Start the daemon, and call ``pause(seconds)`` until it listens; raise NotRunning if it does not."""
        with self._output.open("ab") as output:
            # In a new session, Ctrl-C reaches the demo only, which then stops its daemons in order.
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment(),
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT
        while not all(map(_listened_on, self._ports)):
            self.check()
            if time.monotonic() > deadline:
                raise NotRunning(f"the {self.name} does not listen after {START_TIMEOUT:.0f} s")
            pause(0.01)

    @property
    def pid(self) -> int:
        """The process id; 0 if it is not running."""
        return self._process.pid if self._process else 0

    def check(self) -> None:
        """Raise NotRunning, with the last lines of output, if the daemon has ended."""
        if self._process is None or self._process.poll() is None:
            return
        output = [path.read_text(errors="replace") for path in (self._log, self._output) if path.exists()]
        last = "".join(output).strip().splitlines()[-5:]
        raise NotRunning("\n".join([f"the {self.name} ended with status {self._process.returncode}:", *last]))

    def kill(self) -> None:
        """Kill the daemon by SIGKILL."""
        if self._process:
            self._process.kill()
            self._process.wait()

    def stop(self) -> int:
        """Stop the daemon by SIGTERM, after a timeout by SIGKILL; return its exit status."""
        if self._process is None:
            return 0
        self._process.terminate()
        try:
            return self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.returncode


def environment() -> dict[str, str]:
    """Return the environment of the processes."""
    return {**os.environ, "PYTHONPATH": str(CHECKOUT)}


def status(*configs: Path) -> list[str]:
    """Return the lines of ``trollmoves status`` about daemons."""
    command = [sys.executable, str(CHECKOUT / "bin" / "trollmoves"), "status", *map(str, configs)]
    columns = str(shutil.get_terminal_size().columns - 2)
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**environment(), "COLUMNS": columns}
    )
    return (done.stdout or done.stderr).splitlines()


def free_ports(count: int) -> list[int]:
    """Return the given number of ports of this host without a listener."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(closing(socket.socket())) for _ in range(count)]
        for one in sockets:
            one.bind((HOST, 0))
        return [one.getsockname()[1] for one in sockets]


def _listened_on(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex((HOST, port)) == 0
