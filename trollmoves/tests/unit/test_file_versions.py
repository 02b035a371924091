"""Removal of exactly one version of a file, and the order of versions."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from trollmoves.errors import RequestRejected
from trollmoves.tests.helpers.waiting import until
from trollmoves.utils.file_versions import FileVersion, despite_removal, hidden_name, remove_version, version_of
from trollmoves.utils.ordered_names import OrderedNames


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a file."""
    file = tmp_path / "a.dat"
    file.write_text("old")
    return file


def version(path: Path) -> FileVersion:
    """Return the version of a file."""
    return version_of(os.stat(path))


def replace(path: Path, content: str) -> None:
    """Replace a file by rename."""
    path.with_name(".new").write_text(content)
    path.with_name(".new").rename(path)


def rewrite(path: Path, content: str) -> None:
    """Rewrite a file in place."""
    path.write_text(content)


def touch(path: Path, content: str) -> None:
    """Change the modification time only."""
    os.utime(path, (1, 1))


def test_delivered_version_is_removed(path: Path) -> None:
    """The delivered version is removed, without a remainder; a missing file is an error of the caller to handle."""
    delivered = version(path)
    assert remove_version(str(path), delivered)
    assert os.listdir(path.parent) == []
    with pytest.raises(FileNotFoundError):
        remove_version(str(path), delivered)


@pytest.mark.parametrize("change", [replace, rewrite, touch])
def test_another_version_is_kept(path: Path, change: object) -> None:
    """A file that was replaced, rewritten or touched since its delivery is kept."""
    delivered = version(path)
    change(path, "newer")  # type: ignore[operator]
    now = version(path)
    assert not remove_version(str(path), delivered)
    assert os.listdir(path.parent) == ["a.dat"]
    assert version(path) == now


@pytest.mark.parametrize("newest", [None, "newest"])
def test_file_that_was_replaced_in_the_middle(path: Path, newest: str | None) -> None:
    """A removal that hid another version gives it its name back, also after a kill, unless a newer one has the name."""
    delivered = version(path)
    os.link(path, path.with_name("kept"))
    assert remove_version(str(path), delivered)
    replace(path, "newer")
    hidden = path.with_name(hidden_name(path.name, delivered))
    os.rename(path, hidden)  # as a process that was killed after the rename leaves it
    if newest:
        path.write_text(newest)
    if newest:
        assert not remove_version(str(path), delivered)
    else:
        with pytest.raises(FileNotFoundError):
            remove_version(str(path), delivered)
    assert path.read_text() == (newest or "newer")
    assert not hidden.exists()


def test_link_is_removed_and_not_its_target(path: Path) -> None:
    """A symbolic link to the delivered file is removed; its target is kept."""
    link = path.with_name("link.dat")
    link.symlink_to("a.dat")
    seen: list[str] = []
    assert remove_version(str(link), version(path), seen.append)
    assert os.listdir(path.parent) == ["a.dat"]
    assert seen == [str(link), str(path)]


def test_newer_file_is_found_during_a_removal(path: Path) -> None:
    """A file that a removal hides for a moment is found by the other readers of the process."""
    kept, away = version(path), path.with_name(".away")
    sought: list[str] = []

    def access(name: str) -> FileVersion:
        sought.append(name)
        return version_of(os.stat(name))

    def check(real: str) -> None:
        path.rename(away)
        found = threads.submit(despite_removal, str(path), access)
        until(lambda: len(sought) == 1, 10, "it is missing")
        with pytest.raises(TimeoutError):
            found.result(0.1)
        away.rename(path)
        results.append(found)
        raise RequestRejected(real)

    results: list[Future[FileVersion]] = []
    with ThreadPoolExecutor() as threads:
        with pytest.raises(RequestRejected):
            remove_version(str(path), kept, check)
        assert results[0].result(10) == kept
    assert len(sought) == 2
    with pytest.raises(FileNotFoundError):
        despite_removal(f"{path}.none", access)


def test_directory_that_was_replaced_by_a_link(tmp_path: Path) -> None:
    """The check gets the place to which the directory leads now; if it raises, the file there is kept."""
    for name in "in", "victim":
        (tmp_path / name).mkdir()
    victim = tmp_path / "victim" / "a.dat"
    victim.write_text("precious")
    (tmp_path / "in" / "d").symlink_to(tmp_path / "victim")

    def check(real: str) -> None:
        raise RequestRejected(real)

    with pytest.raises(RequestRejected, match=str(victim)):
        remove_version(str(tmp_path / "in" / "d" / "a.dat"), version(victim), check)
    assert victim.exists()


def test_versions_are_finished_in_order() -> None:
    """One claim works on a name at a time; an older version is skipped once a newer one has finished."""
    order = OrderedNames()
    with order.claim(("a", "b"), 2) as current:
        assert current == ["a", "b"]
        with order.claim(("b", "c"), 3) as other:
            assert other is None
        with order.claim(("c",), 1) as other:
            assert other == ["c"]
    with order.claim(("a", "c"), 1) as current:
        assert current == ["c"]
    with pytest.raises(ZeroDivisionError), order.claim(("a",), 3):
        raise ZeroDivisionError
    with order.claim(("a",), 2) as current:
        assert current == ["a"]
