"""Unpacks delivered files if configured and publishes receipts."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import ParseResult

from trollmoves import unpacking
from trollmoves.config.options import ClientOptions
from trollmoves.errors import BadDestination
from trollmoves.journal import UNFLUSHED_SECONDS, Journal, Task
from trollmoves.messaging import payload
from trollmoves.messaging.messages import Message
from trollmoves.messaging.publisher import Publisher
from trollmoves.net import hosts, urls
from trollmoves.receiver.destinations import Destinations
from trollmoves.receiver.fetch_attempt import FetchAttempt
from trollmoves.receiver.fetch_sources import Fetch
from trollmoves.receiver.fetch_tasks import KIND, file_key_of
from trollmoves.scheduler.lanes import Result
from trollmoves.scheduler.scheduler import Scheduler
from trollmoves.utils.file_versions import FileVersion, remove_version, version_of
from trollmoves.utils.ordered_names import RECHECK_DELAY, OrderedNames

logger = logging.getLogger(__name__)

UNPACK_CONCURRENCY = 4
_PRIVATE_KEYS = (*payload.TRANSPORT_KEYS, "backup_targets")  # not published in receipts


class ReceiptPublisher:
    """Publishes the receipts of one client chain."""

    def __init__(
        self,
        options: ClientOptions,
        journal: Journal,
        destinations: Destinations,
        scheduler: Scheduler,
        publisher: Publisher,
    ) -> None:
        self.name = options.name
        self._options = options
        self._journal = journal
        self._destinations = destinations
        self._scheduler = scheduler
        self._publisher = publisher
        self._unpack_order = OrderedNames()

    def start(self) -> None:
        """Resume unpacking, and republish receipts that the previous process may have lost when it was killed."""
        if self._options.compression:
            self._scheduler.register(
                self.name,
                "unpack",
                limit=UNPACK_CONCURRENCY,
                handler=self._unpack,
                delay=self._publisher.grace,
                scope="host",
            )
            self._scheduler.register(self.name, "delete_archive", limit=1, handler=self._delete_archive, scope="host")
        self._scheduler.register(self.name, "republish", limit=1, handler=self._republish, delay=self._publisher.grace)
        self.republish_lost()

    def republish_lost(self) -> None:
        """Publish the messages again that a killed process, or member of the fleet, may have lost. Any thread."""
        lost = [
            Task(self.name, "republish", f"{task.id} {task.finished}", "republish", json.dumps(texts))
            for task in self._journal.finished_before_kill(self.name, (KIND, "unpack"), UNFLUSHED_SECONDS)
            if (texts := self._published_for(task))
        ]
        self._scheduler.submit([task for task, is_new in self._journal.add_tasks(lost) if is_new])

    def on_delivered(self, attempt: FetchAttempt, reply: Message) -> tuple[Result, list[str]]:
        """Return the result, and what ``publish`` shall publish before it is stored: an ack, and the receipt.

        The receipt has the new URIs. That of an archive is published when it is unpacked.
        """
        message = attempt.message
        url = self._actual_destination(attempt, reply)
        ack = message.derive("ack")
        is_local = hosts.is_local(url.hostname)
        base = (url.path if is_local else urls.without_password(url)).rstrip("/")
        delivery = attempt.delivery(base)
        data: dict[str, Any] = _with_new_uris(message.data, base) | {"origin": attempt.source}
        if is_local and self._options.compression and any(map(self._is_packed, payload.file_uris(data))):
            body = json.dumps(
                [
                    Message(message.subject, message.type, data).encode(),
                    self._destinations.local_path(url).removesuffix(url.path),
                ]
            )
            self._log(attempt)
            unpack = Task(self.name, "unpack", attempt.task.key, "unpack", body)
            return Result(follow_ups=(unpack,), files=attempt.stats(), delivery=delivery), [ack]
        texts = [ack, self._receipt(message.subject, data)]
        self._log(attempt)
        reply_kept = json.dumps([attempt.source, base])
        return Result(reply=reply_kept, files=attempt.stats(), delivery=delivery), texts

    def publish(self, texts: Sequence[str]) -> None:
        """Publish acks and receipts in this order."""
        self._publisher.send_encoded(texts)

    def _log(self, attempt: FetchAttempt) -> None:
        seconds = time.monotonic() - attempt.started
        names = payload.file_names(attempt.message.data)
        logger.info(
            "[%s] received %s from %s (%.2f s, attempt %d)",
            self.name,
            names,
            attempt.source,
            seconds,
            attempt.task.tries,
        )

    def _actual_destination(self, attempt: FetchAttempt, reply: Message) -> ParseResult:
        """Return the destination of the files: as requested, or at the backup target that the server reports.

        Other destinations in the reply are ignored, because archives are unpacked and deleted by this path.
        """
        requested = urls.parse(attempt.destination)
        reported = reply.data.get("destination") if isinstance(reply.data, dict) else None
        with suppress(BadDestination):
            reached = urls.parse(reported).netloc if isinstance(reported, str) else ""
            for backup in self._options.backup_targets:
                url = urls.with_host(requested, backup)
                if reached and url.netloc.rpartition("@")[2].lower() == reached.rpartition("@")[2].lower():
                    return url
        return requested

    def _receipt(self, subject: str, data: dict[str, Any]) -> str:
        data = {key: value for key, value in data.items() if key not in _PRIVATE_KEYS}
        for key, replacement in self._options.replacements.items():
            if key in data:
                data[key] = replacement.apply(data[key])
        return Message(subject, payload.reply_type(data), data).encode()

    # -- after a kill

    def _published_for(self, task: Task) -> list[str]:
        """Return the messages that were published for a finished task."""
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
        """Publish messages that a killed process may have lost. Runs on a worker thread."""
        self._publisher.send_encoded(json.loads(task.body))

    # -- archives

    def _is_packed(self, uri: str) -> bool:
        kind = self._options.compression
        return kind is not None and unpacking.applies(kind, uri)

    def _unpack(self, task: Task) -> Result:
        """Unpack a delivered archive and publish the receipt. Runs on a worker thread."""
        name = file_key_of(task)
        with self._unpack_order.claim((name,), task.id) as current:
            if current is None:
                task.tries -= 1
                return Result(retry_in=RECHECK_DELAY)
            if not current:
                logger.info("[%s] not unpacking %s: superseded by a newer version", self.name, name)
                return Result()
            return self._unpack_version(task)

    def _unpack_version(self, task: Task) -> Result:
        text, root = json.loads(task.body)
        message = Message.decode(text)
        packed: list[tuple[str, FileVersion]] = []

        def unpack(item: dict[str, Any]) -> list[dict[str, Any]]:
            if not self._is_packed(item["uri"]):
                return [item]
            path = root + item["uri"]
            members = self._members(path, lambda fd: packed.append((path, version_of(os.fstat(fd)))))
            logger.info("[%s] unpacked %s, members: %d", self.name, os.path.basename(path), len(members))
            return [{"uid": os.path.basename(member), "uri": member.removeprefix(root)} for member in members]

        receipt = self._receipt(message.subject, _unpacked(message.data, unpack))
        self._publisher.send_encoded([receipt])
        deletions = [
            Task(self.name, "delete_archive", f"{task.key}\n{path}", "delete_archive", json.dumps([path, version]))
            for path, version in packed
        ]
        return Result(reply=receipt, follow_ups=deletions if self._options.delete else ())

    def _members(self, path: str, on_opened: Callable[[int], None]) -> list[str]:
        options = self._options
        return unpacking.unpack(
            options.compression or "",
            path,
            os.path.dirname(path),
            program=options.xritdecompressor,
            block_size=options.block_size,
            on_opened=on_opened,
        )

    def _delete_archive(self, task: Task) -> None:
        """Delete an unpacked archive, unless it was replaced since. Runs on a worker thread."""
        path, version = json.loads(task.body)
        try:
            remove_version(path, FileVersion(*version))
        except FileNotFoundError:
            pass
        except OSError as error:
            logger.warning(
                "[%s] cannot delete the archive %s: %s; leaving it in place", self.name, path, error.strerror
            )


def _unpacked(data: dict[str, Any], unpack: Callable[[dict[str, Any]], list[dict[str, Any]]]) -> dict[str, Any]:
    """Return a copy of a message's data with archives replaced by their members.

    One member replaces its archive. Several become a ``dataset``, or items of the list that contained the archive.
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


def _with_new_uris(value: Any, base: str) -> Any:
    """Return a copy of a message's data in which each ``uri`` is below ``base``."""
    if isinstance(value, list):
        return [_with_new_uris(item, base) if isinstance(item, (dict, list)) else item for item in value]
    moved = {key: _with_new_uris(item, base) if isinstance(item, (dict, list)) else item for key, item in value.items()}
    if "uri" in moved:
        below = str(moved.get("path") or "").strip("/")
        moved["uri"] = "/".join(
            (base, below, os.path.basename(value["uri"])) if below else (base, os.path.basename(value["uri"]))
        )
    return moved
