"""The demo, which is also an example of server and client."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trollmoves.tests.helpers.waiting import until

DEMO = Path(__file__).parents[3] / "examples" / "demo" / "demo.py"


@contextmanager
def demo(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run the demo with its temporary directory in a folder."""
    (folder / "temporary").mkdir()
    command = [sys.executable, str(DEMO), "--keep", str(folder / "kept"), *arguments]
    environment = {**os.environ, "TMPDIR": str(folder / "temporary")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=100)


def processes(folder: Path) -> list[bytes]:
    """Return the command lines of processes that name a folder."""
    lines = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # the process has ended
            lines.append((process / "cmdline").read_bytes())
    return [line for line in lines if os.fsencode(folder) in line]


def test_nothing_is_lost(tmp_path: Path) -> None:
    """The demo delivers every file although its client is killed; the page that its last lines name shows the run."""
    with demo(tmp_path, "--files", "300", "--seconds", "3") as process:
        text, _ = process.communicate(timeout=300)
        assert process.returncode == 0, text
    assert re.search(r"^  delivered +300 ", text, re.MULTILINE), text
    assert re.search(r"^  lost +0$", text, re.MULTILINE), text
    assert "kill -9" in text
    assert re.search(r"^  page +http://127.0.0.1:\d+/", text, re.MULTILINE), text
    status = text.partition("trollmoves status")[2]
    assert "2 daemons" in status, text
    assert all(name in status for name in ("server.ini", "client.ini", "seviri", "viirs")), text
    kept = [f"{role}.{kind}" for role in ("client", "server") for kind in ("ini", "journal", "log")]
    assert sorted(os.listdir(tmp_path / "kept")) == kept
    assert (os.listdir(tmp_path / "temporary"), processes(tmp_path)) == ([], [])
    command, address = re.findall(r"^  start +(.+)\n  page +(.+)$", text, re.MULTILINE)[-1]
    with subprocess.Popen([sys.executable, *command.split()], stdout=subprocess.PIPE) as page:
        try:
            assert page.stdout
            page.stdout.readline()  # "status page at ..."
            with urllib.request.urlopen(f"{address}api/state", timeout=60) as reply:
                daemons = json.load(reply)["daemons"]
        finally:
            page.terminate()
    assert {"server.ini", "client.ini"} == {daemon["name"] for daemon in daemons}
    assert sum(one["total_files"] for daemon in daemons for chain in daemon["chains"] for one in chain["destinations"])


def test_interrupted(tmp_path: Path) -> None:
    """An interrupted demo leaves no process and no file."""
    with demo(tmp_path, "--files", "1000", "--seconds", "100") as process:
        until(lambda: [*(tmp_path / "temporary").glob("*/arrived/*/*/H-*")], 60, "files arrive")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=300)
        assert process.returncode == 130
    assert (os.listdir(tmp_path), os.listdir(tmp_path / "temporary"), processes(tmp_path)) == (["temporary"], [], [])
