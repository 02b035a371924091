"""Access checks of a socket, by the peer address from the kernel and the key authenticated by CURVE."""

from __future__ import annotations

import os
from contextlib import suppress

import zmq
from zmq.auth import load_certificate

from trollmoves.errors import StartError
from trollmoves.messaging.security import curve_keys
from trollmoves.net.client_allowlist import KEY_LENGTH, ClientAllowlist

NO_ADDRESS = "255.255.255.255/32"  # no peer has this address


class ClientAccess:
    """The allowed clients of one socket; message content does not affect the identity of the sender."""

    def __init__(self, clients: ClientAllowlist) -> None:
        """Look up the keys; raise StartError for an unknown one."""
        self._clients = clients
        self._allowed_keys = frozenset(map(_public_key, clients.keys))

    def __bool__(self) -> bool:
        return bool(self._clients)

    def allows(self, frame: zmq.Frame) -> bool:
        """Return True if the sender of a frame is allowed."""
        if self._allowed_keys and _frame_property(frame, "User-Id") not in self._allowed_keys:
            return False
        return self._clients.allows_address(_frame_property(frame, "Peer-Address"))


def client_address(frame: zmq.Frame) -> str:
    """Return the address of the sender of a frame."""
    return _frame_property(frame, "Peer-Address") or "an unknown address"


def client_identity(frame: zmq.Frame) -> str:
    """Return the identity for quotas of the sender of a frame: its authenticated key, else its address."""
    return _frame_property(frame, "User-Id") or client_address(frame)


def accept_filters(clients: ClientAllowlist, *, ipv6: bool) -> list[bytes]:
    """Return ZeroMQ accept filters for the allowed networks; an empty list allows all addresses.

    An IPv6 socket sees IPv4 peers under mapped addresses; an IPv4 socket sees IPv4 peers only.
    """
    if not clients.networks:
        return []
    texts = [
        f"::ffff:{network.network_address}/{network.prefixlen + 96}" if ipv6 and network.version == 4 else str(network)
        for network in clients.networks
        if ipv6 or network.version == 4
    ]
    return [text.encode() for text in texts or [NO_ADDRESS]]


def _frame_property(frame: zmq.Frame, name: str) -> str:
    with suppress(zmq.ZMQError):
        return str(frame.get(name))
    return ""


def _public_key(name: str) -> str:
    """Return the public key for a name or a literal key; raise StartError for an unknown name."""
    if not curve_keys.curve_enabled():
        raise StartError(
            f"allowed_clients: {name!r} is not an address; a key name needs posttroll's backend secure_zmq"
        )
    directory = curve_keys.client_keys_directory()
    try:
        return load_certificate(os.path.join(directory, f"{name}.key"))[0].decode()
    except (OSError, ValueError):
        if len(name) == KEY_LENGTH:
            return name
        raise StartError(f"allowed_clients: {name}.key does not exist in {directory}") from None
