"""The functions and modules that scripts import."""

from __future__ import annotations

import argparse
import importlib
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest

import trollmoves.logging
from trollmoves import utils
from trollmoves.utils import script_functions

DATA: dict[str, Any] = {
    "uri": 1,
    "dataset": [{"uri": 2, "uid": 3}, {"uri": {"uri": 4}}, 7],
    "collection": {"items": [{"dataset": [{"uri": 5}]}]},
    "sensor": "seviri",
}


@pytest.mark.parametrize(
    ("url", "clean"),
    [
        ("scp://user:pw@host:22/a/b?x=1#f", "scp://host/a/b"),
        ("/a/b", "/a/b"),
        ("file:///a/b", "file:///a/b"),
        ("s3://bucket/key", "s3://bucket/key"),
        ("ftp://[::1]:21/x", "ftp://[::1]/x"),
        (urlparse("ftp://u:p@h:1/x"), "ftp://h/x"),
    ],
)
def test_clean_url(url: Any, clean: str) -> None:
    """A clean URL has neither login nor port."""
    assert utils.clean_url(url) == clean


def test_local_hosts() -> None:
    """The addresses of this host are local, those of others are not, and paths and file URLs are."""
    own = utils.get_local_ips()
    assert "127.0.0.1" in own
    for url in ("/a/b", "file:///a", "ssh://localhost/a", "", *(f"scp://{address}/a" for address in own)):
        assert utils.is_file_local(urlparse(url)) is True
    for url in ("ftp://203.0.113.3/a", "s3://no-such-host.invalid/y"):
        assert utils.is_file_local(urlparse(url)) is False


def test_extract() -> None:
    """The values of a key, and the dictionaries with it, are found in dictionaries and lists."""
    assert list(utils.gen_dict_extract(DATA, "uri")) == [1, 2, {"uri": 4}, 4, 5]
    assert [found["uri"] for found in utils.gen_dict_contains(DATA, "uri")] == [1, 2, {"uri": 4}, 4, 5]
    assert next(utils.gen_dict_contains(DATA, "uri")) is DATA
    for other in ("uri", None, [DATA]):
        assert list(utils.gen_dict_extract(other, "uri")) == []


def test_translate() -> None:
    """Values, items and dictionaries are replaced in a copy."""
    assert utils.translate_dict_value(DATA, "uri", lambda key, value: (key, value)) == {
        "uri": ("uri", 1),
        "dataset": [{"uri": ("uri", 2), "uid": 3}, {"uri": ("uri", {"uri": 4})}, 7],
        "collection": {"items": [{"dataset": [{"uri": ("uri", 5)}]}]},
        "sensor": "seviri",
    }
    assert utils.translate_dict_item(DATA, "uri", lambda found, key: {"n": found[key]}) == {
        "n": 1,
        "dataset": [{"n": 2}, {"n": {"uri": 4}}, 7],
        "collection": {"items": [{"dataset": [{"n": 5}]}]},
    }
    assert utils.translate_dict_item({"x": 3, "y": [1, {"z": 1}]}, "uri", lambda *_: {}) == {"x": 3, "y": [1, {"z": 1}]}
    assert utils.translate_dict(DATA, ["uri"], lambda found: found["uri"]) == 1
    inner = {"collection": DATA["collection"], "x": 1}
    assert utils.translate_dict(inner, ["uri", "uid"], lambda found, a: {**found, "a": a}, a=2) == {
        "collection": {"items": [{"dataset": [{"uri": 5, "a": 2}]}]},
        "x": 1,
    }
    assert DATA["dataset"][0] == {"uri": 2, "uid": 3}


def test_all_names_are_exported() -> None:
    """Each public function of the module is a name of ``trollmoves.utils``."""
    public = {
        name
        for name, item in vars(script_functions).items()
        if getattr(item, "__module__", "") == script_functions.__name__ and name[0] != "_"
    }
    assert public == set(utils.__all__)


def test_logging(tmp_path: Path) -> None:
    """A script adds the options to its parser, and gets a logger that writes to the file."""
    log = tmp_path / "x.log"
    script = """
import argparse, logging
from trollmoves.logging import add_logging_options_to_parser, setup_logging
parser = argparse.ArgumentParser()
add_logging_options_to_parser(parser, legacy=True)
logger = setup_logging("script", parser.parse_args())
logger.debug("ftp://user:secret@host/in")
"""
    subprocess.run([sys.executable, "-c", script, "-v", "-l", log], check=True)
    assert log.read_text().rstrip().endswith(" : script] ftp://user@host/in")
    parser = argparse.ArgumentParser()
    trollmoves.logging.add_logging_options_to_parser(parser)
    assert vars(parser.parse_args(["-c", "x"])) == {"log_config": "x"}
    assert logging.getLogger("script").level == logging.NOTSET


@pytest.mark.parametrize(
    "name", ["move_it_server", "move_it_client", "move_it_mirror", "dispatcher", "move_it_req", "remove_it"]
)
def test_modules_of_commands(name: str) -> None:
    """Each command is a module with a main, and can be run with ``python -m``."""
    assert callable(importlib.import_module(f"trollmoves.{name}").main)
    ended = subprocess.run(
        [sys.executable, "-m", f"trollmoves.{name}", "--help"], capture_output=True, text=True, check=True
    )
    assert ended.stdout.startswith("usage: ")
