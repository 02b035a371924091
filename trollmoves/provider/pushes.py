"""Accepts push requests, runs and answers them; repeated requests for the same file share one delivery."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from trollmoves.config.options import ServerOptions
from trollmoves.errors import (
    JournalError,
    RequestRejected,
    Superseded,
    TemporaryTransferError,
    TrollmovesError,
)
from trollmoves.journal import (
    DONE,
    DROPPED,
    FAILED,
    UNFLUSHED_SECONDS,
    AnnouncementRecord,
    Delivery,
    Journal,
    Outcome,
    Task,
)
from trollmoves.messaging import payload
from trollmoves.messaging.messages import Message
from trollmoves.messaging.replier import Request, TooManyRequests
from trollmoves.net import urls
from trollmoves.provider.announcer import Announcer
from trollmoves.provider.client_quotas import ClientQuotas
from trollmoves.provider.destinations import PushDestination
from trollmoves.provider.file_store import FileStore
from trollmoves.provider.group_request import GroupRequest, is_group
from trollmoves.provider.push_delivery import PushDelivery
from trollmoves.provider.push_replies import (
    HostUnavailable,
    reject,
    rejecting,
    reply_delivered,
    success_reply,
    without_logins,
)
from trollmoves.provider.push_request import PushRequest
from trollmoves.provider.push_tasks import compacted, requested_destination
from trollmoves.scheduler.lanes import FileStats, Result
from trollmoves.scheduler.scheduler import Scheduler
from trollmoves.utils.file_versions import FileVersion
from trollmoves.utils.logs import format_bytes
from trollmoves.utils.ordered_names import RECHECK_DELAY as BUSY_DELAY
from trollmoves.utils.ordered_names import OrderedNames

logger = logging.getLogger(__name__)

LEFT = "left"  # task kind that records a client which received the reply to a push, and left the receipt to its peer
DELIVERED_TO = "delivered_to"  # task kind that records a further client which received the reply to a push
REPLY_TTL = 60.0  # s during which a stored reply is reused for clients that send no request id
RECHECK_DELAY = 60.0  # s between checks for files that are being fetched; their arrival resumes the push earlier
KEEPALIVE_FRACTION = 0.7  # fraction of the timeout of a client after which "wait" is sent


@dataclass(slots=True)
class _Waiter:
    """A request that is answered when the push ends."""

    request: Request
    push: PushRequest
    keepalive_at: float | None  # monotonic time at which to send "wait"; None for clients that do not accept it


class _PushContext(NamedTuple):
    """The parsed request of a push task; after a restart it is parsed again from the body of the task."""

    push: PushRequest
    announced: AnnouncementRecord


class PushService:
    """The pushes of one chain: stored when requested, run by worker threads, answered when they end.

    ``follow(number, delivered)`` returns the tasks that follow the delivery of the files of an announcement;
    ``delivered`` contains the versions of the delivered files, by URI, without those that differ from the announcement.
    Deliveries of one file to one final name are serialized, and an older announcement is not delivered after a newer.
    With ``in_turn`` this holds for files of one name on the disks of several members of a fleet, too.
    """

    def __init__(
        self,
        options: ServerOptions,
        journal: Journal,
        scheduler: Scheduler,
        announcer: Announcer,
        file_store: FileStore,
        *,
        follow: Callable[[int, Mapping[str, FileVersion]], Sequence[Task]],
        in_turn: bool,
    ) -> None:
        self.name = options.name
        self._journal = journal
        self._scheduler = scheduler
        self._announcer = announcer
        self._file_store = file_store
        self._limit = options.max_transfers_per_host
        self._delivery = PushDelivery(self.name, journal, file_store, options.connection_parameters)
        self._allowed = options.allowed_destinations
        self._follow = follow
        self._in_turn = in_turn
        self._waiting: dict[int, list[_Waiter]] = {}
        self._elsewhere: set[int] = set()  # requested here, and perhaps run by another member of the fleet
        self._quotas = ClientQuotas()
        self._order = OrderedNames()
        self._last_previous = journal.last_number(self.name)  # the last number that earlier processes announced
        self._waiting_lock = threading.Lock()  # prevents the end of a push between its lookup and adding a waiter

    def start(self) -> None:
        """Run the pending pushes, including those that waited for their files in an earlier process."""
        self._journal.make_all_due_now(self.name, "push")
        self._scheduler.register(
            self.name, "push", limit=self._limit, handler=self._push, by_owner=True, scope="requested"
        )

    def unanswered(self) -> set[int]:
        """Return the numbers of announcements that were requested from another host, which cannot reply any more.

        A client asks the address of that host again, and may not know the address of this one.
        """
        journal = self._journal
        if not journal.life:
            return set()
        done = journal.finished_before_kill(self.name, ("push",), UNFLUSHED_SECONDS)
        numbers = {task.announcement_number for task in done if task.announcement_number is not None}
        if journal.sharing:
            return numbers | journal.sharing.interrupted_numbers(self.name, "push")
        return numbers | journal.pending_numbers(self.name, "push")

    def accept(self, requests: list[Request]) -> None:
        """Store push requests, and reply to those that are already delivered. Replier thread."""
        single = [request for request in requests if not is_group(request)]
        for batch in (single, *([request] for request in requests if is_group(request))):
            self._accept_batch(batch)

    def _accept_batch(self, requests: list[Request]) -> None:
        records: dict[int, AnnouncementRecord] = {}
        parsed = [pair for request in requests for pair in self._parse(request, records)]
        references = (push.announcement for _, push in parsed)
        records |= self._announcer.look_up(r for r in references if r.get("number") not in records)
        admitted = [(request, push, task) for request, push in parsed if (task := self._admit(request, push, records))]
        if not admitted:
            return
        for request, push, task in admitted:
            if logger.isEnabledFor(logging.DEBUG):
                logger.debug("[%s] %s requested %s: %s", self.name, request.sender, push.file_names, task.lane)
            task.rank, task.owner = self._quotas.rank(request.sender), request.sender
        with self._waiting_lock:
            stored = self._journal.add_tasks([task for _, _, task in admitted])
            runnable = []
            for (request, push, requested), (task, created) in zip(admitted, stored, strict=True):
                with rejecting(self.name, request):  # an error of the journal concerns this request only
                    if not created and not self._needs_rerun(task, push):
                        if task.state == DONE:
                            self._reply_stored(request, push, task)
                            continue
                    elif created or self._restart(task, requested):
                        runnable.append(task)
                        self._quotas.add(task.id, request.sender)
                    self._add_waiter(request, push, task)
        self._scheduler.submit(runnable)

    def _add_waiter(self, request: Request, push: PushRequest, task: Task) -> None:
        """Reply to a request when its push ends; the caller has the lock."""
        if not task.held:
            self._elsewhere.add(task.id)
        keepalive_at = time.monotonic() + KEEPALIVE_FRACTION * push.timeout if push.timeout else None
        self._waiting.setdefault(task.id, []).append(_Waiter(request, push, keepalive_at))

    def _parse(self, request: Request, records: dict[int, AnnouncementRecord]) -> Iterable[tuple[Request, PushRequest]]:
        """Return the parsed request, of a group one for each file; none if it was rejected.

        The announcements of a group are added to ``records``.
        """
        with rejecting(self.name, request):
            if self._quotas.is_full(request.sender):
                raise TooManyRequests("too many pushes of this client are pending")
            if not is_group(request):
                return [(request, PushRequest.parse(request.message))]
            group = GroupRequest(request)
            found = self._announcer.look_up({"log": group.log, "number": number} for number in group.files)
            if not found:
                raise RequestRejected("none of these files was announced by this chain")
            records |= found
            return list(group.members(found))
        return []

    def _admit(self, request: Request, push: PushRequest, records: Mapping[int, AnnouncementRecord]) -> Task | None:
        """Return the task for a request; None if the request was answered."""
        with rejecting(self.name, request):
            announced = self._announcer.find_announcement(push.uris, push.announcement, records)
            destination = push.resolve_destination(self._allowed)
            lane, number = destination.lane, announced.number
            pause = self._scheduler.pause_remaining(self.name, lane)
            if pause:
                text = f"{lane.removeprefix('push ')} is unavailable, next attempt in {pause:.0f} s"
                raise HostUnavailable(text, held=self._scheduler.is_held(self.name, lane))
            if self._reply_if_peer_has_files(request, push, destination, number):
                return None
            key, body = f"{number} {destination.without_password}", push.message.raw
            context = _PushContext(push, announced)
            turn = push.turn(destination) if self._in_turn else ""
            return Task(self.name, "push", key, lane, body, announcement_number=number, context=context, turn=turn)
        return None

    def _needs_rerun(self, known: Task, push: PushRequest) -> bool:
        """Return True if a known push must run again instead of being joined or answered from the journal.

        A request with the same id asks for the result. Another id of the same client asks for another delivery, and so
        does a request without an id after REPLY_TTL.
        """
        if known.state != DONE:
            return known.state in (FAILED, DROPPED)
        previous_id = payload.request_id(known.body)
        if push.id and previous_id and push.id.rpartition("/")[0] == previous_id.rpartition("/")[0]:
            return push.id != previous_id
        return self._journal.now() - (known.finished or 0.0) > REPLY_TTL

    def _reply_stored(self, request: Request, push: PushRequest, task: Task) -> None:
        record = self._receiver_record(push, task)
        if record:
            self._journal.add_tasks([record])
        backup = Message.decode(task.reply).data["destination"] if task.reply else compacted(task).get("destination")
        reply_delivered(request, push, requested_destination(task), backup)

    def _receiver_record(self, push: PushRequest, task: Task) -> Task | None:
        """Return a task that records that a further client received the reply to a push; None if none is needed."""
        if (task.context and push is task.context.push) or not push.id or push.id == payload.request_id(task.body):
            return None
        number = task.announcement_number
        return Task(
            self.name, DELIVERED_TO, f"{number} {push.id}", DELIVERED_TO, "", announcement_number=number, state=DONE
        )

    def _reply_if_peer_has_files(
        self, request: Request, push: PushRequest, destination: PushDestination, number: int
    ) -> bool:
        """Reply if one of the clients named in ``unless_delivered_to`` received the files; return True if so.

        This is recorded, so that a peer does not get the same reply in turn: one of both publishes the receipt.
        """
        if not push.unless_delivered_to:
            return False
        finished = self._journal.finished_for(self.name, ("push", DELIVERED_TO, LEFT), number)
        left = {done.key.partition(" ")[2] for done in finished if done.kind == LEFT}
        for done in finished:
            receiver = _receiver(done, f"{number} {destination.without_password}")
            peer = receiver.rpartition("/")[0] or receiver
            if peer and peer in push.unless_delivered_to and peer not in left:
                own = (push.id or "").rpartition("/")[0]
                record = Task(self.name, LEFT, f"{number} {own}", LEFT, "", announcement_number=number, state=DONE)
                self._journal.add_tasks([record])
                changes = without_logins(push) | {
                    "destination": destination.without_login,
                    "request": {"delivered_to": receiver},
                }
                request.reply(payload.reply_type(push.message.data), push.message.data | changes)
                return True
        return False

    def _restart(self, task: Task, requested: Task) -> bool:
        """Restart a finished task for another request; return False if another member runs it."""
        task.body, task.state, task.tries, task.lane = requested.body, 0, 0, requested.lane
        task.due = task.created = self._journal.now()
        task.context, task.owner = requested.context, requested.owner
        restarted = bool(self._journal.reset_tasks([task]))
        task.held = task.held and restarted
        return restarted

    def _push(self, task: Task) -> Result:
        """Deliver the requested files. Worker thread."""
        number = task.announcement_number or 0
        if not self._file_store.ensure_local(number):
            task.tries -= 1
            return Result(retry_in=RECHECK_DELAY, on_committed=partial(self._resume_if_local, number))
        started = time.monotonic()
        message = task.context.push.message if task.context else Message.decode(task.body)
        shown = urls.redacted(message.data.get("destination"))
        try:
            push, announced = task.context or self._load_context(message, number)
            # checked again: the allowed destinations may have changed since the request
            destination = push.resolve_destination(self._allowed)
            targets = push.targets(destination)
            with self._order.claim(targets, number) as current:
                if current is None:
                    task.tries -= 1
                    return Result(retry_in=BUSY_DELAY)
                if not current or task.overtaken or self._is_outdated(announced, destination):
                    raise Superseded("superseded by a newer version that was delivered")
                files = [targets[name] for name in current]
                size, delivered_to, delivered = self._delivery.deliver(task, announced, push, files, destination)
        except JournalError:
            raise
        except Exception as failure:
            error, names = self._to_error(failure), payload.file_names(message.data)
            if isinstance(error, Superseded):
                logger.info("[%s] %s not delivered to %s: %s", self.name, names, shown, error)
            else:
                self._scheduler.failures.log(task, error, f"{names} not delivered to {shown}")
            text = Message(message.subject, "err", payload.error_payload(message.data, error)).encode()
            on_committed = partial(self._reply_failure, task, error)
            return Result(reply=text, error=error, final=True, on_committed=on_committed)
        seconds = time.monotonic() - started
        follow_ups = (*self._follow(number, delivered), *self._receiver_records(task))
        details = push.file_names, shown, format_bytes(size), seconds, task.tries
        logger.info("[%s] delivered %s to %s (%s, %.2f s, attempt %d)", self.name, *details)
        stats = FileStats(len(files), size, announced.mtime or 0)
        backup = delivered_to if delivered_to != destination.without_login else None
        delivery = Delivery(size, seconds, backup, push.message.sender)
        reply = success_reply(push, delivered_to) if backup else None
        on_committed = partial(self._reply_success, task.id, destination.without_login, backup)
        return Result(reply=reply, follow_ups=follow_ups, on_committed=on_committed, files=stats, delivery=delivery)

    def _is_outdated(self, announced: AnnouncementRecord, destination: PushDestination) -> bool:
        """Return True if an earlier process delivered a newer announcement of the files to this destination."""
        if announced.number > self._last_previous:
            return False
        newest = self._journal.latest_announcement(self.name, announced.uri)
        if newest is None or newest.number <= announced.number:
            return False
        pushes = self._journal.finished_for(self.name, ("push",), newest.number)
        return any(task.key.partition(" ")[2] == destination.without_password for task in pushes)

    def _load_context(self, message: Message, number: int) -> _PushContext:
        announced = self._journal.get_announcement(self.name, number)
        if announced is None:
            raise RequestRejected(f"the journal does not contain announcement {number} any longer")
        return _PushContext(PushRequest.parse(message), announced)

    def _to_error(self, failure: Exception) -> TrollmovesError:
        if isinstance(failure, TrollmovesError):
            return failure
        logger.error("[%s] unexpected error during a delivery", self.name, exc_info=failure)
        return RequestRejected("internal error")

    def _receiver_records(self, task: Task) -> list[Task]:
        with self._waiting_lock:
            waiters = list(self._waiting.get(task.id, ()))
        return [record for waiter in waiters if (record := self._receiver_record(waiter.push, task))]

    def _take_waiters(self, task_id: int) -> Sequence[_Waiter]:
        self._quotas.remove([task_id])
        with self._waiting_lock:
            self._elsewhere.discard(task_id)
            return self._waiting.pop(task_id, ())

    def _reply_success(self, task_id: int, destination: str, backup: str | None) -> None:
        for waiter in self._take_waiters(task_id):
            reply_delivered(waiter.request, waiter.push, destination, backup)

    def _resume_if_local(self, number: int) -> None:
        """Resume pushes if their files arrived before the journal recorded that they wait."""
        if self._file_store.ensure_local(number):
            self.resume(number)

    def resume(self, number: int) -> None:
        """Run the pending pushes of an announcement now: its files have arrived."""
        self._scheduler.submit(self._journal.make_due_now(self.name, "push", number))

    def fail_pending(self, number: int, error: TrollmovesError) -> None:
        """Reply to the pending pushes of an announcement that its files cannot be fetched.

        If ``error.temporary``, clients that accept "wait" can ask other servers and repeat the request. The requests of
        legacy clients stay pending, since those may not repeat them.
        """
        kept = set[int]()
        with self._waiting_lock:
            tasks = self._journal.pending_for(self.name, "push", number)
            rejected = []
            for task in tasks:
                waiters = self._waiting.pop(task.id, [])
                staying = [w for w in waiters if error.temporary and w.keepalive_at is None]
                rejected += [w for w in waiters if w not in staying]
                if staying:
                    self._waiting[task.id] = staying
                    kept.add(task.id)
            ended = [task for task in tasks if task.id not in kept]
            failure, text = error.failure, str(error)
            self._journal.finish([Outcome(task, FAILED, failure=failure, error=text) for task in ended])
            self._quotas.remove([task.id for task in ended])
        for waiter in rejected:
            reject(self.name, waiter.request, error)

    def _reply_failure(self, task: Task, error: TrollmovesError) -> None:
        """Reply with a failure; if the lane is paused, also reject its other pushes: clients can use other servers."""
        for waiter in self._take_waiters(task.id):
            waiter.request.reply("err", payload.error_payload(waiter.push.message.data, error))
        pause = self._scheduler.pause_remaining(self.name, task.lane)
        if not error.outage or not pause:
            return
        in_flight = self._scheduler.in_flight_ids(self.name, task.lane)
        for id_ in self._journal.fail_pending(self.name, task.lane, exclude=in_flight, failure=error.failure):
            for waiter in self._take_waiters(id_):
                reject(self.name, waiter.request, HostUnavailable(str(error), held=error.held), pause)

    def on_dropped(self, tasks: Sequence[Task]) -> None:
        """Reject the requests for pushes that an operator dropped."""
        pushes = [task for task in tasks if task.kind == "push" and task.announcement_number]
        for task in pushes:
            for waiter in self._take_waiters(task.id):
                reject(self.name, waiter.request, RequestRejected("dropped by the operator of the server"))

    def on_tick(self) -> None:
        """Reply to requests that ended at other members of the fleet, or that take long; call it every second."""
        with suppress(JournalError):  # the next call repeats it
            self._reply_ended_elsewhere()
        self.send_keepalives()

    def _reply_ended_elsewhere(self) -> None:
        with self._waiting_lock:
            ids = list(self._elsewhere)
        for task in self._journal.ended(ids) if ids else ():
            for waiter in self._take_waiters(task.id):
                if task.state == DONE:
                    self._reply_stored(waiter.request, waiter.push, task)
                elif task.reply:
                    waiter.request.reply("err", Message.decode(task.reply).data)
                else:
                    reject(
                        self.name,
                        waiter.request,
                        TemporaryTransferError("another member of the fleet did not deliver it"),
                    )

    def send_keepalives(self) -> None:
        """Send "wait" to clients shortly before their timeout expires."""
        now = time.monotonic()
        expiring: list[Request] = []
        with self._waiting_lock:
            for id_, waiters in list(self._waiting.items()):
                late = [w for w in waiters if w.keepalive_at is not None and w.keepalive_at <= now]
                if late:
                    expiring += [w.request for w in late]
                    self._waiting[id_] = [w for w in waiters if w not in late]
        for request in expiring:
            request.reply("wait")


def _receiver(done: Task, key: str) -> str:
    """Return the request id of the client that received the reply to a push, or a later one; empty without an id.

    It is LEGACY_CLIENT if the push has no id, and this ``key``.
    """
    if done.kind == LEFT:
        return ""
    id_ = done.key.partition(" ")[2] if done.kind == DELIVERED_TO else payload.request_id(done.body)
    return id_ or (payload.LEGACY_CLIENT if id_ is None and done.key == key else "")
