"""Secrets of a configuration: detection of secret options, and secrets in files or environment variables.

The value of a secret option is the secret, ``file:/path`` of a file that contains only the secret, or ``env:NAME`` of
an environment variable. In a path ``~`` and ``$VARIABLE`` are expanded, as in
``file:$CREDENTIALS_DIRECTORY/archive``. Secrets are read together with the configuration. Errors never show a secret.
Each secret that is read is known to ``net.redaction``, which removes it from all texts.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
from contextlib import suppress

from trollmoves.errors import BadDestination
from trollmoves.net import urls
from trollmoves.net.redaction import SECRET_NAME, known_secrets

MAX_FILE_SIZE = 65_536  # bytes of a file with a secret
FILE = "file:"
VARIABLE = "env:"

_SEPARATOR = re.compile(r"[\s,]+")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LIKELY = ("login", "secret", "token", "password")


def is_secret(name: str) -> bool:
    """Return True if an option of this name is probably a secret, also if misspelt: ``logn = user:password``."""
    name = name.lower()
    return bool(SECRET_NAME.search(name)) or bool(difflib.get_close_matches(name, _LIKELY, cutoff=0.8))


def resolve(value: str) -> str:
    """Return the secret that the value of an option contains or refers to.

    Raises:
        ValueError: the file or variable is missing or its content is invalid. The text follows the option's name.
    """
    secret = _resolve(value)
    known_secrets().add(secret)
    return secret


def resolve_login(value: str) -> str:
    """Return the login, ``user[:password]``, as ``resolve``; only its password is a secret."""
    login = _resolve(value)
    known_secrets().add(login.partition(":")[2])
    return login


def remember_passwords(value: str) -> None:
    """Make known the passwords that an option contains in URLs, or before hosts as ``user:password@host``."""
    for word in (value, *_SEPARATOR.split(value)) if "@" in value else ():
        if word.startswith("/"):
            continue  # a path on this host
        with suppress(BadDestination):
            known_secrets().add(urls.password(word if "://" in word else f"any://{word}"))


def _resolve(value: str) -> str:
    if value.startswith(FILE):
        return _read_file(_path(value))
    if value.startswith(VARIABLE):
        return _read_variable(value.removeprefix(VARIABLE))
    return value


def exposure_warning(value: str) -> str:
    """Return a warning if the file of a secret is world-readable, else an empty text."""
    if not value.startswith(FILE):
        return ""
    path = _path(value)
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return ""
    return f"the file {path} is world-readable: chmod 600 {path}" if mode & stat.S_IROTH else ""


def _path(value: str) -> str:
    path = os.path.expanduser(os.path.expandvars(value.removeprefix(FILE)))
    if not os.path.isabs(path):
        raise ValueError(f"{FILE} must be followed by an absolute path")
    return path


def _read_file(path: str) -> str:
    try:
        # Non-blocking, because opening a named pipe would wait for its writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        raise ValueError(f"the file {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError(f"{path} must be a regular file")
        data = os.read(fd, MAX_FILE_SIZE + 1)
    finally:
        os.close(fd)
    try:
        text = data.decode("utf-8").strip("\r\n")
    except UnicodeDecodeError:
        raise ValueError(f"the file {path} must contain UTF-8 text") from None
    if len(data) > MAX_FILE_SIZE or not text or not _is_one_line(text):
        raise ValueError(f"the file {path} must contain one line with the secret and nothing else")
    return text


def _read_variable(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{VARIABLE} must be followed by the name of an environment variable")
    text = os.environ.get(name, "")
    if not text:
        raise ValueError(f"the environment variable {name} is not set")
    if not _is_one_line(text):
        raise ValueError(f"the environment variable {name} contains more than one line")
    return text


def _is_one_line(text: str) -> bool:
    return not set(text) & set("\0\r\n")
