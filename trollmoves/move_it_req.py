"""Command ``move_it_req.py``: pings a server, or lists the files that it announced last."""

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
from trollmoves.utils.texts import counted, printable

SERVER = "tcp://localhost:9092"
TIMEOUT = 5.0  # s to wait for a reply


class UnexpectedReply(TrollmovesError):
    """The reply has an unexpected type."""


class RequestClient:
    """Sends requests to one server, one at a time. For one thread."""

    def __init__(self, address: str, verbose: bool) -> None:
        self.address = address
        self._verbose = verbose
        self._requester = Requester("move_it_req")
        self._replies: SimpleQueue[Message | TrollmovesError] = SimpleQueue()

    def __enter__(self) -> RequestClient:
        self._requester.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._requester.stop()

    def request(self, request: Message) -> tuple[Message, float]:
        """Return the reply and the seconds it took.

        Raises:
            NoReply: the server did not reply in time.
            MessageError: the reply is not a valid message.
            UnexpectedReply: the reply has the wrong type.
        """
        text = request.encode()
        self._show("request", text)
        started = time.monotonic()
        self._requester.send_request(self.address, text, TIMEOUT, self._replies.put)
        reply = self._replies.get()
        took = time.monotonic() - started
        if isinstance(reply, TrollmovesError):
            raise reply
        self._show("reply", reply.raw)
        if reply.type != _REPLY_TYPES[request.type]:
            raise UnexpectedReply(f"{self.address} answered {reply.type} {printable(reply.data)}".rstrip())
        return reply, took

    def _show(self, label: str, text: str) -> None:
        if self._verbose:
            _print(f"{label}: {printable(urls.redact_text(text))}")


@dataclass
class Summary:
    """Statistics of repeated requests."""

    sent: int = 0
    took: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        counts = f"{self.sent} sent, {len(self.took)} answered"
        if not self.took:
            return counts
        times = (min(self.took), statistics.median(self.took), max(self.took))
        return f"{counts}; min/median/max {'/'.join(f'{1000 * seconds:.1f}' for seconds in times)} ms"


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description="Ping a server, or list the files that it announced last.")
    add = parser.add_argument
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--ping", action="store_true", help="request the name of the station and its health")
    mode.add_argument("--info", metavar="TOPIC", help="request the newest files with a subject that starts with TOPIC")
    add("--spam", metavar="S", type=_seconds, help="repeat the request every S seconds until Ctrl-C")
    add("--extra", metavar="K:V,K:V", type=_extra, default={}, help="additional keys for the data of the request")
    add("-v", "--verbose", action="store_true", help="show the request and the reply")
    add("--version", action="version", version=f"trollmoves {__version__}")
    add("server", nargs="?", default=SERVER, help="request address of the server (default %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    arguments = make_parser().parse_args(argv)
    try:
        address = _address(arguments.server)
        with RequestClient(address, arguments.verbose) as client:
            return (
                _request_repeatedly(client, arguments)
                if arguments.spam is not None
                else _request_once(client, arguments)
            )
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of a pipe has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except TrollmovesError as error:
        print(f"move_it_req.py: {printable(str(error))}", file=sys.stderr)  # noqa: T201
        return 1 if arguments.info is not None else NO_REPLY if isinstance(error, NoReply) else UNKNOWN


def _request_once(client: RequestClient, arguments: argparse.Namespace) -> int:
    check_reachable(client.address)
    reply, took = client.request(_request(arguments))
    for line in _pong(client.address, reply, took) if arguments.ping else _info(client.address, _data(reply)):
        _print(line)
    return CODES.get(str(_health(reply).get("status", "ok")), UNKNOWN) if arguments.ping else 0


def _request_repeatedly(client: RequestClient, arguments: argparse.Namespace) -> int:
    """Repeat the request until Ctrl-C or SIGTERM, also after errors."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    summary = Summary()
    try:
        while True:
            due = time.monotonic() + arguments.spam
            summary.sent += 1
            try:
                reply, took = client.request(_request(arguments))
            except TrollmovesError as error:
                _print(printable(str(error)))
            else:
                summary.took.append(took)
                count = f", {counted(len(_files(_data(reply))), 'file')}" if arguments.info is not None else ""
                _print(f"{client.address} answered {reply.type} in {1000 * took:.1f} ms{count}")
            time.sleep(max(0.0, due - time.monotonic()))
    except KeyboardInterrupt:
        _print(str(summary))
    return 0 if summary.took else 1


# -- requests and replies

CODES = {"ok": 0, "warning": 1, "critical": 2}  # exit codes by verdict, as for Nagios
NO_REPLY, UNKNOWN = 2, 3
_REPLY_TYPES = {"ping": "pong", "info": "info", "history": "history"}


def _request(arguments: argparse.Namespace) -> Message:
    if arguments.ping:
        return Message("/ping/pong", "ping", arguments.extra)
    return Message(arguments.info if arguments.info.startswith("/") else f"/{arguments.info}", "info", arguments.extra)


def _pong(address: str, reply: Message, took: float) -> Iterator[str]:
    yield f"station {printable(_data(reply).get('station', 'unknown'))} at {address} answered in {1000 * took:.1f} ms"
    health = _health(reply)
    if health:
        lanes = health.get("lanes")
        lanes = lanes if isinstance(lanes, dict) else {}
        yield printable(
            f"{str(health.get('status')).upper()}: journal {health.get('journal')}, origin {health.get('origin')}, "
            f"{lanes.get('failing')} of {counted(lanes.get('total'), 'lane')} failing, {lanes.get('held')} held"
        )


def _info(address: str, data: dict[str, Any]) -> Iterator[str]:
    yield f"{address} is up for {printable(data.get('uptime', 'an unknown time'))}"
    files = _files(data)
    yield from map(printable, files)
    limit = data.get("max_count")
    bound = f" (the server lists at most {limit})" if len(files) == limit else ""
    yield f"{counted(len(files), 'file')}{bound}"


def _data(reply: Message) -> dict[str, Any]:
    return reply.data if isinstance(reply.data, dict) else {}


def _health(reply: Message) -> dict[str, Any]:
    """Return the verdict in a reply; {} from older servers."""
    health = _data(reply).get("health")
    return health if isinstance(health, dict) else {}


def _files(data: dict[str, Any]) -> Sequence[object]:
    files = data.get("files")
    return files if isinstance(files, list) else []


# -- the command line


def _address(text: str) -> str:
    """Return the address of the server in ZeroMQ form; raise ``StartError`` if it is invalid."""
    address = text if "://" in text else f"tcp://{text}"
    try:
        url = urls.parse(address)
    except BadDestination as error:
        raise StartError(str(error)) from None
    host, port = urls.host(url), urls.port(url)
    if url.scheme != "tcp" or not host or not port or url.path.strip("/"):
        raise StartError(f"invalid server address {urls.redacted(text)}: must be tcp://host:port")
    return sockets.tcp(host, port)


def check_reachable(address: str) -> None:
    """Raise ``NoReply`` with the reason if the address does not accept connections; ZeroMQ would only wait."""
    try:
        socket.create_connection((urls.host(address), urls.port(address)), TIMEOUT).close()
    except OSError as error:
        reason = "connection timed out" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise NoReply(f"no reply from {address}: {reason}") from None


def _seconds(text: str) -> float:
    seconds = float(text)
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(text)
    return seconds


def _extra(text: str) -> dict[str, object]:
    """Return the keys of ``key:value,key:value``; integers are converted."""
    extra: dict[str, object] = {}
    for item in filter(None, map(str.strip, text.split(","))):
        key, colon, value = map(str.strip, item.partition(":"))
        if not key or not colon:
            raise argparse.ArgumentTypeError(f"{item!r}: must be key:value")
        extra[key] = int(value) if value.isascii() and value.removeprefix("-").isdigit() else value
    return extra


def _print(line: str) -> None:
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
