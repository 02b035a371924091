"""The Debian package: built, checked by lintian, and installed under a systemd that was booted for the test."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import trollmoves
from trollmoves.tests.helpers.daemons import REPOSITORY, Testbed, client_section, ini, server_section
from trollmoves.tests.helpers.feeding import names
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers.booted_systemd import BootedSystemd

TOOLS = {
    "dpkg-buildpackage": "dpkg-dev",
    "dh": "debhelper",
    "lintian": "lintian",
    "gcc": "build-essential",
    "adduser": "adduser",
}
SERVER, CLIENT = "trollmoves-server@hrit.service", "trollmoves-client@out.service"
COMMANDS = sorted(path.name for path in (REPOSITORY / "bin").iterdir())


def build(folder: Path) -> Path:
    """Build the package; skip the test if a requirement is missing."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    for program, package in TOOLS.items():
        if not shutil.which(program, path=path):
            pytest.skip(f"missing: no {program} (Debian: {package})")
    fast = {"DPKG_DEB_COMPRESSOR_TYPE": "gzip", "DPKG_DEB_COMPRESSOR_LEVEL": "1"}
    environment = {**os.environ, **fast, "PATH": path}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [REPOSITORY / "packaging" / "build-deb", folder], env=environment, capture_output=True, text=True, check=False
    )
    if "No matching distribution found" in done.stderr:
        pytest.skip("missing: a package index with the Python packages that are included")
    assert done.returncode == 0, done.stdout + done.stderr
    return Path(done.stdout.strip())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_life_of_the_package(testbed: Testbed) -> None:
    """The package installs, runs as its user, restarts daemons at an upgrade, and is removed and purged completely."""
    booted = BootedSystemd(testbed)
    package = build(testbed.logs)
    shutil.copy(package, booted.root / "root/trollmoves.deb")
    booted.run("rm", "-f", "/usr/sbin/policy-rc.d")  # in images of containers it forbids to restart services

    before = named_trollmoves(booted)
    booted.run("dpkg", "--install", "/root/trollmoves.deb")
    version = f"trollmoves {trollmoves.__version__}\n"
    assert booted.run("env", "-u", "PYTHONPATH", "/usr/bin/trollmoves", "--version") == version
    for command in COMMANDS:
        assert (booted.root / "usr/bin" / command).readlink() == Path("../lib/trollmoves/bin", command)
        assert (booted.root / f"usr/share/man/man1/{command}.1.gz").exists()
    assert booted.run("stat", "--format=%U %a", "/etc/trollmoves") == "root 755\n"

    booted.run("mkdir", "-p", "/data/in", "/data/out")
    booted.run("chown", "trollmoves:", "/data/out")
    booted.write("/etc/trollmoves/hrit.ini", ini({"hrit": server_section(Path("/data/in"), 9094)}))
    booted.write("/etc/trollmoves/out.ini", ini({"hrit": client_section(9010, "/data/out", 9012)}))
    booted.run("systemctl", "enable", "--now", SERVER, CLIENT)
    pid = booted.property(SERVER, "MainPID")
    assert booted.run("stat", "--format=%U", f"/proc/{pid}") == "trollmoves\n"
    deliver(booted, 0)

    booted.run("dpkg", "--install", "/root/trollmoves.deb")
    assert booted.property(SERVER, "ActiveState") == "active"
    assert booted.property(SERVER, "MainPID") != pid
    deliver(booted, 1)

    booted.run("dpkg", "--remove", "trollmoves")
    assert booted.fails("pgrep", "--uid", "trollmoves")
    assert not (booted.root / "usr/lib/trollmoves").exists()
    assert len(list((booted.root / "var/lib/trollmoves").glob("*.journal"))) == 2

    booted.run("dpkg", "--purge", "trollmoves")
    assert "trollmoves" not in booted.run("cat", "/etc/passwd", "/etc/group")
    assert sorted(os.listdir(booted.root / "etc/trollmoves")) == ["hrit.ini", "out.ini"]
    assert named_trollmoves(booted) - before == set()


def named_trollmoves(booted: BootedSystemd) -> set[str]:
    """Return the paths that contain the name of the package, except the configuration: it is not removed."""
    words = ["-xdev", "-name", "*trollmoves*", "-not", "-path", "/etc/trollmoves*"]
    return set(booted.run("find", "/etc", "/usr", "/var", *words).splitlines())


def deliver(booted: BootedSystemd, number: int) -> None:
    """Create a file for the server, and wait until the client has it."""
    name = next(names(number))
    booted.write(f"/data/in/{name}", "content")
    until(lambda: (booted.root / "data/out" / name).exists(), 30, f"{name} is delivered")
