"""``paperhooks evopress ...`` on a saved model, as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from paperhooks import Artefact
from paperhooks.testing import tiny_llama
from paperhooks_evopress.baselines import baselines_of
from paperhooks_evopress.report import level_strip
from transformers import AutoModelForCausalLM

pytest_plugins = ["paperhooks.testing.site_fixtures"]

IDS = torch.tensor([[5, 6, 7, 8, 9, 41, 12, 3]])
SEARCH = "evopress:schedule=quick,generations=2,check_model=false"


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_texts(path: Path, seed: int) -> str:
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(3, 90, (20 + i,), generator=generator).tolist() for i in range(8)]
    path.write_text("".join(json.dumps({"input_ids": ids}) + "\n" for ids in rows))
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, texts, and other texts."""
    path = tmp_path_factory.mktemp("user")
    tiny_llama(layers=3).save_pretrained(path / "model")
    write_texts(path / "texts.jsonl", 0)
    write_texts(path / "others.jsonl", 1)
    return path


def searched(cli, folder: Path, target: str, out: str, *more: str, search: str = SEARCH) -> Path:
    run = folder / out
    if not run.exists():
        data = str(folder / "texts.jsonl")
        given = ("compress", str(folder / "model"), search, "--data", data, "--target", target, "--out", str(run))
        code, _, err = cli(*given, *more)
        assert code == 0, err
    return run


def compared(cli, folder: Path, *options: str) -> tuple[int, str, str]:
    return cli(
        "evopress", "baselines", str(folder / "model"), "--data", str(folder / "texts.jsonl"), "--tokens", "48",
        *options,
    )  # fmt: skip


def table(out: str) -> dict[str, list[str]]:
    """Cells of each row, by its first."""
    rows = [line.split() for line in out.splitlines() if line.startswith(tuple("abcdefghijklmnopqrstuvwxyz"))]
    return {row[0]: row[1:] for row in rows}


def test_the_winner_of_a_search_stands_beside_all_baselines_of_its_problem(cli, folder: Path) -> None:
    run = searched(cli, folder, "bits=3", "bits")
    code, out, err = compared(
        cli, folder, "--run", str(run), "--held-out", str(folder / "others.jsonl"), "--out", str(folder / "compared")
    )
    assert code == 0, err
    found = table(out)
    assert {"evopress", *baselines_of("bits")} <= set(found)
    told = json.loads((folder / "compared" / "result.json").read_text())["results"]["data"]
    rows = {row["name"]: row for row in told["table"]}
    winner = Artefact.load(run)
    assert rows["evopress"]["fitness"] == pytest.approx(winner.data["final"], rel=1e-6)
    assert rows["evopress"]["tokens"] == winner.data["evaluations"]
    assert rows["uniform"]["tokens"] == 0 < rows["random"]["tokens"] == 32 * 48
    assert all(row["cost"] <= winner.data["budget"] for row in rows.values())
    assert all(row["held_out"] > 0 and row["size"] > 0 for row in rows.values())
    assert (
        told["baseline"]
        == min((r for r in rows.values() if r["name"] != "evopress"), key=lambda r: r["fitness"])["name"]
    )
    for name in ("report.html", "report.md", "pareto.png"):
        assert (folder / "compared" / name).exists()
    # What is kept is the best simple choice, as an artefact like any other.
    best = Artefact.load(folder / "compared")
    assert {n: each["label"] for n, each in best.data["levels"].items()} == rows[told["baseline"]]["choice"]
    assert not (folder / "compared" / "database").exists()  # the search had made the levels
    code, again, err = compared(
        cli, folder, "--run", str(run), "--held-out", str(folder / "others.jsonl"), "--out", str(folder / "compared")
    )
    assert (code, table(again)) == (0, found), err


def test_several_budgets_are_drawn(cli, folder: Path) -> None:
    there = []
    for target in ("bits=3", "bits=4"):
        given = ("--target", target, "--search", SEARCH, "--baseline", "uniform", "--out", str(folder / target))
        assert compared(cli, folder, *given)[0] == 0
        there.append(str(folder / target))
    code, out, err = cli("evopress", "front", *there, "--out", str(folder / "front"))
    assert code == 0, err
    assert [line.split(", ")[0].partition(": ")[2] for line in out.splitlines()[:2]] == [
        "uniform at bits=3", "uniform at bits=4",
    ]  # fmt: skip
    assert (folder / "front" / "report.html").is_file()


@pytest.mark.parametrize("target", ["depth=0.34", "sparsity=0.5", "bytes=60kB"])
def test_every_kind_of_target_has_baselines(cli, folder: Path, target: str) -> None:
    code, out, err = compared(cli, folder, "--target", target, "--search", SEARCH, "--random-tokens", "96")
    assert code == 0, err
    kind = target.partition("=")[0]
    told = table(out)
    assert set(baselines_of(kind)) <= set(told)
    assert "held out" not in out
    assert int(told["random"][-2]) == 96


def test_what_does_not_fit_is_refused_by_name(cli, folder: Path) -> None:
    run = str(searched(cli, folder, "bits=3", "bits"))
    for options, said in (
        ((), "give --target, or --run"),
        (("--target", "bits=3", "--search", SEARCH, "--baseline", "owl"), "'owl' does not answer bits=3"),
        (("--target", "bits=3", "--baseline", "olw"), "baselines is 'olw'"),
        (("--target", "bits=3", "--search", "evopress/gptq"), "expected evopress"),
        (("--target", "bits=3", "--run", run, "--search", SEARCH), "give one of them"),
        (("--target", "bits=4", "--run", run), "made with target 'bits=3', not 'bits=4'"),
        (("--run", run, "--levels-from", "evopress/gptq:widths=[2,4]"), "not offered here"),
        (("--run", str(folder / "model")), "holds no run"),
    ):
        code, _, err = compared(cli, folder, *options)
        assert code != 0, options
        assert said in " ".join(err.split()), (options, err)
    code, _, err = cli(
        "evopress", "baselines", str(folder / "model"), "--data", str(folder / "others.jsonl"), "--run", run
    )
    assert code != 0
    assert "made with another data" in " ".join(err.split())


@pytest.mark.parametrize(
    ("target", "out", "form"),
    [("depth=0.34", "depth", "zeroed"), ("depth=0.34", "depth", "skip-list"), ("sparsity=0.5", "sparsity", "sparse")],
)
def test_exports_are_written_and_read_back(cli, folder: Path, target: str, out: str, form: str) -> None:
    run = searched(cli, folder, target, out)
    there = folder / f"as-{form}"
    given = ("evopress", "export", str(folder / "model"), str(run), "--format", form, "--out", str(there))
    code, printed, err = cli(*given)
    assert code == 0, err
    assert "read back and gives the logits" in printed
    if form != "skip-list":
        model = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
        Artefact.load(run).apply(model)
        with torch.no_grad():
            wanted = model(IDS).logits
            assert torch.allclose(AutoModelForCausalLM.from_pretrained(there).eval()(IDS).logits, wanted, atol=1e-5)
    code, _, err = cli(*given)
    assert code == 1
    assert "is there already" in err


def test_an_export_that_cannot_hold_the_model_is_refused(cli, folder: Path) -> None:
    run = searched(cli, folder, "depth=0.34", "depth")
    there = folder / "refused"
    code, _, err = cli("evopress", "export", str(folder / "model"), str(run), "--format", "sparse", "--out", str(there))
    assert code == 1
    assert "is left out" in err
    assert not there.exists()


def test_a_search_is_shown(cli, folder: Path) -> None:
    run = searched(cli, folder, "depth=0.34", "depth")
    code, out, err = cli("evopress", "show", str(run))
    assert code == 0, err
    assert "search for depth=0.34, finished" in out
    strip = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith(("self_attn", "mlp"))}
    assert strip.keys() == {"self_attn", "mlp"}
    assert all(sorted(cells) == ["0", "1", "1"] or sorted(cells) == ["0", "0", "1"] for cells in strip.values())
    assert "all 9 states were scored instead of searched" in out
    code, _, err = cli("evopress", "show", str(folder / "model"))
    assert code == 1
    assert "holds no run" in err


def test_levels_are_shown_by_layer() -> None:
    chosen = {
        f"model.layers.{layer}.mlp.{leaf}": {"label": label}
        for layer, leaf, label in ((0, "up", "10 bits"), (0, "down", "2 bits"), (2, "up", "2 bits"))
    }
    assert level_strip(chosen) == [
        "          0 1 2",
        "mlp.up    1 · 0",
        "mlp.down  0 · ·",
        "0 2 bits (2), 1 10 bits (1), · as it is, or part of what is left out",
    ]
