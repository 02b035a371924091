"""Delivers announced files to where requests say, each once however often it is asked for."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from trollmoves.errors import JournalError, OriginChanged, RequestRejected, TransferError, TrollmovesError
from trollmoves.journal import DONE, FAILED, AnnouncementRecord, Journal, Outcome, Task
from trollmoves.messaging import payload
from trollmoves.messaging.messages import Message
from trollmoves.messaging.replier import Request, TooManyRequests
from trollmoves.movers import PartialId, clean_partials, move_it
from trollmoves.net import urls
from trollmoves.net.destination_allowlist import DestinationPattern
from trollmoves.provider.announcer import Announcer
from trollmoves.provider.client_quotas import ClientQuotas
from trollmoves.provider.destinations import PushDestination, backup_targets, parse_destination
from trollmoves.provider.file_store import FileStore
from trollmoves.scheduler.lanes import Result
from trollmoves.scheduler.scheduler import Scheduler
from trollmoves.utils import failpoints, symlinks
from trollmoves.utils.logs import format_bytes as readable_size

log = logging.getLogger(__name__)

DELIVERED_TO = "delivered_to"  # the kind of the notes of who else has the answer to a push
REPLY_TTL = 60.0  # s for which an answer also serves a peer that does not say that it is asking again
RECHECK_DELAY = 60.0  # s until a push looks again for files that are being brought; their arrival wakes it before
STALE_PARTIAL_AGE = 3600.0  # s without a write after which a partial is nobody's
KEEPALIVE_FRACTION = 0.7  # of the time a peer waits for an answer, after which it is told to go on waiting


@dataclass(slots=True)
class _Waiter:
    """A peer that waits for the end of a push."""

    request: Request
    keepalive_at: float | None  # monotonic; when to say that it still runs, None for peers that do not know that answer


class _PushContext(NamedTuple):
    """What a push that was noted just now is about; after a restart the journal says it."""

    message: Message
    announced: AnnouncementRecord


class PushService:
    """The pushes of one chain: noted when they are asked for, run by workers, answered when they are over.

    ``follow(number)`` gives the tasks that follow when the files of an announcement were delivered.
    """

    def __init__(
        self,
        name: str,
        journal: Journal,
        workers: Scheduler,
        announcer: Announcer,
        holdings: FileStore,
        *,
        limit: int,
        parameters: Mapping[str, Any],
        allowed: tuple[DestinationPattern, ...],
        follow: Callable[[int], Sequence[Task]],
    ) -> None:
        self.name = name
        self._journal = journal
        self._workers = workers
        self._announcer = announcer
        self._holdings = holdings
        self._limit = limit
        self._parameters = parameters
        self._allowed = allowed
        self._follow = follow
        self._waiting: dict[int, list[_Waiter]] = {}
        self._shares = ClientQuotas()
        self._cleaned: set[str] = set()
        self._began = journal.now()
        self._waiting_lock = threading.Lock()  # between the look at a push and the wait for it nothing may end it

    def start(self) -> None:
        """Run what was asked for, also in an earlier process: what waited there for its files is looked for again."""
        self._journal.make_all_due_now(self.name, "push")
        self._workers.register(self.name, "push", limit=self._limit, handler=self._push)

    def accept(self, requests: list[Request]) -> None:
        """Note pushes, and answer those that are answered already; the replier's thread calls."""
        failpoints.hit("asked")
        announced = self._announcer.look_up(request.message.data for request in requests)
        asked = [(request, task) for request in requests if (task := self._admit(request, announced))]
        if not asked:
            return
        for request, task in asked:
            if log.isEnabledFor(logging.DEBUG):
                names = payload.file_names(request.message.data)
                log.debug("[%s] %s asks for %s, to %s", self.name, request.sender, names, task.lane.partition(" ")[2])
            task.rank = self._shares.rank(request.sender)
        with self._waiting_lock:
            noted = self._journal.add_tasks([task for _, task in asked])
            begin = []
            for (request, wanted), (task, new) in zip(asked, noted, strict=True):
                if not new and not self._needs_rerun(task, wanted):
                    if task.state == DONE:
                        self._reply_stored(request, task)
                        continue
                else:
                    if not new:
                        self._restart(task, wanted)
                    begin.append(task)
                    self._shares.add(task.id, request.sender)
                self._waiting.setdefault(task.id, []).append(_Waiter(request, _keepalive_time(request.message.data)))
        failpoints.hit("push-noted")
        self._workers.submit(begin)

    def _admit(self, request: Request, announced: Mapping[int, AnnouncementRecord]) -> Task | None:
        """Give the task for a request; None when it was answered at once."""
        try:
            if self._shares.is_full(request.sender):
                raise TooManyRequests("too many of your pushes wait")
            task = self._push_task(request.message, announced)
            pause = self._workers.pause_remaining(self.name, task.lane)
            if pause:
                raise HostUnavailable(
                    f"{task.lane.removeprefix('push ')} does not take files, next try in {pause:.0f} s"
                )
            return None if self._reply_if_peer_has_it(request, task) else task
        except TrollmovesError as error:
            reject(self.name, request, error)
        except Exception:
            log.exception("[%s] cannot take a push", self.name)
            request.reject("internal error")
        return None

    def _push_task(self, message: Message, at_hand: Mapping[int, AnnouncementRecord]) -> Task:
        data = message.data
        announced = self._announcer.find_announcement(data, at_hand)
        target = parse_destination(data, self._allowed)
        key = f"{announced.number} {target.without_login}"
        asked = _PushContext(message, announced)
        return Task(
            self.name, "push", key, target.lane, message.raw, announcement_number=announced.number, context=asked
        )

    def _needs_rerun(self, known: Task, wanted: Task) -> bool:
        """Tell whether a push that is known is to be made anew, rather than joined or answered from the journal.

        The same request, asked again by our own clients, means "are you done?"; another one of the same client, that it
        wants the file again. So may whoever else asks much later.
        """
        if known.state != DONE:
            return known.state == FAILED
        id_, before = payload.request_id(wanted.body), payload.request_id(known.body)
        if id_ and before and id_.rpartition("/")[0] == before.rpartition("/")[0]:
            return id_ != before
        return self._journal.now() - (known.finished or 0.0) > REPLY_TTL

    def _reply_stored(self, request: Request, task: Task) -> None:
        """Give the stored answer."""
        also = self._delivery_note(request, task)
        if also:
            self._journal.add_tasks([also])
        reached = _compacted(task).get("destination") or task.key.partition(" ")[2]
        request.reply_encoded(task.reply or _success_reply(request.message, reached))
        failpoints.hit("answered")

    def _delivery_note(self, request: Request, task: Task) -> Task | None:
        """Give the note that somebody has the answer to a push that another one asked for."""
        if task.context and request.message is task.context.message:
            return None
        id_ = payload.request_metadata(request.message.data).get("id")
        if not id_ or id_ == payload.request_id(task.body):
            return None
        return Task(
            self.name,
            DELIVERED_TO,
            f"{task.announcement_number} {id_}",
            DELIVERED_TO,
            "",
            announcement_number=task.announcement_number,
            state=DONE,
        )

    def _reply_if_peer_has_it(self, request: Request, task: Task) -> bool:
        """Answer a client that does not want what one of its peers has had, when that is so."""
        data = request.message.data
        peers = payload.request_metadata(data).get("unless_delivered_to")
        if not peers:
            return False
        for done in self._journal.finished_for(self.name, ("push", DELIVERED_TO), task.announcement_number or 0):
            had_by = done.key.partition(" ")[2] if done.kind == DELIVERED_TO else payload.request_id(done.body)
            if had_by and had_by.rpartition("/")[0] in peers:
                answer = {**data, "destination": parse_destination(data, self._allowed).without_login}
                request.reply(payload.reply_type(data), answer | {"request": {"delivered_to": had_by}})
                return True
        return False

    def _restart(self, task: Task, wanted: Task) -> None:
        task.body, task.state, task.tries, task.lane = wanted.body, 0, 0, wanted.lane
        task.due = task.created = self._journal.now()
        self._journal.reset_tasks([task])

    def _push(self, task: Task) -> Result:
        """Deliver what a request asks for; runs on a worker."""
        if not self._holdings.ensure_local(task):
            task.tries -= 1
            return Result(retry_in=RECHECK_DELAY, on_committed=lambda: self._resume_if_local(task))
        started = time.monotonic()
        asked: _PushContext | None = task.context
        message = asked.message if asked else Message.decode(task.body)
        data = message.data
        shown = urls.redacted(data.get("destination"))
        try:
            announced = asked.announced if asked else self._announced(task.announcement_number or 0)
            target = parse_destination(data, self._allowed)  # again: what is allowed may have changed while it waited
            size, reached = self._deliver(task, announced, data, target)
        except JournalError:
            raise
        except Exception as failure:
            error = self._to_error(failure)
            log.warning("[%s] %s not delivered to %s: %s", self.name, payload.file_names(data), shown, error)
            text = Message(message.subject, "err", payload.error_payload(data, error)).encode()
            return Result(
                reply=text, error=error, final=True, on_committed=lambda: self._reply_failure(task, text, error)
            )
        failpoints.hit("delivered")
        took = time.monotonic() - started
        text = _success_reply(message, reached)
        then = (*self._follow(task.announcement_number or 0), *self._delivery_notes(task))
        what = payload.file_names(data), shown, readable_size(size), took, task.tries
        log.info("[%s] delivered %s to %s (%s, %.2f s, try %d)", self.name, *what)
        return Result(reply=text, follow_ups=then, on_committed=lambda: self._reply_waiters(task.id, text))

    def _to_error(self, failure: Exception) -> TrollmovesError:
        if isinstance(failure, TrollmovesError):
            return failure
        log.error("[%s] unexpected error while delivering", self.name, exc_info=failure)
        return RequestRejected("internal error")

    def _clean_stale_partials(self, target: PushDestination) -> None:
        """Remove, once in a process, what killed processes left half-written in a directory on this host."""
        if target.local_directory and target.local_directory not in self._cleaned:
            self._cleaned.add(target.local_directory)
            for path in clean_partials(target.local_directory, STALE_PARTIAL_AGE):
                log.info("[%s] removed %s, left by a transfer that was killed", self.name, path)

    def _announced(self, number: int) -> AnnouncementRecord:
        announced = self._journal.get_announcement(self.name, number)
        if announced is None:
            raise RequestRejected(f"announcement {number} is not known any more")
        return announced

    def _deliver(
        self, task: Task, announced: AnnouncementRecord, data: dict[str, Any], target: PushDestination
    ) -> tuple[int, str]:
        """Give the bytes that were sent, and the destination: with the host of the backup target if one was used."""
        size = 0
        self._clean_stale_partials(target)
        destination = target.without_login
        mark = PartialId.for_delivery(self._journal.identity, self.name, task.key, tried=task.may_have_run(self._began))
        for item in payload.file_items(data):
            uri = item["uri"]
            pathname = self._holdings.path(announced.number, uri)
            reached = move_it(
                pathname,
                target.directory,
                self._parameters,
                rel_path=item.get("path"),
                backup_targets=backup_targets(data),
                check=partial(self._check_opened, announced, uri, pathname),
                mark=mark,
            )
            if reached.netloc != target.directory.netloc:
                destination = urls.without_login(urls.parse(destination)._replace(netloc=reached.netloc))
            size += _size(pathname)
        return size, destination

    def _check_opened(self, announced: AnnouncementRecord, uri: str, pathname: str, fd: int) -> None:
        """Check that what was opened is what was announced, whatever its name stands for by now."""
        try:
            real = symlinks.path_of_fd(fd, pathname)
        except OSError as error:
            raise OriginChanged(f"{pathname}: {error.strerror}") from error
        self._holdings.check_access(announced, uri, real)

    def _delivery_notes(self, task: Task) -> list[Task]:
        with self._waiting_lock:
            waiters = list(self._waiting.get(task.id, ()))
        return [had for waiter in waiters if (had := self._delivery_note(waiter.request, task))]

    def _reply_waiters(self, task_id: int, text: str) -> None:
        self._shares.remove([task_id])
        with self._waiting_lock:
            waiters = self._waiting.pop(task_id, ())
        for waiter in waiters:
            waiter.request.reply_encoded(text)
            failpoints.hit("answered")

    def _resume_if_local(self, task: Task) -> None:
        """Run a push at once whose files came before it was written down that it waits for them."""
        if self._holdings.ensure_local(task):
            self.resume(task.announcement_number or 0)

    def resume(self, number: int) -> None:
        """Run the pushes about an announcement now: its files have been brought."""
        self._workers.submit(self._journal.make_due_now(self.name, "push", number))

    def fail_pending(self, number: int, error: TrollmovesError) -> None:
        """Answer the pushes about an announcement that its files cannot be had; for now, if ``error.temporary``.

        Then our own peers may find them elsewhere meanwhile, and ask again. Others may not, so they go on waiting.
        """
        stay = set[int]()
        with self._waiting_lock:
            tasks = self._journal.pending_for(self.name, "push", number)
            refused = []
            for task in tasks:
                waiters = self._waiting.pop(task.id, [])
                patient = [w for w in waiters if error.temporary and w.keepalive_at is None]
                refused += [w for w in waiters if w not in patient]
                if patient:
                    self._waiting[task.id] = patient
                    stay.add(task.id)
            self._journal.finish([Outcome(task, FAILED) for task in tasks if task.id not in stay])
            self._shares.remove([task.id for task in tasks if task.id not in stay])
        for waiter in refused:
            reject(self.name, waiter.request, error)

    def _reply_failure(self, task: Task, text: str, error: TrollmovesError) -> None:
        """Answer a failure, also to those in the same lane once the host is known to be down: they go elsewhere."""
        self._reply_waiters(task.id, text)
        pause = self._workers.pause_remaining(self.name, task.lane)
        if not error.outage or not pause:
            return
        for id_ in self._journal.fail_pending(
            self.name, task.lane, exclude=self._workers.in_flight_ids(self.name, task.lane)
        ):
            self._shares.remove([id_])
            with self._waiting_lock:
                waiters = self._waiting.pop(id_, ())
            for waiter in waiters:
                reject(self.name, waiter.request, HostUnavailable(str(error)), pause)

    def send_keepalives(self) -> None:
        """Tell patient peers, before they lose their patience, that their push still runs."""
        now = time.monotonic()
        overdue: list[Request] = []
        with self._waiting_lock:
            for id_, waiters in list(self._waiting.items()):
                late = [w for w in waiters if w.keepalive_at is not None and w.keepalive_at <= now]
                if late:
                    overdue += [w.request for w in late]
                    self._waiting[id_] = [w for w in waiters if w not in late]
        for request in overdue:
            request.reply("wait")


class HostUnavailable(TransferError):
    """A destination is not even tried now, since it does not answer."""

    temporary = True


def compact_body(task: Task) -> str:
    """Give what is left of a push that was done: who asked, and where it went if that was not where it was to go."""
    left: dict[str, Any] = {}
    id_ = payload.request_id(task.body)
    if id_:
        left["request"] = {"id": id_}
    reached = Message.decode(task.reply).data["destination"] if task.reply else _compacted(task).get("destination")
    if reached and reached != task.key.partition(" ")[2]:
        left["destination"] = reached
    return json.dumps(left) if left else ""


def _compacted(task: Task) -> dict[str, Any]:
    return dict(json.loads(task.body)) if task.body.startswith("{") else {}


def _success_reply(request: Message, reached: str) -> str:
    """Write the answer to a push that was delivered."""
    type_, data = payload.reply_type(request.data), request.data
    if data.get("destination") == reached:
        return request.derive(type_, without="request")
    return Message(request.subject, type_, {**data, "destination": reached}).derive(type_, without="request")


def reject(name: str, request: Request, error: TrollmovesError, again_in: float = 0.0) -> None:
    """Answer ``err``, and say so in the log of a chain."""
    if (more := request.log_suffix()) is not None:
        log.warning("[%s] %s refused: %s%s", name, request.message.type, error, more)
    request.reply("err", payload.error_payload(request.message.data, error, again_in))


def _keepalive_time(data: dict[str, Any]) -> float | None:
    patience = payload.request_metadata(data).get("timeout")
    if isinstance(patience, (int, float)) and patience > 0:
        return time.monotonic() + KEEPALIVE_FRACTION * patience
    return None


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
