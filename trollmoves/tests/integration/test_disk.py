"""Full, read-only and unreadable disks delay files but lose none, and log little."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trollmoves.tests.helpers.daemons import Process, ServerClientPair, Testbed
from trollmoves.tests.helpers.dispatching import TOPIC, DispatcherTestbed
from trollmoves.tests.helpers.waiting import until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="missing: root")


def mount(testbed: Testbed, folder: Path, *options: str) -> Path:
    """Mount a small disk in memory until the test ends; skip where that is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    command: list[str | Path] = ["mount", "-t", "tmpfs", "-o", ",".join(options), "none", folder]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("missing: the right to mount")
    testbed.call_at_end(lambda: subprocess.run(["umount", "--lazy", folder], check=True))
    return folder


def remount(folder: Path, options: str) -> None:
    """Remount a disk with other options."""
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


def fill(folder: Path, leave: int = 0) -> Path:
    """Take all room of a disk but some bytes; give the file that has it."""
    ballast = folder / "ballast"
    with ballast.open("ab", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
        file.truncate(max(0, file.tell() - leave))
    return ballast


def use_up_names(folder: Path) -> Callable[[], None]:
    """Create files until no more can be created; return a function that removes them."""
    made: list[Path] = []
    try:
        while True:
            made.append(folder / f"name {len(made)}")
            made[-1].touch()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise

    def remove() -> None:
        for path in made:
            path.unlink(missing_ok=True)

    return remove


def calm(process: Process, most: int = 8) -> None:
    """Check that a daemon runs, and has logged few lines about the error, without a traceback.

    An undelivered file is logged once by each process that requested it.
    """
    assert process.is_running()
    lines = process.lines().splitlines()
    trouble = [line for line in lines if line.startswith(("[WARNING", "[ERROR")) and "not delivered" not in line]
    assert "Traceback" not in process.lines()
    assert len(trouble) <= most, "\n".join(trouble)


@contextmanager
def pair_on(tmp_path: Path, role: str, *options: str) -> Iterator[tuple[Testbed, ServerClientPair, Path]]:
    """Return a pair of which one has its journal on a small disk."""
    with Testbed(tmp_path) as testbed:
        pair = ServerClientPair(testbed)
        disk = mount(testbed, testbed.root / "disk", *options)
        sections = getattr(pair, f"{role}_sections")
        getattr(pair, role).reconfigure({"DEFAULT": {"journal": disk / "a.journal"}, **sections})
        yield testbed, pair, disk


# -- the journal's disk


@pytest.mark.parametrize("role", ["server", "client"])
def test_journal_disk_is_full(tmp_path: Path, role: str) -> None:
    """While the journal's disk is full, no file is lost or processed unrecorded; afterwards work continues."""
    with pair_on(tmp_path, role, "size=24m") as (_, pair, disk):
        pair.start()
        process = getattr(pair, role)
        pair.feeder.feed(5)
        pair.wait_until_done()
        ballast = fill(disk)
        process.mark_log()
        fed = pair.feeder.feed(200)
        process.wait_for_line("full")
        last = fed[-1]
        assert last not in pair.received.receipts()
        calm(process)
        ballast.unlink()
        pair.wait_until_done(60)
        calm(process)
        assert process.terminate() == 0


def test_the_disk_of_the_journal_is_full_at_the_start(tmp_path: Path) -> None:
    """A daemon that finds no room for its journal says so once, waits, and begins when there is some."""
    with pair_on(tmp_path, "server", "size=1m") as (_, pair, disk):
        ballast = fill(disk)
        pair.client.start(wait=False)
        pair.server.start(wait=False)
        pair.server.wait_for_line("waiting for free space")
        pair.feeder.feed(5)
        calm(pair.server, 1)
        ballast.unlink()
        pair.wait_until_done(60)


def test_a_daemon_that_waits_for_room_can_be_stopped(tmp_path: Path) -> None:
    """While it waits for room, a daemon obeys SIGTERM."""
    with pair_on(tmp_path, "server", "size=1m") as (_, pair, disk):
        fill(disk)
        pair.server.start(wait=False)
        pair.server.wait_for_line("waiting for free space")
        assert pair.server.terminate() == 0


# -- the target's disk


def test_target_is_full(tmp_path: Path) -> None:
    """On a full target no file is incomplete and few lines are logged; with free space all files arrive."""
    with Testbed(tmp_path) as testbed:
        pair = ServerClientPair(testbed)
        mount(testbed, pair.target, "size=1m")
        pair.start()
        pair.feeder.feed(3)
        pair.wait_until_done()
        ballast = fill(pair.target, leave=4096)
        fed = pair.feeder.feed(5, size=20_000)
        pair.client.wait_for_line("not delivered")
        assert not {path.name for path in pair.target.iterdir()} & set(fed)
        calm(pair.server)
        calm(pair.client)
        ballast.unlink()
        pair.wait_until_done(60)
        assert {path.name for path in pair.target.iterdir()} == set(pair.feeder.fed)


def test_the_target_takes_no_more_names(tmp_path: Path) -> None:
    """The same when the target has room but no inodes."""
    with Testbed(tmp_path) as testbed:
        pair = ServerClientPair(testbed)
        mount(testbed, pair.target, "size=4m", "nr_inodes=40")
        pair.start()
        pair.feeder.feed(3)
        pair.wait_until_done()
        remove = use_up_names(pair.target)
        pair.feeder.feed(5)
        pair.client.wait_for_line("not delivered")
        calm(pair.server)
        remove()
        pair.wait_until_done(60)


def test_target_is_read_only(tmp_path: Path) -> None:
    """A read-only target is logged with its path; later files arrive when it is writable again."""
    with Testbed(tmp_path) as testbed:
        pair = ServerClientPair(testbed)
        mount(testbed, pair.target, "size=4m")
        pair.start()
        pair.feeder.feed(3)
        pair.wait_until_done()
        remount(pair.target, "ro")
        pair.feeder.feed(2)
        pair.server.wait_for_line("ead-only")
        calm(pair.server)
        remount(pair.target, "rw")
        pair.wait_until_done(60)


# -- the origin's disk


def heed_modes(process: Process) -> None:
    """Have a daemon stopped by the modes of files, as that of a plain user is, although it is root's."""
    if not shutil.which("setpriv"):
        pytest.skip("missing: setpriv")
    less = ["--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"]
    process.command = ["setpriv", *less, "--", *process.command]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """Files that the server may not read hold up no other to the same place, and arrive once it may."""
    with Testbed(tmp_path) as testbed:
        pair = ServerClientPair(testbed)
        heed_modes(pair.server)
        pair.start()
        pair.client.send(signal.SIGSTOP)
        bad = [pair.feeder.folder / name for name in pair.feeder.feed(6)]
        pair.announced.wait_for(6, "file")
        for path in bad:
            path.chmod(0)
        pair.client.send(signal.SIGCONT)
        enough = 2 * len(bad)  # more failures than pause a lane
        until(lambda: len(pair.received.of_type("push")) >= enough, 60, "the client repeats its requests")
        assert "Permission denied" in pair.client.lines()
        pair.received.wait_for_receipts(pair.feeder.feed(20))
        assert "is unavailable, next attempt" not in pair.client.lines()
        assert "permanently rejected" not in pair.client.lines()
        for path in bad:
            path.chmod(0o644)
        pair.wait_until_done()


def test_a_dispatcher_may_not_read_files(tmp_path: Path) -> None:
    """The same of a dispatcher."""
    with Testbed(tmp_path) as testbed:
        target = {"directory": "OUT", "dispatch_configs": [{"topics": [TOPIC]}]}
        dispatching = DispatcherTestbed(testbed, {"target": target})
        heed_modes(dispatching.process)
        dispatching.start()
        bad = [dispatching.file(f"bad-{n}") for n in range(6)]
        for path in bad:
            path.chmod(0)
            dispatching.publisher.publish_file(path)
        dispatching.process.wait_for_line("Permission denied", 2 * len(bad))
        good = [dispatching.file(f"good-{n}") for n in range(20)]
        for path in good:
            dispatching.publisher.publish_file(path)
        dispatching.wait_for(*(path.name for path in good))
        assert len(dispatching.delivered_files()) == len(good)
        for path in bad:
            path.chmod(0o644)
        dispatching.wait_for(*(path.name for path in bad))
