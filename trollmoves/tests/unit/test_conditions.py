"""Does this message match?"""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from trollmoves.matching import conditions
from trollmoves.matching.received_time import read_time

METADATA: dict[str, Any] = {
    "product": "green",
    "sensor": ["viirs", "x"],
    "num": 5,
    "fraction": 5.5,
    "text": "7",
    "negative": "-3",
    "word": "abc",
    "none": None,
    "true": True,
    "empty": "",
    "time": dt.datetime(2025, 1, 2, 3, 4, 5),  # noqa: DTZ001  (as older messages have it)
}

# Results of the earlier implementation for the same conditions; where it crashed, the intended ones.
MATCHING: list[Any] = [
    [{"product": "green"}],
    [{"product": ["red", "green"]}],
    [{"num": 5}],
    [{"num": [4, 5]}],
    [{"text": "7"}],
    [{"num": "<6"}],
    [{"num": "< 6"}],
    [{"num": "<6.0"}],
    [{"num": "<=5"}],
    [{"num": ">4.5"}],
    [{"num": ">=5"}],
    [{"num": "==5"}],
    [{"num": "=5"}],
    [{"num": "!=4"}],
    [{"fraction": ">5"}],
    [{"text": "<10"}],
    [{"negative": "<0"}],
    [{"sensor": [["viirs", "x"]]}],
    [{"true": True}],
    [{"none": None}],
    [{"empty": ""}],
    [{"time": dt.datetime(2025, 1, 2, 3, 4, 5)}],  # noqa: DTZ001
    [{"product": "green", "num": ">4"}],
    [{"nothere": "x"}, {"product": "green"}],
    [{"nothere": "<5"}, {"product": "green"}],
    [{"except": {"product": "red"}}],
    [{"product": "green", "except": {"num": 4}}],
    [{"except": {"product": "green", "num": 4}}],
    [{"except": {"except": {"product": "green"}}}],
    [{"except": [{"product": "red"}, {"num": 6}]}],
    [{"except": {"product": "red", "nothere": 1}}],
    [{}],
    {"product": "green", "num": 5},
    {"product": "green", "except": {"num": 4}},
]
OTHERS: list[Any] = [
    [{"product": "red"}],
    [{"product": ["red"]}],
    [{"product": []}],
    [{"num": "5"}],
    [{"num": "<5"}],
    [{"num": "!=5"}],
    [{"num": "=6"}],
    [{"num": " <6"}],
    [{"num": [">4"]}],
    [{"num": {"a": "b"}}],
    [{"text": 7}],
    [{"text": ">10"}],
    [{"word": "<5"}],
    [{"word": "!=5"}],
    [{"none": "<5"}],
    [{"sensor": "<5"}],
    [{"sensor": "viirs"}],
    [{"sensor": ["viirs", "x"]}],
    [{"nothere": "green"}],
    [{"nothere": None}],
    [{"nothere": "!=5"}],
    [{"time": "2025-01-02T03:04:05"}],
    [{"time": dt.datetime(2025, 1, 2, 3, 4, 5, tzinfo=dt.UTC)}],
    [{"product": "green", "num": ">5"}],
    [{"except": {"product": "green"}}],
    [{"except": {"nothere": "red"}}],
    [{"except": {"nothere": "<5"}}],
    [{"except": {"word": "<5"}}],
    [{"except": {"product": ["red", "green"]}}],
    [{"except": {"num": ">4"}}],
    [{"except": [{"product": "red"}, {"num": 5}]}],
    [{"except": {}}],
    [{"product": "green", "except": {"num": 5}}],
    [],
    {},
    {"product": "green", "num": 4},
]


@pytest.mark.parametrize("given", MATCHING, ids=str)
def test_matching(given: Any) -> None:
    """Metadata that fulfil conditions match, without a reason for a mismatch."""
    found = conditions.parse_conditions(given)
    assert found.mismatch_reason(METADATA) == ""


@pytest.mark.parametrize("given", OTHERS, ids=str)
def test_not_matching(given: Any) -> None:
    """Metadata that do not provably fulfil conditions do not match, with a reason."""
    found = conditions.parse_conditions(given)
    assert found.mismatch_reason(METADATA)


@pytest.mark.parametrize("given", [{"a": "20250101"}, {"a": ["x", "20250101"]}, {"a": dt.datetime(2025, 1, 1)}])  # noqa: DTZ001
def test_text_that_reads_as_a_time(given: Any) -> None:
    """A received text that reads as a time matches the same text, a number and a time."""
    metadata = {"a": read_time("20250101")}
    assert conditions.parse_conditions(given).mismatch_reason(metadata) == ""
    assert conditions.parse_conditions({"a": ">20250100"}).mismatch_reason(metadata) == ""
    assert conditions.parse_conditions({"a": "x"}).mismatch_reason(metadata) == "a is '20250101', not 'x'"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([{"product": "red"}], "product is 'green', not 'red'"),
        ([{"product": ["red", "blue"]}], "product is 'green', not one of 'red', 'blue'"),
        ([{"num": "<=4"}], "num is 5, not <= 4"),
        ([{"word": "<4"}], "word is 'abc', not a number"),
        ([{"nothere": 1}], "nothere is missing"),
        ([{"product": "red"}, {"nothere": 1}], "product is 'green', not 'red'; nothere is missing"),
        ([{"except": {"product": "green"}}], "the conditions of except match"),
        ([], "an empty list of conditions matches nothing"),
    ],
)
def test_reason(given: Any, reason: str) -> None:
    """The reason names the key, the value and the condition."""
    assert conditions.parse_conditions(given).mismatch_reason(METADATA) == reason


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ("green", "conditions must be a list or keys with values, not 'green'"),
        (None, "not None"),
        (["green"], "a condition must be keys with values, not 'green'"),
        ([{"except": "green"}], "a condition must be keys with values"),
        ([{"except": ["green"]}], "a condition must be keys with values"),
        ([{"num": "<"}], "the condition of num must compare with a number: '<'"),
        ([{"num": "<abc"}], "must compare with a number"),
        ([{"num": "<nan"}], "must compare with a number"),
        ([{"num": "=>5"}], "begins with the unknown operator '=>'; use one of < <= > >= = == !="),
        ([{"num": "!5"}], "begins with the unknown operator '!'"),
        ([{"num": "<>5"}], "begins with the unknown operator '<>'"),
        ([{"num": '<__import__("os").getpid()'}], "must compare with a number"),
        ([{"num": "< 5 or True"}], "must compare with a number"),
    ],
)
def test_no_conditions(given: Any, part: str) -> None:
    """What makes no sense is refused with the reason, and nothing in it is ever run."""
    with pytest.raises(ValueError, match="condition") as caught:
        conditions.parse_conditions(given)
    assert part in str(caught.value)


def test_compared_with_one_another() -> None:
    """Conditions are equal if they have the same meaning, so that a reload detects changes."""
    assert conditions.parse_conditions(MATCHING[1]) == conditions.parse_conditions([{"product": ["red", "green"]}])
    assert conditions.parse_conditions(MATCHING[1]) != conditions.parse_conditions(MATCHING[0])


def test_anything_in_a_message() -> None:
    """No value in a message, however odd, is more than no match."""
    given = conditions.parse_conditions([{"a": "<5"}, {"a": ["x"]}, {"except": {"a": "<5"}}])
    odd: list[Any] = [None, [], {}, "x" * 10_000, 10**400, "nan", "inf", float("nan"), b"x", {"a": {"b": []}}]
    for value in odd:
        given.mismatch_reason({"a": value})
    assert len(given.mismatch_reason({"a": "y" * 10_000})) < 500


def test_is_comparison() -> None:
    """A text that begins as a comparison is one, so that it can be warned about where it is none."""
    assert conditions.is_comparison(">5")
    assert not conditions.is_comparison("green")
    assert not conditions.is_comparison(5)
