"""A real SMTP server that keeps the mails it accepts."""

from __future__ import annotations

import email
import email.policy
from email.message import EmailMessage
from typing import Any, Self

try:
    from aiosmtpd.controller import Controller

    AVAILABLE = True
except ImportError:
    AVAILABLE = False

from trollmoves.tests.servers.process import HOST, free_port


def missing() -> str:
    """Return why the server cannot run, or an empty string."""
    return "" if AVAILABLE else "missing: aiosmtpd"


class Smtpd:
    """The server, in a thread."""

    def __init__(self) -> None:
        self.port = free_port()
        self.mails: list[EmailMessage] = []
        self._controller = Controller(self, hostname=HOST, port=self.port)

    def __enter__(self) -> Self:
        self._controller.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._controller.stop()

    async def handle_DATA(self, server: object, session: object, envelope: Any) -> str:  # noqa: N802
        """Keep a mail. The name is aiosmtpd's."""
        mail = email.message_from_bytes(envelope.content, policy=email.policy.default)
        assert isinstance(mail, EmailMessage)
        self.mails.append(mail)
        return "250 accepted"
