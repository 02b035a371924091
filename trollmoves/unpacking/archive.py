"""Unpacks the files of an archive, unless one of its members is not safe.

Members are written to numbered files in a directory of our own and get their names only when all of them are there, so
that no name in an archive is ever used for writing, and one bad member keeps the others from appearing. A link becomes
a file with what it leads to, if that is in the archive; a directory appears when there is a file in it.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from contextlib import closing, suppress

from trollmoves.errors import UnpackFailed
from trollmoves.unpacking import archive_reader
from trollmoves.unpacking.archive_reader import Member, MemberKind
from trollmoves.unpacking.staging import StagingDirectory, is_staging_name

_LONGEST_SHOWN = 300  # characters of a refused name that are repeated
_LONGEST_PATH = 4096  # characters, Linux's limit in bytes
_BECOMES_ANOTHER_USER = stat.S_ISUID | stat.S_ISGID
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def unpack_archive(kind: str, place: StagingDirectory, block_size: int) -> list[str]:
    """Install the files of the archive ``place.packed``; return their paths in its order.

    Args:
        kind: as for ``archives.members``.
        place: where, and of what.
        block_size: bytes that are read at a time.

    Raises:
        UnpackFailed: it is damaged, or a member is not safe.
        OSError: it cannot be read, or the files not written.
    """
    files: dict[str, str] = {}
    links: dict[str, str] = {}
    with closing(archive_reader.members(place.packed, kind)) as members:
        for number, member in enumerate(members):
            name = _safe_name(member, place.packed)
            files.pop(name, None)  # a later member of the same name takes its place
            links.pop(name, None)
            if member.kind is MemberKind.FILE:
                files[name] = _write_member(member, place, number, block_size)
            elif member.kind is MemberKind.LINK:
                files[name] = ""
                links[name] = member.target
    targets = {name: archive_reader.resolve_link(name, links) for name in links}
    for number, (name, target) in enumerate(targets.items()):
        if target in links or target not in files:
            raise UnpackFailed(f"{place.packed}: its member {name!r} is a link to no file in the archive")
        files[name] = _link_or_copy(files[target], os.path.join(place.path, f"link-{number}"), place)
    _check_tree(files, place.packed)
    if not files:
        raise UnpackFailed(f"{place.packed} holds no file")
    return place.commit(files)


def _safe_name(member: Member, packed: str) -> str:
    """Return the member's name below the target directory, "" for that directory itself."""
    parts = [part for part in member.name.split("/") if part not in ("", ".")]
    refusal = _refusal(member, parts)
    if refusal:
        raise UnpackFailed(f"{packed}: its member {member.name[:_LONGEST_SHOWN]!r} {refusal}")
    return "/".join(parts)


def _refusal(member: Member, parts: list[str]) -> str:
    if member.name.startswith("/"):
        return "has an absolute path"
    if ".." in parts or _leads_out(member):
        return "leads out of the directory"
    if member.kind is MemberKind.OTHER:
        return "is neither file nor directory"
    if member.kind is MemberKind.FILE and member.mode & _BECOMES_ANOTHER_USER:
        return "would run as another user"
    if not _is_name(member.name, parts) or (not parts and member.kind is not MemberKind.DIRECTORY):
        return "has no usable name"
    return ""


def _leads_out(member: Member) -> bool:
    return member.kind is MemberKind.LINK and (member.target.startswith("/") or member.target.split("/")[0] == "..")


def _is_name(text: str, parts: list[str]) -> bool:
    if len(text) >= _LONGEST_PATH or "\0" in text or any(is_staging_name(part) for part in parts):
        return False
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def _write_member(member: Member, place: StagingDirectory, number: int, block_size: int) -> str:
    place.check_free_space(member.size)
    with (
        place.new_file(str(number)) as file,
        archive_reader.translate_damage(f"{place.packed}: its member {member.name!r}"),
    ):
        for block in member.blocks(block_size):
            file.write(block)
        if file.tell() != member.size:
            raise EOFError(f"it has {file.tell()} bytes instead of {member.size}")
    if member.mtime is not None:
        with suppress(OSError, ValueError, OverflowError):  # a time that the file system does not know
            os.utime(file.name, (member.mtime, member.mtime))
    return file.name


def _link_or_copy(file: str, path: str, place: StagingDirectory) -> str:
    """Give the file a second name, or copy it where the file system has no such links; return the new path."""
    try:
        os.link(file, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        place.check_free_space(os.stat(file).st_size)
        with place.new_file(os.path.basename(path)) as copy, open(file, "rb") as source:
            shutil.copyfileobj(source, copy)
    return path


def _check_tree(files: dict[str, str], packed: str) -> None:
    for name in files:
        parent = os.path.dirname(name)
        while parent:
            if parent in files:
                raise UnpackFailed(f"{packed}: its member {name!r} lies in another file")
            parent = os.path.dirname(parent)
