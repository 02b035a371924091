"""What becomes of files that have arrived: they are unpacked if asked for, and told to our side."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import ParseResult

from trollmoves import unpacking
from trollmoves.config.options import ClientOptions
from trollmoves.errors import BadDestination
from trollmoves.journal import UNFLUSHED_SECONDS, Journal, Task
from trollmoves.messaging import payload
from trollmoves.messaging.messages import Message
from trollmoves.messaging.publisher import SUBSCRIBER_GRACE, Publisher
from trollmoves.net import hosts, urls
from trollmoves.receiver.destinations import Destinations
from trollmoves.receiver.fetch_tasks import KIND, Fetch
from trollmoves.receiver.fetcher import FetchAttempt
from trollmoves.scheduler.lanes import Result
from trollmoves.scheduler.scheduler import Scheduler
from trollmoves.utils import failpoints

log = logging.getLogger(__name__)

UNPACK_CONCURRENCY = 4
_PRIVATE_KEYS = (*payload.TRANSPORT_KEYS, "backup_targets")  # not published in receipts


class ReceiptPublisher:
    """The receipts of one client's chain."""

    def __init__(
        self,
        options: ClientOptions,
        journal: Journal,
        destinations: Destinations,
        workers: Scheduler,
        publisher: Publisher,
    ) -> None:
        self.name = options.name
        self._options = options
        self._journal = journal
        self._destinations = destinations
        self._workers = workers
        self._publisher = publisher

    def start(self) -> None:
        """Unpack what arrived in an earlier process, and tell again what that may not have told when it was killed."""
        if self._options.compression:
            self._workers.register(
                self.name, "unpack", limit=UNPACK_CONCURRENCY, handler=self._unpack, begin_in=SUBSCRIBER_GRACE
            )
            self._workers.register(self.name, "delete_archive", limit=1, handler=self._delete_archive)
        self._workers.register(self.name, "republish", limit=1, handler=self._republish, begin_in=SUBSCRIBER_GRACE)
        again = [
            Task(self.name, "republish", f"{task.id} {task.finished}", "republish", json.dumps(texts))
            for task in self._journal.finished_before_kill(self.name, (KIND, "unpack"), UNFLUSHED_SECONDS)
            if (texts := self._published_for(task))
        ]
        self._workers.submit([task for task, new in self._journal.add_tasks(again) if new])

    def on_delivered(self, attempt: FetchAttempt, answer: Message) -> Result:
        """Publish that the source is done with, then where the files are now; packed ones are unpacked before."""
        failpoints.hit("arrived")
        message = attempt.message
        url = self._actual_destination(attempt, answer)
        ack = message.derive("ack")
        here = hosts.is_local(url.hostname)
        base = (url.path if here else _with_user(url, attempt.destination)).rstrip("/")
        data: dict[str, Any] = _with_new_uris(message.data, base) | {"origin": attempt.source}
        if here and any(self._is_packed(item["uri"]) for item in payload.file_items(data)):
            body = json.dumps(
                [
                    Message(message.subject, message.type, data).encode(),
                    self._destinations.local_path(url).removesuffix(url.path),
                ]
            )
            self._publisher.send_encoded([ack])
            failpoints.hit("acked")
            self._log(attempt)
            return Result(follow_ups=(Task(self.name, "unpack", attempt.task.key, "unpack", body),))
        self._publisher.send_encoded([ack, self._receipt(message.subject, data)])
        failpoints.hit("told")
        self._log(attempt)
        return Result(reply=json.dumps([attempt.source, base]))

    def _log(self, attempt: FetchAttempt) -> None:
        took = time.monotonic() - attempt.started
        what = payload.file_names(attempt.message.data), attempt.source, took, attempt.task.tries
        log.info("[%s] received %s from %s (%.2f s, try %d)", self.name, *what)

    def _actual_destination(self, attempt: FetchAttempt, answer: Message) -> ParseResult:
        """Give where the files went: as asked for, or at the backup target that the server says it has reached.

        Nothing else that it may say there counts: what arrived is unpacked and removed by that path.
        """
        asked = urls.parse(attempt.destination)
        said = answer.data.get("destination") if isinstance(answer.data, dict) else None
        with suppress(BadDestination):
            reached = urls.parse(said).netloc if isinstance(said, str) else ""
            for backup in self._options.backup_targets:
                url = urls.with_host(asked, backup)
                if reached and url.netloc.rpartition("@")[2].lower() == reached.rpartition("@")[2].lower():
                    return url
        return asked

    def _receipt(self, subject: str, data: dict[str, Any]) -> str:
        data = {key: value for key, value in data.items() if key not in _PRIVATE_KEYS}
        for key, replacement in self._options.replacements.items():
            if key in data:
                data[key] = replacement.apply(data[key])
        return Message(subject, payload.reply_type(data), data).encode()

    # -- after a kill

    def _published_for(self, task: Task) -> list[str]:
        """Give what was published of a task that is done."""
        if task.kind != KIND or not task.reply:
            return [task.reply] if task.reply else []
        source, base = json.loads(task.reply)
        announcement = Fetch.load(task.body).announcements.get(source)
        if announcement is None:
            return []
        message = Message.decode(announcement)
        data = _with_new_uris(message.data, base) | {"origin": source}
        return [message.derive("ack"), self._receipt(message.subject, data)]

    def _republish(self, task: Task) -> None:
        """Publish what may have been lost with the process that was killed; runs on a worker."""
        self._publisher.send_encoded(json.loads(task.body))
        failpoints.hit("told-again")

    # -- packed files

    def _is_packed(self, uri: str) -> bool:
        kind = self._options.compression
        return kind is not None and unpacking.applies(kind, uri)

    def _unpack(self, task: Task) -> Result:
        """Unpack what arrived and tell where it is; runs on a worker."""
        text, root = json.loads(task.body)
        message = Message.decode(text)
        packed: list[str] = []

        def unpack(item: dict[str, Any]) -> list[dict[str, Any]]:
            if not self._is_packed(item["uri"]):
                return [item]
            path = root + item["uri"]
            packed.append(path)
            members = self._members(path)
            log.info("[%s] unpacked %s, members: %d", self.name, os.path.basename(path), len(members))
            return [{"uid": os.path.basename(one), "uri": one.removeprefix(root)} for one in members]

        receipt = self._receipt(message.subject, _unpacked(message.data, unpack))
        failpoints.hit("unpacked")
        self._publisher.send_encoded([receipt])
        failpoints.hit("told")
        discards = [Task(self.name, "delete_archive", f"{task.key}\n{path}", "delete_archive", path) for path in packed]
        return Result(reply=receipt, follow_ups=discards if self._options.delete else ())

    def _members(self, path: str) -> list[str]:
        options = self._options
        return unpacking.unpack(
            options.compression or "",
            path,
            os.path.dirname(path),
            program=options.xritdecompressor,
            block_size=options.block_size,
        )

    def _delete_archive(self, task: Task) -> None:
        """Remove an archive that was unpacked; runs on a worker."""
        failpoints.hit("discarding")
        try:
            os.unlink(task.body)
            failpoints.hit("discarded")
        except FileNotFoundError:
            pass
        except OSError as error:
            log.warning("[%s] cannot remove %s: %s", self.name, task.body, error.strerror)


def _unpacked(data: dict[str, Any], unpack: Callable[[dict[str, Any]], list[dict[str, Any]]]) -> dict[str, Any]:
    """Give a copy of a message's data with the members in the place of what was packed.

    One member takes the place of its archive, several become a ``dataset``, or more items of the list it stood in.
    """
    copy = {key: _unpacked_in(value, unpack) for key, value in data.items()}
    if "uri" not in copy:
        return copy
    members = unpack(copy)
    if len(members) == 1:
        return copy | members[0]
    rest = {key: value for key, value in copy.items() if key not in ("uri", "uid")}
    return rest | {"dataset": members}


def _unpacked_in(value: Any, unpack: Callable[[dict[str, Any]], list[dict[str, Any]]]) -> Any:
    if isinstance(value, dict):
        return _unpacked(value, unpack)
    if not isinstance(value, list):
        return value
    items: list[Any] = []
    for item in value:
        if isinstance(item, dict) and "uri" in item:
            items += [{**item, **member} for member in unpack(item)]
        else:
            items.append(_unpacked_in(item, unpack))
    return items


def _with_user(url: ParseResult, asked: str) -> str:
    """Give a URL with the user, but not the password, under which it was asked for."""
    place = url.netloc.rpartition("@")[2]
    user = urls.parse(asked).netloc.rpartition("@")[0].partition(":")[0]
    return urls.with_login(url._replace(netloc=f"{user}@{place}" if user else place), "")


def _with_new_uris(value: Any, base: str) -> Any:
    """Give a copy of a message's data in which each ``uri`` says where the file is now."""
    if isinstance(value, list):
        return [_with_new_uris(item, base) if isinstance(item, (dict, list)) else item for item in value]
    moved = {key: _with_new_uris(item, base) if isinstance(item, (dict, list)) else item for key, item in value.items()}
    if "uri" in moved:
        below = str(moved.get("path") or "").strip("/")
        moved["uri"] = "/".join(
            (base, below, os.path.basename(value["uri"])) if below else (base, os.path.basename(value["uri"]))
        )
    return moved
