"""A configuration file shows which daemon it is for."""

from __future__ import annotations

from pathlib import Path

import pytest

from trollmoves.config.daemon_kinds import detect_kind, section_names
from trollmoves.errors import ConfigError

SERVER = "[a]\norigin = /in/{name}\ntopic = /a\nrequest_port = 9094\n"
CLIENT = "[a]\nproviders = host:9010\ndestination = /out\n"
MIRROR = "[a]\nproviders = host:9010\nrequest_port = 9094\ntopic = /a\n"
DISPATCHER = "[a]\nhost = ftp://host\ndirectory = /out\ntopics = /a\n"
YAML = "# targets\na:\n  host: ftp://host\n  directory: /out\n"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (SERVER, "server"),
        ("[a]\nlisten = /x\ntopic = /a\n", "server"),
        (CLIENT, "client"),
        (MIRROR, "mirror"),
        (DISPATCHER, "dispatcher"),
        ("[posttroll_subscriber]\naddresses = tcp://host:1\n[a]\norigin = /in/{name}\ndirectory = /x\n", "dispatcher"),
        (YAML, "dispatcher"),
        ("[DEFAULT]\nto = a@b\n[a]\nbase_dir = /in\ntemplates = *\nhours = 1\n", "remove_it"),
        ("[DEFAULT]\nrequest_port = 9094\n" + SERVER + "[b]\ntopic = /b\n", "server"),
    ],
)
def test_kinds(tmp_path: Path, text: str, kind: str) -> None:
    """The options of a file decide, also if a section is invalid."""
    path = tmp_path / "config"
    path.write_text(text)
    assert detect_kind(path) == kind
    assert "a" in section_names(path)


@pytest.mark.parametrize("text", ["[a]\ntopic = /a\n", SERVER + CLIENT.replace("[a]", "[b]"), "[DEFAULT]\n"])
def test_ambiguous_files(tmp_path: Path, text: str) -> None:
    """A file that may belong to several daemons is an error that names the remedy."""
    path = tmp_path / "config.ini"
    path.write_text(text)
    with pytest.raises(ConfigError, match="use --kind with one of server, client, mirror, dispatcher"):
        detect_kind(path)
