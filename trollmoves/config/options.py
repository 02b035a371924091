"""The options of all daemons.

Each field of the classes below is one option: its name, parser, default (as text in a file) and help. These tables are
used to parse files, to warn about unknown names, and to write the reference page
(``python -m trollmoves.config.options > doc/options.md``).

An instance is one validated section of a file. Instances are immutable, so thread-safe. Their ``repr`` shows no
values, since some are secrets.
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
EVERYTHING = "/"  # the prefix of all subjects


class Option(NamedTuple):
    """The declaration of one option."""

    parse: Callable[[str], object]
    default: str | None  # as text in a file; None without a default
    help: str
    required: bool = False
    secret: bool = False
    if_empty: str = ""  # text for which an option without a value stands; an empty one counts as absent


def _option(parse: Callable[[str], T], default: str, help_text: str, *, secret: bool = False) -> T:
    return cast(T, _field(Option(parse, default, help_text, secret=secret)))


def _subscription(help_text: str) -> str:
    return cast(str, _field(Option(parsers.subject, "", help_text, if_empty=EVERYTHING)))


def _required(parse: Callable[[str], T], help_text: str) -> T:
    return cast(T, _field(Option(parse, "", help_text, required=True)))


def _optional(parse: Callable[[str], T], help_text: str, *, secret: bool = False) -> T | None:
    return cast(T | None, _field(Option(parse, None, help_text, secret=secret)))


def _field(option: Option) -> object:
    default = (lambda: None) if option.default is None else partial(option.parse, option.default)
    return field(default_factory=default, metadata={"option": option})


@dataclass(frozen=True, kw_only=True, repr=False)
class OptionTable:
    """Base class of all tables: one instance contains the validated options of one section."""

    def details(self) -> Iterable[tuple[str, object]]:
        """Return names and values that ``--check`` shows in addition to the options."""
        return ()


@dataclass(frozen=True, kw_only=True, repr=False)
class SharedOptions(OptionTable):
    """Options of the process that a section may override."""

    bind_address: str = _option(parsers.host, "*", "address to listen on; `*` is all addresses")
    allowed_clients: client_allowlist.ClientAllowlist = _option(  # noqa: RUF009  (returns a field)
        lambda value: client_allowlist.parse_allowlist(parsers.word_list(value)),
        "",
        "clients that may send requests: addresses, networks (`192.0.2.0/24`) and, with CURVE, names of keys or public "
        "keys; with addresses and keys a client must match one of each; without it all clients",
    )
    max_transfers_per_host: int = _option(parsers.integer(1, 1000), "4", "concurrent transfers to one destination host")
    retry_for: float = _option(
        parsers.seconds,
        "0",
        "seconds during which a failed file is retried; 0 is no limit",
    )


@dataclass(frozen=True, kw_only=True)
class ProcessOptions(SharedOptions):
    """Options in [DEFAULT] for the whole process."""

    journal: str = _option(
        parsers.text,
        "",
        "database of pending and finished tasks; without it one file per configuration in "
        "`$STATE_DIRECTORY`, `$XDG_STATE_HOME/trollmoves` or `~/.local/state/trollmoves`",
    )
    synchronous: str = _option(
        parsers.choice("normal", "full"),
        "normal",
        "`full`: the journal survives a power failure too, but writes are slower",
    )
    keep_finished: float = _option(parsers.days, "7", "days that finished tasks are kept in the journal")
    max_finished: int = _option(
        parsers.integer(1000, 1_000_000_000),
        "5000000",
        "maximum number of finished tasks in the journal, of any age; up to five per file",
    )
    keep_announcements: float = _option(parsers.days, "7", "days that announcements are kept for clients to catch up")
    max_announcements: int = _option(
        parsers.integer(0, 1_000_000_000), "1000000", "maximum number of announcements kept per section, of any age"
    )
    stop_timeout: float = _option(
        parsers.seconds,
        "10",
        "seconds to wait for running transfers at shutdown; unfinished ones are repeated after the next start",
    )
    workers: int = _option(parsers.integer(1, 1000), "16", "concurrent transfers")
    metrics_port: int | None = _optional(
        parsers.port, "port on which Prometheus can scrape metrics; without it none; see [monitoring](monitoring.md)"
    )
    metrics_address: str = _option(
        parsers.host, "127.0.0.1", "address on which `metrics_port` listens; `*` is all addresses"
    )
    metrics_file: str = _option(
        parsers.text,
        "",
        "file `*.prom` to write metrics to every 15 seconds, for the textfile collector of node_exporter",
    )
    web_port: int | None = _optional(
        parsers.port, "port of the [status page](web.md) of this daemon, which is a process of its own; without it none"
    )
    web_address: str = _option(
        parsers.host, "127.0.0.1", "address on which `web_port` listens; `*` is all IPv4 addresses"
    )
    web_token_file: str = _option(
        parsers.text,
        "",
        "file with the token for actions on the page; without it `$TROLLMOVES_WEB_TOKEN`, or the page is read-only",
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class ChainOptions(SharedOptions):
    """Options of every section."""

    role: ClassVar[str]
    name: str
    priority: int = _option(
        parsers.integer(-1000, 1000), "0", "pending tasks run before those of sections with a lower priority"
    )
    probe_interval: float = _option(
        parsers.positive_seconds,
        "120",
        "maximum seconds between two attempts while a host or directory fails; a reload retries immediately",
    )
    expect_every: float = _option(
        parsers.seconds,
        "0",
        "alarm if no file comes for this number of seconds; 0 is never; see [alarms](operating.md#alarms)",
    )
    max_age: float = _option(
        parsers.seconds, "0", "alarm if a file waits for more than this number of seconds; 0 is never"
    )
    max_failed: int | None = _optional(
        parsers.integer(0, 1_000_000_000), "alarm if more files than this have failed; without it never"
    )
    on_alarm: tuple[str, ...] = _option(
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
    topic: str = _required(parsers.subject, "subject of the announcements")
    origin: str | None = _optional(
        parsers.text,
        "files to announce: directory and file name; both may contain fields in trollsift's syntax; "
        "this or `listen` is required",
    )
    listen: str | None = _optional(
        parsers.subject, "instead of `origin`: subject of messages about files on this host, to announce these files"
    )
    services: tuple[str, ...] = _option(
        parsers.word_list, "", "with `listen`: services to subscribe to; without it all"
    )
    topics: tuple[str, ...] = _option(
        parsers.word_list, "", "with `listen`: subjects to subscribe to, instead of its value"
    )
    addresses: tuple[str, ...] = _option(
        parsers.word_list, "", "with `listen`: publishers to connect to, as `tcp://host:port`"
    )
    nameserver: str | Literal[False] = _option(
        parsers.nameserver, "localhost", "with `listen`: host of the name server; `False` disables it"
    )
    addr_listener: bool = _option(parsers.boolean, "true", "with `listen`: subscribe to services that start later")
    timeout: float = _option(parsers.seconds, "10", "with `listen`: seconds to wait for the name server")
    translate: bool = _option(
        parsers.boolean,
        "false",
        "with `listen`: accepted, without effect: the location of a file is its `uri`, not the sender of the message",
    )
    request_port: int | None = _optional(
        parsers.port,
        "port for requests; without it messages contain the location of the file (remote file system mode)",
    )
    request_address: str | None = _optional(
        parsers.host, "host in announcements to send requests to; without it the address of this host"
    )
    allowed_destinations: tuple[destination_allowlist.DestinationPattern, ...] = _option(
        lambda value: tuple(map(destination_allowlist.parse_pattern, parsers.word_list(value))),
        "",
        "destinations that requests may name: `scheme://[user@]host[:port]/path` or a path on this host, including all "
        "directories below; `*` is allowed in user, host and path, and as a scheme for all but paths on this host; "
        "without it all destinations",
    )
    external_symlinks: str = _option(
        parsers.choice("owned", "all", "none"),
        "owned",
        "with `origin`: symbolic links to files outside it to announce: `all`, `none`, or those `owned` by the user of "
        "the server, by root, or by the owner of the file",
    )
    quiet_time: float = _option(
        parsers.seconds,
        "2",
        "with `origin`: seconds without change after which a file without an event is complete, where the kernel "
        "cannot say whether it is open for writing",
    )
    station: str = _option(parsers.text, "unknown", "station name in the reply to a `ping`")
    info: dict[str, str | list[str]] = _option(  # noqa: RUF009  (returns a field)
        parsers.info, "", "metadata to add to announcements: `key=value;key2=a,b`; a comma makes a list"
    )
    compression: str | None = _optional(
        parsers.choice_or_none("xrit", "bzip"), "unpack files before announcing them: `xrit` or `bzip`"
    )
    prog: str | None = _optional(parsers.text, "path of xRITDecompress; without it that in `$PATH`")
    working_directory: str | None = _optional(
        parsers.text, "directory for unpacked files; without it the temporary directory of the system"
    )
    unpack: str | None = _optional(
        parsers.choice_or_none("tar", "zip"),
        "in remote file system mode: announce the members of an archive as a dataset: `tar` or `zip`",
    )
    delete: bool = _option(
        parsers.boolean,
        "false",
        "remove a file after its delivery or when a client no longer needs it; with `compression` the packed file is "
        "removed after unpacking",
    )
    remove_delay: float = _option(parsers.seconds, "30", "seconds before a file is removed")
    watchdog_timeout: float = _option(
        parsers.positive_seconds, "1.0", "seconds between scans of a polled directory (`-w`)"
    )
    connection_parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, repr=False)
class ClientOptions(ChainOptions):
    """One chain of a client: its providers and its destination."""

    role = "client"
    providers: tuple[parsers.ProviderAddress, ...] = _required(
        parsers.providers,
        "servers, mirrors and peer clients: `host:port`, or `host:port/topic` with another topic than `topic`",
    )
    destination: str = _required(
        parsers.text,
        "URL of the directory to deliver files to; it may contain metadata fields; schemes: none or `file`, `ftp`, "
        "`ftps`, `scp`, `sftp`, `s3`",
    )
    topic: str = _subscription(
        "prefix of the subjects to accept, for providers without `/topic`; with an empty value all subjects"
    )
    login: str | None = _optional(
        secrets.resolve_login, "`user[:password]` for the destination; only sent in requests", secret=True
    )
    publish_port: int = _option(parsers.integer(0, 65535), "0", "port to publish messages on; 0 is any free port")
    nameservers: Nameservers = _optional(  # noqa: RUF009  (returns a field)
        parsers.nameservers,
        "hosts of the name servers for that port; `False` disables them, without it multicast",
    )
    heartbeat: bool = _option(parsers.boolean, "true", "process the heartbeats of the providers")
    heartbeat_alarm_scale: float = _option(
        parsers.number, "0", "reconnect after this number of heartbeat intervals without a heartbeat; 0 is never"
    )
    compression: str | None = _optional(
        parsers.choice_or_none("tar", "xrit", "bzip"),
        "unpack received files with matching names: `tar`, `xrit` or `bzip`",
    )
    xritdecompressor: str | None = _optional(parsers.text, "path of xRITDecompress; without it that in `$PATH`")
    block_size: int = _option(parsers.integer(1, 2**30), "4096", "block size in bytes for unpacking")
    delete: bool = _option(parsers.boolean, "false", "remove archives after unpacking")
    req_timeout: float = _option(parsers.positive_seconds, "1", "seconds to wait for a short reply of a server")
    transfer_req_timeout: float = _option(
        parsers.positive_seconds,
        "10",
        "seconds to wait for the reply to a request; longer transfers are delivered nevertheless",
    )
    create_target_directory: bool = _option(parsers.boolean, "true", "create a destination directory on this host")
    ftp_root: str = _option(parsers.text, "/", "path on this host that precedes the path of the destination")
    backup_targets: tuple[str, ...] = _option(
        parsers.word_list,
        "",
        "hosts to try if the host of the destination is unavailable, with its user and port unless they have others",
    )
    processing_delay: float = _option(parsers.seconds, "0", "seconds that a hot spare waits for its peer")
    takeover_after: float = _option(
        parsers.positive_seconds,
        "30",
        "seconds without a message of the peer about a file before a hot spare takes over",
    )
    replacements: dict[str, parsers.MetadataReplacement] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, repr=False)
class MirrorOptions(ClientOptions, ServerOptions):
    """One chain of a mirror: options of a client and of a server in one section."""

    role = "mirror"
    topic: str = _required(parsers.subject, "subject of the announcements")
    client_topic: str = _subscription(
        "prefix of the subjects to accept from the providers; without it `topic`, with an empty value all subjects"
    )
    request_port: int | None = cast(
        "int | None", _field(Option(parsers.port, None, "port for requests", required=True))
    )
    destination: str = _option(
        parsers.text, "", "URL of the directory to fetch files to; without it a directory in the working directory"
    )
    delay: float = _option(parsers.seconds, "0", "seconds between receiving and republishing an announcement")


@dataclass(frozen=True, kw_only=True, repr=False)
class MoveItOptions(ServerOptions):
    """One section of ``move_it.py``: the files of a directory, and their destinations."""

    role = "move_it"
    topic: str = _option(
        parsers.subject, "", "with `-p`: subject of the messages about delivered files; it may contain metadata fields"
    )
    origin: str | None = cast(
        "str | None",
        _field(
            Option(
                parsers.text,
                None,
                "files to deliver: directory and file name; both may contain fields in trollsift's syntax",
                required=True,
            )
        ),
    )
    destinations: tuple[str, ...] = _required(
        parsers.destinations,
        "URLs or paths, separated by blanks, that each file is copied to; with a trailing `/`, or if it is an existing "
        "directory, the file keeps its name; they may contain metadata fields; schemes: none or `file`, `ftp`, `ftps`, "
        "`scp`, `sftp`, `s3`",
    )
    delete: bool = _option(
        parsers.boolean,
        "false",
        "remove a file when all destinations have received it; with `compression` the packed file is removed after "
        "unpacking",
    )
    request_port: int | None = _optional(
        parsers.port, "adds `request_address`, with this port, to the messages; nothing listens on it"
    )
    request_address: str | None = _optional(
        parsers.host, "host in that `request_address`; without it the address of this host"
    )


@dataclass(frozen=True, kw_only=True)
class DispatcherOptions(ProcessOptions):
    """Options of a dispatcher process: the publishers for all its targets."""

    subscribe_addresses: tuple[str, ...] = _option(
        parsers.word_list, "", "publishers to connect to, as `tcp://host:port`"
    )
    nameserver: str | Literal[False] = _option(
        parsers.nameserver, "localhost", "host of the name server to ask for publishers; `False` disables it"
    )
    subscribe_services: tuple[str, ...] = _option(
        parsers.word_list, "", "services of the name server to subscribe to; without it all"
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class FetcherOptions(ChainOptions):
    """What ``pytroll-fetcher`` fetches; ``group__name`` is the key ``name`` below ``group`` in its file."""

    role = "fetcher"
    destination: str = _required(
        parsers.text, "directory on this host to fetch files to, created if missing; it may contain metadata fields"
    )
    subscriber_config__topics: tuple[str, ...] = _option(
        parsers.word_list, "", "subjects to subscribe to; without it all"
    )
    subscriber_config__addresses: tuple[str, ...] = _option(
        parsers.word_list, "", "publishers to connect to, as `tcp://host:port`"
    )
    subscriber_config__services: tuple[str, ...] = _option(
        parsers.word_list, "", "services of the name server to subscribe to; without it all"
    )
    subscriber_config__nameserver: str | Literal[False] = _option(
        parsers.nameserver, "localhost", "host of the name server to ask for publishers; `false` disables it"
    )
    publisher_config__name: str = _option(parsers.text, "fetcher", "name of the service that is published")
    publisher_config__port: int = _option(parsers.integer(0, 65535), "0", "port to publish on; 0 is any free port")
    publisher_config__nameservers: Nameservers = _optional(  # noqa: RUF009  (returns a field)
        parsers.nameservers, "hosts of the name servers for that port; `false` disables them, without it multicast"
    )
    publisher_config__min_port: int | None = _optional(parsers.port, "first port that may be chosen for port 0")
    publisher_config__max_port: int | None = _optional(parsers.port, "port after the last that may be chosen")


@dataclass(frozen=True, kw_only=True, repr=False)
class S3DownloaderOptions(ChainOptions):
    """What ``s3downloader.py`` fetches; ``logging__name`` is the key ``name`` below ``logging`` in its file."""

    role = "s3downloader"
    subscribe_topic: tuple[str, ...] = cast(
        "tuple[str, ...]", _field(Option(parsers.word_list, "", "subjects to subscribe to", required=True))
    )
    publish_topic: str = _required(parsers.subject, "subject of the messages about fetched files")
    bucket: str = _required(parsers.text, "bucket of the objects, whatever the `uri` of a message says")
    download_destination: str = _option(parsers.text, ".", "existing directory on this host to fetch objects to")
    services: tuple[str, ...] = _option(
        parsers.word_list, "", "services of the name server to subscribe to; without it all"
    )
    subscriber_addresses: tuple[str, ...] = _option(
        parsers.word_list, "", "publishers to connect to, as `tcp://host:port`"
    )
    logging__log_rotation_days: int = _option(parsers.integer(1, 1000), "1", "days after which the log file is rotated")
    logging__log_rotation_backup: int = _option(parsers.integer(0, 100000), "30", "old log files that are kept")
    logging__logging_mode: str = _option(parsers.text, "info", "`DEBUG` logs more")
    connection_parameters: dict[str, Any] = field(default_factory=dict)


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
    host: str = _option(
        parsers.text,
        "",
        "URL of the host, as `sftp://user@host:22`, without directory; without it, or without `scheme://`, files are "
        "delivered to this host",
    )
    login: str | None = _optional(
        secrets.resolve_login, "`user[:password]` for hosts without a user in the URL", secret=True
    )
    directory: str = _option(parsers.text, "", "directory on the host; it may contain metadata fields")
    filepattern: str = _option(
        parsers.text, "", "file name on the host; it may contain metadata fields; without it the name is kept"
    )
    publish_topic: str = _option(
        parsers.subject,
        "",
        "with `-p`: subject of the messages about delivered files; it may contain metadata fields",
    )
    origin: str = _option(
        parsers.text,
        "",
        "new files to deliver, instead of subscribing to messages: directory and file name, with fields in trollsift's "
        "syntax",
    )
    quiet_time: float = _option(
        parsers.seconds,
        "2",
        "with `origin`: seconds without change after which a file without an event is complete, where the kernel "
        "cannot say whether it is open for writing",
    )
    collections: bool = _option(
        parsers.boolean,
        "false",
        "process messages of the type `collection` too: their files are delivered and published one by one",
    )
    repeat_after: float = _option(
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


@dataclass(frozen=True, kw_only=True)
class MailOptions(OptionTable):
    """Options in [DEFAULT] of a file for ``remove_it.py``: the mail of ``--mail``."""

    mailhost: str = _option(parsers.text, "", "`host` or `host:port` of the SMTP server; the default port is 25")
    to: tuple[str, ...] = _option(parsers.comma_list, "", "addresses that get the mail, separated by commas")
    subject: str = _option(
        parsers.text, "", "subject of the mail; `{hostname}` and `{user}` are replaced by those of the process"
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class RemovalOptions(OptionTable):
    """One section of a file for ``remove_it.py``: the files to remove, and their age."""

    name: str
    base_dir: str = _option(parsers.text, "", "directory of relative templates")
    templates: tuple[str, ...] = _required(
        parsers.templates,
        "patterns of paths in `base_dir`, separated by commas; `*`, `?` and `[..]` are allowed in every part; a "
        "pattern that starts with `/` does not use `base_dir`",
    )
    days: int = _option(parsers.integer(0, 1_000_000), "0", "age in days; the four units of the age are added")
    hours: int = _option(parsers.integer(0, 1_000_000_000), "0", "age in hours")
    minutes: int = _option(parsers.integer(0, 1_000_000_000), "0", "age in minutes")
    seconds: int = _option(parsers.integer(0, 1_000_000_000), "0", "age in seconds")
    stat_time_method: str = _option(
        parsers.choice("st_ctime", "st_mtime", "st_atime"),
        "st_ctime",
        "time that counts: of the last change of content or attributes (`st_ctime`), of content (`st_mtime`), or of "
        "the last access (`st_atime`)",
    )
    recursive: bool = _option(
        parsers.boolean, "false", "apply the last part of each template in all directories below too"
    )
    include_hidden: bool = _option(parsers.boolean, "false", "patterns match names with a leading dot too")

    @property
    def age(self) -> int:
        """The age in seconds; files that are older are removed."""
        return 86_400 * self.days + 3_600 * self.hours + 60 * self.minutes + self.seconds


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
    *("listen", "services", "topics", "addresses", "nameserver", "addr_listener", "timeout", "translate"),
    *("station", "allowed_destinations", "unpack", "remove_delay"),
)

# Without effect in a mirror: it subscribes to its providers only and publishes on one port for all chains.
NOT_OF_A_MIRROR = (
    *("origin", "listen", "services", "topics", "addresses", "nameserver", "addr_listener", "timeout", "translate"),
    *("quiet_time", "unpack", "watchdog_timeout", "processing_delay", "takeover_after", "publish_port", "nameservers"),
)


def options_of(role: type[OptionTable]) -> dict[str, Option]:
    """Return the options of a role by name, those of the class before inherited ones."""
    found = {item.name: item.metadata["option"] for item in fields(role) if "option" in item.metadata}
    own = [name for name in found if name in inspect.get_annotations(role)]
    return {name: found[name] for name in [*own, *(name for name in found if name not in own)]}


def takes_parameters(role: type[OptionTable]) -> bool:
    """Return True if sections of this role have connection parameters."""
    return "connection_parameters" in {item.name for item in fields(role)}


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


def reference_page() -> str:
    """Return the reference page of all options, as Markdown."""
    lines = [_INTRODUCTION]
    for title, text, role, other_chapters in _CHAPTERS:
        lines += [f"## {title}", "", text, ""]
        skipped = {name for other in other_chapters for name in options_of(other)} - set(inspect.get_annotations(role))
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

Server, client and mirror read an INI file, the dispatcher reads INI or YAML. Each section is one chain; `[DEFAULT]`
contains values for all sections. Names are not case-sensitive. `%` has no special meaning. Comments are
separate lines that start with `#` or `;`. An option without a value counts as absent. Booleans are `true`, `yes`,
`on`, `1` or `false`, `no`, `off`, `0`. Lists are separated by blanks and commas. Times are in seconds unless the table
says otherwise.

An invalid section is reported with its file, section and option; the other sections run. An unknown option is reported
with the most similar known name. `--check` prints the resulting configuration.
"""


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


_CHAPTERS: tuple[tuple[str, str, type[OptionTable], tuple[type[OptionTable], ...]], ...] = (
    ("The process", "In `[DEFAULT]`, for the whole process.", ProcessOptions, (SharedOptions,)),
    (
        "The process, or one section",
        "In `[DEFAULT]` for all sections, or in one section.",
        SharedOptions,
        (),
    ),
    ("Server", "A section of `move_it_server.py`.", ServerOptions, (SharedOptions,)),
    (
        "Client",
        "A section of `move_it_client.py`. **Any other name** replaces the metadata item of that name in the messages "
        "that the client publishes, if the message has it: `sensor = abi` by a text, "
        "`satellite = G16:GOES-16|G17:GOES-17` by a map. Values that are not in the map, and lists, are kept. The "
        "options of this table replace nothing.",
        ClientOptions,
        (SharedOptions,),
    ),
    (
        "Mirror",
        "A section of `move_it_mirror.py` has the options of client and server; an option of both means the same as "
        f"for the client. Without effect are {_listed(NOT_OF_A_MIRROR)}. Additional or different options:",
        MirrorOptions,
        (ClientOptions, ServerOptions),
    ),
    (
        "move_it",
        "A section of `move_it.py` has the options of a server, see [move_it](move_it.md). Without effect are "
        f"{_listed(NOT_OF_MOVE_IT)}. Additional or different options:",
        MoveItOptions,
        (ServerOptions,),
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
    (
        "Fetcher",
        "The file of `pytroll-fetcher`, in YAML; `group__name` is the key `name` below `group`. The options of the "
        "process and of a section are allowed too; see [fetching](fetching.md).",
        FetcherOptions,
        (SharedOptions,),
    ),
    (
        "S3 downloader",
        "The file of `s3downloader.py`, in YAML, where `subscribe-topic` and `publish-topic` have a hyphen and "
        "`logging__name` is the key `name` below `logging`. `s3_kwargs` contains connection parameters. The options of "
        "the process and of a section are allowed too; see [fetching](fetching.md).",
        S3DownloaderOptions,
        (SharedOptions,),
    ),
    (
        "Mail of remove_it.py",
        "In `[DEFAULT]` of a file for `remove_it.py`, for `--mail`; see [remove_it](remove_it.md).",
        MailOptions,
        (),
    ),
    (
        "Section of remove_it.py",
        "A section of a file for `remove_it.py`. The age must be more than zero.",
        RemovalOptions,
        (),
    ),
)

_PARAMETERS_TEXT = """\
For the transfers of servers, mirrors and dispatchers. In a file, each name has the prefix `connection_parameters__`,
as in `connection_parameters__ssh_key_filename = /home/sat/.ssh/id_ed25519`; a further `__` separates the names of a
group, as in `connection_parameters__client_kwargs__endpoint_url = https://s3.site.org`. Names that are not listed
cause a warning and are passed to the mover: `0`, `false`, `1` and `true` as booleans, all other values as text.

Secrets may be kept outside the file: the value of `login`, `password`, `ssh_key_passphrase`, `key`, `secret`, `token`,
and of similar names, may be `file:/path` or `env:NAME`; see [security](security.md)."""

_OLD_TEXT = """\
These connection parameters are also accepted without the prefix `connection_parameters__`: {folded}.

These options of old files have no effect on a server: {ignored}."""


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    sys.stdout.write(reference_page())
