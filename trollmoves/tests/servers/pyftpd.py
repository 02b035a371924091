"""pyftpdlib's FTP server, plain or under TLS; run as a module it is the server."""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trollmoves.tests.servers.process import HOST, PROXY_HOST, ServerProcess, free_port, free_ports

USER = "sat"
PASSWORD = "s3cr3t/pass@word"
PASSIVE_PORTS = 16
SUFFIX = ".dat"  # the only one that the quirk "listed-suffixes" accepts
SHORT = 56  # bytes of a name that the quirk "short-names" accepts
QUIRKS = (
    "no-hidden-names",
    "listed-suffixes",
    "no-overwriting",
    "short-names",
    "no-rename",
    "no-pasv",
    "no-size",
    "late-size",
    "one-login",
    "latin-1",
    "foreign-address",
    "silent-abort",
)


def missing(*, tls: bool = False) -> str:
    """Return why the server cannot run, empty when it can."""
    needed = ["pyftpdlib", "OpenSSL"] if tls else ["pyftpdlib"]
    lacking = [name for name in needed if importlib.util.find_spec(name) is None]
    return f"no {', '.join(lacking)} (PyPI: pyftpdlib, pyopenssl)" if lacking else ""


REJECTED = (
    ("no-rename", "RNTO", "553 Cannot rename."),
    ("no-pasv", "PASV", "502 PASV is disabled."),
    ("no-size", "SIZE", "502 SIZE is not implemented."),
)


class PyFtpd(ServerProcess):
    """An FTP server for the directory ``root``."""

    def __init__(
        self,
        folder: Path,
        root: Path,
        *,
        tls: bool = False,
        options: tuple[str, ...] = (),
        password: str = PASSWORD,
        names: Sequence[str] = ("localhost", HOST, PROXY_HOST),
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        port = free_port()
        self.root = root
        self.certificate = folder / "server.pem"
        self.passive_ports = free_ports(PASSIVE_PORTS)
        extra = ["--passive-ports", ",".join(map(str, self.passive_ports)), *options]
        if tls:
            make_certificate(self.certificate, names)
            extra += ["--certificate", str(self.certificate)]
        command = [sys.executable, "-m", __name__, str(port), str(root), *extra]
        super().__init__(port, command, folder / "ftp.log", {"FTP_TEST_PASSWORD": password})


def make_certificate(path: Path, names: Sequence[str] = ("localhost", HOST, PROXY_HOST)) -> None:
    """Write a key and a self-signed certificate for names and addresses, by default the loopback ones of tests."""
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    alternatives: list[x509.GeneralName] = []
    for text in names:
        try:
            alternatives.append(x509.IPAddress(ipaddress.ip_address(text)))
        except ValueError:
            alternatives.append(x509.DNSName(text))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
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
    parser.add_argument("--host", default=HOST)
    parser.add_argument("--permissions", default="elradfmwMT")
    parser.add_argument("--quirk", action="append", default=[], choices=QUIRKS)
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
    FTPServer((given.host, given.port), _with_quirks(type("Handler", (base,), settings), given.quirk)).serve_forever()


def _with_quirks(base: Any, quirks: Sequence[str]) -> Any:
    """Return a handler that behaves as the quirks require."""
    size_queries: Counter[str] = Counter()

    class Handler(base):  # type: ignore[misc]
        def ftp_STOR(self, file: str, mode: str = "w") -> Any:  # noqa: N802
            rejection = _name_rejection(quirks, file)
            return self.respond(rejection) if rejection else super().ftp_STOR(file, mode)

        def pre_process_command(self, line: str, command: str, argument: str) -> None:
            rejections = [reply for quirk, rejected, reply in REJECTED if quirk in quirks and rejected == command]
            if rejections:
                self.respond(rejections[0])
            else:
                super().pre_process_command(line, command, argument)

        def ftp_SIZE(self, path: str) -> None:  # noqa: N802
            size_queries[path] += 1
            if "late-size" in quirks and size_queries[path] <= 2:
                self.respond("213 17")
            else:
                super().ftp_SIZE(path)

        def ftp_PASS(self, line: str) -> Any:  # noqa: N802
            if "one-login" in quirks and _count_logins(self):
                self.respond("530 Sorry, the maximum number of clients (1) for this user are already connected.")
                self.close_when_done()
                return None
            return super().ftp_PASS(line)

    return type("QuirkyHandler", (Handler,), _quirky_settings(quirks))


def _quirky_settings(quirks: Sequence[str]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if "silent-abort" in quirks:
        settings["dtp_handler"] = _silent_data_handler()
    if "latin-1" in quirks:
        settings |= {"encoding": "latin-1", "banner": "Anmeldung f\xfcr Ger\xe4te"}
    if "foreign-address" in quirks:
        settings["masquerade_address"] = "192.0.2.1"
    return settings


def _silent_data_handler() -> Any:
    """Return a handler that does not reply if no data came: pyftpdlib's own if it accepts the connection too late."""
    from pyftpdlib.handlers import DTPHandler

    class Handler(DTPHandler):  # type: ignore[misc]
        def handle_close(self) -> None:
            if self.tot_bytes_received:
                super().handle_close()
            else:
                self.close()

    return Handler


def _count_logins(handler: Any) -> int:
    return sum(getattr(other, "authenticated", False) for other in handler.ioloop.socket_map.values())


def _name_rejection(quirks: Sequence[str], file: str) -> str | None:
    """Return the reply that rejects a file to store, None if it is accepted."""
    name = os.path.basename(file)
    if "no-hidden-names" in quirks and name.startswith("."):
        return "553 Hidden names are not accepted."
    if "listed-suffixes" in quirks and not name.endswith(SUFFIX):
        return "550 This file type is not accepted."
    if "short-names" in quirks and len(name) > SHORT:
        return "553 This name is too long."
    if "no-overwriting" in quirks and os.path.exists(file):
        return "553 The file exists."
    return None


if __name__ == "__main__":
    main()
