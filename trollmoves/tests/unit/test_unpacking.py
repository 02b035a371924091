"""Packed files become the files that were in them, complete, in their directory, or nothing at all."""

from __future__ import annotations

import bz2
import gzip
import io
import os
import shlex
import signal
import stat
import subprocess
import sys
import tarfile
import threading
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from trollmoves.errors import TemporaryUnpackError, UnpackError, UnpackFailed, UnpackHeld
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers.disks import SIZE, small_disk
from trollmoves.unpacking import SUFFIXES, applies, unpack
from trollmoves.unpacking.archive_reader import MAX_MEMBERS

NAMES = [
    "with a blank",
    "-rf",
    "line\nfeed",
    "quotes'\"`$(x);&|",
    "Ærø-東京",
    os.fsdecode(b"latin-\xe9\xff"),
    "n" * 200,
]
FILES = {"top/one.txt": b"one", "top/a/two.txt": b"2" * 5000, "three.txt": b""}
TAR_MODES = {".tar": "w", ".tar.gz": "w:gz", ".tgz": "w:gz", ".tar.bz2": "w:bz2"}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Return an empty directory to unpack in."""
    path = tmp_path / "target"
    path.mkdir()
    return path


@pytest.fixture(params=[0o002, 0o077, 0o000])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """Set the umask for one test."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def member(name: str, kind: bytes = tarfile.REGTYPE, content: bytes = b"", link: str = "", mode: int = 0o644) -> bytes:
    """Return one member of a tar archive, as bytes: Python's own writer would mend some of them."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname, info.mode = kind, len(content), link, mode
    header = info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    return header + content + bytes(-len(content) % 512)


END = bytes(1024)


def make_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    """Write a tar archive of these files; ``mode`` as for ``tarfile.open``."""
    with tarfile.open(path, mode, errors="surrogateescape") as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.mtime = 1_000_000_000
            archive.addfile(info, io.BytesIO(content))
    return path


def make_program(path: Path, script: str) -> str:
    """Write an executable shell script; return its path."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


# What EUMETSAT's program does, with `tr` for the wavelets.
XRIT = """
[ $# = 1 ] || { echo "usage" >&2; exit 2; }
name=$(basename -- "$1"; echo /)
name="${name%
/}"
tr a-z A-Z < "$1" > "./${name%C_}__"
echo "Decompressed file: ${name%C_}__"
"""


def contents(directory: Path) -> dict[str, bytes]:
    """Return all files below the directory, the hidden ones too, empty directories by a trailing slash."""
    found = {}
    for at, directories, files in os.walk(directory):
        for name in files:
            path = os.path.join(at, name)
            found[os.path.relpath(path, directory)] = Path(path).read_bytes()
        if not directories and not files and at != str(directory):
            found[os.path.relpath(at, directory) + "/"] = b""
    return found


def packed_as(name: str, path: Path, content: bytes) -> tuple[Path, str]:
    """Pack one file in the way ``name``; return the packed file, and the unpacked one's name."""
    if name == "bzip":
        packed = path / "file.dat.bz2"
        packed.write_bytes(bz2.compress(content))
        return packed, "file.dat"
    if name == "zip":
        packed = path / "file.zip"
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("file.dat", content)
        return packed, "file.dat"
    return make_tar(path / "file.tgz", {"file.dat": content}, "w:gz"), "file.dat"


# -- which file is for which unpacker


@pytest.mark.parametrize(
    ("name", "path", "expected"),
    [
        *(("tar", f"/in/x{suffix}", True) for suffix in TAR_MODES),
        ("tar", "/in/x.bz2", False),
        ("tar", "/in/.tar", False),
        ("tar", "/in.tar/x", False),
        ("xrit", "/in/H-000-MSG4__-MSG4________-HRV______-000001___-202501010000-C_", True),
        ("xrit", "/in/H-000-MSG4__-MSG4________-_________-PRO______-202501010000-__", False),
        ("bzip", "/in/x.bz2", True),
        ("bzip", "/in/x.tar.bz2", True),
        ("bzip", "/in/.bz2", False),
        ("zip", "/in/x.zip", True),
    ],
)
def test_applies_by_name(name: str, path: str, expected: bool) -> None:
    """An unpacker is for the files with its suffixes."""
    assert applies(name, path) is expected


def test_other_name_is_rejected(tmp_path: Path, target: Path) -> None:
    """A file with an unsuitable name is rejected, with the expected extension."""
    path = tmp_path / "file.dat"
    path.write_bytes(bz2.compress(b"x"))
    with pytest.raises(UnpackFailed, match=r"\.bz2"):
        unpack("bzip", str(path), str(target))


@pytest.mark.parametrize("name", SUFFIXES)
def test_missing_file(name: str, tmp_path: Path, target: Path) -> None:
    """A packed file that is missing, or a directory, is a permanent error."""
    path = tmp_path / f"x{SUFFIXES[name][0]}"
    with pytest.raises(UnpackFailed, match="No such file"):
        unpack(name, str(path), str(target))
    path.mkdir()
    with pytest.raises(UnpackFailed, match="must be a regular file"):
        unpack(name, str(path), str(target))
    assert contents(target) == {}


# -- results


@pytest.mark.parametrize("suffix", TAR_MODES)
def test_tar(suffix: str, tmp_path: Path, target: Path) -> None:
    """A tar archive's files come out in its order, with directories and times, however it is compressed."""
    path = make_tar(tmp_path / f"x{suffix}", FILES, TAR_MODES[suffix])
    assert unpack("tar", str(path), str(target)) == [str(target / name) for name in FILES]
    assert contents(target) == FILES
    assert (target / "three.txt").stat().st_mtime == 1_000_000_000
    assert path.exists()


def test_zip(tmp_path: Path, target: Path) -> None:
    """A zip archive's files come out in its order."""
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("empty/", "")
        for name, content in FILES.items():
            archive.writestr(name, content)
    assert unpack("zip", str(path), str(target)) == [str(target / name) for name in FILES]
    assert contents(target) == FILES


def test_bzip(tmp_path: Path, target: Path) -> None:
    """All of a file of several compressed streams comes out, in blocks of any size."""
    path = tmp_path / "x.dat.bz2"
    path.write_bytes(bz2.compress(b"one" * 1000) + bz2.compress(b"") + bz2.compress(b"two"))
    for block_size in (1, 7, 4096, 1 << 20):
        assert unpack("bzip", str(path), str(target), block_size=block_size) == [str(target / "x.dat")]
        assert contents(target) == {"x.dat": b"one" * 1000 + b"two"}


def test_xrit(tmp_path: Path, target: Path) -> None:
    """An xRIT segment is replaced by the program's result."""
    path = tmp_path / "H-000-C_"
    path.write_bytes(b"abc")
    program = make_program(tmp_path / "xRITDecompress", XRIT)
    assert unpack("xrit", str(path), str(target), program=program) == [str(target / "H-000-__")]
    assert contents(target) == {"H-000-__": b"ABC"}


@pytest.mark.parametrize("name", NAMES)
def test_names(name: str, tmp_path: Path, target: Path) -> None:
    """Any name that a file can have is kept, of packed files and of members."""
    program = make_program(tmp_path / "xRITDecompress", XRIT)
    (tmp_path / f"{name}C_").write_bytes(b"x")
    assert unpack("xrit", str(tmp_path / f"{name}C_"), str(target), program=program) == [str(target / f"{name}__")]
    (tmp_path / f"{name}.bz2").write_bytes(bz2.compress(b"b"))
    assert unpack("bzip", str(tmp_path / f"{name}.bz2"), str(target)) == [str(target / name)]
    make_tar(tmp_path / f"{name}.tar", {f"{name}/{name}.t": b"t"})
    assert unpack("tar", str(tmp_path / f"{name}.tar"), f"{target}/{name}.d") == [
        str(target / f"{name}.d" / name / f"{name}.t")
    ]
    assert contents(target) == {f"{name}__": b"X", name: b"b", f"{name}.d/{name}/{name}.t": b"t"}


def test_relative_paths(tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths, of the program too, are relative to the caller's directory; results are absolute."""
    monkeypatch.chdir(tmp_path)
    make_program(tmp_path / "prog", XRIT)
    (tmp_path / "-xC_").write_bytes(b"x")
    assert unpack("xrit", "-xC_", "target", program="./prog") == [str(target / "-x__")]


def test_same_name_twice(tmp_path: Path, target: Path) -> None:
    """Of two members of one name the later one counts, as with tar."""
    path = tmp_path / "x.tar"
    path.write_bytes(member("a", content=b"old") + member("b", content=b"b") + member("./a", content=b"new") + END)
    assert unpack("tar", str(path), str(target)) == [str(target / "b"), str(target / "a")]
    assert contents(target) == {"a": b"new", "b": b"b"}


def test_links_within(tmp_path: Path, target: Path) -> None:
    """A link to a file in the archive becomes that file."""
    path = tmp_path / "x.tar"
    path.write_bytes(
        member("d/soft", tarfile.SYMTYPE, link="../f")
        + member("./f", content=b"content")
        + member("d/hard", tarfile.LNKTYPE, link="f")
        + member("chain", tarfile.SYMTYPE, link="./d/soft")
        + END
    )
    unpack("tar", str(path), str(target))
    assert contents(target) == dict.fromkeys(("f", "d/soft", "d/hard", "chain"), b"content")
    assert not any(path.is_symlink() for path in target.rglob("*"))


def test_modes(umask: int, tmp_path: Path, target: Path) -> None:
    """Permissions follow the umask, whatever the archive and the program say, and no one else may write."""
    path = tmp_path / "x.tar"
    path.write_bytes(member("d", tarfile.DIRTYPE, mode=0o777) + member("d/f", content=b"f", mode=0o777) + END)
    (tmp_path / "x.bz2").write_bytes(bz2.compress(b"b"))
    (tmp_path / "xC_").write_bytes(b"b")
    program = make_program(tmp_path / "prog", f"{XRIT}\nchmod 6777 ./*__")
    made = f"{target}/made/here"
    unpack("tar", str(path), made)
    unpack("bzip", str(tmp_path / "x.bz2"), made)
    unpack("xrit", str(tmp_path / "xC_"), made, program=program)
    modes = {p.relative_to(target).as_posix(): stat.S_IMODE(p.stat().st_mode) for p in target.rglob("*")}
    assert modes.pop("made/here/x__") == 0o664  # the program set it against the umask
    files, directories = 0o664 & ~umask, 0o775 & ~umask
    assert modes == {
        "made": directories,
        "made/here": directories,
        "made/here/d": directories,
        "made/here/d/f": files,
        "made/here/x": files,
    }


# -- rejections

HEADER_BACK = tarfile.TarInfo("back").tobuf(tarfile.GNU_FORMAT)


def negative_size(size: int) -> bytes:
    """Return a header with a negative size in base 256."""
    header = bytearray(HEADER_BACK)
    header[124:136] = b"\xff" + (256**11 + size).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@pytest.mark.parametrize(
    ("bad", "names"),
    [
        (member("/abs/x", content=b"x"), "/abs/x"),
        (member("../x", content=b"x"), "../x"),
        (member("a/../../x", content=b"x"), "a/../../x"),
        (member("../d", tarfile.DIRTYPE), "../d"),
        (member("soft", tarfile.SYMTYPE, link="../x"), "soft"),
        (member("d/soft", tarfile.SYMTYPE, link="../../x"), "d/soft"),
        (member("soft", tarfile.SYMTYPE, link="/etc/passwd"), "soft"),
        (member("hard", tarfile.LNKTYPE, link="../x"), "hard"),
        (member("hard", tarfile.LNKTYPE, link="/etc/passwd"), "hard"),
        (member("dangling", tarfile.SYMTYPE, link="nothing"), "dangling"),
        (member("self", tarfile.SYMTYPE, link="self"), "self"),
        (member("to", tarfile.SYMTYPE, link="fro") + member("fro", tarfile.SYMTYPE, link="to"), "to"),
        (member("d", tarfile.DIRTYPE) + member("soft", tarfile.SYMTYPE, link="d"), "soft"),
        (member("char", tarfile.CHRTYPE), "char"),
        (member("block", tarfile.BLKTYPE), "block"),
        (member("pipe", tarfile.FIFOTYPE), "pipe"),
        (member("odd", b"Z"), "odd"),
        (member("suid", content=b"x", mode=0o4755), "suid"),
        (member("sgid", content=b"x", mode=0o2755), "sgid"),
        (member("f", content=b"x") + member("f/x", content=b"x"), "f/x"),
        (member(".x.unpacking/lock", content=b"x"), ".x.unpacking/lock"),
        (member("./", content=b"x"), "./"),
        (member("long/" * 1000 + "x", content=b"x"), "long/long"),
    ],
)
def test_unsafe_members(bad: bytes, names: str, tmp_path: Path, target: Path) -> None:
    """An archive with a member that is not safe is refused by the name of that member, and nothing of it appears."""
    path = tmp_path / "x.tar"
    path.write_bytes(member("good", content=b"g") + bad + member("good2", content=b"g") + END)
    with pytest.raises(UnpackFailed) as recorded:
        unpack("tar", str(path), str(target))
    assert repr(names)[:-1] in str(recorded.value)
    assert str(path) in str(recorded.value)
    assert contents(tmp_path).keys() == {"x.tar", "target/"}


@pytest.mark.parametrize(
    "bad",
    [
        negative_size(-512),
        negative_size(-1024),
        negative_size(-1),
        member("x" * 300, tarfile.REGTYPE)[:124] + b"77777777777\0",
        tarfile.TarInfo("././@LongLink").tobuf(tarfile.GNU_FORMAT).replace(b"0" * 11, b"17777777777", 1),
        b"\1" * 512,
    ],
    ids=["circle", "back", "backwards", "cut", "sum", "junk"],
)
def test_senseless_headers(bad: bytes, tmp_path: Path, target: Path) -> None:
    """A header that makes no sense ends in an error, not in a circle."""
    path = tmp_path / "x.tar"
    path.write_bytes(member("good", content=b"g") + bad + END)
    with pytest.raises(UnpackFailed, match="damaged"):
        unpack("tar", str(path), str(target))
    assert contents(target) == {}


def test_huge_header(tmp_path: Path, target: Path) -> None:
    """A name of 200 megabytes, a few kilobytes when compressed, is refused without being read."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 200_000_000
    path = tmp_path / "x.tgz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        for _ in range(20):
            file.write(b"n" * 1_000_000)
    assert peak_memory(lambda: refused("tar", path, target)) < 20_000_000


def test_too_many_members(tmp_path: Path, target: Path) -> None:
    """Members without end are refused, however small the archive is."""
    path = tmp_path / "x.tgz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(member("d", tarfile.DIRTYPE) * (MAX_MEMBERS + 1) + END)
    assert "more than" in refused("tar", path, target)


def refused(name: str, path: Path, target: Path) -> str:
    """Return the error text of the failed unpacking."""
    with pytest.raises(UnpackFailed) as recorded:
        unpack(name, str(path), str(target))
    assert contents(target) == {}
    return str(recorded.value)


def peak_memory(action: Callable[[], object]) -> int:
    """Return the bytes that Python had at most while it ran."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x"])
def test_unsafe_zip(name: str, tmp_path: Path, target: Path) -> None:
    """A zip archive is refused by the name of a member that leads out."""
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("good", "g")
        archive.writestr(name, "x")
    assert repr(name) in refused("zip", path, target)


def test_zip_with_link(tmp_path: Path, target: Path) -> None:
    """A zip archive with a symbolic link is refused."""
    path = tmp_path / "x.zip"
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    assert "'link'" in refused("zip", path, target)


def test_zip_with_password(tmp_path: Path, target: Path) -> None:
    """A zip archive that needs a password is refused."""
    path, _ = packed_as("zip", tmp_path, b"content")
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    assert "encrypted" in refused("zip", path, target)


def test_link_in_the_directory(tmp_path: Path, target: Path) -> None:
    """A symbolic link in the target directory does not lead a member out of it."""
    (tmp_path / "outside").mkdir()
    (target / "d").symlink_to(tmp_path / "outside")
    path = make_tar(tmp_path / "x.tar", {"good": b"g", "d/x": b"x"})
    with pytest.raises(UnpackFailed, match="outside of"):
        unpack("tar", str(path), str(target))
    assert contents(tmp_path / "outside") == contents(target) == {}


def test_link_with_the_name_of_a_file(tmp_path: Path, target: Path) -> None:
    """A symbolic link with the name of an unpacked file is replaced, and its target is not changed."""
    (tmp_path / "outside").write_bytes(b"mine")
    (target / "x").symlink_to(tmp_path / "outside")
    unpack("tar", str(make_tar(tmp_path / "x.tar", {"x": b"x"})), str(target))
    assert (tmp_path / "outside").read_bytes() == b"mine"
    assert contents(target) == {"x": b"x"}


def test_archive_in_itself(tmp_path: Path, target: Path) -> None:
    """A member never replaces its own archive."""
    path = make_tar(target / "x.tar", {"good": b"g", "x.tar": b"x"})
    content = path.read_bytes()
    with pytest.raises(UnpackFailed, match="would replace the packed file"):
        unpack("tar", str(path), str(target))
    assert contents(target) == {"x.tar": content}


def test_directory_in_the_way(tmp_path: Path, target: Path) -> None:
    """Where a directory has the name of one file, none of the files appears."""
    (target / "b").mkdir()
    path = make_tar(tmp_path / "x.tar", {"a": b"a", "b": b"b"})
    with pytest.raises(UnpackHeld, match="is a directory"):
        unpack("tar", str(path), str(target))
    assert contents(target) == {"b/": b""}


def test_file_in_the_way_of_a_directory(tmp_path: Path, target: Path) -> None:
    """Where a file has the name of a directory that is needed, what appeared already goes away again."""
    (target / "d").write_bytes(b"mine")
    path = make_tar(tmp_path / "x.tar", {"a": b"a", "e/f": b"f", "d/b": b"b"})
    with pytest.raises(UnpackHeld):
        unpack("tar", str(path), str(target))
    assert contents(target) == {"d": b"mine"}


def test_name_too_long(tmp_path: Path, target: Path) -> None:
    """A member with a name that no file can have is refused, and nothing appears."""
    path = make_tar(tmp_path / "x.tar", {"a": b"a", "x" * 300: b"b"})
    assert "too long" in refused("tar", path, target)


# -- damage


@pytest.mark.parametrize("suffix", TAR_MODES)
def test_truncated_tar(suffix: str, tmp_path: Path, target: Path) -> None:
    """An archive that was cut anywhere is refused, between two members too."""
    complete = make_tar(tmp_path / f"x{suffix}", FILES, TAR_MODES[suffix]).read_bytes()
    end = complete.rstrip(b"\0") if suffix == ".tar" else complete
    step = 256 if suffix == ".tar" else 7
    for length in [*range(0, len(end), step), len(end) - 1]:
        (tmp_path / f"x{suffix}").write_bytes(complete[:length])
        assert "damaged" in refused("tar", tmp_path / f"x{suffix}", target), length


@pytest.mark.parametrize("name", ["bzip", "zip", "tar"])
def test_truncated(name: str, tmp_path: Path, target: Path) -> None:
    """A packed file that was cut anywhere is refused."""
    path, _ = packed_as(name, tmp_path, os.urandom(300))
    complete = path.read_bytes()
    for length in range(0, len(complete), 5):
        path.write_bytes(complete[:length])
        assert "damaged" in refused(name, path, target), length


@pytest.mark.parametrize("name", ["bzip", "zip", "tar"])
def test_any_damage(name: str, tmp_path: Path, target: Path) -> None:
    """One changed byte ends in a clear refusal, or the right content comes out; a wrong one never does."""
    content = os.urandom(60)
    path, unpacked = packed_as(name, tmp_path, content)
    complete = path.read_bytes()
    for at in range(len(complete)):
        path.write_bytes(complete[:at] + bytes([complete[at] ^ 0x55]) + complete[at + 1 :])
        with suppress(UnpackFailed):
            for file in unpack(name, str(path), str(target)):
                assert Path(file).read_bytes() == content, at
                os.unlink(file)
        assert not any(p.is_file() for p in target.rglob("*")), (at, unpacked)


def test_random_bytes(tmp_path: Path, target: Path) -> None:
    """A file that is not an archive is rejected."""
    for name in ("tar", "bzip", "zip"):
        path = tmp_path / f"x{SUFFIXES[name][0]}"
        for content in (b"", b"x", os.urandom(2000), b"\x1f\x8b" + os.urandom(600), b"BZh9" + os.urandom(600)):
            path.write_bytes(content)
            refused(name, path, target)


def test_zeros(tmp_path: Path, target: Path) -> None:
    """A file of zeros, as a power cut leaves it, is refused, though it reads as an archive without members."""
    (tmp_path / "x.tar").write_bytes(bytes(100_000))
    assert "contains no file" in refused("tar", tmp_path / "x.tar", target)


# -- whole or not at all


@pytest.mark.parametrize("name", ["bzip", "zip", "tar", "xrit"])
def test_full_disk(name: str, tmp_path: Path) -> None:
    """A disk without room is a temporary error, after which it has as much room as before."""
    content = os.urandom(1000) + bytes(2 * SIZE)
    packed, unpacked = packed_as(name, tmp_path, content) if name != "xrit" else (tmp_path / "file.datC_", "file.dat__")
    if name == "xrit":
        packed.write_bytes(content)
    program = make_program(tmp_path / "prog", XRIT)
    with small_disk(tmp_path / "disk") as disk:
        free = os.statvfs(disk).f_bavail
        with pytest.raises(TemporaryUnpackError, match="No space"):
            unpack(name, str(packed), str(disk), program=program)
        assert contents(disk) == {}
        assert os.statvfs(disk).f_bavail == free
        (disk / unpacked).write_bytes(b"old")
        with pytest.raises(TemporaryUnpackError):
            unpack(name, str(packed), str(disk), program=program)
        assert contents(disk) == {unpacked: b"old"}


def test_replaced_at_once(tmp_path: Path, target: Path) -> None:
    """A reader sees the file of before or the new one, whole, however often it is unpacked."""
    size = 200_000
    for n in range(2):
        (tmp_path / str(n)).mkdir()
    packed = [make_tar(tmp_path / str(n) / "x.tgz", {"d/f": bytes([n]) * size}, "w:gz") for n in range(2)]
    unpack("tar", str(packed[0]), str(target))
    done = threading.Event()

    def read() -> set[bytes]:
        seen = set()
        while not done.is_set():
            content = (target / "d/f").read_bytes()
            seen.add(content[:1] if content == content[:1] * size else b"short")
        return seen

    with ThreadPoolExecutor(1) as reader:
        seen = reader.submit(read)
        for n in range(40):
            unpack("tar", str(packed[n % 2]), str(target), block_size=1000)
        done.set()
    assert seen.result() <= {b"\0", b"\1"}


def test_many_at_once(tmp_path: Path, target: Path) -> None:
    """Unpackings in one directory do not disturb one another, not even those of one archive."""
    packed = [make_tar(tmp_path / f"{n}.tar", {f"shared/{n}/{m}": b"%d" % m for m in range(20)}) for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda path: unpack("tar", str(path), str(target)), packed * 5))
    assert [len(files) for files in results] == [20] * 40
    assert contents(target) == {f"shared/{n}/{m}": b"%d" % m for n in range(8) for m in range(20)}


def test_failure_next_to_success(tmp_path: Path, target: Path) -> None:
    """The cleanup of a failed unpacking does not disturb a parallel one."""
    good = make_tar(tmp_path / "good.tar", {f"shared/d/{n}": b"x" for n in range(10)})
    bad = make_tar(tmp_path / "bad.tar", {"shared/d/bad": b"x", "elsewhere/x": b"x"})
    done = threading.Event()

    def fail() -> None:
        while not done.is_set():
            with pytest.raises(UnpackHeld, match="cross-device"):
                unpack("tar", str(bad), str(target))

    with small_disk(target / "elsewhere"), ThreadPoolExecutor(2) as pool:
        failing = [pool.submit(fail) for _ in range(2)]
        try:
            for _ in range(50):
                assert len(unpack("tar", str(good), str(target))) == 10
                for n in range(10):
                    os.unlink(target / f"shared/d/{n}")
        finally:
            done.set()
        for future in failing:
            future.result()


def test_failure_at_the_end(tmp_path: Path, target: Path) -> None:
    """When one file of several cannot get its name, those that are new go away again, and the old ones stay."""
    path = make_tar(tmp_path / "x.tar", {"new": b"n", "d/e/new": b"n", "old": b"new", "elsewhere/x": b"x", "z": b"z"})
    (target / "old").write_bytes(b"old")
    with small_disk(target / "elsewhere"):  # which is another file system
        with pytest.raises(UnpackHeld, match="cross-device"):
            unpack("tar", str(path), str(target))
        assert contents(target).keys() == {"old", "elsewhere/"}


def test_no_inodes(tmp_path: Path) -> None:
    """A disk that has room for fewer files, whichever is the one too many, has none of them afterwards."""
    files = {"a": b"a", "d/b": b"b", "d/e/c": b"c"}
    path = make_tar(tmp_path / "x.tar", files)
    outcomes = []
    for inodes in range(2, 14):
        with small_disk(tmp_path / f"disk{inodes}") as disk:
            remounted = ["mount", "-o", f"remount,nr_inodes={inodes}", str(disk)]
            subprocess.run(remounted, check=True, capture_output=True)
            try:
                unpack("tar", str(path), str(disk))
            except TemporaryUnpackError:
                outcomes.append("refused")
                assert contents(disk) == {}, inodes
            else:
                outcomes.append("done")
                assert contents(disk) == files
    assert outcomes == sorted(outcomes, reverse=True)
    assert set(outcomes) == {"refused", "done"}


CHILD = """
import sys
from trollmoves.unpacking import unpack
name, path, directory, program = sys.argv[1:]
unpack(name, path, directory, program=program, block_size=1)
"""


@contextmanager
def killed_in_the_middle(name: str, packed: Path, target: Path, program: str = "") -> Iterator[Path]:
    """Unpack in another process, kill it when something is unpacked; give the hidden directory that it left."""
    child = subprocess.Popen([sys.executable, "-c", CHILD, name, str(packed), str(target), program])
    try:
        until(
            lambda: any(path.is_file() and path.stat().st_size > 100 for path in target.rglob("*")),
            what="something is unpacked",
        )
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    (hidden,) = target.iterdir()
    assert hidden.name.startswith(".")
    yield hidden


@pytest.mark.parametrize("name", ["bzip", "tar", "zip"])
def test_kill(name: str, tmp_path: Path, target: Path) -> None:
    """After a kill -9 in the middle nothing is to be seen, and unpacking again leaves the result alone."""
    content = bytes(4_000_000)
    packed, unpacked = packed_as(name, tmp_path, content)
    with killed_in_the_middle(name, packed, target):
        assert unpack(name, str(packed), str(target)) == [str(target / unpacked)]
        assert contents(target) == {unpacked: content}


def test_kill_with_program_running(tmp_path: Path, target: Path) -> None:
    """A program that outlives a killed process does no harm to the next unpacking of the same file."""
    packed = tmp_path / "xC_"
    packed.write_bytes(b"a" * 1000)
    program = make_program(
        tmp_path / "prog",
        f'echo $$ > {tmp_path}/pid\nhead -c 500 "$1" > x__\nread wait < {tmp_path}/go\necho more > x__',
    )
    os.mkfifo(tmp_path / "go")
    with killed_in_the_middle("xrit", packed, target, program):
        assert unpack("xrit", str(packed), str(target), program=make_program(tmp_path / "prog2", XRIT))
        assert contents(target) == {"x__": b"A" * 1000}
        (tmp_path / "go").write_text("go\n")
        pid = int((tmp_path / "pid").read_text())
        until(lambda: not is_running(pid), what="the program ends")
    assert contents(target) == {"x__": b"A" * 1000}


def is_running(pid: int) -> bool:
    """Return True if there is such a process that has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("in_the_way", ["file", "link"])
def test_hidden_name_taken(in_the_way: str, tmp_path: Path, target: Path) -> None:
    """Another user's file, or link, under the hidden name is neither used nor changed."""
    packed, unpacked = packed_as("bzip", tmp_path, bytes(4_000_000))
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").write_bytes(b"mine")
    with killed_in_the_middle("bzip", packed, target) as hidden:
        hidden.rename(tmp_path / "moved")
        if in_the_way == "file":
            hidden.write_bytes(b"mine")
        else:
            hidden.symlink_to(outside)
        unpack("bzip", str(packed), str(target))
        assert {path.name for path in target.iterdir()} == {unpacked, hidden.name}
        assert contents(outside) == {"mine": b"mine"}


def test_memory(tmp_path: Path, target: Path) -> None:
    """Memory does not grow with the size of the unpacked files."""
    content = bytes(12_000_000)
    for name in ("bzip", "tar", "zip"):
        packed, unpacked = packed_as(name, tmp_path, content)
        peak = peak_memory(lambda name=name, packed=packed: unpack(name, str(packed), str(target), block_size=1 << 16))  # type: ignore[misc]
        assert peak < 4_000_000, name
        assert (target / unpacked).stat().st_size == len(content)


# -- the program


@pytest.fixture
def segment(tmp_path: Path) -> Path:
    """Return a packed segment."""
    path = tmp_path / "H-000-C_"
    path.write_bytes(b"segment")
    return path


def failed(segment: Path, target: Path, program: str | None, kind: type[UnpackError], timeout: float = 60) -> str:
    """Return the error text of the failed unpacking of the segment."""
    with pytest.raises(kind) as recorded:
        unpack("xrit", str(segment), str(target), program=program, program_timeout=timeout)
    assert type(recorded.value) is kind
    assert contents(target) == {}
    return str(recorded.value)


def test_program_on_the_path(segment: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the option the program is looked for in $PATH; when it is not there, the error names the option."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    recorded = failed(segment, target, None, TemporaryUnpackError)
    assert "xRITDecompress is not in $PATH" in recorded
    assert "prog (server) or xritdecompressor (client)" in recorded
    (tmp_path / "bin").mkdir()
    make_program(tmp_path / "bin/xRITDecompress", XRIT)
    assert unpack("xrit", str(segment), str(target)) == [str(target / "H-000-__")]


def test_program_gets_no_secrets(segment: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program gets the search path and the locale, and no other variable."""
    for name, value in {
        "FEED_PASSPHRASE": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "LD_PRELOAD": "",
        "LANG": "C.UTF-8",
    }.items():
        monkeypatch.setenv(name, value)
    program = make_program(tmp_path / "prog", "env > x__")
    (path,) = unpack("xrit", str(segment), str(target), program=program)
    given = {line.partition("=")[0] for line in Path(path).read_text().splitlines()}
    assert {"PATH", "LANG"} <= given
    assert given & {"FEED_PASSPHRASE", "AWS_SECRET_ACCESS_KEY", "LD_PRELOAD"} == set()


def test_program_missing(segment: Path, target: Path, tmp_path: Path) -> None:
    """A missing or invalid program is reported with the options that name it."""
    assert "option prog" in failed(segment, target, str(tmp_path / "prog"), TemporaryUnpackError)
    (tmp_path / "prog").write_text("#!/does/not/exist\n")
    assert "option prog" in failed(segment, target, str(tmp_path / "prog"), TemporaryUnpackError)
    (tmp_path / "prog").chmod(0o755)
    assert "option prog" in failed(segment, target, str(tmp_path / "prog"), TemporaryUnpackError)


def test_program_fails(segment: Path, target: Path, tmp_path: Path) -> None:
    """The last output of the program is reported, without secrets."""
    program = make_program(
        tmp_path / "prog", "echo x > x__; echo first >&2; echo 'bad segment of ftp://me:secret@host/x' >&2; exit 3"
    )
    recorded = failed(segment, target, program, UnpackFailed)
    assert "bad segment of ftp://me@host/x (exit status 3)" in recorded
    assert "first" not in recorded
    assert "prog" in recorded
    assert "H-000-C_" in recorded


def test_program_makes_nothing(segment: Path, target: Path, tmp_path: Path) -> None:
    """A program that ends well without a file, or with an empty one, has failed."""
    assert "made no file; its output: sorry" in failed(
        segment, target, make_program(tmp_path / "prog", "echo sorry"), UnpackFailed
    )
    assert "made no file" in failed(segment, target, make_program(tmp_path / "prog", ": > H-000-__"), UnpackFailed)
    assert "made no file" in failed(
        segment, target, make_program(tmp_path / "prog", "ln -s /etc/passwd H-000-__; mkdir d"), UnpackFailed
    )


def test_program_ended(segment: Path, target: Path, tmp_path: Path) -> None:
    """When the program is killed from outside the same may succeed later; when it crashes it will not."""
    recorded = failed(segment, target, make_program(tmp_path / "prog", "kill -KILL $$"), TemporaryUnpackError)
    assert "signal 9" in recorded
    failed(segment, target, make_program(tmp_path / "prog", "kill -SEGV $$"), UnpackFailed)


def test_program_hangs(segment: Path, target: Path, tmp_path: Path) -> None:
    """A program that does not end is ended, with those that it started."""
    program = make_program(
        tmp_path / "prog", f"sleep 600 & echo $! > {tmp_path}/pid.new; mv {tmp_path}/pid.new {tmp_path}/pid; wait"
    )
    recorded = failed(segment, target, program, TemporaryUnpackError, timeout=1)
    assert "after 1 s" in recorded
    pid = int((tmp_path / "pid").read_text())
    until(lambda: not is_running(pid), what="its child ends")


@pytest.mark.parametrize(
    ("script", "result"),
    [
        ("cp \"$1\" Other; echo 'Decompressed file: Other'", "Other"),
        ("cp \"$1\" Other; echo core > core; echo 'Decompressed file: ./Other'", "Other"),
        ('cp "$1" Other', "Other"),
        ("cp \"$1\" H-000-__; echo log > a.log; echo 'Decompressed file: elsewhere'", "H-000-__"),
    ],
)
def test_program_names_its_result(script: str, result: str, segment: Path, target: Path, tmp_path: Path) -> None:
    """The result is the file of the expected name, the one that the program names, or the only one."""
    assert unpack("xrit", str(segment), str(target), program=make_program(tmp_path / "prog", script)) == [
        str(target / result)
    ]
    assert contents(target) == {result: b"segment"}


def test_program_sees(segment: Path, target: Path, tmp_path: Path) -> None:
    """The program runs in an empty hidden directory below the target, with one absolute path and no input."""
    program = make_program(
        tmp_path / "prog",
        f'cat; {{ pwd; ls -A | wc -l; echo $#; echo "$1"; }} > {shlex.quote(str(tmp_path / "seen"))}; echo x > x__',
    )
    unpack("xrit", str(segment), str(target), program=program)
    directory, entries, arguments, path = (tmp_path / "seen").read_text().splitlines()
    assert os.path.relpath(directory, target).startswith(".H-000-C_")
    assert (entries.strip(), arguments, os.path.basename(path)) == ("0", "1", segment.name)
    assert os.path.isabs(path)


@pytest.mark.parametrize("kind", ["bzip", "tar", "xrit"])
def test_path_that_leads_elsewhere_after_the_check(kind: str, target: Path, tmp_path: Path) -> None:
    """All content comes from the file that was opened and checked, whatever its path becomes."""
    name = {"bzip": "a.bz2", "tar": "a.tar", "xrit": "a-C_"}[kind]
    for content in "good", "secret":
        (tmp_path / content).mkdir()
        (tmp_path / content / "a").write_text(content)
        packed = tmp_path / content / name
        if kind == "tar":
            with tarfile.open(packed, "w") as archive:
                archive.add(tmp_path / content / "a", "a")
        else:
            packed.write_bytes(bz2.compress(content.encode()) if kind == "bzip" else content.encode())

    def exchange(fd: int) -> None:
        os.unlink(tmp_path / "good" / name)
        os.symlink(tmp_path / "secret" / name, tmp_path / "good" / name)

    program = make_program(tmp_path / "prog", 'cp "$1" a')
    (member,) = unpack(kind, str(tmp_path / "good" / name), str(target), program=program, on_opened=exchange)
    assert Path(member).read_text() == "good"


def test_file_that_is_rewritten_while_it_is_unpacked(segment: Path, target: Path, tmp_path: Path) -> None:
    """A file that is modified while it is unpacked gives no result, and is unpacked again later."""
    program = make_program(tmp_path / "prog", f'cp "$1" H-000-__; echo more >> {shlex.quote(str(segment))}')
    with pytest.raises(TemporaryUnpackError, match="was modified while it was being unpacked"):
        unpack("xrit", str(segment), str(target), program=program)
    assert not contents(target)


def test_program_that_says_much(segment: Path, target: Path, tmp_path: Path) -> None:
    """A program that prints megabytes is not held up by it, nor kept in memory."""
    program = make_program(tmp_path / "prog", f"head -c 8000000 /dev/zero; head -c 8000000 /dev/zero >&2; {XRIT}")
    assert peak_memory(lambda: unpack("xrit", str(segment), str(target), program=program)) < 1_000_000
    assert contents(target) == {"H-000-__": b"SEGMENT"}
