"""Downloads of S3 objects, with the same parameters as deliveries."""

from __future__ import annotations

import shutil
import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from contextlib import suppress
from typing import Any, BinaryIO
from urllib.parse import ParseResult

from boto3.s3.transfer import S3Transfer, TransferConfig

from trollmoves.errors import AuthenticationFailed, PermissionRefused
from trollmoves.movers import options
from trollmoves.movers.fsspec_config import with_s3_defaults
from trollmoves.movers.remote import checked_login
from trollmoves.movers.s3_client import ClientParameters, S3Client, split_path
from trollmoves.movers.s3_errors import translate_s3_errors
from trollmoves.net import redaction

MAX_CLIENTS = 16  # kept; the client that was used least recently is forgotten first
BLOCK = 1 << 20  # bytes per read
PARALLEL_FROM = 16 << 20  # bytes; larger objects are read in parts by several threads
CHUNK = 8 << 20  # bytes per part


class S3Reader:
    """Reads objects with kept clients; any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._clients: OrderedDict[Hashable, S3Client] = OrderedDict()

    def download(self, url: ParseResult, stream: BinaryIO, attrs: Mapping[str, Any]) -> None:
        """Write the object ``s3://bucket/key`` to the empty, seekable ``stream``.

        Parameters that ``attrs`` does not set are those of fsspec's configuration.

        Raises:
            FileNotFoundError: the object does not exist.
            TransferError: the download failed; its text contains no secret.
            ConfigError: a parameter is invalid.
        """
        user, password = checked_login(url)
        attrs = with_s3_defaults(attrs, login=user is not None)
        parameters = ClientParameters(attrs, user, password)
        try:
            with translate_s3_errors(self._shown(url)):
                self._download(parameters, url, stream, attrs)
        except Exception as error:
            redaction.remove_from_error(error, (password, *redaction.values_of(dict(attrs))))
            if isinstance(error, (AuthenticationFailed, PermissionRefused)):
                self._forget(parameters)  # the next client reads repaired credentials
            raise

    def check_bucket(self, bucket: str, attrs: Mapping[str, Any]) -> str:
        """Return ``ok`` if the objects of ``bucket`` can be listed; raises as ``download``."""
        attrs = with_s3_defaults(attrs)
        try:
            with translate_s3_errors(bucket):
                self._client(ClientParameters(attrs)).s3.list_objects_v2(Bucket=split_path(bucket)[0], MaxKeys=1)
        except Exception as error:
            redaction.remove_from_error(error, redaction.values_of(dict(attrs)))
            raise
        return "ok, logged in, readable"

    @staticmethod
    def _shown(url: ParseResult) -> str:
        return f"{url.netloc.rpartition('@')[2]}{url.path}"

    def _download(
        self, parameters: ClientParameters, url: ParseResult, stream: BinaryIO, attrs: Mapping[str, Any]
    ) -> None:
        client = self._client(parameters)
        bucket, key = split_path(self._shown(url))
        given = parameters.extra_arguments()
        extra = {name: value for name, value in given.items() if name in S3Transfer.ALLOWED_DOWNLOAD_ARGS}
        reply = client.s3.get_object(Bucket=bucket, Key=key, **extra)
        with reply["Body"] as body:
            if reply["ContentLength"] <= PARALLEL_FROM:
                shutil.copyfileobj(body, stream, BLOCK)
                return
        workers = max(1, options.value(attrs, "max_concurrency"))
        config = TransferConfig(
            multipart_threshold=PARALLEL_FROM,
            multipart_chunksize=CHUNK,
            max_concurrency=workers,
            use_threads=workers > 1,
        )
        client.s3.download_fileobj(bucket, key, stream, ExtraArgs=extra, Config=config)

    def _client(self, parameters: ClientParameters) -> S3Client:
        with self._lock:
            client = self._clients.get(parameters.key)
            if client is None:
                client = self._clients[parameters.key] = parameters.new_client()
                if len(self._clients) > MAX_CLIENTS:
                    self._clients.popitem(last=False)
            self._clients.move_to_end(parameters.key)
            return client

    def _forget(self, parameters: ClientParameters) -> None:
        with self._lock, suppress(KeyError):
            del self._clients[parameters.key]
