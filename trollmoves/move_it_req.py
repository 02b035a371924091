"""Asks a server how it is: whether it answers, and what it announced last."""

from __future__ import annotations

import argparse
import math
import os
import signal
import socket
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from trollmoves import __version__
from trollmoves.errors import BadDestination, StartError, TrollmovesError
from trollmoves.messaging import sockets
from trollmoves.messaging.messages import Message
from trollmoves.messaging.requester import NoReply, Requester
from trollmoves.net import urls

SERVER = "tcp://localhost:9092"
TIMEOUT = 5.0  # s to wait for an answer


class UnexpectedReply(TrollmovesError):
    """The server answered something else than what was asked for."""


class RequestClient:
    """Asks one server one thing after the other; used by one thread."""

    def __init__(self, address: str, verbose: bool) -> None:
        self.address = address
        self._verbose = verbose
        self._requester = Requester("move_it_req")
        self._answers: SimpleQueue[Message | TrollmovesError] = SimpleQueue()

    def __enter__(self) -> RequestClient:
        self._requester.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._requester.stop()

    def request(self, request: Message) -> tuple[Message, float]:
        """Give the answer and the seconds it took; NoAnswer, MessageError or NoGoodAnswer when it is none."""
        text = request.encode()
        self._show("asking", text)
        asked = time.monotonic()
        self._requester.send_request(self.address, text, TIMEOUT, self._answers.put)
        answer = self._answers.get()
        took = time.monotonic() - asked
        if isinstance(answer, TrollmovesError):
            raise answer
        self._show("answer", answer.raw)
        if answer.type != _ANSWERS[request.type]:
            raise UnexpectedReply(f"{self.address} answered {answer.type} {_printable(answer.data)}".rstrip())
        return answer, took

    def _show(self, what: str, text: str) -> None:
        if self._verbose:
            _print(f"{what}: {_printable(urls.redact_text(text))}")


@dataclass
class Summary:
    """What came of repeated requests."""

    sent: int = 0
    took: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        counts = f"{self.sent} sent, {len(self.took)} answered"
        if not self.took:
            return counts
        times = (min(self.took), statistics.median(self.took), max(self.took))
        return f"{counts}; min/median/max {'/'.join(f'{1000 * one:.1f}' for one in times)} ms"


def make_parser() -> argparse.ArgumentParser:
    """Give the parser of the command line."""
    parser = argparse.ArgumentParser(description="Ask a server whether it answers, or what it announced last.")
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--ping", action="store_true", help="ask for the name of the station")
    what.add_argument("--info", metavar="TOPIC", help="ask for the newest files whose subject starts with TOPIC")
    add("--spam", metavar="S", type=_seconds, help="ask again every S seconds, until Ctrl-C")
    add("--extra", metavar="K:V,K:V", type=_extra, default={}, help="further keys for the data of the request")
    add("-v", "--verbose", action="store_true", help="show the messages themselves")
    add("--version", action="version", version=f"trollmoves {__version__}")
    add("server", nargs="?", default=SERVER, help="where it takes requests (%(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``move_it_req.py``; give its exit status."""
    given = make_parser().parse_args(argv)
    try:
        address = _address(given.server)
        with RequestClient(address, given.verbose) as asker:
            return _request_repeatedly(asker, given) if given.spam is not None else _request_once(asker, given)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever reads our lines has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except TrollmovesError as error:
        print(f"move_it_req.py: {_printable(str(error))}", file=sys.stderr)  # noqa: T201
        return 1


def _request_once(asker: RequestClient, given: argparse.Namespace) -> int:
    _check_reachable(asker.address)
    answer, took = asker.request(_request(given))
    for line in _pong(asker.address, answer, took) if given.ping else _info(asker.address, answer.data):
        _print(line)
    return 0


def _request_repeatedly(asker: RequestClient, given: argparse.Namespace) -> int:
    """Ask until Ctrl-C or SIGTERM; a server that does not answer now may do so later."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    summary = Summary()
    try:
        while True:
            due = time.monotonic() + given.spam
            summary.sent += 1
            try:
                answer, took = asker.request(_request(given))
            except TrollmovesError as error:
                _print(_printable(str(error)))
            else:
                summary.took.append(took)
                told = answer.data if isinstance(answer.data, dict) else {}
                count = f", {len(_files(told))} files" if given.info is not None else ""
                _print(f"{asker.address} answered {answer.type} in {1000 * took:.1f} ms{count}")
            time.sleep(max(0.0, due - time.monotonic()))
    except KeyboardInterrupt:
        _print(str(summary))
    return 0 if summary.took else 1


# -- what is asked, and what comes back

_ANSWERS = {"ping": "pong", "info": "info"}


def _request(given: argparse.Namespace) -> Message:
    if given.ping:
        return Message("/ping/pong", "ping", given.extra)
    return Message(given.info if given.info.startswith("/") else f"/{given.info}", "info", given.extra)


def _pong(address: str, answer: Message, took: float) -> Iterator[str]:
    station = answer.data.get("station", "unknown") if isinstance(answer.data, dict) else "unknown"
    yield f"station {_printable(station)} at {address} answered in {1000 * took:.1f} ms"


def _info(address: str, data: Any) -> Iterator[str]:
    told = data if isinstance(data, dict) else {}
    yield f"{address} is up for {_printable(told.get('uptime', 'an unknown time'))}"
    files = _files(told)
    yield from map(_printable, files)
    most = told.get("max_count")
    bound = f" (it tells of {most} at most)" if len(files) == most else ""
    yield f"{len(files)} file{'' if len(files) == 1 else 's'}{bound}"


def _files(told: dict[str, Any]) -> Sequence[object]:
    files = told.get("files")
    return files if isinstance(files, list) else []


# -- the command line


def _address(text: str) -> str:
    """Give the address to ask, in ZeroMQ's form; StartError when there is none in the text."""
    where = text if "://" in text else f"tcp://{text}"
    try:
        url = urls.parse(where)
    except BadDestination as error:
        raise StartError(str(error)) from None
    host, port = urls.host(url), urls.port(url)
    if url.scheme != "tcp" or not host or not port or url.path.strip("/"):
        raise StartError(f"no address of a server, which reads tcp://host:port: {urls.redacted(text)}")
    return sockets.tcp(host, port)


def _check_reachable(address: str) -> None:
    """Raise NoAnswer, with the reason, when nobody does: ZeroMQ would only wait."""
    try:
        socket.create_connection((urls.host(address), urls.port(address)), TIMEOUT).close()
    except OSError as error:
        why = "nothing there" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise NoReply(f"no answer from {address}: {why}") from None


def _seconds(text: str) -> float:
    found = float(text)
    if not math.isfinite(found) or found < 0:
        raise ValueError(text)
    return found


def _extra(text: str) -> dict[str, object]:
    """Read ``key:value,key:value``; what looks like a whole number is one."""
    found: dict[str, object] = {}
    for item in filter(None, map(str.strip, text.split(","))):
        key, colon, value = map(str.strip, item.partition(":"))
        if not key or not colon:
            raise argparse.ArgumentTypeError(f"each item must read key:value: {item!r}")
        found[key] = int(value) if value.isascii() and value.removeprefix("-").isdigit() else value
    return found


def _printable(value: object) -> str:
    """Give a text on one line: what a server tells may hold anything."""
    text = str(value)
    return text if text.isprintable() else "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def _print(line: str) -> None:
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
