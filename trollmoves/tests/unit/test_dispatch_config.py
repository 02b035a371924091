"""A dispatcher's configuration file, YAML or INI, becomes checked targets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trollmoves.config import config_file
from trollmoves.config.dispatcher_file import read_dispatcher_config
from trollmoves.config.option_table import options_of
from trollmoves.config.options import Alias, DispatcherOptions, TargetOptions
from trollmoves.errors import ConfigError

YAML = """\
posttroll_subscriber:
  subscribe_addresses: [tcp://127.0.0.1:9010, "127.0.0.1:9011"]
  nameserver: false
  subscribe_services: [viirs_runner]
DEFAULT:
  journal: /tmp/dispatch.journal
  max_transfers_per_host: 3
target1:
  host: ftp://user:geheim@ftp.target1.com:2121
  directory: /input/{sensor}
  filepattern: "{platform_name}_{start_time:%Y%m%d%H%M}.{format}"
  publish_topic: /sent/{platform_name}
  connection_parameters:
    connection_uptime: 20
    endpoint_url: https://s3.site.org
    client_kwargs: {endpoint_url: https://s3.site.org}
  aliases:
    product: {green_snow: gs, natural_color: nc}
    num: {5: five}
  dispatch_configs:
    - topics: [/level2/viirs, /level3]
      conditions:
        - product: [green_snow, natural_color]
          sensor: viirs
        - product: overview
          num: ">5"
          except: {platform_name: NPP}
    - topics: [/level2/modis]
      directory: /modis
      filepattern: "{uid}"
      host: sftp://other.com
      aliases: {product: {x: y}}
target2:
  directory: /data
  dispatch_configs:
    - topics: [/level2]
"""
INI = """\
[DEFAULT]
journal = /tmp/dispatch.journal
max_transfers_per_host = 3

[posttroll_subscriber]
subscribe_addresses = tcp://127.0.0.1:9010 127.0.0.1:9011
nameserver = false
subscribe_services = viirs_runner

[target1]
host = ftp://user:geheim@ftp.target1.com:2121
directory = /input/{sensor}
filepattern = {platform_name}_{start_time:%Y%m%d%H%M}.{format}
publish_topic = /sent/{platform_name}
connection_parameters__connection_uptime = 20
connection_parameters__endpoint_url = https://s3.site.org
connection_parameters__client_kwargs__endpoint_url = https://s3.site.org
aliases__product__green_snow = gs
aliases__product__natural_color = nc
aliases__num__5 = five
dispatch_configs__1__topics = /level2/viirs /level3
dispatch_configs__1__conditions__1__product = green_snow, natural_color
dispatch_configs__1__conditions__1__sensor = viirs
dispatch_configs__1__conditions__2__product = overview
dispatch_configs__1__conditions__2__num = >5
dispatch_configs__1__conditions__2__except__platform_name = NPP
dispatch_configs__2__topics = /level2/modis
dispatch_configs__2__directory = /modis
dispatch_configs__2__filepattern = {uid}
dispatch_configs__2__host = sftp://other.com
dispatch_configs__2__aliases__product__x = y

[target2]
directory = /data
topics = /level2
"""


def written(folder: Path, text: str) -> Path:
    """Write a configuration file."""
    path = folder / "dispatch.conf"
    path.write_text(text)
    return path


def target(folder: Path, text: str) -> TargetOptions:
    """Read a file with one target in it."""
    (only,) = read_dispatcher_config(written(folder, text)).sections.values()
    return only


def warnings(folder: Path, text: str) -> list[str]:
    """Return the warnings about a file, without its name."""
    path = written(folder, text)
    return [one.removeprefix(f"{path}: ") for one in read_dispatcher_config(path).warnings]


def problem(folder: Path, text: str) -> str:
    """Return the problems of an unusable file."""
    path = written(folder, text)
    with pytest.raises(ConfigError) as caught:
        read_dispatcher_config(path)
    return str(caught.value).removeprefix(f"{path}: ")


def with_target(lines: str, indent: str = "  ") -> str:
    """Return a YAML file with one target that receives all messages."""
    body = "\n".join(f"{indent}{line}" for line in lines.splitlines())
    return f"posttroll_subscriber: {{subscribe_addresses: [tcp://h:1]}}\nt:\n{body}\n"


GOOD = "directory: /d\ndispatch_configs: [{topics: [/a]}]"


def test_yaml(tmp_path: Path) -> None:
    """A YAML file defines targets; their dispatch configs inherit the applicable options."""
    found = read_dispatcher_config(written(tmp_path, YAML))
    assert list(found.sections) == ["target1", "target2"]
    process = found.process
    assert isinstance(process, DispatcherOptions)
    assert process.subscribe_addresses == ("tcp://127.0.0.1:9010", "127.0.0.1:9011")
    assert process.subscribe_services == ("viirs_runner",)
    assert (process.nameserver, process.journal) == (False, "/tmp/dispatch.journal")
    one, two = found.sections.values()
    assert one.max_transfers_per_host == 3
    assert one.publish_topic == "/sent/{platform_name}"
    assert one.connection_parameters["connection_uptime"] == 20.0
    assert one.connection_parameters["client_kwargs"] == {"endpoint_url": "https://s3.site.org"}
    first, second = one.dispatch_configs
    assert first.topics == ("/level2/viirs", "/level3")
    assert (first.host, first.directory) == (one.host, one.directory)
    assert first.aliases == (
        Alias("product", "product", {"green_snow": "gs", "natural_color": "nc"}),
        Alias("num", "num", {5: "five"}),
    )
    assert first.conditions
    assert not first.conditions.mismatch_reason({"product": "green_snow", "sensor": "viirs"})
    assert not first.conditions.mismatch_reason({"product": "overview", "num": 6, "platform_name": "n20"})
    assert first.conditions.mismatch_reason({"product": "overview", "num": 6, "platform_name": "NPP"})
    assert (second.host, second.directory, second.filepattern) == ("sftp://other.com", "/modis", "{uid}")
    assert second.conditions is None
    assert second.aliases == (Alias("product", "product", {"x": "y"}),)
    assert [config.directory for config in two.dispatch_configs] == ["/data"]


def test_ini_says_the_same(tmp_path: Path) -> None:
    """The same configuration as an INI file gives the same targets."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    yaml, ini = (
        read_dispatcher_config(written(tmp_path / "a", YAML)),
        read_dispatcher_config(written(tmp_path / "b", INI)),
    )
    assert ini.process == yaml.process
    assert ini.sections == yaml.sections
    assert ini.warnings == yaml.warnings == ()


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("conditions__num = 5", {"num": 5}),
        ("conditions__num = '5'", {"num": "5"}),
        ("conditions__Product = Green", {"Product": "Green"}),
        ("conditions__num = 4, 5", {"num": 5}),
        ("conditions__flag = true", {"flag": True}),
        ("conditions = [{product: [red, green]}, {num: '>5'}]", {"product": "green"}),
        ("conditions = {num: '!=4'}", {"num": 5}),
        ("conditions__except__num = >5", {"num": 5}),
        ("conditions__except__1__num = 4\nconditions__except__2__num = 6", {"num": 5}),
        ("CONDITIONS__num = 5", {"num": 5}),
        ("conditions__text = a: b", {"text": "a: b"}),
    ],
)
def test_ini_conditions(tmp_path: Path, lines: str, expected: dict[str, Any]) -> None:
    """In an INI file a value is the number, truth or text that it reads as, a comma makes a list, names keep case."""
    (only,) = target(tmp_path, f"[t]\ntopics = /a\ndirectory = /d\n{lines}\n").dispatch_configs
    assert only.conditions
    assert not only.conditions.mismatch_reason(expected)
    assert only.conditions.mismatch_reason({})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("{product: {green: gg}}", (Alias("product", "product", {"green": "gg"}),)),
        ("{product: {green: gg, _alias_name: short}}", (Alias("product", "short", {"green": "gg"}),)),
        (
            "{product: [{green: gg, _alias_name: short}, {green: g}]}",
            (Alias("product", "short", {"green": "gg"}), Alias("product", "product", {"green": "g"})),
        ),
        ("[{product: {green: gg}, _alias_name: short}]", (Alias("product", "short", {"green": "gg"}),)),
        ("{product: }", ()),
        ("", ()),
    ],
)
def test_aliases(tmp_path: Path, given: str, expected: tuple[Alias, ...]) -> None:
    """Aliases replace the values of an item, under its name or another one, several of them in a list."""
    (only,) = target(tmp_path, with_target(f"{GOOD}\naliases: {given}")).dispatch_configs
    assert only.aliases == expected


@pytest.mark.parametrize(
    ("lines", "attribute", "expected"),
    [
        ("", "host", ""),
        ("host:", "host", ""),
        ("host: 5", "host", "5"),
        ("host: file:///", "host", "file:///"),
        ("host: ftp://u:p@h:21", "host", "ftp://u:p@h:21"),
        ("filepattern: 20250101", "filepattern", "20250101"),
        ("filepattern:", "filepattern", ""),
    ],
)
def test_odd_but_legal(tmp_path: Path, lines: str, attribute: str, expected: str) -> None:
    """Hosts and patterns that are missing, empty or numbers are understood."""
    (only,) = target(tmp_path, with_target(f"{GOOD}\n{lines}")).dispatch_configs
    assert getattr(only, attribute) == expected


@pytest.mark.parametrize("given", ["", " []", " null"])
def test_no_dispatch_configs(tmp_path: Path, given: str) -> None:
    """A target without dispatch configs gets nothing, and its author a warning."""
    text = with_target(f"directory: /d\ndispatch_configs:{given}")
    assert target(tmp_path, text).dispatch_configs == ()
    assert warnings(tmp_path, text) == ["[t] dispatch_configs: is empty: nothing is delivered to this target"]


def test_one_topic_as_text(tmp_path: Path) -> None:
    """Topics may be one text, with or without a slash before it."""
    for given in ("/a/b", "a/b", "'pytroll://a/b'", "[a/b]"):
        only = target(tmp_path, with_target(f"directory: /d\ntopics: {given}"))
        assert only.dispatch_configs[0].topics == ("/a/b",)


def test_anchors(tmp_path: Path) -> None:
    """A target may take over what another one has, as YAML does it."""
    found = read_dispatcher_config(
        written(tmp_path, "t: &t\n  directory: /d\n  topics: [/a]\nu:\n  <<: *t\n  directory: /e\n")
    )
    assert [one.dispatch_configs[0].directory for one in found.sections.values()] == ["/d", "/e"]
    assert found.warnings == ()


def test_origin(tmp_path: Path) -> None:
    """With an origin, of one target or of all, neither topics nor dispatch configs are needed."""
    for text in (with_target("directory: /d\norigin: /in/{name}"), "origin: /in/{name}\nt: {directory: /d}\n"):
        found = target(tmp_path, text)
        assert found.origin == "/in/{name}"
        assert len(found.dispatch_configs) == 1


@pytest.mark.parametrize(
    ("lines", "warning"),
    [
        ("hots: x", "[t] hots: is unknown, and has no effect; did you mean host?"),
        ("host: elsewhere.site.invalid", "[t] host: has no scheme, so files are delivered to this host"),
        ("host: ftp://h/base", "[t] host: has a path, which is ignored: move it to directory"),
        ("host: ssh://h:22", "[t] host: files are delivered by sftp: write sftp:// or scp://"),
        ("connection_parameters: {conection_uptime: 5}", "did you mean connection_uptime?"),
        ("topics: [/b]", "[t] topics: has no effect together with dispatch_configs"),
        ("directory: /e", "directory is defined twice, the second time in line 5: the second one is used"),
        ("request_port: 9094", "[t] request_port: is an option of a server"),
        ("origin: /in/{a}", "[t] dispatch_configs 1 topics: has no effect together with origin"),
    ],
)
def test_warnings(tmp_path: Path, lines: str, warning: str) -> None:
    """Misleading options are reported, and no other ones."""
    (only,) = warnings(tmp_path, with_target(f"{GOOD}\n{lines}"))
    assert warning in only


@pytest.mark.parametrize(
    ("given", "warning"),
    [
        ("{topics: [/a], topic: x}", "dispatch_configs 1 topic: is unknown, and has no effect; did you mean topics?"),
        ("{topics: [/a], publish_topic: x}", "publish_topic: has no effect here: it is an option of the target"),
        ("{topics: [/a], conditions: []}", "conditions: is empty: no message matches"),
        ("{topics: []}", "topics: is empty: no message matches"),
        ("{topics: [/a], conditions: [{num: ['>5']}]}", "the comparison of num in a list is compared as text"),
    ],
)
def test_warnings_about_dispatch_configs(tmp_path: Path, given: str, warning: str) -> None:
    """Misleading options of each dispatch config are reported with its number."""
    (only,) = warnings(tmp_path, with_target(f"directory: /d\ndispatch_configs: [{given}]"))
    assert warning in only


def test_dispatcher_without_input(tmp_path: Path) -> None:
    """A dispatcher without a message source is reported, unless it searches for files."""
    text = "posttroll_subscriber: {nameserver: false, adresses: x}\nt: {directory: /d, topics: [/a]}\n"
    recorded = warnings(tmp_path, text)
    assert "no messages will be received" in recorded[1]
    assert "did you mean" in recorded[0]
    assert warnings(tmp_path, "posttroll_subscriber: {nameserver: false}\nt: {directory: /d, origin: '/i/{a}'}\n") == []


def test_spellings_of_the_subscriber(tmp_path: Path) -> None:
    """The subscriber's settings are understood with and without subscribe_ before them."""
    found = read_dispatcher_config(
        written(
            tmp_path, "posttroll_subscriber: {addresses: 'tcp://h:1', services: a}\nt: {directory: /d, topics: /a}\n"
        )
    )
    assert isinstance(found.process, DispatcherOptions)
    assert found.process.subscribe_addresses == ("tcp://h:1",)
    assert found.process.subscribe_services == ("a",)
    assert found.process.nameserver == "localhost"


@pytest.mark.parametrize(
    ("lines", "recorded"),
    [
        ("directory: /d", "[t] dispatch_configs: is missing: select the messages for this target by topics"),
        ("dispatch_configs: [{topics: [/a]}]", "[t] directory: is missing: set the directory to deliver files to"),
        ("directory: /d\ndispatch_configs: [{host: x}]", "[t] dispatch_configs 1 topics: is missing"),
        ("directory: /d\ndispatch_configs: 5", "[t] dispatch_configs: must be a list"),
        ("directory: /d\ndispatch_configs: [5]", "[t] dispatch_configs 1: must have names with values"),
        ("directory: {a: b}\ntopics: /a", "[t] directory: is one value, with no names below it"),
        (f'{GOOD}\n"a\\Nb": {{c: d}}', "[t] a b: is one value, with no names below it"),
        (f"{GOOD}\nhost: gopher://h", "[t] host: unknown scheme gopher: use one of"),
        (f"{GOOD}\nhost: ftp://u:geheim@h:x", "[t] host: invalid URL: ftp://"),
        (f"{GOOD}\nfilepattern: '{{a'", "[t] filepattern: invalid pattern '{a'"),
        (f"{GOOD}\npublish_topic: '/{{a'", "[t] publish_topic: invalid pattern '/{a'"),
        (f"{GOOD}\npublish_topic: a b", "[t] publish_topic: a subject must not contain blanks"),
        (f"{GOOD}\norigin: /in/", "[t] origin: "),
        (f"{GOOD}\nmax_transfers_per_host: many", "[t] max_transfers_per_host: must be an integer"),
        (f"{GOOD}\naliases: x", "[t] aliases: must map values to their replacements"),
        (f"{GOOD}\naliases: {{a: b}}", "[t] aliases: must map values to their replacements"),
        (f"{GOOD}\nconnection_parameters: x", "[t] connection_parameters: must have names below it"),
        (f"{GOOD}\nconnection_parameters: {{anon: maybe}}", "[t] connection_parameters anon: must be true or false"),
        (f"{GOOD}\nconnection_parameters: {{key: {{a: b}}}}", "[t] connection_parameters key a: key is one value"),
        ("directory: /d\ndispatch_configs: [{topics: [/a], conditions: x}]", "[t] dispatch_configs 1 conditions: "),
        (
            "directory: /d\ndispatch_configs: [{topics: /a, conditions: [{n: '<x'}]}]",
            "the condition of n must compare with a number: '<x'",
        ),
    ],
)
def test_problems(tmp_path: Path, lines: str, recorded: str) -> None:
    """An unusable target is reported with its name and the option, and without a secret."""
    text = problem(tmp_path, with_target(lines))
    assert recorded in text
    assert "geheim" not in text


@pytest.mark.parametrize(
    ("text", "recorded"),
    [
        ("", "is empty, so there is nothing to run"),
        ("# nothing\n", "is empty"),
        ("- a\n- b\n", "must contain names"),
        ("t: [x\nu: y\n", "is neither YAML nor INI: line 2: "),
        ("t:\n  conditions: !=5\n", "line 2: could not determine a constructor for the tag '!=5'; a text that begins"),
        (
            "posttroll_subscriber: {nameserver: a b}\nt: {directory: /d, topics: /a}",
            "[posttroll_subscriber] nameserver:",
        ),
        (
            "posttroll_subscriber: 5\nt: {directory: /d, topics: /a}",
            "[posttroll_subscriber] must be a section with options below it",
        ),
        ("workers: none\nt: {directory: /d, topics: /a}", "[DEFAULT] workers: must be an integer"),
        ("posttroll_subscriber: {}\n", "nothing to run: the file contains no target"),
        ("a_string: x\n", "[a_string] must be a section with options below it"),
        ("[t]\ntopics /a\n", "neither section nor option nor comment in line 2"),
        ("[t]\nconditions = {a\ntopics = /a\n", "[t] conditions: line 1: "),
        ("[t]\nconditions = [{a: 1}]\nconditions__b = 1\n", "it cannot be both"),
        ("t: {a: 2025-13-45}\n", "is neither YAML nor INI: "),
        ("[" * 5000, ""),
        ("t: " + "[" * 5000, "nested too deeply"),
        ("? [a]\n: b\n", ""),
    ],
)
def test_unusable_files(tmp_path: Path, text: str, recorded: str) -> None:
    """A file that cannot be used at all is refused in one line that says why."""
    found = problem(tmp_path, text)
    assert recorded in found
    assert "\n" not in found


def test_missing_file(tmp_path: Path) -> None:
    """A missing file is reported."""
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_dispatcher_config(tmp_path / "nothing.yaml")


def test_one_bad_target(tmp_path: Path) -> None:
    """A target that cannot be used does not keep the others from running."""
    found = read_dispatcher_config(
        written(tmp_path, "bad: {directory: /d}\nalso_bad: x\ngood: {directory: /d, topics: /a}\n")
    )
    assert list(found.sections) == ["good"]
    assert set(found.broken) == {"bad", "also_bad"}


def test_changes(tmp_path: Path) -> None:
    """A reloaded file shows the changed targets, down to conditions and aliases."""
    old = read_dispatcher_config(written(tmp_path, YAML))
    new = read_dispatcher_config(written(tmp_path, YAML.replace('">5"', '">6"')))
    assert config_file.changes(old, new).changed == ("target1",)
    assert config_file.changes(old, read_dispatcher_config(written(tmp_path, YAML))).unchanged == ("target1", "target2")
    assert config_file.changes(
        old, read_dispatcher_config(written(tmp_path, YAML.replace("viirs_runner", "x")))
    ).process


def test_describe(tmp_path: Path) -> None:
    """--check shows what each target does, without a secret."""
    text = config_file.check_report(read_dispatcher_config(written(tmp_path, YAML)))
    assert "2 dispatcher chains" in text
    assert "dispatch_configs 1" in text
    assert "/level2/viirs /level3, under conditions" in text
    assert "subscribe_addresses" in text
    assert "geheim" not in text
    assert "geheim" not in repr(
        list(read_dispatcher_config(written(tmp_path, YAML)).sections["target1"].dispatch_configs)
    )


def test_every_option_is_read(tmp_path: Path) -> None:
    """Each option of a target that the table has is read from either kind of file."""
    given = {
        "host": "ftp://h",
        "directory": "/d",
        "filepattern": "{uid}",
        "publish_topic": "/p",
        "origin": "/in/{a}",
        "bind_address": "127.0.0.1",
        "max_transfers_per_host": "2",
        "retry_for": "5",
        "priority": "1",
        "max_failed": "3",
    }
    known = {name: given.get(name, option.default) for name, option in options_of(TargetOptions).items()}
    yaml = target(tmp_path, "t:\n" + "".join(f"  {name}: '{value}'\n" for name, value in known.items()))
    ini = target(tmp_path, "[t]\n" + "".join(f"{name} = {value}\n" for name, value in known.items()))
    assert yaml == ini
    for name, value in given.items():
        if name in known:
            assert str(getattr(yaml, name)).removesuffix(".0") == value
    assert replace(yaml, host="") != yaml
