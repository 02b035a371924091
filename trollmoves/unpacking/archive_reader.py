"""Reads untrusted tar and zip archives.

This module only yields members with their names and data; the caller decides which names are safe to write.

Completeness is checked more strictly than by Python's modules: an archive without its end marker, or with an invalid
header in the middle, is damaged. Memory is bounded for any header.
"""

from __future__ import annotations

import bz2
import enum
import errno
import gzip
import lzma
import posixpath
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import IO, Any, BinaryIO, cast

from trollmoves.errors import TemporaryUnpackError, UnpackError, UnpackFailed, UnpackHeld
from trollmoves.unpacking.packed_file import PackedFile

MAX_MEMBERS = 100_000  # each takes a few hundred bytes of memory
MAX_LINK_DEPTH = 40  # links in a chain
BLOCK = 1 << 20  # maximum bytes read at a time
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    # Raised by the parsers for invalid fields, unknown ciphers and methods, and endless nesting.
    ValueError,
    LookupError,
    ArithmeticError,
    RuntimeError,
)
PARSER_ERRNOS = (
    None,
    errno.EINVAL,
)  # of an OSError for damaged data: gzip and bz2 set no errno; zipfile seeks to invalid offsets
HELD_ERRNOS = frozenset(
    {
        *(errno.EACCES, errno.EPERM, errno.EROFS),
        *(errno.EXDEV, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.EFBIG),
    }
)


class MemberKind(enum.Enum):
    """Type of a member."""

    FILE = enum.auto()
    DIRECTORY = enum.auto()
    LINK = enum.auto()
    OTHER = enum.auto()


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of an archive; all fields come from the archive and are untrusted."""

    name: str  # invalid UTF-8 is decoded as by os.fsdecode
    kind: MemberKind
    size: int
    mode: int = 0  # permission bits; 0 if unknown
    mtime: float | None = None  # s since 1970
    target: str = ""  # of a link: the member it points to; absolute or with ".." if it is outside
    open: Callable[[], IO[bytes] | None] = lambda: None

    def blocks(self, size: int = BLOCK) -> Iterator[bytes]:
        """Yield the data of a file in blocks of ``size`` bytes; for tar, before the next member is requested.

        Exceptions of the parser propagate: use this within ``translate_damage``.
        """
        file = self.open()
        if file is None:
            return
        with file:
            while block := file.read(min(size, BLOCK)):
                yield block


@contextmanager
def translate_damage(subject: str) -> Iterator[None]:
    """Translate exceptions of the parsers to ``UnpackFailed``; disk errors propagate."""
    try:
        yield
    except OSError as error:
        if error.errno not in PARSER_ERRNOS:
            raise
        raise UnpackFailed(f"{subject} is damaged: {error}") from error
    except _DAMAGE as error:
        raise UnpackFailed(f"{subject} is damaged: {error or type(error).__name__}") from error


@contextmanager
def translate_os_errors(action: str) -> Iterator[None]:
    """Translate ``OSError``; conditions that may end without a change, such as a full disk, are temporary."""
    try:
        yield
    except OSError as error:
        kind: type[UnpackError] = TemporaryUnpackError
        if error.errno in HELD_ERRNOS:
            kind = UnpackFailed if error.errno == errno.ENAMETOOLONG else UnpackHeld
        raise kind(f"{action}: {error.strerror or error}") from error


def members(packed: PackedFile, kind: str) -> Generator[Member, None, None]:
    """Yield the members of an open archive in order; any thread may call.

    If the iteration completes, the archive is undamaged.

    Args:
        packed: the archive; one iteration at a time.
        kind: ``tar``, optionally compressed by gzip or bzip2, or ``zip``.

    Raises:
        UnpackFailed: the archive is damaged, or has more than ``MAX_MEMBERS`` members.
        OSError: the archive cannot be read.
    """
    with translate_damage(packed.path), closing(_READERS[kind](packed.reader())) as found:
        for number, member in enumerate(found):
            if number == MAX_MEMBERS:
                raise UnpackFailed(f"{packed.path} has more than {MAX_MEMBERS} members")
            yield member


def resolve_link(name: str, links: Mapping[str, str]) -> str:
    """Return the target of a chain of links; of one longer than ``MAX_LINK_DEPTH``, a link in it."""
    for _ in range(MAX_LINK_DEPTH):
        if name not in links:
            break
        name = links[name]
    return name


def tar_compression(packed: PackedFile) -> str | None:
    """Return ``gzip``, ``bz2`` or None by the first bytes of a tar archive; raises OSError if it cannot be read."""
    return _compression(packed.reader().read(_MAX_MAGIC))


def _compression(start: bytes) -> str | None:
    return next((name for magic, name in _MAGIC.items() if start.startswith(magic)), None)


def _tar_members(packed: BinaryIO) -> Generator[Member, None, None]:
    with ExitStack() as stack:
        file: Any = packed
        compression = _compression(file.read(_MAX_MAGIC))
        file.seek(0)
        if compression:
            file = stack.enter_context(_DECOMPRESSORS[compression](file))
        forward = _ForwardOnlyFile(file)
        archive: Any = tarfile.TarFile(fileobj=cast("IO[bytes]", forward), encoding="utf-8", errors="surrogateescape")
        while (info := archive.next()) is not None:
            archive.members.clear()  # TarFile would keep all members in memory
            if info.size < 0:
                raise tarfile.ReadError("a negative size")
            yield _tar_member(archive, info)
        if forward.last != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("its end is missing" if not forward.last else "a header is invalid")
        while compression and file.read(BLOCK):
            pass  # read to the end, which holds the checksum


def _tar_member(archive: tarfile.TarFile, info: tarfile.TarInfo) -> Member:
    target = ""
    kind = MemberKind.OTHER
    if info.isreg():
        kind = MemberKind.FILE
    elif info.isdir():
        kind = MemberKind.DIRECTORY
    elif info.issym():
        kind, target = MemberKind.LINK, posixpath.join(posixpath.dirname(info.name), info.linkname)
    elif info.islnk():
        kind, target = MemberKind.LINK, info.linkname
    return Member(
        info.name,
        kind,
        info.size,
        info.mode & 0o7777,
        info.mtime,
        posixpath.normpath(target) if target else "",
        partial(archive.extractfile, info),
    )


def _zip_members(packed: BinaryIO) -> Generator[Member, None, None]:
    with zipfile.ZipFile(packed) as archive:
        for info in archive.infolist():
            mode = info.external_attr >> 16  # 0 unless made on a Unix system
            kind = MemberKind.FILE if stat.S_IFMT(mode) in (0, stat.S_IFREG) else MemberKind.OTHER
            if info.is_dir():
                kind = MemberKind.DIRECTORY
            yield Member(info.filename, kind, info.file_size, mode & 0o7777, open=partial(archive.open, info))


class _ForwardOnlyFile:
    """A file object that makes the tar reader go forward, in small steps.

    A header with a negative size would seek backwards and loop; a header of a gigabyte would be read into memory. Both
    are rejected. ``last`` is the block read last: a block of zeros at the end of an undamaged archive.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._offset = 0
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= BLOCK:
            raise tarfile.ReadError("a header is too long")
        self.last = self._stream.read(size)
        self._offset += len(self.last)
        return self.last

    def tell(self) -> int:
        return self._offset

    def seek(self, position: int) -> None:
        if position < self._offset:
            raise tarfile.ReadError("a header points backwards")
        if position > self._offset:
            self._offset = self._stream.seek(position)


_READERS = {"tar": _tar_members, "zip": _zip_members}
_DECOMPRESSORS: Mapping[str, Callable[[BinaryIO], Any]] = {"gzip": gzip.open, "bz2": bz2.open}
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bz2"}
_MAX_MAGIC = max(map(len, _MAGIC))
