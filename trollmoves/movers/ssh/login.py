"""SSH logins for reading files, with the host keys and timeouts of the movers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import ParseResult

import paramiko

from trollmoves.movers import ssh_options
from trollmoves.movers.ssh.channel import Channel
from trollmoves.movers.ssh.connection import close_after, translate_ssh_errors
from trollmoves.movers.ssh.sftp import SftpMover


class SftpLogin(NamedTuple):
    """An open login: the client, a function that returns True while it is open, and one that closes it."""

    client: paramiko.SFTPClient
    is_open: Callable[[], bool]
    close: Callable[[], None]


def open_sftp(url: ParseResult, attrs: Mapping[str, Any]) -> SftpLogin:
    """Log in to the host of ``url`` and open SFTP; the caller closes the login.

    Raises:
        ConfigError: ``ssh_transport = openssh`` with a password, or without the program ``ssh``.
        OSError: the host cannot be reached.
        TransferError: the login failed, or the host key is unknown.
    """
    mover = SftpMover("", url, attrs)
    if mover.option("ssh_transport") == ssh_options.OPENSSH:
        return _by_openssh(mover)
    client = mover.log_in(mover.endpoint())
    try:
        with translate_ssh_errors():
            transport = client.get_transport()
            channel = transport.open_session(timeout=mover.connect_timeout)
            channel.settimeout(mover.stall_timeout)
            with close_after(mover.connect_timeout, channel):
                channel.invoke_subsystem("sftp")
                return SftpLogin(paramiko.SFTPClient(channel), transport.is_active, client.close)
    except BaseException:
        client.close()
        raise


def _by_openssh(mover: SftpMover) -> SftpLogin:
    channel = mover.openssh_channel(mover.endpoint())
    try:
        client = paramiko.SFTPClient(_Stream(channel))
    except BaseException:
        channel.close()
        raise
    channel.timeout = mover.stall_timeout
    return SftpLogin(client, channel.alive, channel.close)


class _Stream:
    """A channel with the methods that paramiko's SFTP client calls. One thread may send while another one receives."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def send(self, data: bytes) -> int:
        self._channel.send(data)
        return len(data)

    def recv(self, count: int) -> bytes:
        return self._channel.receive(count)

    def get_name(self) -> str:
        return "openssh"

    def close(self) -> None:
        self._channel.close()
