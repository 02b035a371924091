"""The options of ``remove_it.py``."""

from __future__ import annotations

from dataclasses import dataclass

from trollmoves.config import parsers
from trollmoves.config.option_table import OptionTable, option, required


@dataclass(frozen=True, kw_only=True)
class MailOptions(OptionTable):
    """Options in [DEFAULT] of a file for ``remove_it.py``: the mail of ``--mail``."""

    mailhost: str = option(parsers.text, "", "`host` or `host:port` of the SMTP server; the default port is 25")
    to: tuple[str, ...] = option(parsers.comma_list, "", "addresses that get the mail, separated by commas")
    subject: str = option(
        parsers.text, "", "subject of the mail; `{hostname}` and `{user}` are replaced by those of the process"
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class RemovalOptions(OptionTable):
    """One section of a file for ``remove_it.py``: the files to remove, and their age."""

    name: str
    base_dir: str = option(parsers.text, "", "directory of relative templates")
    templates: tuple[str, ...] = required(
        parsers.templates,
        "patterns of paths in `base_dir`, separated by commas; `*`, `?` and `[..]` are allowed in every part; a "
        "pattern that starts with `/` does not use `base_dir`",
    )
    days: int = option(parsers.integer(0, 1_000_000), "0", "age in days; the four units of the age are added")
    hours: int = option(parsers.integer(0, 1_000_000_000), "0", "age in hours")
    minutes: int = option(parsers.integer(0, 1_000_000_000), "0", "age in minutes")
    seconds: int = option(parsers.integer(0, 1_000_000_000), "0", "age in seconds")
    stat_time_method: str = option(
        parsers.choice("st_ctime", "st_mtime", "st_atime"),
        "st_ctime",
        "time that counts: of the last change of content or attributes (`st_ctime`), of content (`st_mtime`), or of "
        "the last access (`st_atime`)",
    )
    recursive: bool = option(
        parsers.boolean, "false", "apply the last part of each template in all directories below too"
    )
    include_hidden: bool = option(parsers.boolean, "false", "patterns match names with a leading dot too")

    @property
    def age(self) -> int:
        """The age in seconds; files that are older are removed."""
        return 86_400 * self.days + 3_600 * self.hours + 60 * self.minutes + self.seconds
