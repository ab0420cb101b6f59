"""What baselines leave out: the official scores and orders, the numbers of a depth, and text that all read alike."""

from __future__ import annotations

import json
import math
from functools import cache
from itertools import combinations, pairwise

import pytest
import scored_models as made
import torch
from paperhooks import DataError, ModelView
from paperhooks.testing import fingerprint, tiny_text
from paperhooks_evopress import Evaluator, Target, problem
from paperhooks_evopress.baselines import (
    BASELINES,
    Found,
    Setting,
    additive,
    baselines_of,
    greedy,
    one_shot,
    random_best,
    shortgpt,
    weight_subcloning,
    window_cosine,
)  # fmt: skip
from paperhooks_evopress.baselines.layer_scores import MEASURES, layer_scores
from safetensors.torch import load_file


@cache
def facts():
    return json.loads((made.FOLDER / "scoring.json").read_text())


@cache
def tensors():
    return load_file(made.FOLDER / "scoring.safetensors")


def texts() -> list[torch.Tensor]:
    return [tensors()["sdata0"][0], tensors()["sdata1"][0]]


def setting(depth: str, *, whole: bool = False, fitness: str = "kl", model=None, sequences=None, tokens=29) -> Setting:
    view = ModelView.from_model(made.reference_model() if model is None else model)
    levels = made.drop_levels(view, ("layer",) if whole else ("attention", "mlp"))
    evaluator = Evaluator(
        view, levels, texts() if sequences is None else sequences, fitness=fitness, most_perplexity=math.inf
    )
    return Setting(levels, problem(view, levels, Target.of(f"depth={depth}")), evaluator, tokens)


def layers_out(found: Found) -> list[int]:
    """Layers whose attention and MLP, or which as a whole, are left out."""
    names = [name.split(".") for name, label in found.choice.items() if label == "out"]
    layers = [int(each[2]) for each in names]
    return sorted({layer for layer in layers if layers.count(layer) == 2 or len(names[0]) == 3})


@pytest.mark.parametrize("measure", list(MEASURES))
def test_measures_give_the_official_scores(measure: str) -> None:
    states = [tensors()[f"emb{n}"] for n in range(7)]
    scores = [float(MEASURES[measure](before, after).mean()) for before, after in pairwise(states)]
    assert scores == pytest.approx(facts()[measure], rel=1e-4)
    sign = -1 if measure == "cosine" else 1
    assert sorted(range(6), key=lambda layer: sign * scores[layer]) == facts()["remove_order"][measure]


@pytest.mark.parametrize("measure", list(MEASURES))
def test_scores_of_the_model_are_official_before_its_final_norm(measure: str) -> None:
    view = ModelView.from_model(made.reference_model())
    scores = layer_scores(view, texts(), MEASURES[measure])
    assert scores[:5] == pytest.approx(facts()[measure][:5], rel=1e-4)
    with torch.no_grad():
        outputs = []
        hook = view.layers[5].register_forward_hook(lambda _, args, out: outputs.append(out))
        for ids in texts():
            view.model(ids[None], use_cache=False)
        hook.remove()
    last = torch.cat([out[0] if out.ndim == 3 else out for out in outputs])
    assert scores[5] == pytest.approx(float(MEASURES[measure](tensors()["emb5"], last).mean()), rel=1e-4)
    assert scores[5] != pytest.approx(facts()[measure][5], rel=2e-4)


@pytest.mark.parametrize("span", [1, 2, 3])
def test_windows_have_the_official_cosines(span: int) -> None:
    wanted = facts()["window_cosine"][str(span)]
    view = ModelView.from_model(made.reference_model())
    scores = layer_scores(view, texts(), MEASURES["cosine"], span)
    assert len(scores) == len(wanted) == 7 - span
    assert scores[:-1] == pytest.approx(wanted[:-1], rel=1e-4)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(("fitness", "value"), [("kl", "kl_div"), ("perplexity", "perplexity")])
def test_one_shot_has_the_official_scores_and_order(fitness: str, value: str, whole: bool) -> None:
    asked = setting("6", fitness=fitness, whole=whole)
    found = one_shot(asked, whole_layers=True)
    scores = list(found.told["scores"].values())
    assert scores == pytest.approx(facts()[value], rel=1e-4)
    assert sorted(range(6), key=scores.__getitem__) == facts()["remove_order"][value]
    assert found.tokens == 6 * 29 == asked.evaluator.counters.tokens
    found = one_shot(setting("2", fitness=fitness, whole=whole), whole_layers=True)
    assert layers_out(found) == sorted(facts()["remove_order"][value][:2])


def test_scores_by_hidden_states_choose_whole_layers() -> None:
    asked = setting("2")
    found = shortgpt(asked)
    scores = layer_scores(asked.view, texts(), MEASURES["cosine"])
    assert found.told["scores"] == scores
    assert layers_out(found) == sorted(sorted(range(6), key=lambda layer: -scores[layer])[:2])
    assert found.tokens == 29
    ratios = layer_scores(asked.view, texts(), MEASURES["norm_ratio"])
    assert layers_out(weight_subcloning(asked)) == sorted(sorted(range(6), key=ratios.__getitem__)[:2])
    row = layers_out(window_cosine(asked))
    windows = layer_scores(asked.view, texts(), MEASURES["cosine"], 2)
    assert row == [windows.index(max(windows)), windows.index(max(windows)) + 1]
    assert layers_out(shortgpt(setting("2", whole=True))) == layers_out(found)


@pytest.mark.parametrize("whole", [False, True])
def test_greedy_takes_the_best_next_one(whole: bool) -> None:
    asked = setting("2")
    found = greedy(asked, whole_layers=whole)
    prefix = "model.layers."
    names = [[f"{prefix}{n}.{part}"] for n in range(6) for part in ("self_attn", "mlp")]
    if whole:
        names = [[f"{prefix}{n}.self_attn", f"{prefix}{n}.mlp"] for n in range(6)]
    gone: list[str] = []
    passes = 0
    for removed in found.told["removed"]:
        options = [each for each in names if not set(each) & set(gone)]
        if not whole:
            options = [each for each in options if sum(g.endswith(each[0][-4:]) for g in gone) < 2]
        scores = asked.scores([dict.fromkeys([*gone, *each], "out") for each in options])
        best = options[scores.index(min(scores))]
        assert removed == "+".join(best)
        gone += best
        passes += len(options)
    assert len(gone) == 4
    assert found.tokens == 29 * passes
    assert {name for name, label in found.choice.items() if label == "out"} == set(gone)


def test_the_best_of_all_states_by_random_draws_is_the_best() -> None:
    asked = setting("1")
    states = [
        {f"model.layers.{a}.self_attn": "out", f"model.layers.{m}.mlp": "out"} for a in range(6) for m in range(6)
    ]
    found = random_best(asked, 29 * 36)
    assert found.told["candidates"] == 36
    assert found.tokens == 29 * 36
    assert found.told["fitness"] == min(asked.scores(states))
    assert random_best(asked, 29 * 36) == found
    assert random_best(asked, 1).told["candidates"] == 1
    assert random_best(asked, 10**6).told["candidates"] == 36, "there are no more"


def test_the_additive_model_leaves_out_the_least_sum() -> None:
    asked = setting("2")
    found = additive(asked)
    alone = {name: own[1] for name, own in found.told["damages"].items()}
    for part in ("self_attn", "mlp"):
        names = [name for name in alone if name.endswith(part)]
        best = min(combinations(names, 2), key=lambda pair: sum(alone[name] for name in pair))
        assert {name for name in names if found.choice[name] == "out"} == set(best)
    assert asked.problem.space.feasible(found.state)
    assert found.tokens == 29 * 13
    assert one_shot(asked).state == found.state


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "mixtral", "gemma3"])
@pytest.mark.parametrize("name", baselines_of("depth"))
def test_all_of_a_depth_keep_its_numbers(family: str, name: str) -> None:
    model = tiny_text(family, layers=3)
    before = fingerprint(model)
    asked = setting("1", model=model, sequences=made.sequences_of([9, 5, 12]), tokens=20)
    with asked.levels:
        found = BASELINES[name](asked)
    assert asked.problem.space.feasible(found.state)
    assert found.choice == asked.problem.choice(found.state)
    assert list(found.choice.values()).count("out") == 2
    assert found.tokens % 20 == 0
    assert fingerprint(model) == before


@pytest.mark.parametrize("name", baselines_of("depth"))
@pytest.mark.parametrize(("depth", "out"), [("0", 0), ("6", 12)])
def test_nothing_and_everything_can_be_left_out(name: str, depth: str, out: int) -> None:
    asked = setting(depth)
    assert list(BASELINES[name](asked).choice.values()).count("out") == out


def test_what_cannot_be_left_out_so_is_refused() -> None:
    view = ModelView.from_model(made.reference_model())
    levels = made.drop_levels(view)
    evaluator = Evaluator(view, levels, texts(), most_perplexity=math.inf)
    few = {name: own for name, own in levels.items() if ".1." not in name or name.endswith("mlp")}
    for at in ("0", "3", "5"):
        few.pop(f"model.layers.{at}.mlp")
    posed = problem(view, few, Target.of("depth=3"))
    with pytest.raises(DataError, match="leaves out 3 layers, and 2 of 2 that may go fit"):
        shortgpt(Setting(levels, posed, evaluator, 29))
    with pytest.raises(DataError, match="no 3 in a row may go"):
        window_cosine(Setting(levels, posed, evaluator, 29))
    assert one_shot(Setting(levels, posed, evaluator, 29)).choice["model.layers.1.mlp"] == "out"
    levels.restore()
    with torch.no_grad():
        view.layers[2].mlp.down_proj.weight.fill_(math.nan)
    with pytest.raises(DataError, match="layer 2 gives hidden states whose change is not finite"):
        shortgpt(Setting(levels, problem(view, levels, Target.of("depth=3")), evaluator, 29))
