"""SSH channels by the program ``ssh`` of OpenSSH, one process for each channel.

The process encrypts in C and on another processor. It reads ``~/.ssh/config``, so that aliases, jump hosts,
certificates and hardware keys work as in a shell. Host keys, algorithms and prompts are as with paramiko: the options
on its command line override those in the configuration files of ``ssh``.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import select
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trollmoves.errors import (
    AuthenticationFailed,
    BadDestination,
    ConfigError,
    ConnectionFailed,
    PermanentTransferError,
    TransferError,
    TransferStalled,
    UnknownHostKey,
)
from trollmoves.movers import ssh_options
from trollmoves.movers.ssh import host_keys
from trollmoves.movers.ssh.channel import Channel
from trollmoves.movers.ssh.socket import BufferedSocket

PROGRAM = "ssh"
MAX_LOG = 1 << 16  # bytes of the messages of one process, the size of a pipe; later messages are lost
EXIT_TIMEOUT = 5.0  # seconds to wait for a process that was killed
FAILED = 255  # exit code of ssh for its errors
_ALGORITHMS = {
    "kex": "KexAlgorithms",
    "keys": "HostKeyAlgorithms",
    "pubkeys": "PubkeyAcceptedAlgorithms",
    "ciphers": "Ciphers",
    "macs": "MACs",
}
_FAST_CIPHER = "aes128-gcm@openssh.com"
_FIXED = {
    "BatchMode": "yes",  # no prompts
    "StrictHostKeyChecking": "yes",
    "GlobalKnownHostsFile": host_keys.SYSTEM_KNOWN_HOSTS,
    "CheckHostIP": "no",
    "VerifyHostKeyDNS": "no",
    "NoHostAuthenticationForLocalhost": "no",
    "UpdateHostKeys": "no",
    "FingerprintHash": "sha256",
    "ControlMaster": "no",  # another process may have checked the host key of a shared connection differently
    "ControlPath": "none",
    "ClearAllForwardings": "yes",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "PermitLocalCommand": "no",
    "RemoteCommand": "none",
    "EscapeChar": "none",
    "ServerAliveCountMax": "2",
}
# A shell may parse host and user: that of a ProxyCommand in the configuration of ssh.
_HOST = re.compile(r"[\w.:%][\w.:%-]*", re.ASCII)
_USER = re.compile(r"[\w.@%+\\][\w.@%+\\-]*")

_SERVER_KEY = re.compile(r"^debug1: Server host key: (\S+) (\S+)", re.MULTILINE)
_SERVER = re.compile(r"^debug1: Authenticating to (\S+):(\d+) as ", re.MULTILINE)
_HOST_KEY_REJECTED = re.compile(r"^Host key verification failed", re.MULTILINE)
# Messages of ssh until the login, the error that they mean, and a remedy.
_BY_MESSAGE: Sequence[tuple[re.Pattern[str], type[TransferError], str]] = (
    (
        re.compile("Too many authentication failures"),
        AuthenticationFailed,
        "; the SSH agent may offer too many keys: set ssh_key_filename",
    ),
    (
        re.compile(r"Permission denied \(|no mutual signature"),
        AuthenticationFailed,
        "; check the key, and authorized_keys of the user there",
    ),
    (
        re.compile("Unable to negotiate|no matching .* found"),
        PermanentTransferError,
        "; the server may support only weak ones, see ssh_weak_algorithms",
    ),
    (
        re.compile(r"[Bb]ad configuration option|Bad owner or permissions|line \d+: |terminating, \d+ bad"),
        PermanentTransferError,
        "; correct the configuration of ssh",
    ),
    (re.compile("timed out|[Tt]imeout"), TransferStalled, ""),
)


@dataclass(frozen=True)
class Login:
    """Where and how ``ssh`` logs in; without a port, user or key those of its configuration apply."""

    host: str
    port: int | None
    user: str | None
    key_file: str | None
    pins: str | None
    known_hosts: str | None
    weak_algorithms: str
    connect_timeout: float
    stall_timeout: float

    def __post_init__(self) -> None:
        if not _HOST.fullmatch(self.host) or (self.user is not None and not _USER.fullmatch(self.user)):
            raise BadDestination("ssh_transport = openssh supports no special characters in host and user")

    def policy(self, host: str, port: int) -> host_keys.HostKeyPolicy:
        """Return which keys of a host are accepted."""
        return host_keys.host_key_policy(host, port, self.pins, self.known_hosts)

    def arguments(self) -> list[str]:
        """Return the arguments of ``ssh`` before the host.

        Raises:
            AuthenticationFailed: the key file cannot be read.
        """
        options = {**_FIXED, **self._algorithms(), **self._known_hosts()}
        options["ConnectTimeout"] = str(math.ceil(self.connect_timeout))
        options["ServerAliveInterval"] = str(math.ceil(self.stall_timeout / 2))
        arguments = ["-T", "-v", "-o", "IgnoreUnknown=KnownHostsCommand,PubkeyAcceptedAlgorithms"]
        for name, value in options.items():
            arguments += ["-o", f"{name}={value}"]
        if self.key_file is not None:
            path = os.path.expanduser(self.key_file)
            if not os.access(path, os.R_OK):
                raise AuthenticationFailed(f"the key file {path} cannot be read")
            arguments += ["-o", "IdentitiesOnly=yes", "-i", path]
        if self.port is not None:
            arguments += ["-p", str(self.port)]
        if self.user is not None:
            arguments += ["-l", self.user]
        return arguments

    def _algorithms(self) -> dict[str, str]:
        found = {}
        for kind, disabled in ssh_options.disabled_algorithms(self.weak_algorithms).items():
            allowed = [name for name in ssh_options.WEAK_ALGORITHMS[kind] if name not in disabled]
            found[_ALGORITHMS[kind]] = f"+{','.join(allowed)}" if allowed else f"-{','.join(disabled)}"
        if not found["HostKeyAlgorithms"].startswith("+"):
            found["HostKeyAlgorithms"] += ",*-cert-*"  # certificates of hosts are not supported
        if not found["Ciphers"].startswith("+"):
            found["Ciphers"] = f"^{_FAST_CIPHER}"  # the others are those of OpenSSH, without weak ones
        return found

    def _known_hosts(self) -> Mapping[str, str]:
        if self.pins is None:
            files = [path for path in (host_keys.USER_KNOWN_HOSTS, self.known_hosts) if path]
            return {"UserKnownHostsFile": " ".join(map(_quoted, files)), "KnownHostsCommand": "none"}
        accepted = "|".join(self.policy(self.host, self.port or host_keys.DEFAULT_PORT).accepted) or "none"
        return {
            "UserKnownHostsFile": "none",
            "GlobalKnownHostsFile": "none",
            # It prints a line of known_hosts for a key with one of the fingerprints.
            "KnownHostsCommand": f"/bin/sh -c \"case %f in {accepted}) echo '* %t %K';; esac\"",
        }


class OpenSshChannel(Channel):
    """The standard input and output of one ``ssh`` process, which ends with the channel."""

    def __init__(self, login: Login, command: Sequence[str]) -> None:
        """Start ``ssh`` with ``command``: ``("-s", "sftp")``, or a program.

        Raises:
            ConfigError: this host has no ``ssh``.
            AuthenticationFailed: the key file cannot be read.
        """
        self._login = login
        self._logged_in = False
        arguments = login.arguments()
        subsystem, words = (["-s"], command[1:]) if command[0] == "-s" else ([], command)
        ours, theirs = socket.socketpair()
        self._socket = BufferedSocket(ours)
        self._log, log_end = os.pipe()
        try:
            os.set_blocking(self._log, False)
            os.set_blocking(log_end, False)  # a full pipe must not stop ssh
            self._process = subprocess.Popen(  # noqa: S603  (without a shell; host and user are checked)
                [PROGRAM, *arguments, *subsystem, "--", login.host, *words],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=log_end,
                start_new_session=True,  # without a terminal, from which it could ask
                env={**os.environ, "SSH_ASKPASS_REQUIRE": "never"},
            )
        except OSError as error:
            self._socket.close()
            os.close(self._log)
            raise ConfigError(
                f"openssh needs the program {PROGRAM} (Debian: openssh-client): {error.strerror}",
                option="connection_parameters ssh_transport",
            ) from error
        finally:
            theirs.close()
            os.close(log_end)
        self.timeout = login.connect_timeout

    @property
    def timeout(self) -> float:
        """Seconds without progress."""
        return self._timeout

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self._timeout = seconds
        self._socket.settimeout(seconds)

    def send(self, data: bytes) -> None:
        """Send all of ``data``; raises ``TransferError`` if the process has ended."""
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._socket.send(rest) :]
        except ConnectionError:
            raise self._reason() from None

    def receive(self, count: int) -> bytes:
        """Return one or more bytes, up to ``count``; raises ``TransferError`` with the reason at the end."""
        try:
            data = self._socket.recv(count)
        except ConnectionError:
            data = b""
        if not data:
            raise self._reason()
        self._logged_in = True
        return data

    def alive(self) -> bool:
        """Return True if the process runs."""
        poll = select.poll()
        poll.register(self._socket, 0)  # reports POLLHUP
        return not poll.poll(0)

    def close(self) -> None:
        """End the process."""
        if self._process.returncode is None:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(EXIT_TIMEOUT)
        self._socket.close()
        if self._log >= 0:
            os.close(self._log)
            self._log = -1

    def _reason(self) -> TransferError:
        """Return the error for a process that has closed its output."""
        code: int | None = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(self._timeout)
        log = b""
        with contextlib.suppress(BlockingIOError):
            log = os.read(self._log, MAX_LOG)
        text = log.decode("utf-8", "replace")
        if code not in (None, FAILED):
            return ConnectionFailed(f"the program on the server ended with {code}")
        if self._logged_in:
            return ConnectionFailed(_described(_messages(text)))
        if _HOST_KEY_REJECTED.search(text):
            return self._host_key_error(text)
        return _login_error(_messages(text))

    def _host_key_error(self, log: str) -> UnknownHostKey:
        """Return the error for a rejected key: of the host, or of a jump host before it."""
        key, server = _SERVER_KEY.findall(log), _SERVER.findall(log)
        if key and server:
            (kind, fingerprint), (host, port) = key[-1], server[-1]
            try:
                self._login.policy(host, int(port)).check(f"[{host}]:{port}", kind, fingerprint)
            except UnknownHostKey as error:
                return error
        return UnknownHostKey(_described(_messages(log)))


def _messages(log: str) -> list[str]:
    """Return the messages in a log of ``ssh``, without those for its debugging."""
    lines = (line.strip() for line in log.splitlines())
    return [line for line in lines if line and not line.startswith(("debug", "OpenSSH_", "Authenticated to"))]


def _described(messages: Sequence[str]) -> str:
    return f"SSH: {messages[-1]}" if messages else "the server closed the channel"


def _login_error(messages: Sequence[str]) -> TransferError:
    for pattern, kind, remedy in _BY_MESSAGE:
        for message in messages:
            if pattern.search(message):
                return kind(f"SSH: {message}{remedy}")
    return ConnectionFailed(_described(messages))


def _quoted(path: str) -> str:
    """Return a path as ``ssh`` parses it in an option: ``%`` begins a token."""
    return '"' + os.path.expanduser(path).replace("%", "%%") + '"'
