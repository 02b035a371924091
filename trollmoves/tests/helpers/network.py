"""Hosts as network namespaces of this machine, and faults of the network between them.

A ``Network`` is a switch with hosts; a ``SlowLink`` is an additional link between two of them. It is isolated from
the rest of the machine, so several tests may run in parallel; it ends with the processes that hold the namespaces.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trollmoves.tests.helpers.daemons import Process, Testbed, end_with_parent
from trollmoves.tests.helpers.recording import RecordingSubscriber
from trollmoves.tests.helpers.waiting import until

PROGRAMS = {"ip": "iproute2", "iptables": "iptables", "unshare": "util-linux", "nsenter": "util-linux"}
CLONE_NEWNET = 0x40000000


@functools.cache
def _why_not() -> str:
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    for program, package in PROGRAMS.items():
        if not shutil.which(program):
            return f"missing: no {program} (Debian: {package})"
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    tried = subprocess.run(
        ["unshare", "--net", "sh", "-c", "ip link add name one type veth peer name two && iptables -L INPUT"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"network namespaces are not to be had here: {tried.stderr.strip()}" if tried.returncode else ""


class Namespace:
    """The network namespace of one host. It ends with the process that holds it."""

    def __init__(self, testbed: Testbed, name: str) -> None:
        self.name = name
        self._holder = subprocess.Popen([*end_with_parent(), "unshare", "--net", "sleep", "infinity"])
        testbed.call_at_end(self._end)
        ours = os.readlink("/proc/self/ns/net")
        until(lambda: os.readlink(f"/proc/{self.pid}/ns/net") != ours, 10, "a network namespace")
        self.run("ip", "link", "set", "lo", "up")

    def _end(self) -> None:
        self._holder.kill()
        self._holder.wait(10)

    @property
    def pid(self) -> int:
        """The process that holds it."""
        return self._holder.pid

    @property
    def prefix(self) -> list[str]:
        """The prefix of a command that runs in the namespace; it replaces itself by that command."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", "--"]

    def run(self, *command: str) -> str:
        """Run a command in the namespace."""
        done = subprocess.run([*self.prefix, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Move this thread into the namespace, with all threads and sockets that it creates."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open("/proc/thread-self/ns/net") as home, open(f"/proc/{self.pid}/ns/net") as there:
            assert libc.setns(there.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
            try:
                yield
            finally:
                assert libc.setns(home.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())


class Host(Namespace):
    """A host: a port of the switch, an address, and the processes that run on it."""

    def __init__(self, testbed: Testbed, switch: Namespace, number: int) -> None:
        super().__init__(testbed, f"host {number}")
        self.address = f"10.77.0.{number}"
        self._testbed = testbed
        self._switch = switch
        self._port = f"port{number}"
        switch.run(
            *("ip", "link", "add", "name", self._port, "type", "veth"),
            *("peer", "name", "eth0", "netns", str(self.pid)),
        )
        switch.run("ip", "link", "set", self._port, "master", "bridge", "up")
        self.run("ip", "addr", "add", f"{self.address}/24", "dev", "eth0")
        self.run("ip", "link", "set", "eth0", "up")

    def run_inside(self, process: Process, names: Path | None = None) -> Process:
        """Make a process, which is not started yet, run on this host; ``names`` is mounted over its /etc/hosts."""
        process.command = [*self.prefix, *(_finds(names) if names else ()), *process.command]
        return process

    def subscriber(self, port: int) -> RecordingSubscriber:
        """Return a subscriber, on this host, to a publisher of this host."""
        with self.inside():
            return self._testbed.subscriber(port)

    def cut(self) -> None:
        """Unplug its cable: no peer is notified."""
        self._switch.run("ip", "link", "set", self._port, "down")

    def reconnect(self) -> None:
        """Put the cable back."""
        self._switch.run("ip", "link", "set", self._port, "up")

    def drop_packets(self, incoming: float = 0.0, outgoing: float = 0.0, port: int = 0) -> None:
        """Drop these shares of incoming and outgoing packets, all or those to a port, until the next call."""
        to_port = ["-p", "tcp", "--dport", str(port)] if port else []
        self.run("iptables", "-w", "-F")
        for chain, device, share in (("INPUT", "-i", incoming), ("OUTPUT", "-o", outgoing)):
            losing = ["-m", "statistic", "--mode", "random", "--probability", str(share)] if share < 1 else []
            if share:
                self.run("iptables", "-w", "-A", chain, device, "eth0", *to_port, *losing, "-j", "DROP")

    def connections(self, port: int) -> int:
        """Count the established connections to a port of this host."""
        return len(self.run("ss", "-Htn", "state", "established", "sport", "=", f":{port}").splitlines())

    def move(self, address: str) -> None:
        """Replace the host's address."""
        self.run("ip", "addr", "flush", "dev", "eth0")
        self.run("ip", "addr", "add", f"{address}/24", "dev", "eth0")
        self.address = address

    def wait_until_reachable(self, other: Host) -> None:
        """Connect to another host, which updates its ARP entry for this one."""
        with self.inside():
            until(lambda: _reaches(other.address), 10, f"{self.name} reaches {other.name}")


def _reaches(address: str) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((address, 9)) == errno.ECONNREFUSED


def _finds(names: Path) -> list[str]:
    script = 'mount --bind "$0" /etc/hosts && exec "$@"'
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, str(names)]


class Network:
    """A switch, and the hosts on it."""

    def __init__(self, testbed: Testbed) -> None:
        """Skip the test if network namespaces cannot be made."""
        why = _why_not()
        if why:
            pytest.skip(why)
        self._testbed = testbed
        self._numbers = iter(range(1, 200))
        self._switch = Namespace(testbed, "switch")
        self._switch.run("ip", "link", "add", "bridge", "type", "bridge")
        self._switch.run("ip", "link", "set", "bridge", "up")

    def host(self) -> Host:
        """Add a host."""
        return Host(self._testbed, self._switch, next(self._numbers))


class SlowLink:
    """A separate link between two hosts with a fixed delay for each packet; ``ends`` are their addresses on it.

    It uses two TUN devices and a process that forwards packets: kernels in containers seldom have netem.
    """

    def __init__(self, testbed: Testbed, one: Namespace, other: Namespace, delay: float) -> None:
        if not os.path.exists("/dev/net/tun"):
            pytest.skip("this machine has no TUN devices")
        self.ends = ("10.78.0.1", "10.78.0.2")
        command = [sys.executable, str(Path(__file__).with_name("slow_link.py")), str(delay)]
        command += [str(one.pid), *self.ends, str(other.pid), *reversed(self.ends)]
        self._carrier = subprocess.Popen([*end_with_parent(), *command], stdout=subprocess.PIPE)
        testbed.call_at_end(self._end)
        assert self._carrier.stdout
        assert self._carrier.stdout.readline() == b"up\n"

    def _end(self) -> None:
        self._carrier.kill()
        self._carrier.wait(10)
        if self._carrier.stdout:
            self._carrier.stdout.close()
