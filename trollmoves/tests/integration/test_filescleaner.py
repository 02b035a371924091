"""Which files and directories ``FilesCleaner`` removes."""

from __future__ import annotations

import datetime as dt
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from posttroll.message import Message

from trollmoves.config.removal_file import read_configuration
from trollmoves.errors import ConfigError
from trollmoves.filescleaner import FilesCleaner, explain
from trollmoves.status.explanation import subject_of
from trollmoves.tests.helpers.daemons import Testbed

OLD = 7200  # s, older than the age of the sections here
DEFAULTS = {"hours": "1", "stat_time_method": "st_mtime"}


class Sent:
    """A publisher that keeps the messages, and calls a function before each."""

    def __init__(self, before: Callable[[], object] = lambda: None) -> None:
        self.messages: list[Message] = []
        self._before = before

    def send(self, text: str) -> None:
        """Keep one message."""
        self._before()
        self.messages.append(Message.decode(text))

    @property
    def paths(self) -> list[str]:
        """The paths in the messages, sorted."""
        return sorted(message.data["uri"] for message in self.messages)


def old(*paths: Path, content: str = "hello") -> None:
    """Make old files."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        age(path)


def age(*paths: Path) -> None:
    """Make files or directories old."""
    for path in paths:
        os.utime(path, (time.time() - OLD,) * 2)


def left(folder: Path) -> list[str]:
    """Return all paths below a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def clean(
    folder: Path, templates: str, *, dry_run: bool = False, publisher: Sent | None = None, **options: Any
) -> set[str]:
    """Clean a section; return the relative paths that were removed."""
    info = {"base_dir": str(folder), "templates": templates} | DEFAULTS | options
    size, number, paths = FilesCleaner(publisher, "s", info, dry_run).clean_section()
    assert (number, bool(size)) == ((0, False) if dry_run else (len(paths), bool(paths)))
    return {Path(path).relative_to(folder).as_posix() for path in paths}


def test_old_files_are_removed_and_published(tmp_path: Path) -> None:
    """Old matching files go, each with one message; new and other ones stay."""
    old(tmp_path / "a.dat", tmp_path / "b.dat", tmp_path / "c.txt", tmp_path / "sub" / "d.dat")
    (tmp_path / "new.dat").write_text("x")
    sent = Sent()
    assert clean(tmp_path, "*.dat", publisher=sent) == {"a.dat", "b.dat"}
    assert left(tmp_path) == ["c.txt", "new.dat", "sub", "sub/d.dat"]
    assert sent.paths == [str(tmp_path / "a.dat"), str(tmp_path / "b.dat")]
    assert {(m.subject, m.type, len(m.data)) for m in sent.messages} == {("/deletion", "del", 1)}


@pytest.mark.parametrize(
    ("templates", "removed"),
    [
        ("*/x?.dat", {"one/x1.dat", "two/x2.dat"}),
        ("[ot]*/x1.dat , two/*.txt,", {"one/x1.dat", "two/y.txt"}),
        ("two/x2.dat", {"two/x2.dat"}),
        ("**/x1.dat", {"one/x1.dat"}),
        ("*/.h*", {"one/.hidden"}),
        ("*/.h*/*", set()),
        ("*/", {"empty"}),
        ("one/../two/*.txt", {"two/y.txt"}),
        ("nothing/*", set()),
    ],
)
def test_templates(tmp_path: Path, templates: str, removed: set[str]) -> None:
    """A template is a pattern in each of its parts; several are separated by commas."""
    old(
        tmp_path / "one" / "x1.dat",
        tmp_path / "one" / ".hidden",
        tmp_path / "two" / "x2.dat",
        tmp_path / "two" / "y.txt",
    )
    (tmp_path / "empty").mkdir()
    age(tmp_path / "empty")
    found = clean(tmp_path, templates)
    assert {path.replace("one/../", "") for path in found} == removed


@pytest.mark.parametrize("pattern", ["*.dat", "?b[c]*/*.dat"])
def test_absolute_template(tmp_path: Path, pattern: str) -> None:
    """A template that starts with a slash does not use base_dir."""
    old(tmp_path / "a.dat", tmp_path / "abc" / "a.dat")
    assert clean(Path("/"), f"{tmp_path}/{pattern}", base_dir="/usr") == {
        str(tmp_path / ("a.dat" if pattern == "*.dat" else "abc/a.dat")).lstrip("/")
    }


@pytest.mark.parametrize(("value", "removed"), [("true", {".a.dat"}), ("False", set()), ("", set())])
def test_include_hidden(tmp_path: Path, value: str, removed: set[str]) -> None:
    """Patterns match names with a leading dot only with include_hidden, and ``False`` is false."""
    old(tmp_path / ".a.dat")
    assert clean(tmp_path, "*.dat", include_hidden=value) == removed


@pytest.mark.parametrize("value", ["False", "off", "0", ""])
def test_recursive_off(tmp_path: Path, value: str) -> None:
    """``recursive = False`` is false."""
    old(tmp_path / "sub" / "a.dat")
    assert clean(tmp_path, "*.dat", recursive=value) == set()


def test_recursive(tmp_path: Path) -> None:
    """All directories below are searched; those that become empty go, the directory of the template stays."""
    old(tmp_path / "in/a.dat", tmp_path / "in/1/2/b.dat", tmp_path / "in/3/c.dat", tmp_path / "in/3/c.txt")
    for name in ("fresh", "empty", "4.keep", "5"):
        (tmp_path / "in" / name).mkdir()
    old(tmp_path / "in/4.keep/d.dat", tmp_path / "in/5/e.keep")
    age(tmp_path / "in" / "empty")
    removed = clean(tmp_path, "in/*.dat", recursive="1")
    files = {"in/a.dat", "in/1/2/b.dat", "in/3/c.dat", "in/4.keep/d.dat"}
    assert removed == files | {"in/1/2", "in/1", "in/empty"}
    assert left(tmp_path / "in") == ["3", "3/c.txt", "4.keep", "5", "5/e.keep", "fresh"]
    assert clean(tmp_path, "in/*", recursive="1") == {"in/3/c.txt", "in/3"}


def test_directories(tmp_path: Path) -> None:
    """A matching directory goes when it is empty and old; a full one is neither removed nor counted."""
    for name in ("old", "new", "full", "old.keep"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "x").touch()
    age(tmp_path / "old", tmp_path / "full", tmp_path / "old.keep")
    sent = Sent()
    assert clean(tmp_path, "*", dry_run=True) == {"old"}
    assert clean(tmp_path, "*", publisher=sent) == {"old"}
    assert left(tmp_path) == ["full", "full/x", "new", "old.keep"]
    assert sent.messages == []


def test_keep_and_links(tmp_path: Path) -> None:
    """Names in .keep stay, as do links without target and links to directories; a link to an old file goes."""
    old(tmp_path / "x.keep", tmp_path / "elsewhere" / "old", tmp_path / "elsewhere" / "other")
    (tmp_path / "elsewhere" / "new").touch()
    links = tmp_path / "links"
    links.mkdir()
    for name, target in {"dangling": "nothing", "loop": "loop", "folder": "../elsewhere"}.items():
        (links / name).symlink_to(target)
    for name in ("old", "new"):
        (links / name).symlink_to(f"../elsewhere/{name}")
    assert clean(tmp_path, "*.keep, links/*") == {"links/old"}
    assert left(tmp_path / "links") == ["dangling", "folder", "loop", "new"]
    assert left(tmp_path / "elsewhere") == ["new", "old", "other"]


def test_dry_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A dry run removes and publishes nothing; each path is logged once."""
    caplog.set_level("INFO")
    old(tmp_path / "a.dat")
    sent = Sent()
    assert clean(tmp_path, "*.dat, a*", dry_run=True, publisher=sent) == {"a.dat"}
    assert left(tmp_path) == ["a.dat"]
    assert sent.messages == []
    assert caplog.text.count(f"Would remove {tmp_path / 'a.dat'}") == 1


def test_missing_base_dir(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A missing base_dir is a warning."""
    assert clean(tmp_path / "none", "*") == set()
    assert f"Path {tmp_path / 'none'} missing, skipping section s" in caplog.text


@pytest.mark.parametrize("name", [b"\xff\xfe.dat", "ä\n.dat".encode(), b"-rf .dat", b"%s{}.dat"])
def test_odd_names(tmp_path: Path, name: bytes) -> None:
    """Files of any name are removed and published."""
    path = os.fsencode(tmp_path) + b"/" + name
    Path(os.fsdecode(path)).touch()
    os.utime(path, (1, 1))
    sent = Sent()
    info = {"base_dir": str(tmp_path), "templates": "*.dat"} | DEFAULTS
    assert FilesCleaner(sent, "s", info, dry_run=False).clean_section() == (0, 1, [os.fsdecode(path)])
    assert left(tmp_path) == []
    assert sent.paths == [os.fsdecode(path)]


def test_errors_go_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that cannot be removed is a warning, and the next ones are removed."""
    for name in ("1", "2", "3"):
        old(tmp_path / name / "a.dat")
    if shutil.which("chattr") is None or subprocess.run(["chattr", "+i", tmp_path / "2"], check=False).returncode:
        pytest.skip("this file system has no immutable directories")
    try:
        assert clean(tmp_path, "*/*.dat") == {"1/a.dat", "3/a.dat"}
    finally:
        subprocess.run(["chattr", "-i", tmp_path / "2"], check=True)
    assert f"Can't remove {tmp_path}/2/a.dat: Operation not permitted" in caplog.text


# -- safety


def test_an_exchanged_directory_does_not_redirect_removals(tmp_path: Path) -> None:
    """A directory that is exchanged for a link in the middle of a run leads no removal elsewhere."""
    folder, precious = tmp_path / "in", tmp_path / "precious"
    names = ["a.dat", "b.dat", "c.dat"]
    old(*(folder / name for name in names), *(precious / name for name in names))

    def exchange() -> None:
        if not folder.is_symlink():
            folder.rename(tmp_path / "moved")
            folder.symlink_to(precious)

    assert len(clean(tmp_path, "in/*.dat", publisher=Sent(exchange))) == 3
    assert left(precious) == names
    assert left(tmp_path / "moved") == []


def test_a_file_that_is_replaced_is_kept(tmp_path: Path) -> None:
    """Files that are replaced in the middle of a run are new, and stay."""
    names = ["a.dat", "b.dat", "c.dat"]
    old(*(tmp_path / name for name in names))

    def replace() -> None:
        for path in tmp_path.iterdir():
            path.write_text("new")

    assert len(clean(tmp_path, "*.dat", publisher=Sent(replace))) == 1
    assert [path.read_text() for path in tmp_path.iterdir()] == ["new", "new"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make links of other users")
@pytest.mark.parametrize(("options", "templates"), [({"recursive": "1"}, "in/*"), ({}, "in/*/*"), ({}, "in/link/*")])
def test_links_of_other_users(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, options: dict[str, Any], templates: str
) -> None:
    """A link to a directory is followed if its owner is trusted, otherwise a warning names it."""
    (tmp_path / "in").mkdir()
    link = tmp_path / "in" / "link"
    link.symlink_to(tmp_path / "system")
    os.lchown(link, 12345, 12345)
    old(tmp_path / "system" / "x.conf")
    assert clean(tmp_path, templates, **options) == set()
    assert f"not followed: {link}" in caplog.text
    os.lchown(link, 0, 0)
    assert clean(tmp_path, templates, **options) == {"in/link/x.conf"}
    assert left(tmp_path / "system") == []


def test_a_circle_of_links(tmp_path: Path) -> None:
    """Links to directories above end no search, and are searched once."""
    old(tmp_path / "in/sub/a.dat")
    (tmp_path / "in" / "sub" / "up").symlink_to("..")
    assert clean(tmp_path, "in/*.dat", recursive="1") == {"in/sub/a.dat"}


# -- options


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"templates": "*"}, "[s] days: the age must be more than zero: set days, hours, minutes or seconds"),
        ({"templates": "*", "hours": "0"}, "[s] hours: the age must be more than zero"),
        ({"templates": "*", "hours": ""}, "[s] days: the age must be more than zero"),
        ({"templates": "*", "hours": "1", "day": "3"}, "[s] day: is unknown: set the age by days, hours"),
        ({"templates": "*", "hours": "1", "weeks": "3"}, "[s] weeks: is unknown: set the age by days, hours"),
        ({"templates": "*", "hours": "1h"}, "[s] hours: must be an integer: '1h'"),
        ({"templates": "*", "hours": "-1"}, "[s] hours: must be between 0 and"),
        ({"hours": "1"}, "[s] templates: is missing"),
        ({"templates": " , ", "hours": "1"}, "[s] templates: is missing"),
        ({"templates": "a/..", "hours": "1"}, "[s] templates: must end with the pattern of a name: 'a/..'"),
        ({"templates": "/", "hours": "1"}, "[s] templates: must end with the pattern of a name: '/'"),
        ({"templates": "*", "hours": "1", "recursive": "maybe"}, "[s] recursive: must be true or false: 'maybe'"),
        ({"templates": "*", "hours": "1", "stat_time_method": "st_size"}, "[s] stat_time_method: must be one of"),
    ],
)
def test_invalid_options(tmp_path: Path, options: dict[str, str], text: str) -> None:
    """A section with a wrong age, template or switch is rejected, and removes nothing."""
    old(tmp_path / "a")
    with pytest.raises(ConfigError) as caught:
        FilesCleaner(None, "s", {"base_dir": str(tmp_path)} | options, dry_run=False)
    assert text in str(caught.value)
    assert left(tmp_path) == ["a"]


def test_age_and_time(tmp_path: Path) -> None:
    """The units of the age are added; the default time is that of the last change."""
    old(tmp_path / "a")
    units: dict[str, Any] = {"days": "0", "hours": "1", "minutes": "59", "seconds": "50"}
    assert clean(tmp_path, "*", dry_run=True, **units) == {"a"}
    assert clean(tmp_path, "*", dry_run=True, **units | {"minutes": "61"}) == set()
    assert clean(tmp_path, "*", dry_run=True, stat_time_method="st_ctime") == set()


# -- the other methods


def test_methods(tmp_path: Path) -> None:
    """The methods for scripts take a time, patterns or paths, and return bytes, number and paths."""
    paths = [tmp_path / name for name in ("a.dat", "b.dat", "c.dat", "d.dat")]
    old(*paths)
    sent = Sent()
    cleaner = FilesCleaner(sent, "s", {"templates": "*"} | DEFAULTS, dry_run=False)
    now = dt.datetime.now(dt.UTC)
    assert cleaner.clean_dir(now - dt.timedelta(days=1), f"{tmp_path}/*.dat") == (0, 0, [])
    assert cleaner.clean_dir(now, f"{tmp_path}/a*") == (5, 1, [str(paths[0])])
    assert cleaner.clean_files_and_dirs([str(paths[1]), str(tmp_path / "none")], now) == (5, 1, [str(paths[1])])
    (tmp_path / "folder").mkdir()
    assert cleaner.remove_file(str(tmp_path / "folder")) is None
    assert cleaner.remove_file(str(paths[2])) == str(paths[2])
    assert cleaner.remove_file(str(paths[2])) is None
    assert sent.paths == [str(path) for path in paths[:3]]
    assert FilesCleaner(sent, "s", {"templates": "*"} | DEFAULTS).remove_file(str(paths[3])) is None
    assert left(tmp_path) == ["d.dat", "folder"]


@pytest.mark.parametrize("recursive", [False, True])
@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize(
    "template", ["*", "*.dat", "a/*", "*/", "?/b*", "a/b/c.dat", ".*", "ROOT/a/*.dat", "ROOT/*/*/*"]
)
def test_explanation_agrees_with_a_dry_run(tmp_path: Path, template: str, hidden: bool, recursive: bool) -> None:
    """A file is said to be removed at the next run if a dry run would remove it."""
    root = tmp_path / "root"
    files = [root / name for name in ("x.dat", ".h.dat", "a/x.dat", "a/b/c.dat", "a/b/.h", "a/k.keep", "b/x.txt")]
    old(*files)
    (root / "a" / "new.dat").touch()
    template = template.replace("ROOT", str(root))
    options = DEFAULTS | {"base_dir": root, "templates": template, "recursive": recursive, "include_hidden": hidden}
    text = "".join(f"{name} = {value}\n" for name, value in options.items())
    (tmp_path / "remove_it.ini").write_text(f"[s]\n{text}")
    configuration = read_configuration(tmp_path / "remove_it.ini")
    removed = FilesCleaner(None, "s", configuration.sections["s"]).clean_section().paths
    found = {str(path): explain(configuration, subject_of(str(path)))[0] for path in [*files, root / "a" / "new.dat"]}
    assert {path for path, one in found.items() if "at the next run" in one.text()} == set(removed)
    assert "s at the earliest" in found[str(root / "a" / "new.dat")].text() or not found[str(files[2])].matches


def test_explain_command(testbed: Testbed) -> None:
    """The command explains and checks a file for remove_it.py; other subcommands name the two that can use it."""
    folder = testbed.directory("in")
    config = testbed.config({"s": {**DEFAULTS, "base_dir": folder, "templates": "*.dat"}})
    for arguments, code, text in (
        (("explain", folder / "x.dat", config), 0, "[s] yes: as x.dat, removed but not now: No such file"),
        (("explain", "x.txt", config), 1, f"[s] no: no template matches {folder}/x.txt"),
        (("explain", Message("/x", "file", {"uri": "x"}).encode(), config), 1, "name a file"),
        (("check", config), 0, "1 section"),
        (("status", config), 3, "remove_it.py, which has no journal: use trollmoves check or explain"),
    ):
        done = testbed.run("trollmoves", *arguments)
        assert (done.returncode, done.stderr) == (code, ""), arguments
        assert text in done.stdout
    config.write_text("[s]\ntemplates = *\n")
    assert testbed.run("trollmoves", "check", config).returncode == 2
