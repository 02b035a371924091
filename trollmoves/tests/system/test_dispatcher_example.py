"""The dispatcher's documents match its behaviour."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from trollmoves.config.dispatcher_file import read_dispatcher_config
from trollmoves.tests.helpers.daemons import REPOSITORY, Testbed, script
from trollmoves.tests.helpers.waiting import until

PAGE = REPOSITORY / "doc" / "dispatcher.md"
EXAMPLE = REPOSITORY / "examples" / "dispatcher"
pytestmark = pytest.mark.skipif(not EXAMPLE.exists(), reason="the examples are not installed with the package")


def test_dispatcher_page(tmp_path: Path) -> None:
    """The YAML and the INI file on the page are valid and equivalent."""
    blocks = [re.search(f"```{kind}\n(.*?)```", PAGE.read_text(), re.DOTALL) for kind in ("yaml", "ini")]
    found = []
    for number, block in enumerate(blocks):
        assert block
        (tmp_path / str(number)).write_text(block[1])
        found.append(read_dispatcher_config(tmp_path / str(number)))
    assert found[0].sections == found[1].sections
    assert found[0].process == found[1].process
    assert found[0].warnings == found[1].warnings == ()


def test_example_files_are_equivalent() -> None:
    """The two configurations of the example are equivalent."""
    yaml, ini = read_dispatcher_config(EXAMPLE / "dispatch.yaml"), read_dispatcher_config(EXAMPLE / "dispatch.ini")
    assert yaml.sections == ini.sections
    assert yaml.process == ini.process
    assert yaml.warnings == ini.warnings == ()


@pytest.mark.parametrize("name", ["dispatch.yaml", "dispatch.ini"])
def test_dispatcher_example(testbed: Testbed, name: str) -> None:
    """The example delivers the files that its README lists, and explains the others."""
    folder = testbed.root / "example"
    shutil.copytree(EXAMPLE, folder)
    port = testbed.port()
    config = folder / name
    config.write_text(config.read_text().replace("9040", str(port)))
    here = ["env", "-C", str(folder), sys.executable]
    testbed.process("dispatcher", [*here, script("dispatcher.py"), name, "-p", "-n", "false"], config).start()
    subprocess.run([*here, "publish.py", "--port", str(port)], check=True, timeout=30, stdout=subprocess.DEVNULL)
    listing = re.search(r"```\n(delivered/.*?)```", (EXAMPLE / "README.md").read_text(), re.DOTALL)
    assert listing
    wanted = listing[1].split()
    until(lambda: all((folder / path).exists() for path in wanted), what=f"{wanted}")
    assert sorted(str(p.relative_to(folder)) for p in (folder / "delivered").rglob("*") if p.is_file()) == wanted
    given = folder / "products" / "20250102_0304_fog.message"
    explained = testbed.run("dispatcher.py", "--explain", given, config).stdout
    assert "no: product is 'fog', not one of 'overview', 'natural_color'" in explained
