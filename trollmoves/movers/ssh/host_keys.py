"""Verification of SSH host keys."""

from __future__ import annotations

import os
from collections.abc import Sequence

import paramiko

from trollmoves.errors import UnknownHostKey
from trollmoves.movers import ssh_options

SYSTEM_KNOWN_HOSTS = "/etc/ssh/ssh_known_hosts"


def configure_host_keys(client: paramiko.SSHClient, pins: str | None, known_hosts: str | None) -> None:
    """Configure a client to accept known host keys, or with ``pins`` only these fingerprints.

    Raises:
        UnknownHostKey: a known_hosts file cannot be read.
    """
    if pins is not None:
        client.set_missing_host_key_policy(PinnedHostKeys(ssh_options.fingerprints(pins)))
        return
    client.set_missing_host_key_policy(RejectUnknownHost())
    for path in ("~/.ssh/known_hosts", SYSTEM_KNOWN_HOSTS, known_hosts):
        path = os.path.expanduser(path or "")
        if path and os.path.exists(path):
            _load(client, path)


class RejectUnknownHost(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]
    """Rejects hosts that are not in known_hosts."""

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:  # noqa: ARG002
        """Raise with the key and the remedy."""
        raise UnknownHostKey(
            f"{hostname} presents a {key.get_name()} key ({key.fingerprint}) that is not in known_hosts; verify it, "
            "then add it, for instance by ssh-keyscan"
        )


class PinnedHostKeys(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]
    """Accepts hosts with one of certain keys; for a client without known hosts."""

    def __init__(self, fingerprints: Sequence[str]) -> None:
        self._fingerprints = fingerprints

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:  # noqa: ARG002
        """Raise if the fingerprint is not pinned."""
        if key.fingerprint.rstrip("=") not in self._fingerprints:
            raise UnknownHostKey(
                f"{hostname} presents a {key.get_name()} key ({key.fingerprint}) that is not in ssh_host_key"
            )


def _load(client: paramiko.SSHClient, path: str) -> None:
    try:
        client.load_system_host_keys(path)
    except OSError as error:
        raise UnknownHostKey(f"{path} cannot be read: {error.strerror}") from error
    except (paramiko.hostkeys.InvalidHostKey, paramiko.SSHException, ValueError) as error:
        raise UnknownHostKey(f"{path} contains a line that is not a host key: {_line_of(error)}") from error


def _line_of(error: Exception) -> str:
    return repr(str(getattr(error, "line", "") or error)[:60])
