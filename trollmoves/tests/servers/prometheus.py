"""Prometheus from Debian, with its rules."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.request
from http import HTTPStatus
from pathlib import Path
from typing import Any

from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers.process import HOST, ServerProcess, free_port

PROMETHEUS = shutil.which("prometheus") or "/usr/bin/prometheus"
PROMTOOL = shutil.which("promtool") or "/usr/bin/promtool"


def missing() -> str:
    """Return why Prometheus cannot run, empty when it can."""
    present = all(os.access(program, os.X_OK) for program in (PROMETHEUS, PROMTOOL))
    return "" if present else "no prometheus (Debian: prometheus)"


def promtool(*arguments: str | Path) -> str:
    """Run promtool; return its output, and fail if it finds an error."""
    command = [PROMTOOL, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


class Prometheus(ServerProcess):
    """A Prometheus with the configuration file ``prometheus.yml`` in a folder."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        command = [
            PROMETHEUS,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={HOST}:{port}",
        ]
        super().__init__(port, command, folder / "prometheus.log")

    def start(self, seconds: float = 30) -> None:
        """Start the process and wait until it is ready: it listens before, and rejects requests."""
        super().start(seconds)
        until(self._is_ready, seconds, "Prometheus is ready")

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{HOST}:{self.port}/-/ready", timeout=20) as reply:
                return bool(reply.status == HTTPStatus.OK)
        except OSError:
            return False

    def get(self, path: str) -> Any:
        """Return the data of a reply of its API."""
        with urllib.request.urlopen(f"http://{HOST}:{self.port}/api/v1/{path}", timeout=20) as reply:
            return json.load(reply)["data"]

    def healthy_targets(self) -> int:
        """Return the number of targets that it scrapes successfully."""
        return sum(target["health"] == "up" for target in self.get("targets")["activeTargets"])

    def firing(self, name: str) -> list[dict[str, str]]:
        """Return the labels of the alerts of this name that fire."""
        alerts = self.get("alerts")["alerts"]
        return [a["labels"] for a in alerts if a["state"] == "firing" and a["labels"]["alertname"] == name]
