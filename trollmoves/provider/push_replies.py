"""The replies to push requests."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trollmoves.errors import TransferError, TrollmovesError
from trollmoves.messaging import payload
from trollmoves.messaging.messages import Message
from trollmoves.messaging.replier import Request
from trollmoves.net import urls
from trollmoves.provider.push_request import PushRequest

logger = logging.getLogger(__name__)


class HostUnavailable(TransferError):
    """The lane of a destination is paused after failures, which are in the log."""

    temporary = True

    def __init__(self, text: str, *, held: bool) -> None:
        super().__init__(text)
        self.held = held


def without_logins(push: PushRequest) -> dict[str, Any]:
    """Return the backup targets for a reply, without logins; {} if they have none."""
    if not any("@" in host for host in push.backup_targets):
        return {}
    return {"backup_targets": [urls.host_without_login(host) for host in push.backup_targets]}


def success_reply(push: PushRequest, destination: str) -> str:
    """Return the encoded reply to a push after its delivery to ``destination``."""
    message, type_ = push.message, payload.reply_type(push.message.data)
    changes = without_logins(push)
    if push.destination != destination:
        changes["destination"] = destination
    is_leaking = push.id is None and "announcement" in message.data  # a legacy client publishes the data of the reply
    if changes or is_leaking:
        data = {**message.data, **changes}
        if is_leaking:
            del data["announcement"]
        message = Message(message.subject, type_, data)
    return message.derive(type_, without="request")


def reply_delivered(request: Request, push: PushRequest, destination: str, backup: str | None) -> None:
    """Reply that the files are at ``destination``, or at the backup target ``backup``; both without login."""
    changes = {"destination": backup} if backup else {}
    request.reply_delivered(changes, lambda: success_reply(push, backup or destination))


@contextmanager
def rejecting(name: str, request: Request) -> Iterator[None]:
    """Reject the request if an error is raised, and do not propagate the error."""
    try:
        yield
    except TrollmovesError as error:
        reject(name, request, error)
    except Exception:
        logger.exception("[%s] unexpected error while handling %s", name, request.message.type)
        request.reject("internal error")


def reject(name: str, request: Request, error: TrollmovesError, retry_in: float = 0.0) -> None:
    """Reply ``err`` to a request, and log the reason."""
    if isinstance(error, HostUnavailable):
        logger.debug("[%s] rejected %s from %s: %s", name, request.message.type, request.sender, error)
    elif (suffix := request.replier.throttle.admit()) is not None:
        logger.warning("[%s] rejected %s from %s: %s%s", name, request.message.type, request.sender, error, suffix)
    request.reply("err", payload.error_payload(request.message.data, error, retry_in))
