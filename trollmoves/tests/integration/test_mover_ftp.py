"""Deliveries by ftp and ftps against pyftpdlib and vsftpd."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote, urlparse

import pytest

from trollmoves.errors import AuthenticationFailed, TransferStalled
from trollmoves.movers import move_it
from trollmoves.tests.servers import pyftpd, vsftpd
from trollmoves.tests.servers.contract import MoverContract, MoverTarget, RemoteFiles
from trollmoves.tests.servers.process import HOST, PROXY_HOST
from trollmoves.tests.servers.proxy import Proxy
from trollmoves.tests.servers.pyftpd import PASSWORD, USER, PyFtpd
from trollmoves.tests.servers.vsftpd import Vsftpd

NEEDS_LINES = ("two\nlines",)  # FTP's commands are lines


class OnPyFtpd(MoverContract):
    """Against pyftpdlib."""

    scheme: ClassVar[str]
    reports_full_disk = False
    unnameable = NEEDS_LINES

    @pytest.fixture(scope="class")
    @classmethod
    def target(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MoverTarget]:
        """Start the server."""
        tls = cls.scheme == "ftps"
        if why := pyftpd.missing(tls=tls):
            pytest.skip(why)
        folder = tmp_path_factory.mktemp("pyftpd")
        (folder / "root").mkdir()
        with PyFtpd(folder / "server", folder / "root", tls=tls) as server:
            assert isinstance(server, PyFtpd)
            yield MoverTarget(
                cls.scheme,
                server,
                RemoteFiles(folder / "root"),
                "",
                attrs={"ftp_tls_ca_file": str(server.certificate)} if tls else {},
                login=f"{USER}:{quote(PASSWORD, safe='')}",
                wrong_login=f"{USER}:wr0ng.pass",
                secrets=(PASSWORD, quote(PASSWORD, safe=""), "wr0ng.pass"),
                ports=tuple(server.passive_ports),
            )

    def test_silent_backup_targets(self, target: MoverTarget, origin: Path, here: str) -> None:
        """Many targets that never reply share the time of an attempt, and a later attempt reaches the last target."""
        silent = [f"127.0.0.{n}" for n in range(10, 18)]
        attrs = target.attrs | {"connection_timeout": 0.2, "stall_timeout": 0.2}
        url = target.url(f"{here}/", silent[0])
        with ExitStack() as stack:
            for host in silent:
                line = stack.enter_context(socket.socket())
                line.bind((host, urlparse(url).port))
                line.listen()
            took: list[float] = []
            while len(took) < 4:
                begun = time.monotonic()
                try:
                    move_it(origin, url, attrs, backup_targets=[*silent[1:], HOST])
                    break
                except TransferStalled:
                    took.append(time.monotonic() - begun)
        assert 1 <= len(took) < 4
        assert max(took) < 1.6
        assert target.files.tree(here) == {origin.name: origin.read_bytes()}

    def test_slow_link(self, target: MoverTarget, origin: Path, here: str, proxy: Proxy) -> None:
        """A file that is sent in a moment, and on its way for longer than ``stall_timeout``, arrives."""
        origin.write_bytes(os.urandom(1_900_000))
        proxy.rate = 170_000
        move_it(origin, target.url(f"{here}/f", PROXY_HOST), self.through(target, stall_timeout=6))
        assert target.files.read(f"{here}/f") == origin.read_bytes()


class OnVsftpd(MoverContract):
    """Against vsftpd, without a login."""

    scheme: ClassVar[str]
    reports_full_disk = False
    unnameable = NEEDS_LINES
    checks_logins = False

    @pytest.fixture(scope="class")
    @classmethod
    def target(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MoverTarget]:
        """Start the server; its user must be able to enter its root."""
        tls = cls.scheme == "ftps"
        if why := vsftpd.missing():
            pytest.skip(why)
        folder = tmp_path_factory.mktemp("vsftpd")
        for above in (folder, *folder.parents[:2]):
            os.chmod(above, 0o755)
        top = folder / "root" / "up"
        (top / "in").mkdir(parents=True)
        shutil.chown(top / "in", vsftpd.USER)  # for tests that make directories there, as root
        with Vsftpd(folder / "server", top, tls=tls) as server:
            assert isinstance(server, Vsftpd)
            yield MoverTarget(
                cls.scheme,
                server,
                RemoteFiles(top),
                "/up",
                attrs={"ftp_tls_ca_file": str(server.certificate)} if tls else {},
                ports=tuple(server.passive_ports),
            )


class TestFtpOnPyFtpd(OnPyFtpd):
    """Plain FTP."""

    scheme = "ftp"

    def test_active_mode(self, target: MoverTarget, origin: Path, here: str) -> None:
        """The far end may be the one to open the connection for data."""
        move_it(origin, target.url(f"{here}/"), target.attrs | {"ftp_passive": "false"})
        assert target.files.read(f"{here}/{origin.name}") == origin.read_bytes()

    def test_netrc(self, target: MoverTarget, origin: Path, here: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without a user in the URL, ``~/.netrc`` says who one is, else the login is anonymous."""
        monkeypatch.setenv("HOME", str(origin.parent))
        with pytest.raises(AuthenticationFailed):
            move_it(origin, target.url(f"{here}/", login=""), target.attrs)
        netrc = origin.parent / ".netrc"
        netrc.write_text(f'machine 127.0.0.1 login {USER} password "{PASSWORD}"\n')
        netrc.chmod(0o600)
        move_it(origin, target.url(f"{here}/", login=""), target.attrs)
        assert set(target.files.tree(here)) == {origin.name}


class TestFtpsOnPyFtpd(OnPyFtpd):
    """FTP under TLS."""

    scheme = "ftps"

    def test_unknown_certificate(self, target: MoverTarget, origin: Path, here: str) -> None:
        """An untrusted certificate is permanently rejected, unless verification is off."""
        with pytest.raises(AuthenticationFailed, match="certificate") as caught:
            move_it(origin, target.url(f"{here}/"), {})
        assert caught.value.held
        move_it(origin, target.url(f"{here}/"), {"ftp_tls_verify": "no"})
        assert set(target.files.tree(here)) == {origin.name}


class TestFtpOnVsftpd(OnVsftpd):
    """Plain FTP."""

    scheme = "ftp"


class TestFtpsOnVsftpd(OnVsftpd):
    """FTP under TLS, with the session of the control connection."""

    scheme = "ftps"
