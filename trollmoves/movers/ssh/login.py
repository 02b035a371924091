"""SSH logins for reading files, with the host keys and timeouts of the movers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import ParseResult

import paramiko

from trollmoves.movers.ssh.connection import close_after, translate_ssh_errors
from trollmoves.movers.ssh.sftp import SftpMover


def open_sftp(url: ParseResult, attrs: Mapping[str, Any]) -> tuple[paramiko.SSHClient, paramiko.SFTPClient]:
    """Log in to the host of ``url`` and open SFTP; the caller closes the login.

    Raises:
        OSError: the host cannot be reached.
        TransferError: the login failed, or the host key is unknown.
    """
    mover = SftpMover("", url, attrs)
    client = mover.log_in(mover.endpoint())
    try:
        with translate_ssh_errors():
            transport = client.get_transport()
            channel = transport.open_session(timeout=mover.connect_timeout)
            channel.settimeout(mover.stall_timeout)
            with close_after(mover.connect_timeout, channel):
                channel.invoke_subsystem("sftp")
                return client, paramiko.SFTPClient(channel)
    except BaseException:
        client.close()
        raise
