"""Secrets of a configuration: where one stands in a file or in the environment, and which options are one.

The value of a secret option is the secret itself, ``file:/path`` of a file that holds nothing else, or ``env:NAME`` of
an environment variable. In a path ``~`` and ``$VARIABLE`` are replaced, as in
``file:$CREDENTIALS_DIRECTORY/archive``. It is read when the configuration is. No error shows a secret.
"""

from __future__ import annotations

import difflib
import os
import re
import stat

MASK = "***"
MAX_FILE_SIZE = 65_536  # bytes of a file with a secret; what is larger is something else
FILE = "file:"
VARIABLE = "env:"

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LIKELY = ("login", "secret", "token", "password")
_SECRET = re.compile("login|secret|token|passw|passphrase|credential|(?<!host_)key(?!_file)")


def is_secret(name: str) -> bool:
    """Tell whether an option of this name is, or was probably meant as, a secret, as in ``logn = user:password``."""
    name = name.lower()
    return bool(_SECRET.search(name)) or bool(difflib.get_close_matches(name, _LIKELY, cutoff=0.8))


def resolve(value: str) -> str:
    """Return the secret that an option's value is or leads to.

    Raises:
        ValueError: there is no such file or variable, or it holds no secret; the end of a sentence that begins with
            the option.
    """
    if value.startswith(FILE):
        return _of_file(_path(value))
    if value.startswith(VARIABLE):
        return _of_variable(value.removeprefix(VARIABLE))
    return value


def exposure_warning(value: str) -> str:
    """Return a sentence's end about a secret's file that everybody on this host can read; empty when all is well."""
    if not value.startswith(FILE):
        return ""
    path = _path(value)
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return ""
    return f"everybody here can read {path}: chmod 600 {path}" if mode & stat.S_IROTH else ""


def _path(value: str) -> str:
    path = os.path.expanduser(os.path.expandvars(value.removeprefix(FILE)))
    if not os.path.isabs(path):
        raise ValueError(f"{FILE} must lead to an absolute path")
    return path


def _of_file(path: str) -> str:
    try:
        # Non-blocking, because opening a named pipe would wait for its writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        raise ValueError(f"the file {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError(f"{path} is no regular file")
        data = os.read(fd, MAX_FILE_SIZE + 1)
    finally:
        os.close(fd)
    try:
        text = data.decode("utf-8").strip("\r\n")
    except UnicodeDecodeError:
        raise ValueError(f"the file {path} holds no UTF-8 text") from None
    if len(data) > MAX_FILE_SIZE or not text or not _is_one_line(text):
        raise ValueError(f"the file {path} must hold one line with the secret, and nothing else")
    return text


def _of_variable(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{VARIABLE} must be followed by the name of an environment variable")
    text = os.environ.get(name, "")
    if not text:
        raise ValueError(f"the environment variable {name} is not set")
    if not _is_one_line(text):
        raise ValueError(f"the environment variable {name} holds more than one line")
    return text


def _is_one_line(text: str) -> bool:
    return not set(text) & set("\0\r\n")
