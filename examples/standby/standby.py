"""Run a client with a standby, kill the one that works, and count the files that arrive.

The exit status is 0 if every file is complete and has a receipt, otherwise 1.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # use the daemons and helpers of this checkout

from trollmoves.tests.helpers.daemons import Process, Testbed
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers import postgresql
from trollmoves.tests.servers.postgresql import Postgresql

HERE = Path(__file__).resolve().parent
ROOT = "/tmp/trollmoves-standby"  # noqa: S108  (the directory in the configurations)
JOURNAL = re.compile(r"postgresql://\S+\?(schema=\w+)\S*")
TAKEOVER = 60.0  # s; the lease lasts 10 s


class Site:
    """The processes of the example, with the directory, the ports and the database of this run."""

    def __init__(self, testbed: Testbed, database: Postgresql) -> None:
        self._testbed = testbed
        self._database = database
        self._ports: dict[str, str] = {}
        self.feeder = testbed.feeder("incoming")
        self.arrived = testbed.directory("arrived")
        self.server = self._daemon("move_it_server.py", "server.ini", "-p", self._port("19010"))
        self.hosts = [self._daemon("move_it_client.py", f"client-{host}.ini") for host in "ab"]
        self._receipts = [testbed.subscriber(int(self._port(port))) for port in ("19201", "19202")]

    def receipts(self) -> Counter[str]:
        """Return the number of receipts of each file, of both hosts."""
        return Counter(name for subscriber in self._receipts for name in subscriber.receipts())

    def _port(self, port: str) -> str:
        return self._ports.setdefault(port, str(self._testbed.port()))

    def _daemon(self, command: str, file: str, *arguments: str) -> Process:
        text = (HERE / file).read_text().replace(ROOT, str(self._testbed.root))
        text = JOURNAL.sub(rf"{self._database.url}&\1", text)
        config = self._testbed.config(re.sub(r"\b19\d\d\d\b", lambda match: self._port(match[0]), text), file)
        return self._testbed.process(file, self._testbed.command(command, config, *arguments), config)


def run(site: Site, count: int) -> bool:
    """Create files, kill the working host after a half of them, and print the results; return True if all arrived."""
    first, second = site.hosts
    site.server.start()
    first.start()
    second.start(wait=False)
    second.wait_for_line("waiting as standby")
    print(f"host a works, host b waits; {count} files appear, and host a is killed")
    site.feeder.feed(count // 2)
    until(lambda: len(site.receipts()) > count // 8, what="files arrive")
    first.kill()
    site.feeder.feed(count - count // 2)
    second.wait_for_line("took over the journal", seconds=TAKEOVER)
    print("host b took over the journal")
    until(lambda: site.receipts().keys() >= site.feeder.fed.keys(), TAKEOVER, "all files have receipts")
    missing = site.feeder.missing(site.arrived)
    repeated = sum(number > 1 for number in site.receipts().values())
    print(f"{count - len(missing)} of {count} files arrived, {repeated} receipts of the moment of the kill repeated")
    return not missing


def main() -> int:
    """Run the example; return its exit status."""
    parser = argparse.ArgumentParser(description="A client with a standby on PostgreSQL, of which one host is killed.")
    parser.add_argument("--files", type=int, default=2000, help="number of files (default %(default)s)")
    arguments = parser.parse_args()
    if why := postgresql.missing():
        parser.error(f"missing: {why}")
    with (
        tempfile.TemporaryDirectory(prefix="trollmoves-standby-") as folder,
        Postgresql() as database,
        Testbed(Path(folder)) as testbed,
    ):
        return 0 if run(Site(testbed, database), arguments.files) else 1


if __name__ == "__main__":
    sys.exit(main())
