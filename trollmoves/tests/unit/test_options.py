"""The options of every daemon, declared once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from trollmoves.config import options, parsers
from trollmoves.config.fetch_options import FetcherOptions, S3DownloaderOptions
from trollmoves.config.option_table import options_of
from trollmoves.config.options import ClientOptions, MirrorOptions, ProcessOptions, ServerOptions, SharedOptions
from trollmoves.config.reference import reference_page
from trollmoves.movers import options as mover_options
from trollmoves.net.client_allowlist import ANYONE

ROLES = [ProcessOptions, ServerOptions, ClientOptions, MirrorOptions, FetcherOptions, S3DownloaderOptions]

# Options in the files of existing sites, with the defaults that these rely on.
ALARMS: dict[str, object] = {"expect_every": 0.0, "max_age": 0.0, "max_failed": None, "on_alarm": ()}
SERVER: dict[str, object] = {
    "topic": "",
    "origin": None,
    "listen": None,
    "services": (),
    "topics": (),
    "addresses": (),
    "nameserver": "localhost",
    "addr_listener": True,
    "timeout": 10.0,
    "repeat_after": 300.0,
    "translate": False,
    "request_port": None,
    "request_address": None,
    "station": "unknown",
    "allowed_destinations": (),
    "files": "shared",
    "external_symlinks": "owned",
    "quiet_time": 2.0,
    "info": {},
    "compression": None,
    "working_directory": None,
    "prog": None,
    "delete": False,
    "remove_delay": 30.0,
    "unpack": None,
    "watchdog_timeout": 1.0,
    "priority": 0,
    "probe_interval": 120.0,
    **ALARMS,
}
CLIENT: dict[str, object] = {
    "providers": (),
    "destination": "",
    "topic": "",
    "login": None,
    "publish_port": 0,
    "nameservers": None,
    "heartbeat": True,
    "heartbeat_alarm_scale": 0.0,
    "compression": None,
    "xritdecompressor": None,
    "block_size": 4096,
    "delete": False,
    "req_timeout": 1.0,
    "transfer_req_timeout": 10.0,
    "create_target_directory": True,
    "ftp_root": "/",
    "backup_targets": (),
    "processing_delay": 0.0,
    "takeover_after": 30.0,
    "repeat_after": 300.0,
    "priority": 0,
    "probe_interval": 120.0,
    **ALARMS,
}
SHARED: dict[str, object] = {
    "bind_address": "*",
    "allowed_clients": ANYONE,
    "max_transfers_per_host": 4,
    "retry_for": 0.0,
}
PROCESS: dict[str, object] = {
    "journal": "",
    "fleet": "standby",
    "fleet_lease": 10,
    "synchronous": "normal",
    "keep_finished": 7.0,
    "max_finished": 5_000_000,
    "keep_announcements": 7.0,
    "max_announcements": 1_000_000,
    "stop_timeout": 10.0,
    "workers": 16,
    "processors": (),
    "metrics_port": None,
    "metrics_address": "127.0.0.1",
    "metrics_file": "",
    "web_port": None,
    "web_address": "127.0.0.1",
    "web_token_file": "",
}


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        (ProcessOptions(), PROCESS | SHARED),
        (ServerOptions(name="x"), SERVER | SHARED),
        (ClientOptions(name="x"), CLIENT | SHARED),
        (MirrorOptions(name="x"), SERVER | CLIENT | SHARED | {"client_topic": "", "delay": 0.0}),
    ],
)
def test_names_and_defaults(section: SharedOptions, expected: dict[str, object]) -> None:
    """Each role has the options used in the files of existing sites, with their defaults."""
    assert {name: getattr(section, name) for name in options_of(type(section))} == expected


@pytest.mark.parametrize("role", ROLES)
def test_each_option_is_explained(role: type[SharedOptions]) -> None:
    """Each option has a meaning in one line, and a default that it reads itself."""
    for name, option in options_of(role).items():
        assert option.help, name
        assert "\n" not in option.help
        assert name == name.lower()
        if option.default is not None:
            option.parse(option.default)


def test_instances_share_nothing() -> None:
    """Two sections never hold the same changeable default."""
    assert ServerOptions(name="a").info is not ServerOptions(name="b").info
    assert ServerOptions(name="a").connection_parameters is not ServerOptions(name="b").connection_parameters


def test_no_secret_in_repr() -> None:
    """The repr of a section shows nothing but its name."""
    chain = ClientOptions(name="hrit", login="user:geheim", destination="ftp://user:geheim@host/in")
    assert repr(chain) == "ClientOptions(name='hrit')"
    server = ServerOptions(name="hrit", connection_parameters={"secret": "geheim"})
    assert "geheim" not in repr([server])


def test_connection_parameters() -> None:
    """The connection parameters are those that the movers know, each read as its type."""
    found = options.parameters()
    assert list(found) == [item.name for item in mover_options.OPTIONS]
    read = {name: found[name].parse("1") for name in ("connection_uptime", "num_ssh_retries", "anon", "key")}
    assert read == {"connection_uptime": 1.0, "num_ssh_retries": 1, "anon": True, "key": "1"}
    for name, option in found.items():
        if option.default is not None:
            assert option.parse(option.default) == mover_options.value({}, name)


def test_a_mirror_is_client_and_server() -> None:
    """Code for either half takes a mirror's section."""
    chain = MirrorOptions(name="m", topic="/a", providers=parsers.providers("h:1"), request_port=9094)
    assert isinstance(chain, ServerOptions)
    assert isinstance(chain, ClientOptions)
    assert [chain.role, ServerOptions.role, ClientOptions.role] == ["mirror", "server", "client"]


def test_reference_page() -> None:
    """doc/options.md equals the output of ``python -m trollmoves.config.reference``."""
    page = Path(__file__).parents[3] / "doc" / "options.md"
    if not page.exists():
        pytest.skip("the pages are not installed with the package")
    assert page.read_text(encoding="utf-8") == reference_page()


def test_reference_holds_every_option() -> None:
    """Every option, connection parameter and old spelling is on the page."""
    page = reference_page()
    names = [name for role in ROLES for name in options_of(role)]
    for name in [*names, *options.parameters(), *options.LEGACY_SPELLINGS, *options.LEGACY_IGNORED]:
        assert f"`{name}`" in page


def test_reference_as_a_command() -> None:
    """The page is printed by ``python -m trollmoves.config.reference``."""
    command = [sys.executable, "-m", "trollmoves.config.reference"]
    assert subprocess.run(command, check=True, capture_output=True).stdout.decode() == reference_page()
