"""Promises of finding files that appear."""

from __future__ import annotations

import mmap
import os
import select
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from trollmoves.errors import TemporaryTransferError
from trollmoves.matching.patterns import Origin
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.helpers.watching import (
    Child,
    RecordedFiles,
    age,
    move_in,
    open_watches,
    public_directory,
    sentinel,
    watching,
    write,
)
from trollmoves.watch import DirectoryWatch, FoundFile
from trollmoves.watch.completeness import CompletenessChecker, Trigger, is_open_for_writing
from trollmoves.watch.inotify import CREATE, EventQueue, Inotify, events

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Return an empty directory."""
    path = tmp_path / "in"
    path.mkdir()
    return path


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a directory with 50,000 files."""
    path = tmp_path_factory.mktemp("many")
    link_many(path, 50_000)
    yield path
    for entry in os.scandir(path):
        os.unlink(entry)


def link_many(directory: Path, number: int, prefix: str = "f") -> list[str]:
    """Make many files quickly, each as a hard link."""
    paths = [f"{directory}/{prefix}{index}.dat" for index in range(number)]
    for at in range(0, number, 10_000):  # a file has a limited number of names
        write(paths[at])
        for path in paths[at + 1 : at + 10_000]:
            os.link(paths[at], path)
    return paths


def test_file_written_and_closed_is_reported(directory: Path) -> None:
    """A file that was written and closed is reported once, with its fields, size, time and inode."""
    with watching(directory / "{name:3s}-{number:d}.dat") as recorded:
        path = write(directory / "abc-17.dat", "12345")
        recorded.wait_for(path)
        sentinel(recorded, directory / "end-0.dat")
        status = os.stat(path)
        assert recorded.of_path(path) == [
            FoundFile(path, {"name": "abc", "number": 17}, 5, status.st_mtime_ns, status.st_ino, fresh=True)
        ]


def test_file_moved_in_is_reported(directory: Path) -> None:
    """A file that was renamed to its name is reported once."""
    with watching(directory / "{name}.dat") as recorded:
        path = move_in(directory / "a.dat")
        sentinel(recorded, directory / "end.dat")
        assert recorded.paths == [path, str(directory / "end.dat")]


def test_hard_link_is_reported(directory: Path, tmp_path: Path) -> None:
    """A file that is linked into the directory is reported, whether its other name stays or not."""
    with watching(directory / "{name}.dat") as recorded:
        for name in "stays", "goes":
            source = write(tmp_path / name)
            os.link(source, directory / f"{name}.dat")
            if name == "goes":
                os.unlink(source)
        recorded.wait_for(directory / "stays.dat", directory / "goes.dat", seconds=5)
        sentinel(recorded, directory / "end.dat")
        assert sorted(recorded.names) == ["end.dat", "goes.dat", "stays.dat"]


def test_link_to_open_file_waits(directory: Path, tmp_path: Path) -> None:
    """A file that is linked in while it is open for writing is reported when complete, though no event follows."""
    with watching(directory / "{name}.dat") as recorded:
        with open(tmp_path / "source", "w") as source:
            source.write("half")
            source.flush()
            os.link(tmp_path / "source", directory / "a.dat")
            sentinel(recorded, directory / "end.dat")
            assert recorded.names == ["end.dat"]
            source.write(", whole")
        recorded.wait_for(directory / "a.dat")
        assert recorded.of_path(directory / "a.dat")[0].size == 11


def test_file_renamed_while_open_waits(directory: Path) -> None:
    """A file that is renamed while open is reported after it is closed."""
    with watching(directory / "{name}.dat") as recorded:
        with open(directory / ".a", "w") as source:
            source.write("half")
            source.flush()
            os.rename(directory / ".a", directory / "a.dat")
            sentinel(recorded, directory / "end.dat")
            assert recorded.names == ["end.dat"]
            source.write(", whole")
        recorded.wait_for(directory / "a.dat")
        assert recorded.of_path(directory / "a.dat")[0].size == 11


def test_symbolic_link_is_reported_with_its_target(directory: Path, tmp_path: Path) -> None:
    """A symbolic link to a file is reported with the size of its target; other symbolic links are not."""
    target = write(tmp_path / "target", "123456789")
    with watching(directory / "{name}.dat") as recorded:
        (directory / "nowhere.dat").symlink_to(tmp_path / "missing")
        (directory / "directory.dat").symlink_to(tmp_path)
        (directory / "file.dat").symlink_to(target)
        recorded.wait_for(directory / "file.dat")
        sentinel(recorded, directory / "end.dat")
        assert sorted(recorded.names) == ["end.dat", "file.dat"]
        assert recorded.of_path(directory / "file.dat")[0].size == 9
        assert recorded.of_path(directory / "file.dat")[0].inode == os.stat(target).st_ino


def test_file_written_again_is_reported_again(directory: Path) -> None:
    """A file that is rewritten under its name is reported again, with its new size."""
    with watching(directory / "{name}.dat") as recorded:
        for times, content in enumerate(["1", "12", "123"], 1):
            path = write(directory / "a.dat", content) if times < 3 else move_in(directory / "a.dat", content)
            recorded.wait_for(path, times=times)
        assert [file.size for file in recorded.files] == [1, 2, 3]


def test_other_entries_are_ignored(directory: Path) -> None:
    """Hidden files, empty ones, other names, directories, sockets and pipes are not reported."""
    with watching(directory / "{name}.dat") as recorded:
        write(directory / ".hidden.dat")
        write(directory / "empty.dat", "")
        write(directory / "other.txt")
        (directory / "directory.dat").mkdir()
        os.mkfifo(directory / "pipe.dat")
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(str(directory / "socket.dat"))
        sentinel(recorded, directory / "end.dat")
        assert recorded.names == ["end.dat"]
    with watching(directory / "{name}.dat") as recorded:
        recorded.wait_for(directory / "end.dat")
        assert recorded.names == ["end.dat"]


def test_empty_file_is_reported_when_it_is_filled(directory: Path) -> None:
    """An empty file is reported as soon as it has content."""
    path = write(directory / "a.dat", "")
    with watching(directory / "{name}.dat") as recorded:
        write(path)
        recorded.wait_for(path)


def test_names_may_be_anything(directory: Path) -> None:
    """Names with line feeds, invalid UTF-8, spaces, quotes and 240 characters are reported unchanged."""
    names = [b"line\nfeed.dat", b"\xff\xfe\x80.dat", "pâté 'x\" \\.dat".encode(), b"n" * 240 + b".dat", b"-rf.dat"]
    with watching(directory / "{name}.dat") as recorded:
        for name in names:
            with open(os.path.join(os.fsencode(directory), name), "w") as file:
                file.write("x")
        recorded.wait_for(*[os.path.join(directory, os.fsdecode(name)) for name in names])
    with watching(directory / "{name}.dat") as recorded:
        recorded.wait_for(*[os.path.join(directory, os.fsdecode(name)) for name in names])


def test_vanished_file_is_ignored(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Files that are removed immediately do not affect the others."""
    with watching(directory / "{name}.dat") as recorded:
        for index in range(200):
            os.unlink(move_in(directory / f"{index}.dat"))
        sentinel(recorded, directory / "end.dat")
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "WARNING")]


@pytest.mark.alone
def test_file_is_reported_quickly(directory: Path) -> None:
    """On an idle system a file is reported within milliseconds of its appearance."""
    took = []
    came = threading.Event()

    def found(files: list[FoundFile]) -> None:
        took.append(time.monotonic())
        came.set()

    watch = DirectoryWatch(Origin(f"{directory}/{{name}}.dat"), found)
    watch.start()
    try:
        delays = []
        for index in range(40):
            came.clear()
            write(directory / ".partial")
            then = time.monotonic()
            os.rename(directory / ".partial", directory / f"{index}.dat")
            assert came.wait(100)
            delays.append(took[-1] - then)
    finally:
        watch.stop()
    assert statistics.median(delays) < 0.02


# --- the backlog


def test_backlog_is_reported_in_batches(directory: Path) -> None:
    """Files that exist at the start are reported once each, the oldest first, in batches, as not fresh."""
    paths = [write(directory / f"{index}.dat") for index in range(50)]
    for index, path in enumerate(paths):
        age(path, 100 + (index * 7) % 50)
    with watching(directory / "{name}.dat", batch_size=20) as recorded:
        recorded.wait_for(*paths)
        sentinel(recorded, directory / "end.dat")
        assert recorded.paths[:50] == sorted(paths, key=lambda path: os.stat(path).st_mtime)
        assert len(recorded.paths) == 51
        assert max(recorded.batches) <= 20
        assert [file.fresh for file in recorded.files] == [False] * 50 + [True]


def test_backlog_can_be_left_out(directory: Path) -> None:
    """Without backlog existing files are not reported at the start, but new ones are."""
    write(directory / "old.dat")
    with watching(directory / "{name}.dat", backlog=False) as recorded:
        new = write(directory / "new.dat")
        recorded.wait_for(new)
        assert recorded.paths == [new]


def test_files_that_come_during_the_backlog_are_reported_once(directory: Path) -> None:
    """Each file is reported once, whether the listing or an event finds it first."""
    old = link_many(directory, 3000, "old")
    for path in old:
        os.link(path, path + ".x")  # further entries, that do not match
    recorded = RecordedFiles()
    watch = DirectoryWatch(Origin(f"{directory}/{{name}}.dat"), recorded, batch_size=50)
    new = []
    starting = threading.Thread(target=watch.start)
    starting.start()
    try:
        new = [move_in(directory / f"new{index}.dat") for index in range(1000)]
        starting.join()
        recorded.wait_for(*old, *new)
        sentinel(recorded, directory / "end.dat")
        assert len(recorded.paths) == len(set(recorded.paths))
    finally:
        starting.join()
        watch.stop()


def test_new_file_does_not_stand_behind_the_backlog(many: Path) -> None:
    """A file that appears during a long backlog is reported between two batches."""
    new = str(many / "new.dat")
    recorded = RecordedFiles()

    def found(files: list[FoundFile]) -> None:
        if not recorded.files:
            move_in(new)
        recorded(files)

    watch = DirectoryWatch(Origin(f"{many}/{{name}}.dat"), found)
    watch.start()
    try:
        recorded.wait_for(new)
        assert recorded.paths.index(new) < 40_000
    finally:
        watch.stop()


def test_stop_does_not_wait_for_the_backlog(many: Path) -> None:
    """A Watch stops without delay while it lists a large directory."""
    begun = threading.Event()
    before = open_watches()
    recorded = RecordedFiles()

    def found(files: list[FoundFile]) -> None:
        recorded(files)
        begun.set()
        time.sleep(0.0002 * len(files))  # 8 s for most of them

    watch = DirectoryWatch(Origin(f"{many}/{{name}}.dat"), found)
    watch.start()
    assert begun.wait(100)
    watch.stop()
    assert len(recorded.paths) < 40_000
    assert open_watches() == before


def test_backlog_takes_little_memory(many: Path) -> None:
    """A backlog of 50,000 files makes a process grow by less than 25 MB."""
    with Child(many / "{name}.dat", count=50_000) as child:
        until(lambda: "counted" in child.paths, 30, "all files")
        until(lambda: len(child.paths) > child.paths.index("counted") + 1)
        assert int(child.paths[-1].split()[1]) < 25_000


def test_open_file_at_start_is_reported_complete(directory: Path) -> None:
    """A file that is open for writing at the start, however old, is reported only when complete."""
    file = open(directory / "a.dat", "w")  # noqa: SIM115
    file.write("half")
    file.flush()
    age(directory / "a.dat", 100)
    with watching(directory / "{name}.dat") as recorded:
        sentinel(recorded, directory / "end.dat")
        assert recorded.names == ["end.dat"]
        file.write(", whole")
        file.close()
        recorded.wait_for(directory / "a.dat")
        assert [found.size for found in recorded.of_path(directory / "a.dat")] == [11]


@pytest.mark.parametrize("trigger", list(Trigger))
def test_file_is_never_complete_while_it_is_open(
    directory: Path, trigger: Trigger, caplog: pytest.LogCaptureFixture
) -> None:
    """However long a writer pauses, its file is not complete before it is closed; one warning names the file."""
    checker = CompletenessChecker(quiet=0.0, warn_after=0.0, name="hrit")
    with open(directory / "a.dat", "w") as file:
        file.write("half")
        file.flush()
        age(file.name, 100_000)
        for _ in range(5):
            assert not checker.check(file.name, os.stat(file.name), trigger)
        assert len(checker) == 1
    assert checker.check(file.name, os.stat(file.name), trigger)
    assert not len(checker)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith(f"[hrit] {file.name} has been open for writing for ")


def test_number_of_deferred_files_is_limited(directory: Path) -> None:
    """When too many files are deferred, the directory of any further file is returned, to be listed again."""
    checker = CompletenessChecker(limit=2)
    files = [open(directory / f"{number}.dat", "w") for number in range(3)]  # noqa: SIM115
    for file in files:
        file.write("half")
        file.flush()
        assert not checker.check(file.name, os.stat(file.name), Trigger.LISTED)
        file.close()
    assert len(checker) == 2
    assert checker.overflowed_directories() == {str(directory)}
    assert not checker.overflowed_directories()


# --- another user's files: the kernel does not show whether they are open


@pytest.fixture
def public() -> Iterator[Path]:
    """Return a directory that every user can read."""
    with public_directory() as path:
        yield path


def test_open_for_writing_is_detected(directory: Path) -> None:
    """A file that is open for writing is detected, by any name, or mapped."""
    path = write(directory / "a.dat")
    os.link(path, directory / "b.dat")
    with open(path):
        assert is_open_for_writing(path) is False
    with open(directory / "b.dat", "a"):
        assert is_open_for_writing(path) is True
    with open(path, "r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0)
    assert is_open_for_writing(path) is True
    mapped.close()
    assert is_open_for_writing(path) is False


def test_writer_is_not_disturbed_by_the_question(public: Path) -> None:
    """Asking whether a file is open costs a process that opens it again and again neither an error nor its life."""
    path = write(public / "a.dat")
    code = "import sys\nfor _ in range(3000): open(sys.argv[1], 'a').close()"
    writer = subprocess.Popen([sys.executable, "-c", code, path])
    while writer.poll() is None:
        is_open_for_writing(path)
    assert writer.returncode == 0


@ROOT_ONLY
def test_backlog_of_another_user(public: Path) -> None:
    """If open files cannot be detected, old files are reported immediately, and young ones after a delay."""
    path = write(public / "a.dat")
    assert_unknown(path)
    with Child(public / "{name}.dat", user=1) as child:
        child.wait_for(path)
        child.wait_for(move_in(public / "b.dat"), write(public / "c.dat"))
        assert sorted(child.paths) == [path, str(public / "b.dat"), str(public / "c.dat")]


@ROOT_ONLY
def test_quiet_time_of_another_users_file(public: Path) -> None:
    """Where the kernel cannot say whether a file is open, it is complete after the configured time without a change."""
    path = write(public / "a.dat")
    assert_unknown(path)
    with Child(public / "{name}.dat", user=1, quiet=3600) as child:
        child.wait_for(move_in(public / "end.dat"))
        assert child.paths == [str(public / "end.dat")]
    with Child(public / "{name}.dat", user=1, quiet=0) as child:
        child.wait_for(path, public / "end.dat")


@ROOT_ONLY
def test_link_to_a_file_of_another_user(public: Path) -> None:
    """A link to a possibly open file is reported; a file that is being written is not mistaken for one."""
    source = write(public / "source")
    slow = open(public / "slow.dat", "w")  # noqa: SIM115
    with Child(public / "{name}.dat", user=1) as child:
        slow.close()
        slow = open(public / "slow2.dat", "w")  # noqa: SIM115
        slow.write("half")
        slow.flush()
        os.link(source, public / "a.dat")
        child.wait_for(public / "a.dat")
        assert child.paths == [str(public / "a.dat")]
        slow.close()
        child.wait_for(public / "slow2.dat")


def assert_unknown(path: str) -> None:
    """Check that another user cannot learn whether a file is open, so that the test means something."""
    code = "import os, sys; from trollmoves.watch.completeness import is_open_for_writing; os.setresuid(1, 1, 1)"
    code += "; sys.stdout.write(str(is_open_for_writing(sys.argv[1])))"
    top = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True, cwd=top)
    assert done.stdout == "None"


# --- lost events and a failing handler


def test_nothing_is_missed_when_the_kernel_loses_events(directory: Path) -> None:
    """When a stopped process wakes after more events than the kernel keeps, it finds every file."""
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if limit > 50_000:
        pytest.skip(f"the kernel keeps {limit} events here")
    old = write(directory / "old.dat")
    with Child(directory / "{name}.dat") as child:
        child.wait_for(old)
        child.process.send_signal(signal.SIGSTOP)
        files = link_many(directory, limit + 1000)
        child.process.send_signal(signal.SIGCONT)
        child.wait_for(*files)
        child.wait_for(move_in(directory / "end.dat"))
        until(lambda: any("events were lost" in line for line in child.log), what="a warning")
        assert child.paths.count(old) == 1


def test_queue_keeps_no_more_than_its_limit(directory: Path) -> None:
    """The queue in memory is bounded: surplus files are dropped, and the handler is notified."""
    instance = Inotify()
    instance.add(str(directory), CREATE)
    queue = EventQueue(instance, "test", limit=1000)
    queue.start()
    try:
        for index in range(100):
            write(directory / f"{index}", "")
        queue.drain()
        buffers, lost = queue.take(0)
        assert lost
        assert sum(map(len, buffers)) <= 1000
        write(directory / "end", "")
        queue.drain()
        buffers, lost = queue.take(0)
        assert not lost
        assert [name for buffer in buffers for _, _, name in events(buffer)][-1] == "end"
    finally:
        queue.stop()
        instance.close()


def test_queue_is_filled_while_its_reader_works(directory: Path) -> None:
    """Events are moved from the kernel while the caller of ``take`` works, and returned at once while it waits."""
    instance = Inotify()
    instance.add(str(directory), CREATE)
    queue = EventQueue(instance, "test")
    queue.start()
    poll = select.poll()
    poll.register(instance.fd, select.POLLIN)
    found: list[str] = []

    def take(timeout: float) -> None:
        found.extend(name for buffer in queue.take(timeout)[0] for _, _, name in events(buffer))

    try:
        write(directory / "1", "")
        until(lambda: not poll.poll(0), what="the kernel's queue is empty")
        take(0)
        assert found == ["1"]
        taking = threading.Thread(target=take, args=(60,))
        taking.start()
        write(directory / "2", "")
        taking.join(30)
        assert found == ["1", "2"]
    finally:
        queue.stop()
        instance.close()


class Failing(RecordedFiles):
    """Takes no files until it is allowed to."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error
        self.calls = 0
        self.fails = 2
        self.poison = ""

    def __call__(self, files: list[FoundFile]) -> None:
        """Raise, or record the files."""
        self.calls += 1
        if self.calls <= self.fails or (self.poison and self.poison in [file.path for file in files]):
            raise self.error
        super().__call__(files)


@pytest.mark.parametrize("error", [TemporaryTransferError("not now"), ValueError("a mistake")])
def test_failed_files_are_retried(directory: Path, error: Exception) -> None:
    """Files that the handler failed to process are passed again, and new files are not lost."""
    failing = Failing(error)
    watch = DirectoryWatch(Origin(f"{directory}/{{name}}.dat"), failing)
    watch.start()
    try:
        first = move_in(directory / "0.dat")
        until(lambda: failing.calls)
        failing.wait_for(first, *[move_in(directory / f"{index}.dat") for index in range(1, 500)])
        assert len(failing.paths) == 500
    finally:
        watch.stop()


def test_temporary_errors_are_retried_without_limit(directory: Path) -> None:
    """After a temporary error a batch is retried more often than after any other error."""
    failing = Failing(TemporaryTransferError("not now"))
    failing.fails = 5
    watch = DirectoryWatch(Origin(f"{directory}/{{name}}.dat"), failing)
    watch.start()
    try:
        failing.wait_for(move_in(directory / "a.dat"))
        assert failing.calls == 6
    finally:
        watch.stop()


def test_one_bad_file_costs_no_other(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that the handler always rejects is logged and set aside; the others of its batch are delivered."""
    aside: list[tuple[str, str]] = []
    files = [write(directory / f"{index}.dat") for index in range(5)]
    failing = Failing(ValueError("poison"))
    failing.fails, failing.poison = 0, files[2]
    watch = DirectoryWatch(
        Origin(f"{directory}/{{name}}.dat"), failing, name="hrit", set_aside=lambda *item: aside.append(item)
    )
    watch.start()
    try:
        failing.wait_for(*files[:2], *files[3:])
        sentinel(failing, directory / "end.dat")
        assert files[2] not in failing.paths
        assert f"[hrit] giving up on {files[2]}" in caplog.text
        assert aside == [(files[2], "ValueError: poison")]
    finally:
        watch.stop()


def test_stop_with_failing_handler(directory: Path) -> None:
    """A DirectoryWatch with a failing handler can be stopped."""
    failing = Failing(TemporaryTransferError("never"))
    failing.fails = 10**9
    watch = DirectoryWatch(Origin(f"{directory}/{{name}}.dat"), failing)
    watch.start()
    move_in(directory / "a.dat")
    until(lambda: failing.calls > 3)
    then = time.monotonic()
    watch.stop()
    assert time.monotonic() - then < 30


def test_nothing_is_left_after_stop(directory: Path) -> None:
    """After a stop no thread and no descriptor is left; stopping again, or before the start, does nothing."""
    before = open_watches()
    for options in {}, {"polling": 0.05}, {"backlog": False}:
        with watching(directory / "{name}.dat", **options) as recorded:
            sentinel(recorded, directory / f"{len(options)}.dat")
    watch = DirectoryWatch(Origin(f"{directory}/{{name}}.dat"), RecordedFiles())
    watch.stop()
    watch.start()
    watch.stop()
    assert open_watches() == before


def test_taker_may_stop_the_watch(directory: Path) -> None:
    """A DirectoryWatch can be stopped from within its callback."""
    before = open_watches()
    watch = DirectoryWatch(Origin(f"{directory}/{{name}}.dat"), lambda files: watch.stop())
    watch.start()
    assert open_watches() != before
    move_in(directory / "a.dat")
    until(lambda: open_watches() == before, what="no thread left")
    watch.stop()


def test_import_gives_no_warning() -> None:
    """Importing the daemons shows no deprecation warning of a standard library module."""
    top = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:pyinotify", "-c", "import trollmoves.watch"],
        capture_output=True,
        text=True,
        check=False,
        cwd=top,
    )
    assert (done.returncode, done.stderr) == (0, "")
