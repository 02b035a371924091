"""Other programs on the same work, for comparison: lsyncd with rsync, and MetPX sr3 with RabbitMQ."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

from benchmarks.calibrator import Calibrator
from benchmarks.figures import Figure
from benchmarks.observers import Arrivals, Cost
from trollmoves.tests.helpers.daemons import Testbed, end_with_parent
from trollmoves.tests.helpers.feeding import content, names
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers.process import HOST, ServerProcess, free_ports

Work = Callable[[Path], Iterator[Figure]]

LSYNCD = """
settings {{ nodaemon = true, logfile = "{logs}/lsyncd.log" }}
sync {{ default.rsync, source = "{source}", target = "{target}", delay = 1, rsync = {{ archive = true }} }}
"""

RABBITMQ = "/usr/lib/rabbitmq/bin/rabbitmq-server"  # that in the PATH changes the user
SR3 = {
    "credentials.conf": "amqp://guest:guest@{broker}/\n",
    "watch/bench.conf": """
post_broker amqp://guest@{broker}/
post_exchange xs_bench
post_baseUrl file:/
path {source}
sleep 0.1
""",
    "subscribe/bench.conf": """
broker amqp://guest@{broker}/
exchange xs_bench
topicPrefix v03
subtopic #
mirror off
directory {target}
instances 1
""",
}


def works(count: int) -> dict[str, Work]:
    """Return the benchmarks of the installed programs."""
    return {"lsyncd": partial(lsyncd, count=count), "sr3": partial(sr3, count=count)}


def lsyncd(logs: Path, *, count: int) -> Iterator[Figure]:
    """Time a burst of files through lsyncd with rsync, which begins to copy one second after the first file."""
    if missing := [name for name in ("lsyncd", "rsync") if not shutil.which(name)]:
        print(f"without lsyncd: missing: {', '.join(missing)} (Debian: apt-get install lsyncd rsync)")
        return
    with Testbed(logs) as testbed:
        staged, source, target = (testbed.directory(name) for name in ("staged", "source", "target"))
        config = testbed.root / "lsyncd.conf"
        config.write_text(LSYNCD.format(logs=logs, source=source, target=target))
        arrivals = testbed.close_at_end(Arrivals(target))
        process = subprocess.Popen([*end_with_parent(), "lsyncd", str(config)], stdout=subprocess.DEVNULL)
        try:
            (source / "first").write_text("1")
            until(lambda: "first" in arrivals.at, 30, "the first file of lsyncd")
            fed = list(itertools.islice(names(), count))
            for name in fed:
                (staged / name).write_bytes(content(name))
            began = time.monotonic()
            with Calibrator() as calibrator:
                for name in fed:
                    os.rename(staged / name, source / name)
                until(lambda: len(arrivals.at) > count, 120, "all files of lsyncd")
            rate = count / (max(arrivals.at.values()) - began)
        finally:
            process.terminate()
            _, process.returncode, usage = os.wait4(process.pid, 0)  # its processes of rsync included
        calibrated = 1e6 / count / calibrator.slowness
        cpu = usage.ru_utime + usage.ru_stime
    yield Figure(f"lsyncd with rsync: burst of {count:,} files of 1 kB", rate, "files/s")
    yield Figure("its CPU per file, if the calibrator takes 100 us", cpu * calibrated, "us", more=False)


def sr3(logs: Path, *, count: int) -> Iterator[Figure]:
    """Time a burst of files through sr3: one process announces them to RabbitMQ, another one copies them."""
    program = shutil.which("sr3")
    if not program or not os.path.exists(RABBITMQ):
        print("without sr3: missing: sr3 or RabbitMQ (pip install metpx-sr3; Debian: apt-get install rabbitmq-server)")
        return
    with Testbed(logs) as testbed:
        staged, source, target = (testbed.directory(name) for name in ("staged", "source", "target"))
        port, distribution, names_port = free_ports(3)
        home = testbed.directory("home")
        for name, text in SR3.items():
            file = home / "config" / "sr3" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text.format(broker=f"{HOST}:{port}", source=source, target=target))
            file.chmod(0o600)
        environment = {
            "HOME": str(home),
            "XDG_CONFIG_HOME": str(home / "config"),
            "XDG_CACHE_HOME": str(home / "cache"),
            "ERL_EPMD_PORT": str(names_port),
            "RABBITMQ_NODENAME": "bench@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": HOST,
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_MNESIA_BASE": str(testbed.directory("mnesia")),
            "RABBITMQ_LOG_BASE": str(logs),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "plugins"),
        }
        arrivals = testbed.close_at_end(Arrivals(target))
        testbed.enter(ServerProcess(names_port, ["epmd", "-port", str(names_port)], logs / "epmd.log", environment))
        broker = ServerProcess(port, [RABBITMQ], logs / "broker.log", environment)
        testbed.enter(broker)
        with ExitStack() as processes:
            started = [broker.process]
            for role in ("watch", "subscribe"):
                log = processes.enter_context((logs / f"sr3-{role}.log").open("w"))
                command = [*end_with_parent(), program, "foreground", f"{role}/bench"]
                process = subprocess.Popen(
                    command, env=os.environ | environment, stdout=log, stderr=log, start_new_session=True
                )
                processes.callback(process.wait)
                processes.callback(os.killpg, process.pid, signal.SIGKILL)
                started.append(process)
            fed = names()
            until(lambda: _arrives(source, arrivals, next(fed)), 60, "the first file of sr3")
            cost = Cost(*(pid for process in started if process for pid in _session(process.pid)))
            burst = list(itertools.islice(fed, count))
            for name in burst:
                (staged / name).write_bytes(content(name))
            began = time.monotonic()
            with Calibrator() as calibrator:
                for name in burst:
                    os.rename(staged / name, source / name)
                until(lambda: arrivals.at.keys() >= set(burst), 300, "all files of sr3")
            cpu = cost.cpu()
    rate = count / (max(arrivals.at.values()) - began)
    yield Figure(f"sr3 with RabbitMQ: burst of {count:,} files of 1 kB", rate, "files/s")
    microseconds = cpu / count * 1e6 / calibrator.slowness
    yield Figure("its CPU per file, if the calibrator takes 100 us", microseconds, "us", more=False)


def _arrives(source: Path, arrivals: Arrivals, name: str) -> bool:
    """Feed a file; return True if one has arrived a second later: the subscription may not exist yet."""
    (source / name).write_bytes(content(name))
    time.sleep(1)
    return bool(arrivals.at)


def _session(pid: int) -> Iterator[int]:
    """Yield the processes of a session."""
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.getsid(int(directory.name)) == pid:
                yield int(directory.name)
