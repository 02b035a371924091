"""Deliveries to S3 with keys that have few rights, and to services that lack some operations."""

from __future__ import annotations

import datetime as dt
import os
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("boto3", reason="no boto3 (PyPI)")

from trollmoves.errors import (
    AuthenticationFailed,
    BadDestination,
    PermissionRefused,
    TemporaryTransferError,
    TransferError,
)
from trollmoves.movers import PartialId, close_connections, move_it
from trollmoves.movers.host_capabilities import Limitation
from trollmoves.movers.pool import shared_pool
from trollmoves.movers.s3 import S3Mover
from trollmoves.tests.servers.limited_s3 import OLD, RECENT, LimitedS3

KEY = "AKIALIMITED"
SECRET = "gehe1m/pass+word"
TOKEN = "t0ken"
DENIED = (403, "AccessDenied")
SMALL, LARGE = 1000, 17 << 20


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    close_connections()


def attrs(service: LimitedS3, **more: Any) -> dict[str, Any]:
    """Return the connection parameters for a service."""
    region = {"region_name": "us-east-1"}
    return {"endpoint_url": service.url, "key": KEY, "secret": SECRET, "client_kwargs": region, **more}


def file_of(folder: Path, size: int = SMALL, name: str = "f") -> Path:
    """Create a file."""
    path = folder / name
    path.write_bytes(os.urandom(size))
    return path


def limitations(service: LimitedS3) -> set[Limitation]:
    """Return the recorded limitations of the bucket of a service."""
    mover = S3Mover("none", "s3://bucket/in/", attrs(service))
    host = shared_pool().capabilities.get(mover.capability_key(mover.endpoint()), "")
    return {limitation for limitation in Limitation if host.lacks(limitation)}


LIMITED: dict[str, Any] = {
    "nothing but put": ({"HEAD": (403, ""), "LIST": DENIED, "uploads": DENIED}, SMALL, {Limitation.NO_HEAD}),
    "no HEAD in the service": ({"HEAD": (405, "")}, SMALL, {Limitation.NO_HEAD}),
    "HEAD needs another key": ({"HEAD": (400, "")}, SMALL, {Limitation.NO_HEAD}),
    "HEAD is not implemented": ({"HEAD": (501, "")}, SMALL, {Limitation.NO_HEAD}),
    "no parts": ({"create": DENIED}, LARGE, {Limitation.NO_MULTIPART}),
    "no parts in the service": ({"create": (501, "NotImplemented")}, LARGE, {Limitation.NO_MULTIPART}),
    "no list of uploads": ({"uploads": DENIED}, LARGE, {Limitation.NO_UPLOAD_LIST}),
    "no abort": ({"abort": DENIED}, LARGE, {Limitation.NO_UPLOAD_LIST}),
    "large, nothing but put": (
        {"HEAD": (403, ""), "LIST": DENIED, "uploads": DENIED, "abort": DENIED},
        LARGE,
        {Limitation.NO_HEAD, Limitation.NO_UPLOAD_LIST},
    ),
}


@pytest.mark.parametrize("name", LIMITED)
def test_missing_rights(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """A key that may only upload delivers; each limitation is logged once, and its request is not repeated."""
    rules, size, expected = LIMITED[name]
    caplog.set_level("INFO")
    origin = file_of(tmp_path, size)
    with LimitedS3(rules, uploads={"in/old": OLD}) as service:
        move_it(origin, "s3://bucket/in/", attrs(service))
        service.operations.clear()
        for target in ("s3://bucket/in/", "s3://bucket/in/g"):
            move_it(origin, target, attrs(service))
        assert not {"HEAD", "create"} & rules.keys() & set(service.operations)
        assert limitations(service) == expected
        assert service.objects == dict.fromkeys(("bucket/in/f", "bucket/in/g"), origin.read_bytes())
        for limitation in expected:
            assert caplog.text.count(limitation.value) == 1


def test_key_that_may_not_replace(tmp_path: Path) -> None:
    """An object that an earlier attempt has stored, and that the key may not replace, is delivered; others are not."""
    origin, retried = file_of(tmp_path), PartialId("a", may_exist=True)
    with LimitedS3({"PUT": DENIED}) as service:
        service.objects["bucket/in/f"] = origin.read_bytes()
        move_it(origin, "s3://bucket/in/", attrs(service), partial_id=retried)
        with pytest.raises(PermissionRefused):
            move_it(origin, "s3://bucket/in/", attrs(service))
        service.objects["bucket/in/f"] = b"x" * SMALL
        with pytest.raises(PermissionRefused):
            move_it(origin, "s3://bucket/in/", attrs(service), partial_id=retried)


def test_object_is_taken_by_its_consumer(tmp_path: Path) -> None:
    """An object that a consumer removes before its size is read was delivered; this is not a limitation."""
    with LimitedS3({"HEAD": (404, "")}) as service:
        move_it(file_of(tmp_path), "s3://bucket/in/", attrs(service))
        assert service.operations.count("PUT") == 1
        assert not limitations(service)


def test_wrong_data_without_permission_to_read(tmp_path: Path) -> None:
    """Without permission to read, an ETag that differs from the MD5 sum of the file fails the delivery."""
    with LimitedS3({"HEAD": (403, "")}, tag="0" * 32) as service:
        with pytest.raises(TemporaryTransferError, match="MD5"):
            move_it(file_of(tmp_path), "s3://bucket/in/", attrs(service))
        assert not limitations(service)


@pytest.mark.parametrize(
    ("rules", "size"),
    [
        ({"PUT": DENIED, "HEAD": (403, "")}, SMALL),
        ({"PUT": DENIED, "create": DENIED}, LARGE),
        ({"part": DENIED}, LARGE),
    ],
)
def test_rejected_uploads_are_not_limitations(tmp_path: Path, rules: dict[str, Any], size: int) -> None:
    """A key without the right to upload fails, and nothing is recorded about the service."""
    with LimitedS3(rules) as service:
        with pytest.raises(PermissionRefused, match="403 AccessDenied"):
            move_it(file_of(tmp_path, size), "s3://bucket/in/", attrs(service))
        assert not limitations(service)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_service_without_new_checksums(tmp_path: Path, size: int) -> None:
    """A service that rejects the checksums of boto3 gets uploads without them; it is found once."""
    origin = file_of(tmp_path, size)
    with LimitedS3(sums=False) as service:
        move_it(origin, "s3://bucket/in/", attrs(service))
        assert limitations(service) == {Limitation.NO_REQUEST_CHECKSUMS}
        service.headers.clear()
        move_it(origin, "s3://bucket/in/g", attrs(service))
        assert "checksum-crc" not in "".join(service.headers).lower()
        assert service.objects["bucket/in/g"] == origin.read_bytes()


def test_configured_checksums(tmp_path: Path) -> None:
    """With ``request_checksum_calculation`` in ``config_kwargs`` the first upload is without new checksums."""
    with LimitedS3(sums=False) as service:
        more = {"config_kwargs": {"request_checksum_calculation": "when_required"}}
        move_it(file_of(tmp_path), "s3://bucket/in/", attrs(service, **more))
        assert service.operations.count("PUT") == 1


def test_unfinished_uploads(tmp_path: Path) -> None:
    """Unfinished uploads are aborted: of an earlier attempt, and in the same directory those older than a day."""
    kept = {"in/other": RECENT, "elsewhere/old": OLD, "in/below/old": OLD, "in/fx": RECENT}
    origin = file_of(tmp_path, LARGE)
    with LimitedS3(uploads={"in/f": RECENT, "in/old": OLD, **kept}) as service:
        move_it(origin, "s3://bucket/in/", attrs(service), partial_id=PartialId("a", may_exist=False))
        assert service.uploads == {"in/f": RECENT, **kept}
        move_it(origin, "s3://bucket/in/", attrs(service), partial_id=PartialId("a", may_exist=True))
        assert service.uploads == kept
        assert service.operations.count("uploads") == 2


def test_unfinished_upload_to_the_same_key(tmp_path: Path) -> None:
    """A delivery of a newer version aborts an upload to its key that began before this process connected."""
    now = dt.datetime.now(dt.UTC)
    before, since = (f"{now + dt.timedelta(minutes=m):%Y-%m-%dT%H:%M:%S}.000Z" for m in (-5, 5))
    with LimitedS3(uploads={"in/f": before, "in/g": before, "in/h": since, "in/i": before}) as service:
        for name in ("f", "g", "h"):  # the directory is searched with the first one
            move_it(file_of(tmp_path, LARGE, name), "s3://bucket/in/", attrs(service))
        assert service.uploads == {"in/h": since, "in/i": before}
        assert service.operations.count("uploads") == 2


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize(
    "redirect", [(307, "TemporaryRedirect"), (301, "PermanentRedirect"), (308, "Redirect"), (302, "")]
)
def test_redirects_do_not_carry_credentials(
    tmp_path: Path, size: int, redirect: tuple[int, str], caplog: pytest.LogCaptureFixture
) -> None:
    """A redirect to another host is not followed: that host gets no request, so neither key nor token."""
    caplog.set_level("DEBUG")
    with LimitedS3() as other, LimitedS3(location=other.url, redirect=redirect) as service:
        with pytest.raises(TransferError) as caught:
            move_it(file_of(tmp_path, size), "s3://bucket/in/", attrs(service, token=TOKEN))
        assert not other.operations
        shown = caplog.text + "".join(traceback.format_exception(caught.value))
        assert not any(secret in shown for secret in (SECRET, TOKEN))


@pytest.mark.parametrize("login", [f"{KEY}:gehe1m%2Fpass+word", f"{KEY}:gehe1m%2Fpass+word"[:-4] + "%0A"])
def test_login_in_the_url(tmp_path: Path, login: str) -> None:
    """The login of a URL is key and secret, not part of the bucket; with a line break it is permanently rejected."""
    with LimitedS3() as service:
        more = attrs(service, key=None, secret=None)
        if login.endswith("%0A"):
            with pytest.raises(BadDestination, match="line breaks") as caught:
                move_it(file_of(tmp_path), f"s3://{login}@bucket/in/", more)
            assert "gehe1m" not in str(caught.value)
            return
        move_it(file_of(tmp_path), f"s3://{login}@bucket/in/", more)
        assert list(service.objects) == ["bucket/in/f"]
        assert f"Credential={KEY}/" in service.headers[0]
        assert "gehe1m" not in "".join(service.headers)


@pytest.mark.parametrize(
    ("url", "more"),
    [
        ("s3://:gehe1m.secret@bucket/in/", {"key": None, "secret": None}),
        (f"s3://{KEY}@bucket/in/", {"key": None, "secret": None}),
        ("s3://bucket/in/", {"secret": None}),
        ("s3://bucket/in/", {"key": None}),
    ],
)
def test_half_a_login(tmp_path: Path, url: str, more: dict[str, Any]) -> None:
    """A key without its secret, or a secret without its key, is rejected before a connection is made."""
    with LimitedS3() as service:
        with pytest.raises(AuthenticationFailed, match="is missing: set both"):
            move_it(file_of(tmp_path), url, attrs(service, **more))
        assert not service.operations
