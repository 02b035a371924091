"""A daemon that receives messages about files: one subscription and at most one publisher for all its chains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

from trollmoves.config.options import ChainOptions
from trollmoves.daemon import Daemon
from trollmoves.messaging.publisher import Publisher
from trollmoves.receiver.subscription import Subscription

O = TypeVar("O", bound=ChainOptions)  # noqa: E741  (one letter, the custom for a type)


class SubscriberDaemon(Daemon[O]):
    """The common part of dispatcher and fetchers; ``open_shared`` of a subclass creates the two sockets."""

    _subscription: Subscription | None = None
    _publisher: Publisher | None = None

    def close_shared(self) -> None:
        """Stop the subscription and the publisher."""
        if self._subscription:
            self._subscription.stop()
        if self._publisher:
            self._publisher.stop()

    def provider_states(self) -> Iterable[tuple[str, Mapping[str, bool]]]:
        """Return whether each publisher is connected, by address, for all chains together."""
        return [(self.role, self._subscription.connection_states())] if self._subscription else []

    def paused_input(self) -> AbstractContextManager[None]:
        """Hold messages back while chains start or stop; the subscription starts after the first pause."""
        return self._subscription.paused() if self._subscription else nullcontext()
