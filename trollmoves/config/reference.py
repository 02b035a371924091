"""The reference page of all options: ``python -m trollmoves.config.reference > doc/options.md``."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator

from trollmoves.config.fetch_options import FetcherOptions, S3DownloaderOptions
from trollmoves.config.option_table import Option, OptionTable, options_of
from trollmoves.config.options import (
    LEGACY_IGNORED,
    LEGACY_SPELLINGS,
    NOT_OF_A_MIRROR,
    NOT_OF_MOVE_IT,
    ClientOptions,
    DispatcherOptions,
    MirrorOptions,
    MoveItOptions,
    ProcessOptions,
    ServerOptions,
    SharedOptions,
    TargetOptions,
    parameters,
)
from trollmoves.config.removal_options import MailOptions, RemovalOptions


def reference_page() -> str:
    """Return the reference page of all options, as Markdown."""
    lines = [_INTRODUCTION]
    for title, text, role, other_chapters in _CHAPTERS:
        lines += [f"## {title}", "", text, ""]
        skipped = {name for other in other_chapters for name in options_of(other)} - set(inspect.get_annotations(role))
        lines += _rows((name, option) for name, option in options_of(role).items() if name not in skipped)
    lines += ["## Connection parameters", "", _PARAMETERS_TEXT, ""]
    lines += _rows(parameters().items())
    lines += [
        "## Old spellings",
        "",
        _OLD_TEXT.format(folded=_listed(LEGACY_SPELLINGS), ignored=_listed(LEGACY_IGNORED)),
    ]
    return "\n".join(lines) + "\n"


def _rows(options: Iterable[tuple[str, Option]]) -> Iterator[str]:
    yield "| option | default | meaning |\n|---|---|---|"
    for name, option in options:
        default = "**required**" if option.required else f"`{option.default}`" if option.default else "-"
        meaning = option.help.replace("|", "\\|")
        yield f"| `{name}` | {default} | {meaning} |"
    yield ""


_INTRODUCTION = """\
# Options

<!-- Written by `python -m trollmoves.config.reference > doc/options.md`; change the tables in that package instead. -->

Server, client and mirror read an INI file, the dispatcher reads INI or YAML. Each section is one chain; `[DEFAULT]`
contains values for all sections. Names are not case-sensitive. `%` has no special meaning. Comments are
separate lines that start with `#` or `;`. An option without a value counts as absent. Booleans are `true`, `yes`,
`on`, `1` or `false`, `no`, `off`, `0`. Lists are separated by blanks and commas. Times are in seconds unless the table
says otherwise.

An invalid section is reported with its file, section and option; the other sections run. An unknown option is reported
with the most similar known name. `--check` prints the resulting configuration.
"""


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


_CHAPTERS: tuple[tuple[str, str, type[OptionTable], tuple[type[OptionTable], ...]], ...] = (
    ("The process", "In `[DEFAULT]`, for the whole process.", ProcessOptions, (SharedOptions,)),
    (
        "The process, or one section",
        "In `[DEFAULT]` for all sections, or in one section.",
        SharedOptions,
        (),
    ),
    ("Server", "A section of `move_it_server.py`.", ServerOptions, (SharedOptions,)),
    (
        "Client",
        "A section of `move_it_client.py`. **Any other name** replaces the metadata item of that name in the messages "
        "that the client publishes, if the message has it: `sensor = abi` by a text, "
        "`satellite = G16:GOES-16|G17:GOES-17` by a map. Values that are not in the map, and lists, are kept. The "
        "options of this table replace nothing.",
        ClientOptions,
        (SharedOptions,),
    ),
    (
        "Mirror",
        "A section of `move_it_mirror.py` has the options of client and server; an option of both means the same as "
        f"for the client. Without effect are {_listed(NOT_OF_A_MIRROR)}. Additional or different options:",
        MirrorOptions,
        (ClientOptions, ServerOptions),
    ),
    (
        "move_it",
        "A section of `move_it.py` has the options of a server, see [move_it](move_it.md). Without effect are "
        f"{_listed(NOT_OF_MOVE_IT)}. Additional or different options:",
        MoveItOptions,
        (ServerOptions,),
    ),
    (
        "Dispatcher",
        "In `posttroll_subscriber` of a file for `dispatcher.py`, for all targets; see [dispatcher](dispatcher.md).",
        DispatcherOptions,
        (ProcessOptions,),
    ),
    (
        "Dispatcher target",
        "A target of `dispatcher.py`, in YAML or INI. `topics`, `conditions`, `aliases` and `dispatch_configs` are in "
        "[dispatcher](dispatcher.md).",
        TargetOptions,
        (SharedOptions,),
    ),
    (
        "Fetcher",
        "The file of `pytroll-fetcher`, in YAML; `group__name` is the key `name` below `group`. The options of the "
        "process and of a section are allowed too; see [fetching](fetching.md).",
        FetcherOptions,
        (SharedOptions,),
    ),
    (
        "S3 downloader",
        "The file of `s3downloader.py`, in YAML, where `subscribe-topic` and `publish-topic` have a hyphen and "
        "`logging__name` is the key `name` below `logging`. `s3_kwargs` contains connection parameters. The options of "
        "the process and of a section are allowed too; see [fetching](fetching.md).",
        S3DownloaderOptions,
        (SharedOptions,),
    ),
    (
        "Mail of remove_it.py",
        "In `[DEFAULT]` of a file for `remove_it.py`, for `--mail`; see [remove_it](remove_it.md).",
        MailOptions,
        (),
    ),
    (
        "Section of remove_it.py",
        "A section of a file for `remove_it.py`. The age must be more than zero.",
        RemovalOptions,
        (),
    ),
)

_PARAMETERS_TEXT = """\
For the transfers of servers, mirrors and dispatchers. In a file, each name has the prefix `connection_parameters__`,
as in `connection_parameters__ssh_key_filename = /home/sat/.ssh/id_ed25519`; a further `__` separates the names of a
group, as in `connection_parameters__client_kwargs__endpoint_url = https://s3.site.org`. Names that are not listed
cause a warning and are passed to the mover: `0`, `false`, `1` and `true` as booleans, all other values as text.

Secrets may be kept outside the file: the value of `login`, `password`, `ssh_key_passphrase`, `key`, `secret`, `token`,
and of similar names, may be `file:/path` or `env:NAME`; see [security](security.md)."""

_OLD_TEXT = """\
These connection parameters are also accepted without the prefix `connection_parameters__`: {folded}.

These options of old files have no effect on a server: {ignored}."""


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    sys.stdout.write(reference_page())
