"""Malformed plugins, all installed at once beside a good one: each is named, none stops another, all can be blocked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from paperhooks.testing import run_python

HEAD = "from paperhooks import PluginInfo\n"
INFO = HEAD + "PLUGIN = PluginInfo(name={name!r}, api=1, summary='A plugin.', methods={{}}{more})\n"
#: What a plugin's module does, by the plugin's name.
MODULES = {
    "exits": "import sys; sys.exit(3)",
    "says-nothing": "class Odd(Exception):\n    def __str__(self): raise RuntimeError('no text')\nraise Odd",
    "base": "class Odd(BaseException): pass\nraise Odd('out of order')",
    "stops": "raise GeneratorExit",
    "api-none": HEAD + "PLUGIN = PluginInfo(name='api-none', api=None, summary='', methods={})",
    "api-text": HEAD + "PLUGIN = PluginInfo(name='api-text', api='1', summary='', methods={})",
    "api-true": HEAD + "PLUGIN = PluginInfo(name='api-true', api=True, summary='', methods={})",
    "methods-number": HEAD + "PLUGIN = PluginInfo(name='methods-number', api=1, summary='', methods=3)",
    "summary-list": HEAD + "PLUGIN = PluginInfo(name='summary-list', api=1, summary=['x'], methods={})",
    "no-info": "PLUGIN = 3",
    "other-name": INFO.format(name="another", more=""),
    "needs": "import no_such_library",
    "clash": "raise ImportError('libfoo.so.1: undefined symbol: bar')",
    "syntax": "def (:",
}
#: What a plugin's hooks do, by the plugin's name; the plugin itself is fine.
HOOKS = {
    "commands-exit": "def register_commands(app): raise SystemExit(4)",
    "commands-odd": "def register_commands(app): raise BaseException('odd')",
    "commands-replace": "def register_commands(app):\n    @app.command('plugins')\n    def mine(): print('TAKEN OVER')",
}
BROKEN = [*MODULES, "dist-line", "entries-bytes", "metadata-bytes"]


def install(site: Path, name: str, source: str, entries: bytes | None = None, metadata: bytes = b"") -> None:
    """A distribution as pip would leave it."""
    module = f"plugin_{name.replace('-', '_')}"
    (site / f"{module}.py").write_text(source)
    folder = site / f"dist_{module}-1.0.dist-info"
    folder.mkdir()
    known = f"[paperhooks.plugins]\n{name} = {module}:PLUGIN\n".encode()
    (folder / "entry_points.txt").write_bytes(known if entries is None else entries)
    (folder / "METADATA").write_bytes(metadata or f"Metadata-Version: 2.1\nName: dist-{name}\nVersion: 1.0\n".encode())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    for name, source in MODULES.items():
        install(folder, name, source)
    for name, source in HOOKS.items():
        module = f"plugin_{name.replace('-', '_')}"
        install(folder, name, f"from paperhooks import hookimpl\n{INFO.format(name=name, more=f', hooks={module!r}')}"
                              f"@hookimpl\n{source}\n")  # fmt: skip
    good = INFO.format(name="good", more="")
    install(folder, "good", good)
    install(folder, "prints", f"import os\nprint('HELLO')\nos.write(1, b'')\n{INFO.format(name='prints', more='')}")
    install(folder, "colours", INFO.format(name="colours", more="").replace("A plugin.", "A \\x1b[2J\\x07plugin."))
    install(folder, "slow", f"import time; time.sleep(4)\n{INFO.format(name='slow', more='')}")
    install(folder, "line", good, b"[paperhooks.plugins]\nthis is no entry\nline = : :x\n")
    install(folder, "entries-bytes", good, b"[paperhooks.plugins]\nentries-bytes = plugin_\xff\xfe:PLUGIN\n")
    install(folder, "metadata-bytes", INFO.format(name="metadata-bytes", more=""), None, b"Name: \xff\xfe\n\xff")
    return folder


def run(site: Path, *words: str, **environment: str) -> Any:
    """The command line beside these plugins."""
    known = {"PYTHONPATH": str(site), **environment}
    return run_python("-m", "paperhooks.cli", *words, check=False, environment=known)


@pytest.fixture(scope="module")
def listed(site: Path) -> tuple[dict[str, Any], str]:
    """The plugins as JSON, by name, and what was said beside."""
    done = run(site, "plugins", "--json")
    rows = json.loads(done.stdout)
    rows = rows if isinstance(rows, list) else rows["plugins"]
    return {row["name"]: row for row in rows}, done.stderr


@pytest.mark.parametrize(
    "name", ["good", "prints", "colours", "slow", *HOOKS, "pyramiddrop", "cca", "mathneuro", "miniplm"]
)
def test_a_good_plugin_is_good_beside_malformed_ones(listed: tuple[dict[str, Any], str], name: str) -> None:
    assert listed[0][name]["state"] == "healthy"


@pytest.mark.parametrize("name", MODULES)
def test_a_malformed_plugin_is_named_with_what_helps(listed: tuple[dict[str, Any], str], name: str) -> None:
    row = listed[0][name]
    assert row["state"] != "healthy"
    assert row["error"]
    assert name in row["fix"], "it can be left out by name"


@pytest.mark.parametrize("name", ["line", "entries-bytes"])
def test_entry_points_that_cannot_be_read_are_named(listed: tuple[dict[str, Any], str], name: str) -> None:
    assert any(name in json.dumps(row) and row["state"] != "healthy" for row in listed[0].values())


def test_a_library_that_is_broken_is_told_from_one_that_is_missing(listed: tuple[dict[str, Any], str]) -> None:
    assert "no_such_library" in listed[0]["needs"]["fix"]
    assert "pip install" not in listed[0]["needs"]["fix"], "what brings a module is not known by its name"
    assert "undefined symbol" in listed[0]["clash"]["error"]


def test_a_slow_import_is_named_while_it_goes_on(listed: tuple[dict[str, Any], str]) -> None:
    assert "slow" in listed[1]


def test_nothing_shown_steers_the_terminal(site: Path, listed: tuple[dict[str, Any], str]) -> None:
    done = run(site, "plugins")
    for text in (done.stdout, done.stderr, listed[1]):
        assert "\x1b[2J" not in text
        assert "\x07" not in text


def test_a_plugin_does_not_take_the_place_of_a_command_of_core(site: Path) -> None:
    done = run(site, "plugins", PAPERHOOKS_BLOCK="slow")
    assert "TAKEN OVER" not in done.stdout
    assert "commands-replace" in done.stderr


def test_other_commands_work_beside_all_of_them(site: Path) -> None:
    done = run(site, "--version", PAPERHOOKS_BLOCK="slow")
    assert (done.returncode, len(done.stdout.split("."))) == (0, 3)


@pytest.fixture(scope="module")
def blocked(site: Path) -> tuple[dict[str, Any], str]:
    done = run(site, "plugins", "--json", PAPERHOOKS_BLOCK=",".join([*BROKEN, "slow", *HOOKS]))
    rows = json.loads(done.stdout)
    rows = rows if isinstance(rows, list) else rows["plugins"]
    return {row["name"]: row for row in rows}, done.stderr


@pytest.mark.parametrize("name", [*MODULES, "slow", *HOOKS])
def test_every_one_of_them_can_be_blocked(blocked: tuple[dict[str, Any], str], name: str) -> None:
    assert blocked[0][name]["state"] == "blocked"
    assert name not in blocked[1]


def test_what_has_no_readable_entry_can_be_blocked_too(blocked: tuple[dict[str, Any], str]) -> None:
    states = {name: row["state"] for name, row in blocked[0].items()}
    assert all(state in ("healthy", "blocked") for state in states.values()), blocked[0]
