"""Secrets in texts of libraries and servers: removed by their value from errors, logs, replies and messages."""

from __future__ import annotations

import logging
import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from trollmoves.config import config_file, secrets
from trollmoves.config import dispatcher_file as dispatch_config
from trollmoves.config.options import ClientOptions, ServerOptions
from trollmoves.errors import TransferError
from trollmoves.movers import close_connections, move_it
from trollmoves.net import redaction, urls
from trollmoves.net.redaction import KnownSecrets
from trollmoves.tests.helpers.daemons import TOPIC, ServerClientPair, Testbed
from trollmoves.tests.helpers.recording import send_request
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers.limited_s3 import LimitedS3
from trollmoves.tests.servers.process import HOST
from trollmoves.utils.log_format import RedactingFormatter

SECRET = "gehe1m/p@ss+w%rd"
ENCODED = quote(SECRET, safe="")


class EchoingFtp:
    """An FTP server that rejects each login, with all that it received in its reply."""

    def __init__(self) -> None:
        self._listener = socket.create_server((HOST, 0))
        self.port = self._listener.getsockname()[1]
        self.received: list[str] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._reply, args=(connection,), daemon=True).start()

    def _reply(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rwb", buffering=0) as stream:
            stream.write(b"220 hello\r\n")
            for line in stream:
                self.received.append(line.decode().strip())
                rejected = line.startswith(b"PASS")
                stream.write(b"530 Login incorrect: " + line if rejected else b"331 Password?\r\n")

    def close(self) -> None:
        """Accept no more connections."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def ftp() -> Iterator[EchoingFtp]:
    """Return a running server."""
    server = EchoingFtp()
    yield server
    server.close()
    close_connections()


@pytest.mark.parametrize(
    "text",
    [
        f"login failed: {SECRET}",
        f'Invalid bucket name "user:{SECRET}@host": bucket',
        f"PASS {ENCODED} rejected",
        f"PASS {quote(SECRET)}",
        f"x{SECRET}y",
        f"sftp://user:{SECRET}@host/in and sftp://user:{ENCODED}@host/in",
        f"ParseResult(netloc='user:{SECRET}@host')",
        f"{'x' * 9_990}{SECRET}",
        f"Traceback\n  File x\n{SECRET}: no\n",
    ],
)
def test_known_secret_in_any_text(text: str) -> None:
    """A secret of the configuration is removed from any text by its value, also percent-encoded and at a cut."""
    secrets.resolve_login(f"user:{SECRET}")
    for shown in (urls.redact_text(text, 10_000), RedactingFormatter().format(_record(text))):
        assert "gehe1m" not in shown
        assert "p@ss" not in shown


def _record(text: str) -> logging.LogRecord:
    return logging.LogRecord("trollmoves", logging.INFO, "file", 1, "%s", (text,), None)


def test_short_secrets() -> None:
    """A short secret is removed as a word and not inside of words; a very short one, and a user, are not removed."""
    known = KnownSecrets()
    known.add("input", "in", None, "")
    assert known.redact("PASS input: inputs in /in/input_1") == "PASS ***: inputs in /in/***_1"
    secrets.resolve_login("operator")
    assert urls.redact_text("the user operator") == "the user operator"


CONFIGURATIONS: dict[str, tuple[str, Any]] = {
    "login": ("login = user:{}", ClientOptions),
    "destination": ("destination = ftp://user:{}@host/in", ClientOptions),
    "backup_targets": ("backup_targets = one user:{}@two", ClientOptions),
    "allowed_destinations": ("allowed_destinations = ftp://user:{}@host/in", ServerOptions),
    "endpoint_url": ("connection_parameters__endpoint_url = http://user:{}@host/", ServerOptions),
    "secret": ("connection_parameters__secret = {}", ServerOptions),
    "group": ("connection_parameters__client_kwargs__aws_session_token = {}", ServerOptions),
    "unknown": ("connection_parameters__own_password = {}", ServerOptions),
    "host": ("host = sftp://user:{}@host", None),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_option(tmp_path: Path, name: str) -> None:
    """A password in any option is known, and the report of ``--check`` does not show it."""
    line, role = CONFIGURATIONS[name]
    password = "gehe1m.pass"
    path = tmp_path / "c.ini"
    if role is ClientOptions:
        start = "[c]\nproviders = h:1\ntopic = /t\n" + ("" if name == "destination" else "destination = ftp://h/in\n")
    else:
        start = (
            "[s]\norigin = /in/{a}\ntopic = /t\nrequest_port = 9\n" if role else "[t]\ndirectory = /d\ntopics = /a\n"
        )
    path.write_text(start + line.format(password.replace("%", "%%")) + "\n")
    found: Any = config_file.read(path, role) if role else dispatch_config.read_dispatcher_config(path)
    assert "gehe1m" not in config_file.check_report(found)
    assert "gehe1m" not in urls.redact_text(f"the library says {password!r}")


def _fail(action: Callable[[], object]) -> str:
    with pytest.raises(TransferError) as caught:
        action()
    return "".join(traceback.format_exception(caught.value)) + str(caught.value)


def test_reply_of_an_ftp_server(tmp_path: Path, ftp: EchoingFtp, caplog: pytest.LogCaptureFixture) -> None:
    """The password of a URL is removed from the error that repeats the reply of a server, and from its causes."""
    caplog.set_level("DEBUG")
    (tmp_path / "f").write_text("x")
    url = f"ftp://user:{ENCODED}@{HOST}:{ftp.port}/in/"
    shown = _fail(lambda: move_it(tmp_path / "f", url)) + caplog.text
    assert f"PASS {SECRET}" in ftp.received
    assert "Login incorrect: PASS ***" in shown
    assert "gehe1m" not in shown


def test_reply_of_an_s3_service(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Key, secret and token, from the URL or from parameters, are removed from the error of boto3."""
    pytest.importorskip("boto3")
    caplog.set_level("DEBUG", "trollmoves")
    (tmp_path / "f").write_text("x")
    with LimitedS3({"PUT": (400, f"Weird {SECRET} and t0ken.token")}) as service:
        attrs = {"endpoint_url": service.url, "client_kwargs": {"region_name": "r", "aws_session_token": "t0ken.token"}}
        attrs |= {"token": "t0ken.token"}
        attrs["client_kwargs"] = {"region_name": "r"}
        for url, more in (
            (f"s3://AKIAKEY:{ENCODED}@bucket/in/", {}),
            ("s3://bucket/in/", {"key": "AKIAKEY", "secret": SECRET}),
            (
                "s3://bucket/in/",
                {"key": "AKIAKEY", "secret": "x", "endpoint_url": f"http://user:{ENCODED}@{HOST}:{service.port}"},
            ),
        ):
            shown = _fail(lambda url=url, more=more: move_it(tmp_path / "f", url, attrs | more))  # type: ignore[misc]
            assert "Weird ***" in shown
            assert not any(part in shown + caplog.text for part in ("gehe1m", "t0ken"))


def test_error_and_its_causes() -> None:
    """Secrets are removed from the arguments of an exception, its causes and an OSError; a cycle ends."""
    cause = OSError(5, f"cannot send {SECRET}")
    error = ValueError(f"bad {SECRET}", 7)
    error.__cause__, cause.__context__ = cause, error
    redaction.remove_from_error(error, [SECRET, None])
    assert (str(cause), error.args) == ("[Errno 5] cannot send ***", ("bad ***", 7))


@pytest.mark.parametrize("reachable", [True, False])
def test_backup_target_with_login(testbed: Testbed, ftp: EchoingFtp, reachable: bool) -> None:
    """The login of a backup target is used, and is in no log, message or reply, whether the host rejects it or not."""
    password = "gehe1m.pass"
    destination = f"ftp://user:{password}@127.0.0.9:1/in" if reachable else f"s3://user:{password}@bucket/in"
    pair = ServerClientPair(testbed, destination=destination, backup_targets=f"other:{password}2@{HOST}:{ftp.port}")
    pair.start()
    pair.feeder.feed(1)
    pair.server.wait_for_line("not delivered")
    until(lambda: [one for one in pair.received.messages if one.type == "push"], what="the request is published")
    if reachable:
        until(lambda: f"PASS {password}2" in ftp.received, what="the login of the backup target is used")
    (announcement, *_) = [one.data for one in pair.announced.messages if one.type == "file"]
    request = {**announcement, "destination": str(pair.target), "backup_targets": [f"other:{password}@host"]}
    reply = send_request(pair.request_port, TOPIC, "push", request)
    assert reply.type == "file"
    assert reply.data["backup_targets"] == ["host"]
    failed = send_request(pair.request_port, TOPIC, "push", request | {"destination": destination})
    assert failed.type == "err"
    shown = [pair.server.lines(), pair.client.lines(), *pair.received.texts, str(reply), str(failed)]
    assert not [text for text in shown if "gehe1m" in text]
    assert "gehe1m" not in testbed.run("move_it_client.py", "--check", pair.client.config or "").stdout
