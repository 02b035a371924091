"""Problems and warnings about a configuration file. None of them contains a secret."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from trollmoves.errors import ConfigError
from trollmoves.net import urls

DID_YOU_MEAN = "; did you mean"  # in the warnings about misspelled names


class Diagnostics:
    """The problems and warnings found in a file; used by the thread that reads it."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[ConfigError] = []
        self.warnings: list[str] = []
        self.legacy: set[str] = set()  # those of the warnings that files of earlier versions cause

    def problem(self, section: str, option: str, text: object) -> None:
        """Add a problem that makes the section unusable."""
        line = " ".join(urls.redact_text(str(text)).splitlines())
        self.problems.append(ConfigError(line, file=self.file, section=section, option=option))

    def warn(self, section: str, option: str, text: str, *, legacy: bool = False) -> None:
        """Add a warning unless it exists; ``legacy`` if it is about a valid option of earlier versions."""
        warning = str(ConfigError(text, file=self.file, section=section, option=option))
        if warning not in self.warnings:
            self.warnings.append(warning)
        if legacy:
            self.legacy.add(warning)


def combined_error(file: str, problems: Sequence[ConfigError], hints: Sequence[str] = ()) -> ConfigError:
    """Return one error for one or more problems of a file, and warnings that may explain them."""
    sections = {problem.section for problem in problems}
    if len(problems) == 1 and not hints:
        return problems[0]
    section = sections.pop() if len(sections) == 1 else ""
    prefix = str(ConfigError("", file=file, section=section))
    texts = [str(one).removeprefix(prefix) for one in (*problems, *hints)]
    return ConfigError("; ".join(texts), file=file, section=section)


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.75) -> str:
    """Return "; did you mean X?" with the known name most similar to ``name``; empty without a similar one."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"{DID_YOU_MEAN} {close[0]}?" if close else ""
