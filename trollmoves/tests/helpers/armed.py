"""Runs a command that kills or suspends itself, or blocks a thread, at a failpoint.

``python -m trollmoves.tests.helpers.armed NAME:COUNT SCRIPT ARGUMENTS`` runs SCRIPT, which sends itself SIGKILL when it
reaches the failpoint NAME for the COUNT-th time. With ``NAME:block`` the thread that reaches it waits without end, with
``NAME:stop`` it suspends the process by SIGSTOP the first time.

A failpoint is the beginning or the end of a function: only this command wraps it, the project contains no trace of it.
"""

from __future__ import annotations

import importlib
import itertools
import os
import runpy
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, NamedTuple

FAILPOINTS: Mapping[str, str] = {
    # server and mirror
    "found": "New files are detected, and not stored yet.",
    "unpacked": "A file is unpacked, and its content is neither announced nor reported yet.",
    "announcing": "Files are about to be announced, and are not in the log yet.",
    "announced": "Announcements are in the log, and not published yet.",
    "published": "Announcements are passed to the network.",
    "request-received": "Requests are received, and not stored yet.",
    "push-stored": "Requests are stored, and not started yet.",
    "sending": "A part of a file is sent, under the name of its partial.",
    "sent": "All of a file is sent, still under the name of its partial.",
    "delivered": "A file is complete under its name, and the result is not stored yet.",
    "committed": "The result of a task is stored, and not reported yet.",
    "replied": "The reply to a request is passed to the network.",
    "ack-received": "An acknowledgement is received, and not stored yet.",
    "acknowledged": "An acknowledgement is stored.",
    "removing": "A delivered file is about to be removed.",
    "removed": "A delivered file is removed, and this is not stored yet.",
    # client and mirror
    "announcement-received": "Announcements are received or replayed, and not stored yet.",
    "announcement-stored": "Announcements are stored, and no file is requested yet.",
    "requesting": "The request for a file is published, and not sent to the source yet.",
    "delivery-reported": "A source reports a delivery, and no receipt is published or stored yet.",
    "acked": "The acknowledgement of an archive is published, and this is not stored yet.",
    "receipt-published": "The receipt is passed to the network, and this is not stored yet.",
    "receipt-republished": "A receipt of a killed process is published again, and this is not stored yet.",
    "discarding": "An unpacked archive is about to be removed.",
    "discarded": "An unpacked archive is removed, and this is not stored yet.",
    "relaying": "A received announcement is about to be announced by the mirror.",
    "copy-requested": "A mirror has stored that it needs a copy of a file.",
    "copy-fetched": "A source has delivered a copy to a mirror, and this is not stored yet.",
    # dispatcher
    "message-received": "Messages are received, and not stored yet.",
    "deliveries-stored": "Deliveries are stored, and not started yet.",
    # pytroll-fetcher and s3downloader.py
    "fetches-stored": "Fetches are stored, and not started yet.",
    "fetched": "A file is complete under its name, and not published yet.",
}


Condition = Callable[[Sequence[Any], Any], bool]  # of the arguments of a call, and of its result


def _always(_: Sequence[Any], __: Any) -> bool:
    return True


def _is_true(_: Sequence[Any], result: Any) -> bool:
    return bool(result)


def _has_batch(arguments: Sequence[Any], _: Any) -> bool:
    return bool(arguments[1])


def _has_kind(kind: str) -> Condition:
    return lambda arguments, _: any(task.kind == kind for task in arguments[1])


class Place(NamedTuple):
    """The beginning of a function, or its end, of calls that meet a condition."""

    function: str  # "module:name" or "module:class.name"
    at_end: bool = False
    condition: Condition = _always


def _end(function: str, condition: Condition = _always) -> Place:
    return Place(f"trollmoves.{function}", True, condition)


def _begin(function: str, condition: Condition = _always) -> Place:
    return Place(f"trollmoves.{function}", False, condition)


_SUBMIT = "scheduler.scheduler:Scheduler.submit"

PLACES: Mapping[str, Sequence[Place]] = {
    "found": [_begin("server.file_sources:DirectorySource._on_found")],
    "unpacked": [_end("unpacking:unpack")],
    "announcing": [_begin("provider.announcer:Announcer.announce", _has_batch)],
    "announced": [_begin("messaging.publisher:Publisher.send_encoded", _has_batch)],
    "published": [_end("provider.announcer:Announcer.announce", _is_true)],
    "request-received": [_begin("provider.pushes:PushService.accept")],
    "push-stored": [_begin(_SUBMIT, _has_kind("push"))],
    "sending": [  # an upload to S3 reads ahead, so it counts by part
        _begin("movers.file:_copy"),
        _begin(
            "movers.source_file:_Reader.read", lambda *_: "trollmoves.movers.s3" not in sys.modules
        ),  # it reads ahead
        _begin("fetching.fetch:_Partial.write"),
        Place("botocore.client:BaseClient._make_api_call", True, lambda arguments, _: arguments[1] == "UploadPart"),
    ],
    "sent": [_end("movers.base:Mover._verify"), _end("fetching.fetch:_Partial.__exit__")],
    "delivered": [_end("provider.push_delivery:move_it"), _end("dispatcher.deliveries:move_it")],
    "committed": [_end("scheduler.scheduler:Scheduler._store", _has_batch)],
    "replied": [_end("provider.pushes:reply_delivered")],
    "ack-received": [_begin("provider.request_handler:RequestHandler._acknowledge")],
    "acknowledged": [_begin(_SUBMIT, _has_kind("remove"))],
    "removing": [_begin("provider.removals:Removals._delete")],
    "removed": [
        _end("server.local_files:LocalFileStore.delete", _is_true),
        _end("mirror.cache:MirrorCache.delete", _is_true),
    ],
    "announcement-received": [_begin("receiver.announcements:AnnouncementReceiver._record")],
    "announcement-stored": [_begin(_SUBMIT, _has_kind("fetch")), _begin(_SUBMIT, _has_kind("relay"))],
    "requesting": [_begin("receiver.fetcher:Fetcher._send_request")],
    "delivery-reported": [_begin("client.receipts:ReceiptPublisher.on_delivered")],
    "acked": [_end("client.receipts:ReceiptPublisher.publish")],
    "receipt-published": [
        _end("client.receipts:ReceiptPublisher.publish"),
        _end("client.receipts:ReceiptPublisher._unpack_version"),
        _end("dispatcher.deliveries:Deliveries._publish"),
        _end("fetching.chain:FetchChain._fetch"),
    ],
    "receipt-republished": [_end("client.receipts:ReceiptPublisher._republish")],
    "discarding": [_begin("client.receipts:ReceiptPublisher._delete_archive")],
    "discarded": [_end("client.receipts:remove_version", _is_true)],
    "relaying": [_begin("mirror.daemon:MirrorChain._relay")],
    "copy-requested": [_begin(_SUBMIT, _has_kind("fetch"))],
    "copy-fetched": [_begin("mirror.daemon:MirrorChain._on_fetched")],
    "message-received": [
        _begin("dispatcher.daemon:Dispatcher._on_messages"),
        _begin("fetching.chain:FetchChain.on_messages"),
    ],
    "deliveries-stored": [_begin(_SUBMIT, _has_kind("deliver"))],
    "fetches-stored": [_begin(_SUBMIT, _has_kind("fetch"))],
    "fetched": [_end("fetching.chain:fetch")],
}


def signal_at(count: int, number: signal.Signals) -> Callable[[], None]:
    """Return a function that sends a signal to this process when it is called for the ``count``-th time."""
    times = itertools.count(1)

    def on_reached() -> None:
        if next(times) == count:
            os.kill(os.getpid(), number)

    return on_reached


def block() -> None:
    """Wait without end."""
    threading.Event().wait()


def wrap(place: Place, on_reached: Callable[[], None]) -> None:
    """Call ``on_reached`` in each call of a function that meets the condition of the place."""
    module, _, path = place.function.partition(":")
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for one in owners:
        owner = getattr(owner, one)
    function = getattr(owner, name)

    @wraps(function)
    def wrapper(*arguments: Any, **keywords: Any) -> Any:
        if not place.at_end and place.condition(arguments, None):
            on_reached()
        result = function(*arguments, **keywords)
        if place.at_end and place.condition(arguments, result):
            on_reached()
        return result

    setattr(owner, name, wrapper)


def main(arguments: Sequence[str]) -> None:
    """Arm the failpoint and run the script; exit with a list of the failpoints if the first argument names none."""
    wanted, script, *rest = arguments
    name, _, count = wanted.partition(":")
    actions = {"block": block, "stop": signal_at(1, signal.SIGSTOP)}
    if name not in FAILPOINTS or not (count in actions or (count.isdecimal() and int(count))):
        known = "\n".join(f"  {one}: {sentence}" for one, sentence in FAILPOINTS.items())
        sys.exit(f"{wanted} must be NAME:COUNT of these:\n{known}")
    on_reached = actions.get(count) or signal_at(int(count), signal.SIGKILL)
    for place in PLACES[name]:
        wrap(place, on_reached)
    sys.argv = [script, *rest]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
