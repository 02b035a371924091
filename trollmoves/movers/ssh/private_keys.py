"""Private keys for SSH, from their files and from an agent."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence

import paramiko
import paramiko.agent

from trollmoves.errors import AuthenticationFailed, TransferStalled

_KINDS = (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey)


def private_key(path: str, passphrase: str | None) -> paramiko.PKey:
    """Return the private key in a file, with the certificate ``PATH-cert.pub`` if it exists.

    Raises:
        AuthenticationFailed: the file cannot be read, is not a private key, or has another passphrase.
    """
    path = os.path.expanduser(path)
    if not os.access(path, os.R_OK):
        raise AuthenticationFailed(f"the key file {path} cannot be read")
    key = _read(path.removesuffix("-cert.pub"), passphrase)
    certificate = f"{path.removesuffix('-cert.pub')}-cert.pub"
    if os.path.isfile(certificate):
        try:
            key.load_certificate(certificate)
        except (paramiko.SSHException, ValueError) as error:
            raise AuthenticationFailed(f"{certificate} is not a certificate of the key") from error
    return key


def _read(path: str, passphrase: str | None) -> paramiko.PKey:
    locked = False
    for kind in _KINDS:
        # paramiko raises various exceptions for another type of key or a wrong passphrase.
        with contextlib.suppress(paramiko.SSHException, ValueError, TypeError, IndexError):
            try:
                return kind.from_private_key_file(path, passphrase)
            except paramiko.PasswordRequiredException:
                locked = True
    raise AuthenticationFailed(
        f"the key file {path} needs ssh_key_passphrase"
        if locked
        else f"the key file {path} contains no private key"
        if passphrase is None
        else f"the key file {path} has another passphrase, or contains no private key"
    )


class LimitedAgent(paramiko.agent.AgentSSH):  # type: ignore[misc]
    """The agent of ``SSH_AUTH_SOCK``; each reply has a time limit. It is connected when its keys are needed."""

    def __init__(self, timeout: float) -> None:
        super().__init__()
        self._timeout = timeout

    @property
    def offered(self) -> Sequence[paramiko.AgentKey]:
        """The keys that were offered to the server; none before ``get_keys``."""
        return tuple(self._keys)

    def get_keys(self) -> Sequence[paramiko.AgentKey]:
        """Return the keys of the agent, none without an agent; raises ``TransferStalled`` if it does not reply."""
        path = os.environ.get("SSH_AUTH_SOCK")
        if not path or self._conn is not None:
            return self.offered
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(self._timeout)
        try:
            connection.connect(path)
            self._connect(connection)
        except TimeoutError:
            connection.close()
            raise TransferStalled(
                f"the SSH agent {path} did not reply within {self._timeout:g} s; restart it, set ssh_key_filename "
                "or unset SSH_AUTH_SOCK"
            ) from None
        except (OSError, paramiko.SSHException):  # the agent has ended
            connection.close()
        return self.offered

    def close(self) -> None:
        """Close the connection to the agent."""
        self._close()
