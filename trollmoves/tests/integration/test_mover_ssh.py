"""Deliveries by sftp and scp against OpenSSH and asyncssh."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

import pytest

from trollmoves.errors import AuthenticationFailed, BadDestination, UnknownHostKey
from trollmoves.movers import close_connections, move_it
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers import asyncsshd, openssh
from trollmoves.tests.servers.asyncsshd import AsyncSshd
from trollmoves.tests.servers.contract import MoverContract, MoverTarget, RemoteFiles
from trollmoves.tests.servers.openssh import OpenSsh, make_key, ssh_children
from trollmoves.tests.servers.process import PROXY_HOST
from trollmoves.tests.servers.proxy import Proxy


def _place(scheme: str, server: OpenSsh | AsyncSshd, folder: Path) -> MoverTarget:
    (folder / "root").mkdir()
    stranger = make_key(folder / "stranger")
    return MoverTarget(
        scheme,
        server,
        RemoteFiles(folder / "root"),
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
    further: ClassVar[dict[str, str]] = {}

    @pytest.fixture(scope="class")
    @classmethod
    def target(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MoverTarget]:
        """Start the server."""
        if why := openssh.missing():
            pytest.skip(why)
        folder = tmp_path_factory.mktemp("openssh")
        with OpenSsh(folder / "server", subsystem=cls.subsystem) as server:
            assert isinstance(server, OpenSsh)
            place = _place(cls.scheme, server, folder)
            place.attrs |= cls.further
            if cls.further:
                place.wrong_login = place.login
            yield place

    def test_slow_link(self, target: MoverTarget, origin: Path, here: str, proxy: Proxy) -> None:
        """A file that is sent in a moment, and on its way for longer than ``stall_timeout``, arrives."""
        origin.write_bytes(os.urandom(1_900_000))  # the window that the server gives is larger
        proxy.rate = 170_000
        move_it(origin, target.url(f"{here}/f", PROXY_HOST), self.through(target, stall_timeout=6))
        assert target.files.read(f"{here}/f") == origin.read_bytes()


class OnAsyncSsh(MoverContract):
    """Against asyncssh."""

    scheme: ClassVar[str]

    @pytest.fixture(scope="class")
    @classmethod
    def target(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MoverTarget]:
        """Start the server."""
        if why := asyncsshd.missing() or openssh.missing():
            pytest.skip(why)
        folder = tmp_path_factory.mktemp("asyncssh")
        with AsyncSshd(folder / "server") as server:
            assert isinstance(server, AsyncSshd)
            yield _place(cls.scheme, server, folder)


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """Return a file to deliver."""
    path = tmp_path / "f"
    path.write_bytes(os.urandom(50_000))
    return path


@pytest.mark.parametrize("scheme", ["sftp", "scp"])
def test_few_channels_for_each_login(scheme: str, tmp_path: Path) -> None:
    """A server that allows only two channels for each login gets more logins."""
    if why := openssh.missing():
        pytest.skip(why)
    paths = [tmp_path / str(number) for number in range(12)]
    for path in paths:
        path.write_bytes(os.urandom(20_000))
    errors: list[BaseException] = []

    def deliver(path: Path) -> None:
        try:
            move_it(path, target.url("in/"), target.attrs | {"max_connections": 6})
        except BaseException as error:
            errors.append(error)

    with OpenSsh(tmp_path / "server", extra="MaxSessions 2") as server:
        assert isinstance(server, OpenSsh)
        target = _place(scheme, server, tmp_path)
        threads = [threading.Thread(target=deliver, args=(path,)) for path in paths]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        close_connections()
    assert errors == []
    assert target.files.tree("in") == {path.name: path.read_bytes() for path in paths}


@pytest.mark.parametrize("subsystem", ["internal-sftp", "/nonexistent"])
def test_scp_over_a_single_channel(subsystem: str, tmp_path: Path, origin: Path) -> None:
    """SCP delivers to a server that allows one channel for each login, also with a name to quote and a checksum."""
    if why := openssh.missing():
        pytest.skip(why)
    with OpenSsh(tmp_path / "server", extra="MaxSessions 1", subsystem=subsystem) as server:
        assert isinstance(server, OpenSsh)
        place = _place("scp", server, tmp_path)
        for name in ("f", "it's; $(x)", "empty"):
            origin = origin.rename(origin.with_name(name))
            if name == "empty":
                origin.write_bytes(b"")
            move_it(origin, place.url("new/in/"), place.attrs | {"verify_checksum": True})
            assert place.files.tree("new/in")[name] == origin.read_bytes()
        with pytest.raises(BadDestination):
            move_it(origin, place.url("new/in/f/under"), place.attrs)
        close_connections()


def _listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0


class TestSftpOnOpenSsh(OnOpenSsh):
    """SFTP."""

    scheme = "sftp"

    def test_unknown_host_key(self, target: MoverTarget, origin: Path, here: str) -> None:
        """A host that is missing from known_hosts is permanently rejected before the login."""
        attrs = {key: value for key, value in target.attrs.items() if key != "ssh_known_hosts"}
        with pytest.raises(UnknownHostKey, match="ssh-keyscan") as caught:
            move_it(origin, target.url(f"{here}/"), attrs)
        assert caught.value.held

    def test_changed_host_key(self, target: MoverTarget, origin: Path, here: str, tmp_path: Path) -> None:
        """A host with another key than the known one is permanently rejected."""
        kind, key = make_key(tmp_path / "other").with_suffix(".pub").read_text().split()[:2]
        known = tmp_path / "known_hosts"
        known.write_text(f"[127.0.0.1]:{target.server.port} {kind} {key}\n")
        with pytest.raises(UnknownHostKey, match="another key"):
            move_it(origin, target.url(f"{here}/"), target.attrs | {"ssh_known_hosts": str(known)})

    @pytest.mark.parametrize("kind", ["rsa", "ecdsa", "ed25519"])
    def test_key_types(self, target: MoverTarget, origin: Path, here: str, tmp_path: Path, kind: str) -> None:
        """RSA, ECDSA and Ed25519 keys let one in, by either spelling of the option."""
        key = make_key(tmp_path / f"key_{kind}", kind)
        authorized = Path(target.attrs["ssh_key_filename"]).parent / "authorized_keys"
        with authorized.open("a") as file:
            file.write(key.with_suffix(".pub").read_text())
        attrs = {"ssh_private_key_file": str(key), "ssh_known_hosts": target.attrs["ssh_known_hosts"]}
        attrs |= self.further
        move_it(origin, target.url(f"{here}/"), attrs)
        assert set(target.files.tree(here)) == {origin.name}

    def test_agent(self, target: MoverTarget, origin: Path, here: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """A key of a running agent lets one in."""
        with tempfile.TemporaryDirectory() as folder:
            agent = subprocess.Popen(["ssh-agent", "-D", "-a", f"{folder}/agent"], stdout=subprocess.DEVNULL)
            try:
                until(lambda: _listens(f"{folder}/agent"), 5, "the agent listens")
                monkeypatch.setenv("SSH_AUTH_SOCK", f"{folder}/agent")
                subprocess.run(["ssh-add", "-q", target.attrs["ssh_key_filename"]], check=True)
                attrs = {"ssh_known_hosts": target.attrs["ssh_known_hosts"]} | self.further
                move_it(origin, target.url(f"{here}/"), attrs)
            finally:
                agent.terminate()
                agent.wait(5)
        assert set(target.files.tree(here)) == {origin.name}

    def test_missing_key_file(self, target: MoverTarget, origin: Path, here: str) -> None:
        """An unreadable key file is named in the error."""
        with pytest.raises(AuthenticationFailed, match="/nowhere/key"):
            move_it(origin, target.url(f"{here}/"), target.attrs | {"ssh_key_filename": "/nowhere/key"})

    def test_checksum_and_fsync(self, target: MoverTarget, origin: Path, here: str) -> None:
        """SHA-256 sums can be compared, and the far end's disk waited for."""
        for name in ("plain", "two\nlines", "back\\slash"):
            move_it(origin, target.url(f"{here}/"), target.attrs | {"verify_checksum": True, "fsync": True})
            origin = origin.rename(origin.with_name(name))
        assert len(target.files.tree(here)) == 3

    def test_created_files_are_not_world_writable(self, target: MoverTarget, origin: Path, here: str) -> None:
        """Created files on the server are not world-writable."""
        origin.chmod(0o666)
        move_it(origin, target.url(f"{here}/new/"), target.attrs)
        for path in (target.files.root / here, *(target.files.root / here).rglob("*")):
            assert not path.stat().st_mode & 0o002


class TestSftpByProgram(TestSftpOnOpenSsh):
    """SFTP by the program ``ssh``, which logs in without a password and ends with the connection."""

    further: ClassVar[dict[str, str]] = {"ssh_transport": "openssh"}

    @pytest.fixture(autouse=True)
    def _no_process_is_left(self) -> Iterator[None]:
        before = ssh_children(os.getpid())
        yield
        close_connections()
        assert ssh_children(os.getpid()) <= before


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

    def test_password(self, target: MoverTarget, origin: Path, here: str) -> None:
        """A correct password in the URL is accepted, a wrong one is permanently rejected; neither is logged."""
        attrs = {"ssh_known_hosts": target.attrs["ssh_known_hosts"]}
        login = f"{target.login}:{quote(asyncsshd.PASSWORD, safe='')}"
        move_it(origin, target.url(f"{here}/", login=login), attrs)
        assert set(target.files.tree(here)) == {origin.name}
        with pytest.raises(AuthenticationFailed) as caught:
            move_it(origin, target.url(f"{here}/", login=target.wrong_login), attrs)
        assert "wr0ng" not in str(caught.value)


class TestScpOnAsyncSsh(OnAsyncSsh):
    """SCP, with renames by SFTP."""

    scheme = "scp"
