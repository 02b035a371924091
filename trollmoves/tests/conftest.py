"""Shared fixtures, the rule for skipped tests on CI, and exclusive runs of tests marked ``alone``."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from trollmoves.net.redaction import known_secrets
from trollmoves.tests.helpers.daemons import Testbed
from trollmoves.tests.helpers.journals import stop_shared_server
from trollmoves.tests.helpers.machine_load import BUSY_SHARE, OtherLoad

# Reasons of skips that an installation would have made unnecessary: "missing: vsftpd", "no vsftpd (Debian: vsftpd)".
MISSING = re.compile(r"(Skipped: )?(missing:|could not import|no .*\((Debian|PyPI)\b)")

HERE = os.path.dirname(__file__)
TURNSTILE, RUNNING = (
    os.path.join(HERE, "conftest.py"),
    os.path.join(HERE, "__init__.py"),
)  # files to lock, never changed

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell sets it for background jobs
    signal.signal(signal.SIGINT, signal.default_int_handler)  # for our children: some are ended so

# Without bytecode, each of thousands of processes would compile all modules.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

_ON_CI = os.environ.get("CI", "").lower() in ("1", "true")


@pytest.fixture(autouse=True)
def _forget_secrets() -> Iterator[None]:
    """Forget the secrets of a test, which may be words in the texts of the next."""
    yield
    known_secrets.cache_clear()


@pytest.fixture
def testbed(tmp_path: Path) -> Iterator[Testbed]:
    """Return a testbed for one test."""
    with Testbed(tmp_path) as testbed:
        yield testbed


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test on CI that is skipped because a dependency is missing."""
    report = yield
    _judge(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Fail a module on CI that is skipped because a dependency is missing."""
    report = yield
    _judge(report)
    return report


def pytest_sessionfinish() -> None:
    """Stop the server that tests share."""
    stop_shared_server()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run tests marked ``alone`` first, then slow ones, to shorten the total run.

    Each test marked ``alone`` waits for the running tests. At the beginning those of the other workers are short.
    """
    items.sort(key=lambda item: 0 if _marked(item, "alone") else 1 if _marked(item, "slow") else 2)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # outside the timeout of a test, which must not include this wait
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, bool, bool]:
    """Keep other pytest-xdist workers from starting a test while one marked ``alone`` runs.

    Each test holds a shared lock on RUNNING, an ``alone`` test an exclusive one. A worker that waits for it holds
    TURNSTILE, so that no further test starts.
    """
    if not hasattr(item.config, "workerinput"):
        return (yield)
    with open(TURNSTILE, "rb") as turnstile, open(RUNNING, "rb") as running:
        fcntl.flock(turnstile, fcntl.LOCK_EX)
        fcntl.flock(running, fcntl.LOCK_EX if _marked(item, "alone") else fcntl.LOCK_SH)
        fcntl.flock(turnstile, fcntl.LOCK_UN)
        try:
            return (yield)
        finally:
            fcntl.flock(running, fcntl.LOCK_UN)  # a child that the test forked may have it open still


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Skip a failed measurement if processes outside this test run kept the machine busy."""
    if not _marked(item, "alone"):
        return (yield)
    others = OtherLoad()
    try:
        return (yield)
    except AssertionError:
        if others.share() > BUSY_SHARE:
            pytest.skip(f"others used {others.share():.0%} of this machine during the measurement")
        raise


def _marked(item: pytest.Item, name: str) -> bool:
    return item.get_closest_marker(name) is not None


def _judge(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not (_ON_CI and report.skipped and isinstance(report.longrepr, tuple)):
        return
    file, line, reason = report.longrepr
    if MISSING.match(reason):
        report.outcome = "failed"
        report.longrepr = f"{file}:{line}: skipped on CI, which is to have it: {reason}"
