"""Reads the configuration file of ``remove_it.py``: one section for each set of files to remove."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trollmoves.config.config_file import Configuration, option_lines, problem_lines, report_text
from trollmoves.config.diagnostics import Diagnostics, combined_error, did_you_mean
from trollmoves.config.ini_and_yaml import DEFAULT, as_text, read_ini, read_text
from trollmoves.config.option_table import options_of
from trollmoves.config.options import ProcessOptions
from trollmoves.config.removal_options import MailOptions, RemovalOptions
from trollmoves.config.sections import read_options
from trollmoves.errors import ConfigError
from trollmoves.utils.texts import counted

AGE = ("days", "hours", "minutes", "seconds")
_OTHER_UNITS = ("weeks", "months", "years", "age")  # that no option has


@dataclass(frozen=True)
class RemovalFile:
    """A file that has been read: the options of the mail, the valid sections in their order, and the problems."""

    file: str
    mail: MailOptions
    sections: Mapping[str, RemovalOptions]
    names: tuple[str, ...]  # of all sections, invalid ones included
    warnings: tuple[str, ...]
    problems: tuple[ConfigError, ...]

    def report(self) -> str:
        """Return the text of ``--check``."""
        lines = [f"{self.file}: {counted(len(self.sections), 'section')}", *option_lines(self.mail)]
        for name, options in self.sections.items():
            lines += ["", f"[{name}]", *option_lines(options)]
        return report_text([*lines, *problem_lines(self.warnings, self.problems)])


def read(path: str) -> RemovalFile:
    """Read a file.

    Raises:
        ConfigError: the file cannot be read or parsed, or contains no section.
    """
    diagnostics = Diagnostics(path)
    document = read_ini(path, read_text(path))
    if not document.sections:
        raise ConfigError("nothing to do: the file contains no section", file=path)
    mail = MailOptions(**read_options(diagnostics, DEFAULT, options_of(MailOptions), document.default))
    found = {name: _read_section(diagnostics, name, values) for name, values in document.sections.items()}
    return RemovalFile(
        path,
        mail,
        {name: options for name, options in found.items() if options},
        tuple(found),
        tuple(diagnostics.warnings),
        tuple(diagnostics.problems),
    )


def read_configuration(path: str | os.PathLike[str]) -> Configuration[Any]:
    """Return the sections of a file, RemovalOptions, as those of a daemon; ConfigError as ``read``."""
    found = read(os.fspath(path))
    return Configuration(found.file, ProcessOptions(), found.sections, found.warnings, found.problems)


def read_section(name: str, values: Mapping[str, Any]) -> RemovalOptions:
    """Return the options of one section that is not in a file.

    Raises:
        ConfigError: an option is invalid, or the age or the templates are missing.
    """
    diagnostics = Diagnostics("")
    options = _read_section(diagnostics, name, values)
    if options is None:
        raise combined_error("", diagnostics.problems)
    return options


def _read_section(diagnostics: Diagnostics, name: str, values: Mapping[str, Any]) -> RemovalOptions | None:
    """Return the options; None if one is invalid, because a wrong age or template would remove the wrong files."""
    table = options_of(RemovalOptions)
    n_problems = len(diagnostics.problems)
    options = RemovalOptions(name=name, **{"templates": (), **read_options(diagnostics, name, table, values)})
    for option in values:
        if option not in table and option not in options_of(MailOptions):
            _report_unknown(diagnostics, name, option)
    wrong = {problem.option for problem in diagnostics.problems[n_problems:]}
    if not options.templates and "templates" not in wrong:
        diagnostics.problem(name, "templates", "is missing: the patterns of the files to remove")
    if not options.age and not wrong.intersection(AGE):
        option = next((unit for unit in AGE if as_text(values.get(unit))), AGE[0])
        diagnostics.problem(name, option, f"the age must be more than zero: set {', '.join(AGE[:-1])} or {AGE[-1]}")
    return None if len(diagnostics.problems) > n_problems else options


def _report_unknown(diagnostics: Diagnostics, section: str, option: str) -> None:
    """Add a warning, or a problem if the option may be meant as a part of the age: files would be removed too early."""
    if difflib.get_close_matches(option, (*AGE, *_OTHER_UNITS), n=1, cutoff=0.7):
        diagnostics.problem(section, option, f"is unknown: set the age by {', '.join(AGE[:-1])} and {AGE[-1]}")
    else:
        diagnostics.warn(
            section, option, f"is unknown, and has no effect{did_you_mean(option, options_of(RemovalOptions))}"
        )


def base_directory(options: RemovalOptions) -> str:
    """Return the absolute path of ``base_dir``; of the working directory if the option is absent."""
    return os.path.join(os.getcwd(), options.base_dir).rstrip("/") or "/"
