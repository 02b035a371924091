"""A dispatcher process and the publisher that it subscribes to."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
import zmq
from posttroll.message import Message

from trollmoves.tests.helpers import legacy_peer as earlier
from trollmoves.tests.helpers.daemons import Testbed, script
from trollmoves.tests.helpers.recording import HOST
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers.process import answers

TOPIC = "/level2/viirs"


class RecordedPublisher:
    """A publisher that records its subscriptions."""

    def __init__(self, port: int, host: str = HOST) -> None:
        self.port = port
        self.address = f"tcp://{host}:{port}"
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.XPUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.XPUB_VERBOSER, 1)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.bind(self.address)
        self.subscribed: list[str] = []

    def close(self) -> None:
        """Close the socket."""
        self._context.destroy(0)

    def wait_for_subscribers(self, count: int = 1, seconds: float = 20) -> None:
        """Wait until there are at least ``count`` subscriptions."""

        def look() -> bool:
            while self._socket.poll(0):
                frame = self._socket.recv()
                topic = frame[1:].decode()
                if frame[:1] == b"\x01":
                    self.subscribed.append(topic)
                else:
                    self.subscribed.remove(topic)
            return len(self.subscribed) >= count

        until(look, seconds, f"{count} subscriptions")

    def wait_until_unsubscribed(self) -> None:
        """Wait until there is no subscription."""

        def has_none() -> bool:
            self.wait_for_subscribers(0)
            return not self.subscribed

        until(has_none, 20, "the subscriptions have ended")

    def wait_for_topics(self, topics: Iterable[str], seconds: float = 20) -> None:
        """Wait until each of these topics has a subscriber."""

        def expected() -> bool:
            self.wait_for_subscribers(1, seconds)
            return all(f"pytroll:/{topic}".startswith(tuple(self.subscribed)) for topic in topics)

        until(expected, seconds, f"{topics} are wanted, of which are {self.subscribed}")

    def publish(self, subject: str, kind: str, data: Any) -> None:
        """Publish a message."""
        self.publish_text(str(Message(subject, kind, data)))

    def publish_text(self, text: str) -> None:
        """Publish a text."""
        self._socket.send_string(text)

    def publish_bytes(self, message: bytes) -> None:
        """Publish raw bytes."""
        self._socket.send(message)

    def publish_file(self, path: Path, subject: str = TOPIC, **metadata: Any) -> None:
        """Publish a message about a file."""
        self.publish(subject, "file", {"uri": str(path), "uid": path.name, **metadata})


class DispatcherTestbed:
    """A dispatcher that is not started yet, with a publisher as its source, files, and a subscriber to it."""

    def __init__(self, testbed: Testbed, targets: Mapping[str, Any], *arguments: str, old: bool = False) -> None:
        self.testbed = testbed
        self.publisher = testbed.close_at_end(RecordedPublisher(testbed.port()))
        self.source = testbed.directory("in")
        self.out = testbed.directory("old-out" if old else "out")
        self.port = testbed.port()
        self.targets = targets
        name = "old-dispatcher" if old else "dispatcher"
        self.config = testbed.config(self.text(targets), f"{name}.yaml")
        arguments = arguments or ("-p", str(self.port), *(() if old else ("-n", "false")))
        if old:
            command = [*earlier._command("dispatcher.py"), str(self.config), *arguments]
            environment = earlier._environment(testbed)
            self.process = testbed.process(name, command, self.config, lambda _: answers(self.port), environment)
        else:
            command = [sys.executable, script("dispatcher.py"), str(self.config), *arguments]
            self.process = testbed.process(name, command, self.config)
        self._publishes = "-p" in arguments and str(self.port) in arguments
        self.subscriber = testbed.subscriber(self.port)

    def text(self, targets: Mapping[str, Any]) -> str:
        """Return the text of the configuration file; OUT in it is replaced by the delivery folder."""
        subscriber = {"subscribe_addresses": [self.publisher.address], "nameserver": False}
        text = yaml.safe_dump({"posttroll_subscriber": subscriber, **targets}, allow_unicode=True)
        return text.replace("OUT", str(self.out))

    def start(self) -> DispatcherTestbed:
        """Start it, and wait until it is subscribed."""
        connections = self.subscriber.connections
        self.process.start()
        self.publisher.wait_for_topics(self._topics())
        if self._publishes:
            until(lambda: self.subscriber.connections > connections, 20, "a connected subscriber")
        return self

    def _topics(self) -> list[str]:
        configs = [one for target in self.targets.values() for one in (target, *target.get("dispatch_configs", ()))]
        return [topic for config in configs for topic in config.get("topics", ())]

    def wait_until_processed(self) -> None:
        """Wait until the subscriber receives its messages; the target for "/last" must publish."""

        def recorded() -> bool:
            name = f"first-{time.monotonic_ns()}"
            self.publisher.publish_file(self.file(name), "/last")
            time.sleep(0.05)
            return bool(self.subscriber.of_type("file"))

        until(recorded, 20, "a publication")

    def restart(self) -> None:
        """Restart it after its end, and wait until it is subscribed."""
        self.publisher.wait_until_unsubscribed()
        self.start()

    def reconfigure(self, targets: Mapping[str, Any]) -> None:
        """Replace its configuration, and wait until it is applied."""
        before = self.process.lines().count("configuration reloaded")
        self.process.reconfigure(self.text(targets))
        self.process.wait_for_line("configuration reloaded", before + 1)

    def file(self, name: str, content: str = "") -> Path:
        """Create a file to publish a message about."""
        path = self.source / name
        path.write_text(content or f"content of {name}")
        return path

    def delivered_files(self) -> dict[str, str]:
        """Return the files that were delivered, by their paths, with their content."""
        return {
            str(path.relative_to(self.out)): path.read_text()
            for path in sorted(self.out.rglob("*"))
            if path.is_file() and not path.name.startswith(".")
        }

    def wait_for(self, *names: str, seconds: float = 20) -> dict[str, str]:
        """Wait until these files are delivered; return all delivered files."""
        until(lambda: set(names) <= set(self.delivered_files()), seconds, f"{names} of {list(self.delivered_files())}")
        return self.delivered_files()

    def wait_until_idle(self) -> None:
        """Wait until all earlier messages are processed: a last file is delivered, and no task is pending."""
        name = f"last-{time.monotonic_ns()}"
        self.publisher.publish_file(self.file(name), "/last")
        self.wait_for(f"last/{name}")
        until(lambda: not self.testbed.pending_tasks(), what="nothing waits any more")


LAST = {"last": {"directory": "OUT/last", "dispatch_configs": [{"topics": ["/last"]}]}}
