"""A server, and a client on two hosts with one journal on PostgreSQL: the processes of an example."""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from trollmoves.tests.helpers.daemons import Process, Testbed
from trollmoves.tests.helpers.recording import RecordingSubscriber
from trollmoves.tests.servers import postgresql
from trollmoves.tests.servers.postgresql import Postgresql

_JOURNAL = re.compile(r"postgresql://\S+\?(schema=\w+)\S*")
_PORT = re.compile(r"\b19\d\d\d\b")


class FleetSite:
    """The daemons of the configuration files in a folder, with the directory, ports and database of this run.

    The files are ``server.ini``, ``client-a.ini`` and ``client-b.ini``; their directory is ``/tmp/trollmoves-FOLDER``.
    """

    def __init__(self, testbed: Testbed, database: Postgresql, folder: Path) -> None:
        self._testbed = testbed
        self._database = database
        self._folder = folder
        self._ports: dict[str, int] = {}
        self.feeder = testbed.feeder("incoming")
        self.arrived = testbed.directory("arrived")
        self.server = self._daemon("move_it_server.py", "server.ini", "-p", str(self._port("19010")))
        self.clients = [self._daemon("move_it_client.py", f"client-{host}.ini") for host in "ab"]
        self.subscribers: list[RecordingSubscriber] = [
            testbed.subscriber(self._port(port)) for port in ("19201", "19202")
        ]

    @property
    def processes(self) -> list[Process]:
        """The server and both clients."""
        return [self.server, *self.clients]

    def receipts(self) -> Counter[str]:
        """Return the number of receipts of each file, of both clients."""
        return Counter(name for subscriber in self.subscribers for name in subscriber.receipts())

    def _port(self, port: str) -> int:
        return self._ports.setdefault(port, self._testbed.port())

    def _daemon(self, command: str, file: str, *arguments: str) -> Process:
        text = (self._folder / file).read_text()
        text = _PORT.sub(lambda match: str(self._port(match[0])), text)  # before the URL, which may contain such a port
        text = text.replace(f"/tmp/trollmoves-{self._folder.name}", str(self._testbed.root))
        text = _JOURNAL.sub(lambda match: f"{self._database.url}&{match[1]}", text)
        config = self._testbed.config(text, file)
        return self._testbed.process(
            file.removesuffix(".ini"), self._testbed.command(command, config, *arguments), config
        )


def run_example(folder: Path, description: str, run: Callable[[FleetSite, int], bool]) -> int:
    """Run an example, with the number of files on the command line; return its exit status."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--files", type=int, default=2000, help="number of files (default %(default)s)")
    arguments = parser.parse_args()
    if why := postgresql.missing():
        parser.error(f"PostgreSQL is missing: {why}; install it, or set PG_BIN to the directory of initdb")
    with (
        tempfile.TemporaryDirectory(prefix=f"trollmoves-{folder.name}-") as root,
        Postgresql() as database,
        Testbed(Path(root)) as testbed,
    ):
        site = FleetSite(testbed, database, folder)
        try:
            return 0 if run(site, arguments.files) else 1
        except AssertionError as error:
            print(f"{error}\n{_last_lines(site.processes)}", file=sys.stderr)  # noqa: T201
            return 1


def _last_lines(processes: list[Process], count: int = 5) -> str:
    """Return the last log lines of each process, to explain a failure."""
    logs = {one.log.stem: one.log.read_text().splitlines()[-count:] for one in processes if one.log.exists()}
    return "\n".join(f"{name}: {line}" for name, lines in logs.items() for line in lines)
