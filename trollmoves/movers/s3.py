"""Delivers to S3 and compatible services; objects appear complete, so that partials are not needed."""

from __future__ import annotations

import errno
import functools
import logging
import os
from typing import Any

import boto3
import botocore.config
import botocore.exceptions
from boto3.s3.transfer import TransferConfig

from trollmoves.errors import (
    AuthenticationFailed,
    BadDestination,
    ConnectionFailed,
    NameRejected,
    NoSpace,
    PermanentTransferError,
    PermissionRefused,
    TargetBusy,
    TemporaryTransferError,
    TransferError,
    TransferStalled,
)
from trollmoves.movers.base import SourceFile
from trollmoves.movers.pool import Connection, SharedHandles
from trollmoves.movers.remote import Endpoint, RemoteMover
from trollmoves.utils import failpoints

logger = logging.getLogger(__name__)
CLIENTS_SHARED_BY = 64  # deliveries over one client, which is thread-safe
MULTIPART_THRESHOLD = 16 << 20  # bytes; larger objects are sent in parts by several threads
CHUNK = 8 << 20  # bytes per part
MAX_SINGLE_PUT = 5 << 30  # bytes, the limit of one PUT
TRIES = 2  # of one request by botocore, for a kept connection that the server has closed
_BY_CODE: dict[str, type[TransferError]] = {
    **dict.fromkeys(("403", "AccessDenied", "AllAccessDisabled", "MethodNotAllowed"), PermissionRefused),
    **dict.fromkeys(
        (
            "InvalidAccessKeyId",
            "SignatureDoesNotMatch",
            "ExpiredToken",
            "InvalidToken",
            "AuthorizationHeaderMalformed",
            "InvalidSecurity",
        ),
        AuthenticationFailed,
    ),
    **dict.fromkeys(("NoSuchBucket", "InvalidBucketName", "PermanentRedirect"), BadDestination),
    "KeyTooLongError": NameRejected,
    **dict.fromkeys(("SlowDown", "ServiceUnavailable", "503", "Throttling", "TooManyRequests"), TargetBusy),
    **dict.fromkeys(("InsufficientStorage", "XMinioStorageFull", "QuotaExceeded", "507"), NoSpace),
    **dict.fromkeys(("RequestTimeout",), TransferStalled),
}
_CHANGED = ("BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch")


class S3Connection(Connection):
    """A shared client; the path of an object is ``/bucket/key``."""

    partials = False

    def __init__(self, client: Any, hang_up: Any, transfer: TransferConfig, extra: dict[str, Any], *, checksum: bool):
        self._client = client
        self._hang_up = hang_up
        self._transfer = transfer
        self._extra = extra
        self._checksum = checksum

    def is_directory(self, path: str) -> bool:
        """Return True if objects exist below ``path``; False without permission to list."""
        bucket, key = _split(path)
        if not key:
            return True
        try:
            with translate_s3_errors(path):
                found = self._client.list_objects_v2(Bucket=bucket, Prefix=f"{key}/", MaxKeys=1)
        except PermissionRefused:
            return False
        return bool(found.get("KeyCount"))

    def make_directories(self, path: str) -> None:
        """Raise: S3 has no directories, and a missing bucket is not created."""
        raise BadDestination(f"the bucket of {path} does not exist; create it first")

    def send(self, source: SourceFile, path: str) -> None:
        """Upload, in parts if the file is large."""
        bucket, key = _split(path)
        with translate_s3_errors(path), source.reader() as reader:
            if source.size < self._transfer.multipart_threshold:
                self._client.put_object(Bucket=bucket, Key=key, Body=reader, ContentLength=source.size, **self._extra)
            else:
                self._client.upload_fileobj(
                    reader,
                    bucket,
                    key,
                    ExtraArgs=self._extra,
                    Callback=lambda _: failpoints.hit("sending"),
                    Config=self._transfer,
                )

    def size(self, path: str) -> int:
        """Return the length of the object in bytes."""
        bucket, key = _split(path)
        with translate_s3_errors(path):
            return int(self._client.head_object(Bucket=bucket, Key=key)["ContentLength"])

    def replace(self, partial: str, final: str) -> None:
        """Raise: S3 needs no partials."""
        raise NotImplementedError

    def remove(self, path: str) -> None:
        """Remove the object."""
        bucket, key = _split(path)
        with translate_s3_errors(path):
            self._client.delete_object(Bucket=bucket, Key=key)

    def verify(self, source: SourceFile, path: str) -> None:
        """Compare the ETag if ``verify_checksum`` is set and it is an MD5 sum."""
        if self._checksum:
            _compare_etag(self._client, source, path)

    def alive(self) -> bool:
        """Return True: the client reconnects automatically."""
        return True

    def probe(self) -> None:
        """Do nothing: the client reconnects automatically."""

    def close(self) -> None:
        """Release the client."""
        self._hang_up()


class S3Mover(RemoteMover):
    """Delivers to ``s3://bucket/path``; credentials come from connection parameters or boto3's configuration."""

    @property
    def path(self) -> str:
        """Bucket and key; with only a bucket the file keeps its name."""
        return f"/{self.destination.netloc}{self.destination.path or '/'}"

    def endpoint(self) -> Endpoint:
        """Return the endpoint of the service; buckets share a client."""
        if not self.destination.netloc:
            raise BadDestination("an S3 destination begins with s3://BUCKET/")
        return Endpoint("s3", self.option("endpoint_url") or "", None, None, None)

    def connect(self, login: Endpoint) -> Connection:  # noqa: ARG002  (the connection parameters are used)
        """Return a connection over the client for these parameters."""
        clients = shared_clients()
        handle = clients.acquire(repr(sorted(self.attrs.items())), self._new_client, self.option("connection_timeout"))
        return S3Connection(
            handle.value,
            functools.partial(clients.release, handle),
            self._transfer(),
            self._extra(),
            checksum=self.option("verify_checksum"),
        )

    def _new_client(self) -> Any:
        try:
            return self._session().client("s3", **self._client_arguments())
        except botocore.exceptions.ProfileNotFound as error:
            raise AuthenticationFailed(f"S3: {error}") from error
        except (botocore.exceptions.BotoCoreError, ValueError, TypeError) as error:
            raise PermanentTransferError(f"S3: {type(error).__name__}: {error}") from error

    def _session(self) -> boto3.Session:
        return boto3.Session(
            aws_access_key_id=self.option("key"),
            aws_secret_access_key=self.option("secret"),
            aws_session_token=self.option("token"),
            profile_name=self.option("profile"),
        )

    def _client_arguments(self) -> dict[str, Any]:
        arguments = dict(self.option("client_kwargs") or {})
        config = {
            "connect_timeout": self.option("connection_timeout"),
            "read_timeout": self.option("stall_timeout"),
            "max_pool_connections": CLIENTS_SHARED_BY,
            "retries": {"total_max_attempts": TRIES, "mode": "standard"},
            **(self.option("config_kwargs") or {}),
        }
        if self.option("anon"):
            config["signature_version"] = botocore.UNSIGNED
        arguments.setdefault("endpoint_url", self.option("endpoint_url"))
        arguments.setdefault("use_ssl", self.option("use_ssl"))
        arguments.setdefault("config", botocore.config.Config(**config))
        return arguments

    def _transfer(self) -> TransferConfig:
        chunk = self.option("s3_multipart_chunksize") or CHUNK
        return TransferConfig(
            multipart_threshold=max(MULTIPART_THRESHOLD, chunk) if self.option("s3_use_multipart") else MAX_SINGLE_PUT,
            multipart_chunksize=chunk,
            max_concurrency=max(1, self.option("max_concurrency")),
        )

    def _extra(self) -> dict[str, Any]:
        extra = dict(self.option("s3_additional_kwargs") or {})
        if self.option("requester_pays"):
            extra["RequestPayer"] = "requester"
        return extra


class translate_s3_errors:  # noqa: N801  (used like a function in ``with``)
    """Translates exceptions of boto3."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Translate an exception of boto3."""
        translation = _translate(error, self._path) if error is not None else None
        if translation is not None:
            raise translation from error


def _translate(error: BaseException, path: str) -> Exception | None:
    while isinstance(error, boto3.exceptions.S3UploadFailedError) and error.__context__:
        error = error.__context__
    if isinstance(error, botocore.exceptions.ClientError):
        return _to_transfer_error(error, path)
    if isinstance(error, (botocore.exceptions.ConnectTimeoutError, botocore.exceptions.ReadTimeoutError)):
        return TransferStalled(f"S3: {type(error).__name__}")
    if isinstance(error, (botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError)):
        return AuthenticationFailed(f"S3: {error}")
    if isinstance(error, botocore.exceptions.ParamValidationError):
        return BadDestination(f"S3: {error}")
    if isinstance(error, (botocore.exceptions.HTTPClientError, botocore.exceptions.ConnectionError)):
        return ConnectionFailed(f"S3: {error}")
    if isinstance(error, (botocore.exceptions.BotoCoreError, boto3.exceptions.Boto3Error)):
        return TemporaryTransferError(f"S3: {type(error).__name__}: {error}")
    return None


def _to_transfer_error(error: botocore.exceptions.ClientError, path: str) -> Exception:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    text = f"{path}: S3 replied {status} {code}: {error.response.get('Error', {}).get('Message', '')}"
    if code in _BY_CODE:
        return _BY_CODE[code](text)
    if code in _CHANGED or status >= 500 or status in (408, 429):
        return TemporaryTransferError(text)
    if status == 404:
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    return PermissionRefused(text) if status in (401, 403) else PermanentTransferError(text)


def _compare_etag(client: Any, source: SourceFile, path: str) -> None:
    import hashlib

    bucket, key = _split(path)
    with translate_s3_errors(path):
        tag = client.head_object(Bucket=bucket, Key=key).get("ETag", "").strip('"')
    if "-" in tag or len(tag) != 32:
        logger.debug("%s: skipped the MD5 comparison, as the ETag is not an MD5 sum; S3 has checked each part", path)
        return
    digest = hashlib.md5(usedforsecurity=False)
    with source.reader() as reader:
        while block := reader.read(CHUNK):
            digest.update(block)
    if tag != digest.hexdigest():
        raise TemporaryTransferError(f"{path}: the MD5 sum differs from that of the file")


def _split(path: str) -> tuple[str, str]:
    bucket, _, key = path.lstrip("/").partition("/")
    return bucket, key


def shared_clients() -> SharedHandles[Any]:
    """Return the S3 clients of this process."""
    return _clients_of(os.getpid())


@functools.lru_cache(maxsize=1)
def _clients_of(process: int) -> SharedHandles[Any]:  # noqa: ARG001  (the key)
    for name in ("botocore.auth", "botocore.endpoint", "botocore.hooks", "botocore.parsers", "urllib3.connectionpool"):
        logging.getLogger(name).addFilter(_drop_debug)
    return SharedHandles(lambda client: client.close(), lambda _: True, CLIENTS_SHARED_BY)


def _drop_debug(record: logging.LogRecord) -> bool:
    """Drop debug records: they show request headers with session tokens."""
    return record.levelno > logging.DEBUG
