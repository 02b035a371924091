"""A configuration file becomes checked sections."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from trollmoves.config import config_file, ini_and_yaml, parsers
from trollmoves.config.config_file import Configuration
from trollmoves.config.options import ChainOptions, ClientOptions, MirrorOptions, ServerOptions
from trollmoves.config.parsers import ProviderAddress
from trollmoves.errors import ConfigError
from trollmoves.matching.received_time import read_time

SCHEMES = ["file", "ftp", "ftps", "scp", "sftp", "s3"]

O = TypeVar("O", bound=ChainOptions)  # noqa: E741
Read = Callable[[str, type[O]], Configuration[O]]

SERVER = """\
# Reception station, HRIT and polar.
[DEFAULT]
station = Norrköping
delete = False
journal = /var/lib/trollmoves/server.journal
connection_parameters__ssh_key_filename = /home/sat/.ssh/id_ed25519
connection_parameters__connection_uptime = 60

[hrit-0deg]
origin = /data/hrit/{nominal_time:%Y%m%d}/H-000-{series:_<6s}-{channel:_<12s}-{nominal_time:%Y%m%d%H%M}-{c:1s}_
topic = /1b/hrit-segment/0deg
request_port = 9094
request_address = hrit.site.org
info = sensor=seviri;variant=0DEG;bands=VIS006,IR_108;
compression = xrit
prog = /opt/bin/xRITDecompress
working_directory = /dev/shm/unpacked
delete = yes
remove_delay = 60
max_transfers_per_host = 4
; polar orbiters
[npp]
origin: /data/npp/{mda}_npp_d{start_time:%Y%m%d_t%H%M%S}.h5
topic: /sdr/npp
request_port: 9095
connection_parameters__ssh_connection_timeout = 5
connection_parameters__num_ssh_retries = 1
connection_parameters__s3_use_multipart = 1
connection_parameters__client_kwargs__endpoint_url = https://s3.site.org
connection_parameters__client_kwargs__verify = 0

[again]
listen = /new/file
services = viirs, modis
topics = /l1
addresses = tcp://a:9001 tcp://b:9001
nameserver = False
addr_listener = no
timeout = 2.5
translate = on
topic = /l1
"""

CLIENT = """\
[DEFAULT]
providers = hrit.site.org:9010 spare.site.org:9010/1b/hrit-segment
    tcp://[fe80::1]:9010
nameservers = False
heartbeat_alarm_scale = 10

[hrit-0deg]
destination = ftp://sat:geheim@archive.site.org:2121/in/{nominal_time:%Y/%m/%d}/{sensor}
login = sat:nochgeheimer
topic = /1b/hrit-segment/0deg
publish_port = 9020
platform_name = MSG4_:Meteosat-11|MSG3_:Meteosat-10
sensor = SEVIRI
variant = http://site.org
backup_targets = one.site.org two.site.org
compression = tar
req_timeout = 2
transfer_req_timeout = 120
processing_delay = 0.5

[npp]
destination = /data/in
topic = /sdr/npp
create_target_directory = no
ftp_root = /data
nameservers = ns1, ns2
"""

MIRROR = """\
[hrit]
providers = inside.site.org:9010
client_topic = /1b/hrit-segment
topic = /1b/hrit
destination = scp://localhost/{sensor}
request_port = 9096
delay = 2
"""


@pytest.fixture
def read(tmp_path: Path) -> Read[O]:
    """Return a function that reads a text as a separate file."""

    def read_text(text: str, role: type[O]) -> Configuration[O]:
        path = tmp_path / "site.ini"
        path.write_text(text, encoding="utf-8")
        return config_file.read(path, role)

    return read_text


def complaints(read: Read[O], text: str, role: type[O]) -> list[str]:
    """Return the problems of a text, without its file name, when a correct section follows it."""
    found = read(text, role)
    prefix = f"{found.file}: "
    assert all(str(problem).startswith(prefix) for problem in found.problems)
    return [str(problem).removeprefix(prefix) for problem in found.problems]


def warnings(read: Read[O], text: str, role: type[O]) -> list[str]:
    """Return the warnings about a text, without the name of its file."""
    found = read(text, role)
    assert not found.problems
    return [warning.removeprefix(f"{found.file}: ") for warning in found.warnings]


GOOD_SERVER = "[good]\norigin = /data/{x}\ntopic = /good\n"
GOOD_CLIENT = "[good]\nproviders = a:1\ndestination = /in\ntopic = /good\n"
GOOD_MIRROR = "[good]\nproviders = a:1\nrequest_port = 9000\ntopic = /good\n"


class TestServer:
    """The sections of a server."""

    def test_server_section(self, read: Read[ServerOptions]) -> None:
        """A site's file is read into typed options, [DEFAULT] inherited, `%` and all, without a word of warning."""
        found = read(SERVER, ServerOptions)
        assert [*found.sections] == ["hrit-0deg", "npp", "again"]
        assert (found.warnings, found.problems, found.broken) == ((), (), {})
        assert found.process.journal == "/var/lib/trollmoves/server.journal"
        hrit, npp, again = found.sections.values()
        assert (hrit.name, hrit.topic, hrit.request_port) == ("hrit-0deg", "/1b/hrit-segment/0deg", 9094)
        assert hrit.origin
        assert "{nominal_time:%Y%m%d}" in hrit.origin
        assert hrit.info == {"sensor": "seviri", "variant": "0DEG", "bands": ["VIS006", "IR_108"]}
        assert (hrit.compression, hrit.delete, hrit.remove_delay, hrit.max_transfers_per_host) == (
            "xrit",
            True,
            60.0,
            4,
        )
        assert (npp.delete, npp.station, npp.max_transfers_per_host) == (False, "Norrköping", 4)
        assert (again.listen, again.services, again.topics) == ("/new/file", ("viirs", "modis"), ("/l1",))
        assert again.addresses == ("tcp://a:9001", "tcp://b:9001")
        assert (again.nameserver, again.addr_listener, again.timeout, again.translate) == (False, False, 2.5, True)
        assert (again.request_port, again.origin) == (None, None)

    def test_connection_parameters(self, read: Read[ServerOptions]) -> None:
        """Connection parameters are a nested dict, known ones of their type."""
        npp = read(SERVER, ServerOptions).sections["npp"]
        assert npp.connection_parameters == {
            "ssh_key_filename": "/home/sat/.ssh/id_ed25519",
            "connection_uptime": 60.0,
            "ssh_connection_timeout": 5.0,
            "num_ssh_retries": 1,
            "s3_use_multipart": True,
            "client_kwargs": {"endpoint_url": "https://s3.site.org", "verify": False},
        }
        assert npp.connection_parameters["num_ssh_retries"] is not True

    def test_unknown_connection_parameter(self, read: Read[ServerOptions]) -> None:
        """An unknown connection parameter is reported and passed on; 0, false, 1 and true as booleans."""
        text = GOOD_SERVER + "\n".join(
            f"connection_parameters__{line}" for line in ("frobnicate=True", "a__b__c=0", "a__d=7", "ssh_key_filname=x")
        )
        chain = read(text, ServerOptions).sections["good"]
        assert chain.connection_parameters == {
            "frobnicate": True,
            "a": {"b": {"c": False}, "d": "7"},
            "ssh_key_filname": "x",
        }
        assert warnings(read, text, ServerOptions) == [
            "[good] connection_parameters__frobnicate: is not a known connection parameter, and is passed to the mover",
            "[good] connection_parameters__a__b__c: is not a known connection parameter, and is passed to the mover",
            "[good] connection_parameters__a__d: is not a known connection parameter, and is passed to the mover",
            "[good] connection_parameters__ssh_key_filname: "
            "is not a known connection parameter, and is passed to the mover; "
            "did you mean ssh_key_filename?",
        ]

    def test_old_spellings(self, read: Read[ServerOptions]) -> None:
        """Old spellings still work, and the new one is preferred to them."""
        text = (
            GOOD_SERVER + "connection_uptime = 20\nssh_key_filename = a\nssh_private_key_file = b\n"
            "ssh_connection_timeout = 3\nconnection_parameters__ssh_key_filename = c\n"
        )
        assert read(text, ServerOptions).sections["good"].connection_parameters == {
            "connection_uptime": 20.0,
            "ssh_key_filename": "c",
            "ssh_connection_timeout": 3.0,
            "ssh_private_key_file": "b",
        }
        first, second, *_ = warnings(read, text, ServerOptions)
        assert first == (
            "[good] connection_uptime: is the old spelling of connection_parameters__connection_uptime, and still works"
        )
        assert second.endswith("and is ignored, since both are set")

    def test_ignored_options(self, read: Read[ServerOptions]) -> None:
        """Options of old files without effect are accepted."""
        text = GOOD_SERVER + "publisher_port = 9010\npublish_port=9010\norigin_inotify_base_dir_skip_levels = -2\n"
        assert warnings(read, text, ServerOptions) == [
            "[good] publisher_port: is accepted, and has no effect",
            "[good] publish_port: is accepted, and has no effect",
            "[good] origin_inotify_base_dir_skip_levels: is accepted, and has no effect",
        ]

    def test_unknown_options(self, read: Read[ServerOptions]) -> None:
        """An unknown option is reported with the probable one, in [DEFAULT] once."""
        text = "[DEFAULT]\nstaton = x\n[two]\norigin = /b\ntopic = /b\n" + GOOD_SERVER
        text += "requestport = 1\nnum_ssh_retries = 1\nlogin = a\nworkers = 3\nqwertz = 1\n"
        assert warnings(read, text, ServerOptions) == [
            "[DEFAULT] staton: is unknown, and has no effect; did you mean station?",
            "[good] requestport: is unknown, and has no effect; did you mean request_port?",
            "[good] num_ssh_retries: is unknown; did you mean connection_parameters__num_ssh_retries?",
            "[good] login: is an option of a client, and has no effect in a server's section",
            "[good] workers: is an option of the process, and has no effect here: move it to [DEFAULT]",
            "[good] qwertz: is unknown, and has no effect",
        ]

    def test_all_problems_are_reported(self, read: Read[ServerOptions]) -> None:
        """Every problem of a file is reported in one sentence with section and option; the good section runs."""
        text = """\
[empty]
[numbers]
origin = /data/{x}
topic = /a
request_port = 90940
remove_delay = soon
delete = maybe
compression = gzip
[templates]
origin = /data/{x
topic = /a b
info = sensor
connection_parameters__num_ssh_retries = few
connection_parameters__client_kwargs = {}
connection_parameters__key__id = 1
connection_parameters__a = 1
connection_parameters__a__b = 1
connection_parameters__c__d = 1
connection_parameters__c = 1
connection_parameters____x = 1
"""
        assert complaints(read, text + GOOD_SERVER, ServerOptions) == [
            "[empty] topic: is missing: subject of the announcements",
            "[empty] origin: is missing: set origin or listen to select the files to announce",
            "[numbers] request_port: must be between 1 and 65535: '90940'",
            "[numbers] compression: must be one of xrit, bzip, none: 'gzip'",
            "[numbers] delete: must be true or false: 'maybe'",
            "[numbers] remove_delay: must be a number: 'soon'",
            "[templates] topic: a subject must not contain blanks: '/a b'",
            "[templates] info: each item must be key=value: 'sensor'",
            "[templates] connection_parameters__num_ssh_retries: must be an integer: 'few'",
            "[templates] connection_parameters__client_kwargs: is a group: it must have names below it, "
            "in INI files with __ between group and name",
            "[templates] connection_parameters__key__id: key is one value, with no names below it",
            "[templates] connection_parameters__a__b: a has a value too: it cannot be both",
            "[templates] connection_parameters__c: c has names below it too: it cannot be both",
            "[templates] connection_parameters____x: a name is missing before or after __",
            "[templates] origin: invalid pattern '/data/{x': expected '}' before end of string",
        ]
        found = read(text + GOOD_SERVER, ServerOptions)
        assert [*found.sections] == ["good"]
        assert [*found.broken] == ["empty", "numbers", "templates"]
        error = found.broken["empty"]
        assert (error.file, error.section) == (found.file, "empty")
        assert str(error) == (
            f"{found.file}: [empty] topic: is missing: subject of the announcements; "
            "origin: is missing: set origin or listen to select the files to announce"
        )

    def test_origin_and_listen(self, read: Read[ServerOptions]) -> None:
        """With an origin there is nothing to listen for."""
        text = GOOD_SERVER + "listen = /x\n"
        assert warnings(read, text, ServerOptions) == ["[good] listen: has no effect together with origin"]

    def test_one_request_port_twice(self, read: Read[ServerOptions]) -> None:
        """Of two sections with one request port the second does not run, unless they open it on different addresses."""
        first = GOOD_SERVER + "request_port = 9094\n"
        second = "[two]\norigin = /a\ntopic = /a\nrequest_port = 9094\n"
        assert complaints(read, first + second, ServerOptions) == [
            "[two] request_port: port 9094 is already used by [good]"
        ]
        apart = f"{first}bind_address = 10.0.0.1\n{second}bind_address = 10.0.0.2\n"
        assert complaints(read, apart, ServerOptions) == []
        assert len(complaints(read, apart.replace("10.0.0.2", "*"), ServerOptions)) == 1


class TestClient:
    """The sections of a client."""

    def test_server_section(self, read: Read[ClientOptions]) -> None:
        """A site's file is read into typed options, and says nothing that needs a warning."""
        found = read(CLIENT, ClientOptions)
        assert (found.warnings, found.problems) == ((), ())
        hrit, npp = found.sections.values()
        assert hrit.providers == (
            ProviderAddress("hrit.site.org", 9010),
            ProviderAddress("spare.site.org", 9010, "/1b/hrit-segment"),
            ProviderAddress("fe80::1", 9010),
        )
        assert hrit.destination == "ftp://sat:geheim@archive.site.org:2121/in/{nominal_time:%Y/%m/%d}/{sensor}"
        assert (hrit.login, hrit.publish_port, hrit.nameservers) == ("sat:nochgeheimer", 9020, False)
        assert (hrit.req_timeout, hrit.transfer_req_timeout, hrit.processing_delay) == (2.0, 120.0, 0.5)
        assert hrit.backup_targets == ("one.site.org", "two.site.org")
        assert (hrit.heartbeat, hrit.heartbeat_alarm_scale, hrit.compression) == (True, 10.0, "tar")
        assert (npp.nameservers, npp.create_target_directory, npp.ftp_root) == (("ns1", "ns2"), False, "/data")
        assert npp.replacements == {}

    def test_replacements(self, read: Read[ClientOptions]) -> None:
        """Any other key replaces the metadata item of that name, except for the names of options."""
        text = CLIENT + (
            "workers = 3\nconnection_uptime = 3\npublisher_port = 1\nconnection_parameters__secret = x\n"
            "station = here\n"
        )
        found = read(text, ClientOptions).sections
        hrit = found["hrit-0deg"].replacements
        assert [*hrit] == ["platform_name", "sensor", "variant"]
        assert [hrit["platform_name"].apply(value) for value in ("MSG4_", "MSG1_")] == ["Meteosat-11", "MSG1_"]
        assert (hrit["sensor"].apply("seviri"), hrit["variant"].apply("x")) == ("SEVIRI", "http://site.org")
        assert parsers.replacement("20250101:new").apply(read_time("20250101")) == "new"
        assert [*found["npp"].replacements] == ["station"]
        assert warnings(read, text, ClientOptions) == [
            "[npp] workers: is an option of the process, and has no effect here: move it to [DEFAULT]",
            "[npp] connection_uptime: has no effect in a client's section: the server connects to the destination",
            "[npp] publisher_port: is accepted, and has no effect",
            "[npp] connection_parameters__secret: has no effect in a client's section: "
            "the server connects to the destination",
        ]

    def test_misspelled_option_is_a_replacement(self, read: Read[ClientOptions]) -> None:
        """A key that resembles an option replaces metadata as any other, but is reported."""
        text = GOOD_CLIENT + "destinaton = /out\nlogn = a:geheim\nsensors = x\n"
        assert warnings(read, text, ClientOptions) == [
            "[good] destinaton: replaces the metadata item of that name; did you mean destination?",
            "[good] logn: replaces the metadata item of that name; did you mean login?",
        ]
        assert "destinaton" in read(text, ClientOptions).sections["good"].replacements

    @pytest.mark.parametrize(
        "destination",
        [
            "/in",
            "file:///in",
            "file://host/in/{x!u}",
            "ftp://host/{time:%H:%M}",
            "FTPS://user@host:990/in",
            "scp://{host}:{port}/in",
            "sftp://[::1]:22/in/",
            "s3://bucket/{{literal}}/{x.y}",
        ],
    )
    def test_good_destinations(self, read: Read[ClientOptions], destination: str) -> None:
        """A destination has a scheme that a mover knows, or none, and fields anywhere."""
        text = GOOD_CLIENT.replace("/in", destination)
        assert read(text, ClientOptions).sections["good"].destination == destination

    @pytest.mark.parametrize(
        ("destination", "complaint"),
        [
            ("http://host/in", "unknown scheme http: use one of file, ftp, ftps, scp, sftp, s3, or a path"),
            ("scp://[x", "invalid URL: scp://[x"),
            ("ftp://u:geheim@host:port/in", "invalid URL: ftp://u@host:***/in"),
            ("/in/{x", "/in/{x cannot be composed: expected '}' before end of string"),
            ("ftp://u:geheim@h/}", "ftp://u@h/} cannot be composed: Single '}' encountered in format string"),
        ],
    )
    def test_bad_destinations(self, read: Read[ClientOptions], destination: str, complaint: str) -> None:
        """A destination that no metadata could make usable is reported without its password."""
        text = f"[bad]\nproviders = a:1\ndestination = {destination}\n{GOOD_CLIENT}"
        assert complaints(read, text, ClientOptions) == [f"[bad] destination: {complaint}"]

    def test_no_mover_needed(self, tmp_path: Path) -> None:
        """A client's host needs no library for the protocols of its destinations: the server transfers."""
        path = tmp_path / "site.ini"
        path.write_text("".join(f"[{scheme}]\nproviders = a:1\ndestination = {scheme}://h/in\n" for scheme in SCHEMES))
        program = (
            "import sys; from trollmoves.config import config_file, options; "
            "print(*config_file.read(sys.argv[1], options.ClientOptions).sections); "
            "print(*{'paramiko', 'ftplib', 'boto3'} & {*sys.modules})"
        )
        done = subprocess.run([sys.executable, "-c", program, path], check=True, capture_output=True, text=True)
        assert done.stdout.splitlines() == [" ".join(SCHEMES), ""]

    def test_problems(self, read: Read[ClientOptions]) -> None:
        """Missing mandatory options of a client are reported; a malformed provider is named."""
        text = "[empty]\n[bad]\nproviders = a:1 b c:2\ndestination = /in\nnameservers = tcp://x\n"
        assert complaints(read, text + GOOD_CLIENT, ClientOptions) == [
            "[empty] providers: is missing: servers, mirrors and peer clients: `host:port`, or `host:port/topic` "
            "with another topic than `topic`",
            "[empty] destination: is missing: URL of the directory to deliver files to; it may contain metadata "
            "fields; schemes: none or `file`, `ftp`, `ftps`, `scp`, `sftp`, `s3`",
            "[bad] providers: a provider must be host:port or host:port/topic: 'b'",
            "[bad] nameservers: must be one host: 'tcp://x'",
        ]

    def test_no_subscription(self, read: Read[ClientOptions]) -> None:
        """Topics of providers are enough, an empty topic is all subjects; without any of these there is a warning."""
        text = GOOD_CLIENT.replace("topic = /good\n", "")
        assert warnings(read, text, ClientOptions) == [
            "[good] topic: is missing, and no provider has one: no announcements will be received; an empty value, "
            "'topic =', subscribes to all subjects"
        ]
        assert warnings(read, text + "topic =\n", ClientOptions) == []
        assert read(text + "topic =\n", ClientOptions).sections["good"].topic == "/"
        assert warnings(read, text.replace("a:1", "a:1/x") + "heartbeat = no\n", ClientOptions) == []

    def test_one_publish_port_twice(self, read: Read[ClientOptions]) -> None:
        """Of two sections with one publish port the second does not run; 0 is any port."""
        second = GOOD_CLIENT.replace("good", "two")
        both = "{0}publish_port = {2}\n{1}publish_port = {2}\n".format
        assert complaints(read, both(GOOD_CLIENT, second, 0), ClientOptions) == []
        assert complaints(read, both(GOOD_CLIENT, second, 9020), ClientOptions) == [
            "[two] publish_port: port 9020 is already used by [good]"
        ]


class TestMirror:
    """The sections of a mirror."""

    def test_server_section(self, read: Read[MirrorOptions]) -> None:
        """A mirror's section holds both halves."""
        found = read(MIRROR, MirrorOptions)
        assert (found.warnings, found.problems) == ((), ())
        chain = found.sections["hrit"]
        assert (chain.client_topic, chain.topic, chain.request_port) == ("/1b/hrit-segment", "/1b/hrit", 9096)
        assert (chain.delay, chain.connection_parameters, chain.replacements) == (2.0, {}, {})

    def test_problems(self, read: Read[MirrorOptions]) -> None:
        """A mirror needs providers, a topic and a request port; a destination it finds itself."""
        options = [problem.partition(":")[0] for problem in complaints(read, "[x]\n" + GOOD_MIRROR, MirrorOptions)]
        assert options == ["[x] topic", "[x] request_port", "[x] providers"]

    def test_warnings(self, read: Read[MirrorOptions]) -> None:
        """A mirror watches no directory, replaces no metadata, and takes connection parameters."""
        text = GOOD_MIRROR + "origin = /a\nsensor = x\nconnection_uptime = 3\nconnection_parameters__key = k\n"
        assert warnings(read, text, MirrorOptions) == [
            "[good] sensor: is unknown, and has no effect",
            "[good] connection_uptime: is the old spelling of connection_parameters__connection_uptime, "
            "and still works",
            "[good] origin: has no effect in a mirror's section",
        ]


class TestFile:
    """Files that cannot be used, and what INI files may hold."""

    def test_no_file(self, tmp_path: Path) -> None:
        """A missing file and a directory are reported in one line."""
        with pytest.raises(ConfigError) as caught:
            config_file.read(tmp_path / "none.ini", ServerOptions)
        assert str(caught.value) == f"{tmp_path}/none.ini: cannot be read: No such file or directory"
        with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
            config_file.read(tmp_path, ServerOptions)

    @pytest.mark.parametrize(
        ("data", "complaint"),
        [
            (b"", "nothing to run: the file contains no section"),
            (b"[DEFAULT]\ntopic = /a\n", "nothing to run: the file contains no section"),
            (b"topic = /a\n", "line 1 precedes the first [section]"),
            (b"[a]\n\ntopic = /a\ngeheim\n", "neither section nor option nor comment in line 4"),
            (b"[a]\ntopic = /a\nTopic = /b\n", "[a] topic: is defined twice, the second time in line 3"),
            (b"[a]\n[b]\n[a]\n", "[a] the section is defined twice, the second time in line 3"),
            (b"[a]\n# Norrk\xf6ping\n", "line 2 is not UTF-8 text"),
            (b"[a]\ntopic = /a\n\0\0\0\0", "line 3 contains a control character"),
            (b"[a]\n" + b"#" * ini_and_yaml.MAX_FILE_SIZE, "is larger than 4194304 bytes"),
            (b"[DEFAULT]\nworkers = many\nmax_transfers_per_host = 0\n[a]\norigin = /x\ntopic = /a\n",
             "[DEFAULT] workers: must be an integer: 'many'; max_transfers_per_host: must be between 1 and 1000: '0'"),
            (b"[a]\ntopic = /a\n[b]\norigin = /b\n",
             "[a] origin: is missing: set origin or listen to select the files to announce; "
             "[b] topic: is missing: subject of the announcements"),
            (b"[DEFAULT]\ndelete = perhaps\n[a]\ntopic = /a\norigin = /b\n",
             "[a] delete: must be true or false: 'perhaps' (in [DEFAULT])"),
        ],
        ids=range(12),
    )  # fmt: skip
    def test_unusable(self, tmp_path: Path, data: bytes, complaint: str) -> None:
        """An unusable file is reported with its line, or its section and option, but never its content."""
        path = tmp_path / "site.ini"
        path.write_bytes(data)
        with pytest.raises(ConfigError) as caught:
            config_file.read(path, ServerOptions)
        assert str(caught.value) == f"{path}: {complaint}"

    def test_ini_variants(self, tmp_path: Path) -> None:
        """A byte order mark, foreign line ends, any case, comments and empty options are accepted."""
        path = tmp_path / "site.ini"
        path.write_bytes(
            b"\xef\xbb\xbf# comment\r\n[Hrit 0deg]\r\nORIGIN = /data/100%/{x}\r\n  ; comment\r\n"
            b"Topic:/a\r\nstation=\r\n"
        )
        found = config_file.read(str(path), ServerOptions)
        assert found.sections["Hrit 0deg"].origin == "/data/100%/{x}"
        assert (found.sections["Hrit 0deg"].topic, found.sections["Hrit 0deg"].station) == ("/a", "unknown")
        assert found.warnings == ()

    def test_process(self, read: Read[ServerOptions]) -> None:
        """[DEFAULT] holds the process's options; a section's own count for that section."""
        text = "[DEFAULT]\nsynchronous = FULL\nkeep_finished = 0.5\n"
        text += "max_transfers_per_host = 2\n[two]\norigin = /b\ntopic = /b\n"
        found = read(text + GOOD_SERVER + "max_transfers_per_host = 3\nretry_for = 60\n", ServerOptions)
        assert (found.process.synchronous, found.process.keep_finished, found.process.max_transfers_per_host) == (
            "full",
            0.5,
            2,
        )
        assert [chain.max_transfers_per_host for chain in found.sections.values()] == [2, 3]
        assert [chain.retry_for for chain in found.sections.values()] == [0.0, 60.0]
        assert found.warnings == ()

    def test_shared_work(self, read: Read[ClientOptions]) -> None:
        """Clients and servers share their work, only with a journal on PostgreSQL; the error names the remedy."""
        journal = "journal = postgresql://host/db\n"
        assert read(f"[DEFAULT]\n{journal}fleet = share\n{GOOD_CLIENT}", ClientOptions).process.fleet == "share"
        with pytest.raises(ConfigError, match=r"fleet: share needs .*: set journal = postgresql://\.\.\."):
            read(f"[DEFAULT]\nfleet = share\n{GOOD_CLIENT}", ClientOptions)

    def test_no_shared_work(self, read: Read[ChainOptions]) -> None:
        """Mirrors do not share their work: the error names the remedy."""
        with pytest.raises(ConfigError, match=r"fleet: share is not supported by a mirror.*use fleet = standby"):
            read(f"[DEFAULT]\njournal = postgresql://host/db\nfleet = share\n{GOOD_MIRROR}", MirrorOptions)

    @pytest.mark.parametrize(
        ("default", "section", "problem"),
        [
            ("journal = postgresql://host/db\nfleet = share\n", "request_port = 9094\n", ""),
            ("", "request_port = 9094\n", r"\[hrit\] files: own is for .*: set fleet = share in \[DEFAULT\]"),
            ("journal = postgresql://host/db\nfleet = share\n", "", r"\[hrit\] files: own needs request_port: "),
        ],
    )
    def test_own_files(self, read: Read[ServerOptions], default: str, section: str, problem: str) -> None:
        """Only servers that share their work, and take requests, can have separate disks."""
        text = f"[DEFAULT]\n{default}[hrit]\norigin = /in/{{name}}\ntopic = /a\nfiles = own\n{section}"
        if problem:
            with pytest.raises(ConfigError, match=problem):
                read(text, ServerOptions)
        else:
            found = read(text, ServerOptions)
            assert found.sections["hrit"].files == "own"
            assert re.search(r"^ *files  +own$", config_file.check_report(found), re.MULTILINE)

    @pytest.mark.parametrize(
        ("text", "role"), [(SERVER, ServerOptions), (CLIENT, ClientOptions), (MIRROR, MirrorOptions)]
    )
    def test_cut_anywhere(self, tmp_path: Path, text: str, role: type[ChainOptions]) -> None:
        """A file that was written only in part is read, or refused by a ConfigError, wherever it ends."""
        path = tmp_path / "site.ini"
        data = text.encode()
        for end in range(len(data)):
            path.write_bytes(data[:end])
            self.read_or_refuse(path, role)

    @pytest.mark.parametrize("role", [ServerOptions, ClientOptions, MirrorOptions])
    def test_any_text(self, tmp_path: Path, role: type[ChainOptions]) -> None:
        """No text brings anything but a ConfigError, and no finding is longer than a line."""
        chance = random.Random(20)
        lines = [*SERVER.splitlines(), *CLIENT.splitlines(), *MIRROR.splitlines(), "[DEFAULT]", "", "[x", "=", ": :"]
        signs = "{}[]()<>%:/=;#,@|!.*?\\'\"\t\n\r\0 é\u2028\U0001f6f0aZ09-_~$&+"
        path = tmp_path / "site.ini"
        for _ in range(600):
            text = list("\n".join(chance.choices(lines, k=chance.randint(1, 25))))
            for _ in range(chance.randint(0, 12)):
                at = chance.randrange(len(text) + 1)
                text[at : at + chance.randint(0, 3)] = chance.choices(signs, k=chance.randint(0, 4))
            path.write_text("".join(text), encoding="utf-8", newline="")
            self.read_or_refuse(path, role)

    def read_or_refuse(self, path: Path, role: type[ChainOptions]) -> None:
        """Read the file; each text about it is one line, with the name of the file and without a secret."""
        try:
            found = config_file.read(path, role)
        except ConfigError as error:
            texts = [str(error)]
        else:
            texts = [*found.warnings, *map(str, found.problems), *map(str, found.broken.values()), repr(found)]
            assert "geheim" not in config_file.check_report(found)
        for text in texts:
            assert "geheim" not in text
            assert len(text.splitlines()) == 1
            assert str(path) in text


class TestChanges:
    """Changes between two versions of a file."""

    def test_by_section(self, read: Read[ServerOptions]) -> None:
        """Sections are compared by their meaning, not by their spelling."""
        a, b, c = (f"[{name}]\norigin = /{name}\ntopic = /{name}\nmax_transfers_per_host = 4\n" for name in "abc")
        old = read(a + b, ServerOptions)
        new = read("# comment\n" + c + b.replace("= 4", ": 4"), ServerOptions)
        found = config_file.changes(old, new)
        assert (found.added, found.removed, found.changed, found.unchanged) == (("c",), ("a",), (), ("b",))
        found = config_file.changes(old, read(a + b.replace("= /b", "= /x"), ServerOptions))
        assert (found.added, found.removed, found.changed, found.unchanged) == ((), (), ("b",), ("a",))

    def test_broken_sections_run_on(self, read: Read[ServerOptions]) -> None:
        """A section that became unusable keeps the options it had until it is usable again."""
        a, b = (f"[{name}]\norigin = /{name}\ntopic = /{name}\n" for name in "ab")
        old = read(a + b, ServerOptions)
        found = config_file.changes(old, read(a + "[b]\n", ServerOptions))
        assert (found.removed, found.unchanged) == ((), ("a",))
        assert found.running.sections == old.sections
        again = config_file.changes(found.running, read(a + b, ServerOptions))
        assert (again.added, again.changed, again.unchanged) == ((), (), ("a", "b"))

    def test_process(self, read: Read[ServerOptions]) -> None:
        """Options of the process that differ are named, and change no section."""
        old, new = (read(f"[DEFAULT]\nworkers = {number}\n{GOOD_SERVER}", ServerOptions) for number in (4, 5))
        found = config_file.changes(old, new)
        assert (found.process, found.unchanged) == (("workers",), ("good",))


class TestDescribe:
    """What --check prints."""

    def test_server_section(self, read: Read[ServerOptions]) -> None:
        """The output shows the differences from the defaults, aligned, and then the problems."""
        text = (
            "[DEFAULT]\nworkers = 4\n" + GOOD_SERVER + "info = a=1; b=x,y\ndelete = on\nremove_delay = 5\n"
            "connection_parameters__connection_uptime = 20\naddresses = tcp://a:1 tcp://b:1\nx = 1\n[bad]\n"
        )
        found = read(text, ServerOptions)
        lines = config_file.check_report(found).replace(found.file, "FILE").splitlines()
        assert lines == [
            "FILE: 1 server chain",
            "  workers  4",
            "",
            "[good]",
            "  topic                                     /good",
            "  origin                                    /data/{x}",
            "  addresses                                 tcp://a:1 tcp://b:1",
            "  info                                      a=1; b=x,y",
            "  delete                                    true",
            "  remove_delay                              5",
            "  connection_parameters__connection_uptime  20",
            "",
            "1 warning",
            "  FILE: [good] x: is unknown, and has no effect",
            "",
            "2 problems",
            "  FILE: [bad] topic: is missing: subject of the announcements",
            "  FILE: [bad] origin: is missing: set origin or listen to select the files to announce",
            "",
            "not running: [bad]",
        ]

    def test_client(self, read: Read[ClientOptions]) -> None:
        """A client's providers, lists and replacements are shown as in a file."""
        text = config_file.check_report(read(f"{CLIENT}logn = u:geheim\n", ClientOptions))
        for name, value in [
            ("providers", "hrit.site.org:9010 spare.site.org:9010/1b/hrit-segment [fe80::1]:9010"),
            ("destination", "ftp://sat@archive.site.org:2121/in/{nominal_time:%Y/%m/%d}/{sensor}"),
            ("login", "***"),
            ("logn", "*** (in the metadata)"),
            ("nameservers", "false"),
            ("nameservers", "ns1 ns2"),
            ("platform_name", "MSG4_:Meteosat-11|MSG3_:Meteosat-10 (in the metadata)"),
        ]:
            assert [name, value] in [line.split(maxsplit=1) for line in text.splitlines()]
        assert "geheim" not in text

    def test_no_secret(self, read: Read[ServerOptions]) -> None:
        """No password, key or token is ever printed; where a key file is may be."""
        names = "key secret token client_kwargs__aws_session_token s3_additional_kwargs__ssecustomerkey a_password"
        text = GOOD_SERVER + "".join(f"connection_parameters__{name} = geheim\n" for name in names.split())
        text += "connection_parameters__endpoint_url = https://u:geheim@s3.site.org\nssh_key_filename = /k/id\n"
        shown = config_file.check_report(read(text, ServerOptions))
        assert "geheim" not in shown
        assert "https://u@s3.site.org" in shown
        assert "/k/id" in shown


def test_relative_destination(tmp_path: Path) -> None:
    """A relative destination is a problem that names file, section and option."""
    file = tmp_path / "client.ini"
    file.write_text("[hrit]\nproviders = host:9010\ntopic = /hrit\ndestination = data/in\n")
    with pytest.raises(ConfigError, match=r"client\.ini: \[hrit\] destination: must be an absolute path: "):
        config_file.read(file, ClientOptions)
