"""Announced there: announce it here, fetch it when asked."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from trollmoves import urls
from trollmoves.daemon import Chain, Daemon, House
from trollmoves.errors import ConfigError
from trollmoves.journal import WAITING, Announced, Journal, Task
from trollmoves.lanes import Result
from trollmoves.messaging import contents
from trollmoves.messaging.messages import Message
from trollmoves.messaging.publisher import Publisher
from trollmoves.messaging.requester import Requester
from trollmoves.options import MirrorOptions
from trollmoves.provider.announcer import Announcement
from trollmoves.provider.holdings import announced_uris
from trollmoves.provider.requests import Provider
from trollmoves.receiver.destinations import Destinations
from trollmoves.receiver.ears import Receiver
from trollmoves.receiver.fetcher import Attempt, Fetcher
from trollmoves.receiver.fetches import KIND, Fetch, Fetches, Told, key_of
from trollmoves.receiver.peers import Peers
from trollmoves.workers import Workers

log = logging.getLogger(__name__)

PUBLISH_PORT = 9010
RELAYED_AT_ONCE = 1  # announcements go on in the order in which they came
RELAY = "relay"
_NOT_OURS = ("request_address", "destination", "announcement", "request")


class Copies:
    """The holdings of a mirror: copies of what inner servers have, fetched when they are asked for.

    Each announcement has a directory of its own, so that files of one name do not meet.
    """

    def __init__(self, name: str, journal: Journal, workers: Workers, destinations: Destinations, relays: Fetches):
        self.name = name
        self._journal = journal
        self._workers = workers
        self._destinations = destinations
        self._relays = relays

    def url(self, task: Task, message: Message) -> str:
        """Give the directory to which inner servers push the files of a fetch."""
        return self._destinations.url(message, below=str(task.about))

    def path(self, number: int, uri: str) -> str:
        """Give the path of the copy of a file."""
        announced = self._journal.announcement(self.name, number)
        if announced is None:
            raise ConfigError(f"announcement {number} is not known any more", section=self.name)
        message = Message.decode(announced.message)
        item = next((item for item in contents.items(message.data) if item["uri"] == uri), {})
        directory = self._destinations.local(urls.parse(self._destinations.url(message, below=str(number))))
        return os.path.join(directory, str(item.get("path") or "").strip("/"), os.path.basename(uri))

    def discard(self, number: int, uri: str) -> None:
        """Remove a copy, and its directory with the last one."""
        path = self.path(number, uri)
        os.unlink(path)
        with suppress(OSError):  # there may be more in it
            os.rmdir(os.path.dirname(path))

    def unchanged(self, announced: Announced) -> bool:  # noqa: ARG002
        """Tell that it may be had: only its source knows."""
        return True

    def bring(self, push: Task) -> bool:
        """Tell whether all copies for a push are here; have them fetched, once for all who ask, when not."""
        number = push.about or 0
        announced = self._journal.announcement(self.name, number)
        if announced is None:
            return True  # the push itself will say that it is gone
        if all(os.path.exists(self.path(number, uri)) for uri in announced_uris(announced)):
            return True
        told = self.told(Task(self.name, KIND, str(number), "", "", about=number))
        source = next(iter(told), "")
        ((task, new),) = self._journal.note([Task(self.name, KIND, str(number), f"{KIND} {source}", "", about=number)])
        if not new and task.state != WAITING:  # it was fetched before, and removed since
            task.state, task.tries, task.due = WAITING, 0, 0.0
            self._journal.rewrite([task])
            new = True
        if new:
            self._workers.expect([task])
        return False

    # -- who has them

    def told(self, task: Task) -> Told:
        """Give the announcements of inner servers that a fetch is about."""
        announced = self._journal.announcement(self.name, task.about or 0)
        return self._relays.told_of(key_of(Message.decode(announced.message).data)) if announced else {}

    def arrived(self, task: Task) -> Told:
        """Give the announcements of inner servers that a fetch is about."""
        return self.told(task)

    def over(self, task: Task) -> None:
        """Nothing is kept for it."""


class MirrorChain:
    """One section of a mirror, running: a receiver and a provider, back to back."""

    def __init__(self, options: MirrorOptions, house: House, publisher: Publisher) -> None:
        """Bind the request port and connect; StartError when that fails."""
        if options.request_port is None:
            raise ConfigError("is missing", section=options.name, option="request_port")
        self.name = options.name
        self._workers = house.workers
        destinations = Destinations(
            options.name,
            options.destination
            or os.path.join(options.working_directory or tempfile.gettempdir(), f"trollmoves-{options.name}"),
            login=options.login,
            make=options.create_target_directory,
            ftp_root=options.ftp_root,
        )
        peers = Peers(0.0)  # nobody else fetches for a mirror
        self._requester = Requester(self.name)
        self._relays = Fetches(self.name, house.journal, peers, options.delay, None, kind=RELAY)
        copies = Copies(self.name, house.journal, house.workers, destinations, self._relays)
        self._provider = Provider(options, options.request_port, house.journal, publisher, house.workers, copies)
        self.announcer = self._provider.announcer
        self._fetcher = Fetcher(
            options,
            house.journal,
            self._requester,
            copies,
            peers,
            prepare=copies.url,
            asking=lambda _: None,
            arrived=self._arrived,
            lost=lambda task, error: self._provider.pushes.give_up(task.about or 0, error),
        )
        self._receiver = Receiver(
            options,
            options.client_topic or options.topic,
            house.journal,
            house.workers,
            self._requester,
            self._relays,
            peers,
        )

    def start(self) -> None:
        """Answer requests, fetch, announce again, hear."""
        self._requester.start()
        self._fetcher.start(self._workers)
        self._provider.start()
        self._workers.register(self.name, RELAY, limit=RELAYED_AT_ONCE, handler=self._relay)
        self._receiver.start()

    def stop(self) -> None:
        """Hear nothing more, answer nothing more; what was asked for is fetched and handed on after the next start."""
        self._receiver.stop()
        self._provider.stop()
        self._requester.stop()

    def _relay(self, task: Task) -> None:
        """Announce what was heard, as ours; runs on a worker."""
        told = Fetch.load(task.body).told
        message = task.context or Message.decode(next(iter(told.values())))
        data = {key: value for key, value in message.data.items() if key not in _NOT_OURS}
        mark = contents.announcement_mark(message.data)
        size = mark.get("size", -1)
        mtime = mark.get("mtime", int(message.time.timestamp() * 1e9))
        uri = contents.uris(data)[0]
        self.announcer.announce([Announcement(uri, contents.names(data), data, size, mtime, message.type)])

    def _arrived(self, attempt: Attempt, answer: Message) -> Result:  # noqa: ARG002
        number = attempt.task.about or 0
        log.info("[%s] fetched %s from %s", self.name, contents.names(attempt.message.data), attempt.source)
        return Result(after=lambda: self._provider.pushes.wake(number))


class Mirror(Daemon[MirrorOptions]):
    """The mirror daemon: one publisher for all its chains."""

    role = "mirror"
    options = MirrorOptions

    def open(self, house: House) -> None:
        """Bind the publish port."""
        self._publisher = Publisher(
            "move_it_mirror", self.arguments.port, bind_address=house.options.bind_address, beat_data=self._beat
        )
        self._publisher.start()

    def close(self) -> None:
        """Give the publish port back."""
        self._publisher.stop()

    def chain(self, options: MirrorOptions, house: House) -> Chain:
        """Make the chain of one section."""
        return MirrorChain(options, house, self._publisher)

    def _beat(self) -> dict[str, Any]:
        return {"logs": [c.announcer.beat() for c in self.running() if isinstance(c, MirrorChain)]}


def arguments() -> argparse.ArgumentParser:
    """Give the parser of the command line."""
    parser = Mirror.parser("Announce again what other servers announce, and fetch it when clients ask.")
    parser.add_argument(
        "-p", "--port", type=int, default=PUBLISH_PORT, help="port on which files are announced (%(default)s)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``move_it_mirror.py``; give its exit status."""
    return Mirror(arguments().parse_args(argv)).run()


if __name__ == "__main__":
    sys.exit(main())
