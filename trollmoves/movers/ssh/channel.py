"""A stream of bytes to a program on an SSH server, over any implementation of SSH."""

from __future__ import annotations

from abc import ABC, abstractmethod


class Channel(ABC):
    """One channel; used by one thread at a time.

    ``timeout`` is the number of seconds without progress after which ``send`` and ``receive`` raise ``TimeoutError``.
    """

    @property
    @abstractmethod
    def timeout(self) -> float:
        """Seconds without progress."""

    @timeout.setter
    @abstractmethod
    def timeout(self, seconds: float) -> None: ...

    @abstractmethod
    def send(self, data: bytes) -> None:
        """Send all of ``data``; raises ``TransferError`` if the channel is closed."""

    @abstractmethod
    def receive(self, count: int) -> bytes:
        """Return one or more bytes, up to ``count``; raises ``TransferError`` with the reason at the end."""

    @abstractmethod
    def alive(self) -> bool:
        """Return True if the channel is open, without a request to the server."""

    @abstractmethod
    def close(self) -> None:
        """Close; must not raise, nor wait for the server."""
