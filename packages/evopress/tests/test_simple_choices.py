"""The best of the baselines as a method: what is kept, what is undone, and how an interrupted run goes on."""

from __future__ import annotations

import json
from pathlib import Path

import paperhooks
import pytest
import torch
from paperhooks import DataError
from paperhooks.testing import fingerprint, tiny_llama
from paperhooks_evopress import BestBaseline, Evaluator, EvoPress, SublayerDrop
from paperhooks_evopress.baselines import BASELINES
from paperhooks_evopress.report import SearchRun, described, write_front
from torch import nn

IDS = torch.tensor([[5, 6, 7, 8, 9]])
OPTIONS = {"tokens": 48, "random_tokens": 96, "check_model": False}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def texts(seed: int = 0, n: int = 8) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 90, (20 + i,), generator=generator).tolist() for i in range(n)]


def best(model: nn.Module, target: str, *, data=None, levels_from=(), out=None, **options):
    return paperhooks.compress(
        model, BestBaseline(**{**OPTIONS, **options}), data=data or texts(), target=target, levels_from=levels_from,
        out=out, progress=False,
    )  # fmt: skip


@torch.no_grad()
def divergence(model: nn.Module, whole: nn.Module, rows: list[list[int]]) -> float:
    """KL a predicted position by two plain passes."""
    total, positions = 0.0, 0
    for row in rows:
        ids = torch.tensor([row])
        ours, own = (each(ids).logits[0, :-1].double().log_softmax(-1) for each in (model, whole))
        total += float((own.exp() * (own - ours)).sum())
        positions += len(own)
    return total / positions


def test_sizes_are_those_of_the_whole_model_with_what_stays() -> None:
    model = tiny_llama(layers=3)
    whole = sum(each.numel() * each.element_size() for each in model.parameters())
    artefact = best(model, "depth=1", data={"calibration": texts(), "held_out": texts(1)})
    kept = sum(each.numel() * each.element_size() for each in model.parameters())
    assert kept < whole
    assert {row["size"] for row in artefact.data["table"]} == {kept}
    artefact.undo()


def test_what_is_told_is_what_the_model_is(tmp_path: Path) -> None:
    model, whole = tiny_llama(layers=3), tiny_llama(layers=3)
    before = fingerprint(model)
    data = {"calibration": texts(), "held_out": texts(1)}
    artefact = best(model, "bits=3", data=data, out=tmp_path / "run")
    told = next(row for row in artefact.data["table"] if row["name"] == artefact.data["baseline"])
    assert told["fitness"] == min(row["fitness"] for row in artefact.data["table"])
    assert divergence(model, whole, texts()) == pytest.approx(told["fitness"], rel=1e-3)
    assert divergence(model, whole, texts(1)) == pytest.approx(told["held_out"], rel=1e-3)
    values = sum(p.numel() * p.element_size() for p in model.parameters())
    packed = sum(edit.packed.nbytes - 4 * edit.entries for edit in artefact.edits.values())
    assert told["size"] == values + packed
    artefact.undo()
    assert fingerprint(model) == before


def test_held_out_text_decides_nothing() -> None:
    alone = best(tiny_llama(layers=2), "sparsity=0.5")
    beside = best(tiny_llama(layers=2), "sparsity=0.5", data={"calibration": texts(), "held_out": texts(1)})
    assert alone.data["levels"] == beside.data["levels"]
    assert all(row["held_out"] is None for row in alone.data["table"])
    for data, said in (
        ({"calibration": texts(), "heldout": texts()}, "part 'heldout'"),
        ({"held_out": texts()}, "no part 'calibration'"),
    ):
        with pytest.raises(DataError, match=said):
            best(tiny_llama(layers=2), "bits=3", data=data)


def test_long_texts_are_divided_and_not_cut() -> None:
    whole = [[token for row in texts() for token in row]]
    one = best(tiny_llama(layers=2), "depth=1", data=whole, max_length=24, baselines="shortgpt")
    parts = [whole[0][i : i + 24] for i in range(0, len(whole[0]), 24)]
    two = best(tiny_llama(layers=2), "depth=1", data=parts, max_length=24, baselines="shortgpt")
    assert len(parts) > 5
    assert one.data["table"][0]["fitness"] == two.data["table"][0]["fitness"]


def test_an_interrupted_comparison_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = best(tiny_llama(layers=2), "bits=3", out=tmp_path / "whole").data
    model = tiny_llama(layers=2)
    before = fingerprint(model)

    def interrupted(setting):
        setting.scores([{}])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(BASELINES, "additive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            best(model, "bits=3", out=tmp_path / "cut")
    assert fingerprint(model) == before
    there = json.loads((tmp_path / "cut" / "result.json").read_text())["results"]["tried"]
    assert set(there) == {"uniform", "random"}
    for name in there:  # what was done is not done again
        monkeypatch.setitem(BASELINES, name, interrupted)
    found = best(model, "bits=3", out=tmp_path / "cut").data

    def plain(told):
        return [{key: value for key, value in row.items() if key != "seconds"} for row in told["table"]]

    assert plain(found) == plain(wanted)
    assert found["levels"] == wanted["levels"]


def test_baselines_that_cannot_answer_are_told_or_refused() -> None:
    """Where no whole layer may go, what leaves out whole layers has no answer."""
    model = tiny_llama(layers=2)
    artefact = best(model, "depth=1", levels_from=[SublayerDrop()])
    assert artefact.data["left_out"] == {}
    artefact.undo()
    artefact = best(model, "depth=1", levels_from=[OneMlp()])
    assert {"shortgpt", "window_cosine"} <= set(artefact.data["left_out"])
    assert "uniform" in {row["name"] for row in artefact.data["table"]}
    artefact.undo()
    before = fingerprint(model)
    with pytest.raises(paperhooks.PaperhooksError):
        best(model, "depth=1", levels_from=[OneMlp()], baselines="shortgpt")
    assert fingerprint(model) == before


class OneMlp(SublayerDrop):
    """Offers to leave out the first attention, and any MLP."""

    @paperhooks.hookimpl
    def compression_levels(self, view, modules):
        found = super().compression_levels(view, modules)
        return {name: own for name, own in found.items() if name.endswith(("0.self_attn", "1.mlp"))}


def test_several_budgets_make_a_front(tmp_path: Path) -> None:
    data = {"calibration": texts(), "held_out": texts(1)}
    for target in ("bits=2.5", "bits=4"):
        best(tiny_llama(layers=2), target, data=data, out=tmp_path / target, baselines=("uniform", "random")).undo()
    rows = write_front([tmp_path / "bits=2.5", tmp_path / "bits=4"], tmp_path / "front")
    assert [row["target"] for row in rows] == ["bits=2.5", "bits=2.5", "bits=4", "bits=4"]
    for row in rows:
        beaten = any(o["size"] <= row["size"] and o["lost"] < row["lost"] for o in rows)
        assert row["front"] is not beaten
    assert {row["target"] for row in rows if row["front"]} == {"bits=2.5", "bits=4"}
    assert write_front([tmp_path / "bits=2.5", tmp_path / "bits=4", tmp_path / "bits=4"], tmp_path / "twice") == rows
    for name in ("front.png", "report.html", "report.md"):
        assert (tmp_path / "front" / name).is_file()
    best(tiny_llama(layers=2), "bits=3", out=tmp_path / "alone", baselines="uniform").undo()
    for other, said in (("alone", "have another data"), ("nowhere", "holds no run")):
        with pytest.raises(DataError, match=said):
            write_front([tmp_path / "bits=4", tmp_path / other], tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_options_that_cannot_be_meant_are_refused() -> None:
    for options, said in (
        ({"baselines": "shortgtp"}, "baselines is 'shortgtp'"),
        ({"tokens": 1}, "tokens"),
        ({"random_tokens": 0}, "random_tokens"),
        ({"fuse": "sglang"}, "fuse"),
        ({"fitness": "loss"}, "fitness"),
        ({"whole_layers": 2}, "whole_layers"),
    ):
        with pytest.raises(ValueError, match=said):
            BestBaseline(**options)


def test_a_search_under_way_is_shown_and_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search, model = EvoPress(schedule="quick", generations=3, check_model=False), tiny_llama(layers=2)
    real, calls = Evaluator.score, []

    def late(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("the power is off")
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "score", late)
        with pytest.raises(RuntimeError, match="the power is off"):
            paperhooks.compress(model, search, data=texts(), target="bits=3", out=tmp_path / "run", progress=False)
    run = SearchRun.open(tmp_path / "run")
    assert not run.finished
    lines = described(run)
    assert "search for bits=3, running, seed 0" in lines
    assert any(line.startswith("the choice of the last generation:") for line in lines)
    with pytest.raises(DataError, match="is not finished"):
        best(model, "bits=3", run=str(tmp_path / "run"))


def test_the_folder_of_a_search_is_read(tmp_path: Path) -> None:
    model = tiny_llama(layers=2)
    search = EvoPress(schedule="quick", generations=2, check_model=False)
    artefact = paperhooks.compress(model, search, data=texts(), target="bits=3", out=tmp_path / "run", progress=False)
    run = SearchRun.open(tmp_path / "run")
    assert run.finished
    assert run.chosen == artefact.data["levels"]
    assert len(run.history) == 3
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert run.options == result["inputs"]["method"]["options"]
    artefact.undo()
    lines = described(run)
    assert any("search for bits=3, finished" in line for line in lines)
    assert sum(line.startswith(("self_attn.", "mlp.")) for line in lines) == 7
    best(model, "bits=3", out=tmp_path / "other").undo()
    with pytest.raises(DataError, match="expected the folder of a search by EvoPress"):
        SearchRun.open(tmp_path / "other")
