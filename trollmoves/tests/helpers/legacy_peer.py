"""The earlier implementation, installed from PyPI in a separate venv, as a peer."""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from trollmoves.tests.helpers.daemons import Process, Sections, Testbed
from trollmoves.tests.servers.process import answers

VERSION = "0.19.0"
VARIABLE = "TROLLMOVES_OLD_PYTHON"  # names the python of a venv that has it, and s3fs
OLDEST = (3, 12)
INSTALL_SECONDS = 300


class PeerUnavailable(Exception):
    """The earlier implementation is not installed and cannot be; the text gives the reason."""


def server(testbed: Testbed, sections: Sections, port: int, name: str = "old-server") -> Process:
    """Return an old server, publishing on ``port``, not started yet."""
    config = testbed.config(sections, f"{name}.ini")
    command = [*_command("move_it_server.py"), str(config), "-p", str(port)]
    ports = [port, *(int(str(options["request_port"])) for options in sections.values())]
    return testbed.process(name, command, config, lambda _: all(map(answers, ports)), _environment(testbed))


def client(testbed: Testbed, sections: Sections, name: str = "old-client") -> Process:
    """Return an old client, not started yet."""
    config = testbed.config(sections, f"{name}.ini")
    ports = [int(str(options["publish_port"])) for options in sections.values()]
    command = [*_command("move_it_client.py"), str(config)]
    return testbed.process(name, command, config, lambda _: all(map(answers, ports)), _environment(testbed))


def dispatcher(testbed: Testbed, config: Path, port: int, name: str = "old-dispatcher") -> Process:
    """Return an old dispatcher that can write to S3, publishing on ``port``, not started yet."""
    command = [*_command("dispatcher.py", "s3fs"), str(config), "-p", str(port)]
    return testbed.process(name, command, config, lambda _: answers(port), _environment(testbed))


def mirror(testbed: Testbed, sections: Sections, port: int, name: str = "old-mirror") -> Process:
    """Return an old mirror, publishing on ``port``, not started yet; it is ready when it has logged something."""
    config = testbed.config(sections, f"{name}.ini")
    command = [*_command("move_it_mirror.py"), str(config), "-p", str(port)]
    return testbed.process(name, command, config, lambda one: bool(one.lines()), _environment(testbed))


def remove_it(testbed: Testbed, *arguments: str | Path) -> None:
    """Run the old remove_it.py."""
    command = [*_command("remove_it.py"), *map(str, arguments)]
    subprocess.run(command, env=_environment(testbed), check=True, capture_output=True, timeout=INSTALL_SECONDS)


def _command(script: str, *packages: str) -> list[str]:
    interpreter = python(*packages)
    if isinstance(interpreter, PeerUnavailable):
        pytest.skip(f"missing: {interpreter}")
    return [str(interpreter), str(interpreter.with_name(script))]


def _environment(testbed: Testbed) -> dict[str, str]:
    return {key: value for key, value in testbed.environment.items() if key not in ("PYTHONPATH", "PYTHONHOME")}


@functools.cache
def python(*packages: str) -> Path | PeerUnavailable:
    """Return the Python of the venv, which is made if it is missing, or the cached reason for a failure.

    A venv with further ``packages`` is a separate one: those delay the start of all commands.
    """
    try:
        named = os.environ.get(VARIABLE)
        return _checked(Path(named) if named else _cached(packages))
    except PeerUnavailable as missing:
        return missing


def _cached(packages: Sequence[str]) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trollmoves"
    base = _base_python()
    folder = cache / "-".join(["earlier", VERSION, *packages, base.name])
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / f"{folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / "complete").exists():
                _make(folder, base, packages)
    except OSError as error:
        raise PeerUnavailable(f"no place for a venv: {error}") from None
    return folder / "bin" / "python"


def _checked(interpreter: Path) -> Path:
    if not interpreter.with_name("move_it_server.py").exists():
        raise PeerUnavailable(f"trollmoves {VERSION} is not installed in the directory of {interpreter}")
    return interpreter


def _base_python() -> Path:
    for candidate in _candidates():
        shows = "import sys; print(*sys.version_info[:2])"
        try:
            recorded = subprocess.run([candidate, "-c", shows], capture_output=True, text=True, timeout=30, check=True)
        except (OSError, subprocess.SubprocessError):
            continue
        if tuple(map(int, recorded.stdout.split())) >= OLDEST:
            return Path(candidate)
    raise PeerUnavailable(f"trollmoves {VERSION} needs Python {OLDEST[0]}.{OLDEST[1]} or newer")


def _candidates() -> Iterator[str]:
    yield sys.executable
    if os.environ.get("NEWEST_PYTHON"):
        yield os.environ["NEWEST_PYTHON"]
    for minor in range(OLDEST[1], OLDEST[1] + 4):
        name = f"python{OLDEST[0]}.{minor}"
        found = shutil.which(name)
        if found:
            yield found
        yield from map(str, Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/{name}"))


def _make(folder: Path, base: Path, packages: Sequence[str]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    interpreter = str(folder / "bin" / "python")
    install = [interpreter, "-m", "pip", "install", "-q", f"trollmoves[server]=={VERSION}", *packages]
    for command in ([str(base), "-m", "venv", str(folder)], install):
        try:
            subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=True)
        except subprocess.CalledProcessError as error:
            last = (error.stderr or error.stdout).strip().rpartition("\n")[2]
            raise PeerUnavailable(f"trollmoves {VERSION} cannot be installed: {last}") from None
        except subprocess.TimeoutExpired:
            raise PeerUnavailable(f"trollmoves {VERSION} is not installed within {INSTALL_SECONDS} s") from None
    (folder / "complete").touch()
