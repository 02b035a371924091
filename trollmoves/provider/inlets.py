"""Where a server's chain learns of files from: directories, or messages."""

from __future__ import annotations

import copy
import json
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from trollmoves import hosts, steps, unpacking, urls
from trollmoves.errors import BadDestination, MessageError
from trollmoves.journal import Journal, Task
from trollmoves.lanes import Result
from trollmoves.messaging import contents
from trollmoves.messaging.listener import Listener, Provider
from trollmoves.messaging.messages import Message
from trollmoves.messaging.services import ServiceFinder
from trollmoves.options import ServerOptions
from trollmoves.patterns import Origin
from trollmoves.provider.announcer import Announcement
from trollmoves.provider.holdings import measure
from trollmoves.provider.whereabouts import LEADS_TO, Whereabouts
from trollmoves.watch import Found, Watch
from trollmoves.workers import Workers

log = logging.getLogger(__name__)

Announce = Callable[[Sequence[Announcement]], object]

UNPACKED_AT_ONCE = 4
FILES = ("file", "dataset", "collection")
_NOT_OURS = ("request_address", "destination", "announcement", "request")


class Directory:
    """Announces the files that appear under ``origin``; those that are packed, unpacked."""

    def __init__(
        self,
        options: ServerOptions,
        journal: Journal,
        workers: Workers,
        whereabouts: Whereabouts,
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
        self._watch = Watch(
            self._origin,
            self._found,
            backlog=backlog,
            polling=options.watchdog_timeout if polling else None,
            name=options.name,
        )

    def start(self) -> None:
        """Look at what is there, and wait for more."""
        if self._options.compression:
            self._workers.register(self._options.name, "unpack", limit=UNPACKED_AT_ONCE, handler=self._unpack)
        self._watch.start()

    def stop(self) -> None:
        """Look no more."""
        self._watch.stop()

    def _found(self, found: list[Found]) -> None:
        steps.reached("found")
        admitted = self._whereabouts.admitted(one.path for one in found)
        found = [one for one in found if one.path in admitted]
        packed = [one for one in found if self._is_packed(one.path)]
        if packed:
            noted = self._journal.note([self._unpack_task(one) for one in packed])
            self._workers.expect([task for task, new in noted if new])
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
        return Announcement(path, uid, data, size, mtime, also={LEADS_TO: leads_to} if leads_to else {})

    # -- packed files

    def _is_packed(self, path: str) -> bool:
        kind = self._options.compression
        return kind is not None and unpacking.applies(kind, path)

    def _unpack_task(self, found: Found) -> Task:
        key = f"{found.path} {found.size} {found.mtime_ns}"
        return Task(self._options.name, "unpack", key, "unpack", json.dumps(found.path))

    def _unpack(self, task: Task) -> Result | None:
        """Unpack a file, announce what was in it; runs on a worker."""
        path = json.loads(task.body)
        options = self._options
        fields = self._origin.parse(path)
        if fields is None or not os.path.exists(path) or not self._whereabouts.admitted([path]):
            log.warning("[%s] %s is gone, not unpacked", options.name, path)
            return None
        directory = options.working_directory or tempfile.gettempdir()
        unpacked = unpacking.unpack(options.compression or "", path, directory, program=options.prog)
        steps.reached("unpacked")
        versions = [(one, measure([one])) for one in unpacked]
        marked = self._whereabouts.marked
        self._announce(
            [self._announcement(one, fields, *version, marked([one])) for one, version in versions if version]
        )
        log.info("[%s] unpacked %s", options.name, os.path.basename(path))
        if options.delete:
            os.unlink(path)
        return None


class Hearsay:
    """Announces the files on this host that messages tell of."""

    def __init__(self, options: ServerOptions, whereabouts: Whereabouts, announce: Announce) -> None:
        """Connect to the addresses that are known; StartError when one is none."""
        self._options = options
        self._whereabouts = whereabouts
        self._announce = announce
        self._topics = options.topics or (options.listen or "",)
        self._listener = Listener(options.name, self._providers(options.addresses), self._hear)
        self._finder = None
        if options.nameserver is not False:
            self._finder = ServiceFinder(
                options.services, options.nameserver, options.timeout, self._follow, follow=options.addr_listener
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

    def _providers(self, addresses: Sequence[str]) -> list[Provider]:
        return [Provider(a if "://" in a else f"tcp://{a}", self._topics) for a in addresses]

    def _follow(self, addresses: Sequence[str]) -> None:
        self._listener.follow(self._providers(addresses))

    def _hear(self, _: str, messages: list[Message]) -> None:
        announcements = []
        for message in messages:
            if message.type not in FILES:
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
        data = copy.deepcopy({key: value for key, value in message.data.items() if key not in _NOT_OURS})
        items = contents.items(data)
        if not items:
            raise MessageError("it names no file")
        for item in items:
            item["uri"] = path = _local_path(item["uri"])
            item.setdefault("uid", os.path.basename(path))
        version = measure(item["uri"] for item in items)
        if version is None:
            raise MessageError(f"not here: {contents.names(data)}")
        paths = [item["uri"] for item in items]
        also = {LEADS_TO: marks} if (marks := self._whereabouts.marked(paths)) else {}
        return Announcement(
            paths[0], contents.names(data), data | self._options.info, *version, message.type, also=also
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
        raise MessageError(f"{urls.printable(url)} is on another host")
    return url.path
