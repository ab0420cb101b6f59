"""The steps of the method by themselves, on numbers that can be followed by hand."""

from __future__ import annotations

import pytest
import torch
from paperhooks_mathneuro.algorithm import channel_sums, count, isolate, scores, squared_norms, thresholds, top


def test_the_steps_on_one_matrix() -> None:
    weight = torch.tensor([[1.0, -2.0, 0.5], [3.0, 1.0, 1.0]])
    inputs = torch.tensor([[[3.0, 0.0, 1.0], [4.0, 0.0, 9.0]], [[0.0, 2.0, 0.0], [0.0, 0.0, 0.0]]])
    norms = squared_norms(inputs, torch.tensor([[True, True], [True, False]])).sqrt()
    assert norms.tolist() == [[5.0, 0.0, pytest.approx(82**0.5)], [0.0, 2.0, 0.0]]
    without = squared_norms(inputs, torch.tensor([[True, False], [True, True]])).sqrt()
    assert without.tolist() == [[3.0, 0.0, 1.0], [0.0, 2.0, 0.0]]
    sums = channel_sums(without, torch.tensor([1, 2]))
    assert sums.tolist() == [3.0, 4.0, 1.0]
    target = scores(weight, sums.float())
    assert target.tolist() == [[3.0, 8.0, 0.5], [9.0, 4.0, 1.0]]
    reference = scores(weight, torch.tensor([1.0, 0.0, 9.0]))
    k = count(weight.numel(), 0.4)
    tops = [
        top(s.reshape(1, -1), thresholds(s.reshape(1, -1), [k])[0]).reshape(weight.shape) for s in (target, reference)
    ]
    assert tops[0].nonzero().tolist() == [[0, 1], [1, 0]]
    assert tops[1].nonzero().tolist() == [[0, 2], [1, 2]]
    assert torch.equal(isolate(*tops), tops[0])


def test_squares_are_summed_as_wanda_does() -> None:
    norms = torch.tensor([[3.0, 1.0], [4.0, 2.0], [7.0, 7.0]])
    assert channel_sums(norms, torch.tensor([1, 1, 0]), squared=True).tolist() == [25.0, 5.0]
    assert channel_sums(norms.half(), torch.tensor([2, 0, 0])).dtype == torch.float64
