"""``move_file.py``, run as people run it."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

import trollmoves
from trollmoves.tests.servers import pyftpd
from trollmoves.tests.servers.pyftpd import PASSWORD, USER, PyFtpd

COMMAND = [sys.executable, str(Path(trollmoves.__file__).parent.parent / "bin" / "move_file.py")]


def run(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command in the directory ``cwd``."""
    environment = {**os.environ, "PYTHONPATH": str(Path(trollmoves.__file__).parent.parent)}
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Return a directory with three files."""
    directory = tmp_path / "src"
    directory.mkdir()
    for name in ("a.dat", "b.dat", "c[1].txt"):
        (directory / name).write_bytes(name.encode() * 1000)
    return directory


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PyFtpd]:
    """Start an FTP server."""
    if why := pyftpd.missing():
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("command")
    (folder / "root").mkdir()
    with PyFtpd(folder / "server", folder / "root") as running:
        assert isinstance(running, PyFtpd)
        yield running


def test_copies_a_pattern(files: Path) -> None:
    """A pattern in quotes is copied into the directory, with one clear end line and exit code 0."""
    done = run("*.dat", "../out", cwd=files)
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(files.parent / "out")) == ["a.dat", "b.dat"]
    assert done.stdout.startswith("copied 2 of 2 files to ")
    assert "10.0 kB" in done.stdout
    assert done.stdout.count("\n") == 1
    assert (files / "a.dat").exists()


def test_moves_to_a_server(files: Path, server: PyFtpd) -> None:
    """``--move`` removes delivered files; the password is never shown."""
    url = f"ftp://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:{server.port}/in/"
    done = run("--move", "-o", "connection_timeout=5", "a.dat", "c[1].txt", url, cwd=files)
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(server.root / "in")) == ["a.dat", "c[1].txt"]
    assert os.listdir(files) == ["b.dat"]
    assert quote(PASSWORD, safe="") not in done.stdout


def test_one_file_gets_a_new_name(files: Path) -> None:
    """One file to a path that is not a directory gets that name; in a directory it keeps its own."""
    assert run("-q", "a.dat", "../new", cwd=files).stdout == ""
    assert (files.parent / "new").read_bytes() == (files / "a.dat").read_bytes()
    run("a.dat", files.parent, cwd=files)
    assert (files.parent / "a.dat").exists()


def test_dry_run(files: Path) -> None:
    """``--dry-run`` says what would be done, without secrets, and does nothing."""
    done = run("--dry-run", "--move", "*.dat", "sftp://me:hush@host/in/", cwd=files)
    assert done.returncode == 0
    assert done.stdout == "".join(f"would move {name} to sftp://me@host/in/\n" for name in ("a.dat", "b.dat"))
    assert len(os.listdir(files)) == 3


def test_failures_are_reported(files: Path) -> None:
    """Undelivered files are named on stderr, the others are delivered, and the exit code is 1."""
    (files / "locked").mkdir()
    done = run("a.dat", "locked", "../out/", cwd=files)
    assert done.returncode == 1
    assert "locked: is no regular file" in done.stderr
    assert "copied 1 of 2 files" in done.stdout
    assert "1 failed" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("none*", "/tmp/"), "none*: no such file"),
        (("a.dat", "gopher://host/"), "gopher"),
        (("-o", "nonsense=1", "a.dat", "/tmp/"), "nonsense"),
        (("-o", "nonsense", "a.dat", "/tmp/"), "NAME=VALUE"),
        (("a.dat", "scp://[x"), "scp://"),
    ],
)
def test_invalid_arguments(files: Path, arguments: tuple[str, ...], words: str) -> None:
    """Invalid arguments are reported in one line, with exit code 2."""
    done = run(*arguments, cwd=files)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_progress_on_a_terminal(files: Path) -> None:
    """On a terminal a bar shows how far it is, and gives way to the end line."""
    os.truncate(files / "a.dat", 50_000_000)
    main, other = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(Path(trollmoves.__file__).parent.parent)}
    command = [*COMMAND, "a.dat", "../out/"]
    process = subprocess.Popen(command, cwd=files, env=environment, stdout=other)
    os.close(other)
    shown = b""
    try:
        while data := os.read(main, 65536):
            shown += data
    except OSError:  # the other end is closed
        pass
    finally:
        os.close(main)
        process.wait(30)
    assert process.returncode == 0
    assert b"copied 1 of 1 files" in shown.splitlines()[-1]
