"""vsftpd, the strict FTP server, for anonymous uploads; under TLS data connections must resume the session."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from trollmoves.tests.servers.process import HOST, ServerProcess, free_port, free_ports
from trollmoves.tests.servers.pyftpd import make_certificate

PROGRAM = shutil.which("vsftpd") or "/usr/sbin/vsftpd"
USER = "ftp"  # which the Debian package makes
PASSIVE_PORTS = 32

_CONFIG = """
listen=YES
listen_address={host}
listen_port={port}
background=NO
seccomp_sandbox=NO
anonymous_enable=YES
local_enable=NO
no_anon_password=NO
ftp_username=ftp
anon_root={top}
allow_writeable_chroot=YES
write_enable=YES
anon_upload_enable=YES
anon_mkdir_write_enable=YES
anon_other_write_enable={other_writes}
anon_world_readable_only=NO
anon_umask=022
secure_chroot_dir={folder}/empty
pasv_min_port={low}
pasv_max_port={high}
xferlog_enable=NO
{tls}
"""
_TLS = """
ssl_enable=YES
allow_anon_ssl=YES
force_anon_data_ssl=YES
force_anon_logins_ssl=YES
require_ssl_reuse=YES
rsa_cert_file={certificate}
ssl_ciphers=HIGH
"""


def missing() -> str:
    """Return why the server cannot run, empty when it can."""
    if not os.access(PROGRAM, os.X_OK):
        return "no vsftpd (Debian: vsftpd)"
    return "" if os.geteuid() == 0 else "vsftpd must be started by root"


class Vsftpd(ServerProcess):
    """A server for anonymous users, who may write to the last part of ``root`` only.

    With ``upload_only``, vsftpd's default, they may neither rename nor delete.
    """

    def __init__(self, folder: Path, root: Path, *, tls: bool = False, upload_only: bool = False) -> None:
        (folder / "empty").mkdir(parents=True, exist_ok=True)
        port = free_port()
        self.root = root
        self.passive_ports = free_ports(PASSIVE_PORTS)
        self.certificate = folder / "server.pem"
        if tls:
            make_certificate(self.certificate)
        config = folder / "vsftpd.conf"
        config.write_text(
            _CONFIG.format(
                host=HOST,
                port=port,
                top=root.parent,
                folder=folder,
                other_writes="NO" if upload_only else "YES",
                low=self.passive_ports[0],
                high=self.passive_ports[-1],
                tls=_TLS.format(certificate=self.certificate) if tls else "",
            )
        )
        shutil.chown(root, USER)
        super().__init__(port, [PROGRAM, str(config)], folder / "vsftpd.log")
