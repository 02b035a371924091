"""Table of the connection parameters of the movers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from trollmoves.errors import ConfigError
from trollmoves.movers import partials, ssh_options

SSH = ("scp", "sftp")
FTP = ("ftp", "ftps")
REMOTE = (*FTP, *SSH, "s3")
EVERY = ("", "file", *REMOTE)


class Option(NamedTuple):
    """One connection parameter of type ``kind``; a default of None keeps the library's default."""

    name: str
    kind: type
    default: Any
    schemes: tuple[str, ...]
    help: str
    secret: bool = False
    check: Callable[[str], object] | None = None  # raises ValueError with the rule


OPTIONS: tuple[Option, ...] = (
    Option(
        "connection_uptime",
        float,
        30.0,
        REMOTE,
        "seconds an idle connection is kept; running transfers are not affected",
    ),
    Option("max_connections", int, 4, REMOTE, "connections to one host; further transfers wait"),
    Option("connection_timeout", float, 20.0, REMOTE, "seconds to connect and log in"),
    Option("stall_timeout", float, 60.0, REMOTE, "seconds without progress after which a transfer fails"),
    Option("fsync", bool, False, ("", "file", "sftp"), "sync the file to disk before it is renamed"),
    Option("verify_checksum", bool, False, ("", "file", *SSH, "s3"), "compare checksums before the file is renamed"),
    Option("hard_link", bool, False, ("", "file"), "link instead of copying when on one file system"),
    Option("ssh_key_filename", str, None, SSH, "private key file to log in with"),
    Option("ssh_private_key_file", str, None, SSH, "the same, old spelling"),
    Option("ssh_key_passphrase", str, None, SSH, "passphrase of the private key file", secret=True),
    Option("password", str, None, SSH, "password to log in with if the URL has none", secret=True),
    Option(
        "ssh_host_key",
        str,
        None,
        SSH,
        "fingerprints, as `SHA256:...`, of the only host keys that are accepted, instead of those in known_hosts",
        check=ssh_options.fingerprints,
    ),
    Option(
        "ssh_weak_algorithms",
        str,
        None,
        SSH,
        "names of weak algorithms to allow, for an old server",
        check=ssh_options.disabled_algorithms,
    ),
    Option("ssh_connection_timeout", float, None, SSH, "connection_timeout, old spelling"),
    Option(
        "ssh_transport",
        str,
        ssh_options.PARAMIKO,
        ("sftp",),
        "`paramiko`, or `openssh`: the program `ssh`, for large files, jump hosts and hardware keys",
        check=ssh_options.check_transport,
    ),
    Option("num_ssh_retries", int, 3, SSH, "attempts to connect before the next backup target is used"),
    Option("scpclient_timeout_seconds", float, None, ("scp",), "stall_timeout, old spelling"),
    Option("ssh_known_hosts", str, None, SSH, "known hosts file in addition to those of the system and the user"),
    Option("ftp_passive", bool, True, FTP, "true: the server opens the data port; false: this host does"),
    Option("ftp_tls_ca_file", str, None, ("ftps",), "file of CA certificates, instead of those of the system"),
    Option("ftp_tls_verify", bool, True, ("ftps",), "check the certificate of the server"),
    Option(
        "use_tmp_on_transfer",
        bool,
        True,
        EVERY,
        "false: send directly under the final name, where readers can see the incomplete file",
    ),
    Option(
        "tmp_prefix",
        str,
        None,
        EVERY,
        "beginning of the temporary name, for hosts that reject hidden names; not for s3",
        check=partials.check_prefix,
    ),
    Option("s3_use_multipart", bool, True, ("s3",), "send large files in parts"),
    Option("s3_use_copy", bool, False, ("s3",), "accepted; objects appear complete without a copy"),
    Option("s3_multipart_chunksize", int, None, ("s3",), "bytes per part"),
    Option("anon", bool, False, ("s3",), "sign nothing"),
    Option("endpoint_url", str, None, ("s3",), "address of the service, if not Amazon S3"),
    Option("key", str, None, ("s3",), "access key id", secret=True),
    Option("secret", str, None, ("s3",), "secret access key", secret=True),
    Option("token", str, None, ("s3",), "session token", secret=True),
    Option("use_ssl", bool, True, ("s3",), "use TLS"),
    Option("profile", str, None, ("s3",), "profile of the shared credentials and configuration files"),
    Option("client_kwargs", dict, None, ("s3",), "further arguments of the boto3 client"),
    Option("config_kwargs", dict, None, ("s3",), "further arguments of botocore's Config"),
    Option(
        "s3_additional_kwargs", dict, None, ("s3",), "extra arguments of each upload, as ACL or ServerSideEncryption"
    ),
    Option("requester_pays", bool, False, ("s3",), "the requester pays for the transfer"),
    Option("max_concurrency", int, 10, ("s3",), "threads of one multipart upload"),
)

_BY_NAME = {option.name: option for option in OPTIONS}
_WORDS = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off", ""), False),
}


def value(attrs: Mapping[str, Any], name: str) -> Any:
    """Return the option ``name`` of ``attrs`` in its type, or its default; texts are converted.

    Raises:
        ConfigError: the value is invalid; the text names the option, never the value.
    """
    text = attrs.get(name)
    option = _BY_NAME[name]
    if text is None:
        return option.default
    try:
        if option.kind is bool:
            return _WORDS[text.strip().lower()] if isinstance(text, str) else bool(text)
        return _checked(option, option.kind(text))
    except (KeyError, TypeError, ValueError):
        raise ConfigError(f"must be of type {option.kind.__name__}", option=f"connection_parameters {name}") from None


def _checked(option: Option, value: Any) -> Any:
    if option.check is not None:
        try:
            option.check(value)
        except ValueError as error:
            raise ConfigError(str(error), option=f"connection_parameters {option.name}") from None
    return value


def first_set(attrs: Mapping[str, Any], *names: str) -> Any:
    """Return the value of the first set option among ``names``, else the default of the last."""
    for name in names[:-1]:
        if attrs.get(name) is not None:
            return value(attrs, name)
    return value(attrs, names[-1])


def is_known(name: str, scheme: str) -> bool:
    """Return True if ``name`` is an option of the movers for ``scheme``."""
    option = _BY_NAME.get(name)
    return option is not None and scheme in option.schemes


def unknown_names(attrs: Mapping[str, Any]) -> list[str]:
    """Return the unknown names in ``attrs``, sorted."""
    return sorted(str(name) for name in attrs if name not in _BY_NAME)
