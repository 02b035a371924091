"""Parsers of SSH connection parameters: transport, fingerprints of host keys, and names of weak algorithms."""

from __future__ import annotations

import re
from collections.abc import Mapping

PARAMIKO, OPENSSH = "paramiko", "openssh"
# Broken or deprecated: SHA-1 and MD5, CBC, short keys and groups. Versions of paramiko differ in which they offer.
WEAK_ALGORITHMS: Mapping[str, tuple[str, ...]] = {
    "kex": (
        "diffie-hellman-group-exchange-sha1",
        "diffie-hellman-group14-sha1",
        "diffie-hellman-group1-sha1",
    ),
    "keys": ("ssh-rsa", "ssh-rsa-cert-v01@openssh.com", "ssh-dss", "ssh-dss-cert-v01@openssh.com"),
    "pubkeys": ("ssh-rsa", "ssh-rsa-cert-v01@openssh.com", "ssh-dss", "ssh-dss-cert-v01@openssh.com"),
    "ciphers": (
        "aes128-cbc",
        "aes192-cbc",
        "aes256-cbc",
        "3des-cbc",
        "blowfish-cbc",
        "arcfour",
        "arcfour128",
        "arcfour256",
    ),
    "macs": ("hmac-sha1", "hmac-sha1-96", "hmac-md5", "hmac-md5-96"),
}
_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}=?")


def disabled_algorithms(allowed: str) -> dict[str, list[str]]:
    """Return the weak algorithms except those named in ``allowed``, in the form of paramiko.

    Raises:
        ValueError: a name is not that of a weak algorithm.
    """
    names = _words(allowed)
    known = {name for weak in WEAK_ALGORITHMS.values() for name in weak}
    unknown = sorted(set(names) - known)
    if unknown:
        raise ValueError(f"not the name of a weak algorithm: {', '.join(unknown)[:200]}")
    return {kind: [name for name in weak if name not in names] for kind, weak in WEAK_ALGORITHMS.items()}


def fingerprints(text: str) -> list[str]:
    """Return the fingerprints in ``text``; ValueError if it is empty or contains anything else."""
    found = _words(text)
    if not found or not all(map(_FINGERPRINT.fullmatch, found)):
        raise ValueError("must hold fingerprints in the form of ssh-keygen -l: SHA256:, then 43 characters")
    return [fingerprint.rstrip("=") for fingerprint in found]


def check_transport(text: str) -> None:
    """Raise ``ValueError`` with the rule if ``text`` is not the name of a transport."""
    if text not in (PARAMIKO, OPENSSH):
        raise ValueError(f"must be {PARAMIKO} or {OPENSSH}")


def _words(text: str) -> list[str]:
    return text.replace(",", " ").split()
