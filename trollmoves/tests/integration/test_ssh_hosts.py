"""Deliveries by sftp and scp to servers with quirks: no rename, no replacement, a login shell that prints."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trollmoves.errors import ConnectionFailed, TransferStalled
from trollmoves.movers import close_connections, move_it
from trollmoves.movers.host_capabilities import Limitation
from trollmoves.movers.ssh import sftp
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers import asyncsshd, openssh
from trollmoves.tests.servers.asyncsshd import AsyncSshd
from trollmoves.tests.servers.openssh import OpenSsh
from trollmoves.tests.servers.process import HOST


class Host:
    """A server with the directory ``in``, and a file to deliver there."""

    def __init__(self, server: OpenSsh | AsyncSshd, folder: Path) -> None:
        self.server = server
        self.directory = folder / "in"
        self.directory.mkdir()
        self.origin = folder / "f.dat"
        self.attrs = {"ssh_key_filename": str(server.user_key), "ssh_known_hosts": str(server.known_hosts)}

    def deliver(self, content: bytes, scheme: str = "sftp", **attrs: object) -> None:
        """Deliver ``content`` as ``f.dat``."""
        self.origin.write_bytes(content)
        url = f"{scheme}://{self.server.user}@{HOST}:{self.server.port}{self.directory}/"
        move_it(self.origin, url, self.attrs | attrs)

    def contents(self) -> dict[str, bytes]:
        """Return the files in the directory, hidden ones included."""
        return {path.name: path.read_bytes() for path in self.directory.iterdir()}


@contextmanager
def quirky(folder: Path, *quirks: str) -> Iterator[Host]:
    """Return a host with an SFTP server with ``quirks``; skip the test without asyncssh."""
    if why := asyncsshd.missing() or openssh.missing():
        pytest.skip(why)
    with AsyncSshd(folder / "server", *quirks) as server:
        assert isinstance(server, AsyncSshd)
        yield Host(server, folder)
        close_connections()


@contextmanager
def printing(folder: Path, script: str, *, subsystem: bool) -> Iterator[Host]:
    """Return an OpenSSH host with the shell ``script`` as its SFTP subsystem or login shell."""
    if why := openssh.missing():
        pytest.skip(why)
    program = folder / "script"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    quoted = shlex.quote(str(program))
    server = (
        OpenSsh(folder / "server", subsystem=quoted)
        if subsystem
        else OpenSsh(folder / "server", f"ForceCommand {quoted}", openssh.SFTP_SERVER)
    )
    with server:
        yield Host(server, folder)
        close_connections()


@pytest.mark.parametrize(
    "quirks",
    [
        ["no extensions", "rename denied"],
        ["posix-rename keeps"],
        ["must truncate"],
        ["no stat"],
        ["no extensions", "no stat"],
        ["late size"],
        ["no fstat"],
    ],
    ids=" + ".join,
)
def test_quirks(quirks: list[str], tmp_path: Path) -> None:
    """A file is delivered, and replaced by the next one of its name; no other file is left."""
    with quirky(tmp_path, *quirks) as host:
        for content in (os.urandom(50_000), b"", b"another"):
            host.deliver(content, fsync=True)
            assert host.contents() == {"f.dat": content}


@pytest.mark.parametrize(
    ("quirks", "limitation"),
    [
        (["no hidden"], Limitation.NO_HIDDEN_NAMES),
        (["only dat"], Limitation.NO_HIDDEN_NAMES),
        (["no rename"], Limitation.NO_RENAME),
        (["rename fails"], Limitation.NO_RENAME),
        (["rename refused", "no remove"], Limitation.NO_RENAME),
        (["rename refused", "no mode", "only dat", "no stat"], Limitation.NO_RENAME),
        (["no extensions"], Limitation.NO_REPLACEMENT),
        (["no exclusive"], Limitation.NO_EXCLUSIVE_OPEN),
        (["no mode"], Limitation.NO_MODE),
    ],
    ids=lambda value: " + ".join(value) if isinstance(value, list) else "",
)
def test_limitations(
    quirks: list[str], limitation: Limitation, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A limitation is logged once for all connections to the host; files are delivered and replaced without litter."""
    caplog.set_level("INFO", "trollmoves.movers.host_capabilities")
    with quirky(tmp_path, *quirks) as host:
        for content in (os.urandom(50_000), b"another", b"third"):
            host.deliver(content)
            assert host.contents() == {"f.dat": content}
            close_connections()
    assert [record.message for record in caplog.records if limitation.value in record.message] == [
        f"sftp://{host.server.user}@{HOST}:{host.server.port}: {limitation.value}"
    ]


@pytest.mark.parametrize("quirks", [["posix-rename keeps", "no remove"], ["rename refused", "no remove"]])
def test_replacement_on_a_server_that_removes_nothing(quirks: list[str], tmp_path: Path) -> None:
    """If neither a rename nor a removal makes room, the old file is overwritten; later ones leave no litter."""
    with quirky(tmp_path, *quirks) as host:
        for content in (b"one", b"second", b"third", b"fourth"):
            host.deliver(content)
            assert host.contents()["f.dat"] == content
        assert len(host.contents()) <= 2  # the partial of the first replacement cannot be removed


def test_old_name_left_by_a_killed_process(tmp_path: Path) -> None:
    """A file that a killed process renamed before the replacement is removed by the next delivery of its name."""
    with quirky(tmp_path, "no extensions") as host:
        for content in (b"one", b"another"):
            host.deliver(content)
        left = host.directory / os.path.basename(sftp._aside_path(f"{host.directory}/f.dat"))
        (host.directory / "f.dat").rename(left)
        host.deliver(b"third")
        until(lambda: not left.exists(), 5, "the old file is removed")
        assert host.contents() == {"f.dat": b"third"}


NOISE = "echo 'Welcome to the archive'"


@pytest.mark.parametrize(
    ("script", "text"),
    [
        (f"{NOISE}; exec {openssh.SFTP_SERVER}", "printed 'Welcome to the archive"),
        ("printf Hi; exec sleep 100", "printed 'Hi' before SFTP started"),
        ("exec yes", "printed 'y"),
        ("exit 7", "ended with 7"),
        ("exec >&-; sleep 0.5; exit 7", "ended with 7"),
    ],
    ids=["banner", "prompt", "endless", "exit", "late exit"],
)
@pytest.mark.parametrize("transport", ["paramiko", "openssh"])
def test_subsystem_that_prints(script: str, text: str, transport: str, tmp_path: Path) -> None:
    """An SFTP subsystem that prints a text, or ends, fails at the login, and the error quotes the text or the code."""
    with printing(tmp_path, script, subsystem=True) as host:

        def deliver(timeout: float) -> None:
            host.deliver(b"content", connection_timeout=timeout, num_ssh_retries=1, ssh_transport=transport)

        def deliver_once_logged_in() -> None:
            try:
                deliver(2)
            except TransferStalled:  # the login alone takes longer on a busy machine
                deliver(30)

        with pytest.raises(ConnectionFailed, match=text) as caught:
            deliver_once_logged_in()
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("noise", [NOISE, "printf 'two days left '"])
@pytest.mark.parametrize(("scheme", "transport"), [("sftp", "paramiko"), ("sftp", "openssh"), ("scp", "paramiko")])
def test_login_shell_that_prints(noise: str, scheme: str, transport: str, tmp_path: Path) -> None:
    """A login shell that prints a text fails at the login, by either protocol, and the error quotes the text."""
    with (
        printing(tmp_path, f'{noise}; exec sh -c "$SSH_ORIGINAL_COMMAND"', subsystem=False) as host,
        pytest.raises(ConnectionFailed, match=r"printed '.*must print nothing"),
    ):
        host.deliver(b"content", scheme, num_ssh_retries=1, ssh_transport=transport)


def test_programs_after_a_text_of_the_login_shell(tmp_path: Path) -> None:
    """A text that the login shell prints is not taken for the output of a program."""
    script = (
        f'case $SSH_ORIGINAL_COMMAND in env*) {NOISE};; *sftp-server) exit 1;; esac; exec sh -c "$SSH_ORIGINAL_COMMAND"'
    )
    with printing(tmp_path, script, subsystem=False) as host:
        for content in (b"one", b"another"):
            host.deliver(content, "scp", verify_checksum=True)
            assert host.contents() == {"f.dat": content}
