"""Reads tar and zip archives, whoever made them.

Nothing is extracted here: an archive is a sequence of members, each with the name that its maker gave it and a way to
its bytes. Whoever writes them somewhere decides which names are safe.

Wholeness is checked further than Python's own modules do: an archive that ends without its end marker, or in whose
middle a header makes no sense, is damaged, not short. Memory is bounded, whatever a header claims.
"""

from __future__ import annotations

import bz2
import enum
import errno
import gzip
import lzma
import os
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
from types import MappingProxyType
from typing import IO, Any, cast

from trollmoves.errors import TemporaryUnpackError, UnpackError, UnpackFailed

MAX_MEMBERS = 100_000  # a few hundred bytes of memory each
MAX_LINK_DEPTH = 40  # from one to the next
BLOCK = 1 << 20  # bytes that are read at one time at most
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    # What the parsers meet in fields that make no sense, in ciphers and methods they do not know, in endless nesting.
    ValueError,
    LookupError,
    ArithmeticError,
    RuntimeError,
)
PARSER_ERRNOS = (None, errno.EINVAL)  # of an OSError: gzip and bz2 give no number; zipfile goes where it is led to
PERMANENT_ERRNOS = frozenset(
    {
        *(errno.EACCES, errno.EPERM, errno.EROFS),
        *(errno.EXDEV, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.EFBIG),
    }
)


class MemberKind(enum.Enum):
    """What a member is."""

    FILE = enum.auto()
    DIRECTORY = enum.auto()
    LINK = enum.auto()
    OTHER = enum.auto()


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of an archive, as the archive tells of it: any of this may be wrong or meant to harm."""

    name: str  # bytes that are no UTF-8 are decoded as os.fsdecode does
    kind: MemberKind
    size: int
    mode: int = 0  # permission bits; 0 where the archive knows none
    mtime: float | None = None  # s since 1970
    target: str = ""  # of a link: the name in the archive that it leads to; absolute or with ".." when it leads out
    open: Callable[[], IO[bytes] | None] = lambda: None

    def blocks(self, size: int = BLOCK) -> Iterator[bytes]:
        """Yield the bytes of a file, ``size`` at a time; of a tar archive's member before the next one is asked for.

        Damage is told as the parser does: use this in ``damage_told``.
        """
        file = self.open()
        if file is None:
            return
        with file:
            while block := file.read(min(size, BLOCK)):
                yield block


@contextmanager
def translate_damage(what: str) -> Iterator[None]:
    """Raise what a parser says of damaged data as ``UnpackFailed``; an error of the disk passes."""
    try:
        yield
    except OSError as error:
        if error.errno not in PARSER_ERRNOS:
            raise
        raise UnpackFailed(f"{what} is damaged: {error}") from error
    except _DAMAGE as error:
        raise UnpackFailed(f"{what} is damaged: {error or type(error).__name__}") from error


@contextmanager
def translate_os_errors(what: str) -> Iterator[None]:
    """Raise an ``OSError`` as one of our errors; what may pass by itself, such as a full disk, is temporary."""
    try:
        yield
    except OSError as error:
        kind: type[UnpackError] = UnpackFailed if error.errno in PERMANENT_ERRNOS else TemporaryUnpackError
        raise kind(f"{what}: {error.strerror or error}") from error


def check_is_file(path: str) -> None:
    """Raise ``UnpackFailed`` when ``path`` is missing, or no regular file."""
    try:
        is_file = stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError) as error:
        raise UnpackFailed(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    if not is_file:
        raise UnpackFailed(f"{path} is no regular file")


def members(path: str, kind: str) -> Generator[Member, None, None]:
    """Yield the members of the archive ``path``, in its order; any thread may call this.

    When the iteration comes to its end, the archive was whole. It is open until then, or until the iterator is closed.

    Args:
        path: the archive.
        kind: ``tar``, also compressed by gzip or bzip2, or ``zip``.

    Raises:
        UnpackFailed: the archive is damaged, or has more than ``MOST_MEMBERS`` members.
        OSError: it cannot be read.
    """
    with translate_damage(path), closing(_READERS[kind](path)) as found:
        for number, member in enumerate(found):
            if number == MAX_MEMBERS:
                raise UnpackFailed(f"{path} has more than {MAX_MEMBERS} members")
            yield member


def resolve_link(name: str, links: Mapping[str, str]) -> str:
    """Return where a link, or a chain of them, leads; of a longer chain than the kernel follows, one of its links."""
    for _ in range(MAX_LINK_DEPTH):
        if name not in links:
            break
        name = links[name]
    return name


def tar_compression(path: str) -> str | None:
    """Return ``gzip`` or ``bz2`` for a tar archive that is compressed so, by its first bytes; OSError as ``open``."""
    with open(path, "rb") as file:
        return _compression(file.read(_LONGEST_MAGIC))


def _compression(start: bytes) -> str | None:
    return next((name for magic, name in _MAGIC.items() if start.startswith(magic)), None)


def _tar_members(path: str) -> Generator[Member, None, None]:
    with ExitStack() as stack:
        file: Any = stack.enter_context(open(path, "rb"))
        compression = _compression(file.read(_LONGEST_MAGIC))
        file.seek(0)
        if compression:
            file = stack.enter_context(_DECOMPRESSORS[compression](file))
        forward = _ForwardOnlyFile(file)
        archive: Any = tarfile.TarFile(fileobj=cast("IO[bytes]", forward), encoding="utf-8", errors="surrogateescape")
        while (info := archive.next()) is not None:
            archive.members.clear()  # it would keep them all
            if info.size < 0:
                raise tarfile.ReadError("a negative size")
            yield _tar_member(archive, info)
        if forward.last != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("its end is missing" if not forward.last else "a header makes no sense")
        while compression and file.read(BLOCK):
            pass  # a checksum stands at the end


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


def _zip_members(path: str) -> Generator[Member, None, None]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            mode = info.external_attr >> 16  # 0 unless it was made on a system with such modes
            kind = MemberKind.FILE if stat.S_IFMT(mode) in (0, stat.S_IFREG) else MemberKind.OTHER
            if info.is_dir():
                kind = MemberKind.DIRECTORY
            yield Member(info.filename, kind, info.file_size, mode & 0o7777, open=partial(archive.open, info))


class _ForwardOnlyFile:
    """Keeps a tar archive's reader going forward, in small steps.

    A header with a negative size would lead backwards, and so round in a circle; one of a gigabyte would be read into
    memory. Both are refused. ``last`` is what was read last: where a sound archive ends that is a block of zeros.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._at = 0
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= BLOCK:
            raise tarfile.ReadError("a header is too long")
        self.last = self._stream.read(size)
        self._at += len(self.last)
        return self.last

    def tell(self) -> int:
        return self._at

    def seek(self, position: int) -> None:
        if position < self._at:
            raise tarfile.ReadError("a header leads backwards")
        if position > self._at:
            self._at = self._stream.seek(position)


_READERS: Mapping[str, Callable[[str], Generator[Member, None, None]]] = MappingProxyType(
    {"tar": _tar_members, "zip": _zip_members}
)
_DECOMPRESSORS: Mapping[str, Callable[[Any], Any]] = MappingProxyType(
    {"gzip": lambda file: gzip.GzipFile(fileobj=file), "bz2": bz2.BZ2File}
)
_MAGIC: Mapping[bytes, str] = MappingProxyType({b"\x1f\x8b": "gzip", b"BZh": "bz2"})
_LONGEST_MAGIC = max(map(len, _MAGIC))
