"""Deliveries to one target: stored when a message arrives, run on worker threads, published when done."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import ParseResult

from trollmoves.config.options import TargetOptions
from trollmoves.dispatcher.delivery_order import KIND, DeliveryOrder, compact_body, receipt_data, task_again, task_to
from trollmoves.dispatcher.files import LocalFile, ReceivedMessage
from trollmoves.dispatcher.routes import format_destination, logins, routes
from trollmoves.errors import MessageError, OriginUnreadable, TransferError, TrollmovesError
from trollmoves.journal import (
    DONE,
    FAILED,
    UNFLUSHED_SECONDS,
    WAITING,
    Compactors,
    Delivery,
    Journal,
    Task,
    drop_body,
)
from trollmoves.matching.patterns import ComposeError, Pattern
from trollmoves.messaging import payload
from trollmoves.messaging.messages import Message
from trollmoves.messaging.publisher import Publisher
from trollmoves.movers import PartialId, move_it
from trollmoves.net import urls
from trollmoves.orders.executor import Resender
from trollmoves.scheduler.lanes import FileStats, Result
from trollmoves.scheduler.scheduler import Scheduler
from trollmoves.utils.file_versions import FileVersion, size_of, version_of
from trollmoves.utils.logs import LogThrottle, format_bytes
from trollmoves.utils.ordered_names import RECHECK_DELAY, OrderedNames
from trollmoves.watch import FoundFile
from trollmoves.watch.completeness import check_complete

logger = logging.getLogger(__name__)

REPUBLISH = "republish"
REMOVE = "remove"  # task kind: remove a file that all destinations have received
ROUTE = "route"  # task kind: a message whose destination cannot be composed until the configuration is repaired
COMPACTORS: Compactors = {KIND: compact_body, REPUBLISH: drop_body}
RESENDERS: Mapping[str, Resender] = {KIND: Resender(task_again, task_to)}


class _Context(NamedTuple):
    """The context of a delivery.

    ``sent`` is when its message was sent, in seconds since the epoch; infinite if no other member can have received it.
    """

    order: DeliveryOrder
    receipt: Message | None
    sent: float


class Deliveries:
    """The deliveries to one target. The subscriber or watch thread calls ``tasks``; worker threads run the tasks.

    ``check_opened`` is called with the path and the descriptor of each opened file; it raises if the file must not be
    delivered. ``remove`` removes one version of a file, after all deliveries of an order that asks for it, and returns
    whether it did.
    """

    def __init__(
        self,
        options: TargetOptions,
        journal: Journal,
        scheduler: Scheduler,
        publisher: Publisher | None,
        *,
        check_opened: Callable[[str, int], None] | None = None,
        remove: Callable[[str, FileVersion], bool] | None = None,
    ) -> None:
        self.name = options.name
        self._options = options
        self._journal = journal
        self._scheduler = scheduler
        self._publisher = publisher
        self._check_path = check_opened
        self._remove_version = remove
        self._removed: set[tuple[str, int, int]] = set()  # path, size and mtime until the journal has the removal
        self._removing = threading.Lock()  # guards this set, and is held while a file is removed
        self._routes = routes(options)
        self._logins = logins(options)
        self._topic = Pattern(options.publish_topic) if options.publish_topic else None
        self._throttle = LogThrottle()
        self._order = OrderedNames()
        self._created = journal.now()
        # Files older than the history in the journal were delivered long ago.
        self._oldest = self._created - journal.history_seconds()

    def start(self) -> None:
        """Start the deliveries, including those stored by an earlier process."""
        if self._publisher and not self._topic:
            logger.info("[%s] no publish_topic: its deliveries will not be published", self.name)
        delay = self._publisher.grace if self._publisher else 0.0
        self._journal.keep_on_host(self.name, KIND, until_shared=True)  # the file may be on this host only
        limit = self._options.max_transfers_per_host
        self._scheduler.register(self.name, KIND, limit=limit, handler=self._deliver, delay=delay, scope="fleet")
        self._scheduler.register(self.name, ROUTE, limit=1, handler=self._route, scope="host")
        self._scheduler.register(self.name, REMOVE, limit=1, handler=self._remove, scope="host")
        if self._publisher:
            self._scheduler.register(self.name, REPUBLISH, limit=1, handler=self._republish, delay=delay)
            self.republish_lost()

    def republish_lost(self) -> None:
        """Publish again the receipts that a killed process, or a killed member of the fleet, may have lost."""
        if self._publisher:
            self._scheduler.submit([task for task, new in self._journal.add_tasks(self._unpublished()) if new])

    def _unpublished(self) -> list[Task]:
        """Return tasks that publish the receipts which a killed process may have lost."""
        return [
            Task(self.name, REPUBLISH, f"{task.id} {task.finished}", REPUBLISH, receipt)
            for task in self._journal.finished_before_kill(self.name, (KIND,), UNFLUSHED_SECONDS)
            if (order := DeliveryOrder.load(task)) and (receipt := order.receipt)
        ]

    def _republish(self, task: Task) -> None:
        """Publish a receipt that a killed process may have lost; runs on a worker thread."""
        self._publish(Message.decode(task.body))

    # -- creating tasks

    def is_new(self, file: FoundFile) -> bool:
        """Return True if a found file is to be delivered, unless the journal contains its delivery."""
        if file.fresh:
            return True
        try:
            return os.stat(file.path).st_ctime >= self._oldest
        except OSError:
            return False

    def add_files(self, files: Iterable[Mapping[str, Any]], *, removes: bool = False) -> None:
        """Store and start the deliveries of files on this host, by their metadata; see ``tasks``."""
        messages = [ReceivedMessage(Message("/", "file", dict(metadata))) for metadata in files]
        tasks = [(self, task) for message in messages for task in self.tasks(message, None, removes=removes)]
        enqueue(tasks, self._journal, self._scheduler)

    def tasks(self, received: ReceivedMessage, subject: str | None, *, removes: bool = False) -> list[Task]:
        """Return the tasks for a message; log the files that cannot be delivered. Never raises.

        If ``subject`` is None, topics are not compared. With ``removes``, each file is removed when all destinations
        have received it. If a destination cannot be composed, one of the tasks keeps the
        message until the configuration is repaired.
        """
        try:
            tasks, error = self._deliveries(received, subject, removes)
            return [*tasks, self._kept_message(received.message, subject, removes)] if error else tasks
        except Exception as error:  # a malformed message must not stop the dispatcher
            subject = received.message.subject
            if (suffix := self._throttle.admit(subject)) is not None:
                level = logging.WARNING if isinstance(error, TrollmovesError) else logging.ERROR
                trace = level == logging.ERROR
                logger.log(
                    level, "[%s] ignored message about %s: %s%s", self.name, subject, error, suffix, exc_info=trace
                )
        return []

    def _deliveries(
        self, received: ReceivedMessage, subject: str | None, removes: bool
    ) -> tuple[list[Task], TrollmovesError | None]:
        """Return the delivery tasks for a message, and the error of a route without a destination."""
        if received.message.type == "collection" and not self._options.collections:
            return [], None
        matching = [route for route in self._routes if not route.mismatch_reason(subject, received.metadata)]
        may_be_copy = received.was_kept or self._journal.sharing is not None
        sent = received.message.timestamp() if may_be_copy else float("inf")
        tasks: list[Task] = []
        failure: TrollmovesError | None = None
        for file in self._local_files(received) if matching else ():
            for route in matching:
                try:
                    tasks.append(self._task(route.number, file, removes, sent))
                except TrollmovesError as error:
                    failure = error
        return tasks, failure

    def _kept_message(self, message: Message, subject: str | None, removes: bool) -> Task:
        text = message.raw or message.encode()
        digest = hashlib.sha256(json.dumps([subject, message.data], default=str).encode()).hexdigest()
        body = json.dumps([text, subject, removes])
        return Task(self.name, ROUTE, f"{payload.file_names(message.data)}\n{digest}", ROUTE, body)

    def _route(self, task: Task) -> Result:
        """Create the deliveries for a kept message; runs on a worker thread."""
        text, subject, *removes = json.loads(task.body)
        tasks, error = self._deliveries(ReceivedMessage(Message.decode(text)), subject, any(removes))
        if error:
            raise error
        return Result(follow_ups=tasks)

    def _local_files(self, received: ReceivedMessage) -> Iterator[LocalFile]:
        for file in received.files():
            if isinstance(file, LocalFile):
                yield file
            else:
                subject = received.message.subject
                # In a fleet, a member on another host may have the file.
                level = logging.INFO if self._journal.sharing else logging.WARNING
                logger.log(level, "[%s] skipped a file in the message about %s: %s", self.name, subject, file)

    def _task(self, number: int, file: LocalFile, removes: bool, sent: float) -> Task:
        """Return the delivery of a file by a route; raise ComposeError or BadDestination."""
        url = self._routes[number - 1].destination(file)
        receipt = self._receipt(file, url)
        text = receipt.raw if receipt else ""
        order = DeliveryOrder(file.path, url.scheme, url.netloc, url.path, text, file.size, file.mtime_ns, removes)
        context = _Context(order, receipt, sent)
        return Task(self.name, KIND, order.key, order.lane, order.text(), context=context, turn=order.turn)

    def _receipt(self, file: LocalFile, url: ParseResult) -> Message | None:
        """Return the message to publish after a delivery, with its encoded text, or None if nothing is published."""
        if self._topic is None:
            return None
        try:
            subject = _subject(self._topic.compose(file.published))
            receipt = Message(subject, "file", {**file.published, "uri": url.path})
            receipt.raw = receipt.encode()
            return receipt
        except (ComposeError, MessageError) as error:
            logger.warning("[%s] delivery of %s will not be published: %s", self.name, file.path, error)
            return None

    # -- delivering

    def _deliver(self, task: Task) -> Result:
        """Deliver a file; runs on a worker thread."""
        order, receipt, _ = task.context or (DeliveryOrder(*json.loads(task.body)), None, 0.0)
        with self._order.claim((order.name,), task.id) as current:
            if current is None:
                task.tries -= 1
                return Result(retry_in=RECHECK_DELAY)
            if not current or task.overtaken or (self._may_be_late(task) and self._has_newer(task, order)):
                logger.info("[%s] not sending %s: superseded by a newer file", self.name, task.key.partition("\n")[0])
                return Result(follow_ups=self._removal(task, order))
            return self._send(task, order, receipt)

    @staticmethod
    def _may_be_late(task: Task) -> bool:
        """Return True for a retry, and for a task that waited in the journal: newer tasks may have been stored."""
        return task.tries > 1 or task.context is None

    def _has_newer(self, task: Task, order: DeliveryOrder) -> bool:
        """Return True if a newer version of the file is delivered to the same destination, or waits for that."""
        destination = f" {order.url.geturl()}"
        same_file = task.key.removesuffix(destination).rsplit(" ", 2)[0]
        return any(key.endswith(destination) for key in self._journal.newer_keys(task, f"{same_file} "))

    def _check_opened(self, order: DeliveryOrder, fd: int) -> None:
        """Raise OriginChanged if the opened file is not the one of the message and may be incomplete."""
        if self._check_path:
            self._check_path(order.path, fd)
        status = os.fstat(fd)
        if (status.st_size, status.st_mtime_ns) != (order.size, order.mtime_ns):
            check_complete(fd, order.path, self._options.quiet_time)

    def _send(self, task: Task, order: DeliveryOrder, receipt: Message | None) -> Result:
        started = time.monotonic()
        url = order.url
        try:
            reached = move_it(
                order.path,
                self._with_password(url),
                self._options.connection_parameters,
                on_opened=partial(self._check_opened, order),
                partial_id=PartialId.of_task(self._journal, task, self._created),
            )
        except TransferError as error:
            if error.temporary and self._journal.now() - task.created > self._options.retry_for > 0:
                label = task.key.partition("\n")[0]
                logger.error("[%s] giving up on %s at attempt %d: %s", self.name, label, task.tries, error)
                return Result(error=error, final=True)
            raise
        size = size_of(order.path)
        seconds = time.monotonic() - started
        logger.info(
            "[%s] delivered %s to %s (%s, %.2f s, attempt %d)",
            self.name,
            os.path.basename(order.path),
            format_destination(url),
            format_bytes(size),
            seconds,
            task.tries,
        )
        if self._publisher and order.receipt:
            receipt = receipt or Message.decode(order.receipt)
            if reached.path.endswith("/"):  # the destination is an existing directory, in which the file keeps its name
                receipt.data["uri"] = reached.path + os.path.basename(order.path)
            self._publish(receipt)
        stats, delivery = FileStats(1, size, order.mtime_ns), Delivery(size, seconds)
        return Result(follow_ups=self._removal(task, order), files=stats, delivery=delivery)

    def _publish(self, receipt: Message) -> None:
        if self._publisher:
            self._publisher.send(Message(receipt.subject, receipt.type, receipt.data))

    # -- removing

    def _removal(self, task: Task, order: DeliveryOrder) -> Sequence[Task]:
        """Return the task that runs after a delivery and removes its file if that was the last one."""
        if not order.removes:
            return ()
        return (Task(self.name, REMOVE, str(task.id), REMOVE, json.dumps([order.path, order.size, order.mtime_ns])),)

    def _remove(self, task: Task) -> Result | None:
        """Remove a file if all routes have delivered this version of it; runs on a worker thread."""
        path, size, mtime_ns = file = tuple(json.loads(task.body))
        states = _states(self._journal, self.name, path, size, mtime_ns)
        if len(states) < len(self._routes) or set(states.values()) != {DONE}:
            return None
        try:
            version = version_of(os.stat(path))
            if (version.size, version.mtime_ns) != (size, mtime_ns) or not self._remove_version:
                return None
            with self._removing:
                if not self._remove_version(path, version):
                    return None
                self._removed.add(file)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OriginUnreadable(f"{path} was delivered, but cannot be removed: {error.strerror}") from None
        logger.info("[%s] removed %s", self.name, path)
        return Result(on_committed=lambda: self._removed.discard(file))

    # -- repeated messages

    def repeat_reason(self, stored: Task, repeated: Task) -> str:
        """Return the reason to repeat a delivery that is done, or an empty string."""
        order = repeated.context.order
        if order.removes:
            return "the file was removed and is back" if self._was_removed(order) else ""
        if stored.finished is None or self._options.origin:
            return ""
        age = self._journal.now() - stored.finished
        if age >= self._options.repeat_after:
            return f"delivered {age:.0f} s ago"
        return "" if receipt_data(stored) in (None, receipt_data(repeated)) else "its metadata have changed"

    def _was_removed(self, order: DeliveryOrder) -> bool:
        states = _states(self._journal, self.name, order.path, order.size, order.mtime_ns)
        if set(states.values()) != {DONE}:
            return False
        with self._removing:
            if (order.path, order.size, order.mtime_ns) in self._removed:
                return True
        removals = [self._journal.find(self.name, REMOVE, str(id_)) for id_ in states]
        return all(removal and removal.state == DONE for removal in removals)

    @staticmethod
    def is_copy(stored: Task, repeated: Task) -> bool:
        """Return True for a message that was sent before its task was stored: another member received it too.

        This compares the clocks of the publisher and of the journal.
        """
        return isinstance(repeated.context, _Context) and repeated.context.sent <= stored.created

    def log_ignored(self, stored: Task) -> None:
        """Log that a repeated message has no effect, since the file is delivered or its delivery pending."""
        level = logging.DEBUG if self._options.origin else logging.INFO
        state = (
            "is pending" if stored.finished is None else f"was done {self._journal.now() - stored.finished:.0f} s ago"
        )
        label = stored.key.partition("\n")[0]
        logger.log(level, "[%s] ignored a repeated message: the delivery of %s %s", self.name, label, state)

    def _with_password(self, url: ParseResult) -> ParseResult:
        login = self._logins.get((url.scheme, url.netloc))
        return url._replace(netloc=login.netloc) if login else url


def enqueue(deliveries: Iterable[tuple[Deliveries, Task]], journal: Journal, scheduler: Scheduler) -> None:
    """Store tasks in one transaction and submit the new ones to the scheduler.

    A stored task is restarted if it failed, or if the repeated message is a reason to deliver the file again. The last
    message for a task is used.
    """
    wanted = list(deliveries)
    if not wanted:
        return
    new: list[Task] = []
    restarted: dict[int, Task] = {}
    renewed: dict[int, Task] = {}
    results = journal.add_tasks([task for _, task in wanted])
    for (stored, is_new), (owner, task) in zip(results, wanted, strict=True):
        if is_new:
            new.append(stored)
        elif owner.is_copy(stored, task):
            continue
        elif stored.state == FAILED or (stored.state == WAITING and stored.tries):
            stored.body, stored.context, stored.lane = task.body, task.context, task.lane
            stored.state, stored.tries, stored.due = WAITING, 0, journal.now()
            restarted[stored.id] = stored
        elif stored.state == DONE and stored.kind == KIND and (reason := owner.repeat_reason(stored, task)):
            logger.info("[%s] delivering %s again: %s", stored.chain, stored.key.partition("\n")[0], reason)
            stored.body, stored.context, stored.lane = task.body, task.context, task.lane
            renewed[stored.id] = stored
        else:
            owner.log_ignored(stored)
    # One that has ended by now stays done: a second delivery would not be followed by the removal of its file.
    again = journal.reset_tasks(restarted.values(), unless_done=True) if restarted else []
    if renewed:
        journal.renew_tasks(renewed.values())
    scheduler.submit([*new, *again, *renewed.values()])


def _states(journal: Journal, name: str, path: str, size: int, mtime_ns: int) -> dict[int, int]:
    """Return the states of the deliveries of one version of a file, by id."""
    prefix = f"{os.path.basename(path)} to "
    return dict(journal.states(name, KIND, prefix, f"\n{path} {size} {mtime_ns} "))


def _subject(composed: str) -> str:
    """Return the subject of a message; raise MessageError if the metadata made it more than one word."""
    if len(composed.split()) > 1 or composed != composed.strip():
        raise MessageError(f"its topic {urls.excerpt(composed)!r} must be a single word")
    return composed if composed.startswith("/") else f"/{composed}"
