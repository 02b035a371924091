"""Promises of watching one file."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.helpers.watching import open_watches, write
from trollmoves.watch import FileWatch

ABSENT = 0.5  # s, longer than DEBOUNCE_SECONDS: an absent call cannot be waited for


class Changes:
    """Counts calls."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self) -> None:
        """Count one more."""
        self.number += 1

    def wait_for(self, number: int) -> None:
        """Wait until there are ``count`` changes."""
        until(lambda: self.number == number, what=f"{number} changes, not {self.number}")


@contextmanager
def following(path: Path) -> Iterator[Changes]:
    """Follow a file and give what counts its changes."""
    changes = Changes()
    watch = FileWatch(str(path), changes)
    watch.start()
    try:
        yield changes
    finally:
        watch.stop()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a file."""
    (tmp_path / "etc").mkdir()
    return Path(write(tmp_path / "etc" / "client.ini", "[a]\n"))


def test_edit_in_place_is_reported(file: Path) -> None:
    """A file that is written in place is reported each time, also when its size stays."""
    with following(file) as changes:
        for number in range(1, 4):
            write(file, "[b]\n")
            changes.wait_for(number)


def test_replacement_is_reported(file: Path) -> None:
    """A file that is replaced by rename is reported."""
    with following(file) as changes:
        write(file.with_suffix(".new"), "[b]\n")
        os.replace(file.with_suffix(".new"), file)
        changes.wait_for(1)


def test_many_writings_are_one_change(file: Path) -> None:
    """Several writes in quick succession are reported once, after the last one."""
    seen = []
    watch = FileWatch(str(file), lambda: seen.append(file.read_text()))
    watch.start()
    try:
        for number in range(50):
            write(file, f"{number}")
        until(lambda: seen and seen[-1] == "49")
        assert len(seen) < 10
    finally:
        watch.stop()


def test_half_written_file_is_not_reported(file: Path) -> None:
    """While the file is open for writing, no change is reported."""
    seen = []
    watch = FileWatch(str(file), lambda: seen.append(file.read_text()))
    watch.start()
    try:
        with open(file, "w") as half:
            half.write("half")
            half.flush()
            time.sleep(ABSENT)
            half.write(", whole")
        until(lambda: seen)
        assert seen == ["half, whole"]
    finally:
        watch.stop()


def test_missing_file_is_no_change(file: Path) -> None:
    """A removed file is not a change, nor is one restored unchanged; one restored with changes is."""
    with following(file) as changes:
        file.rename(file.with_suffix(".away"))
        write(file.with_suffix(".other"))
        time.sleep(ABSENT)
        file.with_suffix(".away").rename(file)
        time.sleep(ABSENT)
        assert changes.number == 0
        file.unlink()
        time.sleep(ABSENT)
        assert changes.number == 0
        write(file, "[c]\n")
        changes.wait_for(1)


def test_retargeted_symbolic_link_is_a_change(file: Path, tmp_path: Path) -> None:
    """A change of a symbolic link to the file, of a linked parent directory, or of the target is reported."""
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    write(tmp_path / "1" / "x.ini", "first")
    write(tmp_path / "2" / "x.ini", "the second")
    (tmp_path / "now").symlink_to("1")
    link = tmp_path / "link.ini"
    link.symlink_to("now/x.ini")
    with following(link) as changes:
        write(tmp_path / "1" / "x.ini", "edited")
        changes.wait_for(1)
        (tmp_path / "next").symlink_to("2")
        os.replace(tmp_path / "next", tmp_path / "now")
        changes.wait_for(2)


def test_error_of_the_callback_is_logged(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A callback that fails is logged, and called for the next change."""
    calls = Changes()

    def fail() -> None:
        calls()
        raise ValueError("broken")

    watch = FileWatch(str(file), fail)
    watch.start()
    try:
        for number in range(1, 3):
            write(file, str(number))
            calls.wait_for(number)
    finally:
        watch.stop()
    assert "broken" in caplog.text


def test_nothing_is_left_of_following_a_file(file: Path) -> None:
    """After a stop no thread and no descriptor is left; stopping again, or from the callback, does no harm."""
    before = open_watches()
    watch = FileWatch(str(file), lambda: watch.stop())
    watch.start()
    write(file, "x")
    until(lambda: open_watches() == before)
    watch.stop()
    FileWatch(str(file), lambda: None).stop()
    assert open_watches() == before
