"""``trollmoves journal migrate`` and ``copy``: the move of a journal to PostgreSQL."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from trollmoves.cli.command import main
from trollmoves.errors import JournalError
from trollmoves.journal import DONE, WAITING, Outcome, SourcePosition, Task, copy_journal, open_journal, open_reader
from trollmoves.tests.helpers.journals import LATER, announced, append_announcements, new_schema, shared_server, task
from trollmoves.tests.servers import postgresql

pytestmark = pytest.mark.skipif(bool(postgresql.missing()), reason=f"missing: {postgresql.missing()}")


def test_copy_keeps_numbers_identity_and_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The copy has all tasks, announcements, positions and the identity, and goes on with the next number."""
    path, url = str(tmp_path / "a.journal"), new_schema(shared_server())
    with closing(open_journal(path)) as journal:
        push = Task("chain", "push", "1 x", "push sftp://host", '{"destination": "sftp://user:secret@host/in"}')
        names = [task("waits"), task("is done\udcff"), push]
        added = [one for one, _ in journal.add_tasks(names, [("chain", SourcePosition("log", "host:1", 7))])]
        journal.finish([Outcome(added[1], DONE, "reply")])
        append_announcements(journal, "chain", [announced(n) for n in range(1, 4)])
        identity, now = journal.identity, journal.now()
        with pytest.raises(JournalError, match="in use"):
            copy_journal(path, url)
    assert main(["journal", "copy", path, url]) == 0
    assert "copied 3 tasks, 3 announcements" in capsys.readouterr().out
    with closing(open_journal(url)) as copy:
        assert (copy.identity, copy.now() >= now) == (identity, True)
        assert [one.received_through for one in copy.sources("chain")] == [7]
        assert copy.count() == {"waiting": 2, "done": 1, "failed": 0}
        assert [(one.key, one.state) for one in copy.claim("chain", "lane", 9, LATER)] == [("waits", WAITING)]
        ((again, is_new),) = copy.add_tasks([task("is done\udcff")])
        assert (again.state, again.reply, is_new) == (DONE, "reply", False)
        ((new, is_new),) = copy.add_tasks([task("new")])
        assert is_new
        assert new.id > max(one.id for one in added)
        assert copy.append("chain", ["/in/3"], lambda _, number: [announced(number)]) == [announced(4)]
    with open_reader(url) as reader:
        (row,) = reader.tasks_of_file("/x", (), 9) or reader.listed("queue", 9)[-1:]
        assert "secret" not in row.body
    with pytest.raises(JournalError, match="must be empty"):
        copy_journal(path, url)


def test_migrate_creates_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    """The command creates the tables, may be repeated, and does not print the password."""
    url = new_schema(shared_server()).replace("trollmoves@", "trollmoves:secret@")
    for _ in range(2):
        assert main(["journal", "migrate", url]) == 0
    assert "secret" not in capsys.readouterr().out
    with open_reader(url) as reader:
        assert reader.members() == []
    assert main(["journal", "copy", "only a file"]) != 0
