"""A server in a separate process, which is ended by its process id."""

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

from trollmoves.tests.helpers.waiting import TIMEOUT_FACTOR, until

HOST = "127.0.0.1"
PROXY_HOST = "127.0.0.2"
"""The proxy has an address of its own with the same ports, so that a protocol may name its ports (as FTP does)."""
LOWEST, HIGHEST = 12000, 32000
CLAIMS = 200  # each holds one socket per port


def free_port() -> int:
    """Return an unused loopback port."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Return consecutive unused loopback ports that no other process of a test run receives.

    They are below the kernel's range for outgoing connections, so such a connection cannot take one of them.
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
    """Return the claims of this process, the oldest first."""
    return deque()


def _is_claimed(claims: ExitStack, port: int) -> bool:
    """Claim a port through an abstract socket name, which the kernel releases when the process ends."""
    name = claims.enter_context(socket.socket(socket.AF_UNIX))
    try:
        name.bind(f"\0trollmoves-tests-port-{port}")
    except OSError:
        return False
    return True


def _is_free(host: str, port: int) -> bool:
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a closing connection does not count
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def answers(port: int) -> bool:
    """Return True if a server listens on the loopback ``port``."""
    with closing(socket.socket()) as probe:
        probe.settimeout(1)
        return probe.connect_ex((HOST, port)) == 0


class ServerProcess:
    """One server; a ``with`` block starts it and ends it with all its children.

    Args:
        port: listening port, on loopback.
        command: program and arguments; it stays in the foreground.
        log: file for the output of the process.
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

    def __exit__(self, *_: object) -> None:
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
        """Kill the process and its children; a second call does nothing."""
        if self.process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10 * TIMEOUT_FACTOR)
        self.process = None

    def pause(self) -> None:
        """Suspend the process, so that it stops responding."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGCONT)
