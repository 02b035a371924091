"""Remote destinations for daemons: servers behind a proxy, and the credentials in the testbed's home directory."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from trollmoves.tests.helpers.daemons import Testbed
from trollmoves.tests.servers import openssh, pyftpd
from trollmoves.tests.servers.openssh import OpenSsh
from trollmoves.tests.servers.process import PROXY_HOST
from trollmoves.tests.servers.proxy import Proxy
from trollmoves.tests.servers.pyftpd import PASSWORD, USER, PyFtpd


class RemoteDirectory:
    """A remote destination: ``url`` refers to ``folder`` behind ``proxy``, without credentials."""

    def __init__(self, testbed: Testbed, scheme: str, folder: Path) -> None:
        """Start a server for ``ftp``, ``scp`` or ``sftp``; skip the test if it is not installed."""
        why = pyftpd.missing() if scheme == "ftp" else openssh.missing()
        if why:
            pytest.skip(f"missing: {why}")
        self.folder = folder
        home = testbed.directory("home")
        if scheme == "ftp":
            ftp = PyFtpd(testbed.directory("ftpd"), folder)
            testbed.enter(ftp)
            netrc = home / ".netrc"
            netrc.write_text(f"machine {PROXY_HOST} login {USER} password {PASSWORD}\n")
            netrc.chmod(0o600)
            self.port, ports, path = ftp.port, [ftp.port, *ftp.passive_ports], "/"
        else:
            ssh = OpenSsh(testbed.directory("sshd"))
            testbed.enter(ssh)
            keys = testbed.directory("home/.ssh")
            keys.chmod(0o700)
            shutil.copy(ssh.user_key, keys / "id_ed25519")
            shutil.copy(ssh.user_key.with_suffix(".pub"), keys / "id_ed25519.pub")
            shutil.copy(ssh.known_hosts, keys / "known_hosts")
            self.port, ports, path = ssh.port, [ssh.port], f"{folder}/"
        self.proxy = testbed.enter(Proxy(*ports))
        self.address = f"{PROXY_HOST}:{self.port}"
        self.url = f"{scheme}://{self.address}{path}"
