"""What is printed: one line an error, options as they are typed, and nothing that steers the terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from paperhooks.cli.output import error_line, typed
from paperhooks.errors import DataError, PluginBroken
from paperhooks.testing import run_python
from paperhooks.testing.fake_site import FakeSite, info_source

pytest_plugins = ["paperhooks.testing.site_fixtures"]

COMMANDS = """
import paperhooks, typer
from typing import Annotated

class Hooks:
    @paperhooks.hookimpl
    def register_commands(self, app):
        group = typer.Typer(name="{group}")

        @group.command()
        def go(max_length: Annotated[int, typer.Option("--max-length", min=1)] = 1,
               out: Annotated[str, typer.Option(help="An interrupted run goes on.")] = ""):
            {body}

        @group.command()
        def other(): pass

        app.add_typer(group)
"""


def add(site: FakeSite, number: str, body: str = "pass", group: str = "") -> None:
    """A plugin ``t-NUMBER`` with the commands ``go``, which runs ``body``, and ``other``."""
    module = f"dist_{number}"
    site.add(f"dist-{number}", f"t-{number}", info_source(f"t-{number}", module, extra=f'hooks="{module}_hooks:Hooks"'))
    source = COMMANDS.format(body=body, group=group or f"t-{number}")
    (site.root / f"{module}_hooks.py").write_text(source, encoding="utf-8")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise ValueError('one\\ntwo')", "error: one two"),
        ("raise TypeError('one')", "error: TypeError: one"),
        ("open('/nowhere/at/all')", "error: /nowhere/at/all: No such file or directory"),
        ("{}['a']", "error: KeyError: 'a'"),
        ("raise ValueError('a\\x1b[31mb\\u202e')", r"error: a\x1b[31mb\u202e"),
        ("raise ValueError('https://me:pw@host/?api_key=abc')", "error: https://***@host/?api_key=***"),
        ("raise ValueError('max_length is 0; give max_length=8')", "error: --max-length is 0; give --max-length 8"),
        ("raise ValueError('x' * 100000)", "error: " + "x" * 3993),
    ],
)
def test_whatever_is_raised_is_one_line_with_exit_code_1(site: FakeSite, cli, body: str, said: str) -> None:
    add(site, "one", body)
    code, out, err = cli("t-one", "go")
    assert (code, out) == (1, "")
    assert err.startswith(said)
    assert err.count("\n") == 1
    for words in (("--traceback", "t-one", "go"), ("t-one", "go", "--traceback")):
        code, _, whole = cli(*words)
        assert code == 1
        assert "Traceback" in whole
        assert whole.endswith(err)


def test_notes_that_are_tracebacks_are_no_part_of_the_line() -> None:
    error = PluginBroken("it is broken")
    error.add_note("Traceback\n  more\n")
    error.add_note("in the demo")
    assert error_line(error, {}) == "it is broken (in the demo)"
    assert error_line(DataError("a\nb"), {}) == "a b"


def test_lists_keep_their_lines_and_nothing_in_them_steers_the_terminal() -> None:
    error = DataError("it has 2 faults:\n  q1: max_length is 0\x1b[31m\r\n\nhere\n  q2: key https://me:pw@host/")
    error.add_note("in the demo")
    assert error_line(error, {"max_length": "--max-length"}).splitlines() == [
        "it has 2 faults: (in the demo)", r"  q1: --max-length is 0\x1b[31m here", "  q2: key https://***@host/",
    ]  # fmt: skip
    assert error_line(ValueError("a:\n  b"), {}) == "a: b"  # lines of others


def test_long_lists_are_printed_whole_and_huge_ones_counted() -> None:
    lines = [f"question {i}: {'x' * 50}" for i in range(1000)]
    found = error_line(DataError("\n  ".join(["faults:", *lines[:399]])), {}).splitlines()
    assert found == ["faults:", *(f"  {line}" for line in lines[:399])]
    found = error_line(DataError("\n  ".join(["faults:", *lines])), {}).splitlines()
    assert (len(found), found[-2], found[-1]) == (401, f"  {lines[398]}", "  ... and 601 more lines")


def test_names_of_parameters_become_options_and_other_words_stay() -> None:
    options = {"max_length": "--max-length", "data": "--data", "truncate": "--truncate"}
    text = "give truncate=True, max_length= or data='x'; data/max_length.json and the data stay, 'max_length' too"
    assert typed(text, options) == (
        "give --truncate, --max-length or --data 'x'; data/max_length.json and the data stay, 'max_length' too"
    )


@pytest.mark.parametrize("value", ["0", "-3", "x"])
def test_counts_that_cannot_be_meant_are_refused_as_usage(site: FakeSite, cli, value: str) -> None:
    add(site, "one")
    code, _, err = cli("t-one", "go", "--max-length", value)
    assert code == 2
    assert "--max-length" in err
    assert err.count("\n") == 1
    assert err.endswith("(see: paperhooks t-one go --help)\n")


def test_a_word_that_is_none_of_a_choice_is_refused_in_words_of_the_command(cli) -> None:
    code, _, err = cli("compress", "m", "x", "--data", "d", "--out", "o", "--dtype", "int1")
    assert (code, "pydantic" in err, "Value error" in err) == (2, False, False)
    assert err.startswith("error: Invalid value for '--dtype': 'int1' is not one of 'auto', ")


@pytest.mark.parametrize("body", ["raise KeyboardInterrupt", "import os, signal; os.kill(os.getpid(), signal.SIGINT)"])
@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_says_that_the_command_goes_on(site: FakeSite, cli, body: str) -> None:
    add(site, "one", body)
    assert cli("t-one", "go") == (130, "", "stopped; the same command goes on where this one stopped\n")


def test_ctrl_c_says_what_is_done_where_that_is_known(site: FakeSite, cli) -> None:
    add(site, "one", "e = KeyboardInterrupt(); e.add_note('3 of 8 are done'); raise e")
    assert "stopped; 3 of 8 are done; the same command" in cli("t-one", "go")[2]


def test_ctrl_c_counts_what_the_folder_holds(site: FakeSite, cli, tmp_path: Path) -> None:
    add(site, "one", "raise KeyboardInterrupt")
    (tmp_path / "run" / "scoring" / "units").mkdir(parents=True)
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / "run" / "scoring" / "units" / name).touch()
    (tmp_path / "run" / "samples.jsonl").write_text("{}\n{}\n{}\n")
    err = cli("t-one", "go", "--out", str(tmp_path / "run"))[2]
    assert f"stopped; 2 units and 3 answers are kept in {tmp_path / 'run'}; the same command goes on" in err


def test_commands_do_not_take_the_place_of_others(site: FakeSite, cli, caplog) -> None:
    add(site, "one", "typer.echo('mine')", group="shared")
    add(site, "two", "typer.echo('theirs')", group="shared")
    add(site, "three", group="plugins")
    assert cli("shared", "go")[:2] == (0, "mine\n")
    assert "t-one" in cli("plugins")[1]
    assert "plugin 't-two': register_commands is left out: the command 'shared' is one of plugin 't-one'" in caplog.text
    assert "plugin 't-three': register_commands is left out: the command 'plugins' is one of paperhooks" in caplog.text


@pytest.mark.parametrize(
    "source",
    [
        COMMANDS.replace("app.add_typer(group)", "raise SystemExit(0)"),
        COMMANDS.replace("app.add_typer(group)", "app.command()(lambda x: 1)\n        app.command('b')(7)"),
        COMMANDS.replace("max_length: Annotated[int, typer.Option(\"--max-length\", min=1)]", "max_length: int | str"),
    ],
)  # fmt: skip
def test_commands_that_cannot_be_built_stop_nobody(site: FakeSite, cli, caplog, source: str) -> None:
    add(site, "good", "typer.echo('fine')")
    add(site, "bad")
    (site.root / "dist_bad_hooks.py").write_text(source.format(body="pass", group="t-bad"))
    assert cli("t-good", "go")[:2] == (0, "fine\n")
    assert "plugin 't-bad': register_commands is left out" in caplog.text


def test_json_stays_json_whatever_plugins_print_and_say(site: FakeSite) -> None:
    noise = "import os\nprint('hello')\nos.write(1, b'raw\\n')\nos.system('echo shell')\n"
    site.add("dist-one", "t-one", noise + info_source("t-one", "dist_one", extra='hooks="dist_one_hooks"'))
    (site.root / "dist_one_hooks.py").write_text("print('more')\n")
    site.add("dist-bad", "t-bad", "raise ValueError('\\x1b[31m\\x07')\n")
    code = f"import sys; sys.path.insert(0, {str(site.root)!r})\n"
    code += "from paperhooks.cli import main\nmain(['plugins', '--json'])"
    done = run_python("-c", code, check=False)
    assert done.returncode == 1
    assert {entry["name"] for entry in json.loads(done.stdout)} >= {"t-one", "t-bad"}
    for said in ("hello", "raw", "shell", "more"):
        assert f"{said}\n" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize("words", [("plugins",), ("plugins", "-v"), ("doctor", "-v"), ("claims", "t-bad")])
def test_nothing_that_plugins_say_steers_the_terminal(site: FakeSite, cli, words, caplog) -> None:
    site.add("dist-bad", "t-bad", "raise ValueError('\\x1b[31m\\u202e[red]\\x07')\n", version="1\u202e")
    summary = info_source("t-odd", "dist_odd").replace("Scales layers.", "Scales\\x1b]0;x\\x07\\u202e [bold]layers")
    site.add("dist-odd", "t-odd", summary)
    _, out, err = cli(*words)
    assert not {"\x1b", "\x07", "\u202e"} & set(out + err + caplog.text)


CLOSED = """
import os
read, write = os.pipe()
os.close(read)
os.dup2(write, 1)
from paperhooks.cli import main
main(["plugins", "--available", "--json"])
"""


def test_a_closed_pipe_is_quiet() -> None:
    assert run_python("-c", CLOSED, check=False).stderr == ""


PRESSED = """
import os, signal, threading, time
import paperhooks.plugins.registry as registry
from paperhooks.cli import main
registry.load_registry = lambda: time.sleep(60)
threading.Timer(4, os.kill, (os.getpid(), signal.SIGINT)).start()
main(["plugins", "--available"])
"""


def test_ctrl_c_in_a_real_process() -> None:
    done = run_python("-c", PRESSED, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped\n")
