"""Tests that messages are written and read as posttroll does it, and that nothing that is sent does harm."""

from __future__ import annotations

import copy
import datetime as dt
import json
import math
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import posttroll.message
import pytest

from trollmoves.errors import MessageError, TransferError
from trollmoves.messaging import payload
from trollmoves.messaging.messages import Message, own_sender

pytestmark = pytest.mark.filterwarnings("ignore:The `rawstr` argument:PendingDeprecationWarning")

UTC = dt.UTC
NAIVE = dt.datetime.fromisoformat("2025-01-01T12:30")
WHEN = dt.datetime(2025, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
ANNOUNCEMENT = {
    "sensor": "seviri",
    "bands": ["a", "b"],
    "series": "MSG4_",
    "nominal_time": NAIVE,
    "segment": 5,
    "uri": "/data/in/H-000-MSG4__-MSG4________-VIS006___-000005___-202501011230-__",
    "uid": "H-000-MSG4__-MSG4________-VIS006___-000005___-202501011230-__",
    "request_address": "192.168.1.7:9094",
}
DATA = {
    "announcement": ANNOUNCEMENT,
    "no data": "",
    "empty dict": {},
    "empty list": [],
    "none": None,
    "none inside": {"a": None},
    "false": False,
    "true": True,
    "bools inside": {"a": True, "b": False},
    "zero": 0,
    "number": 12,
    "floats": {"a": 0.1, "b": 1e300, "c": -2.5, "d": math.inf, "e": 1e-7},
    "big number": {"a": 2**70},
    "text": "the file is gone",
    "text with blanks": "two  blanks and a\ttab",
    "text on lines": "first\nsecond",
    "non-ASCII text": "größer als 5 µm, 雲",
    "non-ASCII": {"ä": "größer", "雲": ["µm"]},
    "quotes": {"a": 'say "yes"', "b": "back\\slash", "c": "line\nline"},
    "undecodable name": {"uri": "/in/\udcff.dat"},
    "time": {"a": NAIVE},
    "time of a zone": {"a": dt.datetime(2025, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=2)))},
    "times nested": {"a": {"b": [{"c": NAIVE}, [dt.datetime(2024, 2, 29, tzinfo=UTC)]]}},
    "times in a list": [NAIVE, {"a": dt.datetime(2025, 1, 1, 2, tzinfo=UTC)}],
    "time of day": {"a": dt.time(12, 30), "b": NAIVE},
    "time of day alone": {"a": dt.time(12, 30)},
    "date beside a time": {"a": dt.date(2025, 1, 1), "b": NAIVE},
    "texts like times": {"a": "2025-01-01T00:00:00", "b": ["20250101", "2025-W01", "12:30"], "c": {"d": "2025-01-01"}},
    "lists of dicts": {"dataset": [{"uri": "/a/1", "uid": "1"}, {"uri": "/a/2", "uid": "2"}]},
    "a list of lists": [[["2025-01-01"], {"a": "2025-01-01"}]],
    "a tuple": {"a": (1, 2, (NAIVE,))},
    "keys that are no text": {5: "a", None: "b", True: "c", 2.5: "d"},
}
# Names and addresses: there a text stays one, also when it reads as a time.
NAMES = {
    "uri": "20250101",
    "uid": "2025-01-01",
    "path": "20250101T120000",
    "request_address": "2025W01",
    "destination": "20250101",
}


def ours(data: Any, version: str | None = None, *, binary: bool = False) -> Message:
    """Make a message of ours at a fixed time."""
    return Message("/1b/hrit/0deg", "file", data, "user@host", WHEN, version, binary)


def theirs(data: Any, version: str | None = None, *, binary: bool = False) -> str:
    """Return the text of the same message of posttroll's."""
    message = posttroll.message.Message("/1b/hrit/0deg", "file", data, binary=binary)
    message.sender, message.time = "user@host", WHEN
    if version:
        message.version = version
    return str(message.encode())


# -- writing


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
def test_the_text_is_posttrolls(data: Any) -> None:
    """A message is written to the byte as the installed posttroll writes it."""
    assert ours(data).encode() == theirs(data)


@pytest.mark.parametrize("version", ["v1.01", "v1.2"])
@pytest.mark.parametrize(
    "name", ["announcement", "times nested", "time of a zone", "time of day alone", "no data", "text"]
)
def test_the_text_is_posttrolls_in_each_version(name: str, version: str) -> None:
    """A message of a given version is written as posttroll writes that version."""
    assert ours(DATA[name], version).encode() == theirs(DATA[name], version)


def test_binary_data_is_written_as_posttroll_does() -> None:
    """Binary data has posttroll's mime type, when written and when read."""
    text = ours("01\x7f \xe9", binary=True).encode()
    assert text == theirs("01\x7f \xe9", binary=True)
    assert Message.decode(text).binary
    assert Message.decode(text).encode() == text


def test_sender_is_that_of_posttroll() -> None:
    """A message has the same sender as posttroll's."""
    assert Message("/a", "info").sender == own_sender() == posttroll.message.Message("/a", "info").sender


def test_sender_of_a_user_without_a_name() -> None:
    """A process whose user has no name, as in a container, sends messages with the number of the user."""
    if os.geteuid() != 0:
        pytest.skip("only root may change its user")
    code = "import os; from trollmoves.messaging.messages import own_sender; os.setuid(4321); print(own_sender())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"4321@{socket.gethostname()}\n"


@pytest.mark.parametrize("data", [{"a": object()}, {"a": b"bytes"}, b"bytes", {("a", 1): 1}, {"a": {1, 2}}])
def test_unserializable_data(data: Any) -> None:
    """Data that cannot be written as JSON raise MessageError."""
    with pytest.raises(MessageError, match="cannot encode"):
        ours(data).encode()


def test_a_circle_cannot_be_written() -> None:
    """Data that holds itself raises MessageError."""
    circle: dict[str, Any] = {}
    circle["a"] = [circle]
    with pytest.raises(MessageError, match="cannot encode"):
        ours(circle).encode()


@pytest.mark.parametrize("data", ["no such file: /in/\udcff.dat", {"error": "/in/\udcff.dat"}])
def test_any_text_can_be_sent(data: Any) -> None:
    """A file name with invalid UTF-8 does not prevent the sending of a message."""
    text = Message("/a/\udcfe", "err", data).encode()
    assert Message.decode(text.encode()).type == "err"


def test_variant_equals_new_message() -> None:
    """A variant of a read message equals a new message with the added items."""
    read = Message.decode(ours(ANNOUNCEMENT).encode())
    added = {"destination": "scp://u@h/in", "request": {"id": "a/1"}}
    variant = Message.decode(read.derive("push", added))
    assert (variant.subject, variant.type, variant.data) == (read.subject, "push", read.data | added)
    assert variant.sender == own_sender()
    assert Message.decode(read.derive("ack")).data == read.data


@pytest.mark.parametrize("name", ["no data", "text", "empty dict", "empty list", "a list of lists"])
def test_variant_of_other_data(name: str) -> None:
    """A variant without added items works with data of any type."""
    read = Message.decode(ours(DATA[name]).encode())
    assert Message.decode(read.derive("ack")).data == read.data


def test_variant_replaces_an_item() -> None:
    """An added item replaces one of the same name."""
    read = Message.decode(ours({"destination": "old", "uri": "/a"}).encode())
    assert Message.decode(read.derive("push", {"destination": "new"})).data == {"destination": "new", "uri": "/a"}


ASKED = {"uri": "/a", "time": "2025-01-01T00:00:00", "request": {"id": "a/1", "timeout": 5.0}}


def test_variant_keeps_an_empty_key() -> None:
    """An item with an empty key is data as any other."""
    read = Message.decode(ours({"uri": "/a", "": 1}).encode())
    assert Message.decode(read.derive("ack")).data == {"uri": "/a", "": 1}
    assert Message.decode(read.derive("push", {"uri": "/b"})).data == {"uri": "/b", "": 1}


@pytest.mark.parametrize(
    "data",
    [
        ASKED,
        {"request": {"id": "a/1"}},
        {"request": {"id": "a/1"}, "uri": "/a"},
        {"uri": "/a"},
        {"uri": "/ä", "request": {"id": "ä", "at": "2025-01-01T00:00:00"}},
    ],
    ids=["last", "alone", "first", "not there", "no ASCII, and a time"],
)
def test_variant_omits_an_item(data: dict[str, Any]) -> None:
    """A variant without an item has all others, at any position of the omitted one."""
    read = Message.decode(ours(data).encode())
    rest = {key: value for key, value in read.data.items() if key != "request"}
    assert Message.decode(read.derive("file", without="request")).data == (rest or "")


def test_variant_of_foreign_json() -> None:
    """An item can be omitted also from JSON that another program wrote."""
    head, _, body = ours(ASKED).encode().partition(" application/json ")
    other = json.dumps(json.loads(body), indent=1, ensure_ascii=False)
    read = Message.decode(f"{head} application/json {other}")
    assert Message.decode(read.derive("file", without="request")).data == Message.decode(
        ours({key: value for key, value in ASKED.items() if key != "request"}).encode()
    ).data  # fmt: skip


# -- reading


def same(mine: Message, other: Any) -> None:
    """Fail unless two messages say the same."""
    assert (mine.subject, mine.type, mine.sender) == (other.subject, other.type, other.sender)
    assert (mine.time, mine.version, mine.binary) == (other.time, other.version, other.binary)
    assert mine.time.tzinfo == other.time.tzinfo
    assert repr(mine.data).replace("ReceivedTime", "datetime.datetime") == repr(other.data)


HEAD = "pytroll://a/b file user@host 2025-01-01T00:00:00"


@pytest.mark.parametrize(
    "text",
    [
        *(theirs(data) for name, data in DATA.items() if name != "undecodable name"),
        theirs("bin \xe9", binary=True),
        f"{HEAD} v1.01",
        f"{HEAD}+02:00 v1.2",
        f"{HEAD} v1.01 text/ascii ",
        f"{HEAD} v1.01 text/ascii   spaces before and after  ",
        f"{HEAD} v1.01 TEXT/ASCII upper",
        f"{HEAD} v1.01 application/json 5",
        f"{HEAD} v1.01 application/json null",
        f'{HEAD} v1.01 application/json "2025-01-01"',
        f'{HEAD} v1.01 application/json  {{"a": "2025-01-01", "a": "b"}} ',
        f'{HEAD} v1.01 application/json {{"a": NaN}}',
        f'{HEAD} v1.01 application/json {{"a": "\\ud800"}}',
        f'{HEAD} v1.01 application/json {{"a": "٢٢٢٢-٢٢-٢٢"}}',
        f'{HEAD} v1.01 application/json ["2025-01-01", ["2025-01-01"], [[{{"a": ["2025-01-01", ["2025-01-02"]]}}]]]',
        f"{HEAD} v0 text/ascii old",
        f"{HEAD}\tv1.01\ntext/ascii\u00a0other blanks",
        "pytroll:/no/slash info u 2025-01-01 v1.01",
        f"{HEAD} v1.01 text/ascii größer".encode(),
        f"{HEAD} v1.01 text/ascii größer".encode("iso-8859-1"),
    ],
)  # fmt: skip
def test_read_as_by_posttroll(text: str | bytes) -> None:
    """A message that posttroll accepts is read to the same subject, type, sender, time, version and data."""
    same(Message.decode(text), posttroll.message.Message.decode(text))


def test_names_stay_texts() -> None:
    """A name or address that reads as a time stays a text, and everything else becomes one as with posttroll."""
    data = {**NAMES, "a": "20250101", "dataset": [NAMES]}
    read = Message.decode(f"{HEAD} v1.01 application/json {json.dumps(data)}")
    assert read.data == {**NAMES, "a": NAIVE.replace(hour=0, minute=0), "dataset": [NAMES]}


@pytest.mark.parametrize("text", ["20250101", "2025W01", "2025-01-01", "20250101T1200", "2025-01-01T12:00:00Z"])
def test_received_time_keeps_its_text(text: str) -> None:
    """A text that reads as a time is encoded again as it was received, also in a copy, in lists and in derived data."""
    read = Message.decode(f"{HEAD} v1.2 application/json {json.dumps({'a': text, 'b': [{'c': text}]})}")
    assert isinstance(read.data["a"], dt.datetime)
    read.raw = ""
    for again in (read.encode(), Message("/a", "file", copy.deepcopy(read.data)).encode(), read.derive("ack")):
        assert json.loads(again.partition(" application/json ")[2]) == {"a": text, "b": [{"c": text}]}
    later = Message("/a", "file", {"a": read.data["a"] + dt.timedelta(days=1)}).encode()
    assert "-02T" in later or "-31T" in later


REFUSED = {
    "nothing": "",
    "other text": "hello",
    "magic alone": "pytroll:/",
    "magic and blanks": "pytroll:/   ",
    "no subject": "pytroll:/ file user@host 2025-01-01 v1.01 text/ascii a",
    "cut after the subject": "pytroll://a/b",
    "cut after the sender": "pytroll://a/b file user@host ",
    "cut after the time": HEAD,
    "cut before the data": f"{HEAD} v1.01 ",
    "cut after the mime type": f"{HEAD} v1.01 application/json",
    "cut after the mime type of a text": f"{HEAD} v1.01 text/ascii",
    "cut in the data": theirs(ANNOUNCEMENT)[:-20],
    "no JSON": f"{HEAD} v1.01 application/json {{'a': 1}}",
    "two JSONs": f"{HEAD} v1.01 application/json {{}} {{}}",
    "number too long": f"{HEAD} v1.01 application/json {'9' * 5000}",
    "time of a fool": "pytroll://a/b file user@host today v1.01",
    "impossible time": "pytroll://a/b file user@host 2025-02-30T00:00:00 v1.01",
    "impossible zone": "pytroll://a/b file user@host 2025-02-03T00:00:00+99:00 v1.01",
    "newer version": f"{HEAD} v1.3",
    "much newer version": f"{HEAD} v2.0 text/ascii a",
    "unknown mime type": f"{HEAD} v1.01 image/png abc",
    "blank bytes": b"\x00\x00\x00",
    "no UTF-8": b"\xff\xfepytroll://a/b",
    "no UTF-8 in the time": b"pytroll://a/b file user@host 2025-01-0\xff v1.01",
}


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_invalid_message(text: str | bytes) -> None:
    """A message that posttroll fails on raises MessageError."""
    with pytest.raises((posttroll.message.MessageError, ValueError, IndexError)):
        posttroll.message.Message.decode(text)
    with pytest.raises(MessageError):
        Message.decode(text)


@pytest.mark.parametrize("depth", [101, 990, 100_000])
@pytest.mark.parametrize(("begin", "end"), [("[", "]"), ('{"a": ', "}"), ('[{"a": [', "]}]")])
def test_deep_nesting_is_refused(begin: str, end: str, depth: int) -> None:
    """Data nested so deep that walking through it could exhaust the stack raises MessageError."""
    with pytest.raises(MessageError):
        Message.decode(f"{HEAD} v1.01 application/json {begin * depth}1{end * depth}")


def test_usual_nesting_is_read() -> None:
    """Thirty nesting levels are accepted."""
    text = " ".join([HEAD, "v1.01 application/json", '{"a": [' * 15 + "1" + "]}" * 15])
    same(Message.decode(text), posttroll.message.Message.decode(text))


@pytest.mark.parametrize("part", range(4))
def test_error_is_short_and_harmless(part: int) -> None:
    """Input from strangers fills neither the log nor a terminal."""
    head = ["a", "b", "c@d", "2025-01-01", "v1.01", "text/ascii"]
    head[(0, 3, 4, 5)[part]] = "z\x1b[2J\u2028" + "z" * 100_000
    if part == 0:
        head[3] = "never"
    with pytest.raises(MessageError) as refusal:
        Message.decode(f"pytroll:/{' '.join(head)} x")
    assert len(str(refusal.value)) < 300
    assert str(refusal.value).isprintable()


def mutated(random_: random.Random, raw: bytes) -> bytes:
    """Damage a text as the world does."""
    damage = random_.randrange(5)
    at, to = sorted(random_.randrange(len(raw) + 1) for _ in range(2))
    if damage == 0:
        return raw[:at]
    if damage == 1:
        return raw[:at] + raw[to:]
    if damage == 2:
        return raw[:at] + random_.randbytes(random_.randrange(1, 4)) + raw[at:]
    if damage == 3:
        return raw[:at] + raw[at:to] * random_.randrange(3) + raw[to:]
    return raw[:at] + random_.choice(b'{}[]",: \n0-\xff').to_bytes(1, "big") + raw[at + 1 :]


def with_named_times(data: Any) -> Any:
    """Take names and addresses for times too, as posttroll does."""
    if isinstance(data, list):
        return [with_named_times(item) for item in data]
    if not isinstance(data, dict):
        return data
    return {key: as_time(value) if key in NAMES else with_named_times(value) for key, value in data.items()}


def as_time(value: Any) -> Any:
    """Take a text for a time if it is one."""
    try:
        return dt.datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return with_named_times(value)


def test_no_damage_raises_anything_else() -> None:
    """Thousands of damaged messages give what posttroll gives, or MessageError where it fails."""
    seed = time.time_ns()
    random_ = random.Random(seed)
    whole = [theirs(data).encode() for name, data in DATA.items() if name != "undecodable name"]
    for _ in range(8000):
        raw = random_.choice(whole)
        for _ in range(random_.randrange(1, 4)):
            raw = mutated(random_, raw)
        try:
            mine = Message.decode(raw)
        except MessageError:
            continue
        except Exception as error:
            pytest.fail(f"seed {seed}: {error!r} from {raw!r}")
        mine.encode().encode()
        mine.data = with_named_times(mine.data)
        try:
            same(mine, posttroll.message.Message.decode(raw))
        except Exception as error:
            pytest.fail(f"seed {seed}: {error!r} from {raw!r}")


def test_random_bytes_raise_nothing_else() -> None:
    """Bytes that were never a message raise MessageError."""
    random_ = random.Random(5)
    for size in (*range(200), 60_000):
        raw = random_.randbytes(size)
        with pytest.raises(MessageError):
            Message.decode(raw)


# -- speed


def times_faster(ours: Callable[[], Any], theirs: Callable[[], Any]) -> float:
    """Return how many times faster one is than the other; in turns, least times: the machine only adds to them."""

    def once(work: Callable[[], Any]) -> float:
        started = time.thread_time()
        for _ in range(100):
            work()
        return time.thread_time() - started

    rounds = [(once(ours), once(theirs)) for _ in range(50)]
    return min(slow for _, slow in rounds) / min(quick for quick, _ in rounds)


@pytest.mark.alone
def test_writing_is_quick() -> None:
    """Making and writing an announcement is at least 2.5 times faster than with posttroll."""
    theirs = posttroll.message.Message
    assert (
        times_faster(lambda: ours(ANNOUNCEMENT).encode(), lambda: theirs("/a/b", "file", ANNOUNCEMENT).encode()) > 2.5
    )


@pytest.mark.alone
def test_reading_is_quick() -> None:
    """Reading an announcement is at least 2.5 times faster than with posttroll."""
    raw = ours(ANNOUNCEMENT).encode().encode()
    assert times_faster(lambda: Message.decode(raw), lambda: posttroll.message.Message.decode(raw)) > 2.5


# -- contents


def test_files_are_found_at_any_depth() -> None:
    """Each dictionary with a uri is a file of the message, at any depth."""
    data = {"dataset": [{"uri": "/a/1"}, {"x": {"uri": "/a/2", "more": [{"uri": "/a/3"}]}}], "uri": "/a/0"}
    assert payload.file_uris(data) == ["/a/0", "/a/1", "/a/2", "/a/3"]
    assert payload.file_names(data) == "0, 1, 2, 3"
    assert payload.file_uris("text") == payload.file_uris(None) == payload.file_uris([5]) == []


@pytest.mark.parametrize("data", [{"uri": 5}, {"uri": None}, {"uri": {"uri": "/a"}}])
def test_any_name_can_be_shown(data: Any) -> None:
    """A uri that is not a text can still be named in a log line."""
    assert isinstance(payload.file_names(data), str)


def test_the_reply_type_follows_the_data() -> None:
    """One file has type file, several dataset or collection."""
    assert payload.reply_type({"uri": "/a"}) == "file"
    assert payload.reply_type({"dataset": []}) == "dataset"
    assert payload.reply_type({"collection": []}) == "collection"


def test_a_request_id_is_found_in_the_text() -> None:
    """The id of a request is found without reading the message, also when a name tries to look like one."""
    data = {"uri": '/in/"request": {"id": "trap"}', "request": {"id": "a/7", "timeout": 10}}
    assert payload.request_id(ours(data).encode()) == "a/7"
    assert payload.request_id(ours({"uri": "/a"}).encode()) is None
    assert payload.request_id('"request": {"id": 5}') is None
    assert payload.request_id('"request": {"id') is None


@pytest.mark.parametrize("mark", [None, 5, "a", [], {"log": 5, "number": 1}, {"log": "a"}, {"log": "a", "number": "1"}])
def test_invalid_announcement_mark(mark: Any) -> None:
    """An invalid announcement mark is ignored."""
    assert payload.announcement_metadata({"announcement": mark}) == {}


@pytest.mark.parametrize("number", [-1, True, 1.5, 2**63, 10**400])
def test_a_number_that_no_log_can_have_is_none(number: Any) -> None:
    """A number that the journal cannot hold is not taken for one of a log."""
    assert payload.announcement_metadata({"announcement": {"log": "a", "number": number}}) == {}


@pytest.mark.parametrize("mark", [5, "a", [], None, {"id": 5, "timeout": "x"}, {"timeout": True}, {"id": ["a"]}])
def test_invalid_request_mark(mark: Any) -> None:
    """An invalid request mark is ignored."""
    assert payload.request_metadata({"request": mark}) == {}


@pytest.mark.parametrize("timeout", [math.nan, math.inf, -1, -math.inf, 10**400])
def test_invalid_timeout_in_request_mark(timeout: float) -> None:
    """An invalid timeout in a request mark is ignored."""
    assert payload.request_metadata({"request": {"id": "a", "timeout": timeout}}) == {"id": "a"}


def test_failure_format_per_peer() -> None:
    """Current clients receive whether to retry, others a text."""
    error = TransferError("no room")
    assert payload.error_payload({"uri": "/a"}, error) == "no room"
    recorded = payload.error_payload({"request": {"id": "a"}}, error, 5.0)
    assert recorded == {"error": "no room", "temporary": False, "retry_after": 5.0}


def test_files_of_a_message() -> None:
    """Each dictionary with a uri is a file, at any depth and in the order of the message."""
    inner = {"uri": "/b", "more": [{"uri": "/c"}, [{"uri": "/d"}], "uri", 5, None]}
    data = {"request": {"id": "x"}, "dataset": [inner, {"uid": "none"}], "uri": "/a", "last": {"uri": 5}}
    assert payload.file_uris(data) == ["/a", "/b", "/c", "/d", 5]
    others: tuple[Any, ...] = ("uri", None, 5, [], {}, ["uri"])
    assert [payload.file_items(other) for other in others] == [[]] * 6


@pytest.mark.parametrize("number", [2**64, -1, 1e300, True, "3", None, [1]])
def test_numbers_of_an_announcement(number: object) -> None:
    """A size or a time that no journal can store is omitted from the announcement."""
    mark = {"log": "x/hrit", "number": 5, "size": number, "mtime": 3}
    assert payload.announcement_metadata({"announcement": mark}) == {"log": "x/hrit", "number": 5, "mtime": 3}
