"""Send satellite files from a server to a client, and kill the client during the transfers.

A real server and a real client run as processes on this host. The demo checks the deliveries independently: by the
checksums of the files in the client's directories, and by the receipts of the client. The exit status is 0 if no file
was lost, 130 after a Ctrl-C, otherwise 1.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from string import Template

import report
from feeder import Feeder
from observers import Arrivals, Receipts
from processes import HOST, NotRunning, Process, free_ports, status
from screen import Screen
from segments import Segment, segments

HERE = Path(__file__).resolve().parent

KILL_AT = 0.45  # fraction of the delivered files at which the client is killed
DOWNTIME = 2.0  # s until the client is started again
DELIVERY_TIMEOUT = 30.0  # s without a new file after which the demo stops waiting
RECEIPT_TIMEOUT = 2.0  # s to wait for receipts after all files were delivered
IN_FLIGHT = 5  # files in flight at any time; the client has caught up with this number left
SETTLE_TIME = 1.5  # s; daemons give subscribers a second to connect, which must not be measured
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
    """The user has interrupted the demo."""


class Demo:
    """One run in an empty folder; at its end logs, configuration and journals are copied to ``keep``."""

    def __init__(
        self, folder: Path, keep: Path, files: Sequence[Segment], seconds: float, interrupted: Callable[[], bool]
    ) -> None:
        self._keep_in = keep
        self._files = files
        self._seconds = seconds
        self._interrupted = interrupted
        self._screen = Screen()
        self._incoming, self._arrived, self._state, self._daemons = (
            folder / name for name in ("incoming", "arrived", "state", "daemons")
        )
        for one in (self._incoming, self._arrived, self._state, self._daemons):
            one.mkdir()
        self._arrivals = Arrivals(self._arrived)
        self._feeder = Feeder(self._incoming, files, seconds)
        self._server, self._client, self._page, addresses = self._configure()
        self._receipts = Receipts(addresses)
        self._killed_at = self._back_at = 0.0

    def run(self) -> int:
        """Run the demo; return the exit status."""
        with ExitStack() as stack:
            for stop in (
                self._page.stop,
                self._server.stop,
                self._client.stop,
                self._receipts.close,
                self._feeder.stop,
            ):
                stack.callback(stop)
            stack.callback(self._screen.end)
            try:
                self._run_scenario()
                status = self._report()
            except Interrupted:
                self._screen.say("interrupted: ending the processes, removing the files")
                return 130
            except NotRunning as error:
                self._screen.say(str(error))
                status = 1
        self._keep()
        self._point()
        return status

    # -- the sequence of events

    def _run_scenario(self) -> None:
        screen = self._screen
        screen.title("trollmoves: satellite files go from a server to a client on this machine")
        for process in (self._server, self._client):
            process.start(self._pause)
        screen.say(f"server  process {self._server.pid}, watches {self._incoming}")
        screen.say(f"client  process {self._client.pid}, destination {self._arrived}")
        if find_spec("uvicorn"):  # of the extra "web"
            self._page.start(self._pause)
            screen.say(f"page    http://{HOST}:{self._page_port}/ in a browser shows both while the demo runs")
        screen.say()
        self._pause(SETTLE_TIME)
        screen.event(f"{len(self._files):,} files are being created within {self._seconds:.0f} s")
        self._feeder.start()
        self._follow(self._kill_due, self._server, self._client)
        self._kill_client()
        self._follow(lambda: time.monotonic() > self._killed_at + DOWNTIME, self._server)
        self._start_client()
        self._follow(self._caught_up, self._server, self._client)
        self._report_recovery()
        self._follow(self._complete, self._server, self._client)
        self._screen.progress(*self._progress(), final=True)

    def _configure(self) -> tuple[Process, Process, Process, list[str]]:
        """Write the configurations; return server, client, and the addresses of the receipts."""
        names = ("announcements", "seviri_requests", "viirs_requests", "seviri_receipts", "viirs_receipts", "page")
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        self._values = {"incoming": self._incoming, "arrived": self._arrived, "state": self._state, **ports}
        self._write_configs(self._daemons)
        server_ports, client_ports = [ports[name] for name in names[:3]], [ports[name] for name in names[3:5]]
        self._configs = [self._daemons / "server.ini", self._daemons / "client.ini"]
        self._page_port = ports["page"]
        server, client = (
            Process(
                f"move_it_{path.stem}.py",
                self._daemons,
                path.stem,
                [str(path), "-l", str(path.with_suffix(".log")), *more],
                own,
            )
            for path, more, own in zip(
                self._configs, (["-p", str(ports["announcements"])], []), (server_ports, client_ports), strict=True
            )
        )
        arguments = ["web", *map(str, self._configs), "-p", str(self._page_port)]
        page = Process("trollmoves", self._daemons, "page", arguments, [self._page_port])
        return server, client, page, [f"tcp://{HOST}:{port}" for port in client_ports]

    def _write_configs(self, folder: Path) -> None:
        for name in ("server.ini", "client.ini"):
            (folder / name).write_text(Template((HERE / name).read_text()).substitute(self._values))

    def _kill_due(self) -> bool:
        return self._arrivals.count() >= KILL_AT * len(self._files)

    def _kill_client(self) -> None:
        self._client.kill()
        self._killed_at = time.monotonic()
        self._screen.event(f"client killed with kill -9 after {self._arrivals.count():,} files; more are being created")

    def _start_client(self) -> None:
        self._client.start(self._pause)
        self._back_at = time.monotonic()
        missed = len(self._feeder.appeared) - self._arrivals.count()
        self._screen.event(f"client started again as process {self._client.pid}; it missed {missed:,} files")

    def _caught_up(self) -> bool:
        return self._arrivals.count() >= len(self._feeder.appeared) - IN_FLIGHT

    def _report_recovery(self) -> None:
        if self._caught_up():
            seconds = time.monotonic() - self._back_at
            self._screen.event(f"client has fetched the missed files within {seconds:.1f} s")

    def _complete(self) -> bool:
        """Return True if all files were delivered and have receipts, or no further receipt arrives."""
        wanted = len(self._files)
        if not self._feeder.done() or self._arrivals.count() < wanted:
            return False
        received = self._receipts.times()
        last_receipt = max([self._back_at, *(times[-1] for times in received.values())])
        return len(received) == wanted or time.monotonic() > last_receipt + RECEIPT_TIMEOUT

    def _follow(self, reached: Callable[[], bool], *alive: Process) -> None:
        """Show the progress until ``reached()``, or until no new file arrives; raise NotRunning if a process ends."""
        most, deadline = -1, 0.0
        while not reached():
            for process in alive:
                process.check()
            count, total, rate, last = self._progress()
            if count > most:
                most, deadline = count, time.monotonic() + DELIVERY_TIMEOUT
            elif time.monotonic() > deadline:
                return
            self._screen.progress(count, total, rate, last)
            self._pause(0.1)

    def _progress(self) -> tuple[int, int, float, str]:
        return self._arrivals.count(), len(self._files), self._arrivals.rate(), self._receipts.last

    def _pause(self, seconds: float) -> None:
        """Sleep; raise Interrupted if the user interrupts."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if self._interrupted():
                raise Interrupted
            time.sleep(min(left, 0.05))

    # -- the results

    def _report(self) -> int:
        """Print the results; return the exit status."""
        outcome = self._arrivals.compare({file.name: hashlib.sha256(file.content).hexdigest() for file in self._files})
        size = sum(len(file.content) for file in self._files)
        self._screen.title("Results")
        self._screen.table(report.rows(outcome, size, self._feeder.appeared, self._receipts.times(), self._killed_at))
        self._screen.title("The daemons, as `trollmoves status` shows them")
        for line in status(*self._configs):
            self._screen.say(line)
        return 0 if len(outcome.whole) == len(self._files) else 1

    def _keep(self) -> None:
        def empty(folder: str, names: list[str]) -> list[str]:
            return [name for name in names if not Path(folder, name).stat().st_size or name.startswith("page.")]

        shutil.copytree(self._daemons, self._keep_in, ignore=empty, dirs_exist_ok=True)
        for journal in self._state.glob("*.journal"):
            shutil.copy(journal, self._keep_in)
        self._values["state"] = self._keep_in.resolve()
        self._write_configs(self._keep_in)

    def _point(self) -> None:
        if find_spec("uvicorn"):
            self._screen.title("The status page of this run")
            configs = " ".join(str(self._keep_in / path.name) for path in self._configs)
            self._screen.say(f"start   {_installed('trollmoves')} web {configs} -p {self._page_port}")
            self._screen.say(f"page    http://{HOST}:{self._page_port}/")
        self._screen.title("Where to look next")
        self._screen.table(
            [
                (f"{self._keep_in}/", "", "logs, configuration and journals of server and client"),
                ("examples/demo/", "", "the source of this demo"),
                ("README.md", "", "a first configuration"),
                ("doc/", "", "architecture, protocol, all options"),
            ]
        )
        self._screen.say()


def _installed(command: str) -> str:
    """Return the path of a command of this Python, relative to the working directory if it is below."""
    path = Path(sys.executable).with_name(command)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; return its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=1_500, help="number of files (%(default)s)")
    parser.add_argument("--seconds", type=float, default=12.0, help="in which they are created (%(default)s)")
    parser.add_argument(
        "--keep", type=Path, default=Path(".demo"), help="folder for the logs and the configuration (%(default)s)"
    )
    arguments = parser.parse_args(argv)
    interrupted: list[int] = []
    for number in SIGNALS:
        signal.signal(number, lambda number, _: interrupted.append(number))
    sys.setswitchinterval(0.001)  # s; feeder and receipts measure times
    with tempfile.TemporaryDirectory(prefix="trollmoves-demo-") as folder:
        files = [*segments(arguments.files)]
        return Demo(Path(folder), arguments.keep, files, arguments.seconds, lambda: bool(interrupted)).run()


if __name__ == "__main__":
    sys.exit(main())
