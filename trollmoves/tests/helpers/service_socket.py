"""The socket on which a service manager receives the reports of a service, as sd_notify(3) describes it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping
from pathlib import Path

from trollmoves.tests.helpers.daemons import Process, Testbed
from trollmoves.tests.helpers.waiting import until


class ServiceSocket:
    """Receives the reports of one process. ``environment`` has the variables of a service manager."""

    def __init__(self, testbed: Testbed, watchdog: float = 0.0) -> None:
        path = testbed.root / "notify"
        self.environment: Mapping[str, str] = {"NOTIFY_SOCKET": str(path)}
        if watchdog:
            self.environment = {**self.environment, "WATCHDOG_USEC": str(int(watchdog * 1e6))}
        self.reports: list[dict[str, str]] = []
        self._socket = testbed.close_at_end(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        self._socket.bind(str(path))
        threading.Thread(target=self._receive, name="service-socket", daemon=True).start()

    def _receive(self) -> None:
        while True:
            try:
                text = self._socket.recv(65536).decode()
            except OSError:
                return
            self.reports.append(dict(line.split("=", 1) for line in text.splitlines()))

    def values(self, name: str) -> list[str]:
        """Return the reported values of a name."""
        return [report[name] for report in list(self.reports) if name in report]

    def wait_for(self, name: str, count: int = 1, seconds: float = 30) -> str:
        """Wait for the ``count``-th report of a name; return its value."""
        until(lambda: len(self.values(name)) >= count, seconds, f"{count} reports of {name}: {self.reports}")
        return self.values(name)[count - 1]


def add_environment(process: Process, added: Mapping[str, str]) -> None:
    """Start a process with additional variables."""
    process.environment = {**process.environment, **added}


def journal_stream(path: Path) -> dict[str, str]:
    """Return the variable by which a service recognizes a file as the connection to the journal of systemd."""
    path.touch()
    status = path.stat()
    return {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
