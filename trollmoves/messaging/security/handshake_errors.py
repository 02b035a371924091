"""Puts into words why a connection was not made."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import Enum, auto

import zmq

FAILURES = int(
    zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
PERMANENT = int(zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
"""Failures after which ZeroMQ does not connect again."""

_EVENT = struct.Struct("=hi")


class HandshakeError(Enum):
    """Why a handshake failed, as far as ZeroMQ tells."""

    REFUSED = auto()  # our key
    MECHANISM_MISMATCH = auto()  # one side has keys and the other has not
    WRONG_KEY = auto()  # the other side's key is not the one that we, or they, have
    PROTOCOL_ERROR = auto()
    TIMEOUT = auto()
    DISCONNECTED = auto()


def parse_event(frames: Sequence[bytes]) -> tuple[int, int]:
    """Give the event and its value that a monitor tells of."""
    event, value = _EVENT.unpack(frames[0])
    return event, value


def classify(event: int, value: int) -> HandshakeError:
    """Give what one of FAILURES means."""
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        return HandshakeError.REFUSED
    if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
        known = {
            int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH): HandshakeError.MECHANISM_MISMATCH,
            int(zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC): HandshakeError.WRONG_KEY,
        }
        return known.get(value, HandshakeError.PROTOCOL_ERROR)
    return HandshakeError.TIMEOUT if value == zmq.EAGAIN else HandshakeError.DISCONNECTED


def explain_for_server(what: HandshakeError, *, secured: bool) -> str:
    """Say why somebody did not get in, and what to look at."""
    ours = "server_secret_key_file here"
    return {
        HandshakeError.REFUSED: "its key is none of those in clients_public_keys_directory",
        HandshakeError.MECHANISM_MISMATCH: (
            "it has no key: the backend of its posttroll must be secure_zmq, as ours is"
            if secured
            else "it wants a secured connection: the backend of our posttroll is unsecure_zmq"
        ),
        HandshakeError.WRONG_KEY: f"it expects another key of ours: look at server_public_key_file there and {ours}",
        HandshakeError.PROTOCOL_ERROR: "it does not speak ZeroMQ's protocol",
        HandshakeError.TIMEOUT: "it did not go on",
        HandshakeError.DISCONNECTED: "it left before anything was said",
    }[what]


def explain_for_client(what: HandshakeError, *, secured: bool) -> str:
    """Say why we did not get in, and what to look at."""
    return {
        HandshakeError.REFUSED: (
            "it refuses us: look at clients_public_keys_directory there and client_secret_key_file here"
            if secured
            else "it refuses us: look at authorized_client_addresses there"
        ),
        HandshakeError.MECHANISM_MISMATCH: (
            "it has no key: the backend of its posttroll must be secure_zmq, as ours is"
            if secured
            else "it wants a key: the backend of our posttroll is unsecure_zmq"
        ),
        HandshakeError.WRONG_KEY: "its key is not the one in server_public_key_file",
        HandshakeError.PROTOCOL_ERROR: "it does not speak ZeroMQ's protocol",
        HandshakeError.TIMEOUT: "it does not answer",
        HandshakeError.DISCONNECTED: (
            "it hung up: look whether server_public_key_file here holds its key"
            if secured
            else "it hung up: look whether it wants a key, which the backend secure_zmq of its posttroll does"
        ),
    }[what]
