"""SFTP of the asyncssh server with the quirks of hosts in the field; imported only where asyncssh is installed."""

from __future__ import annotations

import os
from typing import Any, ClassVar

import asyncssh
from asyncssh import SFTPFailure as Failed
from asyncssh import SFTPOpUnsupported as Unsupported
from asyncssh import SFTPPermissionDenied as Refused


class QuirkySftp(asyncssh.SFTPServer):
    """The SFTP of one channel, with ``quirks``."""

    quirks: ClassVar[set[str]] = set()

    def open(self, path: bytes, pflags: int, attrs: Any) -> Any:
        """Open a file."""
        name = os.path.basename(path)
        self.check("no hidden", Refused, name.startswith(b"."))
        self.check("only dat", Refused, not name.endswith(b".dat"))
        self.check("no exclusive", Unsupported, bool(pflags & asyncssh.FXF_EXCL))
        self.check("no mode", Refused, attrs.permissions is not None)
        self.check("must truncate", Failed, not pflags & asyncssh.FXF_TRUNC)
        return super().open(path, pflags, attrs)

    def stat(self, path: bytes) -> Any:
        """Return attributes."""
        self.check("no stat", Refused)
        return super().stat(path)

    def fstat(self, file_obj: Any) -> Any:
        """Return attributes of an open file."""
        self.check("no fstat", Unsupported)
        attributes = asyncssh.SFTPAttrs.from_local(os.fstat(file_obj.fileno()))
        attributes.size = 0 if "late size" in self.quirks else attributes.size
        return attributes

    def rename(self, oldpath: bytes, newpath: bytes) -> Any:
        """Rename without replacement."""
        self.check_rename()
        self.check("rename denied", Refused, os.path.exists(self.map_path(newpath)))
        return super().rename(oldpath, newpath)

    def posix_rename(self, oldpath: bytes, newpath: bytes) -> Any:
        """Rename."""
        self.check_rename()
        self.check("posix-rename keeps", Failed, os.path.exists(self.map_path(newpath)))
        return super().posix_rename(oldpath, newpath)

    def remove(self, path: bytes) -> Any:
        """Remove a file."""
        self.check("no remove", Refused)
        return super().remove(path)

    def check_rename(self) -> None:
        """Raise if the server does not rename."""
        self.check("no rename", Unsupported)
        self.check("rename refused", Refused)
        self.check("rename fails", Failed)

    def check(self, quirk: str, error: type[Failed | Unsupported | Refused], applies: bool = True) -> None:
        """Raise ``error`` if the server has ``quirk`` and it applies."""
        if applies and quirk in self.quirks:
            raise error(quirk)


def quirky_sftp(quirks: set[str]) -> type[QuirkySftp]:
    """Return a class of SFTP servers with ``quirks``."""
    QuirkySftp.quirks = quirks
    return QuirkySftp
