"""The options of every daemon, declared once.

Each field of the classes below is one option: its name, how its text is read, its default as it would stand in a file,
and what it means. From this table come the reading of files, the warnings about unknown names, and the reference page
(``python -m trollmoves.config.options > doc/options.md``).

An instance is one section of a file, read and checked. None of them is ever changed, so any thread may use it. Their
``repr`` shows no value, since some are secrets.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar, cast

from trollmoves.config import parsers, secrets
from trollmoves.matching.conditions import Conditions
from trollmoves.movers import options as mover_options
from trollmoves.net import client_allowlist, destination_allowlist

T = TypeVar("T")

Nameservers = tuple[str, ...] | Literal[False] | None
PREFIX = "connection_parameters__"


class Option(NamedTuple):
    """What is known about one option."""

    parse: Callable[[str], object]
    default: str | None  # as it would stand in a file; None when there is none
    help: str
    required: bool = False
    secret: bool = False


def _option(parse: Callable[[str], T], default: str, meaning: str, *, secret: bool = False) -> T:
    return cast(T, _field(Option(parse, default, meaning, secret=secret)))


def _required(parse: Callable[[str], T], meaning: str) -> T:
    return cast(T, _field(Option(parse, "", meaning, required=True)))


def _optional(parse: Callable[[str], T], meaning: str, *, secret: bool = False) -> T | None:
    return cast(T | None, _field(Option(parse, None, meaning, secret=secret)))


def _field(option: Option) -> object:
    default = (lambda: None) if option.default is None else partial(option.parse, option.default)
    return field(default_factory=default, metadata={"option": option})


@dataclass(frozen=True, kw_only=True, repr=False)
class SharedOptions:
    """What [DEFAULT] says for the process, and a section may say for itself."""

    bind_address: str = _option(parsers.host, "*", "address that the ports are opened on; `*` is every address")
    allowed_clients: client_allowlist.ClientAllowlist = _option(  # noqa: RUF009  (it makes a field)
        lambda value: client_allowlist.parse_allowlist(parsers.word_list(value)),
        "",
        "who may ask: addresses, networks (`192.0.2.0/24`) and, with CURVE, names of keys or public keys; an address "
        "must be one of them, and where keys stand, the key too; without it anyone may",
    )
    max_transfers_per_host: int = _option(
        parsers.integer(1, 1000), "4", "transfers at one time to one destination host"
    )
    retry_for: float = _option(
        parsers.seconds,
        "604800",
        "seconds for which a file that cannot be had is asked for again; the default is 7 days",
    )

    def details(self) -> Iterable[tuple[str, object]]:
        """Give what ``--check`` shows beside the options in the table: a name and a value for each line."""
        return ()


@dataclass(frozen=True, kw_only=True)
class ProcessOptions(SharedOptions):
    """What stands in [DEFAULT] for the whole process."""

    journal: str = _option(
        parsers.text,
        "",
        "file that remembers what is done and what is still to do; without it a file for each configuration in "
        "`$STATE_DIRECTORY`, `$XDG_STATE_HOME/trollmoves` or `~/.local/state/trollmoves`",
    )
    synchronous: str = _option(
        parsers.choice("normal", "full"),
        "normal",
        "`full`: what is noted in the journal survives a power cut too, and is written more slowly",
    )
    keep_finished: float = _option(parsers.days, "7", "days for which the journal keeps what is done")
    max_finished: int = _option(
        parsers.integer(1000, 1_000_000_000),
        "5000000",
        "tasks that are done kept at most in the journal, whatever their age; up to five for each file",
    )
    keep_announcements: float = _option(
        parsers.days, "7", "days for which announcements are kept for peers to catch up"
    )
    max_announcements: int = _option(
        parsers.integer(0, 1_000_000_000), "1000000", "announcements of a section kept at most, whatever their age"
    )
    stop_timeout: float = _option(
        parsers.seconds,
        "10",
        "seconds that running transfers are given at a stop; the rest is done after the next start",
    )
    workers: int = _option(parsers.integer(1, 1000), "16", "transfers at one time")


@dataclass(frozen=True, kw_only=True, repr=False)
class ChainOptions(SharedOptions):
    """What every section has."""

    role: ClassVar[str]
    name: str
    priority: int = _option(
        parsers.integer(-1000, 1000), "0", "what waits for a worker goes before that of sections with a lower priority"
    )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r})"


@dataclass(frozen=True, kw_only=True, repr=False)
class ServerOptions(ChainOptions):
    """One chain of a server: the files it announces, and how it hands them out."""

    role = "server"
    topic: str = _required(parsers.subject, "subject of the announcements")
    origin: str | None = _optional(
        parsers.text,
        "files to announce: directory and file name, with fields in trollsift's syntax, in the directory too; "
        "this or `listen` is required",
    )
    listen: str | None = _optional(
        parsers.subject, "instead of `origin`: subject of messages about files on this host, which are announced again"
    )
    services: tuple[str, ...] = _option(
        parsers.word_list, "", "with `listen`: the services to listen to; without it any"
    )
    topics: tuple[str, ...] = _option(
        parsers.word_list, "", "with `listen`: the subjects to listen to, instead of its value"
    )
    addresses: tuple[str, ...] = _option(parsers.word_list, "", "with `listen`: the publishers, as `tcp://host:port`")
    nameserver: str | Literal[False] = _option(
        parsers.nameserver, "localhost", "with `listen`: host of the name server; `False` is none"
    )
    addr_listener: bool = _option(parsers.boolean, "true", "with `listen`: follow services that come later")
    timeout: float = _option(parsers.seconds, "10", "with `listen`: seconds to wait for the name server")
    translate: bool = _option(
        parsers.boolean,
        "false",
        "with `listen`: accepted; where a file is, its `uri` says, and not the sender of the message",
    )
    request_port: int | None = _optional(
        parsers.port,
        "port for requests; without it a message tells where the file can be read (remote file system mode)",
    )
    request_address: str | None = _optional(
        parsers.host, "host that announcements name for requests; without it this host's address"
    )
    allowed_destinations: tuple[destination_allowlist.DestinationPattern, ...] = _option(
        lambda value: tuple(map(destination_allowlist.parse_pattern, parsers.word_list(value))),
        "",
        "where requests may have files sent: `scheme://host[:port]/path` or a path on this host, and all below; `*` in "
        "host or path; without it anywhere that this host can reach",
    )
    external_symlinks: str = _option(
        parsers.choice("owned", "all", "none"),
        "owned",
        "with `origin`: symbolic links in it that lead out of it: `all` are announced, `none` is, or those `owned` by "
        "the server's user, by root, or by the owner of the file",
    )
    station: str = _option(parsers.text, "unknown", "what the answer to a `ping` tells")
    info: dict[str, str | list[str]] = _option(  # noqa: RUF009  (it makes a field)
        parsers.info, "", "metadata to add to announcements: `key=value;key2=a,b`; a comma makes a list"
    )
    compression: str | None = _optional(
        parsers.choice_or_none("xrit", "bzip"), "unpack files before they are announced: `xrit` or `bzip`"
    )
    prog: str | None = _optional(parsers.text, "path of xRITDecompress; without it that in `$PATH`")
    working_directory: str | None = _optional(
        parsers.text, "where unpacked files go; without it the system's temporary directory"
    )
    unpack: str | None = _optional(
        parsers.choice_or_none("tar", "zip"),
        "in remote file system mode: announce the members of an archive as a dataset: `tar` or `zip`",
    )
    delete: bool = _option(
        parsers.boolean,
        "false",
        "remove a file when it was delivered or a client said that it needs it no more; with `compression` the packed "
        "file goes when it is unpacked",
    )
    remove_delay: float = _option(parsers.seconds, "30", "seconds before a file is removed")
    watchdog_timeout: float = _option(
        parsers.positive_seconds, "1.0", "seconds between two looks at a polled directory (`-w`)"
    )
    connection_parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, repr=False)
class ClientOptions(ChainOptions):
    """One chain of a client: whom it hears, and where its files go."""

    role = "client"
    providers: tuple[parsers.ProviderAddress, ...] = _required(
        parsers.providers,
        "servers, mirrors and peer clients: `host:port`, or `host:port/topic` for one with a topic of its own",
    )
    destination: str = _required(
        parsers.text,
        "URL of the directory that files are sent to, with fields of the metadata in it; schemes: none or `file`, "
        "`ftp`, `ftps`, `scp`, `sftp`, `s3`",
    )
    topic: str = _option(
        parsers.subject, "", "start of the subjects to take from all providers without a topic of their own"
    )
    login: str | None = _optional(
        secrets.resolve, "`user[:password]` for the destination; stands in requests only", secret=True
    )
    publish_port: int = _option(parsers.integer(0, 65535), "0", "port for the messages this chain publishes; 0 is any")
    nameservers: Nameservers = _optional(  # noqa: RUF009  (it makes a field)
        parsers.nameservers, "hosts of the name servers to tell of that port; `False` is none, without it multicast"
    )
    heartbeat: bool = _option(parsers.boolean, "true", "follow the heartbeats of the providers")
    heartbeat_alarm_scale: float = _option(
        parsers.number, "0", "connect again after so many intervals without a heartbeat; 0 is never"
    )
    compression: str | None = _optional(
        parsers.choice_or_none("tar", "xrit", "bzip"),
        "unpack files that arrived: `tar`, `xrit` or `bzip`, by their names",
    )
    xritdecompressor: str | None = _optional(parsers.text, "path of xRITDecompress; without it that in `$PATH`")
    block_size: int = _option(parsers.integer(1, 2**30), "4096", "bytes that are unpacked at a time")
    delete: bool = _option(parsers.boolean, "false", "remove the archive after it was unpacked")
    req_timeout: float = _option(parsers.positive_seconds, "1", "seconds to wait for a short answer of a server")
    transfer_req_timeout: float = _option(
        parsers.positive_seconds,
        "10",
        "seconds to wait for the answer to a request; a longer transfer is delivered all the same",
    )
    create_target_directory: bool = _option(parsers.boolean, "true", "make a destination directory on this host")
    ftp_root: str = _option(parsers.text, "/", "what stands on this host before the destination's path")
    backup_targets: tuple[str, ...] = _option(
        parsers.word_list, "", "hosts to try when the destination's own does not answer, with its user and port"
    )
    processing_delay: float = _option(parsers.seconds, "0", "seconds that a hot spare waits for its peer")
    takeover_after: float = _option(
        parsers.positive_seconds, "30", "seconds after a peer's last word about a file until a hot spare takes it over"
    )
    replacements: dict[str, parsers.MetadataReplacement] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, repr=False)
class MirrorOptions(ClientOptions, ServerOptions):
    """One chain of a mirror: a client's and a server's options in one section."""

    role = "mirror"
    topic: str = _required(parsers.subject, "subject of the announcements")
    client_topic: str = _option(
        parsers.subject, "", "start of the subjects to take from the providers; without it that of `topic`"
    )
    request_port: int | None = cast(
        "int | None", _field(Option(parsers.port, None, "port for requests", required=True))
    )
    destination: str = _option(
        parsers.text, "", "URL of the directory that files are fetched to; without it one in the working directory"
    )
    delay: float = _option(parsers.seconds, "0", "seconds before something heard is announced again")


@dataclass(frozen=True, kw_only=True)
class DispatcherOptions(ProcessOptions):
    """What a dispatcher has beside: whom all its targets hear."""

    subscribe_addresses: tuple[str, ...] = _option(parsers.word_list, "", "publishers to hear, as `tcp://host:port`")
    nameserver: str | Literal[False] = _option(
        parsers.nameserver, "localhost", "host of the name server that knows the publishers; `False` is none"
    )
    subscribe_services: tuple[str, ...] = _option(
        parsers.word_list, "", "services to hear of those that the name server knows; without it all"
    )


@dataclass(frozen=True)
class Alias:
    """What stands for the values of a metadata item when names are composed, under this name."""

    key: str
    name: str
    values: Mapping[object, object]


@dataclass(frozen=True, kw_only=True, repr=False)
class DispatchConfig:
    """One way to a target: which messages take it, and where it leads. ``host`` has no fields, the others may."""

    topics: tuple[str, ...] = ()
    conditions: Conditions | None = None
    host: str = ""
    directory: str = ""
    filepattern: str = ""
    aliases: tuple[Alias, ...] = ()


@dataclass(frozen=True, kw_only=True, repr=False)
class TargetOptions(ChainOptions):
    """One target of a dispatcher. Host, directory and name are in each of its ``dispatch_configs`` as they count."""

    role = "dispatcher"
    host: str = _option(
        parsers.text,
        "",
        "URL of the host, as `sftp://user@host:22`, without directory; without it, or with a host that has no "
        "`scheme://`, files go to this host",
    )
    login: str | None = _optional(secrets.resolve, "`user[:password]` for hosts whose URL names no user", secret=True)
    directory: str = _option(parsers.text, "", "directory there, with fields of the metadata in it")
    filepattern: str = _option(
        parsers.text, "", "name that a file gets there, with fields of the metadata in it; without it its own"
    )
    publish_topic: str = _option(
        parsers.subject,
        "",
        "with `-p`: subject, with fields of the metadata in it, of the messages about delivered files",
    )
    origin: str = _option(
        parsers.text,
        "",
        "files to deliver as they appear, instead of listening to messages: directory and file name, with fields in "
        "trollsift's syntax",
    )
    connection_parameters: dict[str, Any] = field(default_factory=dict)
    dispatch_configs: tuple[DispatchConfig, ...] = ()

    def details(self) -> Iterable[tuple[str, object]]:
        """Give what each dispatch config takes."""
        for number, config in enumerate(self.dispatch_configs, start=1):
            when = "" if config.conditions is None else ", under conditions"
            yield f"dispatch_configs {number}", f"{'every file' if self.origin else ' '.join(config.topics)}{when}"


_BY_KIND: Mapping[type, Callable[[str], object]] = MappingProxyType(
    {
        bool: parsers.boolean,
        float: parsers.seconds,
        int: parsers.integer(0, 2**40),
        str: parsers.text,
        dict: parsers.group,
    }
)

# Spellings from before connection_parameters; each is read as the parameter of its name.
LEGACY_SPELLINGS = ("connection_uptime", "ssh_key_filename", "ssh_connection_timeout", "ssh_private_key_file")

# They stand in old files and have no effect: the publishing port of a server is an argument of its command.
LEGACY_IGNORED = ("publisher_port", "publish_port", "origin_inotify_base_dir_skip_levels")

# Of a server or a client, and nothing for a mirror: it hears its providers only, and publishes on one port for all.
NOT_OF_A_MIRROR = (
    *("origin", "listen", "services", "topics", "addresses", "nameserver", "addr_listener", "timeout", "translate"),
    *("unpack", "watchdog_timeout", "processing_delay", "takeover_after", "publish_port", "nameservers"),
)


def options_of(role: type[SharedOptions]) -> dict[str, Option]:
    """Return the options of a role by their names, its own before those it has from others."""
    found = {item.name: item.metadata["option"] for item in fields(role) if "option" in item.metadata}
    own = [name for name in found if name in inspect.get_annotations(role)]
    return {name: found[name] for name in [*own, *(name for name in found if name not in own)]}


def takes_parameters(role: type[SharedOptions]) -> bool:
    """Tell whether a section of this role has connection parameters."""
    return "connection_parameters" in {item.name for item in fields(role)}


def parameters() -> dict[str, Option]:
    """Return the connection parameters by their names: the movers' own table, read as a file is."""
    return {
        item.name: Option(
            secrets.resolve if item.secret else _checked(item.check) if item.check else _BY_KIND[item.kind],
            None if item.default is None else f"{item.default:g}" if item.kind is float else str(item.default).lower(),
            f"{item.help} ({', '.join(filter(None, item.schemes))})",
            secret=item.secret,
        )
        for item in mover_options.OPTIONS
    }


def _checked(check: Callable[[str], object]) -> Callable[[str], str]:
    """Return a function that reads a text that a check raises no ValueError about."""

    def read(value: str) -> str:
        check(value)
        return value

    return read


def reference_page() -> str:
    """Return the reference page of all options, as Markdown."""
    lines = [_INTRODUCTION]
    for title, text, role, shown_elsewhere in _CHAPTERS:
        lines += [f"## {title}", "", text, ""]
        skipped = {name for other in shown_elsewhere for name in options_of(other)} - set(inspect.get_annotations(role))
        lines += _rows((name, option) for name, option in options_of(role).items() if name not in skipped)
    lines += ["## Connection parameters", "", _PARAMETERS_TEXT, ""]
    lines += _rows(parameters().items())
    lines += [
        "## Old spellings",
        "",
        _OLD_TEXT.format(folded=_listed(LEGACY_SPELLINGS), ignored=_listed(LEGACY_IGNORED)),
    ]
    return "\n".join(lines) + "\n"


def _rows(options: Iterable[tuple[str, Option]]) -> Iterator[str]:
    yield "| option | default | meaning |\n|---|---|---|"
    for name, option in options:
        default = "**required**" if option.required else f"`{option.default}`" if option.default else "-"
        meaning = option.help.replace("|", "\\|")
        yield f"| `{name}` | {default} | {meaning} |"
    yield ""


_INTRODUCTION = """\
# Options

<!-- Written by `python -m trollmoves.config.options > doc/options.md`; change the table in that module instead. -->

Server, client and mirror read an INI file, the dispatcher that or YAML: one section is one chain, and `[DEFAULT]`
holds what is the same for all. Names are not case-sensitive. There is no interpolation: a `%` is a `%`. A comment has
a line of its own that starts with `#` or `;`. An option without a value counts as absent. Truth is `true`, `yes`,
`on`, `1` or `false`, `no`, `off`, `0`; lists are cut at blanks and commas; times are in seconds unless the table says
otherwise.

A section that cannot be used is told with its file, section and option, and does not keep the others from running. An
unknown option is told too, with the one that was probably meant. `--check` prints what would run.
"""


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


_CHAPTERS: tuple[tuple[str, str, type[SharedOptions], tuple[type[SharedOptions], ...]], ...] = (
    ("The process", "In `[DEFAULT]`, for the whole process.", ProcessOptions, (SharedOptions,)),
    (
        "The process, or one section",
        "In `[DEFAULT]` for all, or in a section for itself.",
        SharedOptions,
        (),
    ),
    ("Server", "A section of `move_it_server.py`.", ServerOptions, (SharedOptions,)),
    (
        "Client",
        "A section of `move_it_client.py`. **Any other name** replaces the metadata item of that name in what the "
        "client publishes, where the message has it: `sensor = abi` by a text, `satellite = G16:GOES-16|G17:GOES-17` "
        "by a map. A value that is not in the map stays. A list is never looked up in a map. The options of this table "
        "replace nothing.",
        ClientOptions,
        (SharedOptions,),
    ),
    (
        "Mirror",
        "A section of `move_it_mirror.py` takes the client's options and the server's; what both have means what it "
        f"means for the client. Without effect are {_listed(NOT_OF_A_MIRROR)}. These are its own, or differ:",
        MirrorOptions,
        (ClientOptions, ServerOptions),
    ),
    (
        "Dispatcher",
        "In `posttroll_subscriber` of a file for `dispatcher.py`, for all targets; see [dispatcher](dispatcher.md).",
        DispatcherOptions,
        (ProcessOptions,),
    ),
    (
        "Dispatcher target",
        "A target of `dispatcher.py`, in YAML or INI. `topics`, `conditions`, `aliases` and `dispatch_configs` are in "
        "[dispatcher](dispatcher.md).",
        TargetOptions,
        (SharedOptions,),
    ),
)

_PARAMETERS_TEXT = """\
For the transfers of servers, mirrors and dispatchers. In a file each stands with `connection_parameters__` before
its name, as in `connection_parameters__ssh_key_filename = /home/sat/.ssh/id_ed25519`; a further `__` leads into a
group, as in `connection_parameters__client_kwargs__endpoint_url = https://s3.site.org`. Names that are not listed
are told, and handed on: `0`, `false`, `1` and `true` as booleans, all else as text.

A secret may stand elsewhere: the value of `login`, `password`, `ssh_key_passphrase`, `key`, `secret`, `token`, and of
any name that sounds like one of these, may be `file:/path` or `env:NAME`; see [security](security.md)."""

_OLD_TEXT = """\
Without `connection_parameters__` before them, these are still read as the parameters of these names: {folded}.

These stand in old files and have no effect on a server: {ignored}."""


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    sys.stdout.write(reference_page())
