"""A server in a process of its own: started, waited for, ended by its id."""

from __future__ import annotations

import functools
import os
import random
import signal
import socket
import subprocess
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from types import TracebackType

from trollmoves.tests.helpers.waiting import TIMEOUT_FACTOR, until

HOST = "127.0.0.1"
PROXY_HOST = "127.0.0.2"
"""The proxy has an address of its own with the same ports, so that a protocol may name its ports (as FTP does)."""
LOWEST, HIGHEST = 12000, 32000
CLAIMS = 200  # each holds one socket a port


def free_port() -> int:
    """Return a loopback port that nobody uses now."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Return loopback ports in a row that nobody uses now, and that no other process of a test run is given.

    They are below those that the kernel gives to outgoing connections, one of which could have it a moment later.
    """
    while True:
        first = random.randrange(LOWEST, HIGHEST - count)
        ports = list(range(first, first + count))
        with ExitStack() as claims:
            if all(_is_claimed(claims, port) for port in ports) and all(
                _is_free(host, port) for port in ports for host in (HOST, PROXY_HOST)
            ):
                kept = _claims()
                kept.append(claims.pop_all())
                while len(kept) > CLAIMS:
                    kept.popleft().close()
                return ports


@functools.cache
def _claims() -> deque[ExitStack]:
    """Give the claims of this process, the oldest first."""
    return deque()


def _is_claimed(claims: ExitStack, port: int) -> bool:
    """Claim a port by a name that the kernel gives to one socket only, and takes back when the process ends."""
    name = claims.enter_context(socket.socket(socket.AF_UNIX))
    try:
        name.bind(f"\0trollmoves-tests-port-{port}")
    except OSError:
        return False
    return True


def _is_free(host: str, port: int) -> bool:
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a connection that is ending is in nobody's way
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


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
        self.process.wait(10 * TIMEOUT_FACTOR)
        self.process = None

    def pause(self) -> None:
        """Stop the process without ending it, so that it answers nobody."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGCONT)
