"""FTP hosts that allow or reply less than a complete FTP server: each file arrives, and nothing else is left there."""

from __future__ import annotations

import ftplib
import os
import shutil
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from trollmoves.errors import (
    AuthenticationFailed,
    ConnectionFailed,
    OriginChanged,
    OriginUnreadable,
    TooManyConnections,
    TransferError,
)
from trollmoves.movers import FtpMover, close_connections, is_partial, move_it
from trollmoves.movers.host_capabilities import Limitation
from trollmoves.movers.pool import shared_pool
from trollmoves.tests.servers import pyftpd, vsftpd
from trollmoves.tests.servers.contract import unreadable_file
from trollmoves.tests.servers.pyftpd import PASSWORD, USER, PyFtpd
from trollmoves.tests.servers.vsftpd import Vsftpd

Start = Callable[..., str]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return the directory of the server."""
    path = tmp_path / "root"
    path.mkdir()
    return path


@pytest.fixture
def start(tmp_path: Path, root: Path) -> Iterator[Start]:
    """Return a function that starts a server with permissions and quirks and returns the URL of its directory."""
    if why := pyftpd.missing():
        pytest.skip(why)
    with ExitStack() as stack:

        def start(*quirks: str, permissions: str = "elradfmwMT") -> str:
            options = [f"--permissions={permissions}", *(f"--quirk={quirk}" for quirk in quirks)]
            server = stack.enter_context(PyFtpd(tmp_path / "server", root, options=tuple(options)))
            return f"ftp://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:{server.port}/"

        yield start
        close_connections()


def write(tmp_path: Path, name: str, content: bytes | None = None) -> Path:
    """Return a new file to send."""
    path = tmp_path / name
    path.write_bytes(os.urandom(30_000) if content is None else content)
    return path


def tree(root: Path) -> dict[str, bytes]:
    """Return the files of the server."""
    return {path.name: path.read_bytes() for path in root.iterdir()}


def check_deliveries(tmp_path: Path, root: Path, url: str, attrs: dict[str, Any] | None = None) -> None:
    """Deliver two files, one of them twice; check that nothing else is on the server."""
    sent = {}
    for name in ("a" * 40 + ".dat", "b.dat", "a" * 40 + ".dat"):
        path = write(tmp_path, name)
        move_it(path, url, attrs)
        sent[name] = path.read_bytes()
        assert tree(root) == sent


HOSTS: dict[str, Any] = {
    "no rename, no delete": ((), "elmw", Limitation.NO_RENAME),
    "nothing but store": ((), "ew", Limitation.NO_SIZE, Limitation.NO_RENAME),
    "no rename at the second step": (("no-rename",), "elradfmw", Limitation.NO_RENAME),
    "no hidden names": (("no-hidden-names",), "elradfmw", Limitation.NO_HIDDEN_NAMES),
    "listed suffixes": (("listed-suffixes",), "elradfmw", Limitation.NO_HIDDEN_NAMES),
    "listed suffixes, no rename": (("listed-suffixes", "no-rename"), "elradfmw", Limitation.NO_RENAME),
    "short names": (("short-names",), "elradfmw", Limitation.NO_HIDDEN_NAMES),
    "no size": (("no-size",), "elradfmw", Limitation.NO_SIZE),
}


@pytest.mark.parametrize("host", HOSTS)
def test_limited_host(host: str, start: Start, tmp_path: Path, root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Files arrive by the operations that the host allows; its limitation is logged once, without the password."""
    quirks, permissions, *limitations = HOSTS[host]
    caplog.set_level("INFO")
    check_deliveries(tmp_path, root, start(*quirks, permissions=permissions))
    lines = [record.getMessage() for record in caplog.records if record.name.endswith("host_capabilities")]
    assert [line.partition(": ")[2] for line in lines] == [limitation.value for limitation in limitations]
    assert USER in lines[0]
    assert PASSWORD not in lines[0]


def test_upload_only_vsftpd(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A vsftpd that lets anonymous users only store receives files under their final names, and nothing else."""
    if why := vsftpd.missing():
        pytest.skip(why)
    caplog.set_level("INFO")
    for above in (tmp_path, *tmp_path.parents[:2]):
        os.chmod(above, 0o755)
    root = tmp_path / "root" / "up"
    root.mkdir(parents=True)
    shutil.chown(root, vsftpd.USER)
    with Vsftpd(tmp_path / "server", root, upload_only=True) as server:
        sent = {}
        for name in ("a", "b"):
            sent[name] = write(tmp_path, name).read_bytes()
            move_it(tmp_path / name, f"ftp://127.0.0.1:{server.port}/up/")
            assert tree(root) == sent
        close_connections()
    assert caplog.text.count(Limitation.NO_RENAME.value) == 1


def test_partial_that_cannot_be_removed(
    start: Start, tmp_path: Path, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A host that rejects a rename at its last step, and removals, keeps one partial, which a warning names."""
    url = start("no-rename", permissions="elmfw")
    sent = {}
    for name in ("a.dat", "b.dat", "c.dat"):
        sent[name] = write(tmp_path, name).read_bytes()
        move_it(tmp_path / name, url)
    left = [name for name in tree(root) if is_partial(name)]
    assert {name: content for name, content in tree(root).items() if name not in left} == sent
    assert len(left) == 1
    assert [left[0] in record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [True]


def test_no_reply_to_an_abort(start: Start, tmp_path: Path, root: Path) -> None:
    """A host that does not reply to the abort of a transfer costs seconds, not ``stall_timeout``, and no partial."""
    url, attrs = start("silent-abort"), {"stall_timeout": 200}
    began = time.monotonic()
    with pytest.raises(OriginUnreadable):
        move_it(unreadable_file(), url, attrs)
    assert time.monotonic() - began < 100
    move_it(write(tmp_path, "a.dat"), url, attrs)
    assert set(tree(root)) == {"a.dat"}


def test_late_size(start: Start, tmp_path: Path, root: Path) -> None:
    """A host that reports the size of a file late receives each file with one attempt."""
    check_deliveries(tmp_path, root, start("late-size"))


@pytest.mark.parametrize("attrs", [{"use_tmp_on_transfer": "False"}, {"tmp_prefix": "tmp_"}])
def test_options(attrs: dict[str, Any], start: Start, tmp_path: Path, root: Path) -> None:
    """The options select the name during the transfer; a host that rejects hidden names needs no second attempt."""
    url = start("no-hidden-names", *(["no-rename"] if "use_tmp_on_transfer" in attrs else []))
    check_deliveries(tmp_path, root, url, attrs)
    assert not any(host_lacks(url, limitation) for limitation in Limitation)


def host_lacks(url: str, limitation: Limitation) -> bool:
    """Return True if the limitation was recorded for the host of ``url``."""
    return shared_pool().capabilities.get(FtpMover("none", url).endpoint()[:4], "").lacks(limitation)


@pytest.mark.parametrize("size", [0, 30_000])
def test_direct_transfer_that_fails(size: int, start: Start, tmp_path: Path, root: Path) -> None:
    """A file that changes while it is sent under its final name is removed there."""
    path = write(tmp_path, "a.dat", os.urandom(size))

    def change(_: int) -> None:
        with path.open("ab") as file:
            file.write(b"more")

    with pytest.raises(OriginChanged):
        move_it(path, start(), {"use_tmp_on_transfer": False}, on_opened=change)
    assert tree(root) == {}


def test_rejected_direct_transfer(start: Start, tmp_path: Path, root: Path) -> None:
    """A host that accepts a name once keeps the first file when it rejects the second."""
    url = start("no-overwriting", permissions="elmw")
    first = write(tmp_path, "a.dat").read_bytes()
    move_it(tmp_path / "a.dat", url)
    write(tmp_path, "a.dat")
    with pytest.raises(TransferError):
        move_it(tmp_path / "a.dat", url)
    assert tree(root) == {"a.dat": first}


def test_replies_in_another_encoding(start: Start, tmp_path: Path, root: Path) -> None:
    """Replies that are not UTF-8 do not prevent a delivery."""
    check_deliveries(tmp_path, root, start("latin-1"))


def test_foreign_address(start: Start, tmp_path: Path, root: Path) -> None:
    """The data go to the host of the URL, not to another one that the reply to PASV names."""
    check_deliveries(tmp_path, root, start("foreign-address"))


def test_epsv(start: Start, tmp_path: Path, root: Path) -> None:
    """A host that disables PASV is sent EPSV."""
    check_deliveries(tmp_path, root, start("no-pasv"))


def test_ipv6(tmp_path: Path, root: Path) -> None:
    """Files reach a server under its IPv6 address."""
    if why := pyftpd.missing():
        pytest.skip(why)
    if not Path("/proc/net/if_inet6").exists():
        pytest.skip("this host has no IPv6")
    with PyFtpd(tmp_path / "server", root, options=("--host=::",)) as server:
        check_deliveries(tmp_path, root, f"ftp://{USER}:{quote(PASSWORD, safe='')}@[::1]:{server.port}/")
        close_connections()


def test_certificate_for_another_host(tmp_path: Path, root: Path) -> None:
    """A trusted certificate is rejected if it is for another host; no password is sent."""
    if why := pyftpd.missing(tls=True):
        pytest.skip(why)
    with PyFtpd(tmp_path / "server", root, tls=True, names=["ftp.example.org"]) as server:
        assert isinstance(server, PyFtpd)
        url = f"ftps://{USER}:wrong@127.0.0.1:{server.port}/"  # a login would be rejected with another text
        with pytest.raises(AuthenticationFailed, match="certificate is rejected: IP address mismatch"):
            move_it(write(tmp_path, "a"), url, {"ftp_tls_ca_file": str(server.certificate)})
    assert tree(root) == {}


class OldTls(socketserver.StreamRequestHandler):
    """An FTP server that offers TLS 1.1; it keeps the commands it receives before."""

    context: ssl.SSLContext
    commands: list[bytes]

    def handle(self) -> None:
        """Serve one connection until TLS has started."""
        self.wfile.write(b"220 Ready\r\n")
        self.commands.append(self.rfile.readline())
        self.wfile.write(b"234 Go on\r\n")
        with suppress(OSError), self.context.wrap_socket(self.request, server_side=True) as tls:
            tls.recv(1)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_old_tls(tmp_path: Path) -> None:
    """A server that offers no newer TLS than 1.1 is rejected, before a login."""
    if why := pyftpd.missing(tls=True):
        pytest.skip(why)
    certificate = tmp_path / "server.pem"
    pyftpd.make_certificate(certificate)
    contexts = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context(cafile=certificate)
    for context in contexts:
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    contexts[0].load_cert_chain(certificate)
    commands: list[bytes] = []
    with serve(type("Handler", (OldTls,), {"context": contexts[0], "commands": commands})) as port:
        with ftplib.FTP_TLS(context=contexts[1]) as client:
            client.connect("127.0.0.1", port)
            client.auth()  # the server works for a client that allows TLS 1.1
            assert isinstance(client.sock, ssl.SSLSocket)
            assert client.sock.version() == "TLSv1.1"
            client.close()
        with pytest.raises(ConnectionFailed, match=r"(?i)version|protocol"):
            move_it(write(tmp_path, "a"), f"ftps://sat:pw@127.0.0.1:{port}/", {"ftp_tls_ca_file": str(certificate)})
    assert commands == [b"AUTH TLS\r\n"] * 2


@contextmanager
def serve(handler: type[socketserver.BaseRequestHandler]) -> Iterator[int]:
    """Serve connections in a thread during the block; yield the port."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def test_one_login(start: Start, tmp_path: Path, root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A host that accepts one login of a user receives concurrent deliveries one after the other."""
    caplog.set_level("INFO")
    url = start("one-login")
    paths = [write(tmp_path, f"{number}.dat") for number in range(8)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda path: move_it(path, url), paths))
    move_it(write(tmp_path, "other.dat"), url, {"stall_timeout": 50})  # not over the kept connection
    assert tree(root) == {path.name: path.read_bytes() for path in [*paths, tmp_path / "other.dat"]}
    assert caplog.text.count(Limitation.FEW_CONNECTIONS.value) <= 1  # 0 if the first login was faster than the others


class Replies(socketserver.StreamRequestHandler):
    """Sends the greeting, then the same reply to each command that is not USER."""

    greeting, reply = "220 Ready", ""

    def handle(self) -> None:
        """Serve one connection."""
        self.wfile.write(f"{self.greeting}\r\n".encode())
        while not self.greeting.startswith("4") and (line := self.rfile.readline()):
            self.wfile.write(b"331 Password\r\n" if line.startswith(b"USER") else f"{self.reply}\r\n".encode())


@pytest.mark.parametrize(
    ("greeting", "reply", "kind"),
    [
        ("421 There are too many connected users, please try again later.", "", TooManyConnections),
        ("421-Welcome\r\n421 5 users (the maximum) are already logged in, sorry", "", TooManyConnections),
        ("220 Ready", "421 Too many connections from this IP", TooManyConnections),
        ("220 Ready", "530 Sorry, the maximum number of clients (3) for this user are connected.", TooManyConnections),
        ("220 Ready", "530 Not logged in, user limit exceeded.", TooManyConnections),
        ("220 Ready", "530-Sorry.\r\n530 There are too many users in your class.", TooManyConnections),
        ("220 Ready", "530 Login incorrect.", AuthenticationFailed),
        ("220 Ready", "530 Too many failed login attempts.", AuthenticationFailed),
    ],
)
def test_rejected_login(greeting: str, reply: str, kind: type[TransferError], tmp_path: Path) -> None:
    """Rejections of one more connection are temporary; rejections of the credentials are not taken for them."""
    handler = type("Handler", (Replies,), {"greeting": greeting, "reply": reply})
    with serve(handler) as port, pytest.raises(TransferError) as caught:
        move_it(write(tmp_path, "a"), f"ftp://sat:pw@127.0.0.1:{port}/")
    assert type(caught.value) is kind
