"""Deliveries by ftp and ftps against pyftpdlib and vsftpd."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import ClassVar
from urllib.parse import quote

import pytest

from trollmoves.tests.servers import pyftpd, vsftpd
from trollmoves.tests.servers.contract import FarFiles, MoverContract, Place
from trollmoves.tests.servers.pyftpd import PASSWORD, USER, PyFtpd
from trollmoves.tests.servers.vsftpd import Vsftpd

NEEDS_LINES = ("two\nlines",)  # FTP's commands are lines


class OnPyFtpd(MoverContract):
    """Against pyftpdlib."""

    scheme: ClassVar[str]
    unnameable = NEEDS_LINES

    @pytest.fixture(scope="class")
    @classmethod
    def place(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
        """Start the server."""
        tls = cls.scheme == "ftps"
        if why := pyftpd.missing(tls=tls):
            pytest.skip(why)
        folder = tmp_path_factory.mktemp("pyftpd")
        (folder / "root").mkdir()
        with PyFtpd(folder / "server", folder / "root", tls=tls) as server:
            assert isinstance(server, PyFtpd)
            yield Place(
                cls.scheme,
                server,
                FarFiles(folder / "root"),
                "",
                attrs={"ftp_tls_ca_file": str(server.certificate)} if tls else {},
                login=f"{USER}:{quote(PASSWORD, safe='')}",
                wrong_login=f"{USER}:wr0ng.pass",
                secrets=(PASSWORD, quote(PASSWORD, safe=""), "wr0ng.pass"),
                ports=tuple(server.passive_ports),
            )


class OnVsftpd(MoverContract):
    """Against vsftpd, without a login."""

    scheme: ClassVar[str]
    unnameable = NEEDS_LINES
    checks_logins = False

    @pytest.fixture(scope="class")
    @classmethod
    def place(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
        """Start the server, whose user must be able to come to its root."""
        tls = cls.scheme == "ftps"
        if why := vsftpd.missing():
            pytest.skip(why)
        folder = tmp_path_factory.mktemp("vsftpd")
        for above in (folder, *folder.parents[:2]):
            os.chmod(above, 0o755)
        (folder / "root").mkdir()
        with Vsftpd(folder / "server", folder / "root", tls=tls) as server:
            assert isinstance(server, Vsftpd)
            yield Place(
                cls.scheme,
                server,
                FarFiles(folder / "root"),
                "",
                attrs={"ftp_tls_ca_file": str(server.certificate)} if tls else {},
                ports=tuple(server.passive_ports),
            )


class TestFtpOnPyFtpd(OnPyFtpd):
    """Plain FTP."""

    scheme = "ftp"


class TestFtpsOnPyFtpd(OnPyFtpd):
    """FTP under TLS."""

    scheme = "ftps"


class TestFtpOnVsftpd(OnVsftpd):
    """Plain FTP."""

    scheme = "ftp"


class TestFtpsOnVsftpd(OnVsftpd):
    """FTP under TLS, with the session of the control connection."""

    scheme = "ftps"
