"""The options of all daemons.

Each field of the classes below is one option: its name, parser, default (as text in a file) and help. These tables are
used to parse files, to warn about unknown names, and to write the reference page.

An instance is one validated section of a file. Instances are immutable, so thread-safe. Their ``repr`` shows no
values, since some are secrets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Literal, cast

from trollmoves.config import parsers, secrets
from trollmoves.config.option_table import Option, OptionTable, option, option_field, optional, required
from trollmoves.matching.conditions import Conditions
from trollmoves.movers import options as mover_options
from trollmoves.net import client_allowlist, destination_allowlist

Nameservers = tuple[str, ...] | Literal[False] | None
PREFIX = "connection_parameters__"
SHARE = "share"  # value of ``fleet``: all members work
OWN = "own"  # value of ``files``: each member has other files
EVERYTHING = "/"  # the prefix of all subjects


def _subscription(help_text: str) -> str:
    return cast(str, option_field(Option(parsers.subject, "", help_text, if_empty=EVERYTHING)))


def services() -> tuple[str, ...]:
    """Return the field of the services to subscribe to."""
    return option(parsers.word_list, "", "services of the name server to subscribe to; without it all")


def publisher_addresses() -> tuple[str, ...]:
    """Return the field of the publishers to subscribe to."""
    return option(parsers.word_list, "", "publishers to connect to, as `tcp://host:port`")


def nameserver() -> str | Literal[False]:
    """Return the field of the name server."""
    return option(parsers.nameserver, "localhost", "host of the name server to ask for publishers; `False` disables it")


def quiet_time() -> float:
    """Return the field of the time without change after which a file is complete."""
    return option(
        parsers.seconds,
        "2",
        "with `origin`: seconds without change after which a file without an event is complete, where the kernel "
        "cannot say whether it is open for writing",
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class SharedOptions(OptionTable):
    """Options of the process that a section may override."""

    bind_address: str = option(parsers.host, "*", "address to listen on; `*` is all addresses")
    allowed_clients: client_allowlist.ClientAllowlist = option(  # noqa: RUF009  (returns a field)
        lambda value: client_allowlist.parse_allowlist(parsers.word_list(value)),
        "",
        "clients that may send requests: addresses, networks (`192.0.2.0/24`) and, with CURVE, names of keys or public "
        "keys; with addresses and keys a client must match one of each; without it all clients",
    )
    max_transfers_per_host: int = option(parsers.integer(1, 1000), "4", "concurrent transfers to one destination host")
    retry_for: float = option(
        parsers.seconds,
        "0",
        "seconds during which a failed file is retried; 0 is no limit",
    )


@dataclass(frozen=True, kw_only=True)
class ProcessOptions(SharedOptions):
    """Options in [DEFAULT] for the whole process."""

    journal: str = option(
        parsers.text,
        "",
        "database of pending and finished tasks; without it one file per configuration in "
        "`$STATE_DIRECTORY`, `$XDG_STATE_HOME/trollmoves` or `~/.local/state/trollmoves`; several hosts "
        "share `postgresql://...`, see [scaling](scaling.md)",
    )
    fleet: str = option(
        parsers.choice("standby", SHARE),
        "standby",
        "work of the hosts that share a journal on PostgreSQL; `standby`: one works, the others wait to take over; "
        "`share`: all work, see [scaling](scaling.md#shared-work)",
    )
    fleet_lease: int = option(
        parsers.integer(2, 600),
        "10",
        "seconds without contact to PostgreSQL after which other hosts take over the work of this one; the same on all",
    )
    synchronous: str = option(
        parsers.choice("normal", "full"),
        "normal",
        "`full`: the journal survives a power failure too, but writes are slower",
    )
    keep_finished: float = option(parsers.days, "7", "days that finished tasks are kept in the journal")
    max_finished: int = option(
        parsers.integer(1000, 1_000_000_000),
        "5000000",
        "maximum number of finished tasks in the journal, of any age; up to five per file",
    )
    keep_announcements: float = option(parsers.days, "7", "days that announcements are kept for clients to catch up")
    max_announcements: int = option(
        parsers.integer(0, 1_000_000_000), "1000000", "maximum number of announcements kept per section, of any age"
    )
    stop_timeout: float = option(
        parsers.seconds,
        "10",
        "seconds to wait for running transfers at shutdown; unfinished ones are repeated after the next start",
    )
    workers: int = option(parsers.integer(1, 1000), "16", "concurrent transfers")
    processors: tuple[int, ...] = option(
        parsers.processors,
        "",
        "processors of this host to run on, such as `0,2-3`; without it all; see [processors](systemd.md#processors)",
    )
    metrics_port: int | None = optional(
        parsers.port, "port on which Prometheus can scrape metrics; without it none; see [monitoring](monitoring.md)"
    )
    metrics_address: str = option(
        parsers.host, "127.0.0.1", "address on which `metrics_port` listens; `*` is all addresses"
    )
    metrics_file: str = option(
        parsers.text,
        "",
        "file `*.prom` to write metrics to every 15 seconds, for the textfile collector of node_exporter",
    )
    web_port: int | None = optional(
        parsers.port, "port of the [status page](web.md) of this daemon, which is a process of its own; without it none"
    )
    web_address: str = option(
        parsers.host, "127.0.0.1", "address on which `web_port` listens; `*` is all IPv4 addresses"
    )
    web_token_file: str = option(
        parsers.text,
        "",
        "file with the token for actions on the page; without it `$TROLLMOVES_WEB_TOKEN`, or the page is read-only",
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class ChainOptions(SharedOptions):
    """Options of every section."""

    role: ClassVar[str]
    name: str
    priority: int = option(
        parsers.integer(-1000, 1000), "0", "pending tasks run before those of sections with a lower priority"
    )
    probe_interval: float = option(
        parsers.positive_seconds,
        "120",
        "maximum seconds between two attempts while a host or directory fails; a reload retries immediately",
    )
    expect_every: float = option(
        parsers.seconds,
        "0",
        "alarm if no file comes for this number of seconds; 0 is never; see [alarms](operating.md#alarms)",
    )
    max_age: float = option(
        parsers.seconds, "0", "alarm if a file waits for more than this number of seconds; 0 is never"
    )
    max_failed: int | None = optional(
        parsers.integer(0, 1_000_000_000), "alarm if more files than this have failed; without it never"
    )
    on_alarm: tuple[str, ...] = option(
        parsers.command,
        "",
        "command to run when an alarm starts or ends, without a shell, for 30 seconds at most; the facts are in its "
        "environment",
    )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r})"


@dataclass(frozen=True, kw_only=True, repr=False)
class ServerOptions(ChainOptions):
    """One chain of a server: the files it announces, and how it delivers them."""

    role = "server"
    topic: str = required(parsers.subject, "subject of the announcements")
    origin: str | None = optional(
        parsers.text,
        "files to announce: directory and file name; both may contain fields in trollsift's syntax; "
        "this or `listen` is required",
    )
    listen: str | None = optional(
        parsers.subject, "instead of `origin`: subject of messages about files on this host, to announce these files"
    )
    services: tuple[str, ...] = option(parsers.word_list, "", "with `listen`: services to subscribe to; without it all")
    topics: tuple[str, ...] = option(
        parsers.word_list, "", "with `listen`: subjects to subscribe to, instead of its value"
    )
    addresses: tuple[str, ...] = option(
        parsers.word_list, "", "with `listen`: publishers to connect to, as `tcp://host:port`"
    )
    nameserver: str | Literal[False] = option(
        parsers.nameserver, "localhost", "with `listen`: host of the name server; `False` disables it"
    )
    addr_listener: bool = option(parsers.boolean, "true", "with `listen`: subscribe to services that start later")
    timeout: float = option(parsers.seconds, "10", "with `listen`: seconds to wait for the name server")
    repeat_after: float = option(
        parsers.seconds,
        "300",
        "with `listen`: seconds after an announcement during which a repeated message with the same metadata about the "
        "unchanged file is ignored; later the file is announced again",
    )
    translate: bool = option(
        parsers.boolean,
        "false",
        "with `listen`: accepted, without effect: the location of a file is its `uri`, not the sender of the message",
    )
    request_port: int | None = optional(
        parsers.port,
        "port for requests; without it messages contain the location of the file (remote file system mode)",
    )
    request_address: str | None = optional(
        parsers.host, "host in announcements to send requests to; without it the address of this host"
    )
    allowed_destinations: tuple[destination_allowlist.DestinationPattern, ...] = option(
        lambda value: tuple(map(destination_allowlist.parse_pattern, parsers.word_list(value))),
        "",
        "destinations that requests may name: `scheme://[user@]host[:port]/path` or a path on this host, including all "
        "directories below; `*` is allowed in user, host and path, and as a scheme for all but paths on this host; "
        "without it all destinations",
    )
    files: str = option(
        parsers.choice("shared", OWN),
        "shared",
        "with `fleet = share`: `shared`: all members have the same files; `own`: each member serves the "
        "files on its disk, which others do not have; see [scaling](scaling.md#files-on-separate-disks)",
    )
    external_symlinks: str = option(
        parsers.choice("owned", "all", "none"),
        "owned",
        "with `origin`: symbolic links to files outside it to announce: `all`, `none`, or those `owned` by the user of "
        "the server, by root, or by the owner of the file",
    )
    quiet_time: float = quiet_time()
    station: str = option(parsers.text, "unknown", "station name in the reply to a `ping`")
    info: dict[str, str | list[str]] = option(  # noqa: RUF009  (returns a field)
        parsers.info, "", "metadata to add to announcements: `key=value;key2=a,b`; a comma makes a list"
    )
    compression: str | None = optional(
        parsers.choice_or_none("xrit", "bzip"), "unpack files before announcing them: `xrit` or `bzip`"
    )
    prog: str | None = optional(parsers.text, "path of xRITDecompress; without it that in `$PATH`")
    working_directory: str | None = optional(
        parsers.text, "directory for unpacked files; without it the temporary directory of the system"
    )
    unpack: str | None = optional(
        parsers.choice_or_none("tar", "zip"),
        "in remote file system mode: announce the members of an archive as a dataset: `tar` or `zip`",
    )
    delete: bool = option(
        parsers.boolean,
        "false",
        "remove a file after its delivery or when a client no longer needs it; with `compression` the packed file is "
        "removed after unpacking",
    )
    remove_delay: float = option(parsers.seconds, "30", "seconds before a file is removed")
    watchdog_timeout: float = option(
        parsers.positive_seconds, "1.0", "seconds between scans of a polled directory (`-w`)"
    )
    connection_parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, repr=False)
class ClientOptions(ChainOptions):
    """One chain of a client: its providers and its destination."""

    role = "client"
    providers: tuple[parsers.ProviderAddress, ...] = required(
        parsers.providers,
        "servers, mirrors and peer clients: `host:port`, or `host:port/topic` with another topic than `topic`",
    )
    destination: str = required(
        parsers.text,
        "URL of the directory to deliver files to; it may contain metadata fields; schemes: none or `file`, `ftp`, "
        "`ftps`, `scp`, `sftp`, `s3`",
    )
    topic: str = _subscription(
        "prefix of the subjects to accept, for providers without `/topic`; with an empty value all subjects"
    )
    login: str | None = optional(
        secrets.resolve_login, "`user[:password]` for the destination; only sent in requests", secret=True
    )
    publish_port: int = option(parsers.integer(0, 65535), "0", "port to publish messages on; 0 is any free port")
    nameservers: Nameservers = optional(  # noqa: RUF009  (returns a field)
        parsers.nameservers,
        "hosts of the name servers for that port; `False` disables them, without it multicast",
    )
    heartbeat: bool = option(parsers.boolean, "true", "process the heartbeats of the providers")
    heartbeat_alarm_scale: float = option(
        parsers.number, "0", "reconnect after this number of heartbeat intervals without a heartbeat; 0 is never"
    )
    compression: str | None = optional(
        parsers.choice_or_none("tar", "xrit", "bzip"),
        "unpack received files with matching names: `tar`, `xrit` or `bzip`",
    )
    xritdecompressor: str | None = optional(parsers.text, "path of xRITDecompress; without it that in `$PATH`")
    block_size: int = option(parsers.integer(1, 2**30), "4096", "block size in bytes for unpacking")
    delete: bool = option(parsers.boolean, "false", "remove archives after unpacking")
    req_timeout: float = option(parsers.positive_seconds, "1", "seconds to wait for a short reply of a server")
    transfer_req_timeout: float = option(
        parsers.positive_seconds,
        "10",
        "seconds to wait for the reply to a request; longer transfers are delivered nevertheless",
    )
    create_target_directory: bool = option(parsers.boolean, "true", "create a destination directory on this host")
    ftp_root: str = option(parsers.text, "/", "path on this host that precedes the path of the destination")
    backup_targets: tuple[str, ...] = option(
        parsers.word_list,
        "",
        "hosts to try if the host of the destination is unavailable, with its user and port unless they have others",
    )
    processing_delay: float = option(parsers.seconds, "0", "seconds that a hot spare waits for its peer")
    takeover_after: float = option(
        parsers.positive_seconds,
        "30",
        "seconds without a message of the peer about a file before a hot spare takes over",
    )
    repeat_after: float = option(
        parsers.seconds,
        "300",
        "seconds after a file was fetched, and after its provider was connected, during which a repeated announcement "
        "of the unchanged file with the same metadata is ignored; later the file is fetched and published again",
    )
    replacements: dict[str, parsers.MetadataReplacement] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, repr=False)
class MirrorOptions(ClientOptions, ServerOptions):
    """One chain of a mirror: options of a client and of a server in one section."""

    role = "mirror"
    topic: str = required(parsers.subject, "subject of the announcements")
    client_topic: str = _subscription(
        "prefix of the subjects to accept from the providers; without it `topic`, with an empty value all subjects"
    )
    request_port: int | None = cast(
        "int | None", option_field(Option(parsers.port, None, "port for requests", required=True))
    )
    destination: str = option(
        parsers.text, "", "URL of the directory to fetch files to; without it a directory in the working directory"
    )
    delay: float = option(parsers.seconds, "0", "seconds between receiving and republishing an announcement")


@dataclass(frozen=True, kw_only=True, repr=False)
class MoveItOptions(ServerOptions):
    """One section of ``move_it.py``: the files of a directory, and their destinations."""

    role = "move_it"
    topic: str = option(
        parsers.subject, "", "with `-p`: subject of the messages about delivered files; it may contain metadata fields"
    )
    origin: str | None = cast(
        "str | None",
        option_field(
            Option(
                parsers.text,
                None,
                "files to deliver: directory and file name; both may contain fields in trollsift's syntax",
                required=True,
            )
        ),
    )
    destinations: tuple[str, ...] = required(
        parsers.destinations,
        "URLs or paths, separated by blanks, that each file is copied to; with a trailing `/`, or if it is an existing "
        "directory, the file keeps its name; they may contain metadata fields; schemes: none or `file`, `ftp`, `ftps`, "
        "`scp`, `sftp`, `s3`",
    )
    delete: bool = option(
        parsers.boolean,
        "false",
        "remove a file when all destinations have received it; with `compression` the packed file is removed after "
        "unpacking",
    )
    request_port: int | None = optional(
        parsers.port, "adds `request_address`, with this port, to the messages; nothing listens on it"
    )
    request_address: str | None = optional(
        parsers.host, "host in that `request_address`; without it the address of this host"
    )


@dataclass(frozen=True, kw_only=True)
class DispatcherOptions(ProcessOptions):
    """Options of a dispatcher process: the publishers for all its targets."""

    subscribe_addresses: tuple[str, ...] = publisher_addresses()
    nameserver: str | Literal[False] = nameserver()
    subscribe_services: tuple[str, ...] = services()


@dataclass(frozen=True)
class Alias:
    """Replacements for the values of metadata item ``key``, available under ``name`` when paths are composed."""

    key: str
    name: str
    values: Mapping[object, object]


@dataclass(frozen=True, kw_only=True, repr=False)
class DispatchConfig:
    """One route of a target: its messages and its destination. ``directory`` and ``filepattern`` may have fields."""

    topics: tuple[str, ...] = ()
    conditions: Conditions | None = None
    host: str = ""
    directory: str = ""
    filepattern: str = ""
    aliases: tuple[Alias, ...] = ()


@dataclass(frozen=True, kw_only=True, repr=False)
class TargetOptions(ChainOptions):
    """One target of a dispatcher. Its ``dispatch_configs`` have the effective host, directory and file pattern."""

    role = "dispatcher"
    host: str = option(
        parsers.text,
        "",
        "URL of the host, as `sftp://user@host:22`, without directory; without it, or without `scheme://`, files are "
        "delivered to this host",
    )
    login: str | None = optional(
        secrets.resolve_login, "`user[:password]` for hosts without a user in the URL", secret=True
    )
    directory: str = option(parsers.text, "", "directory on the host; it may contain metadata fields")
    filepattern: str = option(
        parsers.text, "", "file name on the host; it may contain metadata fields; without it the name is kept"
    )
    publish_topic: str = option(
        parsers.subject,
        "",
        "with `-p`: subject of the messages about delivered files; it may contain metadata fields",
    )
    origin: str = option(
        parsers.text,
        "",
        "new files to deliver, instead of subscribing to messages: directory and file name, with fields in trollsift's "
        "syntax",
    )
    quiet_time: float = quiet_time()
    collections: bool = option(
        parsers.boolean,
        "false",
        "process messages of the type `collection` too: their files are delivered and published one by one",
    )
    repeat_after: float = option(
        parsers.seconds,
        "300",
        "seconds after a delivery during which a repeated message with the same metadata about the unchanged file is "
        "ignored; later the file is delivered and published again",
    )
    connection_parameters: dict[str, Any] = field(default_factory=dict)
    dispatch_configs: tuple[DispatchConfig, ...] = ()

    def details(self) -> Iterable[tuple[str, object]]:
        """Return the topics of each dispatch config."""
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

# Spellings from before connection_parameters; each sets the parameter of the same name.
LEGACY_SPELLINGS = ("connection_uptime", "ssh_key_filename", "ssh_connection_timeout", "ssh_private_key_file")

# Options of old files, without effect: the publishing port of a server is an argument of its command.
LEGACY_IGNORED = ("publisher_port", "publish_port", "origin_inotify_base_dir_skip_levels", "delete_hook")

# Without effect in move_it.py: it pushes files without requests.
NOT_OF_MOVE_IT = (
    *("listen", "services", "topics", "addresses", "nameserver", "addr_listener", "timeout", "repeat_after"),
    *("translate", "station", "allowed_destinations", "unpack", "remove_delay", "files"),
)

# Without effect in a mirror: it subscribes to its providers only and publishes on one port for all chains.
NOT_OF_A_MIRROR = (
    *("origin", "listen", "services", "topics", "addresses", "nameserver", "addr_listener", "timeout", "translate"),
    *("quiet_time", "unpack", "watchdog_timeout", "processing_delay", "takeover_after", "publish_port", "nameservers"),
    "files",
)


def parameters() -> dict[str, Option]:
    """Return the connection parameters by name, from the option table of the movers."""
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
    """Return a parser that returns the text if ``check`` raises no ValueError."""

    def parse(value: str) -> str:
        check(value)
        return value

    return parse
