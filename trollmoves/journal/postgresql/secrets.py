"""Logins in stored texts: they are encrypted, because members, backups and standbys share the database.

The key is in a file that all members have (``key_file`` in the URL of the journal). Without it each process has a
random key: another process then finds the URL without a login, its delivery fails, and the peer requests it again.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re

from cryptography.fernet import Fernet, InvalidToken

from trollmoves.errors import JournalUnusable

MIN_KEY = 32  # bytes
_LOGIN = re.compile(r"://([^\s/\"'@\\?#]*:[^\s/\"'@\\?#]*)@")  # with a password
_ENCRYPTED = re.compile(r"://trollmoves\.encrypted\.([A-Za-z0-9_=-]+)@")


class LoginCipher:
    """Encrypts the logins in texts, and decrypts them. Any thread."""

    def __init__(self, key_file: str) -> None:
        """Read the key; JournalUnusable if that fails. Without a file the key is random."""
        secret = _read_key(key_file) if key_file else os.urandom(MIN_KEY)
        self._fernet = Fernet(base64.urlsafe_b64encode(hashlib.sha256(secret).digest()))

    def encrypt(self, text: str) -> str:
        """Return a text with each login that has a password encrypted."""
        return _LOGIN.sub(self._encrypted, text) if "@" in text else text

    def decrypt(self, text: str) -> str:
        """Return the original text; a login with another key is left out."""
        return _ENCRYPTED.sub(self._decrypted, text) if "://trollmoves.encrypted." in text else text

    def _encrypted(self, match: re.Match[str]) -> str:
        return f"://trollmoves.encrypted.{self._fernet.encrypt(match[1].encode()).decode('ascii')}@"

    def _decrypted(self, match: re.Match[str]) -> str:
        try:
            return f"://{self._fernet.decrypt(match[1]).decode()}@"
        except InvalidToken:
            return "://"


def without_encrypted(text: str) -> str:
    """Return a text without its encrypted logins, for people."""
    return _ENCRYPTED.sub("://***@", text)


def _read_key(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            secret = file.read().strip()
    except OSError as error:
        raise JournalUnusable(f"the key file of the journal {path} cannot be read: {error.strerror}") from error
    if len(secret) < MIN_KEY:
        raise JournalUnusable(f"the key file of the journal {path} must have at least {MIN_KEY} bytes")
    return secret
