"""The complete arrangement: two servers, a mirror, two clients and a dispatcher, each of which is killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from trollmoves.tests.helpers import legacy_peer as earlier
from trollmoves.tests.helpers.daemons import REPOSITORY
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers import openssh, pyftpd, seaweed

STORY = REPOSITORY / "examples" / "end-to-end" / "scenario.py"
FILES = 200
IN_HAND = 20  # files that a daemon may be working on when it is killed
MARK = "TROLLMOVES_STORY"  # in the environment of all processes of one run

needs_all = pytest.mark.skipif(
    bool(pyftpd.missing() or openssh.missing() or seaweed.missing()),
    reason=f"missing: {pyftpd.missing() or openssh.missing() or seaweed.missing()}",
)


@contextmanager
def story(keep: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run the story, and check that it leaves no process and no file."""
    mark = str(uuid.uuid4())
    command = [sys.executable, str(STORY), "--keep", str(keep), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, MARK: mark})
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=30)
    assert list(running(mark)) == []
    journal = re.search(r", journal (.*)/mirror.journal", (keep / "mirror.log").read_text())
    assert journal
    assert not Path(journal[1]).exists()


def running(mark: str) -> Iterator[bytes]:
    """Return the command lines of the processes of a run."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it belongs to another user, or has ended
            if f"{MARK}={mark}".encode() in (process / "environ").read_bytes():
                yield (process / "cmdline").read_bytes()


def table(text: str) -> dict[str, dict[str, int]]:
    """Return the rows of the table: numbers by destination, and the name of their column."""
    columns = ("expected", "complete", "lost", "delivered again", "receipts", "again")
    rows = re.findall(r"^(client [ab]|file|ftp|sftp|s3) +(\d[\d ]*)$", text, re.MULTILINE)
    return {end: dict(zip(columns, map(int, numbers.split()), strict=True)) for end, numbers in rows}


@pytest.mark.slow
@pytest.mark.timeout(400)
@needs_all
@pytest.mark.parametrize("old", [False, True], ids=["ours", "with 0.19.0"])
def test_end_to_end_story(tmp_path: Path, old: bool) -> None:
    """All files are complete at every destination although each daemon is killed; only files in flight come twice."""
    arguments = ["--files", str(FILES)]
    if old:
        interpreter = earlier.python()
        if isinstance(interpreter, earlier.PeerUnavailable):
            pytest.skip(f"missing: {interpreter}")
        arguments += ["--earlier", str(interpreter.parent)]
    with story(tmp_path, *arguments) as process:
        text, _ = process.communicate(timeout=380)
    assert process.returncode == 0, text
    ends = table(text)
    assert list(ends) == ["client a", "client b", "file", "ftp", "sftp", "s3"], text
    for end, row in ends.items():
        behind_the_old_one = old and end in ("client b", "sftp", "s3")
        assert row["lost"] == 0, text
        assert row["expected"] == FILES or behind_the_old_one, text
        assert row["delivered again"] <= IN_HAND, text
        received_before_the_kill = end in ("file", "sftp", "s3") or behind_the_old_one
        assert row["receipts"] >= row["expected"] - (IN_HAND if received_before_the_kill else 0), text
    assert ends["ftp"]["delivered again"] == 0, text  # although client a published some twice
    logs = {log.stem: log.read_text() for log in tmp_path.glob("*.log")}
    ours = [name for name in logs if not (old and name in ("server-b", "client-b"))]
    assert [name for name in ours if "Traceback" in logs[name]] == []


def test_interrupted(tmp_path: Path) -> None:
    """Ctrl-C ends the story without leftovers."""
    with story(tmp_path) as process:
        until(
            lambda: (tmp_path / "mirror.log").exists() and ", journal " in (tmp_path / "mirror.log").read_text(),
            60,
        )
        process.send_signal(signal.SIGINT)
        text, _ = process.communicate(timeout=60)
    assert (process.returncode, text.splitlines()[-1]) == (130, "interrupted: ending the processes, removing the files")
