"""Private keys for SSH, read from their files."""

from __future__ import annotations

import contextlib
import os

import paramiko

from trollmoves.errors import AuthenticationFailed

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
