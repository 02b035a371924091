"""The mirror daemon: re-announces files from upstream servers and fetches them on demand."""

from __future__ import annotations

import logging
import tempfile
from argparse import ArgumentParser
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from trollmoves.chains import Chain, Runtime
from trollmoves.config.config_file import Configuration
from trollmoves.config.options import MirrorOptions
from trollmoves.daemon import Receiver
from trollmoves.daemons.provider import ProviderChain, ProviderDaemon
from trollmoves.errors import ConfigError, MessageError, RequestRejected, TrollmovesError, UnpackError
from trollmoves.journal import Task
from trollmoves.messaging import payload
from trollmoves.messaging.messages import Message
from trollmoves.messaging.publisher import Publisher
from trollmoves.messaging.requester import Requester
from trollmoves.mirror.cache import RELAY_KEY, UNPACK, MirrorCache
from trollmoves.net import urls
from trollmoves.provider.announcer import Announcement
from trollmoves.provider.request_handler import RequestHandler
from trollmoves.receiver.announcements import AnnouncementReceiver, keeping_subscribers
from trollmoves.receiver.destinations import Destinations
from trollmoves.receiver.fetch_attempt import FetchAttempt, NotDelivered
from trollmoves.receiver.fetch_tasks import KIND, FetchTasks, file_key, is_again
from trollmoves.receiver.fetcher import Fetcher
from trollmoves.receiver.fleet_addresses import FleetAddresses
from trollmoves.receiver.peers import Peers
from trollmoves.scheduler.lanes import Result
from trollmoves.spool import Spool

logger = logging.getLogger(__name__)

RELAY_CONCURRENCY = 1  # keeps the order of the announcements
RELAY = "relay"
UNPACK_CONCURRENCY = 4
CLIENT_RETRY_WINDOW = 300.0  # s in which clients repeat requests; fetched files are kept for at least this long


class MirrorChain(ProviderChain):
    """A running section of a mirror: a receiver for upstream servers and a request handler for clients."""

    request_handler: RequestHandler

    def __init__(self, options: MirrorOptions, runtime: Runtime, publisher: Publisher) -> None:
        """Bind the request port and connect; raise StartError or ConfigError on failure."""
        if options.request_port is None:
            raise ConfigError("is missing", section=options.name, option="request_port")
        self.name = options.name
        self._info = options.info
        self._journal = runtime.journal
        self._scheduler = runtime.scheduler
        destinations = Destinations(
            options.name,
            options.destination or options.working_directory or tempfile.gettempdir(),
            login=options.login,
            make=options.create_target_directory,
            ftp_root=options.ftp_root,
        )
        peers = Peers(0.0)  # a mirror has no hot spare
        fleets = FleetAddresses()
        self._requester = Requester(self.name)
        self._relays = FetchTasks(
            self.name,
            runtime.journal,
            peers,
            options.delay,
            self._on_late_source,
            kind=RELAY,
            repeat_after=options.repeat_after,
        )
        self._cache = MirrorCache(options, runtime.journal, runtime.scheduler, destinations, self._relays)
        self.request_handler = RequestHandler(
            options, options.request_port, runtime, publisher, self._cache, self._cache.sources
        )
        self.announcer = self.request_handler.announcer
        self.announcer.on_announced = runtime.on_announced
        self._fetcher = Fetcher(
            options,
            runtime.journal,
            runtime.scheduler,
            self._requester,
            self._cache,
            peers,
            fleets,
            prepare=self._cache.url,
            on_request=lambda _: None,
            on_delivered=self._on_fetched,
            on_failed=self._on_fetch_failed,
        )
        self._receiver = AnnouncementReceiver(options, runtime, self._requester, self._relays, peers, fleets)

    def start(self) -> None:
        """Start serving requests, then fetching and relaying, then receiving announcements."""
        self._requester.start()
        self._fetcher.start()
        self.request_handler.start()
        self._scheduler.register(self.name, UNPACK, limit=UNPACK_CONCURRENCY, handler=self._unpack)
        self._scheduler.register(self.name, RELAY, limit=RELAY_CONCURRENCY, handler=self._relay)
        self._receiver.start()

    def stop(self) -> None:
        """Stop receiving announcements and requests; pending fetches and pushes continue after the next start."""
        self._receiver.stop()
        self.request_handler.stop()
        self._fetcher.stop()
        self._requester.stop()

    def on_dropped(self, tasks: Sequence[Task]) -> None:
        """Reject the requests for files that an operator dropped, or that are not fetched because of it."""
        self.request_handler.pushes.on_dropped(tasks)
        for task in tasks:
            if task.kind == KIND:
                self._on_fetch_failed(task, RequestRejected("dropped by the operator of the mirror"))

    def provider_states(self) -> dict[str, bool]:
        """Return whether each provider is connected, by address. Any thread."""
        return self._receiver.provider_states()

    @property
    def replayed(self) -> int:
        """The number of announcements that the chain had missed and requested since its start."""
        return self._receiver.replayed

    # -- relaying announcements

    def _relay(self, task: Task) -> Result:
        """Announce the files of an upstream announcement with the address of this mirror. Worker thread."""
        announcements = self._relays.announcements_after_fetch(task)
        message = task.context or Message.decode(next(iter(announcements.values())))
        upstream_data = {key: value for key, value in message.data.items() if key not in payload.TRANSPORT_KEYS}
        data = self._cache.with_unpacked_names(upstream_data) | self._info
        uris = payload.file_uris(data)
        if not uris:
            raise MessageError("it names no file outside of its transport keys")
        metadata = payload.announcement_metadata(message.data)
        size = metadata.get("size") if uris == payload.file_uris(upstream_data) else None  # unknown if unpacked
        mtime = metadata.get("mtime", int(message.time.timestamp() * 1e9))
        returned = {payload.RETURNED: True} if metadata.get(payload.RETURNED) else {}
        announcement = Announcement(
            uris[0],
            payload.file_names(data),
            data,
            size,
            mtime,
            message.type,
            extra_metadata={RELAY_KEY: task.key, **returned},
            again=is_again(task),
        )
        if not self.announcer.announce([announcement]) and self.announcer.is_stopped:
            return Result(retry_in=0.0)
        return Result()

    def _on_late_source(self, source: str, announcement: str) -> None:
        """Acknowledge an announcement of a further source if its files are already fetched; else it can serve them."""
        for text in self._relays.latest_announcements(file_key(Message.decode(announcement).data)).values():
            with suppress(MessageError):  # a rejected announcement
                uri = payload.file_uris(self._cache.with_unpacked_names(Message.decode(text).data))[0]
                announced = self._journal.latest_announcement(self.name, uri)
                if announced and self._journal.finished_for(self.name, (KIND,), announced.number):
                    self._fetcher.acknowledge(source, announcement)
                    return

    # -- fetching and serving

    def _on_fetched(self, attempt: FetchAttempt, reply: Message) -> tuple[Result, list[str]]:  # noqa: ARG002
        number = attempt.task.announcement_number or 0
        missing = self._cache.missing_path(number)
        if missing:
            error = NotDelivered(f"{attempt.source} reported a delivery, but {missing} does not exist")
            return Result(error=error, on_committed=lambda: self._on_fetch_failed(attempt.task, error)), []
        logger.info("[%s] fetched %s from %s", self.name, payload.file_names(attempt.message.data), attempt.source)
        delivery = attempt.delivery(urls.without_login(attempt.destination))
        removals = self.request_handler.removals.tasks_for(number, extra_delay=CLIENT_RETRY_WINDOW)
        if self._cache.packed_files(number):
            key = f"{number} {self._journal.now():.3f}"
            unpack = Task(self.name, UNPACK, key, UNPACK, "", announcement_number=number)
            return Result(follow_ups=(unpack, *removals), files=attempt.stats(), delivery=delivery), []
        on_committed = partial(self.request_handler.pushes.resume, number)
        return Result(follow_ups=removals, on_committed=on_committed, files=attempt.stats(), delivery=delivery), []

    def _unpack(self, task: Task) -> Result:
        """Unpack fetched files and resume their pushes. Worker thread."""
        number = task.announcement_number or 0
        try:
            self._cache.unpack(number)
        except UnpackError as failure:
            if failure.temporary:
                raise
            error = failure
            return Result(error=error, on_committed=lambda: self.request_handler.pushes.fail_pending(number, error))
        return Result(on_committed=lambda: self.request_handler.pushes.resume(number))

    def _on_fetch_failed(self, task: Task, error: TrollmovesError) -> None:
        number = task.announcement_number or 0
        self.request_handler.pushes.fail_pending(number, error)
        if not error.temporary:
            self._cache.remove_if_empty(number)


class Mirror(ProviderDaemon[MirrorOptions]):
    """The mirror daemon: one publisher for all its chains."""

    role = "mirror"
    options = MirrorOptions
    service = "move_it_mirror"

    def make_chain(self, options: MirrorOptions, runtime: Runtime) -> Chain:
        """Return a new chain for a section."""
        return MirrorChain(options, runtime, self._publisher)

    def keep_messages(self, found: Configuration[MirrorOptions], spool: Spool) -> Sequence[Receiver]:
        """Return a subscriber for each chain with valid addresses."""
        return keeping_subscribers(found.sections.values(), spool)


def make_parser() -> ArgumentParser:
    """Return the parser of the command line."""
    return Mirror.make_parser("Re-announce files from upstream servers and fetch them on demand.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``move_it_mirror.py``; return its exit status."""
    return Mirror(make_parser().parse_args(argv)).run()
