"""Which SSH hosts are who they say they are."""

from __future__ import annotations

import os
from collections.abc import Sequence

import paramiko

from trollmoves.errors import UnknownHostKey
from trollmoves.movers import ssh_options

SYSTEM_KNOWN_HOSTS = "/etc/ssh/ssh_known_hosts"


def configure_host_keys(client: paramiko.SSHClient, pins: str | None, known_hosts: str | None) -> None:
    """Have a client accept the hosts whose keys are known, or with ``pins`` only those with one of these keys.

    Raises:
        UnknownHostKey: a known_hosts file cannot be read, so that nobody is known.
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
    """Lets nobody in who is not known."""

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:  # noqa: ARG002
        """Say who is not known, and what would make it so."""
        raise UnknownHostKey(
            f"{hostname} shows a {key.get_name()} key ({key.fingerprint}) that is in no known_hosts file; add it, "
            "for instance by ssh-keyscan, when it is the right one"
        )


class PinnedHostKeys(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]
    """Lets those in who show one of certain keys; for a client that knows no hosts."""

    def __init__(self, fingerprints: Sequence[str]) -> None:
        self._fingerprints = fingerprints

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:  # noqa: ARG002
        """Compare."""
        if key.fingerprint.rstrip("=") not in self._fingerprints:
            raise UnknownHostKey(
                f"{hostname} shows a {key.get_name()} key ({key.fingerprint}) that is not in ssh_host_key"
            )


def _load(client: paramiko.SSHClient, path: str) -> None:
    try:
        client.load_system_host_keys(path)
    except OSError as error:
        raise UnknownHostKey(f"{path} cannot be read: {error.strerror}") from error
    except (paramiko.hostkeys.InvalidHostKey, paramiko.SSHException, ValueError) as error:
        raise UnknownHostKey(f"{path} holds a line that is no host's key: {_line_of(error)}") from error


def _line_of(error: Exception) -> str:
    return repr(str(getattr(error, "line", "") or error)[:60])
