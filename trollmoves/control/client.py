"""Requests of a command to a running daemon, over its control socket."""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from typing import Any

from trollmoves.control.location import address_of, link_path
from trollmoves.errors import TrollmovesError

MAX_REPLY = 32_000_000  # bytes of a reply
TIMEOUT = 10.0  # s to wait for a reply


class ControlError(TrollmovesError):
    """The daemon did not reply, or replied with an error, which is the text."""


class NotRunning(ControlError):
    """No daemon listens at the control socket of this journal."""


def request(journal: str, name: str, /, timeout: float = TIMEOUT, **arguments: Any) -> dict[str, Any]:
    """Return the reply of the daemon with this journal to a request.

    Args:
        journal: the path of the journal.
        name: the request, as ``"health"``.
        timeout: seconds to wait for the reply.
        arguments: further values of the request, as JSON types.

    Raises:
        NotRunning: no daemon listens.
        ControlError: the daemon rejected the request, or did not reply in time.
    """
    path = link_path(journal)
    line = json.dumps({"request": name, **arguments}).encode() + b"\n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        try:
            with address_of(path) as address:
                connection.connect(address)
            _check_owner(connection, journal)
            connection.sendall(line)
            reply = json.loads(_read_line(connection, time.monotonic() + timeout))
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            raise NotRunning(f"no daemon listens at {path}") from None
        except TimeoutError:
            raise ControlError(f"no reply within {timeout:g} s from the daemon at {path}") from None
        except OSError as error:
            raise ControlError(f"cannot reach the daemon at {path}: {error.strerror or error}") from None
        except ValueError:
            raise ControlError(f"invalid reply from the daemon at {path}") from None
    if not isinstance(reply, dict) or not isinstance(reply.get("reply"), dict):
        error_text = reply.get("error") if isinstance(reply, dict) else None
        raise ControlError(str(error_text or f"invalid reply from the daemon at {path}"))
    return dict(reply["reply"])


def uid_of(connection: socket.socket) -> int:
    """Return the user of the process at the other end of a connection."""
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(uid)


def _check_owner(connection: socket.socket, journal: str) -> None:
    """Raise ControlError if the listening process belongs neither to the owner of the journal nor to root."""
    uid = uid_of(connection)
    try:
        owner = os.stat(journal).st_uid
    except OSError:
        owner = os.geteuid()
    if uid not in (owner, 0):
        raise ControlError(f"{link_path(journal)} belongs to uid {uid}, which is not the owner of the journal")


def _read_line(connection: socket.socket, deadline: float) -> bytes:
    received = bytearray()
    while not received.endswith(b"\n"):
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        data = connection.recv(1 << 20)
        if not data:
            break
        received += data
        if len(received) > MAX_REPLY + 1:
            break
    return bytes(received)
