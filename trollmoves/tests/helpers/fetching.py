"""A process of ``pytroll-fetcher`` or ``s3downloader.py``, with the publisher and the subscriber that it needs."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from trollmoves.tests.helpers.daemons import Process, Testbed, script
from trollmoves.tests.helpers.dispatching import RecordedPublisher
from trollmoves.tests.helpers.recording import ReceivedMessage
from trollmoves.tests.helpers.waiting import until

TOPIC = "/level1b/viirs"
FETCHER, S3DOWNLOADER = "pytroll-fetcher", "s3downloader.py"


class FetchTestbed:
    """A process that is not started yet. ``options`` are added to its configuration; OUT is its directory."""

    def __init__(
        self,
        testbed: Testbed,
        command: str,
        options: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.testbed = testbed
        self.command = command
        self.publisher = testbed.close_at_end(RecordedPublisher(testbed.port()))
        self.out = testbed.directory("out")
        self.port = testbed.port()
        self.subscriber = testbed.subscriber(self.port)
        self.config = testbed.config(self.text(options or {}), f"{command}.yaml")
        self.process = self._new_process(environment or {})

    def _new_process(self, environment: Mapping[str, str]) -> Process:
        ports = {"POSTTROLL_PUB_MIN_PORT": str(self.port), "POSTTROLL_PUB_MAX_PORT": str(self.port + 1)}
        given = ["-c", str(self.config), "-r", "false", "-n", "false"] if self.is_s3downloader else [str(self.config)]
        command = [sys.executable, script(self.command), *given]
        return self.testbed.process(
            self.command, command, self.config, environment=self.testbed.environment | ports | dict(environment)
        )

    @property
    def is_s3downloader(self) -> bool:
        """Return True for ``s3downloader.py``."""
        return self.command == S3DOWNLOADER

    def text(self, options: Mapping[str, Any]) -> str:
        """Return the text of the configuration file."""
        base: dict[str, Any]
        if self.is_s3downloader:
            base = {
                "logging": {"log_rotation_days": 1, "log_rotation_backup": 30},
                "subscribe-topic": TOPIC,
                "publish-topic": "/fetched",
                "subscriber_addresses": self.publisher.address,
                "download_destination": str(self.out),
            }
        else:
            base = {
                "destination": str(self.out),
                "subscriber_config": {"addresses": [self.publisher.address], "nameserver": False, "topics": [TOPIC]},
                "publisher_config": {"name": "fetcher", "port": self.port, "nameservers": False},
            }
        return yaml.safe_dump({**base, **options}).replace("OUT", str(self.out))

    def give_login(self, key: Path, known_hosts: str) -> Path:
        """Give the user of the process a key and the keys of hosts; return the directory of both."""
        folder = self.testbed.directory("home/.ssh")
        shutil.copy(key, folder / "id_ed25519")
        (folder / "known_hosts").write_text(known_hosts)
        return folder

    def start(self) -> FetchTestbed:
        """Start it, and wait until it is subscribed and has its subscriber."""
        connections = self.subscriber.connections
        self.process.start()
        self.publisher.wait_for_topics([TOPIC])
        until(lambda: self.subscriber.connections > connections, 20, "its subscriber is connected")
        return self

    def restart(self) -> None:
        """Start it again after its end, and wait as ``start``."""
        self.publisher.wait_until_unsubscribed()
        self.start()

    def fetched(self, count: int = 1, seconds: float = 20) -> list[ReceivedMessage]:
        """Wait for at least ``count`` published messages; return all of them."""
        return self.subscriber.wait_for(count, "file", "dataset", "collection", seconds=seconds)

    def files(self) -> dict[str, bytes]:
        """Return the content of all files in the directory, also of hidden ones, by relative path."""
        paths: list[Path] = [path for path in self.out.rglob("*") if path.is_file()]
        return {str(path.relative_to(self.out)): path.read_bytes() for path in paths}
