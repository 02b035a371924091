"""Clients of S3, which deliveries and downloads share."""

from __future__ import annotations

import datetime as dt
import functools
import logging
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import boto3
import botocore.config
import botocore.exceptions

from trollmoves.errors import AuthenticationFailed, PermanentTransferError
from trollmoves.movers import options
from trollmoves.movers.pool import SharedHandle, SharedHandles

CLIENTS_SHARED_BY = 64  # transfers over one client, which is thread-safe
TRIES = 2  # of one request by botocore, for a kept connection that the server has closed

_WITH_SECRETS = [f"botocore.{name}" for name in ("auth", "endpoint", "hooks", "parsers", "regions")]  # loggers


class S3Client(NamedTuple):
    """A client of boto3.

    ``cleaned`` has the directories in which unfinished uploads were searched, ``unfinished`` the paths of uploads that
    were found there, but may still be running.
    """

    s3: Any
    created: dt.datetime
    cleaned: set[str]
    unfinished: set[str]


class ClientParameters:
    """The connection parameters ``attrs`` of clients, and the login of the URL, which replaces that of ``attrs``.

    ``key`` identifies them; it contains secrets.
    """

    def __init__(self, attrs: Mapping[str, Any], user: str | None = None, password: str | None = None) -> None:
        self._attrs = attrs
        self._user = user
        self._password = password
        self.key = user, password, repr(sorted(attrs.items()))

    def acquire(self, *, sums: bool) -> SharedHandle[S3Client]:
        """Return a shared client, to be released, with or without the checksums that boto3 adds to uploads.

        Raises:
            AuthenticationFailed: the credentials are incomplete, or the profile is missing.
            PermanentTransferError: boto3 rejects a parameter.
        """
        make = functools.partial(self.new_client, sums=sums)
        return shared_clients().acquire((self.key, sums), make, self._option("connection_timeout"))

    def extra_arguments(self) -> dict[str, Any]:
        """Return the arguments of each transfer besides bucket and key."""
        extra = dict(self._option("s3_additional_kwargs") or {})
        if self._option("requester_pays"):
            extra["RequestPayer"] = "requester"
        return extra

    def _option(self, name: str) -> Any:
        return options.value(self._attrs, name)

    def new_client(self, *, sums: bool = True) -> S3Client:
        """Return a client that is not shared; raises as ``acquire``."""
        try:
            client = self._session().client("s3", **self._client_arguments(sums=sums))
            return S3Client(client, dt.datetime.now(dt.UTC), set(), set())
        except botocore.exceptions.ProfileNotFound as error:
            raise AuthenticationFailed(f"S3: {error}") from error
        except (botocore.exceptions.BotoCoreError, ValueError, TypeError) as error:
            raise PermanentTransferError(f"S3: {type(error).__name__}: {error}") from error

    def _session(self) -> boto3.Session:
        key, secret = self._user or self._option("key"), self._password or self._option("secret")
        if bool(key) != bool(secret):
            raise AuthenticationFailed(
                f"S3: the {'secret access key' if key else 'access key id'} is missing: set both, or neither"
            )
        return boto3.Session(
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            aws_session_token=self._option("token"),
            profile_name=self._option("profile"),
        )

    def _client_arguments(self, *, sums: bool) -> dict[str, Any]:
        arguments = dict(self._option("client_kwargs") or {})
        config = {
            "connect_timeout": self._option("connection_timeout"),
            "read_timeout": self._option("stall_timeout"),
            "max_pool_connections": CLIENTS_SHARED_BY,
            "retries": {"total_max_attempts": TRIES, "mode": "standard"},
            **({} if sums else {"request_checksum_calculation": "when_required"}),
            **(self._option("config_kwargs") or {}),
        }
        if self._option("anon"):
            config["signature_version"] = botocore.UNSIGNED
        arguments.setdefault("endpoint_url", self._option("endpoint_url"))
        arguments.setdefault("use_ssl", self._option("use_ssl"))
        arguments.setdefault("config", botocore.config.Config(**config))
        return arguments


def split_path(path: str) -> tuple[str, str]:
    """Return bucket and key of a path ``/bucket/key``."""
    bucket, _, key = path.lstrip("/").partition("/")
    return bucket, key


def shared_clients() -> SharedHandles[S3Client]:
    """Return the S3 clients of this process."""
    return _clients_of(os.getpid())


@functools.lru_cache(maxsize=1)
def _clients_of(process: int) -> SharedHandles[S3Client]:  # noqa: ARG001  (the key)
    for name in (*_WITH_SECRETS, "urllib3.connectionpool"):
        logging.getLogger(name).addFilter(_drop_debug)
    return SharedHandles(lambda client: client.s3.close(), lambda _: True, CLIENTS_SHARED_BY)


def _drop_debug(record: logging.LogRecord) -> bool:
    """Drop debug records: they show request headers with session tokens."""
    return record.levelno > logging.DEBUG
