"""Deliveries by sftp and scp against OpenSSH and asyncssh."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

import pytest

from trollmoves.tests.servers import asyncsshd, openssh
from trollmoves.tests.servers.asyncsshd import AsyncSshd
from trollmoves.tests.servers.contract import FarFiles, MoverContract, Place
from trollmoves.tests.servers.openssh import OpenSsh, make_key


def _place(scheme: str, server: OpenSsh | AsyncSshd, folder: Path) -> Place:
    (folder / "root").mkdir()
    stranger = make_key(folder / "stranger")
    return Place(
        scheme,
        server,
        FarFiles(folder / "root"),
        str(folder / "root"),
        attrs={"ssh_key_filename": str(server.user_key), "ssh_known_hosts": str(server.known_hosts)},
        login=server.user,
        wrong_login=f"{server.user}:{quote('wr0ng/pass', safe='')}",
        wrong_attrs={"ssh_key_filename": str(stranger)},
        secrets=("wr0ng/pass", quote("wr0ng/pass", safe=""), server.user_key.read_text().splitlines()[1]),
    )


class OnOpenSsh(MoverContract):
    """Against OpenSSH."""

    scheme: ClassVar[str]
    subsystem: ClassVar[str] = "internal-sftp"

    @pytest.fixture(scope="class")
    @classmethod
    def place(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
        """Start the server."""
        if why := openssh.missing():
            pytest.skip(why)
        folder = tmp_path_factory.mktemp("openssh")
        with OpenSsh(folder / "server", subsystem=cls.subsystem) as server:
            assert isinstance(server, OpenSsh)
            yield _place(cls.scheme, server, folder)


class OnAsyncSsh(MoverContract):
    """Against asyncssh."""

    scheme: ClassVar[str]

    @pytest.fixture(scope="class")
    @classmethod
    def place(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
        """Start the server."""
        if why := asyncsshd.missing() or openssh.missing():
            pytest.skip(why)
        folder = tmp_path_factory.mktemp("asyncssh")
        with AsyncSshd(folder / "server") as server:
            assert isinstance(server, AsyncSshd)
            yield _place(cls.scheme, server, folder)


class TestSftpOnOpenSsh(OnOpenSsh):
    """SFTP."""

    scheme = "sftp"


class TestScpOnOpenSsh(OnOpenSsh):
    """SCP, with renames by SFTP."""

    scheme = "scp"


class TestScpWithoutSftp(OnOpenSsh):
    """SCP, with renames by the far end's programs."""

    scheme = "scp"
    subsystem = "/nonexistent"


class TestSftpOnAsyncSsh(OnAsyncSsh):
    """SFTP."""

    scheme = "sftp"


class TestScpOnAsyncSsh(OnAsyncSsh):
    """SCP, with renames by SFTP."""

    scheme = "scp"
