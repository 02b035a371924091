"""Descriptions of files for reading them remotely with fsspec.

These are the data of the messages of a server without a request port. A reader passes ``filesystem`` to fsspec's
``AbstractFileSystem.from_dict`` and opens the path there, or opens the chained ``uri``; it needs its own login on the
host. This module opens no connections.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Mapping
from contextlib import closing
from types import MappingProxyType
from typing import Any, NamedTuple

from trollmoves.config.options import ServerOptions
from trollmoves.errors import UnpackFailed
from trollmoves.provider.announcer import Announcement
from trollmoves.server.symlink_policy import SymlinkPolicy
from trollmoves.unpacking import archive_reader
from trollmoves.unpacking.archive_reader import Member, MemberKind
from trollmoves.unpacking.packed_file import PackedFile

PROTOCOL = "ssh"
_SINGLE = "fsspec.implementations.sftp.SFTPFileSystem"
_ARCHIVE: Mapping[str, str] = MappingProxyType(
    {"tar": "fsspec.implementations.tar:TarFileSystem", "zip": "fsspec.implementations.zip:ZipFileSystem"}
)


class ArchiveContents(NamedTuple):
    """The parts of an archive that readers need to know."""

    kind: str  # tar or zip
    names: list[str]  # of its files, in the order of the archive, as fsspec opens them
    compression: str | None  # gzip or bz2 for compressed tar archives, else None


class RemoteFileDescriber:
    """Creates the messages of a chain without a request port."""

    def __init__(self, options: ServerOptions, symlink_policy: SymlinkPolicy) -> None:
        self._symlink_policy = symlink_policy
        self._options = options
        self._host = options.request_address or socket.gethostname()

    def describe(self, announcement: Announcement) -> tuple[str, dict[str, Any]]:
        """Return the type and data of the message with which readers can open a file."""
        path = announcement.uri
        metadata = {key: value for key, value in announcement.data.items() if key not in ("uri", "uid")}
        if self._options.unpack is None:
            return "file", with_metadata(describe(path, self._host), metadata)
        members = read_archive_contents(
            path,
            self._options.unpack,
            lambda fd: self._symlink_policy.check_opened(path, fd, announcement.extra_metadata),
        )
        return "dataset", with_metadata(describe_members(path, self._host, members), metadata)


def describe(path: str, host: str) -> dict[str, Any]:
    """Return the data of a ``file`` message about a file; it need not exist. Readers reach this host by ``host``."""
    uri = _uri(path, host)
    filesystem = {"cls": _SINGLE, "args": [], "host": host, "protocol": PROTOCOL}
    return {"filesystem": filesystem, "uri": uri, "uid": uri}


def describe_members(path: str, host: str, contents: ArchiveContents) -> dict[str, Any]:
    """Return the data of a ``dataset`` message about the files in an archive. Readers reach this host by ``host``."""
    archive_uri, filesystem = _uri(path, host), _filesystem(path, host, contents)
    return {
        "dataset": [
            {
                "filesystem": filesystem,
                "uri": f"{contents.kind}://{name}::{archive_uri}",
                "uid": f"{contents.kind}://{name}",
            }
            for name in contents.names
        ]
    }


def with_metadata(data: dict[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data of a message with more items, which replace none."""
    return data | {key: value for key, value in metadata.items() if key not in data}


def read_archive_contents(path: str, kind: str, on_opened: Callable[[int], None] | None = None) -> ArchiveContents:
    """Return the names of the files in an archive. Any thread; slow for large compressed archives.

    Links in a tar archive count as files if they lead to a file in it, since fsspec follows them.

    Args:
        path: the archive.
        kind: ``tar`` or ``zip``.
        on_opened: called with the descriptor of the archive before it is read; its exceptions propagate.

    Raises:
        UnpackFailed: the archive is damaged, contains no file, or contains a file that fsspec cannot open.
        TemporaryUnpackError: the archive cannot be read now.
        KeyError: unknown ``kind``.
    """
    names: dict[str, str] = {}
    links: dict[str, str] = {}
    with PackedFile(path, on_opened) as packed, archive_reader.translate_os_errors(path):
        compression = archive_reader.tar_compression(packed) if kind == "tar" else None
        with closing(archive_reader.members(packed, kind)) as members:
            for member in members:
                _add_member(member, _name(member, kind, path), names, links)
    files = names.keys() - links.keys()
    found = [shown for name, shown in names.items() if archive_reader.resolve_link(name, links) in files]
    if not found:
        raise UnpackFailed(f"{path} contains no file")
    return ArchiveContents(kind, found, compression)


def _add_member(member: Member, shown: str, names: dict[str, str], links: dict[str, str]) -> None:
    """Add a member; it replaces an earlier one of the same name."""
    name = os.path.normpath(shown)
    names.pop(name, None)
    links.pop(name, None)
    if member.kind in (MemberKind.FILE, MemberKind.LINK):
        names[name] = shown
    if member.kind is MemberKind.LINK:
        links[name] = member.target


def _name(member: Member, kind: str, path: str) -> str:
    """Return the name by which fsspec opens the member."""
    if member.name.startswith("/"):
        raise UnpackFailed(f"{path}: its member {member.name[:300]!r} has an absolute path, which fsspec cannot open")
    return re.sub("/+", "/", member.name).rstrip("/") if kind == "tar" else member.name


def _filesystem(path: str, host: str, contents: ArchiveContents) -> dict[str, Any]:
    filesystem = {
        "cls": _ARCHIVE[contents.kind],
        "protocol": contents.kind,
        "args": [],
        "fo": os.path.abspath(path),
        "target_protocol": PROTOCOL,
        "target_options": {"host": host},
    }
    if contents.compression:
        filesystem["compression"] = contents.compression  # fsspec does not recognize names like x.tgz
    return filesystem


def _uri(path: str, host: str) -> str:
    return f"{PROTOCOL}://{host}{os.path.abspath(path)}"
