"""The examples on the page for operators work as shown."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from trollmoves.tests.helpers.daemons import REPOSITORY


def test_unit(tmp_path: Path) -> None:
    """Systemd finds nothing wrong with the unit."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("missing: systemd-analyze (Debian: systemd)")
    page = (REPOSITORY / "doc" / "operating.md").read_text()
    (text,) = re.findall(r"^```ini\n(\[Unit\].*?)^```", page, re.MULTILINE | re.DOTALL)
    unit = tmp_path / "trollmoves-server.service"
    unit.write_text(text)
    found = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60, check=False)
    assert (found.returncode, found.stderr) == (0, "")
