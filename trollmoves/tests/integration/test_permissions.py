"""Tests that what daemons may not write, for a while, costs nothing but time."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from trollmoves.tests.helpers.daemons import Process, ServerClientPair, Testbed, client_section
from trollmoves.tests.integration.test_disk import calm, mount, use_up_names

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="missing: root")


def without_privileges(process: Process) -> None:
    """Have a daemon run with the rights of a plain user, that owns what root owns."""
    if not shutil.which("setpriv"):
        pytest.skip("missing: setpriv")
    process.command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--", *process.command]


def flag(testbed: Testbed, how: str, *paths: Path) -> None:
    """Set or remove flags of files, as chattr does; they are gone at the end."""
    if not shutil.which("chattr"):
        pytest.skip("missing: chattr")
    testbed.call_at_end(lambda: subprocess.run(["chattr", "-ia", *paths], capture_output=True, check=False))
    if subprocess.run(["chattr", how, *paths], capture_output=True, check=False).returncode:
        pytest.skip("this file system has no such flags")


def waits(pair: ServerClientPair, count: int) -> None:
    """Add files that cannot be delivered now, and check that few lines are logged."""
    fed = pair.feeder.feed(count)
    pair.client.wait_for_line("not delivered")
    assert not set(fed) & set(pair.received.receipts())
    assert "permanently rejected" not in pair.client.lines()
    calm(pair.server)
    calm(pair.client)


def test_plain_user_may_not_write_to_the_target(testbed: Testbed) -> None:
    """Files for a directory that is not writable wait, others of the same host do not; chmod mends it."""
    pair = ServerClientPair(testbed)
    for process in (pair.server, pair.client):
        without_privileges(process)
    other, port = testbed.directory("other"), testbed.port()
    section = client_section(pair.publish_port, other, port)
    pair.client.reconfigure({**pair.client_sections, "other": section})
    recorded = testbed.subscriber(port)
    pair.start()
    pair.feeder.feed(3)
    pair.wait_until_done()
    pair.target.chmod(0o555)
    waits(pair, 10)
    recorded.wait_for_receipts(pair.feeder.fed)
    pair.target.chmod(0o755)
    pair.wait_until_done(60)
    assert {path.name for path in pair.target.iterdir()} == set(pair.feeder.fed)


@pytest.mark.parametrize("how", ["i", "a"])
def test_target_is_flagged(testbed: Testbed, how: str) -> None:
    """Nor may root write to a directory that is immutable or append-only; all arrives when it is not any more."""
    pair = ServerClientPair(testbed).start()
    pair.feeder.feed(3)
    pair.wait_until_done()
    flag(testbed, f"+{how}", pair.target)
    waits(pair, 5)
    flag(testbed, f"-{how}", pair.target)
    pair.wait_until_done(60)
    assert {path.name for path in pair.target.iterdir()} == set(pair.feeder.fed)


@pytest.mark.parametrize("role", ["server", "client"])
def test_the_journal_may_not_be_written(testbed: Testbed, tmp_path: Path, role: str) -> None:
    """While nothing can be written to the journal, nothing is lost or done unwritten; when it can it goes on."""
    journal = tmp_path / "state" / "a.journal"  # on a disk: files in memory can be written whatever their flags
    pair = ServerClientPair(testbed)
    process = getattr(pair, role)
    process.reconfigure({"DEFAULT": {"journal": journal}, **getattr(pair, f"{role}_sections")})
    pair.start()
    pair.feeder.feed(5)
    pair.wait_until_done()
    parts = [journal, journal.with_name("a.journal-wal")]
    with journal.open("r+b") as file:
        flag(testbed, "+i", *parts)
        first = os.pread(file.fileno(), 1, 0)
        try:
            os.pwrite(file.fileno(), first, 0)
        except PermissionError:
            pass
        else:
            pytest.skip("this file system heeds flags only when a file is opened")
    process.mark_log()
    fed = pair.feeder.feed(20)
    process.wait_for_line("cannot be written")
    assert fed[-1] not in pair.received.receipts()
    calm(process)
    flag(testbed, "-i", *parts)
    pair.wait_until_done(60)
    assert process.terminate() == 0


@pytest.mark.parametrize("role", ["server", "client"])
def test_the_disk_of_the_journal_takes_no_more_names(testbed: Testbed, role: str) -> None:
    """A journal at work needs no more inodes than it has."""
    disk = mount(testbed, testbed.root / "disk", "size=24m", "nr_inodes=40")
    pair = ServerClientPair(testbed)
    process = getattr(pair, role)
    process.reconfigure({"DEFAULT": {"journal": disk / "a.journal"}, **getattr(pair, f"{role}_sections")})
    pair.start()
    pair.feeder.feed(5)
    pair.wait_until_done()
    use_up_names(disk)
    process.mark_log()
    pair.feeder.feed(50)
    pair.wait_until_done()
    calm(process, 0)
    assert process.terminate() == 0
