"""What holds for a whole run of the tests: its signals, and what a skip counts for."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator

import pytest

MISSING = "missing:"  # how the reason of a skip begins when an installation would help

_IMPORTORSKIP = "could not import"
_ON_CI = os.environ.get("CI", "").lower() in ("1", "true")


def pytest_configure() -> None:
    """Hear a Ctrl-C: what a shell runs in the background ignores it, and the processes of the tests inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test on CI that is skipped because something is missing."""
    report = yield
    _judge(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Fail a module on CI that is skipped because something is missing."""
    report = yield
    _judge(report)
    return report


def _judge(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not (_ON_CI and report.skipped and isinstance(report.longrepr, tuple)):
        return
    file, line, reason = report.longrepr
    reason = reason.removeprefix("Skipped: ")
    if reason.startswith((MISSING, _IMPORTORSKIP)):
        report.outcome = "failed"
        report.longrepr = f"{file}:{line}: skipped on CI, which is to have it: {reason}"
