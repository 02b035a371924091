"""The list of defences that the tests notice is current."""

from __future__ import annotations

import pytest

from trollmoves.tests.helpers.defences import DEFENCES, PACKAGE, Defence


@pytest.mark.parametrize("defence", DEFENCES, ids=lambda one: one.name.replace(" ", "-"))
def test_defence_can_be_removed(defence: Defence) -> None:
    """The text of a defence occurs once, and its tests exist."""
    assert (PACKAGE / defence.module).read_text(encoding="utf-8").count(defence.text) == 1
    assert defence.text != defence.without
    for test in defence.tests:
        file, _, names = test.partition("::")
        text = (PACKAGE / "tests" / file).read_text(encoding="utf-8")
        for name in filter(None, names.split("::")):
            assert f"class {name}" in text or f"def {name}(" in text
