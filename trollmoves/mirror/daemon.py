"""Announced there: announce it here, fetch it when asked."""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from trollmoves.config.options import MirrorOptions
from trollmoves.daemon import Chain, Daemon, Runtime
from trollmoves.errors import ConfigError, MessageError, TrollmovesError, UnpackError
from trollmoves.journal import Task
from trollmoves.messaging import payload
from trollmoves.messaging.messages import Message
from trollmoves.messaging.publisher import Publisher
from trollmoves.messaging.requester import Requester
from trollmoves.mirror.cache import RELAY_KEY, UNPACK, MirrorCache
from trollmoves.provider import pushes
from trollmoves.provider.announcer import Announcement
from trollmoves.provider.request_handler import RequestHandler, security_warning
from trollmoves.receiver.announcements import AnnouncementReceiver
from trollmoves.receiver.destinations import Destinations
from trollmoves.receiver.fetch_tasks import KIND, FetchTasks, file_key
from trollmoves.receiver.fetcher import FetchAttempt, Fetcher, NotDelivered
from trollmoves.receiver.peers import Peers
from trollmoves.scheduler.lanes import Result
from trollmoves.utils import failpoints

log = logging.getLogger(__name__)

PUBLISH_PORT = 9010
RELAY_CONCURRENCY = 1  # announcements go on in the order in which they came
RELAY = "relay"
UNPACK_CONCURRENCY = 4
CLIENT_RETRY_WINDOW = 300.0  # s in which a client asks again; copies that nobody was given are kept as long


class MirrorChain:
    """One section of a mirror, running: a receiver and a provider, back to back."""

    def __init__(self, options: MirrorOptions, house: Runtime, publisher: Publisher) -> None:
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
        self._relays = FetchTasks(self.name, house.journal, peers, options.delay, self._on_late_source, kind=RELAY)
        self._copies = MirrorCache(options, house.journal, house.workers, destinations, self._relays)
        self._provider = RequestHandler(
            options, options.request_port, house.journal, publisher, house.workers, self._copies
        )
        self.announcer = self._provider.announcer
        self._fetcher = Fetcher(
            options,
            house.journal,
            self._requester,
            self._copies,
            peers,
            prepare=self._copies.url,
            asking=lambda _: None,
            arrived=self._on_fetched,
            lost=self._on_fetch_failed,
        )
        self._receiver = AnnouncementReceiver(
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
        self._workers.register(self.name, UNPACK, limit=UNPACK_CONCURRENCY, handler=self._unpack)
        self._workers.register(self.name, RELAY, limit=RELAY_CONCURRENCY, handler=self._relay)
        self._receiver.start()

    def stop(self) -> None:
        """Hear nothing more, answer nothing more; what was asked for is fetched and handed on after the next start."""
        self._receiver.stop()
        self._provider.stop()
        self._requester.stop()

    # -- heard, and announced

    def _relay(self, task: Task) -> Result:
        """Announce what was heard, as ours; runs on a worker."""
        failpoints.hit("relaying")
        told = self._relays.announcements_after_fetch(task)
        message = task.context or Message.decode(next(iter(told.values())))
        heard = {key: value for key, value in message.data.items() if key not in payload.TRANSPORT_KEYS}
        data = self._copies.with_unpacked_names(heard) | self._info
        if not payload.file_uris(data):
            raise MessageError("it names no file but where a name means nothing")
        mark = payload.announcement_metadata(message.data)
        size = (
            mark.get("size") if payload.file_uris(data) == payload.file_uris(heard) else None
        )  # unpacked it has another
        mtime = mark.get("mtime", int(message.time.timestamp() * 1e9))
        announcement = Announcement(
            payload.file_uris(data)[0],
            payload.file_names(data),
            data,
            size,
            mtime,
            message.type,
            extra_metadata={RELAY_KEY: task.key},
        )
        if not self.announcer.announce([announcement]) and self.announcer.is_stopped:
            return Result(retry_in=0.0)
        return Result()

    def _on_late_source(self, source: str, announcement: str) -> None:
        """Tell a source of what was fetched already that it is not needed; before, it is one more to ask."""
        for told in self._relays.latest_announcements(file_key(Message.decode(announcement).data)).values():
            with suppress(MessageError):  # that one could not be announced
                uri = payload.file_uris(self._copies.with_unpacked_names(Message.decode(told).data))[0]
                announced = self._journal.latest_announcement(self.name, uri)
                if announced and self._journal.finished_for(self.name, (KIND,), announced.number):
                    self._fetcher.acknowledge(source, announcement)
                    return

    # -- fetched, and handed on

    def _on_fetched(self, attempt: FetchAttempt, answer: Message) -> Result:  # noqa: ARG002
        failpoints.hit("copy-here")
        number = attempt.task.announcement_number or 0
        missing = self._copies.missing_path(number)
        if missing:
            error = NotDelivered(f"{attempt.source} says that it delivered {missing}, which is not there")
            return Result(error=error, on_committed=lambda: self._on_fetch_failed(attempt.task, error))
        log.info("[%s] fetched %s from %s", self.name, payload.file_names(attempt.message.data), attempt.source)
        removals = self._provider.removals.tasks_for(number, extra_delay=CLIENT_RETRY_WINDOW)
        if self._copies.packed_files(number):
            unpack = Task(
                self.name, UNPACK, f"{number} {self._journal.now():.3f}", UNPACK, "", announcement_number=number
            )
            return Result(follow_ups=(unpack, *removals))
        return Result(follow_ups=removals, on_committed=lambda: self._provider.pushes.resume(number))

    def _unpack(self, task: Task) -> Result:
        """Unpack what was fetched, and hand it on; runs on a worker."""
        number = task.announcement_number or 0
        try:
            self._copies.unpack(number)
        except UnpackError as failure:
            if failure.temporary:
                raise
            error = failure
            return Result(error=error, on_committed=lambda: self._provider.pushes.fail_pending(number, error))
        failpoints.hit("unpacked")
        return Result(on_committed=lambda: self._provider.pushes.resume(number))

    def _on_fetch_failed(self, task: Task, error: TrollmovesError) -> None:
        number = task.announcement_number or 0
        self._provider.pushes.fail_pending(number, error)
        if not error.temporary:
            self._copies.remove_if_empty(number)


class Mirror(Daemon[MirrorOptions]):
    """The mirror daemon: one publisher for all its chains."""

    role = "mirror"
    options = MirrorOptions
    compactors = {"push": pushes.compact_body}

    def open_shared(self, house: Runtime) -> None:
        """Bind the publish port."""
        self._publisher = Publisher(
            "move_it_mirror",
            self.arguments.port,
            bind_address=house.options.bind_address,
            clients=house.options.allowed_clients,
            beat_data=self._heartbeat_data,
        )
        self._publisher.start()

    def startup_warning(self, chains: Iterable[MirrorOptions]) -> str:
        """Say what these chains allow that may not be meant."""
        return security_warning(chains)

    def close_shared(self) -> None:
        """Give the publish port back."""
        self._publisher.stop()

    def make_chain(self, options: MirrorOptions, house: Runtime) -> Chain:
        """Make the chain of one section."""
        return MirrorChain(options, house, self._publisher)

    def _heartbeat_data(self) -> dict[str, Any]:
        return {"logs": [c.announcer.heartbeat_data() for c in self.running_chains() if isinstance(c, MirrorChain)]}


def make_parser() -> argparse.ArgumentParser:
    """Give the parser of the command line."""
    parser = Mirror.make_parser("Announce again what other servers announce, and fetch it when clients ask.")
    parser.add_argument(
        "-p", "--port", type=int, default=PUBLISH_PORT, help="port on which files are announced (%(default)s)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``move_it_mirror.py``; give its exit status."""
    return Mirror(make_parser().parse_args(argv)).run()
