"""Subscribers and requesters that act as peers from other projects do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import zmq
from posttroll.message import Message

from trollmoves.tests.helpers.waiting import TIMEOUT_FACTOR, until

HOST = "127.0.0.1"


@dataclass
class ReceivedMessage:
    """A message and when it came (monotonic)."""

    message: Message
    at: float

    @property
    def type(self) -> str:
        """The type of the message."""
        return str(self.message.type)

    @property
    def data(self) -> Any:
        """The data of the message."""
        return self.message.data

    @property
    def uid(self) -> str:
        """The file that the message is about, or an empty string."""
        return str(self.data.get("uid", "")) if isinstance(self.data, dict) else ""


class RecordingSubscriber:
    """Records the messages of a publisher in a thread; the publisher may start later."""

    def __init__(self, port: int, topic: str = "", *, address: str = HOST) -> None:
        self.messages: list[ReceivedMessage] = []
        self.texts: list[str] = []
        self.unreadable: list[str] = []
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        for option, value in ((zmq.RCVHWM, 0), (zmq.LINGER, 0), (zmq.RECONNECT_IVL, 10), (zmq.RECONNECT_IVL_MAX, 10)):
            self._socket.setsockopt(option, value)
        self._socket.setsockopt_string(zmq.SUBSCRIBE, f"pytroll:/{topic}")
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self._socket.connect(f"tcp://{address}:{port}")
        self._stopping = threading.Event()
        self.connections = 0
        # called before the message is appended to ``messages``
        self.on_message: Callable[[ReceivedMessage], None] = lambda _: None
        self._thread = threading.Thread(target=self._run, name=f"subscriber-{port}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop receiving."""
        self._stopping.set()
        self._thread.join(5)
        self._socket.disable_monitor()
        self._socket.close(0)
        self._context.destroy(0)
        self._check()

    def _check(self) -> None:
        """Fail if a received message cannot be read by posttroll."""
        assert self.unreadable == []

    def of_type(self, *types: str) -> list[ReceivedMessage]:
        """Return the received messages of these types."""
        self._check()
        return [one for one in list(self.messages) if one.type in types]

    def of_file(self, name: str) -> list[ReceivedMessage]:
        """Return the messages about one file."""
        return [one for one in list(self.messages) if one.uid == name]

    def receipts(self) -> list[str]:
        """Return the names of the files that receipts were received for."""
        return [one.uid for one in self.of_type("file")]

    def wait_for(self, count: int = 1, *types: str, seconds: float = 20) -> list[ReceivedMessage]:
        """Wait for at least ``count`` messages of these types (by default receipts); return all of them."""
        types = types or ("file",)
        until(lambda: len(self.of_type(*types)) >= count, seconds, f"{count} messages {types}: {self.texts[-3:]}")
        return self.of_type(*types)

    def wait_for_receipts(self, expected: Iterable[str], seconds: float = 30) -> None:
        """Wait for a receipt for each of these files."""
        expected = set(expected)
        until(lambda: expected <= set(self.receipts()), seconds, f"receipts of {len(expected)} files")

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._monitor, zmq.POLLIN)
        while not self._stopping.is_set():
            ready = dict(poller.poll(50))
            if self._monitor in ready:
                self._monitor.recv_multipart()
                self.connections += 1
            while self._socket in ready and not self._stopping.is_set():
                try:
                    text = self._socket.recv_string(zmq.NOBLOCK)
                except zmq.Again:
                    break
                self.texts.append(text)
                self._record(text)

    def _record(self, text: str) -> None:
        try:
            received = ReceivedMessage(Message.decode(text), time.monotonic())
        except Exception as error:  # posttroll raises various errors; the next check fails on them
            self.unreadable.append(f"{text!r:.1000}: {error!r}")
            return
        self.on_message(received)
        self.messages.append(received)


class RequestSocket:
    """A connection to a server that is kept, so that it shows when the server drops it."""

    def __init__(self, port: int) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.REQ)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._socket.connect(f"tcp://{HOST}:{port}")

    def __enter__(self) -> RequestSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.disable_monitor()
        self._context.destroy(0)

    def ping(self) -> str:
        """Send a ping; return the type of the reply."""
        self._socket.send_string(str(Message("/ping", "ping")))
        assert self._socket.poll(10_000 * TIMEOUT_FACTOR), "no answer to a ping"
        return str(Message.decode(self._socket.recv_string()).type)

    def dropped(self) -> bool:
        """Return True if the server closed the connection since the last call."""
        dropped = False
        while self._monitor.poll(0):
            self._monitor.recv_multipart()
            dropped = True
        return dropped


def send_request(port: int, subject: str, kind: str, data: object = "", *, seconds: float = 10) -> Message:
    """Send a request as an older client does, through one REQ socket; return the reply."""
    return Message.decode(send_frames(port, str(Message(subject, kind, data)).encode(), seconds=seconds))


def send_requests(port: int, requests: Mapping[bytes, bytes], *, seconds: float = 30) -> dict[bytes, Message]:
    """Send requests by their tokens over one connection, as current clients do; return the replies."""
    context = zmq.Context()
    try:
        with context.socket(zmq.DEALER) as peer:
            peer.setsockopt(zmq.LINGER, 0)
            peer.connect(f"tcp://{HOST}:{port}")
            for token, request in requests.items():
                peer.send_multipart([token, b"", request])
            answers: dict[bytes, Message] = {}
            while len(answers) < len(requests):
                assert peer.poll(int(seconds * TIMEOUT_FACTOR * 1000)), f"{len(answers)} of {len(requests)} answered"
                token, empty, answer = peer.recv_multipart()
                assert token not in answers
                assert empty == b""
                answers[token] = Message.decode(answer.decode())
            return answers
    finally:
        context.destroy(0)


def send_frames(port: int, *frames: bytes, seconds: float = 10) -> str:
    """Send raw frames through a REQ socket; return the text of the reply, which has one frame."""
    context = zmq.Context()
    try:
        with context.socket(zmq.REQ) as peer:
            peer.setsockopt(zmq.LINGER, 0)
            peer.connect(f"tcp://{HOST}:{port}")
            peer.send_multipart(frames)
            assert peer.poll(int(seconds * TIMEOUT_FACTOR * 1000)), f"no answer to {frames!r:.200}"
            (answer,) = peer.recv_multipart()
            return str(answer.decode())
    finally:
        context.destroy(0)
