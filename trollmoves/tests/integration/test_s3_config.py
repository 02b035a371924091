"""S3 as sites configure it: by the configuration of fsspec, below the parameters of a delivery."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trollmoves.errors import AuthenticationFailed, ConfigError
from trollmoves.movers import S3Mover, move_it
from trollmoves.movers.fsspec_config import with_s3_defaults
from trollmoves.net.urls import redact_text
from trollmoves.tests.servers import seaweed
from trollmoves.tests.servers.process import HOST
from trollmoves.tests.servers.seaweed import BUCKET, KEY, SECRET, Seaweed, client

Configure = Callable[..., Path]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """Start the server."""
    pytest.importorskip("boto3", reason="no boto3 (PyPI)")
    if why := seaweed.missing():
        pytest.skip(why)
    running = Seaweed(tmp_path_factory.mktemp("seaweed"))
    with running:
        yield running


@pytest.fixture
def configure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Configure:
    """Return a function that writes a file into the configuration directory of fsspec; the home has none."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FSSPEC_CONFIG_DIR", raising=False)

    def write(name: str, text: str, directory: str = "home/.config/fsspec") -> Path:
        path = tmp_path / directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


def ini(**values: str) -> str:
    """Return an INI file of fsspec."""
    return "[s3]\n" + "".join(f"{name} = {value}\n" for name, value in values.items())


def test_move_without_attributes(server: Seaweed, configure: Configure, tmp_path: Path) -> None:
    """Other packages move files with the URL of a bucket only; the rest is in the configuration of fsspec."""
    configure(
        "conf.json",
        json.dumps({"s3": {"key": KEY, "secret": SECRET, "client_kwargs": {"endpoint_url": url(server)}}}),
    )
    origin = tmp_path / "moved.nc"
    origin.write_bytes(b"content")
    S3Mover(origin, f"s3://{BUCKET}/").move()
    assert client(server.port).get_object(Bucket=BUCKET, Key="moved.nc")["Body"].read() == b"content"
    assert not origin.exists()


def url(server: Seaweed) -> str:
    """Return the URL of the service."""
    return f"http://{HOST}:{server.port}"


def test_repaired_configuration_is_read_again(server: Seaweed, configure: Configure, tmp_path: Path) -> None:
    """Credentials of a file are read again after a change, so that a held delivery continues without a restart."""
    configure("a.ini", ini(key=KEY, secret="wrong-secret-wrong", endpoint_url=url(server)))
    origin = tmp_path / "repaired.nc"
    origin.write_bytes(b"content")
    with pytest.raises(AuthenticationFailed):
        move_it(origin, f"s3://{BUCKET}/")
    configure("a.ini", ini(key=KEY, secret=SECRET, endpoint_url=url(server)))
    move_it(origin, f"s3://{BUCKET}/")


def test_explicit_parameters_win(configure: Configure) -> None:
    """A parameter of the delivery replaces that of the configuration; absent ones do not."""
    configure("a.ini", ini(key="configured", secret="configured-secret", endpoint_url="http://configured"))
    found = with_s3_defaults({"key": "explicit", "endpoint_url": None})
    assert found == {"key": "explicit", "secret": "configured-secret", "endpoint_url": "http://configured"}


def test_login_of_the_url_excludes_configured_credentials(configure: Configure) -> None:
    """With a login in the URL neither a configured key nor a token is used."""
    configure("a.json", json.dumps({"s3": {"key": "k", "token": "configured", "anon": True, "use_ssl": False}}))
    assert with_s3_defaults({}, login=True) == {"use_ssl": False}


def test_order_of_the_sources(configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later files win over earlier ones, the environment over files; s3fs has other names for a login."""
    monkeypatch.setenv("FSSPEC_CONFIG_DIR", str(tmp_path / "conf"))
    configure("ignored.ini", ini(key="of the home"))
    configure("1.ini", ini(username="first", password="long-first", endpoint_url="http://first"), "conf")
    configure("2.json", json.dumps({"s3": {"secret": "second-secret"}, "http": {"timeout": 3}}), "conf")
    monkeypatch.setenv("FSSPEC_S3", '{"token": "of-the-variable", "default_block_size": 5}')
    monkeypatch.setenv("FSSPEC_S3_KEY", "1234567890")
    monkeypatch.setenv("FSSPEC_S3_CLIENT_KWARGS", '{"region_name": "eu"}')
    assert with_s3_defaults({}) == {
        "key": "1234567890",
        "secret": "second-secret",
        "endpoint_url": "http://first",
        "token": "of-the-variable",
        "client_kwargs": {"region_name": "eu"},
    }
    assert "second-secret" not in redact_text("an error with second-secret in it")


@pytest.mark.parametrize(
    ("name", "text"), [("a.json", '{"s3": [passphrase'), ("a.json", "[1]"), ("a.ini", "passphrase")]
)
def test_invalid_file(configure: Configure, name: str, text: str) -> None:
    """An invalid file is named without its content, and holds the delivery until it is repaired."""
    path = configure(name, text)
    with pytest.raises(ConfigError) as caught:
        with_s3_defaults({})
    assert str(path) in str(caught.value)
    assert "passphrase" not in str(caught.value).removeprefix(str(path))
    assert caught.value.held
