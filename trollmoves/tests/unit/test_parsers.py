"""The text of an option becomes a value."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from trollmoves.config import parsers
from trollmoves.config.parsers import ProviderAddress


@pytest.mark.parametrize("text", ["true", "True", "YES", "on", "1"])
def test_yes(text: str) -> None:
    """All spellings of yes that configparser knows are true, in any case."""
    assert parsers.boolean(text) is True


@pytest.mark.parametrize("text", ["false", "False", "NO", "off", "0"])
def test_no(text: str) -> None:
    """All spellings of no are false."""
    assert parsers.boolean(text) is False


def test_lists() -> None:
    """A list is cut at blanks, line ends and commas."""
    assert parsers.word_list("a b,c\n d , e") == ("a", "b", "c", "d", "e")
    assert parsers.word_list("") == ()


def test_whole_numbers() -> None:
    """Both bounds are allowed."""
    assert [parsers.port("1"), parsers.port("65535")] == [1, 65535]
    assert parsers.seconds("0.5") == 0.5


@pytest.mark.parametrize(("text", "found"), [("", ()), ("1", (1,)), ("3, 0-1 1", (0, 1, 3)), ("2-2", (2,))])
def test_processors(text: str, found: tuple[int, ...]) -> None:
    """Processors are numbers and ranges, in the syntax of systemd."""
    assert parsers.processors(text) == found


@pytest.mark.parametrize("text", ["a", "1-", "-1", "2-1", "0-5000", "1--2"])
def test_malformed_processors(text: str) -> None:
    """Other texts are rejected with the rule."""
    with pytest.raises(ValueError, match=r"must be|ends before it begins"):
        parsers.processors(text)


def test_name_servers() -> None:
    """Name servers are a list of hosts, or none."""
    assert parsers.nameservers("a, b c") == ("a", "b", "c")
    assert parsers.nameservers("False") is False
    assert parsers.nameserver("localhost") == "localhost"
    assert parsers.nameserver("no") is False


def test_no_compression() -> None:
    """Compression may be switched off by a word."""
    read = parsers.choice_or_none("xrit", "bzip")
    assert [read(text) for text in ("XRIT", "bzip", "none", "False")] == ["xrit", "bzip", None, None]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("sensor=seviri;bands=a,b", {"sensor": "seviri", "bands": ["a", "b"]}),
        (";sensor = seviri ;; x=y=z;", {"sensor": "seviri", "x": "y=z"}),
        ("bands=a, b,", {"bands": ["a", "b", ""]}),
        ("sensor=", {"sensor": ""}),
        ("", {}),
    ],
)
def test_info(text: str, found: dict[str, object]) -> None:
    """A comma makes a list; a stray ``;`` and a second ``=`` do no harm."""
    assert parsers.info(text) == found


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("host:9010", ProviderAddress("host", 9010)),
        ("host.site.org:9010/hrit/0deg", ProviderAddress("host.site.org", 9010, "/hrit/0deg")),
        ("host:9010//hrit/", ProviderAddress("host", 9010, "/hrit/")),
        ("host:9010/", ProviderAddress("host", 9010)),
        ("tcp://10.0.0.1:9010", ProviderAddress("10.0.0.1", 9010)),
        ("tcp://[fe80::1]:9010/x", ProviderAddress("fe80::1", 9010, "/x")),
    ],
)
def test_provider(word: str, found: ProviderAddress) -> None:
    """A provider is a host, a port and an optional topic."""
    assert parsers.provider(word) == found
    assert parsers.provider(str(found)) == found


def test_provider_address() -> None:
    """The address of a provider is what ZeroMQ takes."""
    assert parsers.provider("host:9010/x").address == "tcp://host:9010"
    assert parsers.provider("[::1]:9010").address == "tcp://[::1]:9010"


@pytest.mark.parametrize(
    "word", ["host", "host:", ":9010", "host:port", "host:0", "host:65536", "::1:9010", "[host]:9010", "a@b:1", "[]:1"]
)
def test_malformed_provider(word: str) -> None:
    """A malformed provider is named."""
    with pytest.raises(ValueError, match=r".*") as caught:
        parsers.providers(f"good:9010 {word}")
    assert repr(word) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "before", "after"),
    [
        ("abi", "x", "abi"),
        ("abi", ["x", "y"], "abi"),
        ("G16:GOES-16|G17:GOES-17", "G17", "GOES-17"),
        ("G16 : GOES-16 | G17 : GOES-17", "G16", "GOES-16"),
        ("G16:GOES-16|G17:GOES-17", "G18", "G18"),
        ("G16:GOES-16", ["G16"], ["G16"]),
        ("1:one", 1, "one"),
        ("dat:", "dat", ""),
        ("12:00:01", "12", "12:00:01"),
        ("a:b|c", "a", "a:b|c"),
        ("http://site.org", "http", "http://site.org"),
        ("|", "x", "|"),
    ],
)
def test_replacement(text: str, before: object, after: object) -> None:
    """A map replaces the values it contains and keeps the others; any other value replaces every value."""
    assert parsers.replacement(text).apply(before) == after


def test_parameter() -> None:
    """0, false, 1 and true are booleans, and nothing else is."""
    texts = ["0", "False", "1", "TRUE", "2", "yes", "x"]
    assert [parsers.parameter(text) for text in texts] == [False, False, True, True, "2", "yes", "x"]


@pytest.mark.parametrize(
    ("read", "text", "complaint"),
    [
        (parsers.boolean, "maybe", "must be true or false: 'maybe'"),
        (parsers.number, "ten", "must be a number: 'ten'"),
        (parsers.number, "nan", "must be a finite number, 0 or more: 'nan'"),
        (parsers.number, "-1", "must be a finite number, 0 or more: '-1'"),
        (parsers.seconds, "1e300", "must be at most 1000000000: '1e300'"),
        (parsers.positive_seconds, "0", "must be more than 0"),
        (parsers.port, "9094.5", "must be an integer: '9094.5'"),
        (parsers.port, "٣", "must be an integer: '٣'"),
        (parsers.port, "9" * 5000, "must be an integer: '" + "9" * 57 + "...'"),
        (parsers.port, "0", "must be between 1 and 65535: '0'"),
        (parsers.choice("normal", "full"), "fast", "must be one of normal, full: 'fast'"),
        (parsers.choice_or_none("xrit"), "tar", "must be one of xrit, none: 'tar'"),
        (parsers.subject, "/a b", "a subject must not contain blanks: '/a b'"),
        (parsers.host, "a b", "must be one host: 'a b'"),
        (parsers.nameservers, "a tcp://b", "must be one host: 'tcp://b'"),
        (parsers.info, "sensor", "each item must be key=value: 'sensor'"),
        (parsers.info, "=x", "each item must be key=value: '=x'"),
    ],
)
def test_complaints(read: Callable[[str], object], text: str, complaint: str) -> None:
    """An unreadable value is shown, shortened, with the error."""
    with pytest.raises(ValueError, match=r".*") as caught:
        read(text)
    assert str(caught.value) == complaint
