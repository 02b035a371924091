"""Published messages are received, and requests are answered, over real sockets."""

from __future__ import annotations

import gc
import itertools
import logging
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import posttroll.message
import pytest
import zmq

from trollmoves.errors import (
    JournalFull,
    MessageError,
    RequestRejected,
    StartError,
    TemporaryTransferError,
    TrollmovesError,
)
from trollmoves.messaging import nameserver as discovery
from trollmoves.messaging import publisher, sockets, subscriber
from trollmoves.messaging.messages import Message
from trollmoves.messaging.publisher import Publisher
from trollmoves.messaging.replier import Replier, Request
from trollmoves.messaging.requester import NoReply, Requester, RequesterStopped
from trollmoves.messaging.subscriber import PublisherEndpoint, Subscriber
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers.process import free_port

pytestmark = pytest.mark.filterwarnings("ignore:The `rawstr` argument:PendingDeprecationWarning")

HOST = "127.0.0.1"
SOON = 30.0  # s; far more than anything here takes


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Stop at the end whatever was started."""
    with ExitStack() as stack:
        yield stack


def echo(requests: list[Request]) -> None:
    """Answer each request with its own data."""
    for request in requests:
        request.reply("echo", request.message.data)


def replier(
    stack: ExitStack,
    handle: Callable[[list[Request]], None] = echo,
    port: int = 0,
    tick: Callable[[], None] | None = None,
) -> Replier:
    """Start a replier."""
    one = Replier("server", port, handle, bind_address=HOST, tick=tick)
    one.start()
    stack.callback(one.stop)
    return one


def requester(stack: ExitStack) -> Requester:
    """Start a requester."""
    one = Requester("client")
    one.start()
    stack.callback(one.stop)
    return one


class Answers:
    """The replies to requests."""

    def __init__(self) -> None:
        self.all: list[Message | TrollmovesError] = []

    def __call__(self, answer: Message | TrollmovesError) -> None:
        """Take an answer."""
        self.all.append(answer)

    def wait(self, count: int = 1, seconds: float = SOON) -> list[Any]:
        """Wait for that many answers, give the data of messages, and errors."""
        until(lambda: len(self.all) >= count, seconds, f"{count} answers")
        assert len(self.all) == count
        return [one.data if isinstance(one, Message) else one for one in self.all]


def text(data: Any = "", type_: str = "ping") -> str:
    """Return the text of a request."""
    return Message("/a", type_, data).encode()


class Client:
    """A bare ZeroMQ socket, as peers have it."""

    def __init__(self, stack: ExitStack, kind: int, port: int) -> None:
        context = zmq.Context()
        stack.callback(context.destroy, 0)
        self.socket = context.socket(kind)
        self.socket.connect(f"tcp://{HOST}:{port}")

    def ask(self, *frames: bytes) -> list[bytes]:
        """Send frames, give those of the answer."""
        self.socket.send_multipart(frames)
        assert self.socket.poll(int(SOON * 1000)), "no answer"
        return list(self.socket.recv_multipart())


# -- replier


def test_a_request_is_answered(stack: ExitStack) -> None:
    """A request by REQ, as older clients send it, gets one frame that posttroll can read."""
    client = Client(stack, zmq.REQ, replier(stack).port)
    for n in range(5):
        (answer,) = client.ask(text({"n": n}).encode())
        message = posttroll.message.Message.decode(answer)
        assert (message.subject, message.type, message.data) == ("/a", "echo", {"n": n})


def test_a_dealer_is_answered_in_kind(stack: ExitStack) -> None:
    """A DEALER gets its answer with an empty frame before it if it sent one, and without if it did not."""
    client = Client(stack, zmq.DEALER, replier(stack).port)
    for delimiter in ((b"",), ()):
        *before, answer = client.ask(*delimiter, text("x").encode())
        assert tuple(before) == delimiter
        assert Message.decode(answer).data == "x"


BAD_FRAMES = {
    "no message": [b"hello"],
    "an empty frame": [b""],
    "60 kB of noise": [random.Random(1).randbytes(60_000)],
    "no UTF-8": [b"pytroll://a ping u@h 2025-01-01 v1.01 application/json \xff"],
    "a bad time": [b"pytroll://a ping u@h now v1.01"],
    "a newer version": [b"pytroll://a ping u@h 2025-01-01 v9"],
    "half a message": [text({"a": 1}).encode()[:-3]],
    "nested too deep": [b"pytroll://a ping u@h 2025-01-01 v1.01 application/json " + b"[" * 60_000],
    "two messages": [text().encode(), text().encode()],
    "three frames": [b"a", b"", b"b"],
    "an empty frame last": [text().encode(), b""],
}


@pytest.mark.parametrize("frames", BAD_FRAMES.values(), ids=BAD_FRAMES)
@pytest.mark.parametrize("kind", [zmq.REQ, zmq.DEALER], ids=["REQ", "DEALER"])
def test_invalid_request_gets_an_err(stack: ExitStack, kind: int, frames: list[bytes]) -> None:
    """An undecodable message or a wrong number of frames gets an err, and the next request is served."""
    client = Client(stack, kind, replier(stack).port)
    message = posttroll.message.Message.decode(client.ask(*frames)[-1])
    assert message.type == "err"
    assert 5 < len(message.data) < 300
    assert posttroll.message.Message.decode(client.ask(text("x").encode())[-1]).data == "x"


@pytest.mark.parametrize("data", ["", "text", {}, [], None, 5, True, {"uri": 5}, [{"uri": None}], "x" * 300_000])
@pytest.mark.parametrize("type_", ["push", "\u00e4", "x" * 500])
def test_any_message_reaches_the_handler(stack: ExitStack, data: Any, type_: str) -> None:
    """A message of whatever type and data is handed over, and its answer sent."""
    client = Client(stack, zmq.REQ, replier(stack).port)
    answer = Message.decode(client.ask(text(data, type_).encode())[-1])
    assert (answer.type, answer.data) == ("echo", data or "")


@pytest.mark.parametrize(("error", "said"), [(RequestRejected("not here"), "not here"), (KeyError(), "internal error")])
def test_handler_error_gets_an_err(stack: ExitStack, error: Exception, said: str) -> None:
    """If the handler raises, each of its requests gets an err without internal details."""

    def handle(_: list[Request]) -> None:
        raise error

    answers = Answers()
    asking, port = requester(stack), replier(stack, handle).port
    for n in range(20):
        asking.send_request(f"{HOST}:{port}", text(n), SOON, answers)
    assert answers.wait(20) == [said] * 20
    assert {one.type for one in answers.all if isinstance(one, Message)} == {"err"}


def test_a_request_gets_one_answer(stack: ExitStack) -> None:
    """Of several answers to one request the first is sent: a second would be taken for that to the next."""

    def handle(requests: list[Request]) -> None:
        for request in requests:
            request.reply("first", request.message.data)
            request.reply("second")
            request.reject("third")
        raise RuntimeError("after all was answered")

    client = Client(stack, zmq.DEALER, replier(stack, handle).port)
    for n in range(5):
        assert Message.decode(client.ask(b"", text(n + 1).encode())[-1]).data == n + 1
    assert not client.socket.poll(50)


def test_answers_may_come_from_other_threads(stack: ExitStack) -> None:
    """Requests answered by other threads, in another order than they came, get each its own answer."""
    open_: list[Request] = []
    port = replier(stack, open_.extend).port
    asking = requester(stack)
    answers: dict[int, Answers] = {n: Answers() for n in range(1, 31)}
    for n, one in answers.items():
        asking.send_request(f"{HOST}:{port}", text(n), SOON, one)
    until(lambda: len(open_) == 30, SOON)
    random.Random(3).shuffle(open_)
    threads = [threading.Thread(target=echo, args=([request],)) for request in open_]
    for thread in threads:
        thread.start()
    assert [one.wait() for one in answers.values()] == [[n] for n in answers]
    for thread in threads:
        thread.join()


def test_reply_to_closed_peer(stack: ExitStack) -> None:
    """A reply to a closed peer is dropped, and so is one after the stop; other peers get replies."""
    open_: list[Request] = []
    server = replier(stack, open_.extend)
    with ExitStack() as short:
        Client(short, zmq.DEALER, server.port).socket.send(text("gone").encode())
        until(lambda: len(open_) == 1, SOON)
    open_[0].reply("late")
    staying = Client(stack, zmq.DEALER, server.port)
    staying.socket.send(text("here").encode())
    until(lambda: len(open_) == 2, SOON)
    open_[1].reply("pong")
    assert staying.socket.poll(int(SOON * 1000))
    staying.socket.send(text("again").encode())
    until(lambda: len(open_) == 3, SOON)
    server.stop()
    open_[2].reply("too late")


def test_reply_before_stop_is_sent(stack: ExitStack) -> None:
    """A reply given before the stop still reaches its peer."""
    open_: list[Request] = []
    server = replier(stack, open_.extend)
    client = Client(stack, zmq.DEALER, server.port)
    client.socket.send(text().encode())
    until(lambda: open_, SOON)
    open_[0].reply("pong", "x" * 1_000_000)
    server.stop()
    assert client.socket.poll(int(SOON * 1000))
    assert len(client.socket.recv()) > 1_000_000


def test_tick_is_called_each_second_under_load(stack: ExitStack) -> None:
    """The tick comes about every second, not with each request, and one that raises does not end the replier."""
    ticks: list[float] = []

    def tick() -> None:
        ticks.append(time.monotonic())
        raise RuntimeError("trouble")

    client = Client(stack, zmq.REQ, replier(stack, tick=tick).port)
    started = time.monotonic()
    while time.monotonic() - started < 1.3 or not ticks:
        client.ask(text().encode())
    assert 1 <= len(ticks) <= time.monotonic() - started + 2
    until(lambda: len(ticks) >= 3, SOON)


def test_a_taken_port_is_named(stack: ExitStack) -> None:
    """A port that is in use is a StartError with the port in its text, for replier and publisher alike."""
    port = replier(stack).port
    with pytest.raises(StartError, match=f":{port}: Address already in use"):
        Replier("other", port, echo, bind_address=HOST)
    with pytest.raises(StartError, match=f":{port}: Address already in use"):
        Publisher("other", port, bind_address=HOST)


def test_a_port_can_be_taken_again_at_once(stack: ExitStack) -> None:
    """A port that was just given back can be bound again, as a reload does it."""
    port = free_port()
    for _ in range(5):
        server = replier(stack, port=port)
        Client(stack, zmq.REQ, port).ask(text().encode())
        server.stop()


@pytest.mark.parametrize("address", ["192.0.2.77", "no.such.host.invalid", "", "ümlaut", "a b"])
def test_a_wrong_bind_address_is_named(address: str) -> None:
    """An address that is not this host's, or none at all, is a StartError that names it."""
    with pytest.raises(StartError, match=f"cannot listen on tcp://{address}:"):
        Replier("server", 5, echo, bind_address=address)


def test_no_free_port(monkeypatch: pytest.MonkeyPatch, stack: ExitStack) -> None:
    """A port range without a free port is a StartError."""
    port = replier(stack).port
    monkeypatch.setattr(
        "posttroll.config.config", {"pub_min_port": port, "pub_max_port": port + 1, "backend": "unsecure_zmq"}
    )
    with pytest.raises(StartError, match="cannot listen on"):
        Publisher("x", bind_address=HOST)


@pytest.mark.skipif(not os.path.exists("/proc/net/if_inet6"), reason="missing: IPv6")
def test_ipv6_addresses(stack: ExitStack) -> None:
    """An IPv6 address can be bound and asked."""
    port = free_port()
    server = Replier("server", port, echo, bind_address="::1")
    server.start()
    stack.callback(server.stop)
    answers = Answers()
    requester(stack).send_request(sockets.tcp("::1", port), text("six"), SOON, answers)
    assert answers.wait() == ["six"]


# -- requester


def test_each_open_request_has_a_connection(stack: ExitStack) -> None:
    """Thirty parallel requests to one server use thirty connections, which are reused later."""
    open_: list[Request] = []
    port = replier(stack, open_.extend).port
    asking, answers = requester(stack), Answers()
    made: set[str] = set()
    for turn in range(1, 4):
        for n in range(30):
            asking.send_request(f"{HOST}:{port}", text(n), SOON, answers)
        until(lambda: len(open_) == 30, SOON)
        made |= connections(port)
        assert len(connections(port)) == len(made) == 30
        echo(open_)
        open_.clear()
        answers.wait(30 * turn)


def connections(port: int) -> set[str]:
    """Return the far ends of the connections to a port of this host."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {line[2] for line in lines if line[1].endswith(f":{port:04X}") and line[3] == "01"}


def test_requests_in_sequence_share_a_connection(stack: ExitStack) -> None:
    """Thousands of requests one after the other open one connection, not thousands."""
    seen: set[str] = set()
    port = replier(stack).port
    asking = requester(stack)
    left = itertools.count(1)
    done = threading.Event()
    replied: list[int] = []

    def next_(answer: Message | TrollmovesError) -> None:
        assert isinstance(answer, Message)
        replied.append(answer.data)
        if len(replied) % 200 == 0:
            seen.update(connections(port))
        n = next(left)
        if n > 2000:
            done.set()
        else:
            asking.send_request(f"{HOST}:{port}", text(n), SOON, next_)

    asking.send_request(f"{HOST}:{port}", text(next(left)), SOON, next_)
    assert done.wait(4 * SOON)
    assert replied == list(range(1, 2001))
    assert len(seen) == 1


def test_no_answer_ends_idle_connections(stack: ExitStack, caplog: pytest.LogCaptureFixture) -> None:
    """After a request that was not answered all idle connections to that server are ended, and new ones are made."""
    open_: list[Request] = []
    port = replier(stack, open_.extend).port
    asking, answers = requester(stack), Answers()
    for n in range(1, 6):
        asking.send_request(f"{HOST}:{port}", text(n), SOON, answers)
    until(lambda: len(open_) == 5, SOON)
    echo(sorted(open_, key=lambda one: one.message.data, reverse=True))  # the first connection is the next to be used
    answers.wait(5)
    asking.send_request(f"{HOST}:{port}", text("in vain"), 0.2, answers)
    assert isinstance(answers.wait(6)[-1], NoReply)
    until(lambda: not connections(port), SOON)
    del open_[:]
    asking.send_request(f"{HOST}:{port}", text("again"), SOON, answers)
    until(lambda: open_, SOON)
    echo(open_)
    assert answers.wait(7)[-1] == "again"
    assert "unexpected" not in caplog.text


def test_timeout_without_reply(stack: ExitStack) -> None:
    """Without a reply NoAnswer is raised after the timeout, names the server, and may be retried."""
    port = replier(stack, lambda _: None).port
    answers = Answers()
    started = time.monotonic()
    requester(stack).send_request(f"{HOST}:{port}", text(), 0.2, answers)
    (error,) = answers.wait()
    assert 0.2 <= time.monotonic() - started < SOON
    assert isinstance(error, NoReply)
    assert error.temporary
    assert str(port) in str(error)


def test_late_reply_is_dropped(stack: ExitStack) -> None:
    """A reply after the timeout is dropped, and never assigned to the next request."""
    late: list[Request] = []
    port = replier(stack, late.extend).port
    asking, first, second = requester(stack), Answers(), Answers()
    asking.send_request(f"{HOST}:{port}", text("first"), 0.2, first)
    (error,) = first.wait()
    assert isinstance(error, NoReply)
    asking.send_request(f"{HOST}:{port}", text("second"), SOON, second)
    until(lambda: len(late) == 2, SOON)
    late[0].reply("late", "first")
    late[1].reply("prompt", "second")
    assert second.wait() == ["second"]
    assert len(first.all) == 1


def test_a_second_answer_is_not_taken_for_the_next(stack: ExitStack) -> None:
    """A server that answers twice does not make each request get the answer to the one before."""
    context = zmq.Context()
    stack.callback(context.destroy, 0)
    server = context.socket(zmq.ROUTER)
    port = server.bind_to_random_port(f"tcp://{HOST}")
    asking = requester(stack)
    for n in range(1, 20):
        answers = Answers()
        asking.send_request(f"{HOST}:{port}", text(n), SOON, answers)
        assert server.poll(int(SOON * 1000))
        peer, _, frame = server.recv_multipart()
        for _ in range(2):
            server.send_multipart([peer, b"", frame])
        assert answers.wait() == [n]
        time.sleep(0.01)


def test_request_over_a_rejected_connection(stack: ExitStack) -> None:
    """The error names the reason of the rejection, also if the server rejects the connection before the request."""
    context = zmq.Context()
    stack.callback(context.destroy, 0)
    server = context.socket(zmq.ROUTER)
    server.curve_server = True
    server.curve_publickey, server.curve_secretkey = zmq.curve_keypair()
    rejections = server.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
    port = server.bind_to_random_port(f"tcp://{HOST}")
    asking, answers = requester(stack), Answers()
    asking.send_request(f"{HOST}:{port}", text("first"), SOON, answers, shared=True)
    assert rejections.poll(int(SOON * 1000))
    asking.send_request(f"{HOST}:{port}", text("second"), SOON, answers, shared=True)
    assert ["it requires a key" in str(error) for error in answers.wait(2)] == [True, True]


def test_a_server_may_come_later(stack: ExitStack) -> None:
    """A request to a server that is not there yet is answered when it comes within the time-out."""
    port = free_port()
    asking, answers = requester(stack), Answers()
    asking.send_request(f"{HOST}:{port}", text("early"), 4 * SOON, answers)
    time.sleep(0.3)  # time for several attempts to connect, which cannot be observed
    assert answers.all == []
    replier(stack, port=port)
    assert answers.wait(seconds=2 * SOON) == ["early"]


def test_server_restart(stack: ExitStack) -> None:
    """A restarted server replies over kept or new connections, at the latest to the second request.

    Requests sent while the old process ends are lost with it.
    """
    port = free_port()
    asking = requester(stack)
    for n in range(1, 5):
        server = replier(stack, port=port)
        for timeout in (1.0, 2 * SOON):
            answers = Answers()
            asking.send_request(f"{HOST}:{port}", text(n), timeout, answers)
            (answer,) = answers.wait(seconds=3 * SOON)
            if answer == n:
                break
        assert answer == n
        server.stop()


def test_overdue_decides_about_waiting_on(stack: ExitStack) -> None:
    """When the time is over, the one who asked may go on waiting as long as they like; trouble there ends the wait."""
    open_: list[Request] = []
    port = replier(stack, open_.extend).port
    asking = requester(stack)
    patient, impatient, broken = Answers(), Answers(), Answers()
    turns = iter([True, True, False])

    def trouble() -> bool:
        raise RuntimeError("trouble")

    started = time.monotonic()
    asking.send_request(f"{HOST}:{port}", text("patient"), 0.1, patient, lambda: True)
    asking.send_request(f"{HOST}:{port}", text("impatient"), 0.1, impatient, lambda: next(turns))
    asking.send_request(f"{HOST}:{port}", text("broken"), 0.1, broken, trouble)
    assert isinstance(impatient.wait()[0], NoReply)
    assert time.monotonic() - started >= 0.3
    assert isinstance(broken.wait()[0], NoReply)
    until(lambda: any(one.message.data == "patient" for one in open_), SOON)
    echo(open_)
    assert patient.wait() == ["patient"]


def test_our_servers_take_many_requests_from_one_connection(stack: ExitStack) -> None:
    """Requests that may share a connection do, and each gets its own answer, in whatever order the answers come."""
    open_: list[Request] = []
    server = replier(stack, open_.extend)
    asking, answers = requester(stack), [Answers() for _ in range(50)]
    for number, one in enumerate(answers):
        asking.send_request(f"{HOST}:{server.port}", text(str(number)), SOON, one, shared=True)
    until(lambda: len(open_) == len(answers))
    connections = {request._routes[0][0] for request in open_}
    echo(open_[::-1])
    assert [one.wait() for one in answers] == [[str(number)] for number in range(len(answers))]
    assert len(connections) == 1


def test_repeated_after_reconnection(stack: ExitStack) -> None:
    """Open requests are repeated as soon as the server is back."""
    received: list[Request] = []
    first = replier(stack, received.extend)
    asking, answers = requester(stack), [Answers() for _ in range(5)]
    asking.send_request(f"{HOST}:{first.port}", text("before"), 10 * SOON, one := Answers(), shared=True)
    until(lambda: len(received) == 1)
    received[0].reply("echo", "before")
    assert one.wait() == ["before"]
    for number, one in enumerate(answers):
        asking.send_request(f"{HOST}:{first.port}", text(str(number)), 10 * SOON, one, shared=True)
    until(lambda: len(received) == 6)
    first.stop()
    replier(stack, port=first.port)
    assert [one.wait() for one in answers] == [[str(number)] for number in range(5)]


def test_late_answers_on_a_shared_connection(stack: ExitStack) -> None:
    """An answer that comes too late is dropped; the others on its connection come, and further ones take a new one."""
    open_: list[Request] = []
    server = replier(stack, open_.extend)
    asking, late, patient, further = requester(stack), Answers(), Answers(), Answers()
    asking.send_request(f"{HOST}:{server.port}", text("late"), 0.1, late, shared=True)
    asking.send_request(f"{HOST}:{server.port}", text("patient"), SOON, patient, shared=True)
    assert isinstance(late.wait()[0], NoReply)
    asking.send_request(f"{HOST}:{server.port}", text("further"), SOON, further, shared=True)
    until(lambda: len(open_) == 3)
    assert len({request._routes[0][0] for request in open_}) == 2
    echo(open_)
    assert (patient.wait(), further.wait(), len(late.wait())) == (["patient"], ["further"], 1)


@pytest.mark.parametrize("address", ["", "host", "no port:", "a b:5", "host:70000", "\udcff:5", "http://a:5", "ü:x"])
def test_invalid_address(stack: ExitStack, address: str) -> None:
    """An invalid address gives an error, and the next request is sent."""
    asking, answers, good = requester(stack), Answers(), Answers()
    asking.send_request(address, text(), 0.3, answers)
    assert isinstance(answers.wait()[0], NoReply)
    asking.send_request(f"{HOST}:{replier(stack).port}", text("good"), SOON, good)
    assert good.wait() == ["good"]


@pytest.mark.parametrize(
    "address",
    ["inproc://zeromq.zap.01", "ipc:///tmp/socket", f"tcp://{HOST}:0;{HOST}:5", "tcp://*:5", f"udp://{HOST}:5"],
)
def test_other_addresses(address: str) -> None:
    """A socket connects to the port of a host only."""
    with pytest.raises(StartError, match="the address must be tcp://host:port"):
        sockets.connect(zmq.DEALER, address)


def test_invalid_reply(stack: ExitStack) -> None:
    """An undecodable reply is a MessageError, and an exception in a callback does not affect other requests."""
    context = zmq.Context()
    stack.callback(context.destroy, 0)
    server = context.socket(zmq.REP)
    port = server.bind_to_random_port(f"tcp://{HOST}")
    asking, answers = requester(stack), Answers()

    def raising(_: Message | TrollmovesError) -> None:
        raise RuntimeError("trouble of who asked")

    asking.send_request(f"{HOST}:{port}", text(), SOON, raising)
    server.recv()
    server.send(text().encode())
    for answer in (b"", b"noise \xff"):
        asking.send_request(f"{HOST}:{port}", text(), SOON, answers)
        server.recv()
        server.send(answer)
    assert [type(one) for one in answers.wait(2)] == [MessageError] * 2


def test_stop_ends_open_requests(stack: ExitStack) -> None:
    """Stopping ends each open and later request with Stopping; also from within a callback."""
    port = replier(stack, lambda _: None).port
    asking, answers = requester(stack), Answers()

    def again(answer: Message | TrollmovesError) -> None:
        answers(answer)
        asking.send_request(f"{HOST}:{port}", text(), SOON, answers)

    for _ in range(10):
        asking.send_request(f"{HOST}:{port}", text(), SOON, again)
    started = time.monotonic()
    asking.stop()
    asking.send_request(f"{HOST}:{port}", text(), SOON, answers)
    assert {type(one) for one in answers.wait(21)} == {RequesterStopped}
    assert time.monotonic() - started < SOON


def test_many_threads_may_request(stack: ExitStack) -> None:
    """Parallel requests from several threads all receive their own replies."""
    port = replier(stack).port
    asking = requester(stack)
    got: list[tuple[int, Any]] = []

    def ask(first: int) -> None:
        for n in range(first, first + 200):
            asking.send_request(
                f"{HOST}:{port}",
                text(n),
                2 * SOON,
                lambda answer, n=n: got.append((n, answer.data if isinstance(answer, Message) else answer)),  # type: ignore[misc]
            )

    threads = [threading.Thread(target=ask, args=(1 + 200 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: len(got) == 800, 2 * SOON)
    assert all(n == data for n, data in got)


# -- publisher and subscriber


class Recorder:
    """The messages that a subscriber received."""

    def __init__(self, stack: ExitStack, *providers: PublisherEndpoint, alarm_scale: float = 0.0) -> None:
        self.received: list[tuple[str, Message]] = []
        self.trouble: list[Exception] = []  # to raise, before anything is taken
        self.offered: list[list[Message]] = []
        self.subscriber = Subscriber("client", providers, self._on_messages, alarm_scale=alarm_scale)
        self.subscriber.start()
        stack.callback(self.subscriber.stop)

    def _on_messages(self, address: str, messages: list[Message]) -> None:
        self.offered.append(messages)
        if self.trouble:
            raise self.trouble.pop(0)
        self.received += [(address, message) for message in messages]

    def of(self, type_: str, address: str = "") -> list[Any]:
        """Return the data of received messages of a type, from one address or all."""
        return [message.data for where, message in self.received if message.type == type_ and address in (where, "")]


def published(stack: ExitStack, port: int = 0, **options: Any) -> Publisher:
    """Start a publisher."""
    one = Publisher("move_it_server", port, bind_address=HOST, **({"nameservers": False} | options))
    one.start()
    stack.callback(one.stop)
    return one


def at(publisher: Publisher, *topics: str) -> PublisherEndpoint:
    """Return the endpoint of a publisher."""
    return PublisherEndpoint(f"tcp://{HOST}:{publisher.port}", topics or ("",))


def connected(recorder: Recorder, publisher: Publisher, address: str = "") -> None:
    """Wait until a subscriber receives from a publisher."""
    before = len(recorder.of("hello", address))

    def has_received() -> bool:
        publisher.send(Message("/hello", "hello"))
        return len(recorder.of("hello", address)) > before

    until(has_received, 2 * SOON, "a message is received")


def test_connections_are_reported(stack: ExitStack) -> None:
    """A subscriber reports each first and repeated connection to a publisher."""
    port = free_port()
    recorded: list[str] = []
    provider = PublisherEndpoint(f"tcp://{HOST}:{port}", ("",))
    subscriber = Subscriber("client", [provider], lambda *_: None, on_connected=recorded.append)
    subscriber.start()
    stack.callback(subscriber.stop)
    first = published(stack, port)
    until(lambda: recorded == [provider.address], 2 * SOON)
    first.stop()
    published(stack, port)
    until(lambda: recorded == [provider.address] * 2, 2 * SOON)


def test_the_reachability_of_a_publisher_is_logged(
    stack: ExitStack, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A publisher that cannot be reached is logged, also from the start, and again when it is back."""
    monkeypatch.setattr(subscriber, "UNREACHABLE_DELAY", 0.1)
    port = free_port()
    address = f"tcp://{HOST}:{port}"

    def count(text: str) -> int:
        return sum(text in record.getMessage() for record in caplog.records)

    with caplog.at_level(logging.INFO):
        Recorder(stack, PublisherEndpoint(address, ("",)))
        for round_ in (1, 2):
            until(lambda n=round_: count(f"cannot reach {address} for ") >= n, 2 * SOON)  # type: ignore[misc]
            one = published(stack, port)
            until(lambda n=round_: count(f"connected to {address}, back after ") == n, 2 * SOON)  # type: ignore[misc]
            one.stop()


def test_first_heartbeat(stack: ExitStack) -> None:
    """A heartbeat is published at the start, with its interval and the given data, readable by posttroll."""
    port = free_port()
    context = zmq.Context()
    stack.callback(context.destroy, 0)
    subscriber = context.socket(zmq.SUB)
    subscriber.setsockopt_string(zmq.SUBSCRIBE, "pytroll://heartbeat/move_it_server")
    subscriber.connect(f"tcp://{HOST}:{port}")
    published(stack, port, heartbeat_data=lambda: {"logs": [1]})
    assert subscriber.poll(int(2 * SOON * 1000))
    heartbeat = posttroll.message.Message.decode(subscriber.recv())
    assert (heartbeat.subject, heartbeat.type) == ("/heartbeat/move_it_server", "beat")
    assert heartbeat.data == {"min_interval": 30, "logs": [1]}


def test_heartbeat_interval(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats continue at their interval, also when their data cannot be built."""
    monkeypatch.setattr(publisher, "HEARTBEAT_INTERVAL", 0.1)
    monkeypatch.setattr(publisher, "INITIAL_HEARTBEAT_DELAYS", (0.1,))

    def trouble() -> dict[str, Any]:
        raise RuntimeError("no data")

    one = published(stack, heartbeat_data=trouble)
    recorder = Recorder(stack, at(one))
    until(lambda: len(recorder.of("beat")) >= 5, SOON)
    assert recorder.of("beat")[0] == {"min_interval": 0.1}


def test_threads_may_publish(stack: ExitStack) -> None:
    """Messages of several threads are received complete, and in order for each thread."""
    one = published(stack)
    recorder = Recorder(stack, at(one))
    connected(recorder, one)

    def publish(thread: int) -> None:
        for n in range(0, 1000, 2):
            one.send(*(Message("/a", "file", [thread, m]) for m in (n, n + 1)))

    threads = [threading.Thread(target=publish, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: len(recorder.of("file")) == 4000, 2 * SOON)
    for thread_number in range(4):
        assert [n for thread, n in recorder.of("file") if thread == thread_number] == list(range(1000))


def test_burst_arrives_complete(stack: ExitStack) -> None:
    """50,000 messages published in a burst all arrive in order, although their reader is slower."""
    one = published(stack)
    recorder = Recorder(stack, at(one))
    connected(recorder, one)
    one.send_encoded([Message("/a", "file", {"n": n}).encode() for n in range(50_000)])
    until(lambda: len(recorder.of("file")) == 50_000, 4 * SOON)
    assert [data["n"] for data in recorder.of("file")] == list(range(50_000))


def test_messages_before_stop_arrive(stack: ExitStack) -> None:
    """Messages published right before a process ends still arrive."""
    code = """
import sys
from trollmoves.messaging.messages import Message
from trollmoves.messaging.publisher import Publisher

publisher = Publisher("p", int(sys.argv[1]), nameservers=False)
publisher.start()
for line in sys.stdin:
    publisher.send(Message("/a", "hello"))
    print(flush=True)
    if line == "go\\n":
        break
publisher.send(*(Message("/a", "file", [n]) for n in range(5000)))
publisher.stop()
"""
    port = free_port()
    recorder = Recorder(stack, PublisherEndpoint(f"tcp://{HOST}:{port}", ("/a",)))
    with subprocess.Popen(
        [sys.executable, "-c", code, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        while not recorder.of("hello"):
            child.stdin.write("hello\n")
            child.stdout.readline()
            time.sleep(0.02)
        child.stdin.write("go\n")
        child.stdin.close()
        assert child.wait(2 * SOON) == 0
    until(lambda: len(recorder.of("file")) == 5000, SOON)


def test_topics_per_provider(stack: ExitStack) -> None:
    """From each of several publishers only its own topics are received, with their source."""
    one, two = published(stack), published(stack)
    recorder = Recorder(stack, at(one, "/1", "/hello"), at(two, "2/b", "/hello"))
    for publisher_ in (one, two):
        connected(recorder, publisher_, at(publisher_).address)
        publisher_.send(*(Message(subject, "file", publisher_.port) for subject in ("/1/a", "/2/a", "/2/b", "/3")))
        publisher_.send(Message("/hello", "last"))
    until(lambda: len(recorder.of("last")) == 2, SOON)
    subjects = [(where, message.subject) for where, message in recorder.received if message.type == "file"]
    assert sorted(subjects) == sorted([(at(one).address, "/1/a"), (at(two).address, "/2/b")])


def test_publisher_restart(stack: ExitStack) -> None:
    """A restarted publisher on the same port is received again."""
    port = free_port()
    recorder = Recorder(stack, PublisherEndpoint(f"tcp://{HOST}:{port}", ("",)))
    for n in range(3):
        one = published(stack, port)
        connected(recorder, one)
        one.send(Message("/a", "file", n + 1))
        until(lambda n=n: n + 1 in recorder.of("file"), SOON)  # type: ignore[misc]
        one.stop()
        one.send(Message("/a", "file", "dropped"))
    assert recorder.of("file") == [1, 2, 3]


def test_publisher_added_later(stack: ExitStack) -> None:
    """A publisher added later is received, once, and an invalid address does no harm."""
    one, two = published(stack), published(stack)
    recorder = Recorder(stack, at(one))
    connected(recorder, one)
    recorder.subscriber.add_publishers([PublisherEndpoint("tcp://no port", ("",)), at(two), at(one)])
    connected(recorder, two, at(two).address)
    one.send(Message("/a", "file", "once"))
    until(lambda: recorder.of("file"), SOON)
    connected(recorder, one, at(one).address)
    assert recorder.of("file") == ["once"]


def test_silence_causes_reconnection(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without heartbeats for some intervals the subscriber reconnects, and receives the publisher again."""
    monkeypatch.setattr(subscriber, "POLL_INTERVAL", 0.05)
    context = zmq.Context()
    stack.callback(context.destroy, 0)
    socket = context.socket(zmq.XPUB)
    socket.setsockopt(zmq.XPUB_VERBOSE, 1)
    port = socket.bind_to_random_port(f"tcp://{HOST}")
    recorder = Recorder(stack, PublisherEndpoint(f"tcp://{HOST}:{port}", ("",)), alarm_scale=3)
    heartbeat = Message("/heartbeat/x", "beat", {"min_interval": 0.1}).encode()

    def subscribed() -> None:
        while True:
            assert socket.poll(int(SOON * 1000)), "no connection"
            if socket.recv()[:1] == b"\x01":  # not the end of an earlier one
                return

    subscribed()
    assert not socket.poll(500), "silent from the start: there is no interval yet"
    for _ in range(3):
        started = time.monotonic()
        socket.send_string(heartbeat)
        subscribed()
        assert time.monotonic() - started > 0.25
    socket.send_string(Message("/a", "file").encode())
    until(lambda: recorder.of("file"), SOON)


def test_busy_subscriber_keeps_waiting_messages(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages that wait for a busy journal are not dropped for a lack of heartbeats."""
    monkeypatch.setattr(subscriber, "POLL_INTERVAL", 0.05)
    monkeypatch.setattr(subscriber, "RETRY_DELAY", 0.8)
    one = published(stack)
    recorder = Recorder(stack, at(one), alarm_scale=1)
    connected(recorder, one)
    recorder.trouble = [TemporaryTransferError("disk full")] * 3
    heartbeat = Message("/heartbeat/x", "beat", {"min_interval": 1})
    one.send(heartbeat, *(Message("/a", "file", {"n": n}) for n in range(3000)))
    until(lambda: len(recorder.of("file")) == 3000, SOON)
    assert [data["n"] for data in recorder.of("file")] == list(range(3000))


def test_failed_messages_are_offered_again(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the handler fails, the same messages are offered again, and none is lost or out of order."""
    monkeypatch.setattr(subscriber, "RETRY_DELAY", 0.02)
    one = published(stack)
    recorder = Recorder(stack, at(one))
    connected(recorder, one)
    one.send(Message("/hello", "mark"))
    until(
        lambda: any(message.type == "mark" for _, message in recorder.received),
        SOON,
        "all that was said to connect is over",
    )
    recorder.offered.clear()
    recorder.trouble = [TemporaryTransferError("disk full")] * 10
    for n in range(1000):
        one.send(Message("/a", "file", n + 1))
    until(lambda: len(recorder.of("file")) == 1000, SOON)
    assert recorder.of("file") == list(range(1, 1001))
    assert [messages is recorder.offered[0] for messages in recorder.offered[:11]] == [True] * 11


def test_one_bad_message_does_not_block(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that always fails is dropped after some attempts, and all others are received."""
    monkeypatch.setattr(subscriber, "RETRY_DELAY", 0.01)
    received: list[Any] = []

    def on_messages(_: str, messages: list[Message]) -> None:
        data = [message.data for message in messages]
        if 7 in data:
            raise ZeroDivisionError("a bug")
        received.extend(data)

    one = published(stack)
    client = Subscriber("client", [at(one, "/a")], on_messages)
    stack.callback(client.stop)
    client.start()

    def has_received() -> bool:
        one.send(Message("/a", "hello", "hello"))
        return bool(received)

    until(has_received, SOON)
    one.send(*(Message("/a", "file", n) for n in range(1, 20)))
    until(lambda: 19 in received, SOON)
    assert [n for n in received if n != "hello"] == [n for n in range(1, 20) if n != 7]


def test_malformed_messages_are_skipped(stack: ExitStack, caplog: pytest.LogCaptureFixture) -> None:
    """Malformed messages are skipped and counted, with one warning a minute, and the following ones are received."""
    one = published(stack)
    recorder = Recorder(stack, at(one, ""))
    connected(recorder, one)
    bad = ["pytroll:/", "pytroll://a file x@y now v1.01", "pytroll://a file x@y 2025-01-01 v1.01 application/json {"]
    with caplog.at_level(logging.WARNING):
        one.send_encoded([*bad * 200, Message("/a", "file", "good").encode()])
        until(lambda: recorder.of("file") == ["good"], SOON)
    warnings = [record.getMessage() for record in caplog.records if record.name.endswith("subscriber")]
    (warning,) = [text for text in warnings if "ignored a message" in text]
    assert at(one).address in warning


def test_a_probe_of_a_port_is_not_a_warning(stack: ExitStack, caplog: pytest.LogCaptureFixture) -> None:
    """A connection that sends nothing is logged at DEBUG only; one that cannot be accepted, at INFO or above."""
    one = published(stack)

    def lines(level: int) -> list[str]:
        return [record.getMessage() for record in caplog.records if f"[port {one.port}]" in record.getMessage()
                and record.levelno >= level]  # fmt: skip

    with caplog.at_level(logging.DEBUG):
        socket.create_connection((HOST, one.port)).close()
        until(lambda: lines(logging.DEBUG), SOON)
        assert not lines(logging.INFO)
        with socket.create_connection((HOST, one.port)) as connection:
            connection.sendall(
                b"\xff\0\0\0\0\0\0\0\1\x7f\3\0" + b"PLAIN".ljust(52, b"\0")
            )  # ZMTP 3.0, another mechanism
            until(lambda: lines(logging.INFO), SOON)


def test_an_expected_error_in_a_heartbeat_has_no_traceback(stack: ExitStack, caplog: pytest.LogCaptureFixture) -> None:
    """A heartbeat whose data cannot be read from the journal is logged in one line, and sent without them."""

    def trouble() -> dict[str, Any]:
        raise JournalFull("the journal cannot be written: the disk is full")

    one = published(stack, heartbeat_data=trouble)
    recorder = Recorder(stack, at(one))
    until(lambda: recorder.of("beat"), SOON)
    found = [record for record in caplog.records if "bare heartbeat" in record.getMessage()]
    assert found
    assert not any(record.exc_info for record in found)


def test_a_wrong_provider_is_named() -> None:
    """An address that is none is a StartError that names it."""
    for address in ("tcp://", "tcp://host", "tcp://ho st:5", "nothing", "tcp://\udcff:5"):
        with pytest.raises(StartError, match="cannot connect to"):
            Subscriber("client", [PublisherEndpoint(address, ("",))], lambda *_: None)


# -- nameservers


@pytest.fixture
def nameserver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Return what starts posttroll's nameserver, on ports that this process knows too."""
    settings = {"nameserver_port": free_port(), "broadcast_port": free_port(), "address_publish_port": free_port()}
    environment = os.environ | {f"POSTTROLL_{name.upper()}": str(port) for name, port in settings.items()}
    for name, port in settings.items():
        monkeypatch.setitem(posttroll.config.config, name, port)
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", "from posttroll.ns import main; main()", "--no-multicast"]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def addresses(name: str) -> list[str]:
    """Give where the nameserver says that a service is."""
    context = zmq.Context()
    socket = context.socket(zmq.REQ)
    try:
        socket.connect(f"tcp://{HOST}:{posttroll.config['nameserver_port']}")
        socket.send_string(Message("/oper/ns", "request", {"service": name}).encode())
        if not socket.poll(1000):
            return []
        data = posttroll.message.Message.decode(socket.recv()).data
        return [one["URI"] for one in data or ()]
    finally:
        context.destroy(0)


def test_nameservers_receive_the_address(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch, nameserver: Callable[[], subprocess.Popen[bytes]]
) -> None:
    """A publisher is found through a nameserver that starts later, restarts, or runs next to an absent one."""
    monkeypatch.setattr(publisher, "ADVERTISE_INTERVAL", 0.1)
    dead = f"{HOST}:{free_port()}"
    one = published(stack, nameservers=[dead, "localhost"])
    for _ in range(2):
        process = nameserver()
        until(lambda: any(found.endswith(f":{one.port}") for found in addresses("move_it_server")), 4 * SOON)
        process.kill()
        process.wait()
    started = time.monotonic()
    one.stop()
    assert time.monotonic() - started < SOON


def test_nameserver_publications_are_followed(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    nameserver: Callable[[], subprocess.Popen[bytes]],
    stack: ExitStack,
) -> None:
    """A publisher that starts after a query is known when the nameserver publishes it, not at the next query."""
    nameserver()
    monkeypatch.setattr(discovery, "QUERY_INTERVAL", 1000.0)
    found: list[str] = []
    wanted = discovery.ServiceDiscovery(["move_it_server"], "localhost", 1.0, found.extend)
    wanted.start()
    stack.callback(wanted.stop)
    until(lambda: "no address of move_it_server" in caplog.text, 4 * SOON)
    ports: list[int] = []

    def is_found() -> bool:
        # A publication is lost before the subscription reaches the nameserver: each attempt makes a new one.
        ports.append(published(stack, nameservers=["localhost"]).port)
        try:
            until(lambda: any(int(address.rpartition(":")[2]) in ports for address in found), 2, timeout_factor=1)
        except AssertionError:
            return False
        return True

    until(is_found, 4 * SOON)


def test_publishes_without_multicast(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without multicast a publisher logs this once, and publishes."""
    monkeypatch.setitem(posttroll.config.config, "mc_group", "10.0.0.1")
    monkeypatch.setattr(publisher, "ADVERTISE_RETRY_DELAY", 0.05)
    with caplog.at_level(logging.WARNING):
        one = published(stack, nameservers=None)
        connected(Recorder(stack, at(one)), one)

        def said() -> list[str]:
            return [record.getMessage() for record in caplog.records if record.name.endswith("publisher")]

        until(said, SOON)
        time.sleep(0.3)  # time for several more attempts: an absent log line cannot be waited for
    assert len(said()) == 1
    assert "cannot advertise the address" in said()[0]


# -- resources


def descriptors() -> int:
    """Count what this process has open."""
    return len(os.listdir("/proc/self/fd"))


def a_life() -> None:
    """Start one of each, use them, stop them."""
    with ExitStack() as stack:
        one, port = published(stack, nameservers=["localhost"]), replier(stack).port
        recorder = Recorder(stack, at(one), alarm_scale=2)
        connected(recorder, one)
        asking, answers = requester(stack), Answers()
        for n in range(20):
            asking.send_request(f"{HOST}:{port}", text(n + 1), SOON, answers)
        answers.wait(20)


def test_nothing_is_left_after_the_stop() -> None:
    """After all is stopped no thread and no descriptor is left, however often that is repeated."""
    a_life()  # ZeroMQ's own
    gc.collect()
    threads = set(threading.enumerate())
    before = until(lambda: descriptors_at_rest(), SOON)
    for _ in range(3):
        a_life()
    until(lambda: set(threading.enumerate()) <= threads, SOON)
    until(lambda: descriptors() <= before, SOON, f"descriptors: {descriptors()} instead of {before}")


def descriptors_at_rest() -> int:
    """Count the open resources after ZeroMQ's background work; return 0 while the count changes."""
    before = descriptors()
    time.sleep(0.3)
    return before if descriptors() == before else 0


def test_unstarted_objects_can_be_stopped() -> None:
    """Objects that were never started release their resources."""
    a_life()  # ZeroMQ's own
    gc.collect()
    before = until(lambda: descriptors_at_rest(), SOON)
    for _ in range(5):
        asking, answers = Requester("client"), Answers()
        asking.stop()
        asking.send_request(f"{HOST}:1", text(), SOON, answers)
        assert isinstance(answers.wait()[0], NoReply)
        Replier("server", 0, echo, bind_address=HOST).stop()
        Publisher("p", bind_address=HOST, nameservers=False).stop()
        Subscriber("client", [PublisherEndpoint(f"tcp://{HOST}:1", ("",))], lambda *_: None).stop()
    until(lambda: descriptors() <= before, SOON)


def test_subscriber_with_stuck_handler_can_be_stopped(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """A subscriber that waits to offer messages again stops without delay."""
    one = published(stack)
    recorder = Recorder(stack, at(one))
    connected(recorder, one)
    recorder.trouble = [TemporaryTransferError("disk full")] * 100
    one.send(Message("/a", "file"))
    until(lambda: len(recorder.trouble) < 100, SOON)
    started = time.monotonic()
    recorder.subscriber.stop()
    assert time.monotonic() - started < SOON


# -- security


def test_missing_keys_are_reported_in_one_line(tmp_path: Path) -> None:
    """Posttroll's security without its keys is a StartError for each kind of socket."""
    code = f"""
from trollmoves.errors import StartError
from trollmoves.messaging import sockets
from trollmoves.messaging.publisher import MEMORY_LIMITS
import posttroll, zmq

for settings in ({{}}, {{name: {str(tmp_path / "no such")!r} for name in (
    "server_secret_key_file", "server_public_key_file", "client_secret_key_file", "clients_public_keys_directory"
)}}):
    posttroll.config.config.update(settings)
    bind = lambda: sockets.bind(zmq.PUB, "tcp://{HOST}:0", limits=MEMORY_LIMITS)
    for make in (lambda: sockets.connect(zmq.SUB, "tcp://{HOST}:5"), bind):
        try:
            make()
        except StartError as error:
            assert "\\n" not in str(error), error
            print(error)
"""
    environment = os.environ | {"POSTTROLL_BACKEND": "secure_zmq"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert len(done.stdout.splitlines()) == 4, done.stdout + done.stderr


def test_reconnection_precedes_publishing() -> None:
    """Subscribers retry a connection more often than a starting publisher waits before it publishes."""
    between_tries = (sockets.RECONNECT + sockets.RECONNECT_MAX) / 1000  # ZeroMQ adds up to the first to the second
    assert between_tries < publisher.SUBSCRIBER_GRACE
