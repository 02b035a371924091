"""What can go wrong, as one tree of exceptions.

Whoever decides about another try asks only ``error.temporary``: True means that the same thing may succeed later,
False that it will not until somebody changes something. Whether others that go the same way are to wait meanwhile tells
``error.outage``. The text of each error can be shown to anyone: no secret
stands in it.
"""

from __future__ import annotations


class TrollmovesError(Exception):
    """The root of all errors of this package."""

    temporary = False
    blames_origin = False  # what was to be sent is to blame, which tells nothing about where it was to go
    blames_directory = False  # one directory is to blame, which tells nothing about others on its host

    @property
    def outage(self) -> bool:
        """Whether others that go to the same place, or come from it, would fail as well for a while."""
        return self.temporary and not (self.blames_origin or self.blames_directory)


class StartError(TrollmovesError):
    """A daemon cannot start; the text says in one line why and what to do."""


class ConfigError(StartError):
    """A configuration cannot be used; the text names the file, the section and the option, as far as known."""

    def __init__(self, text: str, *, file: str = "", section: str = "", option: str = "") -> None:
        where = " ".join(filter(None, (file and f"{file}:", section and f"[{section}]", option and f"{option}:")))
        super().__init__(f"{where} {text}" if where else text)
        self.file = file
        self.section = section
        self.option = option


class JournalError(StartError):
    """The journal cannot be opened, read or written; its disk may have room again later."""

    temporary = True


class JournalFull(JournalError):
    """The disk of the journal has no room."""


class MessageError(TrollmovesError):
    """A text that arrived is no message."""


class RequestRejected(TrollmovesError):
    """A request is not served; the text is the answer that the peer gets."""


class UnpackError(TrollmovesError):
    """A packed file was not unpacked; nothing of it was left in the target directory."""


class TemporaryUnpackError(UnpackError):
    """The same file may be unpacked later: the disk is full, the program is missing or took too long."""

    temporary = True


class UnpackFailed(UnpackError):
    """The file is damaged, holds what is not safe to unpack, or may not be written where it should go."""


class TransferError(TrollmovesError):
    """One try to deliver one file did not succeed."""


class TemporaryTransferError(TransferError):
    """The same transfer may succeed later."""

    temporary = True


class ConnectionFailed(TemporaryTransferError):
    """The far end cannot be reached, or went away."""


class TransferStalled(TemporaryTransferError):
    """Nothing moved for longer than the time-out."""


class NoSpace(TemporaryTransferError):
    """The far end has no room left."""


class TargetBusy(TemporaryTransferError):
    """The far end asks to come again later."""


class OriginChanged(TemporaryTransferError):
    """Somebody wrote to the file while it was being sent."""

    blames_origin = True


class OriginUnreadable(TemporaryTransferError):
    """The file to deliver cannot be read: its permissions, or those of a directory, forbid it, or its disk fails."""

    blames_origin = True


class PermanentTransferError(TransferError):
    """The same transfer will fail again until somebody mends something."""


class BadDestination(PermanentTransferError):
    """The destination is no URL that a mover understands."""


class OriginMissing(PermanentTransferError):
    """The file to deliver does not exist, or is no regular file."""

    blames_origin = True


class AuthenticationFailed(PermanentTransferError):
    """The far end does not accept the user, password or key."""


class UnknownHostKey(PermanentTransferError):
    """The SSH host is not in known_hosts, or shows another key than the one there."""


class PermissionRefused(TemporaryTransferError):
    """The far end does not allow to write there, until somebody gives the right to; other directories may be open."""

    blames_directory = True
