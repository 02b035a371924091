"""Failpoints: kill the process at a named point (crash-recovery tests only).

With ``TROLLMOVES_FAILPOINT=NAME`` the process sends itself SIGKILL when it reaches the failpoint, with ``NAME:COUNT``
when it reaches it for the COUNTth time. Without the variable, a failpoint is a call of a function that does nothing.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Mapping

from trollmoves.errors import StartError

ENV_VAR = "TROLLMOVES_FAILPOINT"

FAILPOINTS: Mapping[str, str] = {
    # who announces, and hands out: server and mirror
    "found": "New files are seen, nothing about them is written down.",
    "unpacked": "A file is unpacked, what was in it is not announced, or told of, yet.",
    "announcing": "Files are about to be announced, and are not in the log yet.",
    "announced": "Announcements are in the log, and not published yet.",
    "published": "Announcements are handed to the network.",
    "asked": "Requests are heard, and not written down yet.",
    "push-noted": "Requests are written down, and not begun yet.",
    "sending": "A part of a file is sent, under the name of its partial.",
    "sent": "All of a file is sent, still under the name of its partial.",
    "delivered": "A file is whole under its name, which is not written down yet.",
    "ended": "The end of a task is written down, and nobody is told yet.",
    "answered": "The answer to a request is handed to the network.",
    "ack-heard": "A client says that it needs a file no more, which is not written down yet.",
    "acknowledged": "It is written down that a client needs a file no more.",
    "removing": "A delivered file is about to be removed.",
    "removed": "A delivered file is removed, which is not written down yet.",
    # who hears, and fetches: client and mirror
    "heard": "Announcements are heard, or caught up with, and not written down yet.",
    "noted": "Announcements are written down, and nothing is asked for yet.",
    "asking": "It is published that a file is asked for, and the source is not asked yet.",
    "arrived": "A source says that a file has arrived, and nothing is told or written down yet.",
    "acked": "It is published that an archive is needed no more, which is not written down yet.",
    "told": "The receipt is handed to the network, which is not written down yet.",
    "told-again": "What an earlier process may not have told is published again, which is not written down yet.",
    "discarding": "An archive that was unpacked is about to be removed.",
    "discarded": "An archive that was unpacked is removed, which is not written down yet.",
    "relaying": "What was heard is about to be announced by the mirror.",
    "copy-wanted": "A mirror has written down that it wants a copy of a file.",
    "copy-here": "A source has delivered a mirror's copy, which is not written down yet.",
    # who dispatches
    "message-heard": "Messages are heard, and not written down yet.",
    "message-noted": "Deliveries are written down, and not begun yet.",
}


def check_environment() -> None:
    """Raise ``StartError``, which lists the steps, when the variable names none of them."""
    text = os.environ.get(ENV_VAR, "")
    name, count = _parse(text)
    if text and (name not in FAILPOINTS or count < 1):
        known = "\n".join(f"  {step}: {sentence}" for step, sentence in FAILPOINTS.items())
        raise StartError(f"{ENV_VAR} is no STEP or STEP:COUNT of these:\n{known}")


def _parse(text: str) -> tuple[str, int]:
    """Give the step and the count that are wished for; a count of 0 when it is none."""
    name, colon, count = text.partition(":")
    return name, int(count) if count.isdecimal() else int(not colon)


def _do_nothing(step: str) -> None:
    """Go on."""


def _make_killer(wished: str, last: int) -> Callable[[str], None]:
    times = itertools.count(1)

    def hit(step: str) -> None:
        if step == wished and next(times) == last:
            os.kill(os.getpid(), signal.SIGKILL)

    return hit


hit: Callable[[str], None] = _make_killer(*_parse(os.environ[ENV_VAR])) if os.environ.get(ENV_VAR) else _do_nothing
"""Say that a step is reached; any thread. It may not return."""
