"""Held to stored values: of the official code in compat mode, of plain formulas in exact mode."""

from __future__ import annotations

import golden_mathneuro as golden
import pytest
import torch
from paperhooks.testing import fingerprint
from paperhooks_mathneuro import Masks, apply, collect, find_matrices, select, sweep
from paperhooks_mathneuro.algorithm import compat_scores, count, scores, thresholds, top
from paperhooks_mathneuro.selection import weights_of
from paperhooks_mathneuro.selection.selections import pack
from paperhooks_mathneuro.statistics.norms import NormRecorder
from torch import nn

OPS = golden.tensors("ops")
TINY = golden.tensors("tiny_tied_fp32")
APPLIED = golden.tensors("tiny_tied_fp32_apply")
RATIOS = golden.facts()["ratios"]
SOME = [r for r in RATIOS if r > 0.0001] + [0.5]  # at 0.0001 no matrix of the tiny model has a top


def collected(side: str, model=None, **options):
    return collect(model or golden.model(), golden.samples()[side], progress=False, **options)


def norms_of(inputs: list[torch.Tensor], module: nn.Module, name: str = "fc") -> torch.Tensor:
    """Norms [N, D] of single-sample inputs [1, T, D], as hooks on a layer give them."""
    recorder = NormRecorder(golden.one_matrix(torch.ones(1, 1), (16, inputs[0].shape[-1])).matrices)
    rows = []
    for i, x in enumerate(inputs):
        recorder.begin(torch.ones(x.shape[:2], dtype=torch.bool))
        recorder.receive("", module, x, None)
        rows.append(recorder.finish([i]).values["w"])
    return torch.cat(rows)


# -- one layer --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", golden.SIDES)
@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_compat_scores_of_one_layer_are_the_official_ones_bit_for_bit(kind: str, side: str) -> None:
    inputs = [v for k, v in sorted(OPS.items()) if k.startswith(f"op.{kind}.x_{side}.")]
    weight = OPS[f"op.{kind}.weight"]
    found = compat_scores(weight, norms_of(inputs, nn.Linear(24, 16)))
    wanted = OPS[f"op.{kind}.official_score_{side}"]
    assert found.dtype == wanted.dtype
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("side", golden.SIDES)
@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_exact_scores_of_one_layer_are_the_formulas(kind: str, side: str) -> None:
    inputs = [v for k, v in sorted(OPS.items()) if k.startswith(f"op.{kind}.x_{side}.")]
    norms = norms_of(inputs, nn.Linear(24, 16))
    statistics = golden.one_matrix(norms, (16, 24))
    c = statistics.channel_norms("w")
    torch.testing.assert_close(c.double(), OPS[f"op.{kind}.ref_colnorm_{side}"], rtol=1e-6, atol=0)
    found = scores(OPS[f"op.{kind}.weight"], c)
    torch.testing.assert_close(found.double(), OPS[f"op.{kind}.ref_score_{side}"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("ratio", [*RATIOS, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_tops_of_one_layer_are_the_official_ones(kind: str, ratio: float) -> None:
    """Counts exactly, and every entry strictly above the official threshold; ties are anybody's."""
    for side in golden.SIDES:
        score = OPS[f"op.{kind}.official_score_{side}"]
        wanted = OPS[f"op.{kind}.official_mask_{side}@{ratio}"]
        k = count(score.numel(), ratio)
        found = top(score.reshape(1, -1), thresholds(score.reshape(1, -1), [k])[0], zeros=True).reshape(score.shape)
        assert int(found.sum()) == int(wanted.sum()) == k
        if k:
            bar = score[wanted].min()
            assert bool(found[score > bar].all())
            assert not bool(found[score < bar].any())
        if kind == "fp32":
            assert torch.equal(found, wanted)


@pytest.mark.parametrize("ratio", ["0.1", "0.25", "0.3", "0.5"])
def test_ties_are_counted_exactly_and_taken_in_flat_order(ratio: str) -> None:
    facts, score = golden.facts()["ops"][f"ties@{ratio}"], OPS["ties.official_score"].reshape(1, -1)
    k = count(score.numel(), float(ratio))
    assert k == facts["k"]
    chosen = thresholds(score, [k])[0]
    assert float(chosen.threshold[0]) / float(score.max()) == pytest.approx(facts["threshold"] / 4)
    found = top(score, chosen)[0]
    assert int(found.sum()) == facts["selected"]
    ties = (score[0] == chosen.threshold[0]).nonzero().flatten()
    taken = [i for i in ties.tolist() if found[i]]
    assert taken == ties.tolist()[: len(taken)]
    assert int((score[0] > chosen.threshold[0]).sum()) == facts["n_strictly_above"]


def test_dead_channels_are_never_important_but_in_compat() -> None:
    score, facts = OPS["zero.official_score"].reshape(1, -1), golden.facts()["ops"]["zero@0.75"]
    chosen = thresholds(score, [count(score.numel(), 0.75)])[0]
    assert int(top(score, chosen, zeros=True).sum()) == facts["selected"]
    exact = top(score, chosen)
    assert int(exact.sum()) == facts["nonzero_scores"]
    assert not bool(exact[score == 0].any())


def test_a_thousand_samples_do_not_stall() -> None:
    row = torch.rand(1, 24, generator=torch.Generator().manual_seed(0))
    many = golden.one_matrix(row.expand(1000, -1), (16, 24))
    assert torch.equal(many.channel_norms("w").double(), (row[0].double() * 1000).float().double())
    again = golden.one_matrix(row, (16, 24)).take([0] * 1000)
    assert torch.equal(again.channel_norms("w"), many.channel_norms("w"))
    weight = torch.ones(1, 24, dtype=torch.bfloat16)
    stalled = compat_scores(weight, torch.ones(500, 24))
    assert stalled.unique().tolist() == [golden.facts()["ops"]["bf16_accumulator"]["sum_of_n_ones"]["500"]]


# -- calls that the official code gets wrong --------------------------------------------------------------------------


def test_a_module_called_twice_counts_both_calls() -> None:
    weight, one, two = OPS["op.fp32.weight"], OPS["twice.x.0"], OPS["twice.x.1"]
    recorder = NormRecorder(golden.one_matrix(torch.ones(1, 1), (16, 24)).matrices)
    module = nn.Linear(24, 16)
    recorder.begin(torch.ones(1, one.shape[1], dtype=torch.bool))
    recorder.receive("", module, one, None)
    shorter = nn.functional.pad(two, (0, 0, 0, one.shape[1] - two.shape[1]))  # zeros add nothing to a norm
    recorder.receive("", module, shorter, None)
    found = recorder.finish([0]).values["w"]
    wanted = torch.cat([one, two], dim=1).double().norm(dim=1)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=0)
    last_only = scores(weight, two[0].norm(dim=0))
    torch.testing.assert_close(last_only, OPS["twice.official_score"], rtol=1e-2, atol=0)
    assert not torch.allclose(scores(weight, found[0]), OPS["twice.official_score"], rtol=1e-2)


def test_a_module_that_is_not_reached_counts_nothing() -> None:
    recorder = NormRecorder(golden.one_matrix(torch.ones(1, 1), (16, 24)).matrices)
    x = OPS["op.fp32.x_math.1"]
    rows = []
    for sample in range(3):
        recorder.begin(torch.ones(x.shape[:2], dtype=torch.bool))
        if sample == 0:
            recorder.receive("", nn.Linear(24, 16), x, None)
        rows.append(recorder.finish([sample]).values["w"])
    total = golden.one_matrix(torch.cat(rows), (16, 24)).channel_norms("w")
    torch.testing.assert_close(total, x[0].norm(dim=0))
    ratio = OPS["stale.official_score_a"] / OPS["stale.expected_score_a"]
    assert float(ratio.mean()) == pytest.approx(golden.facts()["ops"]["stale_magnitude"]["ratio_a"])


def test_rows_without_a_batch_dimension_are_tokens() -> None:
    x = OPS["input2d.x"]
    recorder = NormRecorder(golden.one_matrix(torch.ones(1, 1), (16, 24)).matrices)
    recorder.begin(torch.ones(1, len(x), dtype=torch.bool))
    recorder.receive("", nn.Linear(24, 16), x, None)
    found = scores(OPS["op.fp32.weight"], recorder.finish([0]).values["w"][0])
    torch.testing.assert_close(found.double(), OPS["input2d.ref_score"], rtol=1e-5, atol=0)
    assert not torch.allclose(found, OPS["input2d.official_score_WRONG"], rtol=1e-2)


# -- the tiny model ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 6])
@pytest.mark.parametrize("side", golden.SIDES)
def test_norms_are_the_formulas(side: str, batch_size: int) -> None:
    found = collected(side, batch_size=batch_size)
    compared = 0
    for key, wanted in TINY.items():
        if key.startswith(f"ref_colnorm_{side}.model"):
            name = f"{key.partition('.')[2]}.weight"
            torch.testing.assert_close(found.sample_norms(name), wanted, rtol=1e-5, atol=0)
            compared += 1
    assert compared == 14
    assert len(found.norms) == 8  # q, k and v read one input, gate and up another


@pytest.mark.parametrize("side", golden.SIDES)
def test_norms_of_the_head_are_the_formulas(side: str) -> None:
    found = collected(side, head="tied")
    torch.testing.assert_close(
        found.sample_norms("lm_head.weight"), TINY[f"ref_colnorm_{side}.lm_head"], rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("pad", ["left", "right"])
def test_padding_never_counts(pad: str) -> None:
    """Finished batches, padded by others, through the recorder and core's calibration."""
    from paperhooks import ModelView
    from paperhooks.models import calibrate

    stored = golden.tensors("padding")
    view = ModelView.from_model(golden.model())
    recorder = NormRecorder(find_matrices(view).matrices)
    mask = stored[f"{pad}.attention_mask"]
    batch = {"input_ids": stored[f"{pad}.input_ids"], "attention_mask": mask}
    recorder.begin(mask.bool())
    calibrate(view, [batch], recorder.modules, recorder.receive, progress=False)
    found, told_apart = recorder.finish(range(len(mask))), 0
    for matrix in recorder.matrices:
        own = found.values[found.inputs[matrix.name]]
        wanted, wrong = (
            stored[f"{kind}.{matrix.module}"] for kind in ("expected_colnorm", "wrong_colnorm_when_padding_is_counted")
        )
        torch.testing.assert_close(own, wanted, rtol=1e-5, atol=1e-7)
        told_apart += not torch.allclose(own, wrong, rtol=1e-3)
    assert told_apart >= 10  # the padding token's embedding is zero, so the very first inputs are the same


@pytest.mark.filterwarnings("ignore:at ratio 0.001")
def test_compat_sets_are_the_official_ones() -> None:
    model = golden.model()
    found = sweep(model, collected("math", model), collected("general", model), ratios=SOME, mode="compat")
    for ratio in SOME:
        assert isinstance(found[ratio], Masks)
        for matrix, weight in weights_of(model, found[ratio].matrices):
            wanted = golden.unpacked(TINY[f"official_isolated@{ratio}.{matrix.name}"], matrix.shape)
            assert torch.equal(found[ratio].mask(matrix, weight), wanted), f"{matrix.name} at {ratio}"
            counts = golden.facts()["tiny_counts"]["tied.fp32"][str(ratio)][matrix.name]
            assert found[ratio].about["counts"][matrix.name] == counts["isolated"]


@pytest.mark.parametrize("side", golden.SIDES)
def test_compat_scores_of_the_tiny_model_are_the_official_ones(side: str) -> None:
    model = golden.model()
    found = collected(side, model, batch_size=1)
    for matrix, weight in weights_of(model, found.matrices):
        wanted = TINY[f"official_score_{side}.{matrix.name}"]
        torch.testing.assert_close(compat_scores(weight, found.sample_norms(matrix.name)), wanted, rtol=1e-6, atol=0)


@pytest.mark.filterwarnings("ignore:at ratio 0.001")
def test_exact_sets_differ_from_the_official_ones_by_rounding_alone() -> None:
    model = golden.model()
    found = sweep(model, collected("math", model), collected("general", model), ratios=SOME)
    for ratio in SOME:
        different = total = 0
        for matrix, weight in weights_of(model, found[ratio].matrices):
            k = count(matrix.numel, ratio)
            for side, name in (("target", "math"), ("reference", "general")):
                mine = found[ratio].top(side, matrix, weight)
                own = found[ratio].scores(side, matrix, weight)
                assert int(mine.sum()) == k
                assert bool(mine[own > found[ratio].sides[side].tops[matrix.name].threshold].all())
                theirs = golden.unpacked(TINY[f"official_mask_{name}@{ratio}.{matrix.name}"], matrix.shape)
                assert int((mine & ~theirs).sum()) <= max(1, 0.03 * k)
            wanted = golden.unpacked(TINY[f"official_isolated@{ratio}.{matrix.name}"], matrix.shape)
            different += int((found[ratio].mask(matrix, weight) != wanted).sum())
            total += int(wanted.sum())
        assert different <= max(1, 0.03 * total)


def test_batches_of_any_size_select_the_same() -> None:
    model = golden.model()
    sets = [
        select(model, *(collected(side, model, batch_size=size) for side in golden.SIDES), ratio=0.05)
        for size in (1, 2, 6)
    ]
    for matrix, weight in weights_of(model, sets[0].matrices):
        masks = [one.mask(matrix, weight) for one in sets]
        assert all(int((masks[0] & ~other).sum()) <= 1 for other in masks[1:]), matrix.name


# -- editing ----------------------------------------------------------------------------------------------------------


def official(model, prefix: str) -> Masks:
    """Stored masks as a selection of the model."""
    template = select(model, collected("math", model), collected("general", model), ratio=0.05)
    packed = {m.name: pack(golden.unpacked(TINY[f"{prefix}.{m.name}"], m.shape)) for m in template.matrices}
    return Masks("official", template.matrices, template.hashes, template.model_class, template.config, {}, packed)


@pytest.mark.parametrize("scale", [0.0, 1.1, 1.01])
def test_edits_with_the_official_masks_give_the_official_weights_and_logits(scale: float) -> None:
    model = golden.model()
    before, selection = fingerprint(model), official(model, "official_isolated@0.05")
    probe = torch.tensor(golden.samples()["probe"])
    with torch.no_grad(), apply(model, selection, scale) as surgery:
        assert surgery.entries == sum(
            one["isolated"] for one in golden.facts()["tiny_counts"]["tied.fp32"]["0.05"].values()
        )
        for matrix in selection.matrices:
            assert torch.equal(model.get_parameter(matrix.name), APPLIED[f"weight_mathneuro@{scale}.{matrix.name}"])
        torch.testing.assert_close(model(probe).logits, APPLIED[f"logits_mathneuro@{scale}"], atol=2e-5, rtol=0)
    assert fingerprint(model) == before
    with torch.no_grad():
        torch.testing.assert_close(model(probe).logits, APPLIED["logits_base"], atol=2e-5, rtol=0)


@pytest.mark.parametrize("scale", [0.0, 1.1, 1.01])
def test_the_whole_top_is_what_the_official_ablation_edits(scale: float) -> None:
    model = golden.model()
    probe = torch.tensor(golden.samples()["probe"])
    with torch.no_grad(), apply(model, official(model, "official_mask_math@0.05"), scale):
        found = model(probe).logits
    torch.testing.assert_close(found, APPLIED[f"logits_top_math_only@{scale}"], atol=2e-5, rtol=0)


def test_random_controls_have_the_official_counts() -> None:
    from paperhooks_mathneuro import control

    model = golden.model()
    selection = official(model, "official_isolated@0.05")
    assert (
        control(selection, "random").counts(model) == golden.facts()["tiny_counts"]["tied.fp32"]["random_ablation@0.05"]
    )
