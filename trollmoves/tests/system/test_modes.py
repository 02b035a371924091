"""Permissions of created files: writable for the permitted users only."""

from __future__ import annotations

import bz2
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from trollmoves.tests.helpers.daemons import (
    MIRROR_TOPIC,
    Process,
    Testbed,
    client_section,
    mirror_section,
    server_section,
)
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.system.test_options_server import put, tar


def with_umask(process: Process, umask: int, log: Path) -> Process:
    """Run a daemon with a umask and a log file."""
    shell = f'umask {umask:04o}; exec "$@"'
    process.command = ["sh", "-c", shell, "sh", *process.command, "-l", str(log)]
    process.ready = lambda _: log.exists() and ", journal " in log.read_text()
    return process


def modes(*roots: Path) -> Iterator[tuple[Path, int]]:
    """Yield all files below some directories, with their permissions."""
    for root in roots:
        for path in root.rglob("*"):
            with suppress(FileNotFoundError):  # it has been removed
                yield path, stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize("umask", [0, 0o027])
def test_modes(tmp_path: Path, umask: int) -> None:
    """Created files respect the umask and are never world-writable; the journal is private."""
    with Testbed(tmp_path) as testbed:
        (testbed.root / "in").mkdir()
        work, copies, out = (testbed.root / name / "made" for name in ("work", "copies", "out"))
        for folder in (work, copies, out):
            folder.parent.mkdir(mode=0o755)
        port, mirror_port, client_port = testbed.port(), testbed.port(), testbed.port()
        section = {
            **server_section(testbed.root / "in", testbed.port(), compression="bzip", working_directory=work),
            "origin": f"{testbed.root}/in/{{name}}.bz2",
        }
        client = client_section(mirror_port, f"{out}/{{name}}/deep", client_port, compression="tar", topic=MIRROR_TOPIC)
        logs = testbed.directory("logs")
        daemons = [
            testbed.server({"bzip": section}, port),
            testbed.mirror({"m": mirror_section(port, copies, testbed.port())}, mirror_port),
            testbed.client({"tar": client}),
        ]
        for number, daemon in enumerate(daemons):
            with_umask(daemon, umask, logs / f"{number}.log").start()
        subscriber = testbed.subscriber(client_port)
        until(lambda: subscriber.connections)
        put(testbed.root / "in" / "x.tar.bz2", bz2.compress(tar(member=b"content")))
        subscriber.wait_for_receipts(["member"])
        seen = dict(modes(*(folder.parent for folder in (work, copies, out)), testbed.root / "state", logs))
        assert (out / "x.tar" / "deep" / "member") in seen
        assert {path.suffix for path in seen} >= {".log"}
        wrong = {str(path): oct(mode) for path, mode in seen.items() if mode & (0o002 | umask)}
        assert wrong == {}
        journals = {path: mode for path, mode in seen.items() if "state" in path.parts}
        assert journals
        assert all(mode == (0o700 if path.is_dir() else 0o600) for path, mode in journals.items()), journals
