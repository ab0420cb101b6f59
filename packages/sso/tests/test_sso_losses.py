"""The losses against reference values, their bounds, and pairs without tokens."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from paperhooks import DataError
from paperhooks_sso import (
    PRESETS,
    Objective,
    PairLoss,
    PairSums,
    base_losses,
    pair_losses,
    register_pair_loss,
    sso_loss,
)
from paperhooks_sso.algorithm import GROUPS

CASES: list[dict[str, Any]] = json.loads((Path(__file__).parent / "reference" / "loss_cases.json").read_text())
LETTERS = {"plain": "plain", "good": "p", "bad": "n"}
EMPTY = "sigmoid_empty_rejected_B2"


def objective_of(case: dict[str, Any], variant: str, **options: Any) -> Objective:
    hp = case["hp"]
    given = {
        "loss": hp["loss"], "beta": hp["beta"], "alpha": hp["alpha"], "beta_g": hp["gb"], "gamma": hp["ftx"],
        "weight": hp["W"], "gap": hp["G"], "smoothing": hp["smoothing"], "official_head": variant == "head",
    }  # fmt: skip
    return Objective(variant=variant, **{**given, **options})


def groups_of(case: dict[str, Any], policy: dict[str, torch.Tensor], objective: Objective) -> dict[str, PairSums]:
    size = case["B"]
    found = {}
    for name, letter in LETTERS.items():
        counts = torch.tensor(case["lengths"][letter])
        sums = [policy[letter][:size], policy[letter][size:], counts[:size], counts[size:]]
        if objective.pair.reference:
            reference = torch.tensor(case["ref"][letter], dtype=policy[letter].dtype)
            sums += [reference[:size], reference[size:]]
        found[name] = PairSums(*sums)
    return found


def policy_of(case: dict[str, Any], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {k: torch.tensor(v, dtype=dtype, requires_grad=True) for k, v in case["policy"].items()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("variant", ["v1", "head", "v2"])
@pytest.mark.parametrize("case", [c for c in CASES if c["name"] != EMPTY], ids=lambda case: case["name"])
def test_losses_and_gradients_are_those_of_the_reference(case: Any, variant: str, detached: bool, dtype: Any) -> None:
    policy, objective = policy_of(case, dtype), objective_of(case, variant, detach_weight=detached)
    found = sso_loss(groups_of(case, policy, objective), objective)
    wanted = case["reference"][variant + "_detached" * detached]
    assert float(found.loss.detach()) == pytest.approx(wanted["loss"], rel=1e-5)
    found.loss.backward()
    largest = max(abs(g) for own in wanted["grad"].values() for g in own)
    for letter, own in wanted["grad"].items():
        gradient = policy[letter].grad
        gradient = torch.zeros(len(own)) if gradient is None else gradient
        torch.testing.assert_close(gradient.double(), torch.tensor(own).double(), rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize("state", ["init", "head"])
def test_where_the_official_code_is_right_it_agrees(state: str) -> None:
    agreed = 0
    for case in CASES:
        if case["official"].get(f"{state}_agrees_with_reference") is not True or case["name"] == EMPTY:
            continue
        agreed += 1
        objective = objective_of(case, {"init": "v1", "head": "head"}[state])
        policy = policy_of(case, torch.float32)
        found = sso_loss(groups_of(case, policy, objective), objective)
        official = case["official"][state]
        assert float(found.loss.detach()) == pytest.approx(official["loss"], rel=1e-5)
        for name, prefix in (("plain", ""), ("good", "p_"), ("bad", "n_")):
            for ours, theirs in (("margin", "rewards/margins"), ("accuracy", "rewards/accuracies")):
                if (value := official["metrics"].get(prefix + theirs)) is not None:
                    assert float(found.figures[f"{name}_{ours}"].mean()) == pytest.approx(value, rel=1e-4, abs=1e-5)
    assert agreed > 5


def test_head_keeps_the_gap_where_the_official_code_loses_it() -> None:
    case = next(c for c in CASES if c["hp"]["G"] and not c["hp"]["W"] and c["hp"]["ftx"] == 0)
    kept = objective_of(case, "head", official_head=False)
    policy = policy_of(case, torch.float64)
    ours = sso_loss(groups_of(case, policy, kept), kept).loss
    assert float(ours.detach()) != pytest.approx(case["reference"]["head"]["loss"], rel=1e-3)
    assert float(ours.detach()) == pytest.approx(case["reference"]["v1"]["loss"], rel=1e-9)  # equal where W is 1


def made(size: int = 2, *, value: float = -5.0, count: int = 5, reference: bool = True) -> PairSums:
    sums = torch.full((size,), value, dtype=torch.float64)
    counts = torch.full((size,), count)
    other = (sums.clone(), sums.clone()) if reference else ()
    return PairSums(sums.clone().requires_grad_(), sums.clone().requires_grad_(), counts, counts, *other)


@pytest.mark.parametrize("loss", ["ipo", "simpo", "orpo", "hinge", "sigmoid"])
def test_a_batch_is_the_mean_of_its_pairs_one_by_one(loss: str) -> None:
    """Also with IPO, SimPO and ORPO, which the official code cannot run in batches."""
    generator = torch.Generator().manual_seed(4)
    objective = Objective(loss=loss, beta=0.2, gamma=0.1)

    def groups(rows: slice) -> dict[str, PairSums]:
        found = {}
        for name in GROUPS:
            generator.manual_seed(len(name))
            sums = -40 * torch.rand(4, 4, generator=generator, dtype=torch.float64)
            counts = torch.randint(5, 60, (2, 4), generator=generator)
            reference = sums[2:] if objective.pair.reference else ()
            found[name] = PairSums(*sums[:2, rows], *counts[:, rows], *(each[rows] for each in reference))
        return found

    whole = sso_loss(groups(slice(0, 4)), objective)
    single = [float(sso_loss(groups(slice(i, i + 1)), objective).loss) for i in range(4)]
    assert whole.examples.tolist() == pytest.approx(single, rel=1e-12)
    assert float(whole.loss) == pytest.approx(sum(single) / 4, rel=1e-12)
    assert float(sso_loss(groups(slice(0, 2)), objective).loss) == pytest.approx(sum(single[:2]) / 2, rel=1e-12)


def test_the_weight_is_a_half_for_certain_answers_and_one_for_unlikely_ones() -> None:
    objective = Objective()
    certain = sso_loss({name: made(value=0.0) for name in GROUPS}, objective)
    assert certain.weight.tolist() == [0.5, 0.5]
    unlikely = {name: made(value=-500.0) for name in GROUPS}
    found = sso_loss(unlikely, objective)
    assert all(weight == pytest.approx(1.0, abs=1e-12) for weight in found.weight.tolist())
    gradient = torch.autograd.grad(found.weight.sum(), unlikely["plain"].chosen)[0]
    assert float(gradient.abs().max()) < 1e-12


def test_a_policy_that_is_its_reference_loses_log_2_and_wins_no_pair() -> None:
    objective = Objective(weight=False, gap=False)
    found = sso_loss({name: made() for name in GROUPS}, objective)
    assert found.parts["L_plain"].tolist() == pytest.approx([math.log(2)] * 2)
    assert found.figures["plain_accuracy"].tolist() == [0.0, 0.0]
    assert set(found.parts) == {"L_plain"}


def test_detaching_the_weight_changes_gradients_and_not_the_loss() -> None:
    found = {}
    for detach in (False, True):
        groups = {name: made() for name in GROUPS}
        loss = sso_loss(groups, Objective(detach_weight=detach)).loss
        found[detach] = (float(loss.detach()), torch.autograd.grad(loss, groups["plain"].chosen)[0])
    assert found[False][0] == found[True][0]
    assert not torch.allclose(found[False][1], found[True][1])
    assert bool((found[False][1] < found[True][1]).all())  # the weight makes plain answers likelier


@pytest.mark.parametrize("loss", pair_losses())
@pytest.mark.parametrize("where", ["chosen", "rejected"])
def test_a_pair_without_tokens_adds_nothing(loss: str, where: str) -> None:
    objective = Objective(loss=loss, gamma=0.1, beta=0.2)
    reference = objective.pair.reference
    whole = {name: made(3, reference=reference) for name in GROUPS}
    wanted = sso_loss(whole, objective)
    groups = {name: made(3, reference=reference) for name in GROUPS}
    for pairs in groups.values():
        with torch.no_grad():
            getattr(pairs, where)[1] = float("nan")
        getattr(pairs, f"{where}_count")[1] = 0
    found = sso_loss(groups, objective)
    assert bool(found.examples.isfinite().all())
    assert [float(found.parts[f"L_{name}"][1].detach()) for name in GROUPS] == [0.0] * 3
    for at in (0, 2):
        assert float(found.examples[at].detach()) == float(wanted.examples[at].detach())
    found.loss.backward()
    for pairs in groups.values():
        for gradient in (pairs.chosen.grad, pairs.rejected.grad):
            assert bool(gradient.isfinite().all())
            assert float(getattr(pairs, where).grad[1]) == 0


def test_a_batch_without_any_token_is_zero_with_a_graph() -> None:
    groups = {name: made(2, count=0) for name in GROUPS}
    loss = sso_loss(groups, Objective()).loss
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(float(pairs.chosen.grad.abs().sum()) == 0 for pairs in groups.values())


def test_the_official_case_of_an_empty_answer_is_finite() -> None:
    case = next(c for c in CASES if c["name"] == EMPTY)
    policy, objective = policy_of(case, torch.float32), objective_of(case, "v1")
    loss = sso_loss(groups_of(case, policy, objective), objective).loss
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    assert all(bool(p.grad.isfinite().all()) for p in policy.values())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"beta": 0}, "beta is 0"),
        ({"alpha": 1.5}, "alpha is 1.5"),
        ({"alpha": -0.1}, "alpha is -0.1"),
        ({"gamma": -1}, "gamma is -1"),
        ({"loss": "ipo", "smoothing": 0.1}, "smoothing is 0.1, which 'ipo' has no use for"),
        ({"smoothing": 0.7}, "smoothing is 0.7"),
        ({"loss": "kto_pair"}, "loss is 'kto_pair'"),
        ({"variant": "v3"}, "variant is 'v3'"),
        ({"weight": "no"}, "weight is 'no'"),
        ({"official_head": True}, "official_head=True belongs to variant 'head'"),
    ],
)
def test_options_that_cannot_be_meant_are_named(options: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Objective(**options)


def test_presets_are_objectives() -> None:
    assert {name: Objective(**options).groups for name, options in PRESETS.items()} == {
        "v1-ipo": GROUPS, "v1-dpo": GROUPS, "v2": ("good", "bad"),
    }  # fmt: skip


def test_groups_and_references_have_to_be_there() -> None:
    with pytest.raises(DataError, match="'v1' needs the pairs of group 'bad', and there are those of plain, good"):
        sso_loss({"plain": made(), "good": made()}, Objective())
    with pytest.raises(DataError, match=r"different numbers of prompts: \{'plain': 2, 'good': 3, 'bad': 2\}"):
        sso_loss({"plain": made(), "good": made(3), "bad": made()}, Objective())
    with pytest.raises(DataError, match="'ipo' compares with a reference, and the pairs of group 'plain' have none"):
        sso_loss({name: made(reference=False) for name in GROUPS}, Objective(loss="ipo"))
    with pytest.raises(DataError, match="'simpo' has no reference, and the pairs of group 'plain' come with one"):
        sso_loss({name: made() for name in GROUPS}, Objective(loss="simpo"))


def test_a_loss_of_ones_own_is_registered_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_losses, "_LOSSES", dict(base_losses._LOSSES))
    loss = PairLoss("squared", lambda pairs, objective: (1 - objective.beta * pairs.logratio()) ** 2)
    register_pair_loss(loss)
    found = sso_loss({name: made() for name in GROUPS}, Objective(loss="squared", gap=False, weight=False))
    assert found.examples.tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="there is a loss 'squared' already"):
        register_pair_loss(loss)


def test_half_precision_is_widened() -> None:
    pairs = made()
    half = PairSums(*(t.half() if t.is_floating_point() else t for t in (
        pairs.chosen.detach(), pairs.rejected.detach(), pairs.chosen_count, pairs.rejected_count,
        pairs.reference_chosen, pairs.reference_rejected,
    )))  # fmt: skip
    assert sso_loss(dict.fromkeys(GROUPS, half), Objective()).loss.dtype == torch.float32
