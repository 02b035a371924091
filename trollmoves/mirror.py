"""Announced there: announce it here, fetch it when asked."""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from trollmoves import steps
from trollmoves.copies import HEARD, UNPACK, Copies
from trollmoves.daemon import Chain, Daemon, House
from trollmoves.errors import ConfigError, MessageError, TrollmovesError, UnpackError
from trollmoves.journal import Task
from trollmoves.lanes import Result
from trollmoves.messaging import contents
from trollmoves.messaging.messages import Message
from trollmoves.messaging.publisher import Publisher
from trollmoves.messaging.requester import Requester
from trollmoves.options import MirrorOptions
from trollmoves.provider import pushes
from trollmoves.provider.announcer import Announcement
from trollmoves.provider.requests import Provider, advice
from trollmoves.receiver.destinations import Destinations
from trollmoves.receiver.ears import Receiver
from trollmoves.receiver.fetcher import Attempt, Fetcher, NotDelivered
from trollmoves.receiver.fetches import KIND, Fetches, key_of
from trollmoves.receiver.peers import Peers

log = logging.getLogger(__name__)

PUBLISH_PORT = 9010
RELAYED_AT_ONCE = 1  # announcements go on in the order in which they came
RELAY = "relay"
UNPACKED_AT_ONCE = 4
ASKED_AGAIN_WITHIN = 300.0  # s in which a client asks again; copies that nobody was given are kept as long
_NOT_OURS = ("request_address", "destination", "announcement", "request")


class MirrorChain:
    """One section of a mirror, running: a receiver and a provider, back to back."""

    def __init__(self, options: MirrorOptions, house: House, publisher: Publisher) -> None:
        """Bind the request port and connect; StartError when that fails."""
        if options.request_port is None:
            raise ConfigError("is missing", section=options.name, option="request_port")
        self.name = options.name
        self._info = options.info
        self._journal = house.journal
        self._workers = house.workers
        destinations = Destinations(
            options.name,
            options.destination or options.working_directory or tempfile.gettempdir(),
            login=options.login,
            make=options.create_target_directory,
            ftp_root=options.ftp_root,
        )
        peers = Peers(0.0)  # nobody else fetches for a mirror
        self._requester = Requester(self.name)
        self._relays = Fetches(self.name, house.journal, peers, options.delay, self._hear_late, kind=RELAY)
        self._copies = Copies(options, house.journal, house.workers, destinations, self._relays)
        self._provider = Provider(options, options.request_port, house.journal, publisher, house.workers, self._copies)
        self.announcer = self._provider.announcer
        self._fetcher = Fetcher(
            options,
            house.journal,
            self._requester,
            self._copies,
            peers,
            prepare=self._copies.url,
            asking=lambda _: None,
            arrived=self._arrived,
            lost=self._lost,
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
        self._workers.register(self.name, UNPACK, limit=UNPACKED_AT_ONCE, handler=self._unpack)
        self._workers.register(self.name, RELAY, limit=RELAYED_AT_ONCE, handler=self._relay)
        self._receiver.start()

    def stop(self) -> None:
        """Hear nothing more, answer nothing more; what was asked for is fetched and handed on after the next start."""
        self._receiver.stop()
        self._provider.stop()
        self._requester.stop()

    # -- heard, and announced

    def _relay(self, task: Task) -> Result:
        """Announce what was heard, as ours; runs on a worker."""
        steps.reached("relaying")
        told = self._relays.arrived(task)
        message = task.context or Message.decode(next(iter(told.values())))
        heard = {key: value for key, value in message.data.items() if key not in _NOT_OURS}
        data = self._copies.unpacked(heard) | self._info
        if not contents.uris(data):
            raise MessageError("it names no file but where a name means nothing")
        mark = contents.announcement_mark(message.data)
        size = mark.get("size") if contents.uris(data) == contents.uris(heard) else None  # unpacked it has another
        mtime = mark.get("mtime", int(message.time.timestamp() * 1e9))
        announcement = Announcement(
            contents.uris(data)[0], contents.names(data), data, size, mtime, message.type, also={HEARD: task.key}
        )
        if not self.announcer.announce([announcement]) and self.announcer.is_stopped:
            return Result(again_in=0.0)
        return Result()

    def _hear_late(self, source: str, announcement: str) -> None:
        """Tell a source of what was fetched already that it is not needed; before, it is one more to ask."""
        for told in self._relays.told_of(key_of(Message.decode(announcement).data)).values():
            with suppress(MessageError):  # that one could not be announced
                uri = contents.uris(self._copies.unpacked(Message.decode(told).data))[0]
                announced = self._journal.announced(self.name, uri)
                if announced and self._journal.done_about(self.name, (KIND,), announced.number):
                    self._fetcher.acknowledge(source, announcement)
                    return

    # -- fetched, and handed on

    def _arrived(self, attempt: Attempt, answer: Message) -> Result:  # noqa: ARG002
        steps.reached("copy-here")
        number = attempt.task.about or 0
        missing = self._copies.not_here(number)
        if missing:
            error = NotDelivered(f"{attempt.source} says that it delivered {missing}, which is not there")
            return Result(error=error, after=lambda: self._lost(attempt.task, error))
        log.info("[%s] fetched %s from %s", self.name, contents.names(attempt.message.data), attempt.source)
        removals = self._provider.removals.of(number, later=ASKED_AGAIN_WITHIN)
        if self._copies.packed(number):
            unpack = Task(self.name, UNPACK, f"{number} {self._journal.now():.3f}", UNPACK, "", about=number)
            return Result(then=(unpack, *removals))
        return Result(then=removals, after=lambda: self._provider.pushes.wake(number))

    def _unpack(self, task: Task) -> Result:
        """Unpack what was fetched, and hand it on; runs on a worker."""
        number = task.about or 0
        try:
            self._copies.unpack(number)
        except UnpackError as failure:
            if failure.temporary:
                raise
            error = failure
            return Result(error=error, after=lambda: self._provider.pushes.give_up(number, error))
        steps.reached("unpacked")
        return Result(after=lambda: self._provider.pushes.wake(number))

    def _lost(self, task: Task, error: TrollmovesError) -> None:
        number = task.about or 0
        self._provider.pushes.give_up(number, error)
        if not error.temporary:
            self._copies.tidy(number)


class Mirror(Daemon[MirrorOptions]):
    """The mirror daemon: one publisher for all its chains."""

    role = "mirror"
    options = MirrorOptions
    remains = {"push": pushes.remains}

    def open(self, house: House) -> None:
        """Bind the publish port."""
        self._publisher = Publisher(
            "move_it_mirror",
            self.arguments.port,
            bind_address=house.options.bind_address,
            clients=house.options.allowed_clients,
            beat_data=self._beat,
        )
        self._publisher.start()

    def advice(self, chains: Iterable[MirrorOptions]) -> str:
        """Say what these chains allow that may not be meant."""
        return advice(chains)

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
