"""OpenSSH's sshd with test keys and a test configuration."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import subprocess
from pathlib import Path

from trollmoves.tests.servers.process import HOST, PROXY_HOST, ServerProcess, free_port

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
SFTP_SERVER = "/usr/lib/openssh/sftp-server"

_CONFIG = """
{extra}
Port {port}
ListenAddress {host}
HostKey {folder}/host_key
PidFile none
AuthorizedKeysFile {folder}/authorized_keys
UsePAM no
StrictModes no
PermitRootLogin yes
MaxStartups 100:30:200
MaxSessions 100
LogLevel ERROR
Subsystem sftp {subsystem}
"""


def missing() -> str:
    """Return the reason why sshd cannot run, or an empty string."""
    return "" if os.access(SSHD, os.X_OK) else "no sshd (Debian: openssh-server)"


def make_key(path: Path, kind: str = "ed25519", passphrase: str = "") -> Path:
    """Make a key pair at ``path``."""
    subprocess.run(
        ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-f", str(path)], check=True, stdin=subprocess.DEVNULL
    )
    return path


def ssh_children(parent: int) -> set[int]:
    """Return the numbers of the processes ``ssh`` that ``parent`` has started, zombies included."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            number, name, _, started_by = status.read_text().split()[:4]
            if name == "(ssh)" and int(started_by) == parent:
                found.add(int(number))
    return found


def fingerprint(key: Path) -> str:
    """Return the fingerprint of the key pair at ``path``, as ``ssh-keygen`` shows it."""
    command = ["ssh-keygen", "-l", "-f", str(key.with_suffix(".pub"))]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[1]


class OpenSsh(ServerProcess):
    """An sshd on a free port, which lets this user in by ``user_key``; ``known_hosts`` knows it."""

    def __init__(
        self, folder: Path, extra: str = "", subsystem: str = "internal-sftp", host_key: str = "ed25519"
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        port = free_port()
        if os.geteuid() == 0:
            os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
        self.user = getpass.getuser()
        self.user_key = make_key(folder / "user_key")
        self.host_key = make_key(folder / "host_key", host_key)
        (folder / "authorized_keys").write_text((folder / "user_key.pub").read_text())
        self.known_hosts = folder / "known_hosts"
        self.known_hosts.write_text("".join(self.known_as(host, port) for host in (HOST, PROXY_HOST)))
        config = folder / "sshd_config"
        config.write_text(_CONFIG.format(port=port, host=HOST, folder=folder, extra=extra, subsystem=subsystem))
        super().__init__(port, [SSHD, "-D", "-e", "-f", str(config)], folder / "sshd.log")

    def known_as(self, host: str, port: int) -> str:
        """Return the line of a known_hosts file for this server at ``host`` and ``port``."""
        kind, key = self.host_key.with_suffix(".pub").read_text().split()[:2]
        return f"[{host}]:{port} {kind} {key}\n"
