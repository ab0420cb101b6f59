"""What goes on around a search: its plan, its start, the last comparison, an interrupt."""

from __future__ import annotations

import json
from pathlib import Path

import paperhooks
import pytest
import torch
from paperhooks import Artefact, DataError
from paperhooks.testing import fingerprint, tiny_llama
from paperhooks_evopress import EvoPress, algorithm
from paperhooks_evopress.algorithm import Evolution, SearchSchedule, SelectionStage
from paperhooks_evopress.report.search_report import stage_lines
from paperhooks_evopress.spaces.space import Space, Unit, UnitLevel


def texts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 90, (24 + i,), generator=generator).tolist() for i in range(24)]


def compressed(model, target: str, out: Path | None = None, **options) -> Artefact:
    given = {"schedule": "quick", "generations": 3, "check_model": False, **options}
    return paperhooks.compress(model, EvoPress(**given), data=texts(), target=target, out=out, progress=False)


def space() -> Space:
    """Six units of which two are left out."""
    return Space([Unit(f"u{n}", "all", (UnitLevel("in", 1.0), UnitLevel("out", 0.0, True))) for n in range(6)], 4.0)


def test_finalists_are_the_last_the_first_and_those_that_led_longest() -> None:
    schedule = SearchSchedule(12, 2, (SelectionStage(1, 4), SelectionStage(1, 4)), initial=1, exhaustive=0)

    def noise(states, tokens, seed, survivors):
        del tokens, survivors
        return [hash((state, seed)) % 997 / 997 for state in states]

    evolution = Evolution(space(), schedule, noise, 3)
    history = list(evolution.run())
    found = evolution.finalists(50)
    assert found[:2] == (history[-1].best, history[0].best)
    assert len(set(found)) == len(found) == len({each.best for each in history})
    reigns = [sum(each.best == state for each in history) for state in found[2:]]
    assert reigns == sorted(reigns, reverse=True)
    assert evolution.finalists(1) == (history[-1].best,)
    assert evolution.finalists(0) == ()


def test_a_search_begins_where_it_is_told_to() -> None:
    schedule = SearchSchedule(0, 2, (SelectionStage(1, 4),), exhaustive=0)
    start = (0, 1, 0, 0, 1, 0)
    evolution = Evolution(space(), schedule, lambda *_: [], 0, start=start)
    assert [each.best for each in evolution.run()] == [start]
    with pytest.raises(ValueError, match="does not belong to the space"):
        Evolution(space(), schedule, lambda *_: [], 0, start=(1, 1, 1, 0, 0, 0))


def test_the_winner_is_the_best_of_all_text_and_never_worse_than_the_first() -> None:
    model = tiny_llama(layers=3)
    for seed in range(3):
        search = EvoPress(schedule="quick", generations=4, check_model=False)
        artefact = paperhooks.compress(model, search, data=texts(), target="bits=3", seed=seed, progress=False)
        assert artefact.data["final"] <= artefact.data["first"]
        artefact.undo()
    artefact = compressed(model, "bits=3", finalists=0)
    assert "final" not in artefact.data
    artefact.undo()


def test_the_additive_model_is_a_start_that_the_search_does_not_lose(tmp_path: Path) -> None:
    model = tiny_llama(layers=3)
    even = compressed(model, "bits=2.5", generations=0)
    even.undo()
    after = compressed(model, "bits=2.5", tmp_path / "run", start="additive")
    start = json.loads((tmp_path / "run" / "start.json").read_text())["state"]
    assert after.data["final"] <= after.data["first"] < even.data["final"]
    state = json.loads((tmp_path / "run" / "search.json").read_text())
    assert state["history"][0]["best"] == start
    after.undo()


def test_a_search_goes_on_from_an_artefact(tmp_path: Path) -> None:
    model = tiny_llama(layers=3)
    found = compressed(model, "bits=2.5", tmp_path / "first", generations=2)
    found.undo()
    again = compressed(model, "bits=2.5", start=str(tmp_path / "first"))
    assert again.data["first"] == pytest.approx(found.data["final"], abs=1e-6)
    again.undo()
    with pytest.raises(DataError, match="is not among what is searched"):
        compressed(model, "depth=0.4", start=str(tmp_path / "first"))


def test_an_interrupt_leaves_the_best_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, fresh = tiny_llama(layers=3), tiny_llama(layers=3)
    before = fingerprint(model)
    real = algorithm.Evolution._step

    def late(self):
        if len(self.history) == 3:
            raise KeyboardInterrupt
        return real(self)

    monkeypatch.setattr(algorithm.Evolution, "_step", late)
    with pytest.raises(KeyboardInterrupt):
        compressed(model, "bits=3", tmp_path / "run")
    monkeypatch.undo()
    assert fingerprint(model) == before
    best = Artefact.load(tmp_path / "run" / "best")
    assert best.data["unfinished"]
    best.apply(fresh)
    assert fingerprint(fresh) != before
    best.undo()
    artefact = compressed(model, "bits=3", tmp_path / "run")
    assert not (tmp_path / "run" / "best").exists()
    artefact.undo()


def test_an_interrupt_of_the_last_comparison_leaves_the_best_so_far_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_llama(layers=3)
    before = fingerprint(model)

    def stop(self, count):
        raise KeyboardInterrupt

    monkeypatch.setattr(algorithm.Evolution, "finalists", stop)
    with pytest.raises(KeyboardInterrupt):
        compressed(model, "bits=3", tmp_path / "run")
    monkeypatch.undo()
    assert fingerprint(model) == before
    last = json.loads((tmp_path / "run" / "search.json").read_text())["history"][-1]
    assert last["number"] == 3
    best = Artefact.load(tmp_path / "run" / "best")
    assert best.data["unfinished"]
    whole = compressed(tiny_llama(layers=3), "bits=3")
    artefact = compressed(model, "bits=3", tmp_path / "run")
    assert artefact.data["levels"] == whole.data["levels"]
    assert not (tmp_path / "run" / "best").exists()
    artefact.undo()


def test_the_last_comparison_is_announced(capsys: pytest.CaptureFixture[str]) -> None:
    search = EvoPress(schedule="quick", generations=2, check_model=False)
    paperhooks.compress(tiny_llama(layers=3), search, data=texts(), target="bits=3", progress=True).undo()
    tokens = sum(map(len, texts()))
    assert f"on all {tokens:,} tokens of the calibration text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "began", "budget"),
    [
        ("bits=3", "levels as even as the budget allows", "bytes of codes"),
        ("flops=0.7", "the best of", "operations for a token"),
        ("depth=1", "the best of all 9 choices", "at most 2 attention and 2 mlp sublayers that stay"),
    ],
)
def test_a_report_tells_what_was_counted_and_where_the_search_began(
    tmp_path: Path, target: str, began: str, budget: str
) -> None:
    compressed(tiny_llama(layers=3), target, tmp_path / "run", generations=2).undo()
    report = (tmp_path / "run" / "report.md").read_text()
    assert f"| began with | {began}" in report
    assert budget in report


def test_the_figure_of_levels_names_the_shades(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    artefact = compressed(tiny_llama(layers=3), "bits=3", tmp_path / "run")
    labels = {level["label"] for level in artefact.data["levels"].values()}
    drawn = (tmp_path / "run" / "levels.svg").read_text()
    assert len(labels) > 1
    assert all(f"<!-- {label} -->" in drawn for label in labels)
    artefact.undo()


def stopped(monkeypatch: pytest.MonkeyPatch, out: Path, start: str) -> None:
    """A search that was interrupted after its first generation."""
    real = Evolution._step

    def late(self):
        if len(self.history) == 2:
            raise KeyboardInterrupt
        return real(self)

    with monkeypatch.context() as patched:
        patched.setattr(Evolution, "_step", late)
        with pytest.raises(KeyboardInterrupt):
            compressed(tiny_llama(layers=2), "bits=2.5", out, start=start)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("start.json", lambda kept: kept.update(state=[1])),
        ("start.json", lambda kept: kept.update(state=[2] * 14)),
        ("start.json", lambda kept: kept.update(state="even")),
        ("search.json", lambda kept: kept.update(population=[])),
        ("search.json", lambda kept: kept.update(history=[])),
        ("search.json", lambda kept: kept["history"].pop(0)),
        ("search.json", lambda kept: kept["history"][0].update(best=[0] * 14)),
        ("search.json", lambda kept: kept["history"][0].update(best=[1])),
        ("search.json", lambda kept: kept.update(random=[3, [1, 2], None])),
    ],
)
def test_what_was_changed_in_a_run_is_refused_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, damage
) -> None:
    """A choice above the budget among the first ones could win the last comparison."""
    stopped(monkeypatch, tmp_path, "additive")
    kept = json.loads((tmp_path / name).read_text())
    damage(kept)
    (tmp_path / name).write_text(json.dumps(kept))
    with pytest.raises(DataError, match=f"{name} cannot be gone on with"):
        compressed(tiny_llama(layers=2), "bits=2.5", tmp_path, start="additive")


def test_a_start_that_is_not_there_or_not_finished_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="start='addtive': there is no such run or artefact; expected 'even', 'additi"):
        compressed(tiny_llama(layers=2), "bits=2.5", start="addtive")
    stopped(monkeypatch, tmp_path / "run", "even")
    with pytest.raises(DataError, match=r"that search is not finished; .* in .*best"):
        compressed(tiny_llama(layers=2), "bits=2.5", start=str(tmp_path / "run"))
    compressed(tiny_llama(layers=2), "bits=2.5", start=str(tmp_path / "run" / "best"), generations=1).undo()


def test_the_plan_is_told_before_anything_long(capsys: pytest.CaptureFixture[str]) -> None:
    search = EvoPress(schedule="quick", generations=2, check_model=False)
    artefact = paperhooks.compress(tiny_llama(layers=2), search, data=texts(), target="bits=3")
    said = capsys.readouterr().err
    assert "plan: 2 generations over 14 units with levels of gptq, at most" in said
    assert said.index("plan:") < said.index("prepare levels")
    artefact.undo()


def test_the_report_shows_stages_order_and_time(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    artefact = compressed(tiny_llama(layers=3), "bits=3", tmp_path / "run")
    for name in ("fitness", "levels", "order", "time"):
        assert (tmp_path / "run" / f"{name}.png").stat().st_size > 1000
        assert (
            f"{name}.png" in (tmp_path / "run" / "report.md").read_text()
            or f"{name}.svg" in (tmp_path / "run" / "report.md").read_text()
        )
    timings = json.loads((tmp_path / "run" / "result.json").read_text())["timings"]
    assert {"levels", "search", "comparison"} <= set(timings)
    artefact.undo()


def test_the_lines_of_stages_hold_the_best_child_and_the_parent() -> None:
    schedule = SearchSchedule(5, 3, (SelectionStage(2, 4), SelectionStage(1, 8)), initial=1, exhaustive=0)
    evolution = Evolution(space(), schedule, lambda states, *_: [float(sum(s[:2])) for s in states], 0)
    lines = stage_lines(list(evolution.run()))
    assert list(lines) == ["best child, 4 tokens", "best child, 8 tokens", "parent, scored again"]
    (numbers, parents), (_, children) = lines["parent, scored again"], lines["best child, 8 tokens"]
    assert numbers == [1, 2, 3, 4, 5]
    assert parents[1:] == [min(pair) for pair in zip(parents, children, strict=True)][:-1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("target", ["depth=0.4", "sparsity=0.5", "bits=3"])
def test_half_precision_is_searched_in_float32(dtype: torch.dtype, target: str) -> None:
    """What is reported is the divergence in float64 of the logits in half precision, up to their rounding."""
    model = tiny_llama(layers=3).to(dtype)
    before = fingerprint(model)
    with torch.no_grad():
        own = [model(torch.tensor([ids])).logits.double() for ids in texts()]
        artefact = compressed(model, target)
        found = [model(torch.tensor([ids])).logits.double() for ids in texts()]
    total = sum(
        float((p.log_softmax(-1).exp() * (p.log_softmax(-1) - q.log_softmax(-1)))[0, :-1].sum())
        for p, q in zip(own, found, strict=True)
    )
    positions = sum(len(ids) - 1 for ids in texts())
    assert artefact.data["final"] == pytest.approx(total / positions, rel=0.02)
    assert all(each.dtype == dtype for each in model.parameters())
    artefact.undo()
    assert fingerprint(model) == before


def test_the_plan_of_a_small_space_is_to_score_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    search = EvoPress(schedule="quick", generations=150, check_model=False)
    artefact = paperhooks.compress(tiny_llama(layers=3), search, data=texts(), target="depth=1")
    said = capsys.readouterr().err
    assert "plan: all 9 choices over 6 units" in said
    assert "prepare levels" not in said
    artefact.undo()


def test_the_state_of_another_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Units, seed and schedule are the same: only the text differs."""
    stopped(monkeypatch, tmp_path / "one", "even")
    other = EvoPress(schedule="quick", generations=3, check_model=False)
    model = tiny_llama(layers=2)
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "search.json").write_bytes((tmp_path / "one" / "search.json").read_bytes())
    with pytest.raises(DataError, match=r"search.json cannot be gone on with: it is of a run on another model or text"):
        paperhooks.compress(model, other, data=texts()[:20], target="bits=2.5", out=tmp_path / "two", progress=False)
