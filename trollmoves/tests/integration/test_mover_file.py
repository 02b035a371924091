"""Details of deliveries on this host."""

from __future__ import annotations

import itertools
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import urlparse

import pytest

from trollmoves.errors import (
    BadDestination,
    LeaseLost,
    NoSpace,
    OriginChanged,
    OriginMissing,
    OriginUnreadable,
    PermissionRefused,
)
from trollmoves.journal import Task
from trollmoves.movers import MOVERS, FileMover, PartialId, clean_partials, is_partial, move_it
from trollmoves.movers.base import Naming
from trollmoves.movers.file import SMALL_FILE, LocalBackend
from trollmoves.movers.partials import partial_path, token_of, visible_partial_path
from trollmoves.movers.source_file import SourceFile
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers.contract import MoverContract, MoverTarget, RemoteFiles
from trollmoves.tests.servers.disks import small_disk
from trollmoves.tests.servers.process import ServerProcess
from trollmoves.tests.servers.proxy import Proxy

if TYPE_CHECKING:
    from trollmoves.journal import Journal


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """Return a file to deliver."""
    path = tmp_path / "src" / "H-000-MSG4"
    path.parent.mkdir()
    path.write_bytes(b"image" * 100)
    return path


def test_copy_has_a_new_inode(origin: Path, tmp_path: Path) -> None:
    """A producer that rewrites its file in place does not change the delivered file."""
    os.utime(origin, (1e9, 1e9))
    move_it(str(origin), f"{tmp_path}/out/")
    with origin.open("r+b") as file:
        file.write(b"WRONG")
    target = tmp_path / "out" / origin.name
    assert target.read_bytes() == b"image" * 100
    assert target.stat().st_mtime == 1e9
    assert os.listdir(target.parent) == [origin.name]


def test_hard_link_only_when_asked_to(origin: Path, tmp_path: Path) -> None:
    """``hard_link`` makes the target share the origin's inode, also as a text from an INI file."""
    move_it(origin, f"file://{tmp_path}/out/", attrs={"hard_link": "yes"})
    move_it(origin, f"file://{tmp_path}/copy/", attrs={"hard_link": "0"})
    assert (tmp_path / "out" / origin.name).samefile(origin)
    assert not (tmp_path / "copy" / origin.name).samefile(origin)


def test_large_files_arrive_whole(tmp_path: Path) -> None:
    """Files larger than one read block arrive unchanged, at sizes around its multiples."""
    for size in (0, 1, SMALL_FILE - 1, SMALL_FILE, SMALL_FILE + 1, 3 * SMALL_FILE + 17):
        path = tmp_path / f"f{size}"
        path.write_bytes(os.urandom(size))
        move_it(path, f"{tmp_path}/out/", {"fsync": True})
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_move_renames_on_one_file_system(origin: Path, tmp_path: Path) -> None:
    """``move`` on one file system keeps the inode, replaces the existing file, and removes the origin."""
    inode = origin.stat().st_ino
    (tmp_path / "new").write_bytes(b"old")
    mover = FileMover(str(origin), f"{tmp_path}/new")
    mover.move()
    assert (tmp_path / "new").stat().st_ino == inode
    assert not origin.exists()


def test_move_makes_directories(origin: Path, tmp_path: Path) -> None:
    """``move`` makes the missing directories as ``copy`` does."""
    FileMover(origin, f"{tmp_path}/a/b/c/").move()
    assert (tmp_path / "a/b/c" / origin.name).exists()
    assert not origin.exists()


def test_move_syncs_into_a_new_directory(origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``move`` with ``fsync`` syncs the file and its directory, also if that directory was missing."""
    synced: list[int] = []
    sync = os.fsync

    def record(fd: int) -> None:
        synced.append(os.fstat(fd).st_ino)
        sync(fd)

    monkeypatch.setattr(os, "fsync", record)
    FileMover(origin, f"{tmp_path}/a/b/", {"fsync": True}).move()
    target = tmp_path / "a/b" / origin.name
    assert synced == [target.stat().st_ino, target.parent.stat().st_ino]


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="no second file system at /dev/shm")
def test_move_to_another_file_system_copies_and_removes(origin: Path) -> None:
    """``move`` between file systems delivers a copy and then removes the origin."""
    target = f"/dev/shm/trollmoves-test-{os.getpid()}"
    try:
        for size in (500, 3 * SMALL_FILE + 17):
            content = os.urandom(size)
            origin.write_bytes(content)
            FileMover(origin, target).move()
            assert Path(target).read_bytes() == content
            assert not origin.exists()
    finally:
        os.unlink(target)


def test_moving_a_symbolic_link_moves_the_file(origin: Path, tmp_path: Path) -> None:
    """The target of a moved link is the file, not a link that may lead nowhere."""
    link = tmp_path / "src" / "link"
    link.symlink_to(origin.name)
    FileMover(link, f"{tmp_path}/out/").move()
    assert not link.is_symlink()
    assert (tmp_path / "out/link").read_bytes() == b"image" * 100
    assert not (tmp_path / "out/link").is_symlink()
    assert origin.exists()


def test_a_file_delivered_onto_itself_stays(origin: Path, tmp_path: Path) -> None:
    """Source and target being one file is a delivery done: by copy, by move, and through another name of it."""
    move_it(origin, str(origin))
    move_it(origin, f"{origin.parent}/../src/")
    FileMover(origin, f"{tmp_path}/src").move()
    (tmp_path / "alias").symlink_to(tmp_path / "src")
    FileMover(origin, f"{tmp_path}/alias/").move()
    assert origin.read_bytes() == b"image" * 100
    os.link(origin, tmp_path / "other")
    FileMover(origin, f"{tmp_path}/other").move()
    assert not origin.exists()
    assert (tmp_path / "other").read_bytes() == b"image" * 100


def test_move_keeps_a_replaced_origin(origin: Path, tmp_path: Path) -> None:
    """An origin that is replaced during the delivery stays."""
    mover = FileMover(origin, f"{tmp_path}/out/")
    mover.copy()
    (origin.parent / "new").write_bytes(b"newer")
    (origin.parent / "new").rename(origin)
    with pytest.raises(OriginChanged):
        mover.remove_origin()
    assert origin.read_bytes() == b"newer"


def test_created_files_are_not_world_writable(origin: Path, tmp_path: Path) -> None:
    """Even under umask 0 created files are not world-writable; the origin's other permissions stay."""
    origin.chmod(0o746)
    script = "import os, sys; from trollmoves.movers import move_it; os.umask(0); move_it(sys.argv[1], sys.argv[2])"
    subprocess.run([sys.executable, "-c", script, str(origin), f"{tmp_path}/a/b/"], check=True)
    assert stat.S_IMODE((tmp_path / "a/b" / origin.name).stat().st_mode) == 0o744
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o775
    assert stat.S_IMODE((tmp_path / "a/b").stat().st_mode) == 0o775


def test_invalid_origin_is_named(tmp_path: Path) -> None:
    """A missing file, a directory and a named pipe are permanently rejected with their path."""
    os.mkfifo(tmp_path / "pipe")
    for origin in (tmp_path / "none", tmp_path, tmp_path / "pipe"):
        with pytest.raises(OriginMissing, match=str(origin)):
            move_it(origin, f"{tmp_path}/out/")
    assert not (tmp_path / "out").exists()


def test_unreadable_origin_is_named(tmp_path: Path) -> None:
    """A file on a failing disk is a temporary error with its path, and leaves no file at the destination."""
    failing = "/sys/class/net/lo/speed"  # its size is 4096, and no byte can be read
    if not os.path.exists(failing):
        pytest.skip("missing: sysfs")
    with pytest.raises(OriginUnreadable, match=f"^{failing}: cannot be read: ") as caught:
        move_it(failing, f"{tmp_path}/out/")
    assert (caught.value.temporary, caught.value.outage) == (True, False)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("destination", [5, None, "", "foo://host/x/", "scp://[x", b"/tmp/x"])
def test_invalid_destination(origin: Path, destination: object) -> None:
    """A destination that no mover supports is a permanent error, whatever its type."""
    with pytest.raises(BadDestination):
        move_it(origin, destination)  # type: ignore[arg-type]


def test_rel_path(origin: Path, tmp_path: Path) -> None:
    """``rel_path`` is a directory below the destination and cannot leave it; the hook receives the final path."""
    received = []
    result = move_it(origin, f"file://{tmp_path}/out", rel_path="a/b", hook=lambda *given: received.append(given))
    assert (tmp_path / "out/a/b" / origin.name).exists()
    assert result.path == f"{tmp_path}/out/a/b/"
    assert received == [(str(origin), result)]
    for path in ("../x", "/etc", "a/../../x"):
        with pytest.raises(BadDestination):
            move_it(origin, f"{tmp_path}/out/", rel_path=path)


def test_marks_of_a_url_are_letters_of_a_path(origin: Path, tmp_path: Path) -> None:
    """``?``, ``#`` and ``;`` of a path stay in it, also when urllib has cut it there."""
    for name in ("a?b", "a#b", "a;b", "a%20b"):
        move_it(origin, urlparse(f"file://{tmp_path}/{name}"))
        assert (tmp_path / name).exists()


def test_a_full_disk_is_temporary_and_leaves_nothing(tmp_path: Path) -> None:
    """A full disk raises ``NoSpace``, keeps the old file under the final name, and leaves no partial."""
    with small_disk(tmp_path / "small") as disk:
        (disk / "big").write_bytes(b"old")
        for size in (SMALL_FILE, 3 * SMALL_FILE):
            (tmp_path / "big").write_bytes(bytes(size))
            with pytest.raises(NoSpace) as caught:
                move_it(tmp_path / "big", f"{disk}/")
            assert caught.value.temporary
            assert os.listdir(disk) == ["big"]
            assert (disk / "big").read_bytes() == b"old"


def test_unwritable_directory(origin: Path) -> None:
    """An unwritable directory is a temporary error that does not block other transfers."""
    with pytest.raises(PermissionRefused) as caught:
        move_it(origin, "/sys/kernel/nothing/")
    assert caught.value.temporary
    assert not caught.value.outage


def test_readers_never_see_a_short_file(tmp_path: Path) -> None:
    """A reader of the final name always sees a complete old or new file."""
    size = 2 * SMALL_FILE
    versions = [bytes([i]) * size for i in (1, 2)]
    for index, content in enumerate(versions):
        (tmp_path / str(index)).mkdir()
        (tmp_path / str(index) / "f").write_bytes(content)
    move_it(tmp_path / "0/f", f"{tmp_path}/out/")
    stop = threading.Event()
    seen = []

    def read() -> None:
        while not stop.is_set():
            seen.append((tmp_path / "out/f").read_bytes() in versions)

    reader = threading.Thread(target=read)
    reader.start()
    for turn in itertools.count():
        move_it(tmp_path / str(turn % 2) / "f", f"{tmp_path}/out/")
        if turn >= 40 and len(seen) > 1:
            break
    stop.set()
    reader.join()
    assert all(seen)


def test_a_file_that_is_being_written_is_not_delivered(origin: Path) -> None:
    """A source that changed since it was opened is noticed."""
    with SourceFile(str(origin)) as source:
        origin.write_bytes(b"more")
        with pytest.raises(OriginChanged):
            source.check_unchanged()


def test_partials_are_hidden_unique_and_recognised() -> None:
    """A partial's name is hidden, new each time, fits 255 bytes whatever the name, and is known again."""
    for name in (
        "a",
        "x" * 255,
        "ä" * 127,
        "日本" * 42,
        "-rf",
        "with space\nand newline",
        "a.b.part",
        "\udcff\udcfe" * 40,
    ):
        one, other = partial_path(f"/d/{name}"), partial_path(f"/d/{name}")
        assert one != other
        assert one.startswith("/d/.")
        assert len(os.fsencode(os.path.basename(one))) <= 255
        assert is_partial(one)
        assert is_partial(os.path.basename(one))
    for name in ("a", ".a.part", ".a.0123456789AB.part", "a.0123456789ab.part", ".hidden", "x.part"):
        assert not is_partial(name)


def test_visible_partial_name() -> None:
    """A visible partial keeps the suffix, begins with the prefix, is short, and is recognized."""
    for name in ("H-000.dat", "x" * 300 + ".dat", "ä" * 200 + ".dat", ".dat"):
        for prefix in ("", "tmp_", "."):
            partial = os.path.basename(visible_partial_path(f"/d/{name}", prefix=prefix))
            assert partial.startswith(prefix)
            assert partial.endswith(".dat")
            assert len(os.fsencode(partial)) <= len(prefix) + 50
            assert is_partial(partial)
            assert partial != os.path.basename(visible_partial_path(f"/d/{name}", prefix=prefix))


def test_direct_local_transfer(tmp_path: Path) -> None:
    """With ``use_tmp_on_transfer`` false a file is replaced directly; one that changes during that is removed."""
    origin, target = tmp_path / "origin", tmp_path / "target"
    for size in (10, 5_000_000, 3):
        origin.write_bytes(os.urandom(size))
        move_it(origin, f"{target}/", {"use_tmp_on_transfer": False})
        assert (target / "origin").read_bytes() == origin.read_bytes()

    def change(_: int) -> None:
        origin.write_bytes(b"more than before")

    with pytest.raises(OriginChanged):
        move_it(origin, f"{target}/", {"use_tmp_on_transfer": False}, on_opened=change)
    assert os.listdir(target) == []


def test_stale_partials_are_cleaned(tmp_path: Path) -> None:
    """Abandoned partials are removed after some time, other files never."""
    partial = Path(partial_path(f"{tmp_path}/f"))
    for path in (partial, tmp_path / ".hidden.part", tmp_path / "f"):
        path.write_bytes(b"")
    os.utime(partial, (0, 0))
    assert clean_partials(str(tmp_path), 60) == []
    until(lambda: clean_partials(str(tmp_path), 0.01) == [str(partial)])
    assert sorted(os.listdir(tmp_path)) == [".hidden.part", "f"]
    assert clean_partials(str(tmp_path / "none"), 0) == []


def test_libraries_are_imported_only_when_their_scheme_is_used() -> None:
    """A site that only moves files needs neither paramiko nor boto3, nor waits for their import."""
    script = (
        "import sys, trollmoves.movers; print([m for m in ('paramiko', 'boto3', 'scp', 'ftplib') if m in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert printed.strip() == "[]"
    assert set(MOVERS) == {"", "file", "ftp", "ftps", "scp", "sftp", "s3"}
    assert MOVERS["file"] is MOVERS[""] is FileMover
    with pytest.raises(KeyError):
        MOVERS["gopher"]


class TestFileContract(MoverContract):
    """The contract, as far as it is not about connections."""

    checks_logins = False

    @pytest.fixture(scope="class")
    @classmethod
    def target(cls, tmp_path_factory: pytest.TempPathFactory) -> MoverTarget:
        """Return a directory of this host."""
        root = tmp_path_factory.mktemp("file")
        return LocalPlace("file", ServerProcess(0, [], root / "log"), RemoteFiles(root), str(root))

    @pytest.fixture
    def proxy(self, target: MoverTarget) -> Iterator[Proxy]:
        """Skip what needs a connection."""
        pytest.skip("there is no connection")

    @pytest.mark.skip(reason="there is no server")
    def test_restarted_server(self, *_: object) -> None:
        """Nothing to restart."""


class LocalPlace(MoverTarget):
    """A target with URLs without a port."""

    def url(self, path: str, host: str = "", login: str | None = None) -> str:
        """Return the URL of a path."""
        return f"file://{self.url_root}/{path}"


class Interrupted(LocalBackend):
    """Local files; another member of the fleet acts while this one is suspended before it renames."""

    def __init__(self, renaming: Callable[[], None], verified: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.renaming = renaming
        self.verified = verified

    def size(self, path: str) -> int:
        """Act after the check of the size, before that of the lease."""
        size = super().size(path)
        self.verified()
        return size

    def replace(self, partial: str, final: str) -> None:
        """Rename after the interruption."""
        self.renaming()
        super().replace(partial, final)


class Member:
    """A journal as a member of a fleet has it, as far as movers use it."""

    identity = "journal"

    def __init__(self, life: str) -> None:
        self.life = life
        self.alive = True

    def still(self) -> bool:
        """Return True while the lease is valid."""
        return self.alive

    def partial_id(self, task: Task) -> PartialId:
        """Return the id of the partial of a task."""
        return PartialId.of_task(cast("Journal", self), task, 0.0)


@pytest.mark.parametrize("fenced", [True, False])
def test_no_short_file_of_a_suspended_member(origin: Path, tmp_path: Path, fenced: bool) -> None:
    """A member that wakes up after another one took over never gives the other's incomplete file the final name."""
    final = tmp_path / "f"
    first, second = Member("1"), Member("2")
    task = Task("chain", "deliver", "key", "lane", "")
    taken = Task("chain", "deliver", "key", "lane", "", tried_by=("1",), tries=2)
    ours, theirs = first.partial_id(task), second.partial_id(taken)

    def take_over() -> None:
        first.alive = False
        mover = FileMover(str(origin), str(final), None, None, theirs)
        partial = mover._partial(LocalBackend(), str(final), Naming.HIDDEN)
        Path(partial).write_bytes(b"short")

    mover = FileMover(str(origin), str(final), None, None, ours)
    backend = Interrupted(lambda: None, verified=take_over) if fenced else Interrupted(take_over)
    with SourceFile(str(origin)) as source, pytest.raises(LeaseLost if fenced else FileNotFoundError):
        mover.deliver(backend, source)
    assert not final.exists()
    assert [is_partial(path.name) for path in tmp_path.iterdir() if path.is_file()] == [True]
    FileMover(str(origin), str(final), None, None, theirs).copy()
    assert final.read_bytes() == origin.read_bytes()
    assert not [path for path in tmp_path.iterdir() if is_partial(path.name)]


def test_partials_without_a_fleet_keep_their_names() -> None:
    """A member without a life has the partial that earlier versions give to a delivery."""
    task = Task("chain", "deliver", "key", "lane", "")
    expected = token_of("journal", "chain", "key")
    assert Member("").partial_id(task).token == expected
    assert Member("1").partial_id(task).token != expected
