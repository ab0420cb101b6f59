"""Selecting: set algebra, granularities, limits, files, refusals; always the same for the same statistics."""

from __future__ import annotations

import warnings
from pathlib import Path

import golden_mathneuro as golden
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paperhooks import Artefact, ArtefactError, DataError, ModelError
from paperhooks.io import read_tensors, write_tensors
from paperhooks.testing import LargestTensor, tiny_text
from paperhooks_mathneuro import (
    Recipe,
    SelectionWarning,
    Statistics,
    collect,
    find_matrices,
    load_selection,
    overlap,
    select,
    sweep,
)
from paperhooks_mathneuro.algorithm import count, thresholds, top
from paperhooks_mathneuro.selection import set_names, unpack, weights_of
from paperhooks_mathneuro.selection.selections import groups, pack

ONE = [[1, 5, 6, 7, 8, 9], [1, 10, 11], [1, 12, 13, 14], [1, 15, 3, 4]]
TWO = [[1, 55, 56, 57], [1, 60, 61, 70, 71], [1, 62, 63, 64, 50, 51]]
THREE = [[1, 80, 81, 30], [1, 40, 90, 91]]


def sides(model) -> dict[str, Statistics]:
    return {n: collect(model, rows, progress=False) for n, rows in (("one", ONE), ("two", TWO), ("three", THREE))}


def masks(model, selection) -> dict[str, torch.Tensor]:
    return {matrix.name: selection.mask(matrix, weight) for matrix, weight in weights_of(model, selection.matrices)}


def plain_top(score: torch.Tensor, k: int) -> torch.Tensor:
    """The k largest positive entries, ties in flat order: by a stable sort."""
    order = np.argsort(-score.double().reshape(-1).numpy(), kind="stable")[:k]
    mask = torch.zeros(score.numel(), dtype=torch.bool)
    mask[torch.from_numpy(order.copy())] = True
    return (mask & (score.reshape(-1) > 0)).reshape(score.shape)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0]), min_size=1, max_size=24),
    ks=st.lists(st.integers(0, 24), min_size=1, max_size=3),
)
def test_the_top_is_that_of_a_stable_sort(values: list[float], ks: list[int]) -> None:
    score = torch.tensor(values)[None]
    ks = [min(k, len(values)) for k in ks]
    for k, chosen in zip(ks, thresholds(score, ks), strict=True):
        assert torch.equal(top(score, chosen), plain_top(score, k))
        assert int(top(score, chosen, zeros=True).sum()) == k


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_set_is_the_difference_of_two_tops(family: str) -> None:
    model = tiny_text(family, layers=2)
    known = sides(model)
    found = select(model, known["one"], known["two"], ratio=0.05)
    for matrix, weight in weights_of(model, found.matrices):
        tops = {}
        for name in ("one", "two"):
            c = known[name].norms[known[name].inputs[matrix.name]].double().sum(0).float()
            score = weight.abs() * (c if matrix.input_dim == 1 else c[:, None])
            tops[name] = plain_top(score, int(weight.numel() * 0.05))
        assert torch.equal(found.mask(matrix, weight), tops["one"] & ~tops["two"])
        index = found.index(matrix, weight)
        assert index.dtype == torch.int64
        assert torch.equal(weight.reshape(-1)[index], weight[found.mask(matrix, weight)])
        assert found.about["counts"][matrix.name] == len(index)


def test_several_ratios_are_what_each_is_alone() -> None:
    model = tiny_text(layers=2)
    known = sides(model)
    together = sweep(model, known["one"], known["two"], ratios=[0.2, 0.01, 0.05])
    for ratio, selection in together.items():
        alone = select(model, known["one"], known["two"], ratio=ratio)
        assert all(
            torch.equal(a, b)
            for a, b in zip(masks(model, selection).values(), masks(model, alone).values(), strict=True)
        )
    sizes = [sum(together[r].about["counts"].values()) for r in (0.01, 0.05, 0.2)]
    assert sizes == sorted(sizes)


def test_set_algebra_over_several_sides() -> None:
    model = tiny_text(layers=2)
    known = sides(model)
    one, rest = {"one": known["one"]}, {"two": known["two"], "three": known["three"]}
    union = select(model, one, rest, ratio=0.1)
    both = select(model, one, rest, ratio=0.1, combine="intersection")
    custom = select(model, one, rest, ratio=0.1, expression="(one & three) - two")
    assert isinstance(union, Recipe)
    assert union.expression == "one - (two | three)"
    assert both.expression == "one - (two & three)"
    for matrix, weight in weights_of(model, union.matrices):
        tops = {name: union.top(name, matrix, weight) for name in ("one", "two", "three")}
        assert torch.equal(union.mask(matrix, weight), tops["one"] & ~(tops["two"] | tops["three"]))
        assert torch.equal(both.mask(matrix, weight), tops["one"] & ~(tops["two"] & tops["three"]))
        assert torch.equal(custom.mask(matrix, weight), tops["one"] & tops["three"] & ~tops["two"])
    turned = union.with_expression("two - one")
    plain = select(model, {"two": known["two"]}, one, ratio=0.1)
    assert overlap(model, turned, plain).jaccard == 1.0
    assert select(
        model, {"one": known["one"], "three": known["three"]}, {"two": known["two"]}, ratio=0.1
    ).expression == ("(one | three) - two")


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("one - four", "names 'four'; the sides are one, two, three"),
        ("one +", "is no set expression"),
        ("one + two", "is none of names"),
        ("one - f(two)", "is none of names"),
        ("__import__('os')", "is none of names"),
    ],
)
def test_expressions_that_are_none_are_refused(expression: str, words: str) -> None:
    model = tiny_text(layers=1)
    known = sides(model)
    with pytest.raises(DataError, match=words):
        select(model, {"one": known["one"]}, {"two": known["two"], "three": known["three"]}, expression=expression)
    assert set_names("a - (b | a) ^ c & d") == ["a", "b", "c", "d"]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("mode", ["exact", "compat"])
def test_rows_have_tops_of_their_own(family: str, mode: str) -> None:
    """A row is an output, whichever way the weight is stored."""
    model = tiny_text(family, layers=2)
    known = sides(model)
    found = select(model, known["one"], known["two"], ratio=0.1, granularity="row", mode=mode)
    again = masks(model, found)
    for matrix, weight in weights_of(model, found.matrices):
        tops = []
        for name in ("one", "two"):
            c = known[name].channel_norms(matrix.name)
            score = (weight if matrix.input_dim == 1 else weight.T).abs() * c
            k = int(score.shape[1] * 0.1)
            assert k > 0
            tops.append(torch.stack([plain_top(row, k) for row in score]))
        wanted = tops[0] & ~tops[1]
        wanted = wanted if matrix.input_dim == 1 else wanted.T
        differing = int((again[matrix.name] != wanted).sum())
        assert differing == 0 if mode == "exact" else differing <= 0.1 * int(wanted.sum()) + 2


def test_one_threshold_for_all_matrices() -> None:
    model = tiny_text(layers=2)
    known = sides(model)
    found = select(model, known["one"], known["two"], ratio=0.03, granularity="global")
    total = sum(m.numel for m in found.matrices)
    flat = {}
    for side in ("target", "reference"):
        scores = torch.cat([found.scores(side, m, w).reshape(-1) for m, w in weights_of(model, found.matrices)])
        flat[side] = plain_top(scores, count(total, 0.03))
        mine = torch.cat([found.top(side, m, w).reshape(-1) for m, w in weights_of(model, found.matrices)])
        assert torch.equal(mine, flat[side])
    isolated = torch.cat([mask.reshape(-1) for mask in masks(model, found).values()])
    assert torch.equal(isolated, flat["target"] & ~flat["reference"])


def test_one_threshold_shares_ties_out_in_order() -> None:
    model = tiny_text(layers=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    rows = [[1, 2, 3]]
    one = collect(model, rows, progress=False, include="q_proj|k_proj|v_proj")
    two = collect(model, [[4, 5]], progress=False, include="q_proj|k_proj|v_proj")
    found = select(model, one, two, ratio=0.4, granularity="global", expression="target")
    sizes = list(found.about["counts"].values())
    assert sum(sizes) == count(2048, 0.4) == 819
    assert sizes == [819, 0, 0]  # all entries tie, so the first matrix has them


def test_limits_keep_the_largest() -> None:
    model = tiny_text(layers=2)
    known = sides(model)
    free = select(model, known["one"], known["two"], ratio=0.2)
    for mode in ("exact", "compat"):
        capped = select(model, known["one"], known["two"], ratio=0.2, max_isolated=0.01, mode=mode)
        for matrix, weight in weights_of(model, free.matrices):
            mask = capped.mask(matrix, weight)
            most = count(matrix.numel, 0.01)
            assert int(mask.sum()) == most == capped.about["counts"][matrix.name]
            if mode == "exact":
                whole, score = free.mask(matrix, weight), free.scores("target", matrix, weight)
                assert bool(whole[mask].all())
                assert float(score[mask].min()) >= float(score[whole & ~mask].max())


def test_references_may_have_a_ratio_of_their_own() -> None:
    model = tiny_text(layers=2)
    known = sides(model)
    found = select(model, known["one"], known["two"], ratio=0.05, reference_ratio=0.5)
    for matrix, weight in weights_of(model, found.matrices):
        assert int(found.top("target", matrix, weight).sum()) == count(matrix.numel, 0.05)
        assert int(found.top("reference", matrix, weight).sum()) == count(matrix.numel, 0.5)


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.5, float("nan"), float("inf")])
def test_ratios_that_are_no_shares_are_refused(ratio: float) -> None:
    model = tiny_text(layers=1)
    known = sides(model)
    for options in ({"ratio": ratio}, {"reference_ratio": ratio}, {"max_isolated": ratio}):
        with pytest.raises(ValueError, match="expected a number above 0 and at most 1"):
            select(model, known["one"], known["two"], **options)


def test_other_choices_are_refused_by_name() -> None:
    model = tiny_text(layers=1)
    known = sides(model)
    for name, value in (("mode", "fast"), ("granularity", "column"), ("combine", "xor")):
        with pytest.raises(ValueError, match=f"{name} is '{value}'"):
            select(model, known["one"], known["two"], **{name: value})
    with pytest.raises(ValueError, match="ratios is empty"):
        sweep(model, known["one"], known["two"], ratios=[])
    with pytest.raises(DataError, match="'a b' is no name"):
        select(model, {"a b": known["one"]}, known["two"])
    with pytest.raises(DataError, match="one name twice"):
        select(model, {"a": known["one"]}, {"a": known["two"]})
    sums = collect(model, ONE, progress=False, keep="sums")
    assert select(model, sums, known["two"]).about["counts"]
    with pytest.raises(DataError, match="needs the norms of every sample of 'target'"):
        select(model, sums, known["two"], mode="compat")
    with pytest.raises(DataError, match="does not go with it"):
        select(model, known["one"], known["two"], mode="compat", aggregate="rms")
    other = collect(model, ONE, progress=False, include="q_proj")
    with pytest.raises(DataError, match="are of other matrices"):
        select(model, known["one"], other)
    with pytest.raises(ArtefactError, match="come from a LlamaForCausalLM with other weights"):
        select(tiny_text(layers=2), known["one"], known["two"])


def test_empty_and_small_sets_are_said_once() -> None:
    model = tiny_text(layers=1)
    known = sides(model)
    with pytest.warns(SelectionWarning) as caught:
        found = select(model, known["one"], known["one"], ratio=0.05)
    assert len(caught) == 1
    assert "'target - reference' is empty" in str(caught[0].message)
    assert sum(found.about["counts"].values()) == 0
    with pytest.warns(SelectionWarning, match="a ratio of 1 makes everything the top"):
        select(model, known["one"], known["two"], ratio=1.0)
    with pytest.warns(SelectionWarning) as caught:
        select(model, known["one"], known["two"], ratio=0.0015)
    assert [str(w.message) for w in caught] == [
        "at ratio 0.0015, 2 of 7 matrices are too small to have a top; they stay as they are"
    ]
    with pytest.raises(DataError, match="no matrix has a top: the largest has 2048 entries"):
        select(model, known["one"], known["two"], ratio=0.0001)


def test_unreached_experts_are_listed_and_never_selected() -> None:
    model = tiny_text("mixtral", layers=1, num_local_experts=4, num_experts_per_tok=1)
    with torch.no_grad():
        model.model.layers[0].mlp.gate.weight[3] = 0
        model.model.layers[0].mlp.gate.weight[:3].abs_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one, two = (collect(model, rows, progress=False) for rows in (ONE[:1], TWO))
        found = select(model, one, two, ratio=0.05)
    assert one.unreached
    assert found.about["unreached"]["target"] == list(one.unreached)
    assert all(found.about["counts"][name] == 0 for name in one.unreached)


def test_quantised_weights_are_refused_by_name() -> None:
    model = tiny_text(layers=1)
    known = sides(model)
    layer = model.model.layers[0].mlp.up_proj
    layer.weight = torch.nn.Parameter(layer.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(ModelError, match=r"up_proj\.weight is Tensor torch\.float8_e4m3fn .* load it unquantised"):
        select(model, known["one"], known["two"])


def test_offloaded_weights_are_read_and_not_kept() -> None:
    from accelerate import cpu_offload

    plain, model = tiny_text(layers=2), tiny_text(layers=2)
    known = sides(plain)
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert model.model.layers[0].mlp.up_proj.weight.is_meta
    one, two = (collect(model, rows, progress=False) for rows in (ONE, TWO))
    found, wanted = select(model, one, two), select(plain, known["one"], known["two"])
    assert found.about["counts"] == wanted.about["counts"]
    assert found.hashes == wanted.hashes
    found.check(model)
    assert model.model.layers[0].mlp.up_proj.weight.is_meta


# -- files ------------------------------------------------------------------------------------------------------------


def test_masks_are_packed_as_numpy_packs_them() -> None:
    mask = torch.rand(5, 7, generator=torch.Generator().manual_seed(0)) > 0.5
    packed = pack(mask)
    assert packed.dtype == torch.uint8
    assert len(packed) == 5
    assert torch.equal(unpack(packed, (5, 7)), mask)
    assert torch.equal(golden.unpacked(packed, (5, 7)), mask)


@pytest.mark.parametrize("granularity", ["matrix", "row", "global"])
def test_a_recipe_makes_the_stored_masks_again(tmp_path: Path, granularity: str) -> None:
    model = tiny_text(layers=2)
    known = sides(model)
    recipe = select(model, known["one"], known["two"], ratio=0.1, granularity=granularity, max_isolated=0.03)
    stored = load_selection(recipe.masks(model).save(tmp_path / "masks"))
    again = load_selection(recipe.save(tmp_path / "recipe.safetensors"))
    for mine, theirs in zip(masks(model, again).values(), masks(model, stored).values(), strict=True):
        assert torch.equal(mine, theirs)
    assert again.about == recipe.about
    assert again.label == recipe.label


def test_a_recipe_costs_eight_bytes_a_channel(tmp_path: Path) -> None:
    model = tiny_text(layers=2)
    known = sides(model)
    recipe = select(model, known["one"], known["two"])
    channels = sum(norms.shape[1] for norms in known["one"].norms.values())
    from safetensors import safe_open

    with safe_open(recipe.save(tmp_path / "r"), "pt") as file:
        stored = sum(file.get_tensor(k).nbytes for k in file.keys())  # noqa: SIM118
    assert channels * 8 <= stored <= channels * 12 + 24 * len(recipe.matrices)


def test_other_weights_and_other_files_are_refused(tmp_path: Path) -> None:
    model = tiny_text(layers=2)
    known = sides(model)
    recipe = select(model, known["one"], known["two"])
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    with pytest.raises(ArtefactError, match=r"layers\.1\.mlp\.up_proj\.weight has other values"):
        recipe.check(model)
    with pytest.raises(ArtefactError, match=r"q_proj\.weight has other values"):
        recipe.check(tiny_text(layers=3))
    with pytest.raises(ArtefactError, match="belongs to a LlamaForCausalLM, not to a GPT2LMHeadModel"):
        recipe.check(tiny_text("gpt2", layers=2))
    with pytest.raises(ArtefactError, match="expected a recipe or masks"):
        load_selection(known["one"].save(tmp_path / "statistics"))
    with pytest.raises(ArtefactError, match="is 'mathneuro-recipe' and not statistics"):
        Statistics.load(recipe.save(tmp_path / "recipe"))


@pytest.mark.parametrize("data", [[], {"matrices": 3}, {"matrices": [["w"]], "sides": [], "label": "x"}])
def test_whole_files_of_wrong_content_are_refused(tmp_path: Path, data) -> None:
    for kind, read in (("mathneuro-recipe", load_selection), ("mathneuro-statistics", Statistics.load)):
        file = Artefact("mathneuro", kind=kind).save(tmp_path / f"{kind}.safetensors")
        header, tensors = read_tensors(file)
        write_tensors(file, tensors, {**header, "data": data})
        with pytest.raises(ArtefactError, match=rf"{kind}\.safetensors holds no whole"):
            read(file)


def other_weights(model):
    """The same model but for one entry of its embeddings, which no matrix is."""
    with torch.no_grad():
        model.get_input_embeddings().weight[7, 0] += 1
    return model


def test_the_weights_decide_whose_statistics_they_are() -> None:
    model, other = tiny_text(layers=2), other_weights(tiny_text(layers=2))
    assert model.config.to_dict() == other.config.to_dict()
    known = sides(model)
    for sets in (
        (known["one"], collect(other, TWO, progress=False)),
        (collect(other, ONE, progress=False), known["two"]),
    ):
        with pytest.raises(ArtefactError, match="come from a LlamaForCausalLM with other weights; collect them"):
            select(model, *sets)
        assert select(model, *sets, force=True).about["counts"]
    model.config.rope_parameters["rope_theta"] = 5e5
    with pytest.warns(
        UserWarning, match=r"statistics of 'target'.* rope_parameters\.rope_theta = 10000\.0, not 500000"
    ):
        select(model, known["one"], known["two"])


def test_a_recipe_is_for_the_weights_it_touches(tmp_path: Path) -> None:
    model = tiny_text(layers=2)
    known = sides(model)
    recipe = load_selection(select(model, known["one"], known["two"]).save(tmp_path / "recipe"))
    other_weights(tiny_text(layers=2)).save_pretrained(tmp_path / "saved")
    again = type(model).from_pretrained(tmp_path / "saved")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recipe.check(again)
    again.config.new_default = 1
    with pytest.warns(UserWarning, match="another config: new_default = None, not 1"):
        recipe.check(again)


def test_overlaps_by_layer_and_kind() -> None:
    model = tiny_text(layers=2)
    known = sides(model)
    one, two = (select(model, known["one"], known[name], ratio=0.1) for name in ("two", "three"))
    found = overlap(model, one, two)
    pairs = list(zip(masks(model, one).values(), masks(model, two).values(), strict=True))
    common, either = sum(int((a & b).sum()) for a, b in pairs), sum(int((a | b).sum()) for a, b in pairs)
    assert found.jaccard == common / either
    assert found.found_again == common / sum(int(a.sum()) for a, _ in pairs)
    assert sum(found.groups[f"layer {i}"].common for i in range(2)) == common
    assert (
        sum(
            found.groups[kind].common
            for kind in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
        )
        == common
    )
    part = select(model, *(collect(model, rows, progress=False, include="q_proj") for rows in (ONE, TWO)))
    with pytest.raises(DataError, match="are of other matrices"):
        overlap(model, one, part)


def test_nothing_of_the_size_of_the_model_is_made() -> None:
    """Largest tensor that collecting and selecting make: one matrix (or one batch of activations)."""
    model = tiny_text(layers=6, hidden_size=64, intermediate_size=256)
    largest = 4 * max(m.numel for m in find_matrices_of(model))
    total = 4 * sum(m.numel for m in find_matrices_of(model))
    with LargestTensor() as seen:
        one, two = (collect(model, rows, progress=False, batch_size=1) for rows in (ONE, TWO))
        sweep(model, one, two, ratios=[0.01, 0.05, 0.1])
    assert 0 < seen.nbytes <= largest < 0.05 * total


def find_matrices_of(model):
    from paperhooks import ModelView

    return find_matrices(ModelView.from_model(model)).matrices


def test_permuted_samples_select_the_same() -> None:
    model = golden.model()
    one, two = (collect(model, golden.samples()[side], progress=False) for side in golden.SIDES)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    found, again = select(model, one, two), select(model, one.take(order), two.take(order.flip(0)))
    for a, b in zip(masks(model, found).values(), masks(model, again).values(), strict=True):
        assert int((a != b).sum()) <= 1


def test_groups_are_outputs() -> None:
    score = torch.arange(6.0).reshape(2, 3)
    assert groups(score, "matrix").shape == (1, 6)
    assert groups(score, "row").shape == (2, 3)
    assert torch.equal(groups(score, "row", 0), score.T)
