"""One SSH login, shared by the channels of several deliveries."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import socket
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import TypeVar

import paramiko

from trollmoves.errors import (
    AuthenticationFailed,
    ConnectionFailed,
    PermanentTransferError,
    TransferStalled,
    TrollmovesError,
    UnknownHostKey,
)
from trollmoves.movers import options, ssh_options
from trollmoves.movers.pool import Connection, SharedHandle, SharedHandles
from trollmoves.movers.remote import Endpoint, RemoteMover
from trollmoves.movers.ssh import host_keys, private_keys
from trollmoves.movers.ssh.socket import BufferedSocket
from trollmoves.movers.tcp_progress import TcpProgress

T = TypeVar("T")

PORT = 22
FAST_TIMEOUT = 1.0  # seconds within which nearly all answers come, so that nobody needs to ask how far TCP is
CONNECTIONS_PER_LOGIN = (
    3  # deliveries over one login; OpenSSH's MaxSessions allows 10 channels, and one by scp takes up to three
)


class ChannelRefused(ConnectionFailed):
    """The login takes no further channel."""


class SshMover(RemoteMover):
    """Delivers over a channel of an SSH login; a protocol says how to ``open_line``."""

    @property
    def tries(self) -> int:  # type: ignore[override]
        """How often to try to connect."""
        return max(1, int(self.option("num_ssh_retries")))

    @property
    def stall_timeout(self) -> float:
        """Seconds without a byte moving after which a transfer fails."""
        return float(self.option("stall_timeout"))

    @abstractmethod
    def open_connection(self, transport: paramiko.Transport, hang_up: Callable[[], None]) -> Connection:
        """Return a connection over new channels, which calls ``hang_up`` once when it is closed."""

    def connect(self, login: Endpoint) -> Connection:
        """Open channels on a login that has room for them, or on a new one."""
        trunks = shared_logins()
        key = (login[:], repr(sorted(self.attrs.items())))
        patience = 3 * self._connection_timeout() + 1
        while True:
            trunk = trunks.acquire(key, lambda: self._log_in(login), patience)
            try:
                with translate_ssh_errors():
                    return self.open_connection(trunk.value.get_transport(), _release_once(trunks, trunk))
            except ChannelRefused:
                alone = trunk.users == 1
                trunks.release_full(trunk)
                if alone:
                    raise
            except BaseException:
                trunks.release(trunk)
                raise

    def _connection_timeout(self) -> float:
        return float(options.first_set(self.attrs, "ssh_connection_timeout", "connection_timeout"))

    def _log_in(self, login: Endpoint) -> paramiko.SSHClient:
        timeout = self._connection_timeout()
        key_file = options.first_set(self.attrs, "ssh_key_filename", "ssh_private_key_file")
        weak = ssh_options.disabled_algorithms(self.option("ssh_weak_algorithms") or "")
        password = login.password if login.password is not None else self.option("password")
        key = private_keys.private_key(key_file, self.option("ssh_key_passphrase") or password) if key_file else None
        client = paramiko.SSHClient()
        host_keys.configure_host_keys(client, self.option("ssh_host_key"), self.option("ssh_known_hosts"))
        plain = _connected_socket(login, timeout, self.stall_timeout)
        try:
            with translate_ssh_errors():
                client.connect(
                    login.host,
                    login.port or PORT,
                    login.user,
                    password,
                    pkey=key,
                    passphrase=self.option("ssh_key_passphrase"),
                    timeout=timeout,
                    banner_timeout=timeout,
                    auth_timeout=timeout,
                    channel_timeout=timeout,
                    # Who gives a password means it, and servers count every key that is offered before.
                    allow_agent=password is None,
                    look_for_keys=password is None,
                    disabled_algorithms=weak,
                    sock=plain,
                    transport_factory=_quick_transport,
                )
        except BaseException:
            client.close()
            plain.close()
            raise
        return client


def _connected_socket(login: Endpoint, timeout: float, stall_timeout: float) -> socket.socket:
    plain = BufferedSocket(socket.create_connection((login.host, login.port or PORT), timeout))
    # paramiko leaves small packets to wait for the far end's delayed acknowledgements, 40 ms each.
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Its channel time-outs do not end a write that the kernel takes no more of; this does.
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(stall_timeout * 1000))
    return plain


def _quick_transport(sock: socket.socket, **arguments: object) -> paramiko.Transport:
    """Return a transport that prefers the quickest of the secure ciphers, AES-GCM, which paramiko puts last."""
    transport = paramiko.Transport(sock, **arguments)
    security = transport.get_security_options()
    security.ciphers = sorted(security.ciphers, key=lambda name: "gcm" not in name)
    return transport


@contextlib.contextmanager
def translate_ssh_errors() -> Iterator[None]:
    """Translate what paramiko raises."""
    try:
        yield
    except TrollmovesError:
        raise
    except (paramiko.SSHException, EOFError) as error:
        raise _to_error(error) from error
    except TimeoutError:
        raise
    except OSError as error:
        if error.errno is None:  # paramiko's word for a channel that is no more
            raise ConnectionFailed(f"SSH: {error}") from error
        raise


def send_all(channel: paramiko.Channel, data: bytes) -> None:
    """Send all of ``data``; TimeoutError when nothing moved for the channel's time-out."""
    rest = memoryview(data)
    while rest:
        sent = _with_progress_timeout(channel, channel.send, rest)
        if not sent:
            raise ConnectionFailed("the far end closed the channel")
        rest = rest[sent:]


def receive(channel: paramiko.Channel, count: int) -> bytes:
    """Give up to ``count`` bytes, none at the end; TimeoutError when nothing moved for the channel's time-out."""
    return bytes(_with_progress_timeout(channel, channel.recv, count))


def _with_progress_timeout(channel: paramiko.Channel, act: Callable[..., T], argument: object) -> T:
    """Try again after a time-out during which what had been sent before was still on its way, and moved."""
    timeout = channel.gettimeout()
    channel.settimeout(min(timeout, FAST_TIMEOUT))
    try:
        return act(argument)
    except TimeoutError:
        progress = TcpProgress(channel.get_transport().sock)
    finally:
        channel.settimeout(timeout)
    while True:
        try:
            return act(argument)
        except TimeoutError:
            if not progress.has_advanced():
                raise


def _to_error(error: Exception) -> TrollmovesError:
    text = f"SSH: {str(error) or type(error).__name__}"
    if isinstance(error, paramiko.BadHostKeyException):
        return UnknownHostKey(f"{error.hostname} shows another key than the one in known_hosts")
    if isinstance(error, paramiko.ChannelException):
        return ChannelRefused(text)
    if isinstance(error, paramiko.AuthenticationException) or "authentication methods" in text:
        return TransferStalled(text) if "timeout" in text else AuthenticationFailed(text)
    if isinstance(error, getattr(paramiko.ssh_exception, "IncompatiblePeer", ())):
        return PermanentTransferError(f"{text}; it may know only weak ones, see ssh_weak_algorithms")
    return ConnectionFailed(text)


def _release_once(
    trunks: SharedHandles[paramiko.SSHClient], trunk: SharedHandle[paramiko.SSHClient]
) -> Callable[[], None]:
    """Return a function that gives the trunk back when it is called for the first time."""
    left = [trunk]
    return lambda: trunks.release(left.pop()) if left else None


def shared_logins() -> SharedHandles[paramiko.SSHClient]:
    """Return the SSH logins of this process."""
    return _trunks_of(os.getpid())


@functools.lru_cache(maxsize=1)
def _trunks_of(process: int) -> SharedHandles[paramiko.SSHClient]:  # noqa: ARG001  (the key)
    # paramiko tells at level ERROR, with a traceback, what reaches the caller as an exception.
    logging.getLogger("paramiko.transport").addFilter(_drop_errors)
    return SharedHandles(_close_client, _is_active, CONNECTIONS_PER_LOGIN)


def _drop_errors(record: logging.LogRecord) -> bool:
    return record.levelno < logging.ERROR


def _close_client(client: paramiko.SSHClient) -> None:
    client.close()


def _is_active(client: paramiko.SSHClient) -> bool:
    transport = client.get_transport()
    return transport is not None and bool(transport.is_active())
