"""Announces the files of a chain, and answers the requests for them.

The giving half of a conversation, for server and mirror alike. A request is served only for what this chain announced.
It is noted in the journal before a worker takes it; asked again while it runs, it joins the one that runs; asked again
after its end, it gets the answer that was stored.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import ParseResult

from trollmoves import urls
from trollmoves.errors import RequestRefused, TransferError, TrollmovesError
from trollmoves.journal import DONE, FAILED, Announced, Journal, Task
from trollmoves.lanes import Result
from trollmoves.logs import size as readable_size
from trollmoves.messaging import contents
from trollmoves.messaging.messages import Message
from trollmoves.messaging.publisher import Publisher
from trollmoves.messaging.replier import Replier, Request
from trollmoves.movers import move_it
from trollmoves.options import ServerOptions
from trollmoves.workers import Workers

log = logging.getLogger(__name__)

MOST_LISTED = 2256  # files in one answer to `info`, what peers are used to
MOST_REPLAYED = 500  # announcements in one answer to `replay`
SETTLE = 1.0  # s for subscribers of an earlier process of ours to connect to this one
ANSWER_STAYS = 60.0  # s for which an answer also serves a peer that does not say that it is asking again
PATIENCE_USED = 0.7  # of the time a peer waits for an answer, after which it is told to go on waiting
LISTED_AT_ONCE = 500  # announcements read at one time when many are looked through


@dataclass(slots=True)
class Announcement:
    """A file, or several in one message, to announce; ``mtime`` in ns, None where unknown."""

    uri: str
    uid: str
    data: dict[str, Any]
    size: int | None = None
    mtime: int | None = None
    type: str = "file"
    subject: str = ""


@dataclass(slots=True)
class _Waiter:
    """A peer that waits for the end of a push."""

    request: Request
    tell_by: float | None  # monotonic; when to say that it still runs, None for peers that do not know that answer


class Provider:
    """One chain's announcements and its request port."""

    def __init__(self, options: ServerOptions, journal: Journal, publisher: Publisher, workers: Workers) -> None:
        """Bind the request port; StartError when it is taken."""
        if options.request_port is None:
            raise ValueError("a provider needs a request port")
        self.name = options.name
        self._options = options
        self._journal = journal
        self._publisher = publisher
        self._workers = workers
        self._address = f"{options.request_address or urls.own_address()}:{options.request_port}"
        self._log_name = f"{journal.identity}/{self.name}"
        self._started = time.monotonic()
        self._before = 0  # the number up to which earlier processes have announced
        self._announcing = threading.Lock()
        self._waiting: dict[int, list[_Waiter]] = {}
        self._waiting_lock = threading.Lock()  # between the look at a push and the wait for it nothing may end it
        self._replier = Replier(
            self.name, options.request_port, self._handle, bind_address=options.bind_address, tick=self._tick
        )
        self._stopping = threading.Event()
        self._settler = threading.Thread(target=self._announce_undelivered, name=f"settler of {self.name}", daemon=True)

    # -- start and stop

    def start(self, *, again: bool = True) -> None:
        """Answer requests, push what was asked for; with ``again`` also announce anew what nobody has had yet."""
        self._started = time.monotonic()
        self._workers.register(self.name, "push", limit=self._options.lane_limit, handler=self._push)
        self._workers.register(self.name, "remove", limit=1, handler=self._remove)
        self._replier.start()
        if again:
            self._before = self._journal.last_number(self.name)
            self._settler.start()

    def stop(self) -> None:
        """Hear no requests any more. What runs goes on, and whoever waits for it asks again."""
        self._stopping.set()
        self._workers.forget(self.name)
        self._replier.stop()
        if self._settler.is_alive():
            self._settler.join(5.0)

    def beat(self) -> dict[str, Any]:
        """Say how far the log goes, for the heartbeat."""
        return {
            "log": self._log_name,
            "number": self._journal.last_number(self.name),
            "topic": self._options.topic,
            "request_address": self._address,
        }

    # -- announcements

    def announce(self, announcements: Sequence[Announcement]) -> int:
        """Write to the log and publish; give how many. One whose file stands there unchanged is passed over.

        Any thread. In the first second it waits, so that subscribers find the time to connect.
        """
        if self._stopping.wait(max(0.0, self._started + SETTLE - time.monotonic())):
            return 0
        with self._announcing:
            known = self._journal.versions(self.name, {a.uri for a in announcements})
            new = [a for a in announcements if a.uri not in known or known[a.uri] != (a.size, a.mtime)]
            number = self._journal.last_number(self.name)
            texts = [self._announcement_text(a, number + n) for n, a in enumerate(new, start=1)]
            self._journal.announce(
                self.name,
                [
                    Announced(number + n, a.uri, a.uid, a.size, a.mtime, text)
                    for n, (a, text) in enumerate(zip(new, texts, strict=True), start=1)
                ],
            )
            self._publisher.send_texts(texts)
        if new:
            more = f" and {len(new) - 1} more" if len(new) > 1 else ""
            log.info("[%s] announced %s%s", self.name, new[0].uid, more)
        return len(new)

    def _announcement_text(self, a: Announcement, number: int) -> str:
        mark: dict[str, Any] = {"log": self._log_name, "number": number}
        if a.size is not None:
            mark |= {"size": a.size, "mtime": a.mtime}
        data = a.data | {"request_address": self._address, "announcement": mark}
        return Message(a.subject or self._options.topic, a.type, data).encode()

    def _announce_undelivered(self) -> None:
        """Publish again what was announced, and is still there, but was never delivered: nobody may have heard it."""
        self._stopping.wait(SETTLE)
        number = count = 0
        while not self._stopping.is_set():
            page = self._journal.undelivered(self.name, ("push", "ack"), number, LISTED_AT_ONCE)
            page = [announced for announced in page if announced.number <= self._before]
            if not page:
                break
            number = page[-1].number
            texts = [self._with_address(a.message) for a in page if _unchanged(a)]
            self._publisher.send_texts(texts)
            count += len(texts)
        if count:
            log.info("[%s] announced %d files again that nobody had asked for", self.name, count)

    def _with_address(self, text: str) -> str:
        """Give an announcement of an earlier start with the request address of this one."""
        if f'"{self._address}"' in text:
            return text
        message = Message.decode(text)
        message.data["request_address"] = self._address
        return message.encode()

    # -- requests

    def _handle(self, requests: list[Request]) -> None:
        pushes: list[Request] = []
        for request in requests:
            if request.message.type == "push":
                pushes.append(request)
                continue
            try:
                self._answer(request)
            except TrollmovesError as error:
                self._refuse(request, error)
            except Exception:
                log.exception("[%s] cannot answer %s", self.name, request.message.type)
                request.refuse("internal error")
        if pushes:
            self._take_pushes(pushes)

    def _answer(self, request: Request) -> None:
        kind, data = request.message.type, request.message.data
        if kind == "ping":
            request.answer("pong", {"station": self._options.station})
        elif kind == "info":
            request.answer("info", self._info(request.message.subject, data))
        elif kind == "ack":
            self._acknowledge(data)
            request.answer("ack", data)
        elif kind == "replay":
            request.answer("replay", self._replay(data))
        else:
            request.answer("unknown")

    def _refuse(self, request: Request, error: TrollmovesError, again_in: float = 0.0) -> None:
        log.warning("[%s] %s refused: %s", self.name, request.message.type, error)
        request.answer("err", contents.failure(request.message.data, error, again_in))

    def _info(self, subject: str, data: Any) -> dict[str, Any]:
        wanted = data.get("max_count") if isinstance(data, dict) else None
        count = min(wanted, MOST_LISTED) if isinstance(wanted, int) and wanted >= 0 else MOST_LISTED
        files: list[str] = []
        for announced in self._journal.newest(self.name, count):
            topic = announced.message.split(" ", 1)[0].removeprefix("pytroll:/")
            if topic.startswith(subject):
                files.append(f"{topic}/{announced.uid}")
        uptime = dt.timedelta(seconds=time.monotonic() - self._started)
        return {"files": files, "max_count": count, "uptime": str(uptime)}

    def _replay(self, data: Any) -> dict[str, Any]:
        """Give the announcements ``after`` a number, or of the last ``max_age`` seconds, to a peer that missed some.

        ``through`` is the number up to which nothing is left untold. A peer that names another log hears of this one.
        """
        data = data if isinstance(data, dict) else {}
        after, age = data.get("after"), data.get("max_age")
        last = self._journal.last_number(self.name)
        answer = {"log": self._log_name, "last": last}
        if data.get("log") != self._log_name:
            return answer | {"through": 0, "messages": []}
        if isinstance(age, (int, float)):
            after = self._journal.number_before(self.name, time.time() - age)
        if not isinstance(after, int) or after < 0:
            raise RequestRefused("a replay needs a number in 'after', or seconds in 'max_age'")
        found = self._journal.announced_after(self.name, after, MOST_REPLAYED)
        messages = [self._with_address(a.message) for a in found if _unchanged(a)]
        return answer | {"through": found[-1].number if found else last, "messages": messages}

    def _acknowledge(self, data: Any) -> None:
        announced = self._announced(data)
        note = Task(self.name, "ack", str(announced.number), "ack", "", about=announced.number, state=DONE)
        noted = self._journal.note([note, *self._removal(announced)])
        self._workers.expect([task for task, new in noted[1:] if new])

    def _announced(self, data: Any) -> Announced:
        """Give the announcement that a request is about; RequestRefused when this chain made none of these files."""
        if not isinstance(data, dict):
            raise RequestRefused("the data of a request must be a dictionary")
        uris = contents.uris(data)
        if not uris or not all(isinstance(uri, str) for uri in uris):
            raise RequestRefused("the request names no file")
        mark = contents.announcement_mark(data)
        announced = None
        if mark.get("log") == self._log_name:
            announced = self._journal.announcement(self.name, mark["number"])
        announced = announced or self._journal.announced(self.name, uris[0])
        if announced is None or not set(uris) <= _announced_uris(announced, uris):
            raise RequestRefused(f"not announced here: {os.path.basename(uris[0])}")
        return announced

    # -- pushes

    def _take_pushes(self, requests: list[Request]) -> None:
        asked: list[tuple[Request, Task]] = []
        for request in requests:
            try:
                task = self._push_task(request.message)
                pause = self._workers.paused(self.name, task.lane)
                if pause:
                    raise _HostDown(f"{task.lane.removeprefix('push ')} does not take files, next try in {pause:.0f} s")
                asked.append((request, task))
            except TrollmovesError as error:
                self._refuse(request, error)
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
                self._waiting.setdefault(task.id, []).append(_Waiter(request, _tell_by(request.message.data)))
        self._workers.expect(begin)

    def _push_task(self, message: Message) -> Task:
        data = message.data
        announced = self._announced(data)
        destination = data.get("destination")
        if not isinstance(destination, str):
            raise RequestRefused("a push needs a destination")
        target = _target(destination)
        for path in (item["path"] for item in contents.items(data) if item.get("path") is not None):
            if not isinstance(path, str) or path.startswith("/") or ".." in path.split("/"):
                raise RequestRefused(f"{path!r} is no path below the destination")
        key = f"{announced.number} {target.without_login}"
        return Task(self.name, "push", key, target.lane, message.text, about=announced.number, context=message)

    @staticmethod
    def _to_do_again(known: Task, wanted: Task) -> bool:
        """Tell whether a push that is known is to be made anew, rather than joined or answered from the journal.

        Our own clients ask again on purpose, and know what to do with an old answer. Others may have lost the file.
        """
        if known.state != DONE:
            return known.state == FAILED
        return time.time() - (known.finished or 0.0) > ANSWER_STAYS and not contents.request_id(wanted.body)

    @staticmethod
    def _answer_again(request: Request, task: Task) -> None:
        """Give the stored answer; our own clients are also told when it was delivered for another one long ago."""
        delivered_for = contents.request_id(task.body)
        id_ = contents.request_mark(request.message.data).get("id")
        if id_ and delivered_for not in (None, id_) and time.time() - (task.finished or 0.0) > ANSWER_STAYS:
            answer = Message.decode(task.reply or "")
            answer.data["request"] = {"delivered_for": delivered_for}
            request.answer_with(answer.encode())
        else:
            request.answer_with(task.reply or "")

    def _reopen(self, task: Task, wanted: Task) -> None:
        task.body, task.state, task.tries, task.due, task.lane = wanted.body, 0, 0, time.time(), wanted.lane
        self._journal.rewrite([task])

    def _push(self, task: Task) -> Result:
        """Deliver what a request asks for; runs on a worker."""
        started = time.monotonic()
        message = task.context or Message.decode(task.body)
        data = message.data
        target = _target(data["destination"])
        shown = target.shown
        try:
            size, reached = self._deliver(data, target)
        except TransferError as failure:
            error = failure
            log.warning("[%s] %s not delivered to %s: %s", self.name, contents.names(data), shown, error)
            text = Message(message.subject, "err", contents.failure(data, error)).encode()
            return Result(reply=text, error=error, final=True, after=lambda: self._tell_failure(task, text, error))
        log.info(
            "[%s] delivered %s to %s (%s, %.2f s, try %d)",
            self.name,
            contents.names(data),
            shown,
            readable_size(size),
            time.monotonic() - started,
            task.tries,
        )
        answer = {key: value for key, value in data.items() if key != "request"}
        answer["destination"] = reached
        text = Message(message.subject, contents.reply_type(data), answer).encode()
        announced = self._journal.announcement(self.name, task.about or 0) if self._options.delete else None
        return Result(
            reply=text,
            then=self._removal(announced) if announced else (),
            after=lambda: self._tell(task.id, text),
        )

    def _deliver(self, data: dict[str, Any], target: _Target) -> tuple[int, str]:
        """Give the bytes that were sent, and the destination: with the host of the backup target if one was used."""
        size = 0
        destination = target.without_login
        for item in contents.items(data):
            uri = item["uri"]
            pathname = urls.parse(uri).path if "://" in uri else uri
            reached = move_it(
                pathname,
                target.directory,
                self._options.connection_parameters,
                rel_path=item.get("path"),
                backup_targets=data.get("backup_targets"),
            )
            if reached.netloc != target.directory.netloc:
                destination = urls.without_login(urls.parse(destination)._replace(netloc=reached.netloc))
            size += _size(pathname)
        return size, destination

    def _tell(self, task_id: int, text: str) -> None:
        with self._waiting_lock:
            waiters = self._waiting.pop(task_id, ())
        for waiter in waiters:
            waiter.request.answer_with(text)

    def _tell_failure(self, task: Task, text: str, error: TransferError) -> None:
        """Answer a failure, also to those in the same lane once the host is known to be down: they go elsewhere."""
        self._tell(task.id, text)
        pause = self._workers.paused(self.name, task.lane)
        if not error.temporary or not pause:
            return
        for id_ in self._journal.fail_waiting(self.name, task.lane, but=self._workers.taken(self.name, task.lane)):
            with self._waiting_lock:
                waiters = self._waiting.pop(id_, ())
            for waiter in waiters:
                self._refuse(waiter.request, _HostDown(str(error)), pause)

    def _tick(self) -> None:
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

    # -- removals

    def _removal(self, announced: Announced) -> list[Task]:
        if not self._options.delete:
            return []
        due = time.time() + self._options.remove_delay
        return [
            Task(self.name, "remove", str(announced.number), "remove", announced.message, due, about=announced.number)
        ]

    def _remove(self, task: Task) -> Result:
        """Remove a file that was delivered, unless it is wanted or has become another one; runs on a worker."""
        number = task.about or 0
        announced = self._journal.announcement(self.name, number)
        if announced is None:
            return Result()
        if self._journal.waits_about(self.name, "push", number):
            return Result(again_in=max(1.0, self._options.remove_delay))
        newest = self._journal.announced(self.name, announced.uri)
        if newest is None or newest.number != number or not _unchanged(announced):
            return Result()
        for uri in _announced_uris(announced, ()):
            path = urls.parse(uri).path if "://" in uri else uri
            try:
                os.unlink(path)
                log.info("[%s] removed %s", self.name, path)
            except FileNotFoundError:
                pass
            except OSError as error:
                log.warning("[%s] cannot remove %s: %s", self.name, path, error.strerror)
        return Result()


class _HostDown(TransferError):
    """A destination is not even tried now, since it does not answer."""

    temporary = True


@dataclass(frozen=True, slots=True)
class _Target:
    """A destination, and what is made of it for each request."""

    directory: ParseResult
    without_login: str
    shown: str
    lane: str


@lru_cache(maxsize=256)
def _target(destination: str) -> _Target:
    """Read a destination: the same few come with every request. BadDestination when it is none."""
    url = urls.parse(destination)
    host = url.hostname or ""
    here = url.scheme == "file" and urls.is_local(host)
    return _Target(
        url._replace(path=url.path.rstrip("/") + "/"),  # a push always names a directory
        urls.without_login(url),
        urls.printable(url),
        f"push {'this host' if here else host}",
    )


def _announced_uris(announced: Announced, asked: Sequence[str]) -> set[str]:
    if list(asked) == [announced.uri]:
        return {announced.uri}
    return set(contents.uris(Message.decode(announced.message).data))


def _tell_by(data: dict[str, Any]) -> float | None:
    patience = contents.request_mark(data).get("patience")
    if isinstance(patience, (int, float)) and patience > 0:
        return time.monotonic() + PATIENCE_USED * patience
    return None


def _unchanged(announced: Announced) -> bool:
    """Tell whether the file still is the one that was announced; files of unknown size are taken to be."""
    path = urls.parse(announced.uri).path if "://" in announced.uri else announced.uri
    try:
        found = os.stat(path)
    except OSError:
        return False
    return announced.size is None or (found.st_size, found.st_mtime_ns) == (announced.size, announced.mtime)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
