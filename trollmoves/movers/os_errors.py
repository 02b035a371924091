"""Translates errors of the operating system into errors of transfers."""

from __future__ import annotations

import errno
import socket
from types import TracebackType

from trollmoves.errors import (
    BadDestination,
    ConnectionFailed,
    NameRejected,
    NoSpace,
    PermanentTransferError,
    PermissionRefused,
    TargetBusy,
    TemporaryTransferError,
    TransferError,
    TransferStalled,
    TrollmovesError,
)

_BY_ERRNO: dict[int, type[TransferError]] = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), NoSpace),
    **dict.fromkeys((errno.EACCES, errno.EPERM), PermissionRefused),
    **dict.fromkeys((errno.EBUSY, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ETXTBSY), TargetBusy),
    errno.EROFS: TargetBusy,  # the kernel remounts a disk read-only after an error; operators repair it
    **dict.fromkeys((errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.EEXIST), BadDestination),
    **dict.fromkeys((errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EPIPE), ConnectionFailed),
    errno.ETIMEDOUT: TransferStalled,
    **dict.fromkeys((errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ), NameRejected),
    errno.EFBIG: PermanentTransferError,
}

DEFAULT_TEXTS: dict[type[OSError], str] = {TimeoutError: "no reply or no progress before the timeout"}


def from_os_error(error: OSError, action: object) -> TransferError:
    """Return the ``TransferError`` for ``error``; an unknown errno counts as temporary."""
    if isinstance(error, (ConnectionError, socket.gaierror)):
        kind: type[TransferError] = ConnectionFailed
    elif isinstance(error, TimeoutError):
        kind = TransferStalled
    else:
        kind = _BY_ERRNO.get(error.errno or 0, TemporaryTransferError)
    return kind(f"{action}: {error.strerror or str(error) or DEFAULT_TEXTS.get(type(error), type(error).__name__)}")


class translate_os_errors:  # noqa: N801  (used like a function in ``with``)
    """Translates an ``OSError`` of its block into a ``TransferError`` whose text begins with ``action``.

    A class is faster than a generator here, and this runs for each file.
    """

    __slots__ = ("action",)

    def __init__(self, action: object) -> None:
        self.action = action

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        """Translate an ``OSError``."""
        if isinstance(error, OSError) and not isinstance(error, TrollmovesError):
            raise from_os_error(error, self.action) from error
