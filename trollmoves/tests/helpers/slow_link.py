"""Forwards packets between two TUN devices in different network namespaces, with a delay.

``slow_link.py SECONDS PID ADDRESS PEER PID ADDRESS PEER``: a process in each namespace, the address of this end, and
the address of the other end. Prints ``up`` when the link is ready.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import struct
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress

TUNSETIFF, TUN, NO_HEADER = 0x400454CA, 0x0001, 0x1000
LARGEST = 9000  # bytes
AT_ONCE = 64


def device(pid: str, address: str, peer: str) -> int:
    """Make a TUN device in the namespace of a process; return its descriptor."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/self/ns/net") as home, open(f"/proc/{pid}/ns/net") as there:
        assert libc.setns(there.fileno(), 0) == 0, os.strerror(ctypes.get_errno())
        tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", b"slow0", TUN | NO_HEADER))
        subprocess.run(["ip", "addr", "add", address, "peer", peer, "dev", "slow0"], check=True)
        subprocess.run(
            ["ip", "link", "set", "slow0", "up", "mtu", str(LARGEST), "txqueuelen", "2000"],
            check=True,
        )
        assert libc.setns(home.fileno(), 0) == 0
    return tun


def carry(one: int, other: int, delay: float) -> None:
    """Carry packets, for ever."""
    waiting: deque[tuple[float, int, bytes]] = deque()
    while True:
        while waiting and waiting[0][0] <= time.monotonic():
            _, to, packet = waiting.popleft()
            with suppress(OSError):  # a line that is full loses packets too
                os.write(to, packet)
        timeout = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for tun in select.select([one, other], [], [], timeout)[0]:
            for _ in range(AT_ONCE):
                try:
                    packet = os.read(tun, LARGEST + 100)
                except BlockingIOError:
                    break
                waiting.append((time.monotonic() + delay, other if tun == one else one, packet))


if __name__ == "__main__":
    ends = [device(*sys.argv[first : first + 3]) for first in (2, 5)]
    os.write(sys.stdout.fileno(), b"up\n")
    carry(ends[0], ends[1], float(sys.argv[1]))
