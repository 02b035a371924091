"""The import rules: layers, cycles, and the one package that imports each library."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import trollmoves

PACKAGE = Path(trollmoves.__file__).parent
BIN = PACKAGE.parent / "bin"

# From the top down: the packages and modules directly below trollmoves. Each imports from lower layers only.
LAYERS = (
    ("bin", "__main__"),
    ("cli",),
    ("move_it", "move_it_server", "move_it_client", "move_it_mirror"),
    ("server", "client", "mirror", "dispatcher", "move_it_req", "move_file", "remove_it", "fetcher", "s3downloader"),
    ("fetching",),
    ("daemons",),
    ("provider", "receiver", "daemon", "filescleaner", "logging"),
    ("chains",),
    ("spool", "standby"),
    ("metrics", "monitor", "status"),
    ("config", "orders"),
    ("scheduler", "messaging", "movers", "watch"),
    ("unpacking",),
    ("matching", "utils", "control"),
    ("journal", "net"),
    ("errors",),
    ("trollmoves",),  # the version
)

# The one package that imports a library. Other engines of the journal have packages next to ``sqlite``.
OWNERS = {
    "sqlite3": "journal.sqlite",
    "psycopg": "journal.postgresql",
    "cryptography": "journal.postgresql",
    "zmq": "messaging",
    "posttroll": "messaging",
    "pyinotify": "watch",
    "netifaces": "net",
    "trollsift": "matching",
    "paramiko": "movers",
    "scp": "movers",
    "boto3": "movers",
    "botocore": "movers",
    "ftplib": "movers",
    "fsspec": "fetching",
    "aiohttp": "fetching",
    "prometheus_client": "metrics",
}


def layer(package: str) -> int:
    """Return the index of the layer of a package, counted from the top."""
    (index,) = [index for index, packages in enumerate(LAYERS) if package in packages]
    return index


def package_of(module: str) -> str:
    """Return the package or module directly below trollmoves that contains a module."""
    first, _, rest = module.partition(".")
    return rest.partition(".")[0] or first if first == "trollmoves" else first


def exists(module: str) -> bool:
    """Return True for a module or package of this project."""
    path = PACKAGE.parent.joinpath(*module.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def imported(source: str, module: str, *, is_package: bool = False) -> Iterator[str]:
    """Yield the full name of each import in a source: at the top, in functions, for type checking only."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")[: len(module.split(".")) - node.level + is_package]
                base = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def module_of(name: str) -> str:
    """Return the module of this project that defines an imported name."""
    while not exists(name):
        name = name.rpartition(".")[0]
    return name


@cache
def modules() -> dict[str, frozenset[str]]:
    """Return the imports of each module except the tests."""
    found = {}
    for path in [*PACKAGE.rglob("*.py"), *BIN.glob("*.py")]:
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if "tests" in parts:
            continue
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        found[name] = frozenset(imported(path.read_text(), name, is_package=is_package))
    return found


def project_imports(module: str) -> set[str]:
    """Return the modules of this project that a module imports."""
    return {module_of(name) for name in modules()[module] if name.partition(".")[0] == "trollmoves"}


def test_all_layers_are_read() -> None:
    """The modules of all layers are found."""
    assert len(modules()) > 80
    found = {package_of(module) for module in modules()}
    assert found >= {package for layer_ in LAYERS[1:] for package in layer_}
    assert "trollmoves.journal" in project_imports("trollmoves.scheduler.scheduler")
    if BIN.is_dir():
        assert "bin" in found


def test_each_package_is_in_one_layer() -> None:
    """Each package is listed in one layer; a new package must be added to the list."""
    listed = [name for packages in LAYERS for name in packages]
    assert len(set(listed)) == len(listed)
    unlisted = {package_of(module) for module in modules()} - set(listed)
    assert not unlisted, f"add to LAYERS: {sorted(unlisted)}"


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_point_downwards(module: str) -> None:
    """A module imports its own package and lower layers, and no tests."""
    own = package_of(module)
    wrong = {
        other
        for other in project_imports(module)
        if package_of(other) != own and layer(package_of(other)) <= layer(own)
    }
    assert not wrong


def test_no_import_cycles() -> None:
    """No chain of imports returns to its start, also within a package."""
    done: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"import cycle: {' -> '.join([*path, module])}"
        if module not in done:
            for other in sorted(project_imports(module) - {module}):
                walk(other, (*path, module))
            done.add(module)

    for module in modules():
        walk(module, ())


@pytest.mark.parametrize("library", OWNERS)
def test_each_library_has_one_importer(library: str) -> None:
    """A wrapped library is imported by its package, and by no other."""
    users = {module for module, names in modules().items() if library in {name.partition(".")[0] for name in names}}
    owner = f"trollmoves.{OWNERS[library]}"
    assert users
    assert not {module for module in users if not f"{module}.".startswith(f"{owner}.")}


@pytest.mark.parametrize("command", sorted(m for m in modules() if package_of(m) == "bin"))
def test_commands_import_one_main(command: str) -> None:
    """A command imports the main of one daemon or command, and nothing else of this project."""
    (main,) = project_imports(command)
    assert layer(package_of(main)) in (layer("move_it"), layer("server"))


def test_all_forms_of_import_are_read() -> None:
    """Imports are found at the top, in functions, for type checking, with an alias, and relative."""
    source = """
import sqlite3.dbapi2 as db
from trollmoves.net import urls
from trollmoves.movers import *
if TYPE_CHECKING:
    from ..journal import Journal

def f():
    import trollmoves.watch.inotify
    from . import sockets
"""
    assert set(imported(source, "trollmoves.messaging.subscriber")) == {
        "sqlite3.dbapi2",
        "trollmoves.net.urls",
        "trollmoves.movers.*",
        "trollmoves.journal.Journal",
        "trollmoves.watch.inotify",
        "trollmoves.messaging.sockets",
    }
    assert set(imported("from .base import Mover", "trollmoves.movers", is_package=True)) == {
        "trollmoves.movers.base.Mover"
    }
    assert module_of("trollmoves.movers.base.Mover") == "trollmoves.movers.base"
    assert module_of("trollmoves.movers.*") == "trollmoves.movers"
    assert module_of("trollmoves.__version__") == "trollmoves"
    assert package_of("trollmoves.movers.ftp") == "movers"
    assert package_of("trollmoves") == "trollmoves"
    assert package_of("bin.x") == "bin"


def test_each_module_has_a_row_in_the_architecture() -> None:
    """doc/architecture.md lists each module, in the row of its package, and no others."""
    listed, package = set(), ""
    for line in (PACKAGE.parent / "doc" / "architecture.md").read_text().splitlines():
        if row := re.match(r"\| (?:`([\w/]+/)`)? ?\| (.*?) \|", line):
            package = row[1] or package
            listed |= {f"{package}{name}".removeprefix("trollmoves/") for name in re.findall(r"`(\w+\.py)`", row[2])}
    modules = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if not path.name.startswith("__")}
    assert listed == {module for module in modules if not module.startswith("tests/")}
