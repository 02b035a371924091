"""What connection parameters may say about SSH: fingerprints of host keys, and names of weak algorithms."""

from __future__ import annotations

import re
from collections.abc import Mapping

# Broken, or about to be: SHA-1 and MD5, CBC, keys and groups that are too short. Libraries of different age offer
# different ones of these.
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
    """Return the algorithms to switch off, as paramiko takes them: the weak ones but for those named in ``allowed``.

    Raises:
        ValueError: one of the names is no weak algorithm's.
    """
    names = _words(allowed)
    known = {name for weak in WEAK_ALGORITHMS.values() for name in weak}
    strange = sorted(set(names) - known)
    if strange:
        raise ValueError(f"no weak algorithm that could be allowed: {', '.join(strange)[:200]}")
    return {kind: [name for name in weak if name not in names] for kind, weak in WEAK_ALGORITHMS.items()}


def fingerprints(text: str) -> list[str]:
    """Return the fingerprints in a list of such; ValueError when there is something else, or nothing."""
    found = _words(text)
    if not found or not all(map(_FINGERPRINT.fullmatch, found)):
        raise ValueError("must hold fingerprints as ssh-keygen -l shows them: SHA256:, then 43 characters")
    return [one.rstrip("=") for one in found]


def _words(text: str) -> list[str]:
    return text.replace(",", " ").split()
