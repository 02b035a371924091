"""Where a server's chain learns of files from: directories, or messages."""

from __future__ import annotations

import copy
import json
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from trollmoves import unpacking
from trollmoves.config.options import ServerOptions
from trollmoves.errors import BadDestination, MessageError
from trollmoves.journal import Journal, Task
from trollmoves.matching.patterns import Origin
from trollmoves.messaging import payload
from trollmoves.messaging.messages import Message
from trollmoves.messaging.nameserver import ServiceDiscovery
from trollmoves.messaging.subscriber import PublisherEndpoint, Subscriber
from trollmoves.net import hosts, urls
from trollmoves.provider.announcer import Announcement
from trollmoves.provider.file_store import LINK_DIGESTS, size_and_mtime
from trollmoves.scheduler.lanes import Result
from trollmoves.scheduler.scheduler import Scheduler
from trollmoves.server.symlink_policy import SymlinkPolicy
from trollmoves.utils import failpoints
from trollmoves.watch import DirectoryWatch, FoundFile

log = logging.getLogger(__name__)

Announce = Callable[[Sequence[Announcement]], object]

UNPACK_CONCURRENCY = 4


class DirectorySource:
    """Announces the files that appear under ``origin``; those that are packed, unpacked."""

    def __init__(
        self,
        options: ServerOptions,
        journal: Journal,
        workers: Scheduler,
        whereabouts: SymlinkPolicy,
        announce: Announce,
        *,
        backlog: bool,
        polling: bool,
    ) -> None:
        self._options = options
        self._journal = journal
        self._workers = workers
        self._whereabouts = whereabouts
        self._announce = announce
        self._origin = Origin(options.origin or "")
        self._watch = DirectoryWatch(
            self._origin,
            self._on_found,
            backlog=backlog,
            polling=options.watchdog_timeout if polling else None,
            name=options.name,
        )

    def start(self) -> None:
        """Look at what is there, and wait for more."""
        if self._options.compression:
            self._workers.register(self._options.name, "unpack", limit=UNPACK_CONCURRENCY, handler=self._unpack)
        self._watch.start()

    def stop(self) -> None:
        """Look no more."""
        self._watch.stop()

    def _on_found(self, found: list[FoundFile]) -> None:
        failpoints.hit("found")
        admitted = self._whereabouts.allowed_files(one.path for one in found)
        found = [one for one in found if one.path in admitted]
        packed = [one for one in found if self._is_packed(one.path)]
        if packed:
            noted = self._journal.add_tasks([self._unpack_task(one) for one in packed])
            self._workers.submit([task for task, new in noted if new])
        plain = [
            self._announcement(one.path, one.fields, one.size, one.mtime_ns, admitted[one.path])
            for one in found
            if one not in packed
        ]
        if plain:
            self._announce(plain)

    def _announcement(
        self, path: str, fields: dict[str, Any], size: int, mtime: int, leads_to: list[str]
    ) -> Announcement:
        uid = os.path.basename(path)
        data = {**self._options.info, **fields, "uri": path, "uid": uid}
        return Announcement(path, uid, data, size, mtime, extra_metadata={LINK_DIGESTS: leads_to} if leads_to else {})

    # -- packed files

    def _is_packed(self, path: str) -> bool:
        kind = self._options.compression
        return kind is not None and unpacking.applies(kind, path)

    def _unpack_task(self, found: FoundFile) -> Task:
        key = f"{found.path} {found.size} {found.mtime_ns}"
        return Task(self._options.name, "unpack", key, "unpack", json.dumps(found.path))

    def _unpack(self, task: Task) -> Result | None:
        """Unpack a file, announce what was in it; runs on a worker."""
        path = json.loads(task.body)
        options = self._options
        fields = self._origin.parse(path)
        if fields is None or not os.path.exists(path) or not self._whereabouts.allowed_files([path]):
            log.warning("[%s] %s is gone, not unpacked", options.name, path)
            return None
        directory = options.working_directory or tempfile.gettempdir()
        unpacked = unpacking.unpack(options.compression or "", path, directory, program=options.prog)
        failpoints.hit("unpacked")
        versions = [(one, size_and_mtime([one])) for one in unpacked]
        marked = self._whereabouts.link_digests
        self._announce(
            [self._announcement(one, fields, *version, marked([one])) for one, version in versions if version]
        )
        log.info("[%s] unpacked %s", options.name, os.path.basename(path))
        if options.delete:
            os.unlink(path)
        return None


class MessageSource:
    """Announces the files on this host that messages tell of."""

    def __init__(self, options: ServerOptions, whereabouts: SymlinkPolicy, announce: Announce) -> None:
        """Connect to the addresses that are known; StartError when one is none."""
        self._options = options
        self._whereabouts = whereabouts
        self._announce = announce
        self._topics = options.topics or (options.listen or "",)
        self._listener = Subscriber(options.name, self._providers(options.addresses), self._on_messages)
        self._finder = None
        if options.nameserver is not False:
            self._finder = ServiceDiscovery(
                options.services, options.nameserver, options.timeout, self._on_addresses, follow=options.addr_listener
            )

    def start(self) -> None:
        """Begin to hear."""
        self._listener.start()
        if self._finder:
            self._finder.start()

    def stop(self) -> None:
        """Hear no more."""
        if self._finder:
            self._finder.stop()
        self._listener.stop()

    def _providers(self, addresses: Sequence[str]) -> list[PublisherEndpoint]:
        return [PublisherEndpoint(a if "://" in a else f"tcp://{a}", self._topics) for a in addresses]

    def _on_addresses(self, addresses: Sequence[str]) -> None:
        self._listener.add_publishers(self._providers(addresses))

    def _on_messages(self, _: str, messages: list[Message]) -> None:
        announcements = []
        for message in messages:
            if message.type not in payload.FILE_TYPES:
                continue
            try:
                announcements.append(self._announcement(message))
            except MessageError as error:
                log.warning("[%s] message about %s passed over: %s", self._options.name, message.subject, error)
        if announcements:
            self._announce(announcements)

    def _announcement(self, message: Message) -> Announcement:
        """Make an announcement of a message; MessageError when its files are not here."""
        if not isinstance(message.data, dict):
            raise MessageError("its data is no dictionary")
        data = copy.deepcopy({key: value for key, value in message.data.items() if key not in payload.TRANSPORT_KEYS})
        items = payload.file_items(data)
        if not items:
            raise MessageError("it names no file")
        for item in items:
            item["uri"] = path = _local_path(item["uri"])
            item.setdefault("uid", os.path.basename(path))
        version = size_and_mtime(item["uri"] for item in items)
        if version is None:
            raise MessageError(f"not here: {payload.file_names(data)}")
        paths = [item["uri"] for item in items]
        also = {LINK_DIGESTS: marks} if (marks := self._whereabouts.link_digests(paths)) else {}
        return Announcement(
            paths[0], payload.file_names(data), data | self._options.info, *version, message.type, extra_metadata=also
        )


def _local_path(uri: Any) -> str:
    if not isinstance(uri, str):
        raise MessageError(f"the name of a file is no text: {urls.excerpt(str(uri), 100)!r}")
    if "://" not in uri:
        return os.path.abspath(uri)
    try:
        url = urls.parse(uri)
    except BadDestination as error:
        raise MessageError(str(error)) from error
    if not hosts.is_local(url.hostname):
        raise MessageError(f"{urls.redacted(url)} is on another host")
    return url.path
