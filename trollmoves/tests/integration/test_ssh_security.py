"""Host keys, logins and algorithms of SSH deliveries, against real servers."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from trollmoves.errors import (
    AuthenticationFailed,
    BadDestination,
    ConfigError,
    ConnectionFailed,
    PermanentTransferError,
    TransferStalled,
    UnknownHostKey,
)
from trollmoves.movers import close_connections, move_it
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers import asyncsshd, openssh
from trollmoves.tests.servers.asyncsshd import AsyncSshd
from trollmoves.tests.servers.openssh import OpenSsh, fingerprint, make_key
from trollmoves.tests.servers.process import HOST

TRANSPORTS = ("paramiko", "openssh")
WAYS = (("sftp", "paramiko"), ("sftp", "openssh"), ("scp", "paramiko"))
OTHER = "SHA256:" + "A" * 43


class Far:
    """A server, and deliveries to it."""

    def __init__(self, server: OpenSsh | AsyncSshd, folder: Path, transport: str = "paramiko") -> None:
        self.server = server
        self.transport = transport
        self.target = folder / "target"
        self.target.mkdir()
        self.origin = folder / "f"
        self.origin.write_bytes(b"content")
        self.key = {"ssh_key_filename": str(server.user_key)}
        self.known = {"ssh_known_hosts": str(server.known_hosts)}

    def deliver(self, attrs: Mapping[str, Any], scheme: str = "sftp", login: str = "", host: str = HOST) -> None:
        """Deliver a file, and see that it is there."""
        url = f"{scheme}://{login or self.server.user}@{host}:{self.server.port}{self.target}/"
        move_it(self.origin, url, {"ssh_transport": self.transport, **attrs})
        arrived = self.target / self.origin.name
        assert arrived.read_bytes() == b"content"
        arrived.unlink()


@contextmanager
def openssh_with(
    folder: Path, extra: str = "", host_key: str = "ed25519", transport: str = "paramiko"
) -> Iterator[Far]:
    """Return an OpenSSH server; skip the test without one."""
    if why := openssh.missing():
        pytest.skip(why)
    with OpenSsh(folder / "server", extra=extra, host_key=host_key) as server:
        assert isinstance(server, OpenSsh)
        yield Far(server, folder, transport)
        close_connections()


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Far]:
    """Return an OpenSSH server of today, with deliveries by paramiko."""
    with openssh_with(tmp_path) as found:
        yield found


@pytest.fixture
def by_openssh(tmp_path: Path) -> Iterator[Far]:
    """Return an OpenSSH server of today, with deliveries by ``ssh``."""
    with openssh_with(tmp_path, transport="openssh") as found:
        yield found


def test_pinned_host_key(far: Far) -> None:
    """A host with a pinned key fingerprint is trusted without a line in known_hosts."""
    for scheme, far.transport in WAYS:
        far.deliver(far.key | {"ssh_host_key": fingerprint(far.server.host_key)}, scheme)
        far.deliver(far.key | {"ssh_host_key": f"{OTHER}, {fingerprint(far.server.host_key)}"}, scheme)


def test_host_key_differs_from_pin(far: Far) -> None:
    """A host with another key is permanently rejected even if known_hosts has it; the error shows its fingerprint."""
    for scheme, far.transport in WAYS:
        with pytest.raises(UnknownHostKey, match="not in ssh_host_key") as caught:
            far.deliver(far.key | far.known | {"ssh_host_key": OTHER}, scheme)
        assert caught.value.held
        assert fingerprint(far.server.host_key) in str(caught.value)


@pytest.mark.parametrize("pins", ["MD5:00:11", "SHA256:short", "ssh-ed25519 AAAA", " "])
def test_invalid_fingerprint(far: Far, pins: str) -> None:
    """An invalid fingerprint trusts no host, and the option is reported."""
    with pytest.raises(ConfigError, match="ssh_host_key"):
        far.deliver(far.key | far.known | {"ssh_host_key": pins})


@pytest.mark.parametrize(
    "lines",
    [
        "{name} ssh-ed25519 A\n{name} {key}",
        "one word\n\n# comment\n{name} ssh-rsa {blob}\n@unknown * {key}\n\x00\xff\n{name} {key}",
        "other,{name}\t{key} comment",
        "[127.0.0.?]:* {key}",
        "!{name},* {other}\n* {key}",
        "other,127.0.0.1 {key}",
        "{hashed} {key}",
        "@cert-authority * {other}\n{name} {key}",
        "@revoked * {other}\n{name} {key}",
        "{name} {other}\n{name} {key}",
        "{name} {rsa}\n{name} {key}",
    ],
)
def test_known_hosts(far: Far, tmp_path: Path, lines: str) -> None:
    """A host is accepted by the lines by which OpenSSH accepts it; a damaged line does not affect the others."""
    far.server.known_hosts.write_text(known_hosts_text(far, tmp_path, lines), encoding="latin-1")
    for far.transport in TRANSPORTS:
        far.deliver(far.key | far.known)


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        ("{name} ssh-ed25519 A", "not in .*known_hosts"),
        ("!{name},!127.0.0.1,* {key}", "not in .*known_hosts"),
        ("[127.0.0.1]:1 {key}", "not in .*known_hosts"),
        ("@cert-authority * {key}", "certificate authority in .*known_hosts:1 is not supported"),
        ("{name} {key}\n@revoked * {key}", "known_hosts:2 marks as revoked"),
        ("{name} {key}\n@revoked {name} {key}", "known_hosts:2 marks as revoked"),
        ("\n{name} {other}", "another key than .*known_hosts:2; .*remove the old line"),
        ("{name} {other}\n127.0.0.1 {key}", "another key than .*known_hosts:1"),
        ("{name} {rsa}", "another key than .*known_hosts:1"),
    ],
)
def test_rejected_by_known_hosts(far: Far, tmp_path: Path, lines: str, text: str) -> None:
    """Other hosts are rejected; the error names the place, the fingerprint and the command that adds the key."""
    known = far.server.known_hosts
    known.write_text(known_hosts_text(far, tmp_path, lines))
    for far.transport in TRANSPORTS:
        with pytest.raises(UnknownHostKey, match=text) as caught:
            far.deliver(far.key | far.known)
        assert fingerprint(far.server.host_key) in str(caught.value)
        assert "revoked" in text or f"run: ssh-keyscan -p {far.server.port} {HOST} >> {known}" in str(caught.value)


def test_upper_case_host_name(far: Far) -> None:
    """Names of hosts are compared without case."""
    kind, key = far.server.host_key.with_suffix(".pub").read_text().split()[:2]
    far.server.known_hosts.write_text(f"[LocalHost]:{far.server.port} {kind} {key}\n")
    for far.transport in TRANSPORTS:
        with contextlib.suppress(ConnectionFailed):  # a host without an entry for localhost
            far.deliver(far.key | far.known, host="LOCALHOST")


def test_revoked_key_with_pin(far: Far) -> None:
    """A revoked key is rejected even if its fingerprint is pinned."""
    kind, key = far.server.host_key.with_suffix(".pub").read_text().split()[:2]
    far.server.known_hosts.write_text(f"@revoked * {kind} {key}\n")
    for far.transport in TRANSPORTS:
        with pytest.raises(UnknownHostKey, match="revoked"):
            far.deliver(far.key | far.known | {"ssh_host_key": fingerprint(far.server.host_key)})


def known_hosts_text(far: Far, folder: Path, lines: str) -> str:
    """Return ``lines`` with the name and key of the server, and keys of others."""

    def public(path: Path) -> str:
        return " ".join(path.with_suffix(".pub").read_text().split()[:2])

    name = f"[{HOST}]:{far.server.port}"
    hashed = folder / "hashed"
    hashed.write_text(f"{name} {public(far.server.host_key)}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(hashed)], check=True, capture_output=True)
    return lines.format(
        name=name,
        key=public(far.server.host_key),
        blob=public(far.server.host_key).split()[1],
        hashed=hashed.read_text().split()[0],
        other=public(make_key(folder / "other")),
        rsa=public(make_key(folder / "rsa", "rsa")) if "{rsa}" in lines else "",
    )


def test_endless_greeting(tmp_path: Path) -> None:
    """A server that sends data without end in place of the SSH greeting is rejected after 1 MB."""
    origin = tmp_path / "f"
    origin.write_bytes(b"content")

    def send_until_closed() -> None:
        connection, _ = listening.accept()
        with connection, contextlib.suppress(OSError):
            while True:
                connection.sendall(bytes(65536))

    with socket.create_server((HOST, 0)) as listening:
        thread = threading.Thread(target=send_until_closed)
        thread.start()
        attrs = {"password": "p", "num_ssh_retries": 1, "connection_timeout": 60}
        with pytest.raises(ConnectionFailed, match="too much data before the login"):
            move_it(origin, f"sftp://sat@{HOST}:{listening.getsockname()[1]}/", attrs)
        thread.join(10)
        assert not thread.is_alive()


def test_agent_that_hangs(far: Far, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that does not reply costs ``connection_timeout``; the error names it. A key file needs no agent."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as agent:
        agent.bind(f"{folder}/agent")
        agent.listen()
        monkeypatch.setenv("SSH_AUTH_SOCK", f"{folder}/agent")
        monkeypatch.setenv("HOME", str(tmp_path))
        with pytest.raises(TransferStalled, match=f"SSH agent {folder}/agent did not reply within 1 s"):
            far.deliver(far.known | {"connection_timeout": 1})
        far.deliver(far.key | far.known)


def test_agent_with_many_keys(far: Far, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the server ends a login because an agent offers too many keys, the error names the remedy."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["ssh-agent", "-D", "-a", f"{folder}/agent"]
        agent = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            until(lambda: os.path.exists(f"{folder}/agent"), 5, "the agent listens")
            monkeypatch.setenv("SSH_AUTH_SOCK", f"{folder}/agent")
            monkeypatch.setenv("HOME", str(tmp_path))
            keys = [str(make_key(tmp_path / f"key{number}")) for number in range(10)]
            subprocess.run(["ssh-add", "-q", *keys, str(far.server.user_key)], check=True)
            for far.transport in TRANSPORTS:
                with pytest.raises(AuthenticationFailed, match=r"agent .*offer.* keys.*ssh_key_filename"):
                    far.deliver(far.known)
        finally:
            agent.terminate()
            agent.wait(5)


@pytest.mark.parametrize("kind", ["ed25519", "rsa", "ecdsa"])
def test_key_with_passphrase(far: Far, tmp_path: Path, kind: str) -> None:
    """A key with a passphrase is accepted; a wrong or missing passphrase is permanently rejected, and not logged."""
    key = make_key(tmp_path / "locked", kind, "p4ss phrase/@")
    (far.server.user_key.parent / "authorized_keys").write_text(key.with_suffix(".pub").read_text())
    attrs = far.known | {"ssh_key_filename": str(key)}
    far.deliver(attrs | {"ssh_key_passphrase": "p4ss phrase/@"})
    for wrong in ({"ssh_key_passphrase": "wr0ng phrase"}, {}):
        with pytest.raises(AuthenticationFailed) as caught:
            far.deliver(attrs | wrong)
        assert caught.value.held
        assert "phrase/" not in str(caught.value)
        assert "wr0ng" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["sftp", "scp"])
def test_password_parameter(tmp_path: Path, scheme: str) -> None:
    """A password parameter is accepted; one in the URL overrides it; a wrong one is not logged."""
    if why := asyncsshd.missing() or openssh.missing():
        pytest.skip(why)
    with AsyncSshd(tmp_path / "server") as server:
        assert isinstance(server, AsyncSshd)
        far = Far(server, tmp_path)
        far.deliver(far.known | {"password": asyncsshd.PASSWORD}, scheme)
        login = f"{server.user}:{quote(asyncsshd.PASSWORD, safe='')}"
        far.deliver(far.known | {"password": "wr0ng"}, scheme, login)
        with pytest.raises(AuthenticationFailed) as caught:
            far.deliver(far.known | {"password": "wr0ng"}, scheme)
        assert "wr0ng" not in f"{caught.value!r}"
        close_connections()


WEAK = {
    "kex": "KexAlgorithms diffie-hellman-group14-sha1,diffie-hellman-group1-sha1",
    "host key": "HostKeyAlgorithms ssh-rsa",
    "ciphers": "Ciphers aes128-cbc,aes256-cbc,3des-cbc",
    "macs": "Ciphers aes128-ctr\nMACs hmac-sha1,hmac-md5",
}


NO_MATCH = {"kex": "key exchange method", "host key": "host key type", "ciphers": "cipher", "macs": "MAC"}


@pytest.mark.parametrize("what", WEAK)
def test_weak_algorithms(tmp_path: Path, what: str) -> None:
    """A server with weak algorithms only is permanently rejected before the login, with a hint."""
    kind = "rsa" if what == "host key" else "ed25519"
    missing = f"(no acceptable {what}|no matching {NO_MATCH[what]}).*ssh_weak_algorithms"
    with openssh_with(tmp_path, WEAK[what], kind) as far:
        for scheme, far.transport in WAYS:
            with pytest.raises(PermanentTransferError, match=missing) as caught:
                far.deliver(far.key | far.known, scheme)
            assert caught.value.held


@pytest.mark.parametrize(("what", "allowed"), [("ciphers", "aes128-cbc"), ("macs", "hmac-sha1, hmac-md5")])
def test_allowed_weak_algorithms(tmp_path: Path, what: str, allowed: str) -> None:
    """A weak algorithm named in ``ssh_weak_algorithms`` is used; an unknown name there is reported."""
    with openssh_with(tmp_path, WEAK[what]) as far:
        for far.transport in TRANSPORTS:
            far.deliver(far.key | far.known | {"ssh_weak_algorithms": allowed})
            with pytest.raises(ConfigError, match=r"ssh_weak_algorithms.* rot13"):
                far.deliver(far.key | far.known | {"ssh_weak_algorithms": f"{allowed} rot13"})


def test_rsa_keys_are_used_with_sha_2(tmp_path: Path) -> None:
    """An RSA key signs with SHA-2: a server that takes no other algorithm lets one in."""
    extra = "PubkeyAcceptedAlgorithms rsa-sha2-512\nHostKeyAlgorithms rsa-sha2-512"
    with openssh_with(tmp_path, extra, "rsa") as far:
        key = make_key(tmp_path / "rsa", "rsa")
        (far.server.user_key.parent / "authorized_keys").write_text(key.with_suffix(".pub").read_text())
        for far.transport in TRANSPORTS:
            far.deliver(far.known | {"ssh_key_filename": str(key)})


def test_openssh_agent_that_hangs(by_openssh: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that does not reply to ``ssh`` costs ``connection_timeout``, and its process ends."""
    far = by_openssh
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as agent:
        agent.bind(f"{folder}/agent")
        agent.listen()
        monkeypatch.setenv("SSH_AUTH_SOCK", f"{folder}/agent")
        with pytest.raises(TransferStalled):
            far.deliver(far.known | {"connection_timeout": 1})
    assert not openssh.ssh_children(os.getpid())


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"password": "s3cret word"}, "openssh logs in by keys"),
        ({"ssh_key_passphrase": "s3cret word"}, "openssh logs in by keys"),
        ({"ssh_transport": "rsh"}, "must be paramiko or openssh"),
    ],
)
def test_openssh_needs_no_secret(by_openssh: Far, more: dict[str, str], text: str) -> None:
    """A password, a passphrase or an unknown transport is a configuration error, which does not show the secret."""
    with pytest.raises(ConfigError, match=f"ssh_transport.*{text}") as caught:
        by_openssh.deliver(by_openssh.key | by_openssh.known | more)
    assert caught.value.held
    assert "s3cret" not in str(caught.value)


def test_openssh_asks_for_no_passphrase(by_openssh: Far, tmp_path: Path) -> None:
    """A key with a passphrase is permanently rejected without a prompt."""
    key = make_key(tmp_path / "locked", passphrase="p4ss phrase")
    (by_openssh.server.user_key.parent / "authorized_keys").write_text(key.with_suffix(".pub").read_text())
    with pytest.raises(AuthenticationFailed, match="Permission denied") as caught:
        by_openssh.deliver(by_openssh.known | {"ssh_key_filename": str(key)})
    assert caught.value.held


def test_openssh_is_missing(by_openssh: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host without the program ``ssh`` holds the deliveries, and the error names the package."""
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ConfigError, match="openssh-client"):
        by_openssh.deliver(by_openssh.key | by_openssh.known)


@pytest.mark.parametrize("place", ["-oProxyCommand=x@host", "a;b@host", "sat@a;b", "sat@$(id)"])
def test_openssh_gets_no_shell_characters(place: str, tmp_path: Path) -> None:
    """A user or host that a ProxyCommand or the options of ``ssh`` could misread is rejected."""
    (tmp_path / "f").write_bytes(b"content")
    with pytest.raises(BadDestination, match=r"special characters|no usable host"):
        move_it(tmp_path / "f", f"sftp://{place}/in/", {"ssh_transport": "openssh"})


def test_openssh_reads_its_configuration(by_openssh: Far, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Aliases, ports, keys and jump hosts of ``~/.ssh/config`` are used; it cannot weaken the check of host keys."""
    far = by_openssh
    config = tmp_path / "config"
    config.write_text(
        f"Host *\n Port {far.server.port}\n HostName {HOST}\n User {far.server.user}\n RemoteCommand false\n"
        f" IdentityFile {far.server.user_key}\n StrictHostKeyChecking no\n LogLevel QUIET\n"
        f" UserKnownHostsFile {tmp_path}/other\n"
        "Match originalhost archive\n ProxyJump gate\n"
    )
    program = tmp_path / "bin" / "ssh"  # with the configuration of another home directory
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {config} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    attrs = far.known | {"ssh_transport": "openssh"}
    for alias in ("gate", "archive"):
        move_it(far.origin, f"sftp://{alias}{far.target}/{alias}", attrs)
        assert (far.target / alias).read_bytes() == b"content"
    close_connections()
    far.server.known_hosts.write_text("")
    for alias in ("gate", "archive"):
        with pytest.raises(UnknownHostKey, match=f"ssh-keyscan -p {far.server.port} {HOST}") as caught:
            move_it(far.origin, f"sftp://{alias}{far.target}/", attrs)
        assert fingerprint(far.server.host_key) in str(caught.value)
    config.write_text("Host *\n NoSuchOption yes\n")
    with pytest.raises(PermanentTransferError, match="correct the configuration of ssh"):
        move_it(far.origin, f"sftp://gate{far.target}/", attrs)


def test_openssh_ends_with_a_killed_process(by_openssh: Far) -> None:
    """The process ``ssh`` ends if the process that started it is killed."""
    far = by_openssh
    url = f"sftp://{far.server.user}@{HOST}:{far.server.port}{far.target}/"
    attrs = far.key | far.known | {"ssh_transport": "openssh"}
    program = f"from trollmoves.movers import move_it; move_it({str(far.origin)!r}, {url!r}, {attrs!r}); input()"
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)
    try:
        until(lambda: openssh.ssh_children(process.pid) and (far.target / "f").exists(), 60, "the file is delivered")
        (number,) = openssh.ssh_children(process.pid)
    finally:
        process.kill()
        process.wait()
    until(lambda: not Path(f"/proc/{number}").exists(), 60, "ssh has ended")
