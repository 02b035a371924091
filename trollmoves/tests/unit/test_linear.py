"""Names are matched as Python's and trollsift's expressions match them, in linear time."""

from __future__ import annotations

import random
import re
import time
import warnings
from collections.abc import Iterator

import pytest
from trollsift import parser as trollsift

from trollmoves.matching import linear
from trollmoves.matching.linear import LinearExpression
from trollmoves.matching.patterns import reader
from trollmoves.tests.helpers.fuzzing import scaled

LITERALS = ("", "_", "-", "__", "1", "x", ".", "a_", "/", "%", "\udcffé")
SPECS = (
    *("", "", "", "s", "d", "3d", "05d", "_<4s", "4s", "x", "c", "b"),
    *("%Y", "%Y%m", "%H%M", "%b", "%f", "f", "4.1f", "5.2f", "g"),
)
VALUES = ("2024", "202401", "1230", "Jan", "12.5", "-3", "_", "__", "", "0012", "1.25", "a b", "\n", "1e+5")
PARTS = {"*": "[^/]*?", "?": "[^/]"}
CPU_PER_CHARACTER = 400e-6  # s, for the slowest patterns; a name has at most 4096 characters


def random_parts(source: random.Random) -> list[tuple[str, str]]:
    """Return pieces of a pattern, each with its regular expression by trollsift; wildcards included."""
    pieces: list[tuple[str, str]] = []
    for _ in range(source.randint(1, 6)):
        literal = source.choice((*LITERALS, *PARTS))
        pieces.append((literal, PARTS.get(literal) or trollsift.regex_format(literal)))
        name, spec = source.choice("abcde"), source.choice(SPECS)
        field = f"{{{name}:{spec}}}" if spec else f"{{{name}}}"
        known = [text for text, _ in pieces if text.startswith(f"{{{name}")]
        if not known:
            pieces.append((field, trollsift.regex_format(field)))
        elif known[0] == field:
            pieces.append((field, f"(?P={name})"))
    return pieces


def random_name(source: random.Random, texts: list[str]) -> str:
    """Return a name that may match."""
    filled = [
        text
        if not text.startswith(("{", "*", "?"))
        else source.choice(VALUES)
        if source.random() < 0.5
        else "".join(source.choices("__-1123xa./ .+e", k=source.randint(0, 5)))
        for text in texts
    ]
    return "".join(filled) + source.choice(("", "", "_", "\n"))


def cases(count: int) -> Iterator[tuple[list[str], list[str], str]]:
    """Yield the texts of patterns, the parts of their expressions, and names."""
    source = random.Random(5)
    for _ in range(count):
        pieces = random_parts(source)
        texts = [text for text, _ in pieces]
        for _ in range(20):
            yield texts, [part for _, part in pieces], random_name(source, texts)


def test_names_match_as_by_re() -> None:
    """With atomic groups and without ``re``, a name has the same groups as by the plain expression."""
    matching = 0
    for _, parts, name in cases(scaled(150)):
        expected = re.compile("".join(parts), re.DOTALL).fullmatch(name)
        expression = LinearExpression(parts)
        fast = expression._re.fullmatch(name)
        wanted = expected.groups() if expected else None
        assert (fast.groups() if fast else None) == wanted, (parts, name)
        assert expression._program.run(name) == wanted, (parts, name)
        matching += wanted is not None
    assert matching > 100


def test_fields_are_trollsifts() -> None:
    """A pattern without wildcards finds the values that trollsift finds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Python, about dates without a year
        for texts, _, name in cases(scaled(400)):
            text, names = "".join(texts), re.findall(r"\{(\w)", "".join(texts))
            if "*" in text or "?" in text or not text or "\n" in name or len(set(names)) < len(names):
                continue
            try:
                expected = trollsift.parse(text, name)
            except ValueError:
                expected = None
            assert reader(text).read(name) == expected, (text, name)


@pytest.mark.alone
@pytest.mark.parametrize(
    "pattern",
    [
        "{platform_name}_{sensor}_{kind}_{level}_{area}_{number}.nc",
        "*_*_*_*_{a}_*_{b}x*.nc",
        "{a:s}{b:d}{c:s}{d:d}{e}_{f:s}.nc",
        "{a:f}{b:f}{c:f}{d:f}_x",
        "{a:4.1f}{b:4.1f}{c:4.1f}x",
        "{t:%b%f}{u:%f%b}{v:%f}x",
        "{a:d}{b:d}{c:d}{d:d}{e:d}{f:d}x",
    ],
)
def test_no_name_takes_long(pattern: str) -> None:
    """The time for a name grows with its length, whatever the name, with the worst patterns."""
    read = reader(pattern).read
    for unit in ("_", "1", "_1", ".", "1.", "a_"):
        for length in (20, 58, 59, 255, 446, linear.MAX_LENGTH):
            name = (unit * length)[:length]
            begin = time.thread_time()
            assert read(name) is None
            assert time.thread_time() - begin < 0.002 + CPU_PER_CHARACTER * length, (unit, length)
    assert read("_" * 10_000_000) is None


def test_a_repeated_field_takes_bounded_time() -> None:
    """A field that occurs several times is compared; a name for which that takes too long does not match."""
    read = reader("{a}_{b}_{a}_{c}_{b}x").read
    assert read("12_3_12_4_3x") == {"a": "12", "b": "3", "c": "4"}
    long = "alpha" * 10
    assert read(f"{long}_b_{long}_c_bx") == {"a": long, "b": "b", "c": "c"}
    begin = time.thread_time()
    assert read("_" * 255) is None
    assert time.thread_time() - begin < 2
