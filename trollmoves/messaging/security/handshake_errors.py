"""Explains failed ZeroMQ handshakes."""

from __future__ import annotations

import struct
from enum import Enum, auto

import zmq

FAILURES = int(
    zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
PERMANENT = int(zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
"""Failures after which ZeroMQ does not reconnect."""

_EVENT = struct.Struct("=hi")


class HandshakeError(Enum):
    """The cause of a failed handshake, as reported by ZeroMQ."""

    REFUSED = auto()  # the server rejected our key
    MECHANISM_MISMATCH = auto()  # only one side has keys
    WRONG_KEY = auto()  # one side expects another server key
    PROTOCOL_ERROR = auto()
    TIMEOUT = auto()
    DISCONNECTED = auto()


def next_event(monitor: zmq.Socket[bytes]) -> tuple[int, int] | None:
    """Receive the next event of a monitor, and its value; None if there is none yet."""
    try:
        event, value = _EVENT.unpack(monitor.recv_multipart(zmq.NOBLOCK)[0])
    except zmq.Again:
        return None
    return event, value


def classify(event: int, value: int) -> HandshakeError:
    """Return the cause for one of FAILURES and its value."""
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        return HandshakeError.REFUSED
    if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
        known = {
            int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH): HandshakeError.MECHANISM_MISMATCH,
            int(zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC): HandshakeError.WRONG_KEY,
        }
        return known.get(value, HandshakeError.PROTOCOL_ERROR)
    return HandshakeError.TIMEOUT if value == zmq.EAGAIN else HandshakeError.DISCONNECTED


def explain_for_server(error: HandshakeError, *, secured: bool) -> str:
    """Return why the server rejected a client, and error to check."""
    ours = "server_secret_key_file here"
    return {
        HandshakeError.REFUSED: "its key is not in clients_public_keys_directory",
        HandshakeError.MECHANISM_MISMATCH: (
            "it has no key: the backend of its posttroll must be secure_zmq, as ours is"
            if secured
            else "it requires a secured connection: the backend of our posttroll is unsecure_zmq"
        ),
        HandshakeError.WRONG_KEY: f"it expects another server key: check server_public_key_file there and {ours}",
        HandshakeError.PROTOCOL_ERROR: "it does not use the ZeroMQ protocol",
        HandshakeError.TIMEOUT: "the handshake timed out",
        HandshakeError.DISCONNECTED: "it disconnected during the handshake",
    }[error]


def explain_for_client(error: HandshakeError, *, secured: bool) -> str:
    """Return why the server rejected this client, and error to check."""
    return {
        HandshakeError.REFUSED: (
            "it rejected our key: check clients_public_keys_directory there and client_secret_key_file here"
            if secured
            else "it rejected our address: check authorized_client_addresses there"
        ),
        HandshakeError.MECHANISM_MISMATCH: (
            "it has no key: the backend of its posttroll must be secure_zmq, as ours is"
            if secured
            else "it requires a key: the backend of our posttroll is unsecure_zmq"
        ),
        HandshakeError.WRONG_KEY: "its key differs from the one in server_public_key_file",
        HandshakeError.PROTOCOL_ERROR: "it does not use the ZeroMQ protocol",
        HandshakeError.TIMEOUT: "it does not reply",
        HandshakeError.DISCONNECTED: (
            "it disconnected: check whether server_public_key_file here holds its key"
            if secured
            else "it disconnected: check whether it requires a key (backend secure_zmq of its posttroll)"
        ),
    }[error]
