"""Delivers to S3 and compatible services; objects appear complete, so that partials are not needed.

Each operation except the upload is optional: keys and services that do not allow it are recorded as limitations.
"""

from __future__ import annotations

import datetime as dt
import logging
import re
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import botocore.config
import botocore.exceptions
from boto3.s3.transfer import TransferConfig

from trollmoves.errors import BadDestination, PermissionRefused, TemporaryTransferError
from trollmoves.movers.base import Backend
from trollmoves.movers.fsspec_config import with_s3_defaults
from trollmoves.movers.host_capabilities import HostCapabilities, Limitation
from trollmoves.movers.partials import PartialId
from trollmoves.movers.pool import Connection
from trollmoves.movers.remote import Endpoint, RemoteMover, checked_login
from trollmoves.movers.s3_client import ClientParameters, S3Client, shared_clients, split_path
from trollmoves.movers.s3_errors import code_of, translate_s3_errors
from trollmoves.movers.source_file import SourceFile

logger = logging.getLogger(__name__)
MULTIPART_THRESHOLD = 16 << 20  # bytes; larger objects are sent in parts by several threads
CHUNK = 8 << 20  # bytes per part
MAX_SINGLE_PUT = 5 << 30  # bytes, the limit of one PUT
CLOCK_DIFFERENCE = 60.0  # s by which the clock of the service may be behind
STALE_UPLOAD_AGE = 86400.0  # s after which an unfinished upload in the directory of a delivery is aborted
_ADDS_CHECKSUMS = "request_checksum_calculation" in botocore.config.Config.OPTION_DEFAULTS  # 1.36 or newer
MAX_CLEANED = 1000  # directories of one client in which such uploads were searched

_MD5 = re.compile("[0-9a-f]{32}")
_DENIED = ("403", "AccessDenied", "405", "MethodNotAllowed", "501", "NotImplemented")
_NO_HEAD = ("400", "403", "404", "405", "501")  # 400: the object is encrypted with a key that HEAD would need
# Replies of services that do not support the checksums which boto3 adds to uploads.
_CHECKSUM_REJECTED = (
    *("400", "411", "501", "BadRequest", "InvalidArgument", "InvalidRequest", "MalformedTrailerError"),
    *("MissingContentLength", "NotImplemented", "SignatureDoesNotMatch"),
    *("XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch"),
)


class _Upload(NamedTuple):
    """An upload that succeeded: the file, and the reply of the service; {} for an upload in parts."""

    source: SourceFile
    reply: dict[str, Any]


class S3Connection(Connection):
    """A shared client with, or without, the checksums that boto3 adds; the path of an object is ``/bucket/key``."""

    partials = False

    def __init__(self, parameters: ClientParameters, transfer: TransferConfig) -> None:
        self._parameters = parameters
        self._transfer = transfer
        self._extra = parameters.extra_arguments()
        self._handles = {True: parameters.acquire(sums=True)}
        self.prepare(HostCapabilities("s3"), None)

    def prepare(self, host: HostCapabilities, partial_id: PartialId | None) -> None:
        """Set the capabilities of the destination, and the identity of the next delivery."""
        self._host = host
        self._retried = partial_id is not None and partial_id.may_exist
        self._sums = not host.lacks(Limitation.NO_REQUEST_CHECKSUMS)
        self._last: _Upload | None = None

    @property
    def _client(self) -> Any:
        return self._shared.s3

    @property
    def _shared(self) -> S3Client:
        if self._sums not in self._handles:
            self._handles[self._sums] = self._parameters.acquire(sums=self._sums)
        return self._handles[self._sums].value

    def is_directory(self, path: str) -> bool:
        """Return True if objects exist below ``path``; False without permission to list."""
        bucket, key = split_path(path)
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
        """Upload, in parts if the file is large; without the checksums of boto3 if the service rejects them."""
        with translate_s3_errors(path):
            try:
                self._upload(source, path)
            except botocore.exceptions.ClientError as error:
                if not (self._sums and _ADDS_CHECKSUMS) or code_of(error) not in _CHECKSUM_REJECTED:
                    raise
                self._sums = False
                try:
                    self._upload(source, path)
                except botocore.exceptions.ClientError:
                    raise error from None
                self._host.record(Limitation.NO_REQUEST_CHECKSUMS)

    def _upload(self, source: SourceFile, path: str) -> None:
        if source.size < self._transfer.multipart_threshold or self._host.lacks(Limitation.NO_MULTIPART):
            self._upload_at_once(source, path)
            return
        try:
            self._upload_in_parts(source, path)
        except botocore.exceptions.ClientError as error:
            if error.operation_name != "CreateMultipartUpload" or code_of(error) not in _DENIED:
                raise
            try:
                self._upload_at_once(source, path)
            except botocore.exceptions.ClientError:
                raise error from None
            self._host.record(Limitation.NO_MULTIPART)

    def _upload_at_once(self, source: SourceFile, path: str) -> None:
        bucket, key = split_path(path)
        try:
            with source.checked_reader() as reader:
                reply = self._client.put_object(
                    Bucket=bucket, Key=key, Body=reader, ContentLength=source.size, **self._extra
                )
        except botocore.exceptions.ClientError as error:
            if not self._retried or code_of(error) not in _DENIED or not self._is_delivered(source, bucket, key):
                raise
            reply = {}  # the key may not replace the object of the earlier attempt
        self._last = _Upload(source, reply)

    def _is_delivered(self, source: SourceFile, bucket: str, key: str) -> bool:
        """Return True if the object is known to have the content of the file."""
        try:
            found = self._client.head_object(Bucket=bucket, Key=key)
        except botocore.exceptions.ClientError:
            return False
        return bool(found["ContentLength"] == source.size and _md5_tag(found) == source.digest("md5"))

    def _upload_in_parts(self, source: SourceFile, path: str) -> None:
        bucket, key = split_path(path)
        self._abort_unfinished(bucket, key)
        with source.checked_reader() as reader:
            self._client.upload_fileobj(
                reader,
                bucket,
                key,
                ExtraArgs=self._extra,
                Config=self._transfer,
            )
        self._last = _Upload(source, {})

    def _abort_unfinished(self, bucket: str, key: str) -> None:
        """Abort the uploads of killed processes: to this key, and in its directory those older than a day.

        Uploads to this key are those of an earlier attempt, and those that began before this client was created. The
        directory is searched once per client. Errors are ignored: the upload that follows reports them.
        """
        if self._host.lacks(Limitation.NO_UPLOAD_LIST):
            return
        try:
            for prefix in self._prefixes_to_search(bucket, key):
                found = self._client.list_multipart_uploads(Bucket=bucket, Prefix=prefix, Delimiter="/")
                for upload in found.get("Uploads", ()):
                    self._abort_if_stale(bucket, key, upload)
        except botocore.exceptions.ClientError as error:
            if code_of(error) in _DENIED:
                self._host.record(Limitation.NO_UPLOAD_LIST)
            else:
                logger.debug("%s: cannot abort unfinished uploads: %s", self._host.name, error)
        except botocore.exceptions.BotoCoreError as error:
            logger.debug("%s: cannot abort unfinished uploads: %s", self._host.name, error)

    def _prefixes_to_search(self, bucket: str, key: str) -> list[str]:
        directory = key.rpartition("/")[0]
        cleaned, place = self._shared.cleaned, f"{bucket}/{directory}"
        found = [key] if self._retried or f"{bucket}/{key}" in self._shared.unfinished else []
        if place not in cleaned:
            if len(cleaned) >= MAX_CLEANED:
                cleaned.clear()
            cleaned.add(place)
            found.append(f"{directory}/" if directory else "")
        return found

    def _abort_if_stale(self, bucket: str, key: str, upload: dict[str, Any]) -> None:
        path = f"{bucket}/{upload['Key']}"
        age = (dt.datetime.now(dt.UTC) - upload["Initiated"]).total_seconds()
        is_earlier = (self._shared.created - upload["Initiated"]).total_seconds() > CLOCK_DIFFERENCE
        if age > STALE_UPLOAD_AGE or (upload["Key"] == key and (self._retried or is_earlier)):
            self._client.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
            self._shared.unfinished.discard(path)
            logger.info("%s: aborted an unfinished upload of %s, begun %.0f s ago", self._host.name, upload["Key"], age)
        elif is_earlier and len(self._shared.unfinished) < MAX_CLEANED:
            self._shared.unfinished.add(path)

    def size(self, path: str) -> int:
        """Return the length of the object in bytes; that of the file if only the reply to the upload is known.

        That is so without permission to read the object, and if a consumer has already taken it.
        """
        bucket, key = split_path(path)
        last = self._last
        if last is not None and self._host.lacks(Limitation.NO_HEAD):
            return _confirmed_size(last, path)
        with translate_s3_errors(path):
            try:
                return int(self._client.head_object(Bucket=bucket, Key=key)["ContentLength"])
            except botocore.exceptions.ClientError as error:
                if last is None or code_of(error) not in _NO_HEAD:
                    raise
                denied = code_of(error) != "404"
        size = _confirmed_size(last, path)
        if denied:
            self._host.record(Limitation.NO_HEAD)
        return size

    def replace(self, partial: str, final: str) -> None:
        """Raise: S3 needs no partials."""
        raise NotImplementedError

    def remove(self, path: str) -> None:
        """Remove the object."""
        bucket, key = split_path(path)
        with translate_s3_errors(path):
            self._client.delete_object(Bucket=bucket, Key=key)

    def verify(self, source: SourceFile, path: str) -> None:  # noqa: ARG002  (the upload has it)
        """Compare the ETag if it is an MD5 sum."""
        if self._last is None:
            return
        if _md5_tag(self._last.reply):
            _compare_tag(self._last, path)
        else:
            logger.debug("%s: skipped the MD5 comparison, as the ETag is not an MD5 sum; S3 has checked the data", path)

    def alive(self) -> bool:
        """Return True: the client reconnects automatically."""
        return True

    def probe(self) -> None:
        """Do nothing: the client reconnects automatically."""

    def close(self) -> None:
        """Release the clients."""
        for handle in self._handles.values():
            shared_clients().release(handle)


def _confirmed_size(upload: _Upload, path: str) -> int:
    """Return the size of an uploaded file, after comparing the checksum in the reply, if any."""
    if not any(name.startswith("Checksum") for name in upload.reply) and _md5_tag(upload.reply):
        _compare_tag(upload, path)
    return upload.source.size


def _md5_tag(reply: dict[str, Any]) -> str:
    """Return the ETag in the reply to an upload if it is the MD5 sum of the data, else ""."""
    tag = str(reply.get("ETag", "")).strip('"')
    encrypted = "kms" in reply.get("ServerSideEncryption", "") or "SSECustomerAlgorithm" in reply
    return tag if _MD5.fullmatch(tag) and not encrypted else ""


def _compare_tag(upload: _Upload, path: str) -> None:
    """Raise TemporaryTransferError if the ETag, an MD5 sum, differs from that of the file."""
    if _md5_tag(upload.reply) != upload.source.digest("md5"):
        raise TemporaryTransferError(f"{path}: the MD5 sum differs from that of the file")


class S3Mover(RemoteMover):
    """Delivers to ``s3://bucket/path``.

    The login of the URL is the access key id and the secret access key; else these come from the connection parameters,
    or from the configuration of fsspec or boto3. Parameters that are not set are those of fsspec's configuration.
    """

    def with_defaults(self, attrs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the connection parameters with those of fsspec's configuration."""
        return with_s3_defaults(attrs, login="@" in self.destination.netloc)

    @property
    def path(self) -> str:
        """Bucket and key; with only a bucket the file keeps its name."""
        return f"/{self._bucket}{self.destination.path or '/'}"

    @property
    def _bucket(self) -> str:
        return self.destination.netloc.rpartition("@")[2]

    def endpoint(self) -> Endpoint:
        """Return the endpoint of the service and the login of the URL; buckets share a client."""
        if not self._bucket:
            raise BadDestination("an S3 destination begins with s3://BUCKET/")
        return Endpoint("s3", self.option("endpoint_url") or "", None, *checked_login(self.destination))

    def capability_key(self, login: Endpoint) -> Hashable:
        """Return service, bucket and key: rights differ between them."""
        return (*login[:4], self._bucket, self.option("key"), self.option("profile"))

    def connect(self, login: Endpoint) -> Connection:
        """Return a connection over the clients for these parameters."""
        parameters = ClientParameters(self.attrs, login.user, login.password)
        return S3Connection(parameters, self._transfer())

    def deliver(self, backend: Backend, source: SourceFile) -> None:
        """Deliver ``source`` by the operations that the service and the key allow."""
        if isinstance(backend, S3Connection) and self.host is not None:
            backend.prepare(self.host, self.partial_id)
        super().deliver(backend, source)

    def _transfer(self) -> TransferConfig:
        chunk = self.option("s3_multipart_chunksize") or CHUNK
        return TransferConfig(
            multipart_threshold=max(MULTIPART_THRESHOLD, chunk) if self.option("s3_use_multipart") else MAX_SINGLE_PUT,
            multipart_chunksize=chunk,
            max_concurrency=max(1, self.option("max_concurrency")),
        )
