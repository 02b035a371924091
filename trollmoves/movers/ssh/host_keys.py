"""Verification of SSH host keys."""

from __future__ import annotations

import base64
import hashlib
import os
import shlex
from collections.abc import Iterable, Sequence
from typing import NoReturn

import paramiko

from trollmoves.errors import UnknownHostKey
from trollmoves.movers import ssh_options
from trollmoves.movers.ssh import known_hosts
from trollmoves.movers.ssh.known_hosts import CERTIFICATE_AUTHORITY, REVOKED, Line

USER_KNOWN_HOSTS = "~/.ssh/known_hosts"
SYSTEM_KNOWN_HOSTS = "/etc/ssh/ssh_known_hosts"
DEFAULT_PORT = known_hosts.DEFAULT_PORT


def host_key_policy(host: str, port: int, pins: str | None, extra_known_hosts: str | None) -> HostKeyPolicy:
    """Return a policy that accepts the known keys of a host, or with ``pins`` only the keys with these fingerprints.

    Raises:
        UnknownHostKey: a known_hosts file cannot be read, and nothing is pinned.
    """
    files = [os.path.expanduser(path) for path in (USER_KNOWN_HOSTS, SYSTEM_KNOWN_HOSTS, extra_known_hosts) if path]
    try:
        lines, plain = known_hosts.lines_for(files, host, port)
    except OSError as error:
        if pins is None:
            raise UnknownHostKey(f"{error.filename} cannot be read: {error.strerror}") from error
        lines, plain = [], []
    if pins is not None:
        return PinnedHostKeys(ssh_options.fingerprints(pins), [*lines, *plain])
    return KnownHostKeys(host, port, lines, plain, files[-1] if extra_known_hosts else files[0])


class HostKeyPolicy(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]
    """Accepts or rejects the key of a host; for a client without known hosts, so that each key is checked here."""

    kinds: frozenset[str] = frozenset()
    """Types of the known keys of the host, which it should be asked for."""

    def __init__(self, accepted: Iterable[str], lines: Sequence[Line]) -> None:
        self._revoked = {_fingerprint(line.blob): line.place for line in lines if line.marker == REVOKED}
        self.accepted = tuple(sorted(set(accepted) - self._revoked.keys()))
        """Fingerprints of the accepted keys, in the form of ``ssh-keygen -l``."""

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:  # noqa: ARG002
        """Raise ``UnknownHostKey`` as ``check``."""
        self.check(hostname, key.get_name(), key.fingerprint.rstrip("="))

    def check(self, hostname: str, kind: str, fingerprint: str) -> None:
        """Raise ``UnknownHostKey`` with the fingerprint and the remedy if the key is not accepted."""
        if fingerprint in self.accepted:
            return
        described = f"a {kind} key ({fingerprint})"
        if fingerprint in self._revoked:
            raise UnknownHostKey(
                f"{hostname} presents {described} that {self._revoked[fingerprint]} marks as revoked; "
                "the host needs a new key"
            )
        self.reject(hostname, described)

    def reject(self, hostname: str, described: str) -> NoReturn:
        """Raise ``UnknownHostKey`` for a key that is neither accepted nor revoked."""
        raise NotImplementedError


class KnownHostKeys(HostKeyPolicy):
    """Accepts the keys of known_hosts, as OpenSSH does."""

    def __init__(self, host: str, port: int, lines: Sequence[Line], plain: Sequence[Line], file: str) -> None:
        self._lines = [line for line in lines if not line.marker]
        # Without a line for the port, a key of the host at the default port is accepted.
        known = [line for line in self._lines or plain if not line.marker]
        super().__init__((_fingerprint(line.blob) for line in known), [*lines, *plain])
        self._scan = f"ssh-keyscan -p {port} {shlex.quote(host)} >> {shlex.quote(file)}"
        self._file = file
        self._authorities = [line.place for line in (*lines, *plain) if line.marker == CERTIFICATE_AUTHORITY]
        self.kinds = frozenset(line.kind for line in known)

    def reject(self, hostname: str, described: str) -> NoReturn:
        """Raise ``UnknownHostKey`` with the difference to known_hosts, and the command that adds the key."""
        verify = "compare the fingerprint with the one that the administrator of the host reports; if they are equal,"
        if self._lines:
            places = ", ".join(line.place for line in self._lines[:3])
            raise UnknownHostKey(
                f"{hostname} presents {described}, another key than {places}; {verify} "
                f"remove the old line and run: {self._scan}"
            )
        ignored = "".join(
            f" (the certificate authority in {place} is not supported)" for place in self._authorities[:1]
        )
        raise UnknownHostKey(
            f"{hostname} presents {described} that is not in {self._file}{ignored}; {verify} run: {self._scan}"
        )


class PinnedHostKeys(HostKeyPolicy):
    """Accepts certain keys only."""

    def reject(self, hostname: str, described: str) -> NoReturn:
        """Raise ``UnknownHostKey``: the fingerprint is not pinned."""
        raise UnknownHostKey(f"{hostname} presents {described} that is not in ssh_host_key")


def _fingerprint(blob: bytes) -> str:
    return f"SHA256:{base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip('=')}"
