"""Unpacks the files of an archive, unless a member is unsafe.

Members are written to numbered files in a staging directory and renamed after all have been written, so that names of
an archive are never used for writing, and one bad member rejects the archive. A link becomes a file with the content
of its target, which must be in the archive; a directory is created only for files in it.
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

_MAX_SHOWN = 300  # characters of a rejected name in an error text
_MAX_PATH = 4096  # characters; the limit of Linux in bytes
_BECOMES_ANOTHER_USER = stat.S_ISUID | stat.S_ISGID
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def unpack_archive(kind: str, staging: StagingDirectory, block_size: int) -> list[str]:
    """Unpack the archive ``staging.packed``; return the paths of its files in archive order.

    Args:
        kind: as for ``archive_reader.members``.
        staging: the staging directory.
        block_size: bytes read at a time.

    Raises:
        UnpackFailed: the archive is damaged, or a member is unsafe.
        OSError: the archive cannot be read, or a file not written.
    """
    files: dict[str, str] = {}
    links: dict[str, str] = {}
    with closing(archive_reader.members(staging.source, kind)) as members:
        for number, member in enumerate(members):
            name = _safe_name(member, staging.packed)
            files.pop(name, None)  # a later member of the same name replaces it
            links.pop(name, None)
            if member.kind is MemberKind.FILE:
                files[name] = _write_member(member, staging, number, block_size)
            elif member.kind is MemberKind.LINK:
                files[name] = ""
                links[name] = member.target
    targets = {name: archive_reader.resolve_link(name, links) for name in links}
    for number, (name, target) in enumerate(targets.items()):
        if target in links or target not in files:
            raise UnpackFailed(f"{staging.packed}: its member {name!r} is a link to no file in the archive")
        files[name] = _link_or_copy(files[target], os.path.join(staging.path, f"link-{number}"), staging)
    _check_tree(files, staging.packed)
    if not files:
        raise UnpackFailed(f"{staging.packed} contains no file")
    return staging.commit(files)


def _safe_name(member: Member, packed: str) -> str:
    """Return the member's name below the target directory, "" for that directory itself."""
    parts = [part for part in member.name.split("/") if part not in ("", ".")]
    refusal = _refusal(member, parts)
    if refusal:
        raise UnpackFailed(f"{packed}: its member {member.name[:_MAX_SHOWN]!r} {refusal}")
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
    if len(text) >= _MAX_PATH or "\0" in text or any(is_staging_name(part) for part in parts):
        return False
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def _write_member(member: Member, staging: StagingDirectory, number: int, block_size: int) -> str:
    staging.check_free_space(member.size)
    with (
        staging.new_file(str(number)) as file,
        archive_reader.translate_damage(f"{staging.packed}: its member {member.name!r}"),
    ):
        for block in member.blocks(block_size):
            file.write(block)
        if (written := file.tell()) != member.size:
            raise EOFError(f"it has {written} bytes instead of {member.size}")
    if member.mtime is not None:
        with suppress(OSError, ValueError, OverflowError):  # a time that the file system does not support
            os.utime(file.name, (member.mtime, member.mtime))
    return file.name


def _link_or_copy(file: str, path: str, staging: StagingDirectory) -> str:
    """Hard-link the file to ``path``, or copy it if the file system has no links; return ``path``."""
    try:
        os.link(file, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        staging.check_free_space(os.stat(file).st_size)
        with staging.new_file(os.path.basename(path)) as copy, open(file, "rb") as source:
            shutil.copyfileobj(source, copy)
    return path


def _check_tree(files: dict[str, str], packed: str) -> None:
    for name in files:
        parent = os.path.dirname(name)
        while parent:
            if parent in files:
                raise UnpackFailed(f"{packed}: its member {name!r} lies in another file")
            parent = os.path.dirname(parent)
