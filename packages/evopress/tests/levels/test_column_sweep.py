"""Levels made side by side, against each alone and against the sweep written out plainly."""

from __future__ import annotations

import pytest
import torch
from paperhooks_evopress.levels.feedback import Feedback
from paperhooks_evopress.levels.gptq import quantise
from paperhooks_evopress.levels.grids import Grid
from paperhooks_evopress.levels.pruned import smallest
from paperhooks_evopress.levels.sparsegpt import prune
from torch import Tensor

#: Inputs and outputs: less than a block, more, and numbers that nothing divides.
SHAPES = [(1, 1), (17, 5), (50, 37), (129, 64), (300, 33)]
WIDTHS = [2, 3, 5, 8]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def feedback_of(inputs: int, *, by_size: bool = False) -> Feedback:
    rows = random(2 * inputs + 3, inputs, seed=1) * torch.linspace(0.2, 3, inputs)
    return Feedback.of(rows.T @ rows, by_size=by_size)


@pytest.mark.parametrize("by_size", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_all_at_once_is_one_at_a_time(shape: tuple[int, int], by_size: bool) -> None:
    weight, feedback = random(*shape), feedback_of(shape[0], by_size=by_size)
    zeros = [round(share * weight.numel()) for share in (0.1, 0.5, 0.66, 1.0)]
    for count, together in zip(zeros, prune(weight, feedback, zeros), strict=True):
        (alone,) = prune(weight, feedback, [count])
        assert torch.equal(together[0], alone[0])
        assert torch.equal(together[1], alone[1])
    for of_outputs in (False, True):
        options = {"group": 16, "of_outputs": of_outputs}
        for width, ours in zip(WIDTHS, quantise(weight, feedback, WIDTHS, Grid(), **options), strict=True):
            (one,) = quantise(weight, feedback, [width], Grid(), **options)
            for part in ("codes", "scales", "zeros"):
                assert torch.equal(getattr(ours, part), getattr(one, part))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_sweep_is_the_plain_one(shape: tuple[int, int]) -> None:
    """Column by column, each error spread over all later columns at once, in float64."""
    inputs, _ = shape
    weight, feedback = random(*shape).double(), feedback_of(inputs)
    feedback = Feedback(feedback.factor.double(), feedback.order, feedback.dead)
    ((values, kept),) = prune(weight, feedback, [weight.numel() // 2], block=inputs)
    plain = weight.clone()
    for i in range(inputs):
        settled = torch.where(kept[i], plain[i], 0)
        error = (plain[i] - settled) / feedback.factor[i, i]
        plain[i:] -= feedback.factor[i, i:, None] * error
        plain[i] = settled
    torch.testing.assert_close(values, plain)


def test_feedback_lowers_the_error_of_the_output() -> None:
    inputs, outputs = 96, 24
    rows = random(400, 24, seed=1) @ random(24, inputs, seed=2) + 0.1 * random(400, inputs, seed=3)  # few directions
    weight, hessian = random(inputs, outputs), rows.T @ rows
    known, blind = Feedback.of(hessian), Feedback.none(inputs, hessian)

    def error(values: Tensor) -> float:
        return float((rows @ (values - weight)).square().sum())

    half = weight.numel() // 2
    assert error(prune(weight, known, [half])[0][0]) < 0.5 * error(prune(weight, blind, [half])[0][0])

    def dense(feedback: Feedback, of_outputs: bool) -> Tensor:
        (found,) = quantise(weight, feedback, [3], Grid(), group=12, of_outputs=of_outputs)
        dim = 1 if of_outputs else 0
        scales, zeros = (each.repeat_interleave(12, dim) for each in (found.scales, found.zeros))
        return (found.codes - zeros) * scales

    for of_outputs in (False, True):
        assert error(dense(known, of_outputs)) < 0.5 * error(dense(blind, of_outputs))
    by_size = Feedback.of(hessian, by_size=True)
    assert not torch.equal(by_size.order, known.order)
    assert error(dense(by_size, False)) < 0.5 * error(dense(blind, False))


@pytest.mark.parametrize("group", [7, 16, 40, 100])
@pytest.mark.parametrize("by_size", [False, True])
def test_groups_that_do_not_divide(group: int, by_size: bool) -> None:
    """Each group's scale is that of its own neighbours, the shorter last one's too, whatever the order of work."""
    weight, feedback = random(40, 6), feedback_of(40, by_size=by_size)
    (found,) = quantise(weight, feedback, [8], Grid(), group=group, block=1000)
    assert found.scales.shape == (-(-40 // group), 6)
    # With one block, groups are fitted to the weights as they are.
    for number, part in enumerate(weight.split(group)):
        wanted = (part.amax(0).clamp(min=0) - part.amin(0).clamp(max=0)) / 255
        torch.testing.assert_close(found.scales[number], wanted)


def test_exactly_so_many_smallest_are_found() -> None:
    values = torch.tensor([[3.0, 1.0, 1.0], [1.0, 0.0, 2.0]])
    for count in range(7):
        assert int(smallest(values, count).sum()) == count
    assert smallest(values, 3).tolist() == [[False, True, True], [False, True, False]]
