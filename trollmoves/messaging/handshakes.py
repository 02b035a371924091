"""Puts into words why a connection was not made."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import Enum, auto

import zmq

FAILURES = int(
    zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
LASTING = int(zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
"""Failures after which ZeroMQ does not connect again."""

_EVENT = struct.Struct("=hi")


class Failure(Enum):
    """Why a handshake failed, as far as ZeroMQ tells."""

    REFUSED = auto()  # our key
    UNLIKE = auto()  # one side has keys and the other has not
    WRONG_KEY = auto()  # the other side's key is not the one that we, or they, have
    GARBAGE = auto()
    SILENT = auto()
    LEFT = auto()


def read(frames: Sequence[bytes]) -> tuple[int, int]:
    """Give the event and its value that a monitor tells of."""
    event, value = _EVENT.unpack(frames[0])
    return event, value


def failure(event: int, value: int) -> Failure:
    """Give what one of FAILURES means."""
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        return Failure.REFUSED
    if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
        known = {
            int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH): Failure.UNLIKE,
            int(zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC): Failure.WRONG_KEY,
        }
        return known.get(value, Failure.GARBAGE)
    return Failure.SILENT if value == zmq.EAGAIN else Failure.LEFT


def told_by_listener(what: Failure, *, secured: bool) -> str:
    """Say why somebody did not get in, and what to look at."""
    ours = "server_secret_key_file here"
    return {
        Failure.REFUSED: "its key is none of those in clients_public_keys_directory",
        Failure.UNLIKE: (
            "it has no key: the backend of its posttroll must be secure_zmq, as ours is"
            if secured
            else "it wants a secured connection: the backend of our posttroll is unsecure_zmq"
        ),
        Failure.WRONG_KEY: f"it expects another key of ours: look at server_public_key_file there and {ours}",
        Failure.GARBAGE: "it does not speak ZeroMQ's protocol",
        Failure.SILENT: "it did not go on",
        Failure.LEFT: "it left before anything was said",
    }[what]


def told_by_caller(what: Failure, *, secured: bool) -> str:
    """Say why we did not get in, and what to look at."""
    return {
        Failure.REFUSED: (
            "it refuses us: look at clients_public_keys_directory there and client_secret_key_file here"
            if secured
            else "it refuses us: look at authorized_client_addresses there"
        ),
        Failure.UNLIKE: (
            "it has no key: the backend of its posttroll must be secure_zmq, as ours is"
            if secured
            else "it wants a key: the backend of our posttroll is unsecure_zmq"
        ),
        Failure.WRONG_KEY: "its key is not the one in server_public_key_file",
        Failure.GARBAGE: "it does not speak ZeroMQ's protocol",
        Failure.SILENT: "it does not answer",
        Failure.LEFT: (
            "it hung up: look whether server_public_key_file here holds its key"
            if secured
            else "it hung up: look whether it wants a key, which the backend secure_zmq of its posttroll does"
        ),
    }[what]
