"""Full, read-only and unreadable disks delay files but lose none, and log little."""

from __future__ import annotations

import bz2
import errno
import itertools
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trollmoves.tests.helpers.daemons import (
    MIRROR_TOPIC,
    Process,
    ServerClientPair,
    Testbed,
    client_section,
    mirror_section,
)
from trollmoves.tests.helpers.dispatching import TOPIC, DispatcherTestbed
from trollmoves.tests.helpers.failing_disk import Call, FailingDisk
from trollmoves.tests.helpers.feeding import content
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


def test_journal_disk_of_a_dispatcher_is_full(tmp_path: Path) -> None:
    """While the journal's disk is full, the dispatcher keeps received messages; their files arrive afterwards."""
    with Testbed(tmp_path) as testbed:
        disk = mount(testbed, testbed.root / "disk", "size=24m")
        target = {"directory": "OUT", "dispatch_configs": [{"topics": [TOPIC]}]}
        dispatching = DispatcherTestbed(testbed, {"DEFAULT": {"journal": str(disk / "a.journal")}, "target": target})
        dispatching.start()
        dispatching.publisher.publish_file(dispatching.file("first"))
        dispatching.wait_for("first")
        ballast = fill(disk)
        names = [f"file-{n}" for n in range(200)]
        for name in names:
            dispatching.publisher.publish_file(dispatching.file(name))
        dispatching.process.wait_for_line("full")
        assert names[-1] not in dispatching.delivered_files()
        ballast.unlink()
        dispatching.wait_for(*names, seconds=60)
        calm(dispatching.process)


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


@pytest.mark.parametrize("error", [errno.EDQUOT, errno.EIO])
def test_target_rejects_writes(tmp_path: Path, error: int) -> None:
    """Over a quota, or with I/O errors, no file is incomplete and few lines are logged; later all files arrive."""
    with Testbed(tmp_path) as testbed:
        disk = FailingDisk(testbed, testbed.directory("out"))
        pair = ServerClientPair(testbed)
        pair.start()
        pair.feeder.feed(3)
        pair.wait_until_done()
        disk.fail(Call.WRITE, error)
        fed = pair.feeder.feed(5)
        pair.client.wait_for_line("not delivered")
        assert not {path.name for path in pair.target.iterdir()} & set(fed)
        assert os.strerror(error) in pair.server.lines()
        calm(pair.server)
        calm(pair.client)
        disk.work()
        pair.wait_until_done(60)
        assert {path.name for path in pair.target.iterdir()} == set(pair.feeder.fed)


@pytest.mark.parametrize("role", ["server", "client"])
def test_disk_of_unpacked_files_is_full(tmp_path: Path, role: str) -> None:
    """Packed files for which the disk has no room are logged in few lines, and arrive when there is room."""
    with Testbed(tmp_path) as testbed:
        disk = mount(testbed, testbed.root / "disk", "size=1m")
        if role == "server":
            pair = ServerClientPair(testbed, {"compression": "bzip", "working_directory": disk})
        else:
            pair = ServerClientPair(testbed, destination=disk, compression="bzip")
        pair.server_sections["hrit"]["origin"] = f"{pair.feeder.folder}/{{name}}.bz2"
        pair.server.reconfigure(pair.server_sections)
        pair.start()
        ballast = fill(disk, leave=100_000)
        names = [f"f{n}" for n in range(3)]
        for name in names:
            (pair.feeder.folder / f"{name}.bz2").write_bytes(bz2.compress(bytes(200_000)))
        process = getattr(pair, role)
        process.wait_for_line("No space left")
        assert not pair.received.receipts()
        calm(process)
        ballast.unlink()
        pair.received.wait_for_receipts(names, 60)
        target = pair.target if role == "server" else disk
        assert [(target / name).read_bytes() for name in names] == 3 * [bytes(200_000)]


def test_disk_of_a_mirror_is_full(tmp_path: Path) -> None:
    """A mirror without room for copies fetches them when there is room; its clients get every file."""
    with Testbed(tmp_path) as testbed:
        pair = ServerClientPair(testbed)
        disk = mount(testbed, testbed.root / "disk", "size=1m")
        port, mirror_port = testbed.port(), testbed.port()
        mirror = testbed.mirror({"far": mirror_section(pair.publish_port, disk, testbed.port())}, mirror_port)
        section = client_section(mirror_port, pair.target, port, topic=MIRROR_TOPIC)
        client = testbed.client({"outer": section}, name="outer")
        received = testbed.subscriber(port)
        for process in (pair.server, mirror, client):
            process.start()
        ballast = fill(disk, leave=4096)
        pair.feeder.feed(5, size=20_000)
        mirror.wait_for_line("No space left")
        calm(mirror)
        ballast.unlink()
        received.wait_for_receipts(pair.feeder.fed, 60)
        assert pair.feeder.missing(pair.target) == []


def test_disk_of_the_log_is_full(tmp_path: Path) -> None:
    """A full disk of the log delays no file; afterwards the log says how many lines are missing."""
    with Testbed(tmp_path) as testbed:
        pair = ServerClientPair(testbed)
        disk = mount(testbed, testbed.root / "disk", "size=1m")
        pair.server.command = [*pair.server.command, "-l", str(disk / "server.log")]
        log = disk / "server.log"
        pair.server.ready = lambda _: log.exists() and b", journal " in log.read_bytes()
        pair.start()
        pair.feeder.feed(3)
        pair.wait_until_done()
        ballast = fill(disk)
        pair.feeder.feed(50)
        pair.wait_until_done()
        until(lambda: "lines are dropped and counted" in pair.server.lines(), what="lines are dropped")
        ballast.unlink()
        pair.feeder.feed(3)
        pair.wait_until_done()
        until(lambda: b"log lines dropped: No space left" in log.read_bytes(), what="it is logged")
        assert pair.server.terminate() == 0


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


def test_disk_of_the_origin_has_errors(tmp_path: Path) -> None:
    """Files that cannot be read because of I/O errors arrive when they can be read."""
    with Testbed(tmp_path) as testbed:
        disk = FailingDisk(testbed, testbed.directory("in"))
        pair = ServerClientPair(testbed)
        pair.start()
        disk.fail(Call.READ, errno.EIO)
        for name in itertools.islice(pair.feeder.fresh_names(), 5):
            pair.feeder.fed[name] = content(name)
            (pair.feeder.folder / name).write_bytes(content(name))
        pair.client.wait_for_line("Input/output error")
        assert not pair.received.receipts()
        calm(pair.server)
        disk.work()
        pair.wait_until_done(60)


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
