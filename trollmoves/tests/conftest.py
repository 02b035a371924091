"""What a skip counts for."""

from __future__ import annotations

import os
import re
from collections.abc import Generator

import pytest

# Reasons of skips that an installation would have made unnecessary: "missing: vsftpd", "no vsftpd (Debian: vsftpd)".
MISSING = re.compile(r"(Skipped: )?(missing:|could not import|no .*\((Debian|PyPI)\b)")

_ON_CI = os.environ.get("CI", "").lower() in ("1", "true")


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
    if MISSING.match(reason):
        report.outcome = "failed"
        report.longrepr = f"{file}:{line}: skipped on CI, which is to have it: {reason}"
