"""Translates errors of the operating system into errors of transfers."""

from __future__ import annotations

import errno
import socket

from trollmoves import errors

_BY_ERRNO: dict[int, type[errors.TransferError]] = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), errors.NoSpace),
    **dict.fromkeys((errno.EACCES, errno.EPERM), errors.PermissionRefused),
    **dict.fromkeys((errno.EBUSY, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ETXTBSY), errors.TargetBusy),
    errno.EROFS: errors.TargetBusy,  # the kernel remounts a disk read-only after an error; operators repair it
    **dict.fromkeys((errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.EEXIST), errors.BadDestination),
    **dict.fromkeys((errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EPIPE), errors.ConnectionFailed),
    errno.ETIMEDOUT: errors.TransferStalled,
    **dict.fromkeys((errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ), errors.NameRejected),
    errno.EFBIG: errors.PermanentTransferError,
}

DEFAULT_TEXTS: dict[type[OSError], str] = {TimeoutError: "no reply or no progress before the timeout"}


def from_os_error(error: OSError, action: object) -> errors.TransferError:
    """Return the ``TransferError`` for ``error``; an unknown errno counts as temporary."""
    if isinstance(error, (ConnectionError, socket.gaierror)):
        kind: type[errors.TransferError] = errors.ConnectionFailed
    elif isinstance(error, TimeoutError):
        kind = errors.TransferStalled
    else:
        kind = _BY_ERRNO.get(error.errno or 0, errors.TemporaryTransferError)
    return kind(f"{action}: {error.strerror or str(error) or DEFAULT_TEXTS.get(type(error), type(error).__name__)}")


class translate_os_errors:  # noqa: N801  (used like a function in ``with``)
    """Translates an ``OSError`` of its block into a ``TransferError``; the text begins with ``action``.

    A class is faster than a generator here, and this runs for each file.
    """

    __slots__ = ("action",)

    def __init__(self, action: object) -> None:
        self.action = action

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Translate an ``OSError``."""
        if isinstance(error, OSError) and not isinstance(error, errors.TrollmovesError):
            raise from_os_error(error, self.action) from error
