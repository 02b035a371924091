"""The content of an installed package."""

from __future__ import annotations

import email
import fcntl
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import ZipFile

import pytest

import trollmoves

CHECKOUT = Path(__file__).parents[3]
COMMANDS = sorted(path.name for path in (CHECKOUT / "bin").glob("*.py"))
SERVER = """
[hrit]
origin = {folder}/{{name}}.dat
topic = /hrit
request_port = 9094
"""
CLIENT = """
[hrit]
providers = localhost:9010
destination = file://{folder}
topic = /hrit
"""


def pip(*arguments: str | Path) -> None:
    """Run pip without network."""
    command = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the package from a copy, so that the build leaves nothing in the checkout."""
    pytest.importorskip("setuptools", minversion="71", reason="missing: setuptools")
    with made_once(tmp_path_factory, "wheel") as (folder, made):
        if not made:
            build_wheel(copied(folder / "source"), folder)
        return next(folder.glob("*.whl"))


def copied(source: Path) -> Path:
    """Copy the files that a package is built from."""
    source.mkdir()
    for name in ("trollmoves", "bin", "man"):
        shutil.copytree(CHECKOUT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, source)
    return source


def build_wheel(source: Path, folder: Path) -> None:
    """Build a wheel of a source directory or sdist."""
    pip("wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", folder, source)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the package without its dependencies, which are found in the test environment."""
    with made_once(tmp_path_factory, "installed") as (prefix, made):
        if not made:
            pip("install", "--no-deps", "--no-index", "--ignore-installed", "--prefix", prefix, wheel)
        return prefix


@contextmanager
def made_once(tmp_path_factory: pytest.TempPathFactory, name: str) -> Iterator[tuple[Path, bool]]:
    """Return a folder shared by the workers of a test run, under a lock, and whether a worker has filled it."""
    top = tmp_path_factory.getbasetemp()
    folder = (top.parent if "PYTEST_XDIST_WORKER" in os.environ else top) / name
    with folder.with_name(f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        complete = folder.with_name(f"{name}.complete")
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        yield folder, complete.exists()
        complete.touch()


def run(prefix: Path, command: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run an installed command with the installed package."""
    names = {"base": str(prefix), "platbase": str(prefix)}
    environment = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib", "venv", names)}
    script = Path(sysconfig.get_path("scripts", "venv", names), command)
    words = [str(script), *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False, cwd=prefix, env=environment)


def test_every_package_is_there(wheel: Path) -> None:
    """The package contains every module except the tests, the systemd units, the status page, and the man pages."""
    modules = {path.relative_to(CHECKOUT).as_posix() for path in (CHECKOUT / "trollmoves").rglob("*.py")}
    with ZipFile(wheel) as archive:
        held = set(archive.namelist())
    folders = [CHECKOUT / "trollmoves" / "systemd", CHECKOUT / "trollmoves" / "cli" / "web" / "static"]
    data = {path.relative_to(CHECKOUT).as_posix() for folder in folders for path in folder.iterdir()}
    expected = {name for name in modules if not name.startswith("trollmoves/tests/")} | data | {"trollmoves/py.typed"}
    assert {name for name in held if name.startswith("trollmoves/")} == expected
    pages = {name.rpartition("/")[2] for name in held if "/share/man/man1/" in name}
    assert pages == {f"{command}.1" for command in os.listdir(CHECKOUT / "bin")}


def test_sdist_builds_the_same_package(wheel: Path, tmp_path: Path) -> None:
    """The wheel of an sdist has the files of the wheel of a checkout."""
    code = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    source = copied(tmp_path / "source")
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=source, check=True, capture_output=True)
    (sdist,) = tmp_path.glob("*.tar.gz")
    build_wheel(sdist, tmp_path)
    (rebuilt,) = tmp_path.glob("*.whl")
    with ZipFile(wheel) as expected, ZipFile(rebuilt) as archive:
        assert sorted(archive.namelist()) == sorted(expected.namelist())


@pytest.mark.slow
def test_bare_environment(wheel: Path, tmp_path: Path) -> None:
    """In an environment with only the declared dependencies, each command runs."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    scripts = tmp_path / "venv" / "bin"
    command = [str(scripts / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", str(wheel)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if "No matching distribution found" in done.stderr:
        pytest.skip("missing: a package index with the dependencies")
    assert done.returncode == 0, done.stderr
    for name in os.listdir(CHECKOUT / "bin"):
        done = subprocess.run(
            [str(scripts / name), "--help"], env=environment, capture_output=True, text=True, check=False
        )
        assert (name, done.stderr, done.returncode) == (name, "", 0)


def test_dependencies(wheel: Path) -> None:
    """A plain installation has the libraries of all protocols; the extras of 0.19 exist."""
    with ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    required = {
        re.split(r"[^\w-]", text)[0] for text in metadata.get_all("Requires-Dist", []) if "extra ==" not in text
    }
    assert required >= {"posttroll", "pyinotify", "paramiko", "scp", "boto3", "netifaces-plus", "pyyaml"}
    extras = {extra.replace("-", "_") for extra in metadata.get_all("Provides-Extra", [])}
    assert extras >= {"all", "server", "remote_fs", "fetcher", "s3", "ssh", "docs"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_runs(installed: Path, command: str) -> None:
    """Each command of bin/ is installed under its name, and prints its help."""
    done = run(installed, command, "--help")
    assert (done.stderr, done.returncode) == ("", 0)
    assert command in done.stdout


@pytest.mark.parametrize(
    ("command", "text"), [("move_it_server.py", SERVER), ("move_it_client.py", CLIENT)], ids=["server", "client"]
)
def test_installed_daemons_check_their_configuration(installed: Path, tmp_path: Path, command: str, text: str) -> None:
    """An installed daemon prints its version, and lists the sections of its configuration."""
    assert run(installed, command, "--version").stdout == f"trollmoves {trollmoves.__version__}\n"
    config = tmp_path / "moves.ini"
    config.write_text(text.format(folder=tmp_path))
    done = run(installed, command, "--check", config)
    assert (done.returncode, done.stderr) == (0, "")
    assert "[hrit]" in done.stdout


def test_conda_recipe_has_the_dependencies() -> None:
    """The conda recipe has the dependencies of the package, and starts each command."""
    recipe = (CHECKOUT / "packaging/conda/meta.yaml").read_text()
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    (listed,) = re.findall(r"^  run:\n((?:    - .*\n)+)", recipe, re.MULTILINE)
    required = {re.split(r" *#", line.removeprefix("    - "))[0].replace(" ", "") for line in listed.splitlines()}
    declared = {re.split(r" *;", text)[0].replace(" ", "") for text in project["dependencies"]}
    assert required == declared | {"python"}
    assert set(re.findall(r"^    - (\S+) --", recipe, re.MULTILINE)) == set(os.listdir(CHECKOUT / "bin"))
    assert all(f"- {name} = {target}\n" in recipe for name, target in project["scripts"].items())
