"""The examples on the pages for operators work as shown."""

from __future__ import annotations

import getpass
import grp
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from trollmoves.cli.selection import DaemonFiles
from trollmoves.cli.web.site import Site
from trollmoves.errors import ConfigError
from trollmoves.tests.helpers.daemons import REPOSITORY, ServerClientPair, Testbed
from trollmoves.tests.helpers.waiting import until

PAGE = REPOSITORY / "doc" / "systemd.md"


@pytest.mark.skipif(not PAGE.exists(), reason="no checkout")
def test_logrotate(testbed: Testbed, tmp_path: Path) -> None:
    """The example for logrotate rotates the log of a running daemon; the daemon writes to the new file."""
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    if not shutil.which("logrotate"):
        pytest.skip("missing: no logrotate (Debian: logrotate)")
    pair = ServerClientPair(testbed)
    log = tmp_path / "log" / "hrit.log"
    log.parent.mkdir(mode=0o755)
    pair.server.command = [*pair.server.command, "-l", str(log)]
    pair.server.start(wait=False)
    until(lambda: log.exists() and ", journal " in log.read_text(), 20, "the start")
    assert pair.server.popen is not None
    (text,) = re.findall(r"^```\n(/var/log/trollmoves/.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    group = grp.getgrgid(os.getgid()).gr_name
    text = text.replace("/var/log/trollmoves", str(log.parent)).replace(
        "trollmoves trollmoves", f"{getpass.getuser()} {group}"
    )
    text = re.sub("systemctl kill .*", f"kill -HUP {pair.server.popen.pid}", text)
    config = tmp_path / "logrotate.conf"
    config.write_text(text)
    config.chmod(0o644)
    command = ["logrotate", "--force", "--state", str(tmp_path / "state"), str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    until(lambda: log.exists() and "opened the log file" in log.read_text(), 20, "a line in the new file")
    assert ", journal " in (log.parent / "hrit.log.1").read_text()
    assert pair.server.terminate() == 0


@pytest.mark.skipif(not PAGE.exists(), reason="no checkout")
def test_backup_of_the_journal(testbed: Testbed) -> None:
    """A backup as on the page is consistent while the daemon runs; after its restoration all files arrive."""
    assert "trollmoves journal /etc/trollmoves/server-hrit.ini --backup" in PAGE.read_text()
    pair = ServerClientPair(testbed)
    pair.start()
    pair.feeder.feed(20)
    pair.wait_until_done()
    (journal,) = (testbed.root / "state").rglob("server-*.journal")
    backup = testbed.root / "backup.journal"
    made = testbed.run("trollmoves", "journal", pair.server.config, "--backup", backup)
    assert made.returncode == 0, made
    pair.feeder.feed(20)
    pair.wait_until_done()
    assert pair.server.terminate() == 0
    for suffix in ("", "-wal", "-shm"):
        Path(f"{journal}{suffix}").unlink(missing_ok=True)
    shutil.copy(backup, journal)
    journal.chmod(0o600)
    pair.server.start()
    pair.feeder.feed(20)
    pair.wait_until_done()


def test_page_survives_an_unreadable_configuration(caplog: pytest.LogCaptureFixture) -> None:
    """A configuration file that is being replaced delays the page, and does not end its refreshing."""
    errors = [ConfigError("does not exist", file="a.ini")]

    def find_daemons() -> list[DaemonFiles]:
        if errors:
            raise errors.pop()
        return []

    site = Site(find_daemons)
    site.current()  # a viewer
    site.start()
    until(lambda: site.current()[0] > 0)
    site.stop()
    assert "the page is not refreshed, trying again: a.ini: does not exist" in caplog.text
