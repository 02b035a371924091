"""A server in a process of its own: started, waited for, ended by its id."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType

from trollmoves.tests.waiting import until

HOST = "127.0.0.1"


def free_port() -> int:
    """Return a loopback port that nobody listens on now."""
    with closing(socket.socket()) as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def answers(port: int) -> bool:
    """Tell whether somebody listens on the loopback ``port``."""
    with closing(socket.socket()) as probe:
        probe.settimeout(1)
        return probe.connect_ex((HOST, port)) == 0


class ServerProcess:
    """One server; a ``with`` block starts it and ends it with all its children.

    Args:
        port: where it listens, on loopback.
        command: program and arguments, which stays in the foreground.
        log: file that gets what the process prints.
    """

    def __init__(self, port: int, command: Sequence[str], log: Path, environment: dict[str, str] | None = None) -> None:
        self.port = port
        self.command = list(command)
        self.log = log
        self.environment = environment or {}
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ServerProcess:
        """Start."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self.stop()

    def start(self, seconds: float = 30) -> None:
        """Start the process and wait until it listens."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **self.environment},
            )
        process = self.process
        until(lambda: process.poll() is not None or answers(self.port), seconds, f"{self.command[0]} listens")
        if process.poll() is not None:
            raise RuntimeError(f"{self.command[0]} ended: {self.log.read_text(errors='replace')[-2000:]}")

    def stop(self) -> None:
        """End the process and those that it started, at once; a second call does nothing."""
        if self.process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        self.process = None

    def pause(self) -> None:
        """Stop the process without ending it, so that it answers nobody."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGCONT)
