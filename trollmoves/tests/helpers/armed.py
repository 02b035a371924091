"""Runs a command that kills itself, or blocks a thread, at a failpoint.

``python -m trollmoves.tests.helpers.armed NAME:COUNT SCRIPT ARGUMENTS`` runs SCRIPT, which sends itself SIGKILL when it
reaches the failpoint NAME for the COUNT-th time. With ``NAME:block`` the thread that reaches it waits without end.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Mapping, Sequence

from trollmoves.utils import failpoints

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
    "acked": "Acks are published, with the receipts of files that are not packed, and this is not stored yet.",
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


def main(arguments: Sequence[str]) -> None:
    """Arm the failpoint and run the script; exit with a list of the failpoints if the first argument names none."""
    wanted, script, *rest = arguments
    name, _, count = wanted.partition(":")
    is_block = count == "block"
    if name not in FAILPOINTS or not (is_block or (count.isdecimal() and int(count))):
        known = "\n".join(f"  {one}: {sentence}" for one, sentence in FAILPOINTS.items())
        sys.exit(f"{wanted} must be NAME:COUNT of these:\n{known}")
    if is_block:
        failpoints.arm_block(name)
    else:
        failpoints.arm(name, int(count))
    sys.argv = [script, *rest]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
