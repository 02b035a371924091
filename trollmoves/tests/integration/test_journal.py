"""The journal keeps its content when the process is killed or the disk fails."""

from __future__ import annotations

import os
import socket
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from trollmoves.errors import JournalError
from trollmoves.journal import (
    DONE,
    UNFLUSHED_SECONDS,
    WAITING,
    Journal,
    Outcome,
    journal_path,
    network_warning,
    open_journal,
    place_journal,
)
from trollmoves.tests.helpers.journals import (
    LATER,
    task,
)

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="missing: root")


@pytest.fixture
def path() -> Iterator[str]:
    """Return the path of a journal that is not there yet, in memory where that can be."""
    with TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        yield os.path.join(folder, "state", "a.journal")


@pytest.fixture
def journal(path: str) -> Iterator[Journal]:
    """Return an open journal."""
    journal = open_journal(path)
    yield journal
    journal.close()


# -- the file


def test_only_the_owner_may_read(path: str, caplog: pytest.LogCaptureFixture) -> None:
    """The files of the journal are readable and writable by their owner alone, since requests hold passwords."""
    old = os.umask(0)
    try:
        journal = open_journal(path)
        journal.add_tasks([task("a")])
        files = [os.path.join(os.path.dirname(path), name) for name in os.listdir(os.path.dirname(path))]
        assert len(files) >= 3
        assert {stat.S_IMODE(os.stat(file).st_mode) for file in files} == {0o600}
        assert "had the permissions" not in caplog.text
        journal.close()
    finally:
        os.umask(old)


def test_the_identity_stays(path: str) -> None:
    """A journal keeps its identity, and another one has another."""
    journal = open_journal(path)
    identity = journal.identity
    journal.close()
    journal = open_journal(path)
    assert journal.identity == identity
    journal.close()
    other = open_journal(path + "2")
    assert other.identity != identity
    other.close()


def test_a_journal_is_one_process_own(path: str) -> None:
    """A second process on a journal gets an error that names the file, until the first one ends, even by kill -9."""
    code = "import sys, time; from trollmoves.journal import open_journal; j = open_journal(sys.argv[1]); "
    code += "print(1, flush=True); time.sleep(99)"
    with subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"1\n"
        with pytest.raises(JournalError, match="in use by another process") as refusal:
            open_journal(path)
        assert path in str(refusal.value)
        first.kill()
    open_journal(path).close()


def test_a_journal_can_be_closed_twice(path: str) -> None:
    """Closing again does nothing, and whatever is asked of a closed journal is a JournalError."""
    journal = open_journal(path)
    journal.close()
    journal.close()
    with pytest.raises(JournalError):
        journal.add_tasks([task("a")])
    with pytest.raises(JournalError):
        journal.claim("chain", "lane", 1, LATER)


def test_a_path_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal may be given as a bare file name."""
    monkeypatch.chdir(tmp_path)
    open_journal("bare.journal").close()
    assert (tmp_path / "bare.journal").exists()


def test_no_place_for_the_journal(tmp_path: Path) -> None:
    """Where no directory can be made, the error says what to set."""
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="set 'journal' in") as refusal:
        open_journal(str(tmp_path / "file" / "a.journal"))
    assert str(tmp_path / "file" / "a.journal") in str(refusal.value)
    assert "\n" not in str(refusal.value)


@contextmanager
def mounted(target: Path, *options: str) -> Iterator[None]:
    """Mount something as long as the test needs it; skip where that is not allowed."""
    if subprocess.run(["mount", *options, target], capture_output=True, check=False).returncode:
        pytest.skip("missing: the right to mount")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", target], check=True)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Make a directory that cannot be written in, for root neither."""
    if os.geteuid() == 0:
        with mounted(folder, "-o", "ro", "-t", "tmpfs", "none"):
            yield
    else:
        folder.chmod(0o500)
        yield
        folder.chmod(0o700)


def test_a_read_only_directory(tmp_path: Path) -> None:
    """In a directory that cannot be written in, the error names the file and says what to set."""
    with read_only(tmp_path), pytest.raises(JournalError, match=r"a\.journal.*set 'journal' in"):
        open_journal(str(tmp_path / "a.journal"))


@pytest.mark.parametrize("content", [b"this is a text\n" * 100, b"\0" * 5000, os.urandom(5000)])
def test_file_that_is_not_a_database(tmp_path: Path, content: bytes) -> None:
    """A file that is not a database is named, and not changed."""
    path = tmp_path / "a.journal"
    path.write_bytes(content)
    with pytest.raises(JournalError, match=r"a\.journal cannot be used: .*not a database"):
        open_journal(str(path))
    assert path.read_bytes() == content


def test_directory_instead_of_journal(tmp_path: Path) -> None:
    """A directory at the journal's path is named in the error."""
    with pytest.raises(JournalError, match=str(tmp_path)):
        open_journal(str(tmp_path))


def test_the_database_of_another_program(tmp_path: Path) -> None:
    """A database of another program is refused, and nothing is written into it."""
    path = tmp_path / "a.journal"
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE precious (a)")
    db.commit()
    db.close()
    before = path.read_bytes()
    with pytest.raises(JournalError, match="another program"):
        open_journal(str(path))
    assert path.read_bytes() == before


def test_a_failed_start_leaves_nothing_open(tmp_path: Path) -> None:
    """A journal that cannot be opened holds neither a lock nor a descriptor."""
    path = tmp_path / "a.journal"
    path.write_bytes(b"no database at all, whatever you say" * 99)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(JournalError):
            open_journal(str(path))
    assert len(os.listdir("/proc/self/fd")) <= before
    path.unlink()
    open_journal(str(path)).close()


@ROOT_ONLY
def test_a_full_disk(tmp_path: Path) -> None:
    """On a full disk noting is a JournalError that says so and nothing is half there; with room again it works."""
    disk = tmp_path / "disk"
    disk.mkdir()
    with mounted(disk, "-t", "tmpfs", "-o", "size=1m", "none"):
        journal = open_journal(str(disk / "a.journal"))
        ballast = disk / "ballast"
        ballast.write_bytes(b"\0" * 500_000)
        groups = ([task(f"{group} {n}", body="x" * 500) for n in range(20)] for group in range(9999))
        with pytest.raises(JournalError, match=r"a\.journal cannot be written: .*full") as refusal:
            all(map(journal.add_tasks, groups))
        assert refusal.value.temporary
        added = journal.count()["waiting"]
        assert added % 20 == 0
        (one, *_) = journal.claim("chain", "lane", 1, LATER)
        with pytest.raises(JournalError, match="full"):
            journal.finish([Outcome(one, DONE, "x" * 600_000)])
        ballast.unlink()
        journal.add_tasks([task("room again")])
        journal.finish([Outcome(one, DONE, "reply")])
        assert journal.count() == {"waiting": added, "done": 1, "failed": 0}
        journal.close()
        journal = open_journal(str(disk / "a.journal"))
        assert journal.count() == {"waiting": added, "done": 1, "failed": 0}
        journal.close()


def test_synchronous_full(path: str) -> None:
    """A journal can be configured to survive a power cut."""
    journal = open_journal(path, synchronous="full")
    journal.add_tasks([task("a")])
    journal.close()


# -- where it lives


def test_journal_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The configured directory comes before systemd's and the user's; each file and role has a separate journal."""
    for name in ("STATE_DIRECTORY", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/u")
    monkeypatch.chdir(tmp_path)
    assert journal_path("~/j", "/etc/a.ini", "client") == "/home/u/j"
    assert journal_path("j", "/etc/a.ini", "client") == str(tmp_path / "j")
    assert journal_path("", "/etc/a.ini", "client").startswith("/home/u/.local/state/trollmoves/client-a-")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert journal_path("", "/etc/a.ini", "client").startswith("/state/trollmoves/client-a-")
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/t:/var/lib/u")
    assert journal_path("", "/etc/a.ini", "client").startswith("/var/lib/t/client-a-")
    paths = {journal_path("", file, role) for file in ("/etc/a.ini", "/srv/a.ini", "a.ini") for role in ("client", "x")}
    assert len(paths) == 6
    assert journal_path("", "a.ini", "client") == journal_path("", str(tmp_path / "a.ini"), "client")
    assert journal_path("", "a.ini", "client").endswith(f"-{socket.gethostname()}.journal")


def test_unwritable_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without a writable home the journal is in the runtime or temporary directory, with a warning."""
    for name in ("STATE_DIRECTORY", "XDG_STATE_HOME", "RUNTIME_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/proc/nowhere")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    own = tmp_path / f"trollmoves-{os.getuid()}"
    assert os.path.dirname(place_journal("", "a.ini", "client")) == str(own)
    assert own.stat().st_mode & 0o777 == 0o700
    assert "cannot write the state directory /proc/nowhere/.local/state/trollmoves" in caplog.text
    own.chmod(0o777)
    assert place_journal("", "a.ini", "client").startswith("/proc/nowhere")
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "run"))
    assert os.path.dirname(place_journal("", "a.ini", "client")) == str(tmp_path / "run")


@pytest.mark.parametrize(
    ("point", "kind", "warned"), [("/", "ext4", False), ("/home\\040x", "nfs4", True), ("/home", "cifs", False)]
)
def test_network_file_system(tmp_path: Path, point: str, kind: str, warned: bool) -> None:
    """A journal on a network file system causes a warning."""
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"1 0 8:1 / / rw - ext4 /dev/sda rw\n2 1 0:5 / {point} rw shared:1 - {kind} server:/x rw\n")
    warning = network_warning("/home x/state/a.journal", str(mounts))
    assert bool(warning) == warned
    assert not warned or "nfs4 at /home x" in warning


# -- kills


ROUNDS = """
import sys
import time
from trollmoves.journal import open_journal, DONE, AnnouncementRecord, Journal, Outcome, Task
from trollmoves.tests.helpers.journals import append_announcements

journal = open_journal(sys.argv[1])
round = 0
while True:
    noted = journal.add_tasks([Task("chain", "fetch", f"{round} {n}", "lane", "x" * 500) for n in range(10)])
    append_announcements(journal, "chain", [AnnouncementRecord(round + 1, f"/in/{round}", str(round), 1, 1, "message")])
    journal.finish(
        [Outcome(t, DONE, "reply", follow_ups=[Task("chain", "then", t.key, "lane", "")]) for t, _ in noted[:5]]
    )
    print(round, flush=True)
    round += 1
"""


@pytest.mark.parametrize("rounds", [20, 57, 93])
def test_a_kill_leaves_every_transaction_whole(path: str, rounds: int) -> None:
    """Of a process killed while it notes, finishes and announces each transaction is there whole, or not at all."""
    with subprocess.Popen([sys.executable, "-c", ROUNDS, path], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        try:
            for line in child.stdout:
                if int(line) == rounds:
                    break
        finally:
            child.kill()
        recorded = [int(line) for line in child.stdout.read().split(b"\n")[:-1]]
    last_recorded = recorded[-1] if recorded else rounds
    journal = open_journal(path)
    for number in range(last_recorded + 3):
        first = [journal.find("chain", "fetch", f"{number} {n}") for n in range(10)]
        over = [one.state for one in first if one]
        then = [journal.find("chain", "then", f"{number} {n}") is not None for n in range(10)]
        whole = ([DONE] * 5 + [WAITING] * 5, [True] * 5 + [False] * 5)
        if number <= last_recorded:
            assert (over, then) == whole
        else:
            assert (over, then) in (whole, ([WAITING] * 10, [False] * 10), ([], [False] * 10))
    assert journal.last_number("chain") in (last_recorded + 1, last_recorded + 2)
    journal.add_tasks([task("after the kill")])
    journal.close()


KILLED = """
import os, sys, time
from trollmoves.journal import open_journal, DONE, UNFLUSHED_SECONDS, Journal, Outcome, Task
journal = open_journal(sys.argv[1])
print(len(journal.finished_before_kill("chain", ("fetch",), UNFLUSHED_SECONDS)), flush=True)
time.sleep(float(sys.argv[2]))
(task, _), = journal.add_tasks([Task("chain", sys.argv[3], sys.argv[3], "lane", "")])
if task.kind == "fetch":
    journal.finish([Outcome(task, DONE)])
os._exit(0)
"""


OUTLIVING = """
import os, sys, time
from trollmoves.journal import open_journal, DONE, Journal, Outcome, Task
from trollmoves.tests.helpers.journals import append_announcements, latest_versions
journal = open_journal(sys.argv[1], synchronous=sys.argv[2])
for count in range(int(sys.argv[3])):
    (task, _), = journal.add_tasks([Task("chain", "fetch", f"{count}", "lane", "")])
    journal.finish([Outcome(task, DONE)])
    while (wait := journal.mark_alive()) < 60:
        time.sleep(wait)
os._exit(0)
"""


@pytest.mark.parametrize("synchronous", ["normal", "full"])
@pytest.mark.parametrize("count", [1, 3])
def test_idle_before_a_kill(path: str, synchronous: str, count: int) -> None:
    """The time of a kill is known also if the process did nothing for a while; damage to this record is harmless."""
    command = [sys.executable, "-c", OUTLIVING, path, synchronous, str(count)]
    subprocess.run(command, check=True)
    with closing(open_journal(path)) as journal:
        assert journal.finished_before_kill("chain", ("fetch",), UNFLUSHED_SECONDS) == []
    subprocess.run(command, check=True)
    Path(f"{path}.lock").write_text("not a time")
    with closing(open_journal(path)) as journal:
        assert len(journal.finished_before_kill("chain", ("fetch",), UNFLUSHED_SECONDS)) == 1


def test_finished_before_kill(path: str) -> None:
    """Tasks finished just before a kill are known, except those finished half a second earlier."""

    def run(seconds: float, kind: str) -> int:
        command = [sys.executable, "-c", KILLED, path, str(seconds), kind]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert run(0, "fetch") == 0
    assert run(UNFLUSHED_SECONDS + 0.1, "other") == 1
    assert run(0, "other") == 0


def test_seconds_after_kill(path: str) -> None:
    """The time between a kill and the next start is known, also if nothing was done; there is none after a stop."""
    began = time.time()
    with closing(open_journal(path)) as journal:
        assert journal.seconds_after_kill() == 0
    subprocess.run([sys.executable, "-c", KILLED, path, "0", "other"], check=True)
    with closing(open_journal(path)) as journal:
        assert 0 < journal.seconds_after_kill() < time.time() - began
    with closing(open_journal(path)) as journal:
        assert journal.seconds_after_kill() == 0


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", ".lock"])
def test_permissions_of_existing_files_are_corrected(path: str, suffix: str, caplog: pytest.LogCaptureFixture) -> None:
    """Files of a journal that other users could read or write become private, and the log says so."""
    open_journal(path).close()
    with open(path + suffix, "ab"):
        pass
    os.chmod(path + suffix, 0o666)
    journal = open_journal(path)
    try:
        assert not os.path.exists(path + suffix) or stat.S_IMODE(os.stat(path + suffix).st_mode) == 0o600
    finally:
        journal.close()
    assert f"{path}{suffix} had the permissions 0666, changed them to 0600" in caplog.text


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", ".lock"])
@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_links_are_not_followed(path: str, suffix: str, kind: str) -> None:
    """A journal is not opened if one of its files is a symbolic link or a pipe: the target of the link stays."""
    os.makedirs(os.path.dirname(path))
    victim = f"{path}.victim"
    with open(victim, "w") as file:
        file.write("mine")
    if kind == "link":
        os.symlink(victim, path + suffix)
    else:
        os.mkfifo(path + suffix, 0o600)
    with pytest.raises(JournalError, match="journal"):
        open_journal(path)
    with open(victim) as file:
        assert file.read() == "mine"
