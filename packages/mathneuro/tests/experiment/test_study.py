"""Measuring: likelihoods against the model's own logits, effects and their statistics, resuming, choosing, studies."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from paperhooks import DataError
from paperhooks.testing import fingerprint, tiny_text
from paperhooks_mathneuro import (
    CONTROLS,
    Effects,
    Measurement,
    apply,
    choose,
    collect,
    evaluate,
    holm,
    report,
    select,
    split,
    study,
    tokenized,
)
from paperhooks_mathneuro.experiment.effects import pooled
from paperhooks_mathneuro.experiment.measures import Items, choose_by_likelihood, generated_numbers, last_number, nll

GENERATOR = torch.Generator().manual_seed(0)


def rows(low: int, high: int, n: int, answer: int = 0) -> list[dict]:
    """Texts of tokens from ``low`` to ``high``, alike within a side."""
    found = []
    for _ in range(n):
        length = int(torch.randint(5, 12, (1,), generator=GENERATOR))
        tokens = torch.randint(low, high, (length,), generator=GENERATOR).tolist()
        found.append({"input_ids": [1, *tokens], "answer_start": answer})
    return found


ONE, TWO = rows(3, 12, 40, answer=3), rows(60, 70, 40)


def selected(model, **options):
    sides = [collect(model, each[:8], progress=False) for each in (ONE, TWO)]
    return select(model, *sides, ratio=0.1, **options)


def plain_nll(model, row: dict, start: int) -> float:
    ids = torch.tensor([row["input_ids"]])
    with torch.no_grad():
        logprobs = model(ids).logits[0].log_softmax(-1)
    picked = [-float(logprobs[t - 1, ids[0, t]]) for t in range(max(1, start), ids.shape[1])]
    return sum(picked) / len(picked)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_likelihoods_are_those_of_the_models_own_logits(family: str) -> None:
    model = tiny_text(family, layers=2)
    samples = tokenized(ONE[:7])
    for scored, start in (("answer", 3), ("text", 1)):
        found = nll(model, Items(samples, scored), batch_size=3)
        assert found == pytest.approx([plain_nll(model, row, start) for row in ONE[:7]], rel=1e-4)
    with pytest.raises(DataError, match="record 0 has no token to predict: its text is too short"):
        nll(model, Items(tokenized([[5]]), "text"))


def test_choices_are_taken_by_likelihood() -> None:
    model = tiny_text(layers=2)

    class Letters:
        def __call__(self, text):
            return {"input_ids": [1, *(3 + ord(c) % 90 for c in text)]}

    choices = ["ab", "cde", "f"]
    record = {"prompt": "question:", "completion": " ab", "choices": choices, "answer": 0}
    (sample,) = tokenized([record], Letters())
    totals = []
    for choice in sample.choices:
        row = {"input_ids": list(choice.ids)}
        totals.append(-plain_nll(model, row, choice.answer_start) * (len(choice.ids) - choice.answer_start))
    best = totals.index(max(totals))
    for right in range(3):
        (sample,) = tokenized([{**record, "answer": right}], Letters())
        assert choose_by_likelihood(model, Items([sample])) == [right == best]
    assert choose_by_likelihood(model, Items(tokenized(ONE[:2]))) == [None, None]


def test_numbers_are_read_and_nothing_is_run() -> None:
    assert last_number("<<48/2=24>>24 clips.\n#### 1,072") == 1072
    assert last_number("The answer is $18.50. Then 3 more.") == 18.5
    assert last_number("first 4, then -7") == -7
    assert last_number("__import__('os')") is None
    model = tiny_text(layers=1)

    class Digits:
        pad_token_id = None
        eos_token_id = 2

        def decode(self, ids):
            return f"#### {ids[-1]}"

        def batch_decode(self, out, skip_special_tokens):
            return [f"The answer is {int(row[-1])}" for row in out]

    samples = tokenized([{"input_ids": [1, 5, 6, 7], "answer_start": 2}, {"input_ids": [1, 8, 9], "answer_start": 2}])
    told = [
        int(model.generate(torch.tensor([list(s.ids[:2])]), max_new_tokens=3, do_sample=False)[0, -1]) for s in samples
    ]
    found = generated_numbers(model, Digits(), Items(samples), max_new_tokens=3)
    assert found == [told[0] == 7, told[1] == 9]


# -- statistics -------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_monotone_and_never_below_the_plain_value(ps: list[float]) -> None:
    found = holm(ps)
    assert all(p <= q <= 1 for p, q in zip(ps, found, strict=True))
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    assert [found[i] for i in order] == sorted(found)
    assert found[order[0]] == pytest.approx(min(1.0, len(ps) * ps[order[0]]))


def effects_of(changes: dict[tuple[str, float], tuple[list[float], list[float]]]) -> Effects:
    n = len(next(iter(changes.values()))[0])
    base = Measurement("", 1.0, 0, 0.0, {"target": [1.0] * n, "reference": [2.0] * n})
    edited = [
        Measurement(name, scale, 5, 0.1, {"target": [1 + d for d in t], "reference": [2 + d for d in r]})
        for (name, scale), (t, r) in changes.items()
    ]
    return Effects(base, edited, {"items": 0})


def test_effects_are_paired_by_item() -> None:
    effects = effects_of({("a", 0.0): ([1, 2, 3], [0, 0, 1]), ("b", 0.0): ([1, 1, 1], [1, 1, 1])})
    change = effects.change(effects.find("a", 0.0), "target")
    assert (change.before, change.after, change.delta, change.n) == (1, 3, 2, 3)
    assert 1 <= change.low <= 2 <= change.high <= 3
    value, low, high = effects.selectivity(effects.find("a", 0.0))
    assert value == pytest.approx(2 - 1 / 3)
    assert low < value < high
    contrasts = effects.contrasts([("a", "b")])
    assert [(c.side, c.difference) for c in contrasts] == [("target", 1.0), ("reference", pytest.approx(-2 / 3))]
    assert all(c.p_holm >= c.p for c in contrasts)
    with pytest.raises(DataError, match=r"'c' at 0 was not measured; measured were 'a' at 0, 'b' at 0"):
        effects.find("c", 0)


def test_accuracies_are_compared_by_mcnemar(tmp_path: Path) -> None:
    base = Measurement("", 1.0, 0, 0.0, {"t": [1.0] * 10}, {"t": [True] * 8 + [False, None]})
    edited = Measurement("a", 0.0, 1, 0.1, {"t": [2.0] * 10}, {"t": [False] * 7 + [True, True, None]})
    effects = Effects(base, [edited])
    change = effects.change(edited, "t")
    assert (change.accuracy_before, change.accuracy_after) == (8 / 9, 2 / 9)
    assert change.p_accuracy == pytest.approx(2 * (1 + 8) / 2**8)
    again = Effects.load(effects.save(tmp_path / "e.json"))
    assert again.change(again.edited[0], "t") == change
    (tmp_path / "e.json").write_text((tmp_path / "e.json").read_text().replace("2.0", "2.1", 1))
    with pytest.raises(DataError, match=r"e\.json was changed after it was written"):
        Effects.load(tmp_path / "e.json")
    (tmp_path / "e.json").write_text("{}")
    with pytest.raises(DataError, match="holds no effects"):
        Effects.load(tmp_path / "e.json")


def test_choosing_improves_or_removes_and_may_leave_alone() -> None:
    effects = effects_of(
        {
            ("a", 1.1): ([-0.3, -0.1], [0.5, 0.5]),  # better, but hurts the rest
            ("a", 1.01): ([-0.1, -0.1], [0.0, 0.0]),
            ("b", 0.0): ([3.0, 3.0], [1.0, 1.0]),
            ("c", 0.0): ([4.0, 4.0], [4.0, 4.0]),
        }
    )
    assert (choose(effects, "improve").selection, choose(effects, "improve").scale) == ("a", 1.01)
    assert choose(effects, "improve", tolerance=1).scale == 1.1
    assert choose(effects, "remove").selection == "b"
    alone = choose(effects, "improve", among=["b", "c"])
    assert (alone.selection, alone.scale, alone.candidates) == ("", 1.0, 2)
    with pytest.raises(ValueError, match="goal is 'best'"):
        choose(effects, "best")
    with pytest.raises(DataError, match="no edit was measured"):
        choose(effects, "remove", among=["d"])
    first, second = split(list(range(10)), share=0.3, seed=1)
    assert (len(first), sorted(first + second)) == (3, list(range(10)))
    with pytest.raises(DataError, match="a part would be empty"):
        split([1], share=0.5)


def test_repeats_are_averaged_item_by_item() -> None:
    one, two = (effects_of({("a", 0.0): (d, d)}) for d in ([1, 3], [3, 5]))
    found = pooled([one, two])
    assert found.deltas(found.find("a", 0.0), "target").tolist() == [2, 4]
    assert found.about["repeats"] == 2
    with pytest.raises(DataError, match="other edits or items"):
        pooled([one, effects_of({("b", 0.0): ([1, 1], [1, 1])})])


# -- evaluate ---------------------------------------------------------------------------------------------------------


def test_every_set_and_factor_is_measured_and_undone() -> None:
    model = tiny_text(layers=2)
    selection, before = selected(model), fingerprint(model)
    items = {"target": ONE[8:14], "reference": TWO[8:14]}
    effects = evaluate(model, selection, items, scales=[0.0, 1.2], progress=False)
    assert [(one.selection, one.scale) for one in effects.edited] == [
        (name, scale) for name in (selection.label, *CONTROLS) for scale in (0.0, 1.2)
    ]
    assert fingerprint(model) == before
    with apply(model, selection):
        wanted = (
            [plain_nll(model, row, 3) for row in items["target"]],
            [plain_nll(model, row, 1) for row in items["reference"]],
        )
    one = effects.find(selection.label, 0.0)
    assert one.nll["target"] == pytest.approx(wanted[0], rel=1e-4)  # the target's answers
    assert one.nll["reference"] == pytest.approx(wanted[1], rel=1e-4)  # the reference's texts
    assert one.share == one.entries / sum(m.numel for m in selection.matrices)
    assert effects.base.nll["target"] == pytest.approx([plain_nll(model, row, 3) for row in items["target"]], rel=1e-4)


def test_an_interrupted_evaluation_goes_on(tmp_path: Path) -> None:
    model = tiny_text(layers=1)
    selection, before = selected(model), fingerprint(model)
    items, file = {"target": ONE[8:11], "reference": TWO[8:11]}, tmp_path / "effects.json"
    calls = []

    def stop(module, args, kwargs):
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt

    handle = model.register_forward_pre_hook(stop, with_kwargs=True)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, selection, items, out=file, progress=False)
    handle.remove()
    assert fingerprint(model) == before
    kept = len(json.loads(file.read_text())["edited"])
    assert 0 < kept < 6
    found = evaluate(model, selection, items, out=file, progress=False)
    fresh = evaluate(model, selection, items, progress=False)
    assert found.edited == Effects.load(file).edited
    for a, b in zip(found.edited, fresh.edited, strict=True):
        assert a.nll["target"] == pytest.approx(b.nll["target"])
    with pytest.raises(DataError, match="holds an evaluation with another items"):
        evaluate(model, selection, {"target": ONE[9:12], "reference": TWO[8:11]}, out=file, progress=False)


def test_evaluations_of_nothing_are_refused() -> None:
    model = tiny_text(layers=1)
    selection = selected(model)
    for selections, items in (({}, {"target": ONE}), (selection, {})):
        with pytest.raises(DataError, match="at least one selection, and items"):
            evaluate(model, selections, items, progress=False)
    with pytest.raises(DataError, match="scored names 'other'; the sides are target"):
        evaluate(model, selection, {"target": ONE[:2]}, scored={"other": "text"}, progress=False)
    with pytest.raises(ValueError, match="scale is nan"):
        evaluate(model, selection, {"target": ONE[:2]}, scales=[math.nan], progress=False)


# -- study ------------------------------------------------------------------------------------------------------------


def test_a_study_leaves_everything_and_can_be_reported_again(tmp_path: Path) -> None:
    model = tiny_text(layers=2)
    before = fingerprint(model)
    options = {
        "tokenizer": object(), "names": ("maths", "prose"), "ratios": [0.05, 0.1], "scales": [0.9, 1.1],
        "samples": 6, "items": 5,
        "repeats": 2, "progress": False,
    }  # fmt: skip
    found = study(model, ONE, TWO, tmp_path, **options)
    assert fingerprint(model) == before
    assert set(found.selections) == {(0.05, 0), (0.05, 1), (0.1, 0), (0.1, 1)}
    assert found.selections[0.1, 0].about["samples"] == {"target": 6, "reference": 6}
    assert [one.selection for one in found.effects[0.1].edited] == ["isolated", *CONTROLS]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["status"] == "finished"
    assert set(result["results"]["pruned"]) == {"0.05", "0.1"}
    used = {
        json.dumps(each)
        for part in ("pool", "report", "development")
        for each in [result["inputs"]["texts"]["maths"][part]]
    }
    assert len(used) == 3
    figures = (
        "dissociation-ratio-0-05",
        "dissociation-ratio-0-1",
        "scales",
        "share-ratio-0-05",
        "stability",
        "thresholds",
    )
    text = (tmp_path / "report.md").read_text()
    for name in figures:
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
        assert f"({name}.svg)" in text
    assert "maths and not prose" in text
    (tmp_path / "report.md").unlink()
    assert report(tmp_path) == tmp_path / "report.html"
    assert (tmp_path / "report.md").read_text() == text
    calls = []
    handle = model.register_forward_pre_hook(lambda m, a, k: calls.append(1), with_kwargs=True)
    again = study(model, ONE, TWO, tmp_path, **options)
    handle.remove()
    # Everything is there: what runs are the checks of the head, once an evaluation.
    assert len(calls) <= 6
    assert again.effects[0.1].edited == found.effects[0.1].edited
    with pytest.raises(DataError, match="holds a run with"):
        study(model, ONE, TWO, tmp_path, **{**options, "samples": 5})


def test_studies_that_cannot_be_are_refused(tmp_path: Path) -> None:
    model = tiny_text(layers=1)
    with pytest.raises(
        DataError, match=r"target has 40 texts; 296 are needed: 96 to identify with and 100 to report on, and 100"
    ):
        study(model, ONE, TWO, tmp_path, tokenizer=object(), repeats=2, scales=[1.1])
    with pytest.raises(DataError, match="there is no control 'randm'; did you mean 'random'"):
        study(model, ONE, TWO, tmp_path, tokenizer=object(), control_names=["randm"])
    with pytest.raises(DataError, match="holds no finished study"):
        report(tmp_path)


def test_reports_of_parts(tmp_path: Path) -> None:
    model = tiny_text(layers=1)
    selection = selected(model)
    effects = evaluate(
        model, selection, {"target": ONE[8:12], "reference": TWO[8:12]}, with_controls=False, progress=False
    )
    html = report(tmp_path, selections={"one": selection}, effects={"one": effects})
    text = (tmp_path / "report.md").read_text()
    assert html.exists()
    assert "Where the selected entries lie: one" in text
    assert "What the edits do: one" in text
    assert "Signal and noise" not in text
