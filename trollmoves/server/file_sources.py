"""File sources of a server chain: a watched directory or messages."""

from __future__ import annotations

import copy
import json
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from trollmoves import unpacking
from trollmoves.config.options import OWN, ServerOptions
from trollmoves.errors import MessageError, RequestRejected
from trollmoves.journal import DONE, Journal, Task
from trollmoves.matching.patterns import Origin
from trollmoves.messaging import payload
from trollmoves.messaging.messages import Message
from trollmoves.messaging.nameserver import ServiceDiscovery
from trollmoves.messaging.subscriber import PublisherEndpoint, Subscriber
from trollmoves.provider.announcer import Announcement
from trollmoves.provider.file_store import LINK_DIGESTS, size_and_mtime
from trollmoves.scheduler.lanes import Result
from trollmoves.scheduler.scheduler import Scheduler
from trollmoves.server.symlink_policy import SymlinkPolicy
from trollmoves.utils.file_versions import FileVersion, remove_version, version_of
from trollmoves.utils.logs import LogThrottle
from trollmoves.utils.ordered_names import RECHECK_DELAY, OrderedNames
from trollmoves.watch import DirectoryWatch, FoundFile
from trollmoves.watch.completeness import check_complete

logger = logging.getLogger(__name__)

Announce = Callable[[Sequence[Announcement]], object]

UNPACK_CONCURRENCY = 4


class DirectorySource:
    """Announces the files that appear under ``origin``; packed files are unpacked first.

    ``announce_unpacked`` replaces ``announce`` for unpacked files. Empty files are skipped unless ``empty`` is set,
    and so are files for which ``accept`` returns False.
    """

    def __init__(
        self,
        options: ServerOptions,
        journal: Journal,
        scheduler: Scheduler,
        symlink_policy: SymlinkPolicy,
        announce: Announce,
        *,
        backlog: bool,
        polling: bool,
        announce_unpacked: Announce | None = None,
        accept: Callable[[FoundFile], bool] = lambda _: True,
        empty: bool = False,
    ) -> None:
        self._options = options
        self._journal = journal
        self._scheduler = scheduler
        self._symlink_policy = symlink_policy
        self._announce = announce
        self._announce_unpacked = announce_unpacked or announce
        self._accept = accept
        self._origin = Origin(options.origin or "")
        self._unpack_order = OrderedNames()
        self._watch = DirectoryWatch(
            self._origin,
            self._on_found,
            backlog=backlog,
            polling=options.watchdog_timeout if polling else None,
            quiet=options.quiet_time,
            name=options.name,
            empty=empty,
            set_aside=partial(journal.set_aside, options.name),
        )

    def start(self) -> None:
        """Start watching the directory."""
        if self._options.compression:
            self._scheduler.register(self._options.name, "unpack", limit=UNPACK_CONCURRENCY, handler=self._unpack)
        self._watch.start()

    def stop(self) -> None:
        """Stop watching the directory."""
        self._watch.stop()

    def _on_found(self, found: list[FoundFile]) -> None:
        allowed = self._symlink_policy.allowed_files(file.path for file in found)
        found = [file for file in found if file.path in allowed and self._accept(file)]
        packed = [file for file in found if self._is_packed(file.path)]
        if packed:
            stored = self._journal.add_tasks([self._unpack_task(file) for file in packed])
            returned = {task.id: task for task, created in stored if not created and self._has_returned(task)}
            if returned:
                self._journal.renew_tasks(returned.values())
            self._scheduler.submit([*(task for task, created in stored if created), *returned.values()])
        plain = [
            self._announcement(file.path, file.fields, file.size, file.mtime_ns, allowed[file.path], fresh=file.fresh)
            for file in found
            if file not in packed
        ]
        if plain:
            self._announce(plain)

    def _announcement(
        self,
        path: str,
        fields: dict[str, Any],
        size: int,
        mtime: int,
        link_digests: list[str],
        *,
        fresh: bool = False,
    ) -> Announcement:
        uid = os.path.basename(path)
        data = {**self._options.info, **fields, "uri": path, "uid": uid}
        metadata = {LINK_DIGESTS: link_digests} if link_digests else {}
        return Announcement(path, uid, data, size, mtime, extra_metadata=metadata, fresh=fresh)

    # -- packed files

    def _has_returned(self, task: Task) -> bool:
        """Return True if a packed file exists that was unpacked and removed."""
        return self._options.delete and task.state == DONE and os.path.exists(json.loads(task.body))

    def _is_packed(self, path: str) -> bool:
        compression = self._options.compression
        return compression is not None and unpacking.applies(compression, path)

    def _unpack_task(self, found: FoundFile) -> Task:
        key = f"{found.path} {found.size} {found.mtime_ns}"
        return Task(self._options.name, "unpack", key, "unpack", json.dumps(found.path))

    def _unpack(self, task: Task) -> Result | None:
        """Unpack a file and announce its contents. Worker thread."""
        path = json.loads(task.body)
        with self._unpack_order.claim((path,), task.id) as current:
            if current is None:
                task.tries -= 1
                return Result(retry_in=RECHECK_DELAY)
            if current:
                self._unpack_version(task, path)
            else:
                logger.info("[%s] not unpacking %s: superseded by a newer version", self._options.name, path)
        return None

    def _unpack_version(self, task: Task, path: str) -> None:
        options = self._options
        opened: list[FileVersion] = []

        def check(fd: int) -> None:
            self._symlink_policy.check_opened(path, fd)
            version = version_of(os.fstat(fd))
            if not task.key.endswith(f" {version.size} {version.mtime_ns}"):
                check_complete(fd, path, options.quiet_time)
            opened.append(version)

        fields = self._origin.parse(path)
        if fields is None or not os.path.exists(path):
            logger.warning("[%s] cannot unpack %s: it is gone, or no longer matches origin", options.name, path)
            return
        directory = options.working_directory or tempfile.gettempdir()
        unpacked = unpacking.unpack(options.compression or "", path, directory, program=options.prog, on_opened=check)
        versions = [(file, size_and_mtime([file])) for file in unpacked]
        link_digests = self._symlink_policy.link_digests
        self._announce_unpacked(
            [self._announcement(file, fields, *version, link_digests([file])) for file, version in versions if version]
        )
        logger.info("[%s] unpacked %s", options.name, os.path.basename(path))
        if options.delete:
            self.remove(path, opened[-1])

    def remove(self, path: str, version: FileVersion) -> bool:
        """Remove a file unless it was replaced by another version; return True if it was removed. Any thread."""
        metadata = {LINK_DIGESTS: self._symlink_policy.link_digests([path])}
        try:
            return remove_version(path, version, check=lambda real: self._symlink_policy.check(path, real, metadata))
        except FileNotFoundError:
            pass
        except RequestRejected as error:
            logger.warning("[%s] kept %s: %s", self._options.name, path, error)
        return False


class MessageSource:
    """Announces the files on this host that received messages name."""

    def __init__(
        self, options: ServerOptions, journal: Journal, symlink_policy: SymlinkPolicy, announce: Announce
    ) -> None:
        """Connect to the configured addresses; raise StartError if an address is invalid."""
        self._options = options
        self._symlink_policy = symlink_policy
        self._announce = announce
        self._throttle = LogThrottle()
        self._topics = options.topics or (options.listen or "",)
        self._subscriber = Subscriber(
            options.name,
            self._publishers(options.addresses),
            self._on_messages,
            set_aside=partial(journal.set_aside, options.name),
        )
        self._discovery = None
        if options.nameserver is not False:
            self._discovery = ServiceDiscovery(
                options.services, options.nameserver, options.timeout, self._on_addresses, follow=options.addr_listener
            )

    def connection_states(self) -> dict[str, bool]:
        """Return whether each publisher is connected, by address. Any thread."""
        return self._subscriber.connection_states()

    def start(self) -> None:
        """Start receiving messages."""
        self._subscriber.start()
        if self._discovery:
            self._discovery.start()

    def stop(self) -> None:
        """Stop receiving messages."""
        if self._discovery:
            self._discovery.stop()
        self._subscriber.stop()

    def _publishers(self, addresses: Sequence[str]) -> list[PublisherEndpoint]:
        return [PublisherEndpoint(a if "://" in a else f"tcp://{a}", self._topics) for a in addresses]

    def _on_addresses(self, addresses: Sequence[str]) -> None:
        self._subscriber.add_publishers(self._publishers(addresses))

    def _on_messages(self, _: str, messages: list[Message]) -> None:
        announcements = []
        for message in messages:
            if message.type not in payload.FILE_TYPES:
                continue
            try:
                announcements.append(self._announcement(message))
            except MessageError as error:
                if (suffix := self._throttle.admit(message.subject)) is not None:
                    # Another member of a fleet may have the file.
                    level = logging.INFO if self._options.files == OWN else logging.WARNING
                    text = "[%s] ignored message about %s: %s%s"
                    logger.log(level, text, self._options.name, message.subject, error, suffix)
        if announcements:
            self._announce(announcements)

    def _announcement(self, message: Message) -> Announcement:
        """Return an announcement for a message; raise MessageError if its files are not on this host."""
        if not isinstance(message.data, dict):
            raise MessageError("its data must be a dictionary")
        data = copy.deepcopy({key: value for key, value in message.data.items() if key not in payload.TRANSPORT_KEYS})
        items = payload.file_items(data)
        if not items:
            raise MessageError("it names no file")
        for item in items:
            uri = item["uri"]
            path = payload.local_path(uri)
            item["uri"] = path = path if "://" in uri else os.path.abspath(path)
            item.setdefault("uid", os.path.basename(path))
        paths = [item["uri"] for item in items]
        version = size_and_mtime(paths)
        if version is None:
            raise MessageError(f"not on this host: {payload.file_names(data)}")
        digests = self._symlink_policy.link_digests(paths)
        metadata = {LINK_DIGESTS: digests} if digests else {}
        data, names = data | self._options.info, payload.file_names(data)
        repeat_after = self._options.repeat_after
        return Announcement(
            *(paths[0], names, data, *version, message.type),
            extra_metadata=metadata,
            fresh=True,
            repeat_after=repeat_after,
        )
