"""The command ``remove_it.py``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from trollmoves.tests.helpers import legacy_peer as earlier
from trollmoves.tests.helpers.daemons import Testbed
from trollmoves.tests.helpers.waiting import TIMEOUT_FACTOR
from trollmoves.tests.servers import smtpd
from trollmoves.tests.servers.process import HOST, free_port
from trollmoves.tests.servers.smtpd import Smtpd

REMOVE_IT = "remove_it.py"
EXAMPLE = Path(__file__).parents[3] / "examples" / "remove_it.ini"


def section(folder: Path, **options: object) -> dict[str, object]:
    """Return a section that removes files of yesterday."""
    return {"base_dir": folder, "templates": "*.dat", "hours": 1, "stat_time_method": "st_mtime", **options}


def old(folder: Path, *names: str) -> None:
    """Make old files."""
    for name in names:
        (folder / name).write_text("hello")
        os.utime(folder / name, (1, 1))


def left(folder: Path) -> list[str]:
    """Return the names in a folder."""
    return sorted(path.name for path in folder.iterdir())


def test_removed_files_are_published(testbed: Testbed) -> None:
    """The files go, and a subscriber that connects in the first seconds receives a message about each."""
    folder, port = testbed.directory("in"), free_port()
    old(folder, "a.dat", "b.dat", "c.txt")
    config = testbed.config({"s": section(folder), "t": section(folder, templates="*.txt")})
    ports = {"POSTTROLL_PUB_MIN_PORT": str(port), "POSTTROLL_PUB_MAX_PORT": str(port + 1)}
    received = testbed.subscriber(port)
    ended = subprocess.run(
        [sys.executable, "-m", "trollmoves.remove_it", "-c", "s", "-v", str(config)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30 * TIMEOUT_FACTOR,
        env=testbed.environment | ports,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (0, ""), ended
    assert left(folder) == ["c.txt"]
    messages = received.wait_for(2, "del")
    assert {(one.message.subject, one.data["uri"]) for one in messages} == {
        ("/deletion", str(folder / name)) for name in ("a.dat", "b.dat")
    }
    lines = ended.stderr.splitlines()
    assert all(re.match(r"\[[-\d]+ [:\d]+,\d{3} [A-Z]+ *\] ", line) for line in lines)
    assert "] # removed files: 2" in ended.stderr
    assert "] MB removed: 1e-05" in ended.stderr
    assert lines[-1].endswith("Thanks for using pytroll/remove_it. See you soon on pytroll.org!")


def test_dry_run(testbed: Testbed) -> None:
    """With --dry-run nothing is removed; the paths are logged with -v only."""
    folder = testbed.directory("in")
    old(folder, "a.dat")
    config = testbed.config({"s": section(folder)})
    assert testbed.run(REMOVE_IT, config, "--dry-run").stderr == ""
    ended = testbed.run(REMOVE_IT, config, "--dry-run", "-v")
    assert f"INFO    ] Would remove {folder}/a.dat\n" in ended.stderr
    assert "] # removed files: 0" in ended.stderr
    assert "publishing" not in ended.stderr
    assert left(folder) == ["a.dat"]


def test_invalid_sections(testbed: Testbed) -> None:
    """A section without an age is refused with file, section and option, in --check too; the others run."""
    folder = testbed.directory("in")
    old(folder, "a.dat", "b.txt")
    wrong = section(folder, templates="*.txt", hours="", huors=3)
    config = testbed.config({"wrong": wrong, "right": section(folder)})
    ended = testbed.run(REMOVE_IT, config)
    assert ended.returncode == 1
    assert f"ERROR   ] {config}: [wrong] huors: is unknown: set the age by days, hours" in ended.stderr
    assert f"ERROR   ] {config}: [wrong] days: the age must be more than zero" in ended.stderr
    assert left(folder) == ["b.txt"]
    checked = testbed.run(REMOVE_IT, config, "--check")
    assert (checked.returncode, checked.stderr) == (1, "")
    assert "[wrong] days: the age must be more than zero" in checked.stdout
    assert re.search(r"^\[right\]\n(  .*\n)*  templates +\*\.dat$", checked.stdout, re.MULTILINE)


def test_selected_sections(testbed: Testbed) -> None:
    """Only selected sections run and are judged; an unknown one is an error in the log."""
    folder = testbed.directory("in")
    old(folder, "a.dat", "b.txt")
    config = testbed.config(
        {"wrong": {"templates": "*"}, "dat": section(folder), "txt": section(folder, templates="*.txt")}
    )
    ended = testbed.run(REMOVE_IT, config, "-c", "none", "-c", "txt")
    assert (ended.returncode, left(folder)) == (0, ["a.dat"])
    assert ended.stderr.endswith(f"ERROR   ] No section named none in {config}\n")
    assert testbed.run(REMOVE_IT, config, "-c", "wrong", "-q").returncode == 1


@pytest.mark.parametrize("text", [None, "no section", "", "[DEFAULT]\nhours = 1\n"])
def test_unusable_file(testbed: Testbed, text: str | None) -> None:
    """A configuration file that is missing or has no section is an error of one line."""
    path = testbed.root / "none.ini" if text is None else testbed.config(text)
    ended = testbed.run(REMOVE_IT, path)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (1, "", 1)
    assert ended.stderr.startswith(f"remove_it.py: {path}: ")


def test_a_missing_directory(testbed: Testbed) -> None:
    """A missing base_dir is a warning; the next section runs, and the status is 0."""
    folder = testbed.directory("in")
    old(folder, "a.dat")
    config = testbed.config({"none": section(folder / "none"), "s": section(folder)})
    ended = testbed.run(REMOVE_IT, config)
    assert (ended.returncode, left(folder)) == (0, [])
    assert f"WARNING ] Path {folder}/none missing, skipping section none\n" in ended.stderr


def test_log_file(testbed: Testbed) -> None:
    """The log goes to the file of -l; one that cannot be opened is an error."""
    config, log = testbed.config({"s": section(testbed.root / "none")}), testbed.root / "remove.log"
    ended = testbed.run(REMOVE_IT, config, "--dry-run", "-l", log)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "missing, skipping section s" in log.read_text()
    ended = testbed.run(REMOVE_IT, config, "--dry-run", "-l", testbed.root / "none" / "x.log")
    assert ended.returncode == 1
    assert "x.log: cannot be opened: No such file or directory" in ended.stderr


@pytest.mark.skipif(bool(smtpd.missing()), reason=smtpd.missing())
def test_mail(testbed: Testbed) -> None:
    """With -m warnings and errors are mailed, whatever the log level, and nothing else."""
    folder = testbed.directory("in")
    with Smtpd() as server:
        default = {"mailhost": f"{HOST}:{server.port}", "to": "a@example.org, b@example.org"}
        default["subject"] = "100 % of {user} on {hostname}"
        config = testbed.config({"DEFAULT": default, "s": section(folder), "none": section(folder / "ä")})
        assert testbed.run(REMOVE_IT, config, "--dry-run", "-m", "-c", "s").returncode == 0
        assert server.mails == []
        ended = testbed.run(REMOVE_IT, config, "--dry-run", "-m", "-q")
        assert (ended.returncode, ended.stderr) == (0, "")
        (mail,) = server.mails
    assert mail["To"] == default["to"]
    assert re.fullmatch(r"100 % of \S+ on \S+", mail["Subject"])
    assert re.fullmatch(r"\S+@\S+", mail["From"])
    (line,) = mail.get_content().splitlines()
    assert line.endswith(f"WARNING ] Path {folder}/ä missing, skipping section none")
    ended = testbed.run(REMOVE_IT, config, "--dry-run", "-m", "-q")
    assert (ended.returncode, ended.stderr.count("\n")) == (0, 1)
    assert (
        f"ERROR   ] cannot mail the warnings to a@example.org, b@example.org by {HOST}:{server.port}: " in ended.stderr
    )


@pytest.mark.parametrize("missing", ["mailhost", "to", "subject"])
def test_no_mail(testbed: Testbed, missing: str) -> None:
    """Without one of the options of the mail there is a line in the log, and no mail."""
    default = {"mailhost": HOST, "to": "a@example.org", "subject": "x"} | {missing: ""}
    config = testbed.config({"DEFAULT": default, "none": section(testbed.root / "none")})
    ended = testbed.run(REMOVE_IT, config, "--dry-run", "-m", "-v")
    assert f"no mail is sent: {missing} missing in [DEFAULT]" in ended.stderr


SAME: dict[str, dict[str, object]] = {
    "all": {"templates": "*"},
    "directories": {"templates": "*/*.dat,.h*/*,[a-c]?d"},
    "recursive": {"templates": "sub/*.dat", "recursive": "1"},
    "hidden": {"templates": "s*/*", "include_hidden": "1", "recursive": "yes"},
}


def test_removes_as_the_earlier_version(testbed: Testbed) -> None:
    """On equal trees the earlier version leaves the same files and directories."""
    left_by = []
    for version in ("old", "new"):
        folder = testbed.directory(version)
        for name in SAME:
            make_tree(folder / name)
        config = testbed.config({name: section(folder / name, **options) for name, options in SAME.items()})
        if version == "old":
            earlier.remove_it(testbed, config)
        else:
            assert testbed.run(REMOVE_IT, config).returncode == 0
        left_by.append(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")))
    assert left_by[0] == left_by[1]


def make_tree(folder: Path) -> None:
    """Make a tree of old and new files, directories and links."""
    for name in ("sub/one/two", "sub/.hidden", ".hid", "empty", "full", "abd"):
        (folder / name).mkdir(parents=True)
    old(
        folder,
        "a.dat",
        "b.keep",
        "sub/c.dat",
        "sub/one/two/d.dat",
        "sub/.hidden/e.dat",
        "sub/.f.dat",
        ".hid/g",
        "full/h",
    )
    (folder / "new.dat").touch()
    for link, target in {"link.dat": "a.dat", "sub/link": "../full", "dangling.dat": "nothing"}.items():
        (folder / link).symlink_to(target)
    for name in ("empty", "full", "abd"):
        os.utime(folder / name, (1, 1))


def test_example(testbed: Testbed) -> None:
    """The example is valid."""
    ended = testbed.run(REMOVE_IT, EXAMPLE, "--check")
    assert (ended.returncode, "warning" in ended.stdout) == (0, False)
    assert ended.stdout.count("base_dir") == 2
