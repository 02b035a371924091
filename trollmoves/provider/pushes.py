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

from trollmoves import links, steps, urls
from trollmoves.allowed_destinations import Place
from trollmoves.errors import JournalError, OriginChanged, RequestRefused, TransferError, TrollmovesError
from trollmoves.journal import DONE, FAILED, Announced, Journal, Outcome, Task
from trollmoves.lanes import Result
from trollmoves.logs import size as readable_size
from trollmoves.messaging import contents
from trollmoves.messaging.messages import Message
from trollmoves.messaging.replier import Request, TooMany
from trollmoves.movers import Mark, clean_partials, move_it
from trollmoves.provider.announcer import Announcer
from trollmoves.provider.holdings import Holdings
from trollmoves.provider.shares import Shares
from trollmoves.provider.targets import Target, backup_targets, target_of
from trollmoves.workers import Workers

log = logging.getLogger(__name__)

HAD = "had"  # the kind of the notes of who else has the answer to a push
ANSWER_STAYS = 60.0  # s for which an answer also serves a peer that does not say that it is asking again
BRING_AGAIN = 60.0  # s until a push looks again for files that are being brought; their arrival wakes it before
PARTIALS_AFTER = 3600.0  # s without a write after which a partial is nobody's
PATIENCE_USED = 0.7  # of the time a peer waits for an answer, after which it is told to go on waiting


@dataclass(slots=True)
class _Waiter:
    """A peer that waits for the end of a push."""

    request: Request
    tell_by: float | None  # monotonic; when to say that it still runs, None for peers that do not know that answer


class _Asked(NamedTuple):
    """What a push that was noted just now is about; after a restart the journal says it."""

    message: Message
    announced: Announced


class Pushes:
    """The pushes of one chain: noted when they are asked for, run by workers, answered when they are over.

    ``follow(number)`` gives the tasks that follow when the files of an announcement were delivered.
    """

    def __init__(
        self,
        name: str,
        journal: Journal,
        workers: Workers,
        announcer: Announcer,
        holdings: Holdings,
        *,
        limit: int,
        parameters: Mapping[str, Any],
        allowed: tuple[Place, ...],
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
        self._shares = Shares()
        self._cleaned: set[str] = set()
        self._began = journal.now()
        self._waiting_lock = threading.Lock()  # between the look at a push and the wait for it nothing may end it

    def start(self) -> None:
        """Run what was asked for, also in an earlier process: what waited there for its files is looked for again."""
        self._journal.hasten_all(self.name, "push")
        self._workers.register(self.name, "push", limit=self._limit, handler=self._push)

    def take(self, requests: list[Request]) -> None:
        """Note pushes, and answer those that are answered already; the replier's thread calls."""
        steps.reached("asked")
        announced = self._announcer.numbered(request.message.data for request in requests)
        asked = [(request, task) for request in requests if (task := self._wanted(request, announced))]
        if not asked:
            return
        for request, task in asked:
            if log.isEnabledFor(logging.DEBUG):
                names = contents.names(request.message.data)
                log.debug("[%s] %s asks for %s, to %s", self.name, request.sender, names, task.lane.partition(" ")[2])
            task.rank = self._shares.rank(request.sender)
        with self._waiting_lock:
            noted = self._journal.note([task for _, task in asked])
            begin = []
            for (request, wanted), (task, new) in zip(asked, noted, strict=True):
                if not new and not self._to_do_again(task, wanted):
                    if task.state == DONE:
                        self._answer_again(request, task)
                        continue
                else:
                    if not new:
                        self._reopen(task, wanted)
                    begin.append(task)
                    self._shares.begin(task.id, request.sender)
                self._waiting.setdefault(task.id, []).append(_Waiter(request, _tell_by(request.message.data)))
        steps.reached("push-noted")
        self._workers.expect(begin)

    def _wanted(self, request: Request, announced: Mapping[int, Announced]) -> Task | None:
        """Give the task for a request; None when it was answered at once."""
        try:
            if self._shares.is_full(request.sender):
                raise TooMany("too many of your pushes wait")
            task = self._push_task(request.message, announced)
            pause = self._workers.paused(self.name, task.lane)
            if pause:
                raise _HostDown(f"{task.lane.removeprefix('push ')} does not take files, next try in {pause:.0f} s")
            return None if self._was_for_a_peer(request, task) else task
        except TrollmovesError as error:
            refuse(self.name, request, error)
        except Exception:
            log.exception("[%s] cannot take a push", self.name)
            request.refuse("internal error")
        return None

    def _push_task(self, message: Message, at_hand: Mapping[int, Announced]) -> Task:
        data = message.data
        announced = self._announcer.find(data, at_hand)
        target = target_of(data, self._allowed)
        key = f"{announced.number} {target.without_login}"
        asked = _Asked(message, announced)
        return Task(self.name, "push", key, target.lane, message.text, about=announced.number, context=asked)

    def _to_do_again(self, known: Task, wanted: Task) -> bool:
        """Tell whether a push that is known is to be made anew, rather than joined or answered from the journal.

        The same request, asked again by our own clients, means "are you done?"; another one of the same client, that it
        wants the file again. So may whoever else asks much later.
        """
        if known.state != DONE:
            return known.state == FAILED
        id_, before = contents.request_id(wanted.body), contents.request_id(known.body)
        if id_ and before and id_.rpartition("/")[0] == before.rpartition("/")[0]:
            return id_ != before
        return self._journal.now() - (known.finished or 0.0) > ANSWER_STAYS

    def _answer_again(self, request: Request, task: Task) -> None:
        """Give the stored answer."""
        also = self._had_by(request, task)
        if also:
            self._journal.note([also])
        reached = _remaining(task).get("destination") or task.key.partition(" ")[2]
        request.answer_with(task.reply or _answer(request.message, reached))
        steps.reached("answered")

    def _had_by(self, request: Request, task: Task) -> Task | None:
        """Give the note that somebody has the answer to a push that another one asked for."""
        if task.context and request.message is task.context.message:
            return None
        id_ = contents.request_mark(request.message.data).get("id")
        if not id_ or id_ == contents.request_id(task.body):
            return None
        return Task(self.name, HAD, f"{task.about} {id_}", HAD, "", about=task.about, state=DONE)

    def _was_for_a_peer(self, request: Request, task: Task) -> bool:
        """Answer a client that does not want what one of its peers has had, when that is so."""
        data = request.message.data
        peers = contents.request_mark(data).get("unless")
        if not peers:
            return False
        for done in self._journal.done_about(self.name, ("push", HAD), task.about or 0):
            had_by = done.key.partition(" ")[2] if done.kind == HAD else contents.request_id(done.body)
            if had_by and had_by.rpartition("/")[0] in peers:
                answer = {**data, "destination": target_of(data, self._allowed).without_login}
                request.answer(contents.reply_type(data), answer | {"request": {"delivered_for": had_by}})
                return True
        return False

    def _reopen(self, task: Task, wanted: Task) -> None:
        task.body, task.state, task.tries, task.lane = wanted.body, 0, 0, wanted.lane
        task.due = task.noted = self._journal.now()
        self._journal.rewrite([task])

    def _push(self, task: Task) -> Result:
        """Deliver what a request asks for; runs on a worker."""
        if not self._holdings.bring(task):
            task.tries -= 1
            return Result(again_in=BRING_AGAIN, after=lambda: self._wake_if_brought(task))
        started = time.monotonic()
        asked: _Asked | None = task.context
        message = asked.message if asked else Message.decode(task.body)
        data = message.data
        shown = urls.printable(data.get("destination"))
        try:
            announced = asked.announced if asked else self._announced(task.about or 0)
            target = target_of(data, self._allowed)  # again: what is allowed may have changed while it waited
            size, reached = self._deliver(task, announced, data, target)
        except JournalError:
            raise
        except Exception as failure:
            error = self._as_told(failure)
            log.warning("[%s] %s not delivered to %s: %s", self.name, contents.names(data), shown, error)
            text = Message(message.subject, "err", contents.failure(data, error)).encode()
            return Result(reply=text, error=error, final=True, after=lambda: self._tell_failure(task, text, error))
        steps.reached("delivered")
        took = time.monotonic() - started
        text = _answer(message, reached)
        then = (*self._follow(task.about or 0), *self._had_by_others(task))
        what = contents.names(data), shown, readable_size(size), took, task.tries
        log.info("[%s] delivered %s to %s (%s, %.2f s, try %d)", self.name, *what)
        return Result(reply=text, then=then, after=lambda: self._tell(task.id, text))

    def _as_told(self, failure: Exception) -> TrollmovesError:
        if isinstance(failure, TrollmovesError):
            return failure
        log.error("[%s] unexpected error while delivering", self.name, exc_info=failure)
        return RequestRefused("internal error")

    def _clean(self, target: Target) -> None:
        """Remove, once in a process, what killed processes left half-written in a directory on this host."""
        if target.local and target.local not in self._cleaned:
            self._cleaned.add(target.local)
            for path in clean_partials(target.local, PARTIALS_AFTER):
                log.info("[%s] removed %s, left by a transfer that was killed", self.name, path)

    def _announced(self, number: int) -> Announced:
        announced = self._journal.announcement(self.name, number)
        if announced is None:
            raise RequestRefused(f"announcement {number} is not known any more")
        return announced

    def _deliver(self, task: Task, announced: Announced, data: dict[str, Any], target: Target) -> tuple[int, str]:
        """Give the bytes that were sent, and the destination: with the host of the backup target if one was used."""
        size = 0
        self._clean(target)
        destination = target.without_login
        mark = Mark.of(self._journal.identity, self.name, task.key, tried=task.may_have_run(self._began))
        for item in contents.items(data):
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

    def _check_opened(self, announced: Announced, uri: str, pathname: str, fd: int) -> None:
        """Check that what was opened is what was announced, whatever its name stands for by now."""
        try:
            real = links.opened_path(fd, pathname)
        except OSError as error:
            raise OriginChanged(f"{pathname}: {error.strerror}") from error
        self._holdings.check(announced, uri, real)

    def _had_by_others(self, task: Task) -> list[Task]:
        with self._waiting_lock:
            waiters = list(self._waiting.get(task.id, ()))
        return [had for waiter in waiters if (had := self._had_by(waiter.request, task))]

    def _tell(self, task_id: int, text: str) -> None:
        self._shares.end([task_id])
        with self._waiting_lock:
            waiters = self._waiting.pop(task_id, ())
        for waiter in waiters:
            waiter.request.answer_with(text)
            steps.reached("answered")

    def _wake_if_brought(self, task: Task) -> None:
        """Run a push at once whose files came before it was written down that it waits for them."""
        if self._holdings.bring(task):
            self.wake(task.about or 0)

    def wake(self, number: int) -> None:
        """Run the pushes about an announcement now: its files have been brought."""
        self._workers.expect(self._journal.hasten(self.name, "push", number))

    def give_up(self, number: int, error: TrollmovesError) -> None:
        """Answer the pushes about an announcement that its files cannot be had; for now, if ``error.temporary``.

        Then our own peers may find them elsewhere meanwhile, and ask again. Others may not, so they go on waiting.
        """
        stay = set[int]()
        with self._waiting_lock:
            tasks = self._journal.waiting_about(self.name, "push", number)
            refused = []
            for task in tasks:
                waiters = self._waiting.pop(task.id, [])
                patient = [w for w in waiters if error.temporary and w.tell_by is None]
                refused += [w for w in waiters if w not in patient]
                if patient:
                    self._waiting[task.id] = patient
                    stay.add(task.id)
            self._journal.finish([Outcome(task, FAILED) for task in tasks if task.id not in stay])
            self._shares.end([task.id for task in tasks if task.id not in stay])
        for waiter in refused:
            refuse(self.name, waiter.request, error)

    def _tell_failure(self, task: Task, text: str, error: TrollmovesError) -> None:
        """Answer a failure, also to those in the same lane once the host is known to be down: they go elsewhere."""
        self._tell(task.id, text)
        pause = self._workers.paused(self.name, task.lane)
        if not error.outage or not pause:
            return
        for id_ in self._journal.fail_waiting(self.name, task.lane, but=self._workers.taken(self.name, task.lane)):
            self._shares.end([id_])
            with self._waiting_lock:
                waiters = self._waiting.pop(id_, ())
            for waiter in waiters:
                refuse(self.name, waiter.request, _HostDown(str(error)), pause)

    def tick(self) -> None:
        """Tell patient peers, before they lose their patience, that their push still runs."""
        now = time.monotonic()
        overdue: list[Request] = []
        with self._waiting_lock:
            for id_, waiters in list(self._waiting.items()):
                late = [w for w in waiters if w.tell_by is not None and w.tell_by <= now]
                if late:
                    overdue += [w.request for w in late]
                    self._waiting[id_] = [w for w in waiters if w not in late]
        for request in overdue:
            request.answer("wait")


class _HostDown(TransferError):
    """A destination is not even tried now, since it does not answer."""

    temporary = True


def remains(task: Task) -> str:
    """Give what is left of a push that was done: who asked, and where it went if that was not where it was to go."""
    left: dict[str, Any] = {}
    id_ = contents.request_id(task.body)
    if id_:
        left["request"] = {"id": id_}
    reached = Message.decode(task.reply).data["destination"] if task.reply else _remaining(task).get("destination")
    if reached and reached != task.key.partition(" ")[2]:
        left["destination"] = reached
    return json.dumps(left) if left else ""


def _remaining(task: Task) -> dict[str, Any]:
    return dict(json.loads(task.body)) if task.body.startswith("{") else {}


def _answer(request: Message, reached: str) -> str:
    """Write the answer to a push that was delivered."""
    type_, data = contents.reply_type(request.data), request.data
    if data.get("destination") == reached:
        return request.variant(type_, without="request")
    return Message(request.subject, type_, {**data, "destination": reached}).variant(type_, without="request")


def refuse(name: str, request: Request, error: TrollmovesError, again_in: float = 0.0) -> None:
    """Answer ``err``, and say so in the log of a chain."""
    if (more := request.turn()) is not None:
        log.warning("[%s] %s refused: %s%s", name, request.message.type, error, more)
    request.answer("err", contents.failure(request.message.data, error, again_in))


def _tell_by(data: dict[str, Any]) -> float | None:
    patience = contents.request_mark(data).get("patience")
    if isinstance(patience, (int, float)) and patience > 0:
        return time.monotonic() + PATIENCE_USED * patience
    return None


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
