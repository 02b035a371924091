"""An SSH login that the channels of several deliveries share."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import socket
import threading
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
)
from trollmoves.movers import options, ssh_options
from trollmoves.movers.pool import Connection, SharedHandle, SharedHandles
from trollmoves.movers.remote import Endpoint, RemoteMover
from trollmoves.movers.ssh import host_keys, private_keys
from trollmoves.movers.ssh.channel import Channel
from trollmoves.movers.ssh.socket import BufferedSocket
from trollmoves.movers.tcp_progress import TcpProgress

T = TypeVar("T")

PORT = 22
FAST_TIMEOUT = 1.0  # seconds; nearly all replies come sooner, so that the TCP progress need not be read
# Deliveries over one login. OpenSSH's MaxSessions allows 10 channels; a delivery by SCP uses up to three.
CONNECTIONS_PER_LOGIN = 3
MAX_LOGIN_BYTES = 1 << 20  # bytes that a server may send until the end of the login; OpenSSH sends a few kB
MANY_KEYS = 5  # of an agent; OpenSSH's MaxAuthTries allows 6 attempts, and paramiko may need one before
MAX_QUOTED = 200  # bytes of unexpected output of a server in an error text


class ChannelRefused(ConnectionFailed):
    """The server allows no further channel on the login."""


class SshMover(RemoteMover):
    """Delivers over channels of an SSH login; each protocol implements ``open_connection``."""

    @property
    def tries(self) -> int:  # type: ignore[override]
        """Number of attempts to connect."""
        return max(1, int(self.option("num_ssh_retries")))

    @property
    def stall_timeout(self) -> float:
        """Seconds without progress after which a transfer fails."""
        return float(self.option("stall_timeout"))

    @property
    def connect_timeout(self) -> float:
        """Seconds to connect, log in and open the channels."""
        return float(options.first_set(self.attrs, "ssh_connection_timeout", "connection_timeout"))

    @abstractmethod
    def open_connection(self, transport: paramiko.Transport, hang_up: Callable[[], None]) -> Connection:
        """Return a connection over new channels; its ``close`` calls ``hang_up``."""

    def open_exclusive(self, transport: paramiko.Transport, hang_up: Callable[[], None]) -> Connection:
        """Return a connection over a login that is not shared; a protocol may need fewer channels there."""
        return self.open_connection(transport, hang_up)

    def connect(self, login: Endpoint) -> Connection:
        """Open channels on a shared login; if the server refuses one, on a new login that is not shared.

        Raises:
            ChannelRefused: the server allows too few channels even for one connection.
        """
        logins = shared_logins()
        key = (login[:], repr(sorted(self.attrs.items())))
        timeout = 3 * self.connect_timeout + 1
        handle = logins.acquire(key, lambda: self.log_in(login), timeout)
        try:
            with translate_ssh_errors():
                return self.open_connection(handle.value.get_transport(), _release_once(logins, handle))
        except ChannelRefused:
            logins.release_full(handle)
        except BaseException:
            logins.release(handle)
            raise
        handle = logins.acquire(key, lambda: self.log_in(login), timeout, exclusive=True)
        try:
            with translate_ssh_errors():
                return self.open_exclusive(handle.value.get_transport(), _release_once(logins, handle))
        except BaseException:
            logins.release(handle)
            raise

    def log_in(self, login: Endpoint) -> paramiko.SSHClient:
        """Return a new login, which the caller closes; raises ``OSError`` or ``TransferError``."""
        timeout = self.connect_timeout
        key_file = options.first_set(self.attrs, "ssh_key_filename", "ssh_private_key_file")
        disabled = ssh_options.disabled_algorithms(self.option("ssh_weak_algorithms") or "")
        password = login.password if login.password is not None else self.option("password")
        key = private_keys.private_key(key_file, self.option("ssh_key_passphrase") or password) if key_file else None
        client = paramiko.SSHClient()
        policy = host_keys.host_key_policy(
            login.host, login.port or PORT, self.option("ssh_host_key"), self.option("ssh_known_hosts")
        )
        client.set_missing_host_key_policy(policy)
        agent = private_keys.LimitedAgent(timeout)
        client._agent = agent  # that of paramiko waits without a limit
        sock = _connected_socket(login, timeout, self.stall_timeout)
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
                    # With a password no keys are offered: servers count each offered key as a failed attempt.
                    allow_agent=password is None,
                    look_for_keys=password is None,
                    disabled_algorithms=disabled,
                    sock=sock,
                    transport_factory=functools.partial(_fast_transport, policy.kinds),
                )
        except BaseException as error:
            offered = len(agent.offered)
            client.close()
            sock.close()
            if offered >= MANY_KEYS and isinstance(error, (AuthenticationFailed, ConnectionFailed)):
                raise AuthenticationFailed(
                    f"{error}; the SSH agent offered up to {offered} keys, and servers end a login after a few: "
                    "set ssh_key_filename"
                ) from error
            if isinstance(error, AuthenticationFailed):
                used = "the password" if password is not None else "the key, and authorized_keys,"
                user = f"the user {login.user}" if login.user else "this user"
                raise AuthenticationFailed(f"{error}; check {used} of {user} there") from error
            raise
        sock.limit = None
        return client


def _connected_socket(login: Endpoint, timeout: float, stall_timeout: float) -> BufferedSocket:
    sock = BufferedSocket(socket.create_connection((login.host, login.port or PORT), timeout))
    sock.limit = MAX_LOGIN_BYTES
    # Without it small packets wait for the server's delayed acknowledgements, 40 ms each.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # paramiko's channel timeouts do not end a blocked write to the socket; this option does.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(stall_timeout * 1000))
    return sock


def _fast_transport(known_kinds: frozenset[str], sock: socket.socket, **arguments: object) -> paramiko.Transport:
    """Return a transport that prefers the known types of host keys, and AES-GCM, the fastest secure ciphers."""
    transport = paramiko.Transport(sock, **arguments)
    security = transport.get_security_options()
    security.ciphers = sorted(security.ciphers, key=lambda name: "gcm" not in name)
    security.key_types = sorted(
        security.key_types, key=lambda name: ("ssh-rsa" if name.startswith("rsa-sha2") else name) not in known_kinds
    )
    return transport


@contextlib.contextmanager
def translate_ssh_errors() -> Iterator[None]:
    """Translate exceptions of paramiko."""
    try:
        yield
    except TrollmovesError:
        raise
    except (paramiko.SSHException, EOFError) as error:
        raise _to_error(error) from error
    except TimeoutError:
        raise
    except OSError as error:
        if error.errno is None and type(error) is OSError:  # paramiko raises it for a closed channel
            raise ConnectionFailed(f"SSH: {error}") from error
        raise


@contextlib.contextmanager
def close_after(seconds: float, channel: paramiko.Channel) -> Iterator[None]:
    """Close ``channel`` if the block takes longer than ``seconds``; then raise ``TimeoutError``.

    paramiko waits without a limit for the reply to a request that starts a program or a subsystem.
    """
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        channel.close()

    timer = threading.Timer(seconds, expire)
    timer.daemon = True
    timer.start()
    try:
        yield
    except paramiko.SSHException:
        if expired.is_set():
            raise TimeoutError from None
        raise
    finally:
        timer.cancel()


def send_all(channel: paramiko.Channel, data: bytes) -> None:
    """Send all of ``data``; TimeoutError after no progress for the channel's timeout."""
    rest = memoryview(data)
    while rest:
        sent = _with_progress_timeout(channel, channel.send, rest)
        if not sent:
            raise ConnectionFailed("the server closed the channel")
        rest = rest[sent:]


def receive(channel: paramiko.Channel, count: int) -> bytes:
    """Return up to ``count`` bytes, none at the end; TimeoutError after no progress for the channel's timeout."""
    return bytes(_with_progress_timeout(channel, channel.recv, count))


def _with_progress_timeout(channel: paramiko.Channel, call: Callable[..., T], argument: object) -> T:
    """Repeat ``call`` after a timeout if TCP delivered earlier data during that time."""
    timeout = channel.gettimeout()
    channel.settimeout(min(timeout, FAST_TIMEOUT))
    try:
        return call(argument)
    except TimeoutError:
        progress = TcpProgress(channel.get_transport().sock)
    finally:
        channel.settimeout(timeout)
    while True:
        try:
            return call(argument)
        except TimeoutError:
            if not progress.has_advanced():
                raise


class ParamikoChannel(Channel):
    """A program or subsystem over a channel of paramiko."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel

    @property
    def timeout(self) -> float:
        """Seconds without progress, as TCP reports it."""
        return float(self._channel.gettimeout())

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self._channel.settimeout(seconds)

    def send(self, data: bytes) -> None:
        """Send all of ``data``; raises ``ConnectionFailed`` if the channel is closed."""
        with translate_ssh_errors():
            send_all(self._channel, data)

    def receive(self, count: int) -> bytes:
        """Return one or more bytes, up to ``count``; raises ``ConnectionFailed`` with the reason at the end."""
        with translate_ssh_errors():
            data = receive(self._channel, count)
        if data:
            return data
        # Servers send the exit status after the end of the output. paramiko sets the event also without a status.
        self._channel.status_event.wait(self.timeout)
        if self._channel.exit_status >= 0:
            raise ConnectionFailed(f"the program on the server ended with {self._channel.exit_status}")
        raise ConnectionFailed("the server closed the channel")

    def alive(self) -> bool:
        """Return True if the channel is open."""
        is_open = not (self._channel.closed or self._channel.eof_received)
        return is_open and bool(self._channel.get_transport().is_active())

    def close(self) -> None:
        """Close the channel."""
        with contextlib.suppress(Exception):
            self._channel.close()


def start(transport: paramiko.Transport, timeout: float, command: str, *, subsystem: bool = False) -> ParamikoChannel:
    """Start a program, with its errors in its output, or a subsystem; both within ``timeout`` seconds."""
    channel = transport.open_session(timeout=timeout)
    try:
        channel.settimeout(timeout)
        with close_after(timeout, channel):
            if subsystem:
                channel.invoke_subsystem(command)
            else:
                channel.set_combine_stderr(True)
                channel.exec_command(command)
    except BaseException:
        channel.close()
        raise
    return ParamikoChannel(channel)


def _to_error(error: Exception) -> TrollmovesError:
    text = f"SSH: {str(error).rstrip('.') or type(error).__name__}"
    if isinstance(error, paramiko.ChannelException):
        return ChannelRefused(text)
    if isinstance(error, paramiko.AuthenticationException) or "authentication methods" in text:
        return TransferStalled(text) if "timeout" in text else AuthenticationFailed(text)
    if isinstance(error, getattr(paramiko.ssh_exception, "IncompatiblePeer", ())):
        return PermanentTransferError(f"{text}; the server may support only weak ones, see ssh_weak_algorithms")
    return ConnectionFailed(text)


def _release_once(
    logins: SharedHandles[paramiko.SSHClient], handle: SharedHandle[paramiko.SSHClient]
) -> Callable[[], None]:
    """Return a function that releases ``handle`` on its first call and then does nothing."""
    left = [handle]
    return lambda: logins.release(left.pop()) if left else None


def shared_logins() -> SharedHandles[paramiko.SSHClient]:
    """Return the SSH logins of this process."""
    return _logins_of(os.getpid())


@functools.lru_cache(maxsize=1)
def _logins_of(process: int) -> SharedHandles[paramiko.SSHClient]:  # noqa: ARG001  (the key)
    # paramiko logs at level ERROR, with a traceback, the exceptions that it also raises.
    logging.getLogger("paramiko.transport").addFilter(_drop_errors)
    return SharedHandles(paramiko.SSHClient.close, _is_active, CONNECTIONS_PER_LOGIN)


def _drop_errors(record: logging.LogRecord) -> bool:
    return record.levelno < logging.ERROR


def _is_active(client: paramiko.SSHClient) -> bool:
    transport = client.get_transport()
    return transport is not None and bool(transport.is_active())
