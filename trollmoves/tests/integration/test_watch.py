"""Promises of finding files that appear."""

from __future__ import annotations

import mmap
import os
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
def place(tmp_path: Path) -> Path:
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


def test_file_written_and_closed_is_told_of(place: Path) -> None:
    """A file that was written and closed is told of once, with its fields, size, time and inode."""
    with watching(place / "{name:3s}-{number:d}.dat") as told:
        path = write(place / "abc-17.dat", "12345")
        told.wait_for(path)
        sentinel(told, place / "end-0.dat")
        status = os.stat(path)
        assert told.of_path(path) == [
            FoundFile(path, {"name": "abc", "number": 17}, 5, status.st_mtime_ns, status.st_ino, fresh=True)
        ]


def test_file_moved_in_is_told_of(place: Path) -> None:
    """A file that was renamed to its name is told of once."""
    with watching(place / "{name}.dat") as told:
        path = move_in(place / "a.dat")
        sentinel(told, place / "end.dat")
        assert told.paths == [path, str(place / "end.dat")]


def test_hard_link_is_told_of(place: Path, tmp_path: Path) -> None:
    """A file that is linked into the directory is told of, whether its other name stays or goes."""
    with watching(place / "{name}.dat") as told:
        for name in "stays", "goes":
            source = write(tmp_path / name)
            os.link(source, place / f"{name}.dat")
            if name == "goes":
                os.unlink(source)
        told.wait_for(place / "stays.dat", place / "goes.dat", seconds=5)
        sentinel(told, place / "end.dat")
        assert sorted(told.names) == ["end.dat", "goes.dat", "stays.dat"]


def test_link_to_file_that_is_being_written_waits(place: Path, tmp_path: Path) -> None:
    """A file that is linked in while somebody still writes it is told of when it is whole, though no event says so."""
    with watching(place / "{name}.dat") as told:
        with open(tmp_path / "source", "w") as source:
            source.write("half")
            source.flush()
            os.link(tmp_path / "source", place / "a.dat")
            sentinel(told, place / "end.dat")
            assert told.names == ["end.dat"]
            source.write(", whole")
        told.wait_for(place / "a.dat")
        assert told.of_path(place / "a.dat")[0].size == 11


def test_file_renamed_while_open_waits(place: Path) -> None:
    """A file that gets its name before its writer has closed it is told of when that has happened."""
    with watching(place / "{name}.dat") as told:
        with open(place / ".a", "w") as source:
            source.write("half")
            source.flush()
            os.rename(place / ".a", place / "a.dat")
            sentinel(told, place / "end.dat")
            assert told.names == ["end.dat"]
            source.write(", whole")
        told.wait_for(place / "a.dat")
        assert told.of_path(place / "a.dat")[0].size == 11


def test_symbolic_link_is_told_of_with_its_target(place: Path, tmp_path: Path) -> None:
    """A symbolic link to a file is told of with the size of that file; one that leads nowhere or to no file is not."""
    target = write(tmp_path / "target", "123456789")
    with watching(place / "{name}.dat") as told:
        (place / "nowhere.dat").symlink_to(tmp_path / "missing")
        (place / "directory.dat").symlink_to(tmp_path)
        (place / "file.dat").symlink_to(target)
        told.wait_for(place / "file.dat")
        sentinel(told, place / "end.dat")
        assert sorted(told.names) == ["end.dat", "file.dat"]
        assert told.of_path(place / "file.dat")[0].size == 9
        assert told.of_path(place / "file.dat")[0].inode == os.stat(target).st_ino


def test_file_written_again_is_told_of_again(place: Path) -> None:
    """A file that is written again under its name is told of again, with its new size."""
    with watching(place / "{name}.dat") as told:
        for times, content in enumerate(["1", "12", "123"], 1):
            path = write(place / "a.dat", content) if times < 3 else move_in(place / "a.dat", content)
            told.wait_for(path, times=times)
        assert [file.size for file in told.files] == [1, 2, 3]


def test_what_is_no_whole_visible_file_is_left_alone(place: Path) -> None:
    """Hidden files, empty ones, other names, directories, sockets and pipes are not told of."""
    with watching(place / "{name}.dat") as told:
        write(place / ".hidden.dat")
        write(place / "empty.dat", "")
        write(place / "other.txt")
        (place / "directory.dat").mkdir()
        os.mkfifo(place / "pipe.dat")
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(str(place / "socket.dat"))
        sentinel(told, place / "end.dat")
        assert told.names == ["end.dat"]
    with watching(place / "{name}.dat") as told:
        told.wait_for(place / "end.dat")
        assert told.names == ["end.dat"]


def test_empty_file_is_told_of_when_it_is_filled(place: Path) -> None:
    """A file that was empty is told of as soon as somebody has written to it."""
    path = write(place / "a.dat", "")
    with watching(place / "{name}.dat") as told:
        write(path)
        told.wait_for(path)


def test_names_may_be_anything(place: Path) -> None:
    """Names with line feeds, bytes that are no text, spaces, quotes and 240 characters are told of as they are."""
    names = [b"line\nfeed.dat", b"\xff\xfe\x80.dat", "pâté 'x\" \\.dat".encode(), b"n" * 240 + b".dat", b"-rf.dat"]
    with watching(place / "{name}.dat") as told:
        for name in names:
            with open(os.path.join(os.fsencode(place), name), "w") as file:
                file.write("x")
        told.wait_for(*[os.path.join(place, os.fsdecode(name)) for name in names])
    with watching(place / "{name}.dat") as told:
        told.wait_for(*[os.path.join(place, os.fsdecode(name)) for name in names])


def test_file_that_vanishes_before_its_turn_is_no_error(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Files that are removed at once do not disturb the others."""
    with watching(place / "{name}.dat") as told:
        for index in range(200):
            os.unlink(move_in(place / f"{index}.dat"))
        sentinel(told, place / "end.dat")
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "WARNING")]


@pytest.mark.alone
def test_file_is_told_of_at_once(place: Path) -> None:
    """On an idle system a file is told of within milliseconds of its appearance."""
    took = []
    came = threading.Event()

    def found(files: list[FoundFile]) -> None:
        took.append(time.monotonic())
        came.set()

    watch = DirectoryWatch(Origin(f"{place}/{{name}}.dat"), found)
    watch.start()
    try:
        delays = []
        for index in range(40):
            came.clear()
            write(place / ".partial")
            then = time.monotonic()
            os.rename(place / ".partial", place / f"{index}.dat")
            assert came.wait(100)
            delays.append(took[-1] - then)
    finally:
        watch.stop()
    assert statistics.median(delays) < 0.02


# --- the backlog


def test_backlog_is_told_of_once_oldest_first_in_batches(place: Path) -> None:
    """Files that exist at the start are told of once each, the oldest first, in batches, as not fresh."""
    paths = [write(place / f"{index}.dat") for index in range(50)]
    for index, path in enumerate(paths):
        age(path, 100 + (index * 7) % 50)
    with watching(place / "{name}.dat", batch=20) as told:
        told.wait_for(*paths)
        sentinel(told, place / "end.dat")
        assert told.paths[:50] == sorted(paths, key=lambda path: os.stat(path).st_mtime)
        assert len(told.paths) == 51
        assert max(told.batches) <= 20
        assert [file.fresh for file in told.files] == [False] * 50 + [True]


def test_backlog_can_be_left_out(place: Path) -> None:
    """Without backlog the files that exist at the start are not told of, but those that come are."""
    write(place / "old.dat")
    with watching(place / "{name}.dat", backlog=False) as told:
        new = write(place / "new.dat")
        told.wait_for(new)
        assert told.paths == [new]


def test_files_that_come_during_the_backlog_are_told_of_once(place: Path) -> None:
    """Each file is told of once, whether the listing or an event comes to it first."""
    old = link_many(place, 3000, "old")
    for path in old:
        os.link(path, path + ".x")  # further entries, that do not match
    told = RecordedFiles()
    watch = DirectoryWatch(Origin(f"{place}/{{name}}.dat"), told, batch=50)
    new = []
    starting = threading.Thread(target=watch.start)
    starting.start()
    try:
        new = [move_in(place / f"new{index}.dat") for index in range(1000)]
        starting.join()
        told.wait_for(*old, *new)
        sentinel(told, place / "end.dat")
        assert len(told.paths) == len(set(told.paths))
    finally:
        starting.join()
        watch.stop()


def test_new_file_does_not_stand_behind_the_backlog(many: Path) -> None:
    """A file that appears while a long backlog is told of comes between two of its batches."""
    new = str(many / "new.dat")
    told = RecordedFiles()

    def found(files: list[FoundFile]) -> None:
        if not told.files:
            move_in(new)
        told(files)

    watch = DirectoryWatch(Origin(f"{many}/{{name}}.dat"), found)
    watch.start()
    try:
        told.wait_for(new)
        assert told.paths.index(new) < 40_000
    finally:
        watch.stop()


def test_stop_does_not_wait_for_the_backlog(many: Path) -> None:
    """A Watch can be stopped at once while it lists a large directory."""
    begun = threading.Event()
    before = open_watches()
    told = RecordedFiles()

    def found(files: list[FoundFile]) -> None:
        told(files)
        begun.set()
        time.sleep(0.0002 * len(files))  # 8 s for most of them

    watch = DirectoryWatch(Origin(f"{many}/{{name}}.dat"), found)
    watch.start()
    assert begun.wait(100)
    watch.stop()
    assert len(told.paths) < 40_000
    assert open_watches() == before


def test_backlog_takes_little_memory(many: Path) -> None:
    """A backlog of 50,000 files makes a process grow by less than 25 MB."""
    with Child(many / "{name}.dat", count=50_000) as child:
        until(lambda: "counted" in child.paths, 30, "all files")
        until(lambda: len(child.paths) > child.paths.index("counted") + 1)
        assert int(child.paths[-1].split()[1]) < 25_000


def test_file_that_is_being_written_at_the_start_is_not_told_of_half(place: Path) -> None:
    """Of a file that somebody has open for writing at the start, however old, only the whole is told."""
    file = open(place / "a.dat", "w")  # noqa: SIM115
    file.write("half")
    file.flush()
    age(place / "a.dat", 100)
    with watching(place / "{name}.dat") as told:
        sentinel(told, place / "end.dat")
        assert told.names == ["end.dat"]
        file.write(", whole")
        file.close()
        told.wait_for(place / "a.dat")
        assert [found.size for found in told.of_path(place / "a.dat")] == [11]


@pytest.mark.parametrize("sighting", [Trigger.LISTED, Trigger.CREATED, Trigger.MOVED, Trigger.CLOSED])
def test_file_that_nobody_closes_is_whole_in_the_end(place: Path, sighting: Trigger) -> None:
    """A file that stays open though nobody writes, by a process that has inherited it, is whole after some patience."""
    judge = CompletenessChecker(quiet=0.2, patience=0.4)
    begun = time.monotonic() - 0.02  # files are dated by the last tick of the system's clock
    with open(place / "a.dat", "w") as file:
        file.write("all")
        file.flush()
        assert not judge.check(file.name, os.stat(file.name), sighting)
        until(lambda: judge.check(file.name, os.stat(file.name), sighting))
        assert time.monotonic() - begun >= (0.2 if sighting in (Trigger.MOVED, Trigger.CLOSED) else 0.4)
    assert not len(judge)


def test_few_files_are_put_aside(place: Path) -> None:
    """What finds no room among the files put aside is named by its directory, to be listed again."""
    judge = CompletenessChecker(limit=2)
    files = [open(place / f"{number}.dat", "w") for number in range(3)]  # noqa: SIM115
    for file in files:
        file.write("half")
        file.flush()
        assert not judge.check(file.name, os.stat(file.name), Trigger.LISTED)
        file.close()
    assert len(judge) == 2
    assert judge.overflowed_directories() == {str(place)}
    assert not judge.overflowed_directories()


# --- another user's files: the kernel does not tell whether they are open


@pytest.fixture
def public() -> Iterator[Path]:
    """Return a directory that every user can read."""
    with public_directory() as path:
        yield path


def test_whether_a_file_is_open_for_writing_is_known(place: Path) -> None:
    """The kernel tells exactly whether somebody has a file open for writing, by whatever name, or mapped."""
    path = write(place / "a.dat")
    os.link(path, place / "b.dat")
    with open(path):
        assert is_open_for_writing(path) is False
    with open(place / "b.dat", "a"):
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
def test_backlog_of_another_user_is_told_of_when_it_is_quiet(public: Path) -> None:
    """Where nobody knows whether files are open, old ones are told of at once, and young ones after a while."""
    path = write(public / "a.dat")
    assert_unknown(path)
    with Child(public / "{name}.dat", user=1) as child:
        child.wait_for(path)
        child.wait_for(move_in(public / "b.dat"), write(public / "c.dat"))
        assert sorted(child.paths) == [path, str(public / "b.dat"), str(public / "c.dat")]


@ROOT_ONLY
def test_link_to_a_file_of_another_user_is_told_of_when_it_is_quiet(public: Path) -> None:
    """A link to a file that may be open or not is told of; a file that is being written is not mistaken for one."""
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


# --- events that are lost, and a taker that fails


def test_nothing_is_missed_when_the_kernel_loses_events(place: Path) -> None:
    """When a stopped process wakes after more events than the kernel keeps, it finds every file."""
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if limit > 50_000:
        pytest.skip(f"the kernel keeps {limit} events here")
    old = write(place / "old.dat")
    with Child(place / "{name}.dat") as child:
        child.wait_for(old)
        child.process.send_signal(signal.SIGSTOP)
        files = link_many(place, limit + 1000)
        child.process.send_signal(signal.SIGCONT)
        child.wait_for(*files)
        child.wait_for(move_in(place / "end.dat"))
        until(lambda: any("events were lost" in line for line in child.log), what="a warning")
        assert child.paths.count(old) == 1


def test_queue_keeps_no_more_than_its_limit(place: Path) -> None:
    """What waits in memory is bounded: beyond that it is dropped, and the taker is told so."""
    kernel = Inotify()
    kernel.add(str(place), CREATE)
    queue = EventQueue(kernel, "test", limit=1000)
    queue.start()
    try:
        for index in range(100):
            write(place / f"{index}", "")
        queue.drain()
        buffers, lost = queue.take(0)
        assert lost
        assert sum(map(len, buffers)) <= 1000
        write(place / "end", "")
        queue.drain()
        buffers, lost = queue.take(0)
        assert not lost
        assert [name for buffer in buffers for _, _, name in events(buffer)][-1] == "end"
    finally:
        queue.stop()
        kernel.close()


class Failing(RecordedFiles):
    """Takes no files until it is allowed to."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error
        self.calls = 0
        self.fails = 3
        self.poison = ""

    def __call__(self, files: list[FoundFile]) -> None:
        """Raise, or take."""
        self.calls += 1
        if self.calls <= self.fails or (self.poison and self.poison in [file.path for file in files]):
            raise self.error
        super().__call__(files)


@pytest.mark.parametrize("error", [TemporaryTransferError("not now"), ValueError("a mistake")])
def test_files_are_offered_again(place: Path, error: Exception) -> None:
    """Files that could not be taken are offered again, and those that come meanwhile are not lost."""
    failing = Failing(error)
    watch = DirectoryWatch(Origin(f"{place}/{{name}}.dat"), failing)
    watch.start()
    try:
        first = move_in(place / "0.dat")
        until(lambda: failing.calls)
        failing.wait_for(first, *[move_in(place / f"{index}.dat") for index in range(1, 500)])
        assert len(failing.paths) == 500
    finally:
        watch.stop()


def test_patience_with_a_temporary_error_has_no_end(place: Path) -> None:
    """An error that says it is temporary is met by offering again, more often than another one would be."""
    failing = Failing(TemporaryTransferError("not now"))
    failing.fails = 5
    watch = DirectoryWatch(Origin(f"{place}/{{name}}.dat"), failing)
    watch.start()
    try:
        failing.wait_for(move_in(place / "a.dat"))
        assert failing.calls == 6
    finally:
        watch.stop()


def test_one_bad_file_costs_no_other(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that can never be taken is logged and left, the others of its batch are taken."""
    files = [write(place / f"{index}.dat") for index in range(5)]
    failing = Failing(ValueError("poison"))
    failing.fails, failing.poison = 0, files[2]
    watch = DirectoryWatch(Origin(f"{place}/{{name}}.dat"), failing, name="hrit")
    watch.start()
    try:
        failing.wait_for(*files[:2], *files[3:])
        sentinel(failing, place / "end.dat")
        assert files[2] not in failing.paths
        assert f"[hrit] giving up on {files[2]}" in caplog.text
    finally:
        watch.stop()


def test_stop_does_not_wait_for_a_taker_that_fails(place: Path) -> None:
    """A Watch whose files nobody takes can be stopped."""
    failing = Failing(TemporaryTransferError("never"))
    failing.fails = 10**9
    watch = DirectoryWatch(Origin(f"{place}/{{name}}.dat"), failing)
    watch.start()
    move_in(place / "a.dat")
    until(lambda: failing.calls > 3)
    then = time.monotonic()
    watch.stop()
    assert time.monotonic() - then < 30


def test_nothing_is_left_after_stop(place: Path) -> None:
    """After a stop no thread and no descriptor is left; stopping again, or before the start, does nothing."""
    before = open_watches()
    for options in {}, {"polling": 0.05}, {"backlog": False}:
        with watching(place / "{name}.dat", **options) as told:
            sentinel(told, place / f"{len(options)}.dat")
    watch = DirectoryWatch(Origin(f"{place}/{{name}}.dat"), RecordedFiles())
    watch.stop()
    watch.start()
    watch.stop()
    assert open_watches() == before


def test_taker_may_stop_the_watch(place: Path) -> None:
    """A Watch can be stopped from within the call that takes its files."""
    before = open_watches()
    watch = DirectoryWatch(Origin(f"{place}/{{name}}.dat"), lambda files: watch.stop())
    watch.start()
    assert open_watches() != before
    move_in(place / "a.dat")
    until(lambda: open_watches() == before, what="no thread left")
    watch.stop()


def test_import_gives_no_warning() -> None:
    """Nobody who starts a daemon sees that an old module of the standard library is going away."""
    top = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:pyinotify", "-c", "import trollmoves.watch"],
        capture_output=True,
        text=True,
        check=False,
        cwd=top,
    )
    assert (done.returncode, done.stderr) == (0, "")
