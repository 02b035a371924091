"""pyftpdlib's FTP server, plain or under TLS; run as a module it is the server."""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from trollmoves.tests.servers.process import HOST, PROXY_HOST, ServerProcess, free_port, free_ports

USER = "sat"
PASSWORD = "s3cr3t/pass@word"
PASSIVE_PORTS = 16


def missing(*, tls: bool = False) -> str:
    """Return why the server cannot run, empty when it can."""
    needed = ["pyftpdlib", "OpenSSL"] if tls else ["pyftpdlib"]
    lacking = [name for name in needed if importlib.util.find_spec(name) is None]
    return f"no {', '.join(lacking)} (PyPI: pyftpdlib, pyopenssl)" if lacking else ""


class PyFtpd(ServerProcess):
    """An FTP server for the directory ``root``."""

    def __init__(
        self, folder: Path, root: Path, *, tls: bool = False, options: tuple[str, ...] = (), password: str = PASSWORD
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        port = free_port()
        self.root = root
        self.certificate = folder / "server.pem"
        self.passive_ports = free_ports(PASSIVE_PORTS)
        extra = ["--passive-ports", ",".join(map(str, self.passive_ports)), *options]
        if tls:
            make_certificate(self.certificate)
            extra += ["--certificate", str(self.certificate)]
        command = [sys.executable, "-m", __name__, str(port), str(root), *extra]
        super().__init__(port, command, folder / "ftp.log", {"FTP_TEST_PASSWORD": password})


def make_certificate(path: Path) -> None:
    """Write a key and a certificate for the loopback addresses of tests, which signs itself."""
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), *(x509.IPAddress(ipaddress.ip_address(host)) for host in (HOST, PROXY_HOST))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(secret + certificate.public_bytes(serialization.Encoding.PEM))


def main() -> None:
    """Serve until ended."""
    from pyftpdlib.authorizers import DummyAuthorizer
    from pyftpdlib.handlers import FTPHandler, TLS_FTPHandler
    from pyftpdlib.servers import FTPServer

    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("root")
    parser.add_argument("--certificate")
    parser.add_argument("--passive-ports")
    parser.add_argument("--permissions", default="elradfmwMT")
    parser.add_argument("--user", nargs=2, action="append", default=[], help="another user, and its home directory")
    given = parser.parse_args()
    authorizer = DummyAuthorizer()
    for user, home in ((USER, given.root), *given.user):
        authorizer.add_user(user, os.environ["FTP_TEST_PASSWORD"], home, perm=given.permissions)
    base: Any = TLS_FTPHandler if given.certificate else FTPHandler
    settings: dict[str, Any] = {"authorizer": authorizer, "auth_failed_timeout": 0.1}
    settings["passive_ports"] = [int(port) for port in given.passive_ports.split(",")]
    if given.certificate:
        settings |= {"certfile": given.certificate, "tls_control_required": True, "tls_data_required": True}
    FTPServer((HOST, given.port), type("Handler", (base,), settings)).serve_forever()


if __name__ == "__main__":
    main()
