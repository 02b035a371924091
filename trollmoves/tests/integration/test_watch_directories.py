"""Promises of tracking directories that appear and disappear."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

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
from trollmoves.watch.directories import Directory, DirectoryTree
from trollmoves.watch.inotify import Inotify
from trollmoves.watch.scanner import State, compared, oldest_first


def limited(what: str, number: int) -> tuple[str, ...]:
    """Return what to put before a command to limit its inotify watches or instances; skips the test if nothing does."""
    if shutil.which("unshare") is None:
        pytest.skip("no unshare")
    script = f'echo {number} > /proc/sys/user/max_inotify_{what} && exec "$@"'
    prefix = ("unshare", "--user", "--map-root-user", "sh", "-c", script, "sh")
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespaces here")
    return prefix


def test_directory_that_does_not_exist_is_waited_for(tmp_path: Path) -> None:
    """A directory that is made and filled after the start, with its parents, is found with its files."""
    root = tmp_path / "a" / "b" / "c"
    with watching(root / "{name}.dat") as recorded:
        root.mkdir(parents=True)
        files = [write(root / f"{index}.dat") for index in range(300)]
        recorded.wait_for(*files)
        sentinel(recorded, root / "end.dat")
        assert len(recorded.paths) == 301


@pytest.mark.alone
def test_waiting_costs_nothing(tmp_path: Path) -> None:
    """Neither an idle Watch nor one that waits for its directory is busy."""
    (tmp_path / "there").mkdir()
    with watching(tmp_path / "missing" / "{name}.dat"), watching(tmp_path / "there" / "{name}.dat"):
        before = time.process_time()
        time.sleep(1)  # this is the time that is measured
        assert time.process_time() - before < 0.1


@pytest.mark.parametrize("backlog", [True, False])
def test_directories_that_match_are_followed(tmp_path: Path, backlog: bool) -> None:
    """Directories that match fields are found at every level, when created and when moved in."""
    pattern = tmp_path / "in" / "{satellite:4s}" / "x" / "{day:%Y%m%d}" / "{name}.dat"
    (tmp_path / "in").mkdir()
    with watching(pattern, backlog=backlog) as recorded:
        files = []
        for satellite in "MSG3", "MSG4":
            for day in "20240101", "20240102":
                directory = tmp_path / "in" / satellite / "x" / day
                directory.mkdir(parents=True)
                files += [write(directory / f"{index}.dat") for index in range(100)]
        recorded.wait_for(*files)
        moved = tmp_path / "moved" / "x" / "20240103"
        moved.mkdir(parents=True)
        write(moved / "0.dat")
        age(moved / "0.dat", 1000)
        (tmp_path / "moved").rename(tmp_path / "in" / "MSG1")
        recorded.wait_for(tmp_path / "in" / "MSG1" / "x" / "20240103" / "0.dat")
        sentinel(recorded, directory / "end.dat")
        assert len(recorded.paths) == len(set(recorded.paths)) == 402
        assert recorded.files[0].fields["satellite"] == "MSG3"


def test_directories_that_do_not_match_are_not_watched(tmp_path: Path) -> None:
    """Directories that cannot contain matching files are not watched, nor are removed ones."""
    for name in "MSG4", "toolong", ".dot", "MSG3":
        (tmp_path / name / "deeper").mkdir(parents=True)
    instance = Inotify()
    try:
        directories = DirectoryTree(Origin(f"{tmp_path}/{{satellite:4s}}/{{name}}.dat"), instance, "test")
        found = directories.rescan()
        assert [directory.path for directory in found] == [str(tmp_path / "MSG3"), str(tmp_path / "MSG4")]
        assert len(directories) == 3
        assert watches(instance) == 3 + len(tmp_path.parts) - 1
        shutil.rmtree(tmp_path / "MSG4")
        assert not directories.rescan()
        assert len(directories) == 2
        assert watches(instance) == 2 + len(tmp_path.parts) - 1
    finally:
        instance.close()


def watches(instance: Inotify) -> int:
    """Return the number of watches of an inotify instance."""
    return Path(f"/proc/self/fdinfo/{instance.fd}").read_text().count("inotify wd")


def test_directory_may_be_removed_and_made_again(tmp_path: Path) -> None:
    """A directory is tracked again each time it is removed and recreated, alone or with its parents."""
    root = tmp_path / "a" / "b"
    with watching(root / "{name}.dat") as recorded:
        for index in range(20):
            root.mkdir(parents=True)
            recorded.wait_for(write(root / f"{index}.dat"))
            shutil.rmtree(root if index % 2 else root.parent)


def test_directory_may_be_made_again_without_a_pause(tmp_path: Path) -> None:
    """However quickly a directory is removed and made, the files of the last one are found."""
    root = tmp_path / "a" / "{day}"
    with watching(root / "{name}.dat") as recorded:
        for index in range(100):
            (tmp_path / "a" / "day").mkdir(parents=True)
            last = write(tmp_path / "a" / "day" / f"{index}.dat")
            if index < 99:
                shutil.rmtree(tmp_path / "a")
        recorded.wait_for(last)
        sentinel(recorded, tmp_path / "a" / "day" / "end.dat")


@pytest.mark.parametrize("which", ["root", "parent"])
def test_directory_may_be_renamed_away_and_back(tmp_path: Path, which: str) -> None:
    """Files that appear in a renamed directory are reported when it has its name again, and not before."""
    root = tmp_path / "parent" / "root"
    root.mkdir(parents=True)
    away = tmp_path / "away"
    moving = root if which == "root" else root.parent
    with watching(root / "{name}.dat") as recorded:
        sentinel(recorded, root / "before.dat")
        moving.rename(away)
        write(away / root.relative_to(moving) / "meanwhile.dat")
        moving.mkdir()
        if moving != root:
            root.mkdir()
        sentinel(recorded, root / "instead.dat")
        assert recorded.names == ["before.dat", "instead.dat"]
        shutil.rmtree(moving)
        away.rename(moving)
        recorded.wait_for(root / "meanwhile.dat")
        sentinel(recorded, root / "after.dat")
        assert set(recorded.paths) == {
            str(root / f"{name}.dat") for name in ("before", "instead", "meanwhile", "after")
        }
        assert recorded.names.count("before.dat") == 1


def test_old_files_stay_unwanted_when_their_directory_comes_back(tmp_path: Path) -> None:
    """Without backlog, renaming the directory away and back does not bring up the files of the start."""
    root = tmp_path / "root"
    root.mkdir()
    old = write(root / "old.dat")
    until(lambda: time.time() > os.stat(old).st_ctime + 0.2)
    with watching(root / "{name}.dat", backlog=False) as recorded:
        sentinel(recorded, root / "before.dat")
        for _ in range(2):
            root.rename(tmp_path / "away")
            write(tmp_path / "away" / "meanwhile.dat")
            (tmp_path / "away").rename(root)
            recorded.wait_for(root / "meanwhile.dat")
        sentinel(recorded, root / "after.dat")
        assert "old.dat" not in recorded.names


def test_directory_renamed_within_the_tree_is_followed(tmp_path: Path) -> None:
    """A directory that is renamed to another matching name is tracked under that name."""
    (tmp_path / "one").mkdir()
    with watching(tmp_path / "{day:3s}" / "{name}.dat") as recorded:
        sentinel(recorded, tmp_path / "one" / "1.dat")
        (tmp_path / "one").rename(tmp_path / "two")
        sentinel(recorded, tmp_path / "two" / "2.dat")
        (tmp_path / "one").mkdir()
        sentinel(recorded, tmp_path / "one" / "3.dat")
        sentinel(recorded, tmp_path / "two" / "4.dat")
        (tmp_path / "two").rename(tmp_path / "other")
        write(tmp_path / "other" / "5.dat")
        sentinel(recorded, tmp_path / "one" / "6.dat")
        assert "5.dat" not in recorded.names


def test_symbolic_links_to_directories_are_followed(tmp_path: Path) -> None:
    """The root may be a symbolic link that changes, and links below it count as directories."""
    for name in "first", "second", "else":
        (tmp_path / name).mkdir()
    root = tmp_path / "root"
    root.symlink_to("first")
    with watching(root / "{day:4s}" / "{name}.dat") as recorded:
        (tmp_path / "first" / "link").symlink_to(tmp_path / "else")
        sentinel(recorded, root / "link" / "1.dat")
        (tmp_path / "new").symlink_to("second")
        (tmp_path / "new").rename(root)
        (tmp_path / "second" / "more").mkdir()
        write(root / "more" / "2.dat")
        recorded.wait_for(root / "more" / "2.dat")
        sentinel(recorded, root / "more" / "3.dat")


def test_directory_names_may_be_anything(tmp_path: Path) -> None:
    """Directories with undecodable names are watched like any other."""
    root = os.path.join(os.fsencode(tmp_path), b"\xff in\n")
    os.mkdir(root)
    with watching(os.fsdecode(root) + "/{day}/{name}.dat") as recorded:
        directory = os.fsdecode(os.path.join(root, b"\xfe\x80"))
        os.mkdir(directory)
        sentinel(recorded, f"{directory}/a.dat")
        sentinel(recorded, f"{directory}/b.dat")
        assert recorded.files[-1].fresh


def test_file_being_written_in_a_new_directory(tmp_path: Path) -> None:
    """A file being written in a new directory is reported only when complete."""
    with watching(tmp_path / "{day}" / "{name}.dat") as recorded:
        (tmp_path / "day").mkdir()
        with open(tmp_path / "day" / "a.dat", "w") as file:
            file.write("half")
            file.flush()
            sentinel(recorded, tmp_path / "day" / "b.dat")
            assert recorded.names == ["b.dat"]
            file.write(", whole")
        recorded.wait_for(file.name)
        sentinel(recorded, tmp_path / "day" / "end.dat")
        assert [found.size for found in recorded.of_path(file.name)] == [11]


def test_new_directory_does_not_stand_behind_the_backlog(tmp_path: Path) -> None:
    """The files of a directory that appears during a long backlog come between two of its batches."""
    (tmp_path / "old").mkdir()
    (tmp_path / "made").mkdir()
    first = write(tmp_path / "old" / "0.dat")
    for index in range(1, 20_000):
        os.link(first, tmp_path / "old" / f"{index}.dat")
    write(tmp_path / "made" / "new.dat")
    recorded = RecordedFiles()

    def found(files: list[FoundFile]) -> None:
        if not recorded.files:
            (tmp_path / "made").rename(tmp_path / "new")
        recorded(files)

    watch = DirectoryWatch(Origin(f"{tmp_path}/{{day:3s}}/{{name}}.dat"), found)
    watch.start()
    try:
        recorded.wait_for(tmp_path / "new" / "new.dat")
        assert recorded.names.index("new.dat") < 15_000
    finally:
        watch.stop()


# --- inotify limits, permissions and mounts


def test_no_more_watches_means_listing(tmp_path: Path) -> None:
    """When inotify watches run out, the log says which setting to raise, and the directories are listed instead."""
    prefix = limited("watches", len(tmp_path.parts) + 1)  # all above, the root and one below
    files = []
    for name in "a", "b", "c":
        (tmp_path / name).mkdir()
        files.append(write(tmp_path / name / "old.dat"))
    with Child(tmp_path / "{day}" / "{name}.dat", prefix=prefix) as child:
        child.wait_for(*files, *[move_in(tmp_path / name / "new.dat") for name in "abc"])
        until(lambda: sum(line.startswith("WARNING") for line in child.log) >= 2, what="warnings")
        warnings = [line for line in child.log if line.startswith("WARNING")]
        assert len(warnings) == 2
        assert str(tmp_path / "b") in warnings[0]
        assert "fs.inotify.max_user_watches" in warnings[0]
        shutil.rmtree(tmp_path / "a")
        until(lambda: any(f"now watching {tmp_path / 'b'}" in line for line in child.log), what="a watch for the next")
        child.wait_for(move_in(tmp_path / "b" / "later.dat"))


def test_no_instance_means_listing(tmp_path: Path) -> None:
    """Without an inotify instance, the log says which setting to raise, and the directories are listed instead."""
    old = write(tmp_path / "old.dat")
    with Child(tmp_path / "{name}.dat", prefix=limited("instances", 0)) as child:
        child.wait_for(old, move_in(tmp_path / "new.dat"))
        until(lambda: any("fs.inotify.max_user_instances" in line for line in child.log), what="a warning")


@pytest.fixture
def public() -> Iterator[Path]:
    """Return a directory that every user can read."""
    with public_directory() as path:
        yield path


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_forbidden_directory_does_not_stop_the_others(public: Path) -> None:
    """An unreadable directory is logged once, and watched as soon as it becomes readable."""
    for name in "bad", "good":
        (public / name).mkdir()
    os.chmod(public / "bad", 0o700)
    hidden = write(public / "bad" / "a.dat")
    with Child(public / "{day}" / "{name}.dat", user=1) as child:
        child.wait_for(move_in(public / "good" / "b.dat"))
        warnings = until(lambda: [line for line in child.log if "WARNING" in line])
        assert len(warnings) == 1
        assert f"{public}/bad" in warnings[0]
        assert "Permission denied" in warnings[0]
        assert "needs read and search permission" in warnings[0]
        os.chmod(public / "bad", 0o755)
        child.wait_for(hidden)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_mounted_directory_is_noticed(tmp_path: Path) -> None:
    """A disk mounted over the directory, which causes no event, is detected, and so is its removal."""
    root = tmp_path / "root"
    root.mkdir()
    with watching(root / "{name}.dat") as recorded:
        sentinel(recorded, root / "below.dat")
        if subprocess.run(["mount", "-t", "tmpfs", "none", root], capture_output=True, check=False).returncode:
            pytest.skip("no right to mount here")
        try:
            recorded.wait_for(write(root / "mounted.dat"))
        finally:
            subprocess.run(["umount", "-l", root], check=True)
        recorded.wait_for(write(root / "again.dat"))


# --- listing


def test_listing_gives_windows_of_the_oldest_first(tmp_path: Path) -> None:
    """A listing returns each visible file once, sorted by age within windows, with pauses, without old ones."""
    for index in range(1200):
        age(write(tmp_path / f"{index}"), 5000 - index * 7 % 1200)
    write(tmp_path / ".hidden")
    (tmp_path / "directory").mkdir()
    (tmp_path / "nowhere").symlink_to("missing")
    pieces = list(oldest_first(str(tmp_path), window=400))
    paths = [path for piece in pieces for path in piece]
    assert sorted(paths) == sorted(str(tmp_path / f"{index}") for index in range(1200))
    ages = [os.stat(path).st_mtime for path in paths]
    assert all(ages[at : at + 400] == sorted(ages[at : at + 400]) for at in (0, 400, 800))
    assert [] in pieces
    assert [path for piece in oldest_first(str(tmp_path), time.time_ns() + 10**9) for path in piece] == []


# --- polling


def test_polling_finds_files_that_have_settled(tmp_path: Path) -> None:
    """With polling, a file is reported when two listings agree, once, and again when it has changed."""
    root = tmp_path / "in"
    old = root / "old.dat"
    with watching(root / "{name}.dat", polling=0.05) as recorded:
        root.mkdir()
        write(old)
        write(root / "empty.dat", "")
        write(root / ".hidden.dat")
        recorded.wait_for(old)
        write(old, "more content")
        recorded.wait_for(old, times=2)
        sentinel(recorded, root / "end.dat")
        assert recorded.names == ["old.dat", "old.dat", "end.dat"]
        assert [file.fresh for file in recorded.files] == [False] * 3


def test_polling_does_not_report_an_open_file(tmp_path: Path) -> None:
    """With polling, a file that is open for writing is reported only when it is closed, however quiet it is."""
    with watching(tmp_path / "{name}.dat", polling=0.05) as recorded, open(tmp_path / "a.dat", "w") as file:
        file.write("half")
        file.flush()
        for name in "b", "c":
            sentinel(recorded, tmp_path / f"{name}.dat")
        assert recorded.names == ["b.dat", "c.dat"]
        file.close()
        recorded.wait_for(file.name)


def test_polling_does_not_report_a_growing_file(tmp_path: Path) -> None:
    """A file that changed between two listings is not returned; an unchanged one is returned once."""
    directory = Directory(str(tmp_path), 0, (0, 0), 0)
    given: list[int] = []
    for content in "1", "12", "12", "12", "34", "123", "123":
        if not given or content != (tmp_path / "a.dat").read_text():
            write(tmp_path / "a.dat", content)
            age(tmp_path / "a.dat", len(given))
        given.append(sum(map(len, compared(directory, State.SETTLED))))
    assert given == [0, 0, 1, 0, 0, 0, 1]


def test_polling_without_backlog(tmp_path: Path) -> None:
    """With polling and without backlog, existing files are not reported until they change."""
    old = write(tmp_path / "old.dat")
    with watching(tmp_path / "{name}.dat", polling=0.05, backlog=False) as recorded:
        sentinel(recorded, tmp_path / "new.dat")
        sentinel(recorded, tmp_path / "newer.dat")
        assert recorded.names == ["new.dat", "newer.dat"]
        write(old, "changed")
        recorded.wait_for(old)


def test_polling_follows_directories(tmp_path: Path) -> None:
    """With polling, directories that appear and disappear are tracked at every level."""
    with watching(tmp_path / "in" / "{day}" / "{name}.dat", polling=0.05) as recorded:
        for name in "a", "b":
            (tmp_path / "in" / name).mkdir(parents=True)
            recorded.wait_for(write(tmp_path / "in" / name / "x.dat"))
            shutil.rmtree(tmp_path / "in")


def test_polling_uses_no_inotify(tmp_path: Path) -> None:
    """With polling no inotify instance is held."""
    before = open_watches().count("anon_inode:inotify")
    with watching(tmp_path / "{name}.dat", polling=0.05):
        assert open_watches().count("anon_inode:inotify") == before
