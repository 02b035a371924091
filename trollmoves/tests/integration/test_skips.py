"""The effect of a skipped test on CI."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MODULE = """
import pytest

def test_server():
    pytest.skip("missing: openssh-server")

@pytest.fixture
def server():
    pytest.skip("missing: vsftpd")

def test_fixture(server):
    pass

def test_library():
    pytest.importorskip("no_such_library")

@pytest.mark.skipif(True, reason="no ip (Debian: iproute2)")
def test_mark():
    pass

def test_other():
    pytest.skip("not for root")
"""
LIBRARY = 'import pytest\npytest.importorskip("no_such_library")\n'


@pytest.mark.parametrize(("ci", "outcome"), [("true", "2 failed, 1 skipped, 3 errors"), ("", "6 skipped")])
def test_something_missing_is_a_failure_on_ci(tmp_path: Path, ci: str, outcome: str) -> None:
    """A test that is skipped because something is missing fails on CI, and only there."""
    (tmp_path / "test_some.py").write_text(MODULE)
    (tmp_path / "test_library.py").write_text(LIBRARY)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "trollmoves.tests.conftest", str(tmp_path)]
    options = ["--rootdir", str(tmp_path), "--continue-on-collection-errors"]
    environment = {**os.environ, "CI": ci}
    done = subprocess.run(command + options, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert done.stdout.splitlines()[-1].startswith(outcome), done.stdout
