"""Secrets of a configuration in files and environment variables."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from trollmoves.config import config_file, secrets
from trollmoves.config import dispatcher_file as dispatch_config
from trollmoves.config.config_file import Configuration
from trollmoves.config.option_table import options_of
from trollmoves.config.options import ClientOptions, ServerOptions, TargetOptions
from trollmoves.errors import ConfigError
from trollmoves.net import urls
from trollmoves.tests.helpers.daemons import ServerClientPair, Testbed

SECRET = "s3cr3t/p@ss:w%rd"
CLIENT = "[c]\nproviders = h:1\ntopic = /t\ndestination = sftp://h/in\nlogin = {}\n"
SERVER = "[s]\norigin = /in/{{a}}\ntopic = /t\nrequest_port = 9\nconnection_parameters__{}\n"
TARGET = "posttroll_subscriber: {subscribe_addresses: [tcp://h:1]}\nt:\n  host: sftp://h:22\n  directory: /d\n"


@pytest.fixture
def secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a file with a secret, which is also in the variable FEED_SECRET."""
    path = tmp_path / "secret"
    path.write_text(f"{SECRET}\n")
    path.chmod(0o600)
    monkeypatch.setenv("FEED_SECRET", SECRET)
    monkeypatch.setenv("FOLDER", str(tmp_path))
    return path


def written(folder: Path, text: str, name: str = "c.ini") -> Path:
    """Write a configuration file."""
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("where", ["file:{}", "env:FEED_SECRET", "file:$FOLDER/secret", "file:${{FOLDER}}/secret"])
def test_secret_sources(secret: Path, where: str) -> None:
    """A secret is read from a file, with variables in its path, or from a variable, without the line end."""
    assert secrets.resolve(where.format(secret)) == SECRET


def test_home_directory(secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret's file may be in the home directory."""
    monkeypatch.setenv("HOME", str(secret.parent))
    assert secrets.resolve("file:~/secret") == SECRET


@pytest.mark.parametrize("value", ["sat:file:/x", "user", "sat:env:X", "File:/x", "sat:p@ss/w"])
def test_anything_else_is_the_secret(value: str) -> None:
    """What does not begin with ``file:`` or ``env:`` is the secret itself."""
    assert secrets.resolve(value) == value
    assert not secrets.exposure_warning(value)


BAD = {
    "file:/nowhere/secret": "the file /nowhere/secret cannot be read: No such file or directory",
    "file:relative": "absolute path",
    "file:": "absolute path",
    "env:NOT_SET": "the environment variable NOT_SET is not set",
    "env:": "name of an environment variable",
    "env:a b": "name of an environment variable",
    "env:TWO_LINES": "more than one line",
    "file:/dev/null": "must be a regular file",
    "file:$FOLDER": "must be a regular file",
    "file:$FOLDER/empty": "must contain one line",
    "file:$FOLDER/lines": "must contain one line",
    "file:$FOLDER/large": "must contain one line",
    "file:$FOLDER/bytes": "must contain UTF-8 text",
    "file:$FOLDER/\0": "cannot be read",
}


@pytest.mark.parametrize("value", BAD)
def test_missing_secret(secret: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """A missing file or variable, or one without a secret, is named, without its content."""
    monkeypatch.setenv("TWO_LINES", f"{SECRET}\n{SECRET}")
    for name, data in {"empty": b"\n", "lines": b"s3cr3t\ns3cr3t", "large": b"s3cr3t" * 20_000}.items():
        (secret.parent / name).write_bytes(data)
    (secret.parent / "bytes").write_bytes(b"s3cr3t\xff")
    with pytest.raises(ValueError, match=re.escape(BAD[value])) as caught:
        secrets.resolve(value)
    assert "s3cr3t" not in str(caught.value)


def test_pipe_is_not_read(tmp_path: Path) -> None:
    """A named pipe is rejected as a secret's file, without waiting for a writer."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="must be a regular file"):
        secrets.resolve(f"file:{tmp_path}/pipe")


def test_client_login(tmp_path: Path, secret: Path) -> None:
    """A client's login may come from a file or variable; ``--check`` does not show it."""
    secret.write_text(f"sat:{SECRET}")
    found = config_file.read(written(tmp_path, CLIENT.format(f"file:{secret}")), ClientOptions)
    assert found.sections["c"].login == f"sat:{SECRET}"
    assert found.warnings == ()
    assert "***" in config_file.check_report(found)
    assert "s3cr3t" not in config_file.check_report(found) + repr(found)


@pytest.mark.parametrize(
    "name",
    [
        "password",
        "ssh_key_passphrase",
        "secret",
        "token",
        "key",
        "client_kwargs__aws_secret_access_key",
        "s3_additional_kwargs__SSECustomerKey",
        "own_password",
    ],
)
def test_connection_parameters(tmp_path: Path, secret: Path, name: str) -> None:
    """Connection parameters may be secrets, in groups and unknown ones too, in INI and in YAML."""

    def check(found: Configuration[Any], parameters: dict[str, Any]) -> None:
        for part in name.lower().split("__"):
            parameters = parameters[part if part in parameters else name.rpartition("__")[2]]
        assert parameters == SECRET  # type: ignore[comparison-overlap]
        assert "s3cr3t" not in config_file.check_report(found)

    server = config_file.read(written(tmp_path, SERVER.format(f"{name} = env:FEED_SECRET")), ServerOptions)
    check(server, server.sections["s"].connection_parameters)
    group, _, last = name.rpartition("__")
    parameters = {group: {last: f"file:{secret}"}} if group else {name: f"file:{secret}"}
    text = f"{TARGET}  connection_parameters: {json.dumps(parameters)}\n  topics: [/a]\n"
    target = dispatch_config.read_dispatcher_config(written(tmp_path, text, "c.yaml"))
    check(target, target.sections["t"].connection_parameters)


def test_other_parameters_are_unchanged(tmp_path: Path) -> None:
    """A parameter that is not a secret may begin with ``file:`` or ``env:``."""
    found = config_file.read(written(tmp_path, SERVER.format("ssh_key_filename = env:FEED_SECRET")), ServerOptions)
    assert found.sections["s"].connection_parameters == {"ssh_key_filename": "env:FEED_SECRET"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.yaml", TARGET + "  topics: [/a]\n  login: LOGIN\n"),
        ("c.ini", "[t]\nhost = sftp://h:22\ndirectory = /d\ntopics = /a\nlogin = LOGIN\n"),
    ],
)
def test_dispatcher_login(tmp_path: Path, secret: Path, name: str, text: str) -> None:
    """A dispatcher's target has its own login for hosts without a user, in YAML as in INI."""
    secret.write_text(f"sat:{SECRET}")
    found = dispatch_config.read_dispatcher_config(written(tmp_path, text.replace("LOGIN", f"file:{secret}"), name))
    (one,) = found.sections["t"].dispatch_configs
    assert (urls.user(one.host), urls.password(one.host), urls.port(one.host)) == ("sat", SECRET, 22)
    assert "s3cr3t" not in config_file.check_report(found)


def test_dispatcher_login_and_other_hosts(tmp_path: Path) -> None:
    """A user in a host's URL overrides the target's login; a login for this host is reported as unused."""
    configs = "[{topics: [/a]}, {topics: [/b], host: 'sftp://me@x'}, {topics: [/c], host: ''}]"
    text = f"{TARGET}  login: sat:pw\n  dispatch_configs: {configs}\n"
    found = dispatch_config.read_dispatcher_config(written(tmp_path, text, "c.yaml"))
    hosts = [one.host for one in found.sections["t"].dispatch_configs]
    assert hosts == ["sftp://sat:pw@h:22", "sftp://me@x", ""]
    assert [warning for warning in found.warnings if "login: has no effect" in warning]


@pytest.mark.parametrize("value", ["file:/nowhere/secret", "env:NOT_SET"])
def test_missing_secret_names_its_option(tmp_path: Path, value: str) -> None:
    """A section with a missing secret is unusable: file, section, option and source are reported."""
    file = written(tmp_path, CLIENT.format(value))
    with pytest.raises(ConfigError, match=rf"{file}: \[c\] login: .*(/nowhere/secret|NOT_SET)"):
        config_file.read(file, ClientOptions)
    file = written(tmp_path, SERVER.format(f"secret = {value}"))
    with pytest.raises(ConfigError, match=rf"{file}: \[s\] connection_parameters__secret: .*(nowhere|NOT_SET)"):
        config_file.read(file, ServerOptions)
    file = written(tmp_path, TARGET + f"  topics: [/a]\n  connection_parameters: {{secret: '{value}'}}\n", "c.yaml")
    with pytest.raises(ConfigError, match=rf"{file}: \[t\] connection_parameters secret: .*(nowhere|NOT_SET)"):
        dispatch_config.read_dispatcher_config(file)


def test_world_readable_secret(tmp_path: Path, secret: Path) -> None:
    """A secret's file that all users can read is reported in one warning, and used."""
    secret.chmod(0o644)
    found = config_file.read(written(tmp_path, CLIENT.format(f"file:{secret}")), ClientOptions)
    (warning,) = found.warnings
    assert f"[c] login: the file {secret} is world-readable" in warning
    assert found.sections["c"].login == SECRET
    text = f"{TARGET}  topics: [/a]\n  connection_parameters: {{password: 'file:{secret}'}}\n"
    assert (
        sum(
            "world-readable" in one
            for one in dispatch_config.read_dispatcher_config(written(tmp_path, text, "c.yaml")).warnings
        )
        == 1
    )
    secret.chmod(0o640)
    assert config_file.read(written(tmp_path, CLIENT.format(f"file:{secret}")), ClientOptions).warnings == ()


def test_options_hold_the_secret_itself() -> None:
    """The table of options knows which are secrets."""
    from trollmoves.config import options

    assert {name for name, one in options.parameters().items() if one.secret} == {
        "key",
        "password",
        "secret",
        "ssh_key_passphrase",
        "token",
    }
    assert options_of(ClientOptions)["login"].secret
    assert options_of(TargetOptions)["login"].secret


def test_reload_reads_secrets_again(tmp_path: Path) -> None:
    """SIGHUP makes a client read its login again; a missing file keeps the running configuration."""
    with Testbed(tmp_path) as testbed:
        login = testbed.directory("etc") / "login"
        login.write_text("sat:first")
        login.chmod(0o600)
        pair = ServerClientPair(testbed, destination=testbed.directory("out"), login=f"file:{login}").start()
        pair.feeder.feed(1)
        pair.wait_until_done()
        login.write_text("sat:second")
        pair.client.send(signal.SIGHUP)
        pair.client.wait_for_line("configuration reloaded: 0 added, 1 changed")
        login.unlink()
        pair.client.send(signal.SIGHUP)
        pair.client.wait_for_line(f"[hrit] login: the file {login} cannot be read")
        pair.feeder.feed(1)
        pair.wait_until_done()
        assert "second" not in pair.client.lines()
