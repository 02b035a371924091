"""CURVE keys and addresses from posttroll's settings.

The settings (``backend``, ``server_secret_key_file`` and so on, from its files or ``POSTTROLL_...``) are read for each
new socket, without posttroll's own interpretation, which differs between its versions.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import posttroll
import zmq
from zmq.auth import load_certificate

from trollmoves.errors import StartError

log = logging.getLogger(__name__)

ANYONE = "*"  # instead of a directory: any client with our public key may connect
_BACKENDS = {"unsecure_zmq": False, "secure_zmq": True}


@dataclass(frozen=True)
class KeyPair:
    """A CURVE key pair in ZeroMQ's text form; ``repr`` omits the secret key."""

    public: bytes
    secret: bytes = field(repr=False)


def curve_enabled() -> bool:
    """Return True if sockets must be secured; raise StartError for an unknown or unavailable backend."""
    backend = posttroll.config.get("backend", "unsecure_zmq")
    if backend not in _BACKENDS:
        raise StartError(f"posttroll's setting backend is {backend!r}, and not one of {', '.join(_BACKENDS)}")
    if _BACKENDS[backend] and not zmq.has("curve"):
        raise StartError("posttroll's setting backend is secure_zmq, and this ZeroMQ was built without CURVE")
    return _BACKENDS[backend]


def server_key_pair() -> KeyPair:
    """Return the key pair of server sockets; raise StartError if it cannot be read."""
    return _pair("server_secret_key_file")


def client_key_pair() -> tuple[KeyPair, bytes]:
    """Return the key pair of client sockets, and the public key of the server; raise StartError as above."""
    return _pair("client_secret_key_file"), _read("server_public_key_file")[0]


def client_keys_directory() -> str:
    """Return the directory of client public keys, or ANYONE; raise StartError if it cannot be read."""
    directory = str(_setting("clients_public_keys_directory"))
    if directory != ANYONE:
        try:
            os.scandir(directory).close()
        except OSError as error:
            raise StartError(
                f"posttroll's setting clients_public_keys_directory: {directory}: {error.strerror}"
            ) from None
    return directory


def client_public_keys(directory: str) -> frozenset[bytes]:
    """Return the public keys in a directory; other files are logged and skipped. Raise OSError if unreadable."""
    found: set[bytes] = set()
    for name in sorted(os.listdir(directory)):
        if not name.endswith(".key"):
            continue
        try:
            found.add(load_certificate(os.path.join(directory, name))[0])
        except (OSError, ValueError) as error:
            log.warning("%s in %s is not a public key: %s", name, directory, error)
    return frozenset(found)


def allowed_addresses() -> frozenset[str]:
    """Return the allowed addresses, with names resolved; empty: all. Raise StartError if none is found."""
    configured = posttroll.config.get("authorized_client_addresses", None)
    if not configured:
        return frozenset()
    names = configured.replace(",", " ").split() if isinstance(configured, str) else list(map(str, configured))
    found = frozenset(address for name in names for address in _addresses(name))
    if not found:
        raise StartError(f"posttroll's setting authorized_client_addresses: no address of {', '.join(names)}")
    return found


def _addresses(name: str) -> Iterable[str]:
    try:
        return {str(one[4][0]) for one in socket.getaddrinfo(name, None)}
    except OSError as error:
        log.warning("posttroll's setting authorized_client_addresses: %s: %s", name, error.strerror)
        return ()


def _setting(name: str) -> Any:
    value = posttroll.config.get(name, None)
    if not value:
        raise StartError(f"posttroll's setting {name} is missing, which its backend secure_zmq needs")
    return value


def _pair(name: str) -> KeyPair:
    public, secret = _read(name)
    if secret is None:
        raise StartError(f"posttroll's setting {name}: {_setting(name)} does not contain a secret key")
    return KeyPair(public, secret)


def _read(name: str) -> tuple[bytes, bytes | None]:
    path = str(_setting(name))
    try:
        return load_certificate(path)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else "it cannot be read, or is not a key"
        raise StartError(f"posttroll's setting {name}: {path}: {why}") from None


def readable_by_others(name: str) -> str:
    """Return the file of a setting if it is world-readable, else an empty string."""
    path = str(posttroll.config.get(name, None) or "")
    try:
        return path if path and os.stat(path).st_mode & stat.S_IROTH else ""
    except OSError:
        return ""
