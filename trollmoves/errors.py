"""All exceptions of this package, as one tree.

There are three kinds of failure. A *temporary* one may end without an operator: the task is retried after a backoff.
A *held* one ends when an operator repairs the destination, the credentials, the installation or the configuration:
the task is retried every few minutes, and immediately after a reload, a restart or a repeated message. All others are
*failed*: this file cannot be delivered, because it is missing or its name cannot exist at the destination.
``error.temporary`` is True for the first two kinds, ``error.held`` for the second. ``error.outage`` decides whether
other tasks of the same lane wait too. Error texts contain no secrets.

Transfer errors are also built-in exceptions, for scripts that handle these: ``FileNotFoundError``, ``PermissionError``,
``ConnectionError``, ``TimeoutError``, otherwise ``OSError``. In this package, ``except OSError`` around a delivery must
let them pass.
"""

from __future__ import annotations


class TrollmovesError(Exception):
    """Base class of all errors of this package."""

    temporary = False
    held = False
    blames_origin = False  # caused by the file to send: the destination may work
    blames_directory = False  # caused by one directory: others on the same host may work

    @property
    def outage(self) -> bool:
        """True if other transfers to or from the same host would probably fail too."""
        return self.temporary and not (self.blames_origin or self.blames_directory)

    @property
    def failure(self) -> str:
        """The kind of failure as stored in the journal: "held", "outage", "retry" or "failed"."""
        if not self.temporary:
            return "failed"
        return "held" if self.held else "outage" if self.outage else "retry"


class StartError(TrollmovesError):
    """A daemon cannot start; the text gives the reason and the remedy in one line."""


class ConfigError(StartError):
    """A configuration is invalid; the text names the file, section and option as far as known."""

    temporary = held = True

    def __init__(self, text: str, *, file: str = "", section: str = "", option: str = "") -> None:
        where = " ".join(filter(None, (file and f"{file}:", section and f"[{section}]", option and f"{option}:")))
        super().__init__(f"{' '.join(where.splitlines())} {text}" if where else text)
        self.file = file
        self.section = section
        self.option = option


class JournalError(StartError):
    """The journal cannot be opened, read or written; temporary, because its disk may get free space."""

    temporary = True


class UnsupportedValue(JournalError):
    """A row has a value that SQLite cannot store; others can be stored."""

    temporary = False


class JournalUnusable(JournalError):
    """The journal cannot be used until an operator changes its login, its rights, its URL or its version."""

    temporary = False


class JournalFull(JournalError):
    """The disk of the journal is full."""


class MessageError(TrollmovesError):
    """A received text is not a valid message."""


class RequestRejected(TrollmovesError):
    """A request is rejected; the text is the reply to the peer."""


class AccessDenied(RequestRejected):
    """The configuration does not allow this client or destination."""

    temporary = held = True


class UnpackError(TrollmovesError):
    """A packed file was not unpacked; the target directory contains none of its files."""


class TemporaryUnpackError(UnpackError):
    """The same file may be unpacked later: the disk is full, or the program is missing or too slow."""

    temporary = True


class UnpackHeld(TemporaryUnpackError):
    """The file may be unpacked when an operator has changed the target directory or installed a program."""

    held = True


class UnpackFailed(UnpackError):
    """The file is damaged or unsafe to unpack."""


class TransferError(TrollmovesError, OSError):
    """One attempt to deliver one file failed."""

    def __init__(self, text: str = "") -> None:
        super().__init__(text)
        self.strerror = text  # as scripts expect of an OSError


class TemporaryTransferError(TransferError):
    """The same transfer may succeed later."""

    temporary = True


class ConnectionFailed(TemporaryTransferError, ConnectionError):
    """The host cannot be reached, or closed the connection."""


class TooManyConnections(ConnectionFailed):
    """The host rejects a further connection or login of this user or address."""


class TransferStalled(TemporaryTransferError, TimeoutError):
    """The transfer made no progress during the timeout."""


class NoSpace(TemporaryTransferError):
    """The destination is full."""


class TargetBusy(TemporaryTransferError):
    """The destination is busy."""


class OriginChanged(TemporaryTransferError):
    """The file was modified while it was sent."""

    blames_origin = True


class Superseded(TransferError):
    """A newer version of the file was delivered to the same name, so this one is dropped."""

    blames_origin = True
    failure = "superseded"


class LeaseLost(TemporaryTransferError):
    """This member of a fleet may have lost the task to another member, so it must not complete the transfer."""

    blames_origin = True


class OriginUnreadable(TemporaryTransferError):
    """The file to deliver cannot be read: permissions of the file or a directory, or a disk error."""

    blames_origin = True


class OriginForbidden(OriginUnreadable, PermissionError):
    """Read permission of the file to deliver, or of a directory, is missing."""


class PermanentTransferError(TransferError):
    """The same transfer fails until an operator changes something."""

    temporary = held = True


class BadDestination(PermanentTransferError):
    """The destination is not a URL that a mover supports, or its directory cannot be used."""

    blames_directory = True


class UnknownScheme(BadDestination, KeyError):
    """No mover supports the scheme of the URL."""


class NameRejected(PermanentTransferError):
    """A file of this name cannot exist at the destination."""

    temporary = held = False


class OriginMissing(PermanentTransferError, FileNotFoundError):
    """The file to deliver does not exist, or is not a regular file."""

    temporary = held = False
    blames_origin = True


class AuthenticationFailed(PermanentTransferError):
    """The server rejects the user, password or key."""


class UnknownHostKey(PermanentTransferError):
    """The key of the SSH host is not in known_hosts, or differs from the key there."""


class PermissionRefused(TemporaryTransferError, PermissionError):
    """Write permission is missing; temporary, because an operator may grant it. Other directories may be writable."""

    blames_directory = True
