"""Promises of the file name patterns."""

from __future__ import annotations

import datetime as dt
import os
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import trollsift

from trollmoves.errors import TrollmovesError
from trollmoves.matching.patterns import ComposeError, Origin, Pattern, reader
from trollmoves.matching.received_time import read_time

HRIT = (
    "H-000-{series:_<6s}-{platform_name:_<12s}-{channel:_<9s}-{segment:_<9s}"
    "-{nominal_time:%Y%m%d%H%M}-{compressed:_<2s}"
)
NAME = "H-000-MSG4__-MSG4________-IR_108___-000001___-202501010000-C_"


def at(*parts: int) -> dt.datetime:
    """Make a time as file names hold it: without a zone."""
    return dt.datetime(*parts)  # type: ignore[arg-type]  # noqa: DTZ001


def by_trollsift(pattern: str, name: str) -> dict[str, Any] | None:
    """Parse as trollsift does, with None where it raises."""
    try:
        return trollsift.Parser(pattern).parse(name)
    except ValueError:
        return None


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        (HRIT, NAME),
        ("fixed.txt", "fixed.txt"),
        ("{a}", "anything at all"),
        ("{a}_{b}", "abc_def_ghi"),
        ("{a}{b}.nc", "xyz.nc"),
        ("{a:s}.nc", "x.nc"),
        ("{a:3s}{b:d}.nc", "abc12.nc"),
        ("{a:3d}.nc", "  7.nc"),
        ("{a:03d}_{b:>4d}_{c:_>4d}_{d:<4d}.nc", "007_  12___13_14  .nc"),
        ("{a:d}.nc", "-17.nc"),
        ("{a:x}_{b:X}_{c:o}_{d:b}", "ff_FF_17_101"),
        ("{a:04x}.nc", "00ff.nc"),
        ("{a:f}_{b:4.2f}_{c:.1f}_{d:e}", "1.5_3.14_2.5_1e5"),
        ("{a:_^7s}.nc", "__ab___.nc"),
        ("{a:*>5s}.nc", "***ab.nc"),
        ("{a:*=5d}.nc", "-**17.nc"),
        ("{a:c}{b:2c}.nc", "xyz.nc"),
        ("{t:%Y%m%d_%H%M%S}.{u:%j}", "20240229_235959.060"),
        ("{t:%y%b%d}.nc", "24Feb29.nc"),
        ("{t:%Y%%m}.nc", "2024%m.nc"),
        ("{t:%Y-%m-%dT%H:%M:%S.%f}Z", "2024-02-29T23:59:59.123456Z"),
        ("{a}_{a}.nc", "x_x.nc"),
        ("{t:%H%M}_{t:%H%M}.nc", "1230_1230.nc"),
        ("{{{a}}}.nc", "{x}.nc"),
        ("50%_{a}+(x)[y]^$|\\{b}.nc", "50%_1+(x)[y]^$|\\2.nc"),
        ("{a} {b}.nc", "with space.nc"),
        ("été_{a}.nc", "été_ü.nc"),
        ("{a}.nc", os.fsdecode(b"\xff\xfe.nc")),
        ("{a}/{b}.nc", "dir/sub/name.nc"),
    ],
)
def test_the_fields_are_trollsifts(pattern: str, name: str) -> None:
    """A matching name gives the same fields, of the same types, as trollsift finds."""
    fields = reader(pattern).read(name)
    assert fields is not None
    assert fields == by_trollsift(pattern, name)
    assert {type(value) for value in fields.values()} <= {str, int, float, dt.datetime}


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        (HRIT, "x" + NAME),
        (HRIT, NAME + "x"),
        (HRIT, NAME[:-1]),
        (HRIT, NAME.replace("202501010000", "202513010000")),
        (HRIT, ""),
        ("{a}_{a}.nc", "x_y.nc"),
        ("{a:4d}.nc", "x  x.nc"),
        ("{a:d}.nc", ".nc.nc"),
        ("{t:%Y%m%d}.nc", "20230229.nc"),
        ("{t:%Y%m%d}.nc", "00000101.nc"),
        ("{a:4x}.nc", "zzzz.nc"),
        ("fixed.txt", "Fixed.txt"),
    ],
)
def test_a_name_that_does_not_fit_gives_none(pattern: str, name: str) -> None:
    """No match and a value that cannot be converted, such as month 13, both give None."""
    assert reader(pattern).read(name) is None
    assert by_trollsift(pattern, name) is None


def test_any_pattern_agrees_with_trollsift() -> None:
    """Patterns made at random read names made at random as trollsift does, whether they match or not."""
    dice = random.Random(7)
    specs = ["", ":s", ":d", ":4s", ":04d", ":_<6s", ":>5d", ":*^7s", ":x", ":.2f", ":%Y%m%d", ":%H%M", ":%y%j", ":%b"]
    values: dict[str, list[Any]] = {
        "s": ["a", "ab_c", "MSG4", "", "x-y", "é.1"],
        "d": [0, 7, 1234, -5],
        "f": [1.25, 0.0, 17.5],
        "%": [at(2024, 2, 29, 12, 30), at(1999, 12, 31)],
    }
    matched = 0
    for _ in range(1500):
        fields, text = {}, ""
        for number in range(dice.randint(0, 4)):
            spec = dice.choice(specs)
            kind = "%" if "%" in spec else {"d": "d", "x": "d", "f": "f"}.get(spec[-1:], "s")
            fields[f"f{number}"] = dice.choice(values[kind])
            text += dice.choice(["", "_", "-", ".", "H", "%", " ", "{{", "é+"]) + f"{{f{number}{spec}}}"
        text += dice.choice([".nc", "", "_x"]) or "."
        read = reader(text).read
        composed = Pattern(text).compose(fields)
        assert composed == trollsift.compose(text, fields)
        for name in (composed, composed[1:], composed + "x", composed.replace("2", "9"), composed.upper()):
            assert read(name) == read(name) == by_trollsift(text, name), (text, name)
            matched += read(name) is not None
    assert matched > 1500


def test_wildcards_match_within_a_name() -> None:
    """A * matches any characters and a ? one, but no slash; in a field's format they are fill."""
    pattern = reader("H-*{time:%Y}*_?.nc")
    assert pattern.read("H-abc2024xyz_1.nc") == {"time": at(2024, 1, 1)}
    assert pattern.read("H-2024_1.nc") == {"time": at(2024, 1, 1)}
    assert pattern.read("H-*2024*_?.nc") == {"time": at(2024, 1, 1)}
    assert pattern.read("H-a\nb2024\n_\n.nc") == {"time": at(2024, 1, 1)}
    for name in ("H-2024_.nc", "H-2024_12.nc", "H-a/b2024_1.nc", "H-2024_/.nc", "G-2024_1.nc"):
        assert pattern.read(name) is None
    assert reader("*{a:*>4s}?").read("xx**ab.") == {"a": "ab"}


def test_a_line_feed_cannot_fool_a_pattern() -> None:
    """A line feed is a character of a name as any other: neither its end nor its beginning."""
    assert reader("{a}.nc").read("x\ny.nc") == {"a": "x\ny"}
    for name in ("x.nc\n", "\nx.nc.", "x.nc\n.nc\n", "y\nx.nc "):
        assert reader("{a}.nc").read(name) is None
    assert reader("x.nc").read("x.nc\n") is None
    assert reader("x.nc").read("\nx.nc") is None


@pytest.mark.parametrize(
    ("pattern", "name", "value"),
    [
        ("{t:%Y}/{t:%m}/{t:%d}.nc", "2024/02/29.nc", at(2024, 2, 29)),
        ("{t:%Y}/{t:%m%d}.nc", "2024/0229.nc", at(2024, 2, 29)),
        ("{t:%m%d}/{t:%Y}.nc", "0229/2024.nc", at(2024, 2, 29)),
        ("{t:%Y%m%d}/x{t:%Y%m%d%H%M}.nc", "20240229/x202402291230.nc", at(2024, 2, 29, 12, 30)),
        ("{t:%Y%m%d}/x{t:%Y%m%d%H%M}.nc", "20240228/x202402291230.nc", None),
        ("{t:%b}/x{t:%Y%b%d}.nc", "FEB/x2024Feb29.nc", at(2024, 2, 29)),
        ("{t:%Y}/{t:%m%d}.nc", "2023/0229.nc", None),
        ("{t:%I}{t:%p}.nc", "07PM.nc", at(1900, 1, 1, 19)),
        ("{t:03d}/{t:d}.nc", "007/7.nc", 7),
        ("{t:03d}/{t:d}.nc", "007/8.nc", None),
    ],
)
def test_one_field_in_several_formats_is_read_as_one(pattern: str, name: str, value: Any) -> None:
    """Parts of a time spread over a path make one time, and parts that contradict make no match."""
    assert reader(pattern).read(name) == (None if value is None else {"t": value})


@pytest.mark.parametrize(
    "pattern",
    [
        *(
            "{a",
            "a}",
            "{a:",
            "{a:%Y",
            "{a:{b}}",
            "{}",
            "{0}",
            "{:s}",
            "{a b}",
            "{a.b}",
            "{a[0]}",
            "{a-b}",
            "{a:n}",
            "{a:=5s}",
        ),
        *(
            "{a:%}",
            "{a:%Y%Y}",
            "{a:%s}",
            "{a:%Q}",
            "{t:%Y%m}{t:%m%d}",
            "",
            "x\x00",
            5,
            None,
            "{a:99999999999999999999s}",
        ),
    ],
)
def test_malformed_pattern_is_rejected(pattern: Any) -> None:
    """An invalid pattern raises a ValueError that shows it with the reason, before any file appears."""
    with pytest.raises(ValueError, match=r"(?s)pattern.*\w{3}") as refusal:
        reader(pattern)
    assert repr(pattern) in str(refusal.value)


def test_a_name_is_composed() -> None:
    """Fields make a name; other fields do not matter, and a conversion is applied."""
    fields = by_trollsift(HRIT, NAME)
    assert fields is not None
    assert Pattern(HRIT).compose(fields) == NAME
    assert Pattern("{a!u}_{b:%Y}{{}}").compose({"a": "x", "b": at(2024, 1, 1), "c": 1}) == "X_2024{}"
    assert reader("{a!u}.nc").read("x.nc") == {"a": "x"}
    assert Pattern("{t:%Y}/{t:%m}").compose({"t": at(2024, 1, 1)}) == "2024/01"


@pytest.mark.parametrize(
    ("pattern", "fields", "field", "says"),
    [
        ("{a}_{b}", {"a": 1}, "b", "missing field 'b' for '{a}_{b}'"),
        ("{a}_{t:%Y}", {"a": 1, "t": "2024"}, "t", "field 't' does not fit"),
        ("{a:d}", {"a": "x"}, "a", "field 'a' does not fit"),
        ("{a:4d}", {"a": None}, "a", "NoneType"),
        ("{a!u}", {"a": 5}, "a", "field 'a' does not fit"),
        ("{a:d}", {"a": [1]}, "a", "list"),
        ("{a:f}", {"a": 10**400}, "a", "too large"),
    ],
)
def test_missing_field_is_reported(pattern: str, fields: dict[str, Any], field: str, says: str) -> None:
    """A missing field, or an unsuitable value, raises a ComposeError that names it."""
    with pytest.raises(ComposeError) as refusal:
        Pattern(pattern).compose(fields)
    assert refusal.value.field == field
    assert says in str(refusal.value)
    assert isinstance(refusal.value, TrollmovesError)
    assert refusal.value.held


def test_a_destination_with_fields_shows_no_password() -> None:
    """Neither the repr nor an error of a pattern shows the password of a URL in it."""
    pattern = Pattern("ftp://me:s3cret@host/{a:d}")
    assert pattern.compose({"a": 5}) == "ftp://me:s3cret@host/5"
    with pytest.raises(ComposeError) as missing:
        pattern.compose({})
    with pytest.raises(ComposeError) as unfit:
        pattern.compose({"a": "x"})
    with pytest.raises(ValueError, match="invalid pattern") as malformed:
        Pattern("ftp://me:s3cret@host/{a")
    for text in (pattern, missing.value, unfit.value, malformed.value):
        assert "ftp://me@host" in str(text)
        assert "s3cret" not in repr(text) + str(text)


@pytest.mark.parametrize(
    ("text", "pattern", "name"),
    [
        ("20250101", "{a}", "20250101"),
        ("2025W01", "{a}", "2025W01"),
        ("20250101T1200", "{a}/{a:%Y/%m}", "20250101T1200/2025/01"),
        ("2025-01-01", "{a!R}", "20250101"),
        ("2025w01", "{a!u}", "2025W01"),
        ("2025W01", "{a:_<10s}", "2025W01___"),
        ("20250101", "{a:>9}", " 20250101"),
        ("2025-01-01T12:00:00", "{a}_{a.year}", "2025-01-01T12:00:00_2025"),
        ("2025-01-01T12:00:00Z", "{a:%H%M}{a}", "12002025-01-01T12:00:00Z"),
    ],
)
def test_text_that_reads_as_a_time(text: str, pattern: str, name: str) -> None:
    """A received text is composed unchanged, as any text, unless the format asks for a time."""
    assert Pattern(pattern).compose({"a": read_time(text)}) == name


def test_pattern_only_for_composing() -> None:
    """An unparsable pattern can still be composed if only that is required."""
    pattern = Pattern("{a[0]}_{t.year}_{t:%s}")
    time_ = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    assert pattern.compose({"a": ["x"], "t": time_}) == f"x_2024_{time_:%s}"
    with pytest.raises(ComposeError, match=r"field 'a\[0\]'"):
        pattern.compose({"a": [], "t": time_})
    with pytest.raises(ValueError, match="invalid pattern"):
        Pattern("{a")


@pytest.mark.alone
def test_a_pattern_is_quick() -> None:
    """Reading a name takes less than half of trollsift's time."""
    ours, theirs = reader(HRIT), trollsift.Parser(HRIT)

    def seconds(parse: Any) -> float:
        best = 1e9
        for _ in range(5):
            begin = time.thread_time()
            for _ in range(300):
                parse(NAME)
            best = min(best, time.thread_time() - begin)
        return best

    assert 2 * seconds(ours.read) < seconds(theirs.parse)


def test_threads_share_a_pattern() -> None:
    """Threads that read different names each get the fields of the right name."""
    pattern = reader("{a:05d}_{t:%Y%m%d}.nc")
    wrong: list[str] = []

    def read(start: int) -> None:
        for number in range(start, 3000, 4):
            name = f"{number:05d}_2024{1 + number % 12:02d}01.nc"
            if pattern.read(name) != {"a": number, "t": at(2024, 1 + number % 12, 1)}:
                wrong.append(name)

    threads = [threading.Thread(target=read, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_fields_are_a_copy() -> None:
    """Changes of the returned fields do not affect later results."""
    pattern = reader("{a}.nc")
    first = pattern.read("x.nc")
    assert first is not None
    first["a"] = "y"
    assert pattern.read("x.nc") == {"a": "x"}


@pytest.mark.parametrize(
    ("text", "root", "depth", "below"),
    [
        ("/data/in/{a}.nc", "/data/in", 0, "{a}.nc"),
        ("/data/in/fixed.nc", "/data/in", 0, "fixed.nc"),
        ("//data//in/./x/../{a}.nc", "/data/in", 0, "{a}.nc"),
        ("/{a}.nc", "/", 0, "{a}.nc"),
        ("/{a}/{b}.nc", "/", 1, "{a}/{b}.nc"),
        ("/data/{sat}/in//{t:%Y}/./x/{a}.nc", "/data", 4, "{sat}/in/{t:%Y}/x/{a}.nc"),
        ("/data/x{sat}/{a}.nc", "/data", 1, "x{sat}/{a}.nc"),
        ("/data/{t:%Y/%m/%d}/{a}.nc", "/data", 3, "{t:%Y/%m/%d}/{a}.nc"),
        ("/data/H-*/{a}.nc", "/data", 1, "H-*/{a}.nc"),
        ("/data/{{x}}/{a}.nc", "/data/{x}", 0, "{a}.nc"),
        ("/data/100%/{a}.nc", "/data/100%", 0, "{a}.nc"),
        ("/data/{t:%Y}{a}", "/data", 0, "{t:%Y}{a}"),
    ],
)
def test_an_origin_has_a_root_a_depth_and_a_pattern(text: str, root: str, depth: int, below: str) -> None:
    """The leading directory without fields is the root; the rest is the pattern, with its number of levels as depth."""
    origin = Origin(text)
    assert (origin.root, origin.depth, origin.pattern, origin.text) == (root, depth, below, text)


def test_a_relative_origin_starts_where_the_process_does() -> None:
    """A path that is not absolute counts from the current directory, once and for all."""
    assert Origin("in/{a}.nc").root == str(Path.cwd() / "in")
    assert Origin("{a}.nc").root == str(Path.cwd())


@pytest.mark.parametrize(
    "text", ["/data/in/", "/data/{a}/", "", "/data/{a", "/data/{a}/../{b}", "/data/{a b}/x", 5, "/x\x00"]
)
def test_a_malformed_origin_is_refused(text: Any) -> None:
    """An origin without a file name pattern, or with a malformed one, raises a ValueError."""
    with pytest.raises(ValueError, match=r"pattern|'\.\.'"):
        Origin(text)


def test_files_of_a_fixed_directory_are_read() -> None:
    """Only files directly in the directory match, and only their name is compared."""
    origin = Origin(f"/data/in/{HRIT}")
    assert origin.parse(f"/data/in/{NAME}") == reader(HRIT).read(NAME)
    assert origin.parse(f"/data//in/./x/../{NAME}") == reader(HRIT).read(NAME)
    for path in (
        f"/data/{NAME}",
        f"/data/in/sub/{NAME}",
        f"/data/in{NAME}",
        f"/other/in/{NAME}",
        NAME,
        "/data/in/x",
        "/",
    ):
        assert origin.parse(path) is None
    assert Origin("/data/in/fixed.nc").parse("/data/in/fixed.nc") == {}
    assert Origin("/{a}.nc").parse("/x.nc") == {"a": "x"}
    assert Origin("/data/{a}").parse("/data/sub/..") is None


def test_fields_of_the_directory_are_read_too() -> None:
    """Fields of directory and name come together, and no field spans a directory level."""
    origin = Origin("/data/{sat}/{t:%Y}/{t:%m%d}/{name}_{t:%H%M}.nc")
    when = at(2024, 2, 29, 12, 30)
    assert origin.parse("/data/MSG4/2024/0229/x_1230.nc") == {"sat": "MSG4", "name": "x", "t": when}
    for path in ("/data/a/b/2024/0229/x_1230.nc", "/data/MSG4/2024/x_1230.nc", "/data/MSG4/2023/0229/x_1230.nc"):
        assert origin.parse(path) is None
    assert Origin("/data/{t:%Y/%m}/{a}").parse("/data/2024/02/x") == {"t": at(2024, 2, 1), "a": "x"}
    assert Origin("/data/{sat}/{sat}.nc").parse("/data/a/a.nc") == {"sat": "a"}
    assert Origin("/data/{sat}/{sat}.nc").parse("/data/a/b.nc") is None
    assert Origin("/data/*/x?{a}.nc").parse("/data/any/x1y.nc") == {"a": "y"}


def test_only_directories_that_may_hold_files_are_worth_watching() -> None:
    """A directory below the root is judged by the levels of the pattern down to it."""
    origin = Origin("/data/{sat}/x{t:%Y}/{t:%m/%d}/{name}.nc")
    assert origin.depth == 4
    for relative in ("", ".", "MSG4", "any thing", "MSG4/x2024", "MSG4/x2024/02", "MSG4/x2024/02/29", "MSG4/x2024/02/"):
        assert origin.directory_may_match(relative), relative
    for relative in ("MSG4/2024", "MSG4/x2024/2", "MSG4/x2024/02/29/30", "MSG4/x2024/02/x", "a/b/c/d/e/f"):
        assert not origin.directory_may_match(relative), relative
    assert Origin("/d/{t:%m%d}/{t:%Y}").directory_may_match("0229")


def test_an_origin_finds_real_files(tmp_path: Path) -> None:
    """Names of any bytes that a disk holds are read from there, and its glob finds them too."""
    directory = tmp_path / "2024" / "MSG4"
    directory.mkdir(parents=True)
    names = [
        b"plain",
        b"with space",
        b"\xff\xfe",
        "é€".encode(),
        b"line\nfeed",
        b"-x",
        b"quote'\"",
        b"x" * 200,
        b"%41{}",
    ]
    for name in names:
        Path(os.fsdecode(os.fsencode(directory) + b"/" + name + b".nc")).touch()
    origin = Origin(f"{tmp_path}/{{year:%Y}}/{{sat}}/{{name}}.nc")
    read = [origin.parse(str(path)) for path in directory.iterdir()]
    assert sorted(os.fsencode(fields["name"]) for fields in read if fields) == sorted(names)
