"""Translation of the exceptions of boto3."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

import boto3
import botocore.exceptions

from trollmoves import errors

_BY_CODE: dict[str, type[errors.TransferError]] = {
    **dict.fromkeys(("403", "AccessDenied", "AllAccessDisabled", "405", "MethodNotAllowed"), errors.PermissionRefused),
    **dict.fromkeys(
        (
            "InvalidAccessKeyId",
            "SignatureDoesNotMatch",
            "ExpiredToken",
            "InvalidToken",
            "AuthorizationHeaderMalformed",
            "InvalidSecurity",
        ),
        errors.AuthenticationFailed,
    ),
    **dict.fromkeys(("NoSuchBucket", "InvalidBucketName", "PermanentRedirect"), errors.BadDestination),
    "KeyTooLongError": errors.NameRejected,
    **dict.fromkeys(("SlowDown", "ServiceUnavailable", "503", "Throttling", "TooManyRequests"), errors.TargetBusy),
    **dict.fromkeys(("InsufficientStorage", "XMinioStorageFull", "QuotaExceeded", "507"), errors.NoSpace),
    **dict.fromkeys(("RequestTimeout",), errors.TransferStalled),
}
_CHANGED = ("BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch")


def code_of(error: botocore.exceptions.ClientError) -> str:
    """Return the error code in a reply, which is the HTTP status if the reply has no body."""
    return str(error.response.get("Error", {}).get("Code", ""))


@contextlib.contextmanager
def translate_s3_errors(path: str) -> Iterator[None]:
    """Translate exceptions of boto3."""
    try:
        yield
    except Exception as error:
        translation = _translate(error, path)
        if translation is None:
            raise
        raise translation from error


def _translate(error: BaseException, path: str) -> Exception | None:
    while isinstance(error, boto3.exceptions.S3UploadFailedError) and error.__context__:
        error = error.__context__
    if isinstance(error, botocore.exceptions.ClientError):
        return _to_transfer_error(error, path)
    if isinstance(error, (botocore.exceptions.ConnectTimeoutError, botocore.exceptions.ReadTimeoutError)):
        return errors.TransferStalled(f"S3: {type(error).__name__}")
    if isinstance(error, (botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError)):
        return errors.AuthenticationFailed(f"S3: {error}")
    if isinstance(error, botocore.exceptions.ParamValidationError):
        return errors.BadDestination(f"S3: {error}")
    if isinstance(error, (botocore.exceptions.HTTPClientError, botocore.exceptions.ConnectionError)):
        return errors.ConnectionFailed(f"S3: {error}")
    if isinstance(error, (botocore.exceptions.BotoCoreError, boto3.exceptions.Boto3Error)):
        return errors.TemporaryTransferError(f"S3: {type(error).__name__}: {error}")
    return None


def _to_transfer_error(error: botocore.exceptions.ClientError, path: str) -> Exception:
    code = code_of(error)
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    text = f"{path}: S3 replied {status} {code}: {error.response.get('Error', {}).get('Message', '')}"
    if code in _BY_CODE:
        return _BY_CODE[code](text)
    if code in _CHANGED or status >= 500 or status in (408, 429):
        return errors.TemporaryTransferError(text)
    if status == 404:
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    return errors.PermissionRefused(text) if status in (401, 403) else errors.PermanentTransferError(text)
