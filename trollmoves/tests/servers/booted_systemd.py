"""Boots systemd in new namespaces, as their process 1, on a copy-on-write view of the files of this machine."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from trollmoves.tests.helpers.daemons import REPOSITORY, Testbed, end_with_parent
from trollmoves.tests.helpers.waiting import until

PROGRAMS = {
    "systemctl": "systemd",
    "journalctl": "systemd",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "ip": "iproute2",
    "useradd": "passwd",
}
SYSTEMD = "/lib/systemd/systemd"
NAMESPACES = ("--mount", "--pid", "--ipc", "--uts", "--cgroup", "--net")
# Units of the distribution that a boot would start, and that take time or act on other machines.
MASKED = (
    "systemd-tmpfiles-setup.service",
    "systemd-timesyncd.service",
    "systemd-update-utmp.service",
    "timers.target",
    "sockets.target",
)
SCRIPT = """
set -eu
top=$1 shift=1; shift
mount -t tmpfs tmpfs "$top"
mkdir "$top/upper" "$top/work" "$top/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$top/upper,workdir=$top/work" "$top/root"
cd "$top/root"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=755 tmpfs dev
for name in null zero full random urandom tty; do touch dev/$name; mount --bind /dev/$name dev/$name; done
mkdir dev/shm dev/pts
mount -t tmpfs tmpfs dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
for path; do
    mkdir -p "./$path"
    mount --bind "$path" "./$path"
    while [ "$path" != / ]; do path=$(dirname "$path"); chmod a+x "./$path"; done
done
echo 0123456789abcdef0123456789abcdef >etc/machine-id
ip link set lo up
mkdir old
pivot_root . old
umount -l /old
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin {systemd} --system --unit=basic.target
"""


@functools.cache
def _why_not() -> str:
    for program, package in PROGRAMS.items():
        if not shutil.which(program):
            return f"missing: no {program} (Debian: {package})"
    if not os.path.exists(SYSTEMD):
        return "missing: no systemd (Debian: systemd)"
    if os.geteuid() != 0:
        return "only root may boot systemd"
    test = "mount -t tmpfs t /mnt && mkdir /mnt/u /mnt/w /mnt/r && mount -t cgroup2 c /mnt/r && "
    test += "mount -t overlay o -o lowerdir=/,upperdir=/mnt/u,workdir=/mnt/w /mnt/r"
    command = ["unshare", *NAMESPACES, "--fork", "sh", "-c", test]
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"systemd cannot be booted here: {tried.stderr.strip()}" if tried.returncode else ""


class BootedSystemd:
    """Boots systemd; skips the test if this machine does not allow it. It ends with the testbed.

    ``root`` is its root directory; files that are written there disappear at the end.
    """

    def __init__(self, testbed: Testbed) -> None:
        if why := _why_not():
            pytest.skip(why)
        shown = {str(REPOSITORY), os.path.realpath(sys.base_prefix), sys.prefix}
        shown -= {path for path in shown if any(path.startswith(f"{other}/") for other in shown)}
        unshare = ["unshare", *NAMESPACES, "--fork", "--kill-child", "sh", "-c"]
        top = testbed.logs / "systemd"
        top.mkdir()
        self.log = testbed.logs / "systemd.log"
        with self.log.open("wb") as log:
            self._holder = subprocess.Popen(
                [*end_with_parent(), *unshare, SCRIPT.replace("{systemd}", SYSTEMD), "sh", str(top), *sorted(shown)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        testbed.call_at_end(self._end)
        children = f"/proc/{self._holder.pid}/task/{self._holder.pid}/children"
        until(lambda: Path(children).read_text().split() or self._holder.poll() is not None, 10, "the first process")
        self.pid = int(Path(children).read_text().split()[0])
        self.root = Path(f"/proc/{self.pid}/root")
        until(self._is_pivoted, 20, f"the root directory: {self.log.read_text()}")
        for name in MASKED:
            (self.root / "etc/systemd/system" / name).symlink_to("/dev/null")
        until(lambda: self.run("systemctl", "is-active", "basic.target", check=False) == "active\n", 30, "the boot")

    def _is_pivoted(self) -> bool:
        assert self._holder.poll() is None, self.log.read_text()
        return (self.root / "etc").exists() and Path(f"/proc/{self.pid}/comm").read_text() == "systemd\n"

    def _end(self) -> None:
        self._holder.kill()
        self._holder.wait(20)

    def run(self, *command: str | Path, check: bool = True) -> str:
        """Run a command there; return its output. Fail if its status is not 0, unless ``check`` is False."""
        words = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--ipc", "--uts", "--cgroup", "--net"]
        words += ["--root", "--wd", "--", *map(str, command)]
        path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
        environment = {"PATH": path, "PYTHONPATH": str(REPOSITORY), "HOME": "/root", "LANG": "C.UTF-8"}
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment, timeout=120)
        if check and done.returncode:
            journal = self.run("journalctl", "--no-pager", "-n", "40", check=False)
            raise AssertionError(f"{command}: {done.stdout}{done.stderr}{journal}")
        return done.stdout

    def fails(self, *command: str | Path) -> bool:
        """Return True if a command fails there."""
        return self.run("sh", "-c", '"$@" || echo "failed $?"', "sh", *command).rstrip("\n").endswith("failed 1")

    def write(self, path: str, text: str) -> None:
        """Write a file there, and its directories; an existing one is replaced by rename."""
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.with_name(f"{file.name}.new").write_text(text)
        file.with_name(f"{file.name}.new").replace(file)

    def property(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", "--value", "-p", name, unit).rstrip("\n")

    def journal(self, unit: str) -> list[Mapping[str, Any]]:
        """Return the entries of a unit in the journal."""
        lines = self.run("journalctl", "--unit", unit, "--output", "json", "--no-pager").splitlines()
        return [json.loads(line) for line in lines]

    def wait_for_entry(self, unit: str, part: str) -> Mapping[str, Any]:
        """Wait for an entry with this text; return it."""
        return until(lambda: [one for one in self.journal(unit) if part in str(one["MESSAGE"])], 30, part)[0]
