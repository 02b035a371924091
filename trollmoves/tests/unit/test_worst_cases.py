"""No text from outside takes more than linear time: a limit of CPU time per byte, up to the largest message.

``TROLLMOVES_FUZZ=500`` tries a million random texts for each parser, and texts of 16 MB.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import posttroll.message
import pytest

from trollmoves.config import ini_and_yaml
from trollmoves.errors import TrollmovesError
from trollmoves.matching.conditions import parse_conditions
from trollmoves.matching.patterns import ComposeError, Origin, Pattern, reader
from trollmoves.matching.received_time import read_time
from trollmoves.messaging import payload
from trollmoves.messaging.messages import Message
from trollmoves.movers import ftp
from trollmoves.movers.remote import Endpoint
from trollmoves.movers.ssh import known_hosts
from trollmoves.net import destination_allowlist, hosts, urls
from trollmoves.tests.helpers.fuzzing import SCALE, Fuzz, scaled
from trollmoves.utils.logs import LogThrottle

CPU_PER_BYTE = 5e-6  # s, on a slow machine
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


LOCAL_HOST = hosts.LocalHost(look_up=lambda _: ())  # a name server that knows no name
RESOLVER = hosts.Resolver(lambda _: ())


def host(text: str) -> None:
    """Use this text as the name of a host."""
    LOCAL_HOST.is_local(text)
    hosts.is_host_and_port(text + ":1")
    hosts.canonical(text)
    RESOLVER.addresses(text)


NAMES = [
    (reader(text), Pattern(text))
    for text in (
        "{a}_{b}_{c}_{d}.nc",
        "{t:%Y%m%d%H%M}-{a:_<9s}-{n:03d}-__",
        "{a:4s}{a:4s}*{b}?{c}",
        "{a}{b:.2f}_{t:%j}",
    )
]
ORIGIN = Origin("/in/{a}/{t:%Y%m%d}/{b}_{c}.nc")


def name(text: str) -> None:
    """Match the name of a file, and compose one."""
    for parsed, pattern in NAMES:
        parsed.read(text)
        with suppress(ComposeError):
            pattern.compose(dict.fromkeys("abcdnt", text))
    ORIGIN.parse(f"/in/{text}")
    ORIGIN.directory_may_match(text)


def time_of(text: str) -> None:
    """Read a time."""
    read_time(text)
    read_time(f"2025-01-02T03:04:05.{text}")
    payload.is_seconds(text)


def known_host(text: str) -> None:
    """Read a known_hosts file with this text in each place, for a long host name."""
    with tempfile.NamedTemporaryFile() as file:
        for raw in (
            text,
            f"{text} ssh-rsa AAAA",
            f"|1|{text} ssh-rsa AAAAB3NzaC1yc2E=",
            f"*{text[:200]}* ssh-rsa AAAA",
        ):
            file.write(raw.encode("utf-8", "surrogatepass") + b"\n")
        file.flush()
        known_hosts.lines_for([file.name], "a" * 250, 2222)


def nameserver(text: str) -> None:
    """Read the reply of a nameserver, as posttroll does."""
    for raw in (text, f'{HEAD}application/json [{{"URI": "{text}"}}]'):
        with suppress(Exception):
            posttroll.message.Message(rawstr=raw)


def ini(text: str) -> None:
    """Read an INI file with this text in each place."""
    with suppress(TrollmovesError):
        ini_and_yaml.is_ini(text)
    for raw in (text, f"[{text}]", f"[a]\n{text}", f"[a]\n{text} = 1", f"[a]\nb = {text}", f"[a]\nb{text}c = 1"):
        with suppress(TrollmovesError):
            ini_and_yaml.read_ini("a.ini", raw)


def net_rc(text: str) -> None:
    """Read a ~/.netrc with this text in each place."""
    with tempfile.TemporaryDirectory() as home, pytest.MonkeyPatch.context() as environment:
        environment.setenv("HOME", home)
        file = Path(home, ".netrc")
        for raw in (text, f"machine h login a password {text}", f"machine {text}", f"# {text}\nmacdef a\n{text}"):
            file.write_bytes(raw.encode("utf-8", "surrogatepass"))
            file.chmod(0o600)
            ftp.credentials(Endpoint("ftp", "", None, "h", None))


MORE: dict[Callable[[str], None], float] = {url: 5.0, name: 15.0, ini: 20.0, net_rc: 4.0}  # times the limit: five URLs

LARGEST: dict[Callable[[str], None], int] = {ini: 20_000, net_rc: 20_000}  # files of the operator


def limit_of(parse: Callable[[str], None], size: int) -> float:
    """Return the maximum CPU time of a parser for a text of this size."""
    return 0.02 + MORE.get(parse, 1.0) * CPU_PER_BYTE * size


def cpu_seconds(parse: Callable[[str], None], text: str, limit: float) -> float:
    """Return the CPU time of a parser, the least of three if it exceeds a limit: one may include garbage collection."""
    times: list[float] = []
    while len(times) < 3 and min(times, default=limit) >= limit:
        begin = time.thread_time()
        parse(text)
        times.append(time.thread_time() - begin)
    return min(times)


@pytest.fixture(autouse=True)
def _unlogged() -> Iterator[None]:
    """Log nothing: pytest would keep the lines of a million texts."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


PARSERS = [message, url, shown, condition, host, name, time_of, known_host, nameserver, ini, net_rc]


@pytest.mark.alone
@pytest.mark.parametrize("parse", PARSERS)
def test_random_texts(parse: Callable[[str], None]) -> None:
    """The same for random texts from these parts, which raise no unexpected error."""
    random = Fuzz(30).random
    for _ in range(scaled(2000)):
        (times,) = random.choices((1, 3, 50), (80, 18, 2))
        text = "".join(random.choices(UNITS, k=random.randrange(1, 40))) * times
        limit = limit_of(parse, len(text))
        assert cpu_seconds(parse, text, limit) < limit, ascii(text)


@pytest.mark.alone
@pytest.mark.parametrize("parse", PARSERS)
def test_time_per_byte(parse: Callable[[str], None]) -> None:
    """No parser needs more CPU time than ``limit_of``, for texts that are made to be slow."""
    for unit in UNITS:
        for size in {min(size, LARGEST.get(parse, size)) for size in SIZES}:
            text = (unit * (size // len(unit) + 1))[:size]
            limit = limit_of(parse, size)
            assert cpu_seconds(parse, text, limit) < limit, ascii((unit, size))
