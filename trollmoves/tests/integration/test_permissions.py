"""Directories and journals that daemons may not write for a while cause a delay, and no loss."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

from trollmoves.tests.helpers.daemons import (
    Process,
    ServerClientPair,
    Testbed,
    client_section,
    mirror_section,
    server_section,
)
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.integration.test_disk import calm, mount, use_up_names

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="missing: root")


def as_plain_user(command: Sequence[str]) -> list[str]:
    """Return a command that runs with the rights of a plain user, who owns the files of root."""
    if not shutil.which("setpriv"):
        pytest.skip("missing: setpriv")
    return ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--", *command]


def without_privileges(process: Process) -> None:
    """Run a daemon as a plain user."""
    process.command = as_plain_user(process.command)


def run_without_privileges(testbed: Testbed, command: str, *arguments: str | Path) -> str:
    """Run a command with the rights of a plain user until it ends; return its output."""
    words = as_plain_user(testbed.command(command, *arguments))
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=testbed.environment, timeout=60)
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("command", "arguments", "option"),
    [
        ("move_it_server.py", ["-p", "80"], "-p"),
        ("move_it_mirror.py", ["-p", "80"], "-p"),
        ("move_it_client.py", [], "publish_port"),
        ("dispatcher.py", ["-p", "80"], "-p"),
        ("trollmoves", ["-p", "80"], "--port"),
    ],
)
def test_plain_user_gets_reason_and_remedy(testbed: Testbed, command: str, arguments: list[str], option: str) -> None:
    """A port that only root may open, and a file that the user may not read, are errors with their remedy."""
    folder, port = testbed.directory("in"), testbed.port()
    sections: dict[str, dict[str, object]] = {
        "move_it_client.py": client_section(port, folder, 80),
        "move_it_mirror.py": mirror_section(port, folder, testbed.port()),
        "dispatcher.py": {"host": "", "directory": folder, "dispatch_configs__0__topics": "/x"},
    }
    texts = {"hrit": sections.get(command, server_section(folder, port))}
    config = testbed.config({"posttroll_subscriber": {"nameserver": False}, **texts} if "disp" in command else texts)
    words = ["web", str(config), *arguments] if command == "trollmoves" else [str(config), *arguments]
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) > 80:
        text = run_without_privileges(testbed, command, *words)
        assert ":80: Permission denied; a port below 1024 needs root or the capability CAP_NET_BIND_SERVICE" in text
        assert f"{option} to a higher one" in text
    config.chmod(0)
    text = run_without_privileges(testbed, command, *words)
    assert f"{config}: cannot be read: Permission denied; root (uid 0) needs read permission" in text


def test_plain_user_may_not_read_the_origin(testbed: Testbed) -> None:
    """--check and the log of a server name the directory that it may not read, and the permission that it needs."""
    folder = testbed.directory("in")
    server = testbed.server({"hrit": server_section(folder, testbed.port())}, testbed.port())
    without_privileges(server)
    folder.chmod(0)
    reason = "Permission denied; root (uid 0) needs read and search permission"
    checked = run_without_privileges(testbed, "move_it_server.py", server.config, "--check")
    assert f"origin: the directory {folder}/ cannot be read: {reason}" in checked
    server.start()
    server.wait_for_line(f"cannot watch {folder}, trying to list it periodically: {reason}")
    folder.chmod(0o755)
    server.wait_for_line(f"now watching {folder}")


def flag(testbed: Testbed, how: str, *paths: Path) -> None:
    """Set or remove flags of files, as chattr does; they are removed at the end."""
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
    """Files for a directory that is not writable wait, others of the same host do not; chmod ends this."""
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


@pytest.mark.parametrize("is_denied", [True, False], ids=["denied", "busy"])
def test_delivered_files_are_removed_later(testbed: Testbed, is_denied: bool) -> None:
    """Delivered files that cannot be removed are logged in a few lines, and removed when that is possible."""
    pair = ServerClientPair(testbed, {"delete": "true", "remove_delay": 0})
    paths = [pair.feeder.folder / name for name in pair.feeder.feed(5)]
    if is_denied:
        without_privileges(pair.server)
        pair.feeder.folder.chmod(0o555)
    else:
        bind(testbed, *paths)
    pair.start()
    pair.wait_until_done()
    reason = (
        f"held (attempt 1): {os.strerror(errno.EACCES)}" if is_denied else f"(attempt 1): {os.strerror(errno.EBUSY)}"
    )
    pair.server.wait_for_line(reason)
    calm(pair.server)
    assert all(path.exists() for path in paths)
    if is_denied:
        pair.feeder.folder.chmod(0o755)
    else:
        subprocess.run(["umount", *paths], check=True)
    until(lambda: not any(path.exists() for path in paths), 60, "the files are removed")


def bind(testbed: Testbed, *paths: Path) -> None:
    """Make files mount points, which cannot be removed."""
    for path in paths:
        if subprocess.run(["mount", "--bind", path, path], capture_output=True, check=False).returncode:
            pytest.skip("missing: the right to mount")
        unmount = ["umount", "--lazy", str(path)]
        testbed.call_at_end(partial(subprocess.run, unmount, capture_output=True, check=False))


@pytest.mark.parametrize("how", ["i", "a"])
def test_target_is_flagged(testbed: Testbed, how: str) -> None:
    """Files for an immutable or append-only directory, which root may not write, arrive when the flag is removed."""
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
    """While the journal cannot be written, no file is lost or sent without a record; afterwards work continues."""
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
    """A journal in use needs no further inodes."""
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
