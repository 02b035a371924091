"""Tests that the house has the floors that it is drawn with: arrows go down only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import trollmoves

PACKAGE = Path(trollmoves.__file__).parent
BIN = PACKAGE.parent / "bin"

# From the top down. A room is a module or a package of trollmoves, and imports what stands below it, nothing else.
FLOORS = (
    ("bin",),
    # the daemons, and the commands for people
    ("server", "client", "mirror", "dispatcher", "move_it_req", "move_file"),
    ("copies",),
    # the two halves of the conversation, who dispatches, and the process
    ("provider", "receiver", "dispatch", "daemon"),
    # work, configuration, and what appears in directories
    ("workers", "config", "watch"),
    ("lanes", "sections"),
    ("options",),
    # tools that know nothing of each other
    (
        "journal",
        "movers",
        "messaging",
        "patterns",
        "unpacking",
        "remote_files",
        "conditions",
        "values",
        "credentials",
        "links",
        "allowed_destinations",
    ),
    ("archives", "allowed_clients"),
    # the ground
    ("logs",),
    ("urls", "steps"),
    ("errors", "clock", "pace", "hosts", "scheduling"),
    ("trollmoves",),  # the version
)

# Whose business a library is, and nobody else's.
OWNERS = {
    "sqlite3": "journal",
    "zmq": "messaging",
    "posttroll": "messaging",
    "pyinotify": "watch",
    "netifaces": "hosts",
    "trollsift": "patterns",
    "paramiko": "movers",
    "scp": "movers",
    "boto3": "movers",
    "botocore": "movers",
    "s3transfer": "movers",
    "ftplib": "movers",
}


def floor(room: str) -> int:
    """Give the number of a room's floor, from the top."""
    (number,) = [number for number, rooms in enumerate(FLOORS) if room in rooms]
    return number


def room(module: str) -> str:
    """Give the room of a module."""
    first, _, rest = module.partition(".")
    return rest.partition(".")[0] or first if first == "trollmoves" else first


def exists(module: str) -> bool:
    """Tell whether this is a module or package of ours."""
    path = PACKAGE.parent.joinpath(*module.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def imported(source: str, module: str, *, is_package: bool = False) -> Iterator[str]:
    """Give the full name of whatever a source imports, wherever in it: at its top, in a function, for types only."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")[: len(module.split(".")) - node.level + is_package]
                base = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def ours(name: str) -> str:
    """Give the module of ours that an imported name comes from."""
    while not exists(name):
        name = name.rpartition(".")[0]
    return name


@cache
def modules() -> dict[str, frozenset[str]]:
    """Give what each module imports, without the tests."""
    found = {}
    for path in [*PACKAGE.rglob("*.py"), *BIN.glob("*.py")]:
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if "tests" in parts:
            continue
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        found[name] = frozenset(imported(path.read_text(), name, is_package=is_package))
    return found


def arrows(module: str) -> set[str]:
    """Give the modules of ours that a module imports."""
    return {ours(name) for name in modules()[module] if name.partition(".")[0] == "trollmoves"}


def test_the_whole_house_is_looked_at() -> None:
    """The modules of all floors, down to the ground, are found."""
    assert len(modules()) > 40
    assert {"server", "workers", "journal", "movers", "messaging", "watch", "errors"} <= {room(m) for m in modules()}
    assert "trollmoves.journal" in arrows("trollmoves.workers")
    if BIN.is_dir():
        assert "bin" in {room(module) for module in modules()}


def test_every_room_has_one_floor() -> None:
    """Each room stands on one floor; a new one is put into the list before anything is put into it."""
    standing = [name for rooms in FLOORS for name in rooms]
    assert len(set(standing)) == len(standing)
    homeless = {room(module) for module in modules()} - set(standing)
    assert not homeless, f"put these rooms on a floor: {sorted(homeless)}"


@pytest.mark.parametrize("module", sorted(modules()))
def test_arrows_go_down_only(module: str) -> None:
    """A module imports from lower floors and from its own package, from no neighbour, nothing above, and no tests."""
    wrong = {
        other for other in arrows(module) if room(other) != room(module) and floor(room(other)) <= floor(room(module))
    }
    assert not wrong


def test_there_is_no_circle() -> None:
    """No chain of imports, also within a package, comes back to where it began."""
    done: set[str] = set()

    def walk(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, f"a circle: {' -> '.join([*way, module])}"
        if module not in done:
            for other in sorted(arrows(module) - {module}):
                walk(other, (*way, module))
            done.add(module)

    for module in modules():
        walk(module, ())


@pytest.mark.parametrize("library", OWNERS)
def test_a_library_has_one_user(library: str) -> None:
    """A library that a room wraps is imported in that room alone."""
    users = {room(m) for m, names in modules().items() if library in {name.partition(".")[0] for name in names}}
    assert users <= {OWNERS[library]}


@pytest.mark.parametrize("command", sorted(m for m in modules() if room(m) == "bin"))
def test_commands_import_one_main(command: str) -> None:
    """A command imports the main of one daemon, or of one command for people, and nothing else of ours."""
    (main,) = arrows(command)
    assert floor(room(main)) == 1


def test_whatever_way_it_is_imported() -> None:
    """An import counts at the top, in a function, for types only, with another name, and from a package's neighbour."""
    source = """
import sqlite3.dbapi2 as db
from trollmoves import urls
from trollmoves.movers import *
if TYPE_CHECKING:
    from ..journal import Journal

def f():
    import trollmoves.watch.kernel
    from . import sockets
"""
    assert set(imported(source, "trollmoves.messaging.listener")) == {
        "sqlite3.dbapi2",
        "trollmoves.urls",
        "trollmoves.movers.*",
        "trollmoves.journal.Journal",
        "trollmoves.watch.kernel",
        "trollmoves.messaging.sockets",
    }
    assert set(imported("from .base import Mover", "trollmoves.movers", is_package=True)) == {
        "trollmoves.movers.base.Mover"
    }
    assert ours("trollmoves.movers.base.Mover") == "trollmoves.movers.base"
    assert ours("trollmoves.movers.*") == "trollmoves.movers"
    assert ours("trollmoves.__version__") == "trollmoves"
    assert [room(name) for name in ("trollmoves", "trollmoves.journal", "trollmoves.movers.ftp", "bin.x")] == [
        "trollmoves",
        "journal",
        "movers",
        "bin",
    ]
