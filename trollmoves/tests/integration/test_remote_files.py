"""The published data of a file suffice to read it remotely by fsspec."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trollmoves.errors import UnpackFailed
from trollmoves.server.remote_files import (
    ArchiveContents,
    describe,
    describe_members,
    read_archive_contents,
    with_metadata,
)
from trollmoves.tests.servers import openssh
from trollmoves.tests.servers.process import HOST

METADATA = {"sensor": "seviri", "bands": ["a", "b"], "series": "A"}
FILES = {
    "top/one.txt": b"one",
    "top/a b/two#x?%20.txt": b"two" * 1000,
    "top/é.txt": b"three",
    "./here.txt": b"here",
}
SUFFIXES = {".tar": "w", ".tar.gz": "w:gz", ".tgz": "w:gz", ".tar.bz2": "w:bz2"}


def make_archive(directory: Path, suffix: str, files: dict[str, bytes] = FILES) -> Path:
    """Write an archive of these files, with an empty directory before them."""
    path = directory / f"an archive{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w") as packed:
            packed.writestr("top/", "")
            for name, content in files.items():
                packed.writestr(name, content)
        return path
    with tarfile.open(path, SUFFIXES[suffix]) as archive:  # type: ignore[call-overload]
        info = tarfile.TarInfo("top/")
        info.type = tarfile.DIRTYPE
        archive.addfile(info)
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def kind(suffix: str) -> str:
    """Return the kind of archive that has this suffix."""
    return "zip" if suffix == ".zip" else "tar"


def add_link(path: Path, name: str, target: str, type_: bytes) -> None:
    """Append a link to a tar archive."""
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = type_, target
        archive.addfile(info)


# -- the data, key by key


def test_file() -> None:
    """The data of a file are the same as those of trollmoves 0.19, in the same order."""
    assert json.dumps(with_metadata(describe("/abs/x y.dat", "vm"), METADATA)) == json.dumps(
        {
            "filesystem": {
                "cls": "fsspec.implementations.sftp.SFTPFileSystem",
                "args": [],
                "host": "vm",
                "protocol": "ssh",
            },
            "uri": "ssh://vm/abs/x y.dat",
            "uid": "ssh://vm/abs/x y.dat",
            "sensor": "seviri",
            "bands": ["a", "b"],
            "series": "A",
        }
    )


@pytest.mark.parametrize(
    ("kind", "cls"),
    [
        ("tar", "fsspec.implementations.tar:TarFileSystem"),
        ("zip", "fsspec.implementations.zip:ZipFileSystem"),
    ],
)
def test_members(kind: str, cls: str) -> None:
    """The data of members are the same as those of trollmoves 0.19, in the same order."""
    path = f"/abs/x.{kind}"
    members = describe_members(path, "vm", ArchiveContents(kind, ["a b/1", "2"], None))
    assert json.dumps(with_metadata(members, METADATA)) == json.dumps(
        {
            "dataset": [
                {
                    "filesystem": {
                        "cls": cls,
                        "protocol": kind,
                        "args": [],
                        "fo": path,
                        "target_protocol": "ssh",
                        "target_options": {"host": "vm"},
                    },
                    "uri": f"{kind}://{name}::ssh://vm{path}",
                    "uid": f"{kind}://{name}",
                }
                for name in ("a b/1", "2")
            ],
            "sensor": "seviri",
            "bands": ["a", "b"],
            "series": "A",
        }
    )


def test_metadata_hides_nothing() -> None:
    """Metadata with the same keys never replace the location of the file."""
    mine = {"uri": "x", "uid": "x", "filesystem": "x", "dataset": "x", "more": 1}
    assert with_metadata(describe("/x", "vm"), mine) == describe("/x", "vm") | {"dataset": "x", "more": 1}
    members = describe_members("/x.tar", "vm", ArchiveContents("tar", ["a"], None))
    assert with_metadata(members, mine)["dataset"] == members["dataset"]


def test_relative_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Readers elsewhere get the absolute path."""
    monkeypatch.chdir(tmp_path)
    assert describe("x", "vm")["uri"] == f"ssh://vm{tmp_path}/x"


# -- members of an archive


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".zip"])
def test_names(suffix: str, tmp_path: Path) -> None:
    """The files of an archive are listed in its order, without directories."""
    contents = read_archive_contents(str(make_archive(tmp_path, suffix)), kind(suffix))
    assert contents.names == list(FILES)
    assert contents.compression == {".tar": None, ".zip": None, ".tar.bz2": "bz2"}.get(suffix, "gzip")


def test_links(tmp_path: Path) -> None:
    """Links to files of the archive are listed, others are not."""
    path = make_archive(tmp_path, ".tar")
    for name, target, type_ in [
        ("top/soft", "one.txt", tarfile.SYMTYPE),
        ("hard", "top/one.txt", tarfile.LNKTYPE),
        ("./chain", "top/soft", tarfile.SYMTYPE),
        ("to here", "here.txt", tarfile.SYMTYPE),
        ("dangling", "nothing", tarfile.SYMTYPE),
        ("directory", "top", tarfile.SYMTYPE),
        ("out", "../../etc/passwd", tarfile.SYMTYPE),
        ("self", "self", tarfile.SYMTYPE),
    ]:
        add_link(path, name, target, type_)
    contents = read_archive_contents(str(path), "tar")
    assert contents.names == [*FILES, "top/soft", "hard", "./chain", "to here"]
    assert set(read_locally(describe_members(str(path), "vm", contents)).values()) == set(FILES.values())


def test_same_name_twice(tmp_path: Path) -> None:
    """A file that was added twice is listed once."""
    path = make_archive(tmp_path, ".tar")
    with tarfile.open(path, "a") as archive:
        archive.addfile(tarfile.TarInfo("top/one.txt"))
    assert read_archive_contents(str(path), "tar").names == [*list(FILES)[1:], "top/one.txt"]


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".zip"])
def test_damage(suffix: str, tmp_path: Path) -> None:
    """An archive that was cut anywhere is refused, with its path."""
    path = make_archive(tmp_path, suffix)
    whole = path.read_bytes()
    end = whole.rstrip(b"\0") if suffix == ".tar" else whole
    for length in range(0, len(end), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(UnpackFailed, match="damaged") as recorded:
            read_archive_contents(str(path), kind(suffix))
        assert str(path) in str(recorded.value)


def test_no_description(tmp_path: Path) -> None:
    """An archive without files, one that is missing, and one with an absolute path are refused."""
    for suffix in (".tar", ".zip"):
        with pytest.raises(UnpackFailed, match="contains no file"):
            read_archive_contents(str(make_archive(tmp_path, suffix, {})), kind(suffix))
        with pytest.raises(UnpackFailed, match="absolute"):
            read_archive_contents(str(make_archive(tmp_path, suffix, {"/abs": b""})), kind(suffix))
        with pytest.raises(UnpackFailed, match="No such file"):
            read_archive_contents(str(tmp_path / "x.tar"), kind(suffix))


def test_large_archive(tmp_path: Path) -> None:
    """An uncompressed archive is listed without reading all of it."""
    path = tmp_path / "x.tar"
    size = 2_000_000_000_000
    with path.open("wb") as file:
        for name in ("a", "b"):
            info = tarfile.TarInfo(name)
            info.size = size
            file.write(info.tobuf(tarfile.GNU_FORMAT))
            file.seek(size, os.SEEK_CUR)
        file.write(bytes(1024))
    assert read_archive_contents(str(path), "tar").names == ["a", "b"]


# -- read by fsspec


def read(recorded: dict[str, Any], path: str) -> bytes:
    """Read a file by its published file system."""
    fsspec = pytest.importorskip("fsspec")
    far = fsspec.AbstractFileSystem.from_dict(json.loads(json.dumps(recorded)))  # it closes its files when it goes away
    with far.open(path) as file:
        content: bytes = file.read()
    return content


def read_locally(data: dict[str, Any]) -> dict[str, bytes]:
    """Read the members of a dataset as if this host were the remote one; return them by name."""
    found = {}
    for item in data["dataset"]:
        recorded = item["filesystem"]
        recorded["target_protocol"], recorded["target_options"] = "file", {}
        name = item["uid"].partition("://")[2]
        found[name] = read(recorded, item["uid"])
        # The chained URI could be opened instead if fsspec supported the compression there.
        uri = item["uri"].replace("::ssh://vm", "::file://")
        with pytest.importorskip("fsspec").open(uri, **{recorded["protocol"]: arguments(recorded)}) as file:
            assert file.read() == found[name]
    return found


def arguments(recorded: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that the chained URI lacks."""
    return {key: value for key, value in recorded.items() if key == "compression"}


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".zip"])
def test_readable(suffix: str, tmp_path: Path) -> None:
    """Each published member can be read by its published data."""
    path = make_archive(tmp_path, suffix)
    data = describe_members(str(path), "vm", read_archive_contents(str(path), kind(suffix)))
    assert read_locally(data) == FILES


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openssh.OpenSsh]:
    """Run an sshd."""
    if openssh.missing():
        pytest.skip(openssh.missing())
    with openssh.OpenSsh(tmp_path_factory.mktemp("sshd")) as server:
        assert isinstance(server, openssh.OpenSsh)
        yield server


def login(server: openssh.OpenSsh) -> dict[str, Any]:
    """Return the arguments that a reader adds to the published data."""
    return {
        "port": server.port,
        "username": server.user,
        "key_filename": str(server.user_key),
        "look_for_keys": False,
        "allow_agent": False,
    }


def test_file_by_ssh(sshd: openssh.OpenSsh, tmp_path: Path) -> None:
    """A published file can be read over SSH."""
    path = tmp_path / "x y#é.dat"
    path.write_bytes(b"content")
    data = describe(str(path), HOST)
    assert read(data["filesystem"] | login(sshd), data["uri"]) == b"content"


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".zip"])
def test_members_by_ssh(suffix: str, sshd: openssh.OpenSsh, tmp_path: Path) -> None:
    """Each published member can be read over SSH."""
    path = make_archive(tmp_path, suffix)
    for item in describe_members(str(path), HOST, read_archive_contents(str(path), kind(suffix)))["dataset"]:
        recorded = item["filesystem"]
        recorded["target_options"] |= login(sshd)
        assert read(recorded, item["uid"]) == FILES[item["uid"].partition("://")[2]]


def test_compression_is_detected_by_content(tmp_path: Path) -> None:
    """The compression of an archive is detected by its content, not by its name."""
    plain = make_archive(tmp_path, ".tar").read_bytes()
    path = tmp_path / "x.tar"
    for compress, name in ((gzip.compress, "gzip"), (bz2.compress, "bz2")):
        path.write_bytes(compress(plain))
        contents = read_archive_contents(str(path), "tar")
        assert contents == ArchiveContents("tar", list(FILES), name)
        assert read_locally(describe_members(str(path), "vm", contents)) == FILES
