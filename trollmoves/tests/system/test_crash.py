"""Whatever step a daemon dies at, nothing is lost, nothing half, and nothing told that is not so."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from trollmoves.tests.helpers.armed import FAILPOINTS
from trollmoves.tests.helpers.crashing import CASES, FAR, MOVED, Case, RemoteScenario, S3Scenario, armed, crash, table
from trollmoves.tests.helpers.daemons import REPOSITORY, Testbed
from trollmoves.tests.helpers.waiting import TIMEOUT_FACTOR
from trollmoves.tests.servers import seaweed

PAGE = REPOSITORY / "doc" / "reliability.md"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_killed_at(case: Case, testbed: Testbed) -> None:
    """A daemon that dies at a step makes good after its restart: all whole, told, tidy, none removed too early."""
    crash(case, testbed)


@pytest.mark.slow
@pytest.mark.parametrize("step", MOVED)
@pytest.mark.parametrize("place", FAR, ids=lambda place: place.scheme)
def test_killed_while_delivering_to_another_host(place: type[RemoteScenario], step: str, testbed: Testbed) -> None:
    """A server that dies in the middle of a transfer by any protocol sends it again, and leaves no partial there."""
    crash(Case("server", step, place, "", MOVED[step]), testbed)


@pytest.mark.slow
@pytest.mark.skipif(bool(seaweed.missing()), reason=f"missing: {seaweed.missing()}")
@pytest.mark.parametrize("step", ["sending", "delivered"])
def test_killed_while_delivering_to_a_bucket(step: str, testbed: Testbed) -> None:
    """A server that dies in the middle of an upload sends the file again; the object there is whole or not there."""
    crash(Case("server", step, S3Scenario, "", MOVED[step]), testbed)


def test_every_step_is_tried() -> None:
    """There is a case for each step."""
    assert {case.step for case in CASES} == set(FAILPOINTS)


@pytest.mark.skipif(not PAGE.exists(), reason="no checkout")
def test_the_table_is_in_the_page() -> None:
    """What a user sees of each kill is told in doc/reliability.md: python -m trollmoves.tests.helpers.crashing."""
    assert table() in PAGE.read_text()


@pytest.mark.skipif(not PAGE.exists(), reason="no checkout")
def test_the_tests_named_in_the_page_are_there() -> None:
    """Each test that doc/reliability.md names exists."""
    sources = {path.name: path.read_text() for path in Path(__file__).parents[1].rglob("*.py")}
    named = set(re.findall(r"`(test_\w+(?:\.py)?)`", PAGE.read_text()))
    assert len(named) > 20
    assert {n for n in named if n not in sources and not any(f"def {n}(" in text for text in sources.values())} == set()


@pytest.mark.parametrize("wish", ["nowhere", "sent:0", "sent:x", "sent:", "sent", ":1"])
def test_unknown_step(wish: str, testbed: Testbed) -> None:
    """A daemon that is to die at a step that there is not does not start, and lists those that there are."""
    process = testbed.client({})
    process.command = armed(process.command, wish)
    process.start(wait=False)
    assert process.popen is not None
    assert process.popen.wait(20 * TIMEOUT_FACTOR) == 1
    assert all(step in process.lines() for step in FAILPOINTS)
    assert "Traceback" not in process.lines()


def test_a_failpoint_does_nothing_in_production() -> None:
    """Without a test entry point a failpoint does nothing, whatever the environment says."""
    code = "from trollmoves.utils import failpoints; failpoints.hit('sent')"
    environment = {**os.environ, "TROLLMOVES_FAILPOINT": "sent"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=REPOSITORY)


def test_cases_have_names_of_their_own() -> None:
    """No two cases are one."""
    assert len({str(case) for case in CASES}) == len(CASES)
    assert all(dataclasses.is_dataclass(case) for case in CASES)
