"""The operations that destination hosts do not allow, as found by deliveries to them.

A delivery that needed a lesser sequence of operations, and succeeded, records the reason. Later deliveries to the same
host start with the sequence that it allows.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Hashable
from enum import Enum

logger = logging.getLogger(__name__)
MAX_HOSTS = 1000  # bounds the memory; the host that was used least recently is forgotten first
LIMITATION_TTL = 86400.0  # s; then the full sequence is tried again, as the host may have been reconfigured


class Limitation(Enum):
    """Something that a host does not allow; the value says what deliveries do instead."""

    NO_HIDDEN_NAMES = "it rejects hidden temporary names; files are sent under visible ones, then renamed"
    NO_PARTIALS = "it rejects temporary names; files are sent directly under their final names"
    NO_RENAME = "it rejects renames; files are sent directly under their final names"
    NO_REPLACEMENT = "its renames do not replace an existing file; that is renamed before, and removed afterwards"
    NO_EXCLUSIVE_OPEN = "it rejects the SFTP flag EXCL; a file that has the name of a partial is overwritten"
    NO_MODE = "it rejects permissions in SFTP requests to open a file; its default permissions apply"
    FEW_CONNECTIONS = "it rejects further connections; deliveries share those that it accepts"
    NO_HEAD = "it does not report the size of an object; uploads are checked by the checksum in the reply to them"
    NO_MULTIPART = "it rejects uploads in parts; large files are sent in one request"
    NO_UPLOAD_LIST = "it does not list or abort unfinished uploads; configure a lifecycle rule of the bucket for that"
    NO_REQUEST_CHECKSUMS = "it rejects the checksums that boto3 adds; uploads are sent without them"
    NO_SIZE = "it does not report the size of a file; whether all bytes arrived is not checked"


class HostCapabilities:
    """The limitations of one host; any thread may call.

    ``name`` is the URL of the host for the log, without secrets. ``renames`` is True once a probe did not show that the
    host rejects renames.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.renames = False
        self._lock = threading.Lock()
        self._found: dict[Limitation, float] = {}

    def lacks(self, limitation: Limitation) -> bool:
        """Return True if ``limitation`` was recorded within ``LIMITATION_TTL`` seconds."""
        found = self._found.get(limitation)
        return found is not None and time.monotonic() - found < LIMITATION_TTL

    def record(self, limitation: Limitation) -> None:
        """Record a limitation; log it the first time."""
        with self._lock:
            known = limitation in self._found
            self._found[limitation] = time.monotonic()
        if not known:
            logger.info("%s: %s", self.name, limitation.value)


class CapabilityCache:
    """The capabilities of the hosts that were used last, by key; any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hosts: OrderedDict[Hashable, HostCapabilities] = OrderedDict()

    def get(self, key: Hashable, name: str) -> HostCapabilities:
        """Return the capabilities of the host ``key``; ``name`` is its URL for the log, without secrets."""
        with self._lock:
            host = self._hosts.get(key)
            if host is None:
                host = self._hosts[key] = HostCapabilities(name)
                if len(self._hosts) > MAX_HOSTS:
                    self._hosts.popitem(last=False)
            else:
                self._hosts.move_to_end(key)
            return host
