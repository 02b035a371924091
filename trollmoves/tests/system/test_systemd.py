"""The units of the daemons: as systemd reads them, and under a systemd that was booted for the test."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trollmoves.cli import units
from trollmoves.tests.helpers.daemons import REPOSITORY, Testbed, client_section, ini, server_section
from trollmoves.tests.helpers.feeding import names
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers.booted_systemd import BootedSystemd

KINDS = tuple(units.COMMANDS)
SERVER, CLIENT = "trollmoves-server@hrit.service", "trollmoves-client@out.service"
SECTION = server_section(Path("/data/in"), 9094)
MAX_EXPOSURE = 30  # tenths, as systemd-analyze rates a unit: below 5.0 is "OK"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with the units."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("missing: no systemd-analyze (Debian: systemd)")
    folder = tmp_path_factory.mktemp("units")
    command = [sys.executable, str(REPOSITORY / "bin" / "trollmoves"), "units", "--install", "--directory", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 0, done.stderr
    return folder


def environment() -> dict[str, str]:
    """Return the environment of the command."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY)}


@pytest.mark.parametrize("kind", KINDS)
def test_units_are_valid(installed: Path, kind: str) -> None:
    """Each unit is read by systemd without a warning, and its sandbox is rated as good."""
    unit = installed / f"trollmoves-{kind}@x.service"
    for options in (["verify", "--man=no"], ["security", "--offline=true", f"--threshold={MAX_EXPOSURE}"]):
        done = subprocess.run(["systemd-analyze", *options, str(unit)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "trollmoves" not in done.stderr


def test_example_of_remove_it(tmp_path: Path) -> None:
    """Systemd reads the service and the timer for ``remove_it.py`` without a warning."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("missing: no systemd-analyze (Debian: systemd)")
    for name in ("remove_it.service", "remove_it.timer"):
        text = (REPOSITORY / "examples" / name).read_text()
        (tmp_path / name).write_text(text.replace("/opt/trollmoves/bin/", f"{REPOSITORY}/bin/"))
    units_ = [str(tmp_path / "remove_it.timer"), str(tmp_path / "remove_it.service")]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units_], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_units_of_users_are_valid(tmp_path: Path) -> None:
    """The user manager reads the units of --user without a warning."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("missing: no systemd-analyze (Debian: systemd)")
    path = tmp_path / "trollmoves-server@x.service"
    path.write_text(units.unit("server", user=True))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--user", "--man=no", str(path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_installation(installed: Path) -> None:
    """A second installation replaces the units; a unit of another program is not replaced."""
    command = [sys.executable, str(REPOSITORY / "bin" / "trollmoves"), "units", "--install", "--kind", "mirror"]
    command += ["--directory", str(installed)]
    assert subprocess.run(command, check=False, capture_output=True, env=environment()).returncode == 0
    path = installed / "trollmoves-mirror@.service"
    path.write_text("[Unit]\n")
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment())
    assert done.returncode == 2
    assert "written by another program" in done.stdout
    path.write_text(units.MARK)


def test_units_are_printed() -> None:
    """Without --install the units are printed; those of --user have no service user."""
    command = [sys.executable, str(REPOSITORY / "bin" / "trollmoves"), "units"]
    system = subprocess.run(command, check=True, capture_output=True, text=True, env=environment()).stdout
    assert system.count("\n[Service]\n") == len(KINDS)
    assert system.count("\nUser=trollmoves\n") == len(KINDS)
    user = subprocess.run([*command, "--user"], check=True, capture_output=True, text=True, env=environment()).stdout
    assert "\nUser=" not in user
    assert "WantedBy=default.target" in user


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BootedSystemd]:
    """Boot a systemd with the units, a service user, and the configuration of a server and a client."""
    with Testbed(tmp_path_factory.mktemp("booted")) as testbed:
        systemd = BootedSystemd(testbed)
        python = shutil.which("python", path=os.path.dirname(sys.executable)) or sys.executable
        systemd.run(python, REPOSITORY / "bin" / "trollmoves", "units", "--install")
        systemd.run("useradd", "--system", "--user-group", "--home-dir", "/var/lib/trollmoves", "trollmoves")
        for kind in KINDS:  # the scripts of a checkout need an environment, unlike those of an installation
            text = f"[Service]\nEnvironment=PATH={os.path.dirname(python)}:/usr/bin:/bin PYTHONPATH={REPOSITORY}\n"
            systemd.write(f"/etc/systemd/system/trollmoves-{kind}@.service.d/test.conf", text)
        systemd.run("mkdir", "-p", "/data/in", "/data/out")
        systemd.run("chown", "trollmoves:", "/data/out")
        systemd.write("/etc/trollmoves/hrit.ini", ini({"hrit": SECTION}))
        systemd.write("/etc/trollmoves/hrit.env", "ARGUMENTS=-p 9010\n")
        systemd.write("/etc/trollmoves/out.ini", ini({"hrit": client_section(9010, "/data/out", 9012)}))
        systemd.run("systemctl", "daemon-reload")
        yield systemd


@pytest.fixture
def booted(shared: BootedSystemd) -> Iterator[BootedSystemd]:
    """Return the booted systemd, and stop the units after the test."""
    yield shared
    shared.run("systemctl", "stop", SERVER, CLIENT)


@pytest.mark.slow
def test_life_under_systemd(booted: BootedSystemd) -> None:
    """The units start as the service user, report their status, move files, and stop without a failure."""
    booted.run("systemctl", "start", SERVER, CLIENT)
    assert booted.property(SERVER, "StatusText") == "1 chain running; 0 tasks in flight"
    assert booted.run("stat", "--format=%U", f"/proc/{booted.property(SERVER, 'MainPID')}") == "trollmoves\n"
    feed(booted, 0)
    assert len(list((booted.root / "var/lib/trollmoves").glob("*.journal"))) == 2
    booted.run("systemctl", "stop", SERVER, CLIENT)
    assert [booted.property(unit, "Result") for unit in (SERVER, CLIENT)] == ["success"] * 2
    assert not list((booted.root / "run").glob("trollmoves/*/*"))


@pytest.mark.slow
def test_reload_under_systemd(booted: BootedSystemd) -> None:
    """A reload applies the file; with an error in a section it fails, and the daemon runs on. So does a start."""
    booted.run("systemctl", "start", SERVER)
    pid = booted.property(SERVER, "MainPID")
    booted.write("/etc/trollmoves/hrit.ini", ini({"hrit": {**SECTION, "priority": 2}}))
    booted.run("systemctl", "reload", SERVER)
    booted.wait_for_entry(SERVER, "[hrit] changed priority: default -> 2")
    booted.write("/etc/trollmoves/hrit.ini", ini({"hrit": {**SECTION, "priority": "high"}}))
    assert booted.fails("systemctl", "reload", SERVER)
    assert booted.wait_for_entry(SERVER, "configuration not reloaded")["PRIORITY"] == "3"
    assert (booted.property(SERVER, "ActiveState"), booted.property(SERVER, "MainPID")) == ("active", pid)
    booted.write("/etc/trollmoves/broken.ini", ini({"hrit": {**SECTION, "priority": "high"}}))
    broken = "trollmoves-server@broken.service"
    assert booted.fails("systemctl", "start", broken)
    assert "priority" in str(booted.wait_for_entry(broken, "'high'")["MESSAGE"])
    booted.run("systemctl", "stop", broken)
    booted.write("/etc/trollmoves/hrit.ini", ini({"hrit": SECTION}))


@pytest.mark.slow
def test_priorities_in_the_journal(booted: BootedSystemd) -> None:
    """The journal has the priority of each line, and its text without time and prefix."""
    booted.run("systemctl", "start", SERVER)
    started = booted.wait_for_entry(SERVER, "runs 1 chain, journal /var/lib/trollmoves/")
    assert started["PRIORITY"] == "6"
    assert str(started["MESSAGE"]).startswith("[INFO : trollmoves.daemon] server ")
    assert started["_SYSTEMD_UNIT"] == SERVER


@pytest.mark.slow
def test_stuck_thread_under_systemd(booted: BootedSystemd) -> None:
    """A daemon with a stuck thread is restarted, and moves files again; the journal has the stack."""
    drop_in = "/etc/systemd/system/trollmoves-server@hrit.service.d/stuck.conf"
    armed = f"{sys.executable} -m trollmoves.tests.helpers.armed request-received:block"
    command = f"{REPOSITORY}/bin/move_it_server.py $CONFIG $ARGUMENTS"
    once = f"sh -c 'test -e /run/again || exec {armed} {command}; exec {command}'"
    booted.write(drop_in, f"[Service]\nWatchdogSec=2\nRestartSec=0\nExecStart=\nExecStart=/bin/{once}\n")
    booted.run("systemctl", "daemon-reload")
    booted.run("systemctl", "start", SERVER, CLIENT)
    feed(booted, 1, wait=False)
    stuck = booted.wait_for_entry(SERVER, "the thread replier-hrit is stuck")
    assert stuck["PRIORITY"] == "2"
    booted.run("touch", "/run/again")
    booted.wait_for_entry(SERVER, "Watchdog timeout")
    until(lambda: booted.property(SERVER, "NRestarts") == "1", 30, "the restart")
    until(lambda: (booted.root / "data/out" / name(1)).exists(), 30, "the delivery")
    (booted.root / drop_in.lstrip("/")).unlink()
    booted.run("systemctl", "daemon-reload")


@pytest.mark.slow
def test_ssh_keys_in_the_sandbox(booted: BootedSystemd) -> None:
    """The sandbox lets a server deliver by SFTP, with the keys in the home directory of the service user."""
    if not os.path.exists("/usr/sbin/sshd"):
        pytest.skip("missing: no sshd (Debian: openssh-server)")
    home = "/var/lib/trollmoves"
    booted.run("mkdir", "-p", "/run/sshd", f"{home}/.ssh", "/etc/sshd-test")
    booted.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/etc/sshd-test/host_key")
    booted.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{home}/.ssh/id_ed25519")
    key = booted.run("cat", "/etc/sshd-test/host_key.pub").rsplit(maxsplit=1)[0]
    booted.write(f"{home}/.ssh/known_hosts", f"[127.0.0.1]:2222 {key}\n")
    booted.run("sh", "-c", f"cp {home}/.ssh/id_ed25519.pub {home}/.ssh/authorized_keys; chmod 700 {home}/.ssh")
    booted.run("chown", "-R", "trollmoves:", home)
    booted.run("usermod", "--password", "*", "trollmoves")  # sshd rejects locked accounts
    options = "-o ListenAddress=127.0.0.1 -o StrictModes=no -o UsePAM=no -o AllowUsers=trollmoves -o PidFile=none"
    options += " -o Subsystem='sftp internal-sftp' -o AuthorizedKeysFile=/var/lib/trollmoves/.ssh/authorized_keys"
    sshd = f"exec /usr/sbin/sshd -D -f /dev/null -p 2222 -h /etc/sshd-test/host_key {options}"
    booted.run("systemd-run", "--unit=sshd-test", "sh", "-c", sshd)
    destination = "sftp://trollmoves@127.0.0.1:2222/data/out/"
    booted.write("/etc/trollmoves/out.ini", ini({"hrit": client_section(9010, destination, 9012)}))
    booted.run("systemctl", "start", SERVER, CLIENT)
    feed(booted, 2)
    assert "delivered" in str(booted.wait_for_entry(SERVER, f"{name(2)} to sftp://")["MESSAGE"])
    booted.run("systemctl", "stop", "sshd-test")


def name(number: int) -> str:
    """Return the name of a file."""
    return next(names(number))


def feed(booted: BootedSystemd, number: int, *, wait: bool = True) -> None:
    """Create a file for the server, and wait until the client has it."""
    booted.write(f"/data/in/{name(number)}", "content")
    if wait:
        until(lambda: (booted.root / "data/out" / name(number)).exists(), 30, f"{name(number)} is delivered")
