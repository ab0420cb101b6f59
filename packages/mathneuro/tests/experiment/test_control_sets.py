"""Controls have the selection's size, matrix by matrix, and differ from it in what they say."""

from __future__ import annotations

import pytest
import torch
from paperhooks import DataError
from paperhooks.testing import tiny_text
from paperhooks_mathneuro import CONTROLS, collect, control, controls, noise_floor, overlap, select, stability
from paperhooks_mathneuro.selection import weights_of

ONE = [[1, 5, 6, 7, 8, 9], [1, 10, 11], [1, 12, 13, 14], [1, 15, 3, 4], [1, 20, 21], [1, 22, 9, 8]]
TWO = [[1, 55, 56, 57], [1, 60, 61, 70, 71], [1, 62, 63, 64, 50, 51], [1, 72, 73], [1, 80, 81], [1, 85, 86]]


def known(model):
    return [collect(model, rows, progress=False) for rows in (ONE, TWO)]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("granularity", ["matrix", "row", "global"])
def test_controls_match_in_size_and_differ_in_kind(family: str, granularity: str) -> None:
    model = tiny_text(family, layers=2)
    selection = select(model, *known(model), ratio=0.1, granularity=granularity)
    found = controls(selection)
    assert tuple(found) == CONTROLS
    for matrix, weight in weights_of(model, selection.matrices):
        own = selection.mask(matrix, weight)
        masks = {name: each.mask(matrix, weight) for name, each in found.items()}
        size = int(own.sum())
        assert int(masks["random"].sum()) == size
        assert 0.8 * size <= int(masks["same magnitude"].sum()) <= size
        assert not bool((masks["same magnitude"] & own).any())
        tops = {name: selection.top(name, matrix, weight) for name in ("target", "reference")}
        assert torch.equal(masks["top only"], tops["target"])
        assert torch.equal(masks["reversed"], tops["reference"] & ~tops["target"])
        if granularity != "global":
            assert int(masks["reversed"].sum()) == size
        near = masks["next important"]
        assert int(near.sum()) <= size
        assert not bool((near & (tops["target"] | tops["reference"])).any())
        scores = selection.scores("target", matrix, weight)
        if bool(near.any()) and granularity == "matrix":
            rank = int((scores > scores[near].min()).sum())
            assert rank < 2 * int(tops["target"].sum())


def test_magnitudes_are_matched_where_random_ones_are_not() -> None:
    model = tiny_text(layers=2)
    selection = select(model, *known(model), ratio=0.1)
    found = {name: control(selection, name) for name in ("random", "same magnitude")}
    means = {"own": [], "random": [], "same magnitude": []}
    for matrix, weight in weights_of(model, selection.matrices):
        means["own"].append(float(weight[selection.mask(matrix, weight)].abs().mean()))
        for name, each in found.items():
            means[name].append(float(weight[each.mask(matrix, weight)].abs().mean()))
    own, random, same = (sum(means[name]) for name in ("own", "random", "same magnitude"))
    assert abs(same - own) < 0.1 * own
    assert abs(random - own) > 0.3 * own


def test_controls_are_seeded() -> None:
    model = tiny_text(layers=1)
    selection = select(model, *known(model), ratio=0.1)
    one, same, other = (control(selection, "random", seed=seed) for seed in (1, 1, 2))
    assert overlap(model, one, same).jaccard == 1.0
    assert overlap(model, one, other).jaccard < 0.5
    state = torch.random.get_rng_state()
    one.counts(model)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_masks_have_the_controls_that_need_no_scores() -> None:
    model = tiny_text(layers=1)
    masks = select(model, *known(model), ratio=0.1).masks(model)
    assert tuple(controls(masks)) == ("random", "same magnitude")
    for name in ("top only", "reversed", "next important"):
        with pytest.raises(DataError, match="needs a recipe, not Masks"):
            control(masks, name)
    with pytest.raises(DataError, match="there is no control 'best'"):
        control(masks, "best")
    alone = select(model, *known(model), ratio=0.1, expression="target & reference")
    assert "reversed" not in controls(alone)
    with pytest.raises(DataError, match="nothing to reverse"):
        control(alone, "reversed")
    with pytest.raises(DataError, match="has no file form; save its masks"):
        control(masks, "random").save("x")


def test_stability_and_noise_need_no_forward_pass() -> None:
    model = tiny_text(layers=2)
    # Texts of a side are alike, and the sides are not, so that there is something to be stable about.
    generator = torch.Generator().manual_seed(0)
    rows = [[[1, *(start + torch.randperm(6, generator=generator)).tolist()] for _ in range(32)] for start in (5, 55)]
    sides = [collect(model, each, progress=False) for each in rows]
    calls = []
    handle = model.register_forward_pre_hook(lambda m, a, k: calls.append(1), with_kwargs=True)
    found = stability(model, *sides, ratio=0.1, splits=3, progress=False)
    assert [one.n for one in found] == [1, 4, 16]
    assert all(
        len(one.jaccard) == 3 and all(0 <= j <= f <= 1 for j, f in zip(one.jaccard, one.found_again, strict=True))
        for one in found
    )
    assert sum(found[2].jaccard) > sum(found[0].jaccard)
    noise = noise_floor(model, *sides, ratio=0.1, splits=2, progress=False)
    assert noise.n == 16
    assert 0 < max(noise.target + noise.reference) < min(noise.isolated)
    assert 0 < noise.share < 1
    assert calls == []
    handle.remove()
    with pytest.raises(DataError, match="need twice as many a side; there are 32"):
        stability(model, *sides, sizes=[17], progress=False)
    with pytest.raises(DataError, match="at least two samples"):
        noise_floor(model, sides[0].take([0]), sides[1], progress=False)
