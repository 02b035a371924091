"""Carries out the orders of an operator on the journal and the scheduler of a daemon."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from trollmoves.errors import JournalError
from trollmoves.journal import (
    DONE,
    FAILED,
    SET_ASIDE,
    WAITING,
    AnnouncementRecord,
    Journal,
    Selection,
    Task,
    batches,
)
from trollmoves.net import urls
from trollmoves.orders.order import (
    ACTIONS,
    DROP,
    OF_A_LANE,
    PAUSE,
    RELEASE,
    RESEND,
    RESUME,
    RETRY,
    Order,
    OrderRejected,
)
from trollmoves.scheduler.pauses import Pauses, ended_by, lanes_named, unknown_name
from trollmoves.scheduler.scheduler import Scheduler
from trollmoves.scheduler.task_kinds import EVENTS, FILE_KINDS
from trollmoves.utils.texts import counted

logger = logging.getLogger(__name__)

DROPPABLE = (*FILE_KINDS, SET_ASIDE)


class Resender(NamedTuple):
    """How the tasks of one kind are repeated.

    ``again(journal, task)`` returns the task that repeats a finished one, None if the journal lacks its data.
    ``to(journal, task, destination)`` does so with another destination.
    ``announced(chain, announcement, destination)`` returns the task that sends an announced file to a destination.
    """

    again: Callable[[Journal, Task], Task | None]
    to: Callable[[Journal, Task, str], Task | None] | None = None
    announced: Callable[[str, AnnouncementRecord, str], Task] | None = None


class OrderExecutor:
    """Carries out orders, one at a time. Any thread.

    An order is stored before it begins, and its result when it is done: an order that a kill interrupted is carried
    out again at the next start. ``sections`` returns the names of all chains. ``on_dropped`` is called with the tasks
    that were dropped.
    """

    def __init__(
        self,
        journal: Journal,
        scheduler: Scheduler,
        resenders: Mapping[str, Resender],
        sections: Callable[[], Iterable[str]],
        on_dropped: Callable[[Sequence[Task]], None],
    ) -> None:
        self._journal = journal
        self._scheduler = scheduler
        self._resenders = resenders
        self._sections = sections
        self._on_dropped = on_dropped
        self._lock = threading.Lock()
        self._carry_out: Mapping[str, Callable[[Order], dict[str, Any]]] = {
            PAUSE: self._pause,
            RESUME: self._resume,
            RELEASE: self._release,
            RETRY: self._retry,
            RESEND: self._resend,
            DROP: self._drop,
        }

    def pause_lanes(self) -> None:
        """Put the stored pauses into effect, before the chains start."""
        self._carry_out_stored(OF_A_LANE)
        self._apply_pauses()
        for pause in self._journal.pauses():
            logger.warning("%s is paused, by %s", pause.key, _user_of(pause.body))

    def start(self) -> None:
        """Carry out the orders that were stored for this start, when the chains have started."""
        self._carry_out_stored(ACTIONS)

    def _carry_out_stored(self, actions: Collection[str]) -> None:
        for stored in self._journal.waiting_orders():
            try:
                order = Order.parse(json.loads(stored.body))
                if order.action in actions:
                    self._run(order, stored.key)
            except OrderRejected:
                pass  # logged
            except JournalError as error:  # the order stays stored
                logger.error("the order %s waits for the next start: %s", stored.key, error)
            except Exception:  # a malformed order must not stop the daemon
                logger.exception("unexpected error in the order %s", stored.key)
                self._journal.end_order(stored.key, "unexpected error", done=False)

    def execute(self, values: Mapping[str, Any], by: str) -> dict[str, Any]:
        """Store and carry out an order of a user; return its result. Raise OrderRejected if it is invalid."""
        order = Order.parse({**values, "by": by, "at": self._journal.now()})
        self._journal.add_order(order.key, order.dump())
        return self._run(order, order.key)

    def _run(self, order: Order, key: str) -> dict[str, Any]:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(order.at))
        with self._lock:
            try:
                result = self._carry_out[order.action](order)
            except OrderRejected as error:
                self._journal.end_order(key, str(error), done=False)
                logger.warning("%s, ordered by %s at %s: %s", order, order.by, when, error)
                raise
            self._journal.end_order(key, json.dumps(result), done=True)
        logger.info("%s, ordered by %s at %s: %s", order, order.by, when, result["text"])
        return result

    # -- chains and destinations

    def _lanes_of(self, order: Order) -> set[tuple[str, str]]:
        """Return (chain, lane) of the lanes that an order names; raise OrderRejected if the name is unknown."""
        known, sections = self._journal.recent_lanes(), set(self._sections())
        lanes = lanes_named(order.name, known)
        if not lanes and order.name not in sections:
            raise OrderRejected(unknown_name(order.name, sections, known))
        return lanes

    def _waiting(self, lanes: Iterable[tuple[str, str]]) -> int:
        return sum(self._journal.count_waiting(chain, lane) for chain, lane in lanes)

    def _pause(self, order: Order) -> dict[str, Any]:
        lanes = self._lanes_of(order)
        self._journal.add_pause(order.name, order.dump())
        self._apply_pauses()
        waiting = self._waiting(lanes)
        return _result(f"paused; {counted(waiting, 'file')} waiting, running transfers continue", waiting)

    def _resume(self, order: Order) -> dict[str, Any]:
        names = [pause.key for pause in self._journal.pauses()]
        known = self._journal.recent_lanes()
        ended = ended_by(order.name, names, set(self._sections()), known)
        if not ended:
            paused = f"; paused are {', '.join(names)}" if names else ""
            raise OrderRejected(f"{order.name} is not paused{paused}")
        for name in ended:
            self._journal.end_pause(name)
        self._apply_pauses()
        lanes = lanes_named(order.name, known)
        rest = [name for name in names if name not in ended and lanes & lanes_named(name, known)]
        still = f"; a part is still paused, by the pause of {', '.join(rest)}" if rest else ""
        waiting = self._waiting(lanes)
        return _result(f"resumed; {counted(waiting, 'file')} waiting{still}", waiting)

    def _apply_pauses(self) -> None:
        self._scheduler.set_pauses(Pauses(pause.key for pause in self._journal.pauses()))

    def _release(self, order: Order) -> dict[str, Any]:
        lanes = self._lanes_of(order)
        if order.name in self._sections():
            self._scheduler.retry_now(order.name)
        for chain, lane in lanes:
            self._scheduler.retry_now(chain, lane)
        waiting = self._waiting(lanes)
        return _result(f"released; {counted(waiting, 'file')} waiting", waiting)

    # -- files

    def _retry(self, order: Order) -> dict[str, Any]:
        found = self._find(order, FILE_KINDS)
        for batch in batches([task for task in found if task.state == FAILED]):
            self._scheduler.submit(self._journal.retry(task.id for task in batch))
        waiting = [task for task in found if task.state == WAITING]
        self._journal.make_due(waiting)
        for chain, lane in {(task.chain, task.lane) for task in waiting}:
            self._scheduler.look_again(chain, lane)
        return _result(f"{counted(len(found), 'file')} retried", len(found))

    def _drop(self, order: Order) -> dict[str, Any]:
        dropped, in_flight = self._scheduler.drop(self._find(order, DROPPABLE))
        self._on_dropped(dropped)
        kept = len(in_flight)
        rest = f"; {counted(kept, 'file')} in flight: pause the destination, then repeat the command" if kept else ""
        return _result(f"{counted(len(dropped), 'file')} dropped{rest}", len(dropped), in_flight=kept)

    def _find(self, order: Order, kinds: Collection[str]) -> list[Task]:
        """Return the waiting and failed tasks of an order; raise OrderRejected if it names a file without any."""
        states = (FAILED,) if order.failed else (FAILED, WAITING)
        found = self._journal.select(Selection(states, kinds, order.chain, order.file, only_final=order.failed))
        if not found and not order.failed:
            raise OrderRejected(f"no waiting or failed file is named {order.file}")
        return found

    def _resend(self, order: Order) -> dict[str, Any]:
        self._check_destination(order.to)
        kinds = [kind for kind in EVENTS if kind in self._resenders]
        announced = next((r.announced for r in self._resenders.values() if r.announced), None) if order.to else None
        if announced:
            files = self._journal.announced_files(order.chain, order.file, order.since)
            repeated: list[Task | None] = [announced(chain, record, order.to) for chain, record in files]
        else:
            found = self._journal.select(Selection((DONE,), kinds, order.chain, order.file, order.since, order.at))
            repeated = [self._repeated(task, order.to) for task in found]
        repeated = [task for task in repeated if task is None or self._scheduler.kind_of(task.chain, task.kind)]
        wanted = [task for task in repeated if task]
        tasks = self._add(wanted) if order.to else self._journal.restart(wanted)
        for batch in batches(tasks):
            self._scheduler.submit(batch)
        lost = len(repeated) - len(tasks)
        rest = f"; of {counted(lost, 'file')} the journal has no message any longer" if lost else ""
        if not tasks:
            raise OrderRejected(f"no delivered file to resend{rest}{': resend at the server' if lost else ''}")
        return _result(f"{counted(len(tasks), 'file')} to resend{rest}", len(tasks), lost=lost)

    def _add(self, wanted: Sequence[Task]) -> list[Task]:
        """Store tasks that run now; return them. One that waits already keeps its id, by which clients wait for it."""
        added: list[Task] = []
        for batch in batches(wanted):
            known = []
            for task, (stored, is_new) in zip(batch, self._journal.add_tasks(batch), strict=True):
                if not is_new and stored.state != WAITING:
                    stored.body, stored.lane, stored.rank = task.body, task.lane, task.rank
                    known.append(stored)
                added.append(stored)
            self._journal.restart(known)
        self._journal.make_due(added)
        return added

    def _repeated(self, task: Task, to: str) -> Task | None:
        resender = self._resenders[task.kind]
        if not to:
            return resender.again(self._journal, task)
        if resender.to is None:
            raise OrderRejected("a client cannot deliver to another destination: resend at the server")
        return resender.to(self._journal, task, to)

    @staticmethod
    def _check_destination(to: str) -> None:
        if to and not urls.parse(to).path.startswith("/"):
            raise OrderRejected(f"{urls.redacted(to)} must be a URL or an absolute path of a directory")


def _result(text: str, count: int, **more: object) -> dict[str, Any]:
    return {"text": text, "count": count, **more}


def _user_of(body: str) -> str:
    try:
        return str(json.loads(body).get("by"))
    except (ValueError, AttributeError):
        return "an unknown user"
