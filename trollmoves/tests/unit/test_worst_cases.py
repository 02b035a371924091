"""No text from outside takes more than linear time: a limit of CPU time per byte, up to the largest message."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from trollmoves.errors import TrollmovesError
from trollmoves.matching.conditions import parse_conditions
from trollmoves.messaging import payload
from trollmoves.messaging.messages import Message
from trollmoves.net import destination_allowlist, hosts, urls
from trollmoves.tests.helpers.fuzzing import SCALE
from trollmoves.utils.logs import LogThrottle

CPU_PER_BYTE = 1.5e-6  # s, on a slow machine
SIZES = (1_000, 100_000, 1_000_000, *((16_000_000,) if SCALE > 1 else ()))
HEAD = "pytroll://a/b file sat@host 2025-01-02T03:04:05.678 v1.01 "
UNITS = (
    *("netloc='", "a://b:c ", "@", "a@", "://", "a://u:@/", "?a=", "[", "@[", "%25", ":", "0", "9", "1.", " ", "\n"),
    *(
        "/",
        "../",
        "\x1b",
        "é",
        "\udcff",
        '"',
        "\\",
        '{"uri":',
        '"request": {',
        "[[",
        "1,",
        "a.",
        "*",
        "_",
        "2025-01-02T",
    ),
)
CONDITIONS = parse_conditions([{"a": ["x", 1], "b": ">3", "except": {"c": "<= 1e3"}}])
PATTERNS = tuple(map(destination_allowlist.parse_pattern, ("sftp://*.example.org/in/*a*b*c", "/data/*x*y*")))


def message(text: str) -> None:
    """Decode a message with this text in each place."""
    for raw in (text, HEAD + text, f"{HEAD}application/json {text}", f'{HEAD}application/json {{"a": "{text}"}}'):
        with suppress(TrollmovesError):
            data = Message.decode(raw.encode("utf-8", "surrogatepass")).data
            payload.file_names(data)
            payload.announcement_metadata(data)
            payload.request_metadata(data)
    payload.request_id(f'"request": {{{text}')


def url(text: str) -> None:
    """Parse, check and show a destination with this text in each place."""
    for one in (text, f"sftp://{text}", f"sftp://h.example.org/in/{text}", f"/data/{text}", f"sftp://u:{text}@h/x"):
        urls.redacted(one)
        with suppress(TrollmovesError):
            parsed = urls.parse(one)
            destination_allowlist.check_allowed(PATTERNS, parsed, [text])


def shown(text: str) -> None:
    """Show this text in a log line and an error."""
    urls.redact_text(f"{text}@ ://{text}")
    urls.excerpt(text)
    payload.file_name(text)
    payload.error_payload({}, TrollmovesError(text))
    LogThrottle().admit(text)


def condition(text: str) -> None:
    """Evaluate conditions on metadata with this text."""
    CONDITIONS.mismatch_reason({"a": text, "b": text, "c": text})


def host(text: str) -> None:
    """Use this text as the name of a host."""
    hosts.is_local(text)
    hosts.is_host_and_port(text + ":1")
    hosts.canonical(text)
    hosts.process_resolver().addresses(text)


@pytest.mark.alone
@pytest.mark.parametrize("parse", [message, url, shown, condition, host])
def test_time_per_byte(parse: Callable[[str], None]) -> None:
    """Each parser takes at most 1.5 us of CPU time per byte, and 5 ms, for texts that are made to be slow."""
    for unit in UNITS:
        for size in SIZES:
            text = (unit * (size // len(unit) + 1))[:size]
            begin = time.thread_time()
            parse(text)
            assert time.thread_time() - begin < 0.005 + CPU_PER_BYTE * size, (unit, size)
