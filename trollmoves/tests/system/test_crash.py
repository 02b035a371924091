"""A daemon killed at any failpoint: nothing is lost or partial, and no false receipt is published."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from trollmoves.tests.helpers.armed import FAILPOINTS, PLACES
from trollmoves.tests.helpers.crashing import (
    CASES,
    FAR,
    GROUPED,
    MOVED,
    Case,
    GroupScenario,
    RemoteScenario,
    S3Scenario,
    armed,
    crash,
    table,
)
from trollmoves.tests.helpers.daemons import REPOSITORY, Testbed
from trollmoves.tests.helpers.waiting import TIMEOUT_FACTOR
from trollmoves.tests.servers import seaweed

PAGE = REPOSITORY / "doc" / "reliability.md"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_killed_at(case: Case, testbed: Testbed) -> None:
    """After a kill at a failpoint and a restart: files complete and published, no leftovers, none removed too early."""
    crash(case, testbed)


@pytest.mark.parametrize("point", GROUPED, ids="-".join)
def test_killed_in_a_group(point: tuple[str, str], testbed: Testbed) -> None:
    """After a kill at any step of a request for several files, each of them is delivered and has a receipt."""
    crash(Case(*point, GroupScenario, "", GROUPED[point]), testbed)


@pytest.mark.slow
@pytest.mark.parametrize("step", MOVED)
@pytest.mark.parametrize("place", FAR, ids=lambda place: place.scheme)
def test_killed_while_delivering_to_another_host(place: type[RemoteScenario], step: str, testbed: Testbed) -> None:
    """A server killed during a transfer repeats it and leaves no partial at the destination."""
    crash(Case("server", step, place, "", MOVED[step]), testbed)


@pytest.mark.slow
@pytest.mark.skipif(bool(seaweed.missing()), reason=f"missing: {seaweed.missing()}")
@pytest.mark.parametrize("step", ["sending", "delivered"])
def test_killed_while_delivering_to_a_bucket(step: str, testbed: Testbed) -> None:
    """A server killed during an upload repeats it and leaves no unfinished one; the object is complete or absent."""
    scenario = crash(Case("server", step, S3Scenario, "", MOVED[step]), testbed)
    assert isinstance(scenario, S3Scenario)
    assert not scenario.s3.list_multipart_uploads(Bucket=seaweed.BUCKET).get("Uploads")


def test_every_failpoint_has_a_case() -> None:
    """Each failpoint has a place in the code, and a test case."""
    assert set(FAILPOINTS) == set(PLACES) == {case.failpoint for case in CASES}


@pytest.mark.skipif(not PAGE.exists(), reason="no checkout")
def test_table_in_reliability_page() -> None:
    """doc/reliability.md contains the output of python -m trollmoves.tests.helpers.crashing."""
    assert table() in PAGE.read_text()


@pytest.mark.skipif(not PAGE.exists(), reason="no checkout")
def test_tests_named_in_reliability_page_exist() -> None:
    """Each test that doc/reliability.md names exists."""
    sources = {path.name: path.read_text() for path in Path(__file__).parents[1].rglob("*.py")}
    named = set(re.findall(r"`(test_\w+(?:\.py)?)`", PAGE.read_text()))
    assert len(named) > 20
    assert {n for n in named if n not in sources and not any(f"def {n}(" in text for text in sources.values())} == set()


@pytest.mark.parametrize("argument", ["nowhere", "sent:0", "sent:x", "sent:", "sent", ":1"])
def test_unknown_failpoint(argument: str, testbed: Testbed) -> None:
    """An unknown failpoint is an error that lists the known ones."""
    process = testbed.client({})
    process.command = armed(process.command, argument)
    process.start(wait=False)
    assert process.popen is not None
    assert process.popen.wait(20 * TIMEOUT_FACTOR) == 1
    assert all(step in process.lines() for step in FAILPOINTS)
    assert "Traceback" not in process.lines()


def test_case_names_are_unique() -> None:
    """Each case has a unique name."""
    assert len({str(case) for case in CASES}) == len(CASES)
    assert all(dataclasses.is_dataclass(case) for case in CASES)
