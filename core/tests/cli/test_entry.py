"""The command line: what is printed, and the three exit codes."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from paperhooks.cli import build_methods, parse_value
from paperhooks.cli.options import load_records, parse_method
from paperhooks.errors import DataError
from paperhooks.testing import run_python
from paperhooks.testing.fake_site import METHOD, FakeSite, info_source

pytest_plugins = ["paperhooks.testing.site_fixtures"]


def test_plugins_lists_healthy_ones_with_exit_code_0(site: FakeSite, cli) -> None:
    site.add("dist-one", "t-one", version="3.1")
    code, out, _ = cli("plugins")
    assert code == 0
    assert any(line.split()[:3] == ["t-one", "3.1", "healthy"] for line in out.splitlines())
    assert "t-one/t-one: post_layer" in cli("plugins", "-v")[1]


def test_plugins_shows_what_is_broken_why_and_the_fix_with_exit_code_1(site: FakeSite, cli) -> None:
    site.add("dist-bad", "t-bad", "import a_module_that_is_not_there\n", requires=["a-module-that-is-not-there"])
    code, out, _ = cli("plugins")
    assert code == 1
    assert "t-bad of dist-bad 1.0 is broken: ModuleNotFoundError" in out
    assert "pip install a-module-that-is-not-there" in out
    assert "Traceback" not in out
    assert "Traceback" in cli("plugins", "-v")[1]


def test_plugins_as_json_is_json(site: FakeSite, cli) -> None:
    site.add("dist-one", "t-one")
    site.add("dist-bad", "t-bad", "1 / 0\n")
    code, out, _ = cli("plugins", "--json")
    found = {entry["name"]: entry for entry in json.loads(out)}
    assert code == 1
    assert found["t-one"]["methods"] == {"t-one": "dist_one_method:Scale"}
    assert "ZeroDivisionError" in found["t-bad"]["error"]


def test_available_plugins_come_from_the_registry(own_catalog, cli) -> None:
    code, out, _ = cli("plugins", "--available")
    assert code == 0
    assert "pip install paperhooks-pyramiddrop" in out
    assert json.loads(cli("plugins", "--available", "--json")[1])[0]["name"] == "pyramiddrop"
    assert "paperhooks plugins --available" in cli("plugins")[1]


def test_duplicates_are_shown_loudly(site: FakeSite, cli) -> None:
    site.add("dist-one", "t-same")
    site.add("dist-two", "t-same", info_source("t-same", "dist_two"))
    code, out, _ = cli("plugins")
    assert code == 1
    assert "conflict:" in out
    assert "dist-one 1.0" in out
    assert "dist-two 1.0" in out


def test_doctor_is_calm_when_all_is_well(site: FakeSite, cli) -> None:
    site.add("dist-one", "t-one")
    code, out, _ = cli("doctor")
    assert code == 0, out
    assert "hook API 1" in out


def test_doctor_finds_what_breaks_only_at_use(site: FakeSite, cli) -> None:
    site.add("dist-bad", "t-bad", method="import nothing_of_that_name\n")
    code, out, _ = cli("doctor", "--json")
    problems = {entry["subject"]: entry for entry in json.loads(out) if entry["verdict"] == "problem"}
    assert code == 1
    assert "nothing_of_that_name" in problems["method t-bad/t-bad"]["found"]
    assert "nothing_of_that_name" in cli("doctor", "-v")[1]


def test_errors_are_one_message_and_the_traceback_comes_on_request(site: FakeSite, cli) -> None:
    code, _, err = cli("claims", "nobody")
    assert code == 1
    assert err.startswith("error: no plugin is called 'nobody'")
    assert "Traceback" not in err
    code, _, err = cli("-v", "claims", "nobody")
    assert code == 1
    assert "Traceback" in err


@pytest.mark.parametrize("arguments", [("nonsense",), ("plugins", "--nonsense"), ("describe",), ("new",)])
def test_wrong_usage_is_exit_code_2(own_catalog, cli, arguments) -> None:
    assert cli(*arguments)[0] == 2


def test_version(own_catalog, cli) -> None:
    import paperhooks

    assert cli("--version")[:2] == (0, f"{paperhooks.__version__}\n")


def test_demo_reports_success_and_failure(site: FakeSite, cli, tmp_path: Path, monkeypatch) -> None:
    # Plugins that happen to be installed have demos of their own, which would run here too.
    installed = {point.name for point in importlib.metadata.entry_points(group="paperhooks.plugins")} - {"t-one"}
    monkeypatch.setenv("PAPERHOOKS_BLOCK", ",".join(installed))
    site.add("dist-one", "t-one", info_source("t-one", "dist_one", extra='demo="dist_one_method:run"'))
    with (site.root / "dist_one_method.py").open("a") as file:
        file.write("\ndef run(context):\n    context.echo('hello')\n    assert context.quick\n")
    code, out, _ = cli("demo", "t-one", "--quick", "--out", str(tmp_path / "demo"))
    assert (code, out.splitlines()[0]) == (0, "hello")
    assert (tmp_path / "demo" / "t-one").is_dir()
    code, _, err = cli("demo", "--out", str(tmp_path / "demo"))
    assert code == 1
    assert "t-one" in err


def test_plugins_add_their_own_commands(site: FakeSite, cli) -> None:
    source = """
import paperhooks, typer

class Hooks:
    @paperhooks.hookimpl
    def register_commands(self, app):
        mine = typer.Typer()
        mine.command("hello")(lambda: typer.echo("hello from a plugin"))
        mine.command("other")(lambda: None)
        app.add_typer(mine, name="t-one")
"""
    site.add("dist-one", "t-one", info_source("t-one", "dist_one", extra='hooks="dist_one_hooks:Hooks"'))
    (site.root / "dist_one_hooks.py").write_text(source)
    assert cli("t-one", "hello")[:2] == (0, "hello from a plugin\n")


def test_registry_commands(own_catalog, cli, tmp_path: Path) -> None:
    (tmp_path / "registry.toml").write_text("schema = 2\n")
    code, _, err = cli("registry", "check", str(tmp_path))
    assert code == 1
    assert "schema = 2 must be one of 1" in err
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- paperhooks-plugins:start -->\n<!-- paperhooks-plugins:end -->\nb\n")
    from paperhooks.plugins.registry import find_registry

    assert cli("registry", "table", str(find_registry()), "--write", str(readme))[0] == 0
    assert "| [pyramiddrop](packages/pyramiddrop) |" in readme.read_text()


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("a", "a", {}),
        ("a/b:", "a/b", {}),
        ("a:k=1", "a", {"k": 1}),
        ("a:k=-1.5e-3,m=renumber", "a", {"k": -1.5e-3, "m": "renumber"}),
        ("a:s={8: 0.5, 16: 0.25},t=(1, 2),u='x,y'", "a", {"s": {8: 0.5, 16: 0.25}, "t": (1, 2), "u": "x,y"}),
        ("a:x=true,y=False,z=none", "a", {"x": True, "y": False, "z": None}),
        ("a:x=runs/b-2.5, y=/c/d,z=../e", "a", {"x": "runs/b-2.5", "y": "/c/d", "z": "../e"}),
        ("a:x='k=b/c',y=\"it's=d/e\"", "a", {"x": "k=b/c", "y": "it's=d/e"}),
    ],
)
def test_methods_are_written_with_their_options(text: str, name: str, options: dict) -> None:
    assert parse_method(text) == (name, options)


@pytest.mark.parametrize(
    "text", [":k=1", "a:k", "a:k=", "a:**k", "a:k=__import__('os')", "a:k=1)+f(b=2", "a:k=1/2", "a:k=b-2"]
)
def test_malformed_methods_are_usage_errors_and_never_run(own_catalog, cli, text: str, tmp_path: Path) -> None:
    code, _, _ = cli("describe", str(tmp_path), "-p", text)
    assert code in (1, 2)
    import typer

    with pytest.raises(typer.BadParameter):
        parse_method(text)


@pytest.mark.parametrize(
    "value", ["[" * 5000, "-" * 100_000 + "1", "1" * 5000, "{[]: 1}", "a\0b", "1+" * 50_000 + "1", "'\ud83d'" * 2000]
)
def test_options_that_python_cannot_read_are_one_line_of_usage(site: FakeSite, cli, value: str) -> None:
    site.add("dist-one", "t-one")
    code, _, err = cli("describe", "nowhere", "-p", f"t-one:factor={value}")
    assert code in (1, 2)
    assert "Traceback" not in err
    assert len(err) < 2500
    parse_value(value)  # text, or a value that the option refuses


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("t-one:faktor=1", "did you mean 'factor'"),
        ("t-one:factor", "are not of the form k=v"),
        ("t-one:factor={40: 0.5}", "factor is {40: 0.5}"),
    ],
)
def test_options_of_methods_are_checked_before_the_model_is_looked_at(
    site: FakeSite, cli, text: str, said: str
) -> None:
    check = "        if not isinstance(self.factor, float): raise TypeError(f'factor is {self.factor}')\n"
    site.add(
        "dist-one",
        "t-one",
        method=METHOD + "\n    def __post_init__(self):\n".replace("    ", "        ", 1) + "    " + check,
    )
    code, _, err = cli("describe", "nowhere", "-p", text)
    assert (code, said in " ".join(err.split())) == (2, True), err
    code, _, err = cli("describe", "nowhere", "-p", "t-nobody")
    assert (code, "'t-nobody'" in err) == (1, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("compress", "nowhere", "t-one", "--data", "{}/none.jsonl", "--out", "{}/run"), "none.jsonl"),
        (("compress", "nowhere", "t-one:x=1", "--data", "{}/a.txt", "--out", "{}/run"), "no option 'x'"),
        (("compress", "nowhere", "t-one", "--data", "{}/a.txt", "--out", "{}/a.txt"), "is a file"),
        (("compress", "nowhere", "t-one", "--data", "{}/a.txt", "--out", "s3://a/b"), "is an address"),
        (("compress", "nowhere", "t-one", "--data", "{}/a.txt", "--out", "{}/run", "--seed", "-1"), "--seed"),
        (
            ("select", "t-one", "--corpus", "{}/none", "--ratio", "0.5", "--out", "{}/run", "--teacher", "nowhere"),
            "none",
        ),
        (("select", "t-one:x=1", "--corpus", "{}/a.txt", "--ratio", "0.5", "--out", "{}/run"), "no option 'x'"),
        (("select", "t-one", "--corpus", "{}/a.txt", "--ratio", "1.5", "--out", "{}/run"), "--ratio"),
        (
            ("select", "t-one", "--corpus", "{}/a.txt", "--ratio", "1", "--out", "{}/run", "--batch-size", "0"),
            "--batch-size",
        ),
    ],
)
def test_cheap_checks_come_before_a_model_is_loaded(
    site: FakeSite, cli, tmp_path: Path, monkeypatch, words, said
) -> None:
    def load(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("paperhooks.cli.work.load_model", load)
    site.add("dist-one", "t-one", method=SCORER)
    (tmp_path / "a.txt").write_text("one\n")
    code, _, err = cli(*(word.format(tmp_path) for word in words))
    assert code in (1, 2)
    assert said in " ".join(err.split())
    assert "Assertion" not in err


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("0.5", 0.5),
        ("''", ""),
        ("true", True),
        ("None", None),
        ("a/b c.json", "a/b c.json"),
        ("[1, 2]", [1, 2]),
    ],
)
def test_a_value_alone_may_be_plain_text(text: str, value: object) -> None:
    assert parse_value(text) == value


def test_options_reach_the_method(site: FakeSite) -> None:
    site.add("dist-one", "t-one")
    assert build_methods(["t-one:factor=0.25"])[0].factor == 0.25


def test_records_are_read_with_the_line_of_a_fault(tmp_path: Path) -> None:
    rows = tmp_path / "a.jsonl"
    rows.write_text('"one"\n\n{"question": "two", "answer": "2"}\n')
    assert load_records(str(rows)) == ["one", {"question": "two", "answer": "2"}]
    rows.write_text('"one"\n[2]\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: expected a text or an object, not list"):
        load_records(str(rows))
    rows.write_text('"one"\n{"text"\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2.*JSON"):
        load_records(str(rows))
    rows.write_text("")
    with pytest.raises(DataError, match=r"a\.jsonl"):
        load_records(str(rows))
    plain = tmp_path / "a.txt"
    plain.write_text("one\ntwo\n\n three\n")
    assert load_records(str(plain)) == ["one\ntwo", "three"]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    """A tiny random Llama model on disk: config and weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("model")
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_describe_reads_only_the_config(site: FakeSite, cli, tmp_path: Path, model_folder: Path) -> None:
    site.add("dist-one", "t-one")
    (tmp_path / "config.json").write_bytes((model_folder / "config.json").read_bytes())
    code, out, err = cli("describe", str(tmp_path), "-p", "t-one:factor=0.5")
    assert code == 0, err
    assert "t-one" in out or "Scale" in out
    code, _, err = cli("describe", str(tmp_path / "nowhere"), "-p", "t-one")
    assert code == 1
    assert "nowhere" in err


def test_compress_passes_everything_on(site: FakeSite, cli, tmp_path: Path, model_folder: Path, monkeypatch) -> None:
    site.add("dist-one", "t-one")
    (tmp_path / "texts.txt").write_text("one\n\ntwo\n")
    seen = SimpleNamespace()

    def compress(model, method, **options):
        seen.model, seen.method, seen.options = model, method, options
        return "an artefact"

    module = ModuleType("paperhooks.compression")
    module.compress = compress
    monkeypatch.setitem(sys.modules, "paperhooks.compression", module)
    code, out, err = cli(
        "compress", str(model_folder), "t-one:factor=0.125", "--data", str(tmp_path / "texts.txt"),
        "--target", "3.0bit", "--out", str(tmp_path / "run"), "--seed", "5",
    )  # fmt: skip
    assert code == 0, err
    assert "an artefact" in out
    assert seen.method.factor == 0.125
    assert seen.options == {"data": ["one", "two"], "target": "3.0bit", "out": tmp_path / "run", "seed": 5}
    assert not seen.model.training


def test_compress_reads_no_more_records_than_are_wanted(
    site: FakeSite, cli, tmp_path: Path, model_folder: Path, monkeypatch
) -> None:
    site.add("dist-one", "t-one")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('"one"\n"two"\nno record\n')
    seen = SimpleNamespace()
    module = ModuleType("paperhooks.compression")
    module.compress = lambda model, method, **options: setattr(seen, "data", options["data"])
    monkeypatch.setitem(sys.modules, "paperhooks.compression", module)
    words = [
        "compress",
        str(model_folder),
        "t-one",
        "--data",
        str(tmp_path / "rows.jsonl"),
        "--out",
        str(tmp_path / "o"),
    ]
    assert cli(*words)[0] != 0
    code, _, err = cli(*words, "--limit", "2")
    assert code == 0, err
    assert seen.data == ["one", "two"]


def test_compress_takes_levels_of_further_methods(
    site: FakeSite, cli, tmp_path: Path, model_folder: Path, monkeypatch
) -> None:
    site.add("dist-one", "t-one")
    (tmp_path / "texts.txt").write_text("one\n")
    seen = SimpleNamespace()
    module = ModuleType("paperhooks.compression")
    module.compress = lambda model, method, **options: setattr(seen, "options", options)
    monkeypatch.setitem(sys.modules, "paperhooks.compression", module)
    common = (
        "compress",
        str(model_folder),
        "t-one",
        "--data",
        str(tmp_path / "texts.txt"),
        "--out",
        str(tmp_path / "r"),
    )
    code, _, err = cli(*common, "--levels-from", "t-one:factor=0.5", "--levels-from", "t-one:factor=0.25")
    assert code == 0, err
    assert [each.factor for each in seen.options["levels_from"]] == [0.5, 0.25]
    code, _, err = cli(*common, "--levels-from", "t-two")
    assert code == 1
    assert "t-two" in err


def test_compress_takes_parts_and_no_target(
    site: FakeSite, cli, tmp_path: Path, model_folder: Path, monkeypatch
) -> None:
    site.add("dist-one", "t-one")
    one, two = tmp_path / "one.txt", tmp_path / "two.jsonl"
    one.write_text("a\n\nb\n")
    two.write_text('{"text": "c"}\n')
    seen = SimpleNamespace()
    module = ModuleType("paperhooks.compression")
    module.compress = lambda model, method, **options: setattr(seen, "options", options)
    monkeypatch.setitem(sys.modules, "paperhooks.compression", module)
    common = ("compress", str(model_folder), "t-one", "--out", str(tmp_path / "run"))
    code, _, err = cli(*common, "--data", f"target={one}", "--data", f"reference={two}")
    assert code == 0, err
    assert seen.options["data"] == {"target": ["a", "b"], "reference": [{"text": "c"}]}
    assert seen.options["target"] is None
    code, _, err = cli(*common, "--data", str(one), "--data", str(two))
    assert code == 2
    assert "PART=FILE" in err


SCORER = """
from dataclasses import dataclass
import torch, paperhooks

@dataclass(eq=False)
class Scale:
    sign: int = 1
    traits = paperhooks.Traits()

    @paperhooks.hookimpl
    def score_examples(self, views, examples):
        assert set(views) == {"teacher", "reference"}
        return torch.tensor([float(self.sign * example.row) for example in examples])
"""


def test_select_writes_the_best_part(site: FakeSite, cli, tmp_path: Path, model_folder: Path) -> None:
    site.add("dist-one", "t-one", method=SCORER)
    corpus = tmp_path / "c.jsonl"
    corpus.write_text("".join(f'{{"input_ids": [{i}]}}\n' for i in range(6)))
    code, out, err = cli(
        "select", "t-one:sign=-1", "--corpus", str(corpus), "--ratio", "0.5", "--out", str(tmp_path / "run"),
        "--teacher", str(model_folder), "--reference", str(model_folder),
    )  # fmt: skip
    assert code == 0, err
    assert "kept 3 of 6 examples" in out
    kept = [json.loads(line)["input_ids"] for line in (tmp_path / "run" / "selected.jsonl").read_text().splitlines()]
    assert kept == [[0], [1], [2]]


def test_without_typer_the_extra_is_named() -> None:
    code = "import sys; sys.modules['typer'] = None; import paperhooks.cli; paperhooks.cli.main(['plugins'])"
    done = run_python("-c", code, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].endswith("install it with: pip install 'paperhooks[cli]'")
    assert "Traceback" not in done.stderr
