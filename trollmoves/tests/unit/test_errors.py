"""The exceptions of this package, as scripts see them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trollmoves import errors
from trollmoves.movers import MOVERS, FileMover, Mover, move_it, mover_for
from trollmoves.movers.os_errors import from_os_error

BUILTIN = {
    errors.OriginMissing: FileNotFoundError,
    errors.OriginForbidden: PermissionError,
    errors.PermissionRefused: PermissionError,
    errors.ConnectionFailed: ConnectionError,
    errors.TooManyConnections: ConnectionError,
    errors.TransferStalled: TimeoutError,
    errors.UnknownScheme: KeyError,
}
TRANSFER_ERRORS = [
    item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, errors.TransferError)
]


@pytest.mark.parametrize("kind", TRANSFER_ERRORS)
def test_each_transfer_error_is_an_os_error(kind: type[errors.TransferError]) -> None:
    """A transfer error is an OSError with its text, and the built-in exception of its cause."""
    error = kind("/a/b: the reason")
    assert isinstance(error, OSError)
    assert isinstance(error, BUILTIN.get(kind, OSError))
    assert (str(error), error.strerror, error.errno, error.args) == (
        *("/a/b: the reason", "/a/b: the reason"),
        *(None, ("/a/b: the reason",)),
    )
    others = {FileNotFoundError, PermissionError, ConnectionError, TimeoutError, KeyError} - {BUILTIN.get(kind)}
    assert not isinstance(error, tuple(others))


def test_an_os_error_keeps_its_kind() -> None:
    """The error of a mover has the built-in type of its cause."""
    for cause in (PermissionError(13, "no"), ConnectionResetError(104, "reset"), TimeoutError(110, "slow")):
        found = from_os_error(cause, "/x")
        assert isinstance(
            found, next(kind for kind in (PermissionError, ConnectionError, TimeoutError) if isinstance(cause, kind))
        )


def test_scripts_catch_built_in_exceptions(tmp_path: Path) -> None:
    """``move_it`` raises built-in exceptions for a missing file, a closed port, and an unknown scheme."""
    file = tmp_path / "a"
    with pytest.raises(FileNotFoundError, match="No such file"):
        move_it(file, f"{tmp_path}/out/")
    file.touch()
    with pytest.raises(ConnectionError, match="refused"):
        move_it(file, "ftp://127.0.0.1:1/", {"connection_timeout": 1})
    for call in (lambda: move_it(file, "dav://host/in/"), lambda: mover_for("dav"), lambda: MOVERS["dav"]):
        with pytest.raises(KeyError, match="dav"):
            call()


@pytest.mark.parametrize(("scheme", "library"), [("sftp", "paramiko"), ("scp", "paramiko"), ("s3", "boto3")])
def test_missing_library(tmp_path: Path, scheme: str, library: str) -> None:
    """A library that is missing in a broken installation is a held error with the remedy."""
    script = f"""
import sys
sys.modules[{library!r}] = None
from trollmoves.errors import PermanentTransferError
from trollmoves.movers import move_it
try:
    move_it("/etc/hostname", "{scheme}://host/in/")
except PermanentTransferError as error:
    print(error.held, error)
"""
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown == f"True deliveries by {scheme} need {library}, which is not installed: pip install {library}\n"


def test_own_mover(tmp_path: Path) -> None:
    """A script registers its mover, and removes or replaces others."""

    class DavMover(Mover):
        """Keeps the deliveries."""

        delivered: list[str] = []

        def __init__(self, origin: str, destination: str, attrs: object = None, backup_targets: object = None) -> None:
            super().__init__(origin, destination)

        def copy(self) -> None:
            self.delivered.append(os.path.basename(self.origin))

    MOVERS["dav"] = DavMover
    try:
        assert mover_for("dav") is DavMover
        assert "dav" in MOVERS
        assert move_it(tmp_path / "a", "dav://host/in/").netloc == "host"
        assert DavMover.delivered == ["a"]
    finally:
        del MOVERS["dav"]
    assert list(MOVERS) == ["", "file", "ftp", "ftps", "scp", "sftp", "s3"]
    assert MOVERS["file"] is FileMover
