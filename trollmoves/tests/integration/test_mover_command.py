"""``move_file.py``, run as people run it."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

import trollmoves
from trollmoves.errors import OriginUnreadable
from trollmoves.movers import MOVERS, close_connections
from trollmoves.net import urls
from trollmoves.tests.helpers.daemons import Testbed
from trollmoves.tests.helpers.directories import RemoteDirectory
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers import pyftpd
from trollmoves.tests.servers.pyftpd import PASSWORD, USER, PyFtpd

COMMAND = [sys.executable, str(Path(trollmoves.__file__).parent.parent / "bin" / "move_file.py")]


def environment(**added: str) -> dict[str, str]:
    """Return the environment of the command."""
    return {**os.environ, "PYTHONPATH": str(Path(trollmoves.__file__).parent.parent), **added}


def run(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command in the directory ``cwd``."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        env=environment(),
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
    assert "locked: is a directory; use -r to deliver its files" in done.stderr
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
        (("-j", "0", "a.dat", "/tmp/"), "must be a number of transfers, 1 or more"),
    ],
)
def test_invalid_arguments(files: Path, arguments: tuple[str, ...], words: str) -> None:
    """Invalid arguments are reported in one line, with exit code 2."""
    done = run(*arguments, cwd=files)
    assert done.returncode == 2
    *usage, line = done.stderr.splitlines()
    assert words in line
    assert not usage or usage[0].startswith("usage: ")


def test_directories_keep_their_tree(files: Path) -> None:
    """``-r`` delivers the files of a directory with their tree; ``--move`` then removes the empty directories."""
    (files / "deep" / "er").mkdir(parents=True)
    (files / "deep" / "er" / "d.dat").write_bytes(b"d")
    expected = {"src/a.dat", "src/b.dat", "src/c[1].txt", "src/deep/er/d.dat"}
    for option in ("--recursive", "-mr"):
        done = run(option, "src", f"out{option}", cwd=files.parent)
        assert done.returncode == 0, done.stderr
        out = files.parent / f"out{option}"
        assert {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} == expected
    assert not files.exists()


def test_nothing_else_is_removed(files: Path) -> None:
    """``--move`` keeps a directory that is not delivered, and files of which one would replace the other."""
    (files / "empty").mkdir()
    (files / "other").mkdir()
    (files / "other" / "a.dat").write_bytes(b"another a")
    done = run("-m", "a.dat", "other/a.dat", "../out/", cwd=files)
    assert done.returncode == 2
    assert "a.dat and other/a.dat would get the same name" in done.stderr
    assert run("-m", "./a.dat", "a.dat", "empty", "../out/", cwd=files).returncode == 1
    assert (files / "empty").is_dir()
    assert os.listdir(files.parent / "out") == ["a.dat"]


def test_json(files: Path) -> None:
    """``--json`` prints one document with the result of each file."""
    (files / "empty").mkdir()
    done = run("--json", "a.dat", "b.dat", "empty", "../out/", cwd=files)
    found = json.loads(done.stdout)
    assert done.returncode == 1
    assert (found["delivered"], found["failed"], found["bytes"], found["interrupted"]) == (2, 1, 10_000, False)
    assert [(one["source"], one["delivered"], one["size"]) for one in found["files"]] == [
        ("a.dat", True, 5000),
        ("b.dat", True, 5000),
    ]
    assert "empty: is a directory" in done.stderr


def test_checksums_are_compared(files: Path) -> None:
    """``--verify`` works where the protocol can compare checksums, and is rejected where it cannot."""
    assert run("--verify", "a.dat", "../out/", cwd=files).returncode == 0
    done = run("--verify", "a.dat", "ftp://host/in/", cwd=files)
    assert done.returncode == 2
    assert "ftp cannot compare checksums" in done.stderr


def slow_transfer(testbed: Testbed, scheme: str) -> tuple[list[str], Callable[[], list[str]], dict[str, str]]:
    """Return arguments for a transfer of many seconds, a function that lists the destination, and the environment."""
    origin = testbed.directory("src") / "large.dat"
    origin.touch()
    os.truncate(origin, 4 << 30)
    out = testbed.directory("out")
    url = str(out)
    if scheme != "file":
        remote = RemoteDirectory(testbed, scheme, out)
        remote.proxy.rate = 4_000_000  # a second for the bytes that SFTP sends ahead of replies
        url = remote.url
    return [str(origin), url], lambda: os.listdir(out), environment(HOME=str(testbed.directory("home")))


@pytest.mark.parametrize("scheme", ["file", "ftp", "scp", "sftp"])
def test_ctrl_c_ends_cleanly(testbed: Testbed, scheme: str) -> None:
    """Ctrl-C in a transfer, also if it arrives twice, ends the command with one line, and without a partial."""
    arguments, listed, variables = slow_transfer(testbed, scheme)
    process = subprocess.Popen(
        [*COMMAND, "-q", *arguments], env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    until(listed, 10, "the transfer begins")
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "")
    assert errors.startswith("move_file.py: interrupted: copied 0 of 1 file to ")
    assert errors.count("\n") == 1
    assert listed() == [], errors


@pytest.mark.parametrize("scheme", ["file", "ftp", "scp", "sftp"])
def test_end_before_the_first_byte(testbed: Testbed, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that cannot be read any more, as after Ctrl-C, when its partial was created, leaves no partial."""
    (origin, url), listed, variables = slow_transfer(testbed, scheme)
    monkeypatch.setenv("HOME", variables["HOME"])
    mover = MOVERS[scheme](origin, urls.parse(url), {})
    directory = os.open("/", os.O_RDONLY | os.O_DIRECTORY)

    def make_unreadable(descriptor: int) -> None:
        os.dup2(directory, descriptor, inheritable=False)

    mover.on_opened = make_unreadable
    try:
        with pytest.raises(OriginUnreadable):
            mover.copy()
    finally:
        close_connections()
        os.close(directory)
    assert listed() == []


def test_progress_of_a_pipe(testbed: Testbed) -> None:
    """In a pipe the progress is whole lines, at growing intervals."""
    arguments, _, variables = slow_transfer(testbed, "ftp")
    process = subprocess.Popen([*COMMAND, *arguments], env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    line = process.stdout.readline()
    process.terminate()
    assert b"] 0 of 1 file, " in line
    assert line.endswith(b"/s\n")
    assert process.communicate(timeout=20)[0] == b""
    assert process.returncode == 128 + signal.SIGTERM


def test_progress_fits_the_terminal(testbed: Testbed) -> None:
    """The line with the progress is never wider than the terminal, also when this is resized."""
    arguments, _, variables = slow_transfer(testbed, "ftp")
    main, other = pty.openpty()

    def resize(columns: int) -> None:
        fcntl.ioctl(main, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    resize(120)
    process = subprocess.Popen([*COMMAND, *arguments], env=variables, stdout=other, stderr=subprocess.PIPE)
    os.close(other)
    shown = {}
    for columns, next_columns in ((120, 30), (30, 20), (20, 5), (5, 5)):
        line = b""
        while not 0 < len(line) < columns:  # the width of the one before may be shown once more
            line = os.read(main, 65536).rpartition(b"\r\x1b[K")[2]
        shown[columns] = line
        resize(next_columns)
    process.terminate()
    process.communicate(timeout=20)
    os.close(main)
    assert shown[120].startswith(b"[........................] 0 of 1 file, ")
    assert shown[30].startswith(b"0/1, 0%, ")
    assert shown[20].startswith(b"0/1")
    assert shown[5] == b"0/1 "


def test_progress_on_a_terminal(files: Path) -> None:
    """On a terminal a bar shows how far it is, and gives way to the end line."""
    os.truncate(files / "a.dat", 50_000_000)
    main, other = pty.openpty()
    command = [*COMMAND, "a.dat", "../out/"]
    process = subprocess.Popen(command, cwd=files, env=environment(), stdout=other)
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
    assert b"copied 1 of 1 file " in shown.splitlines()[-1]
