"""Matrices that the official builders pruned and quantised: the same masks, codes and values here."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from paperhooks import DataError
from paperhooks_evopress.levels.feedback import Feedback
from paperhooks_evopress.levels.gptq import Codes, quantise
from paperhooks_evopress.levels.grids import Grid
from paperhooks_evopress.levels.sparsegpt import prune
from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(__file__).parent.parent / "reference"
PRUNED = json.loads((FOLDER / "fast_obc.json").read_text())
QUANTISED = json.loads((FOLDER / "fast_obq.json").read_text())


@cache
def tensors(name: str) -> dict[str, Tensor]:
    return load_file(FOLDER / f"{name}.safetensors")


def moments(file: str, case: str) -> Tensor:
    rows = torch.cat([tensors(file)[f"{case}.x{i}"].float().flatten(0, 1) for i in range(3)])
    return rows.T @ rows


@pytest.mark.parametrize("case", PRUNED)
def test_pruned_as_the_official_builder_does(case: str) -> None:
    told, hessian = PRUNED[case], moments("fast_obc", case)
    given = tensors("fast_obc")[f"{case}.weight"]
    weight = given.float()
    # The official Hessian is 2 / N of the sum over N sequences.
    official = tensors("fast_obc")[f"{case}.hessian"]
    torch.testing.assert_close(hessian * 2 / told["num_samples"], official, rtol=1e-4, atol=1e-4)
    diagonal = official.diagonal()
    # There, dead inputs count as 1 in the mean that the damping is a share of; here they do not count.
    damping = told["rel_damp"] * float(torch.where(diagonal == 0, 1, diagonal).mean() / diagonal[diagonal > 0].mean())
    feedback = Feedback.of(hessian, (weight == 0).all(0), damping=damping)
    zeros = [round(share * weight.numel()) for share in told["sparsities"]]
    found = prune(weight.T, feedback, zeros, block=told["block_size"] or weight.shape[1])
    for share, count, (values, kept) in zip(told["sparsities"], zeros, found, strict=True):
        golden, ours, mask = tensors("fast_obc")[f"{case}.w@{share:g}"], values.T.to(given.dtype), kept.T
        assert int((~mask).sum()) == count
        other = (ours == 0) != (golden == 0)
        assert float(other.float().mean()) <= 0.002
        alike = ~other.any(1)  # an entry more that goes changes its row
        assert int(alike.sum()) >= len(alike) - 2
        tolerance = 1e-5 if given.dtype == torch.float32 else 2e-3
        torch.testing.assert_close(ours[alike], golden[alike], rtol=tolerance, atol=1e-5)


@pytest.mark.parametrize("case", QUANTISED)
def test_quantised_as_the_official_builder_does(case: str) -> None:
    told, own = QUANTISED[case], tensors("fast_obq")
    weight = own[f"{case}.weight"]
    feedback = Feedback.of(moments("fast_obq", case), (weight == 0).all(0))
    grid = Grid(told["sym"], False, weight.dtype)
    found = quantise(weight.T, feedback, told["bits"], grid, group=told["group_size"], block=told["block_size"])
    for width, each in zip(told["bits"], found, strict=True):
        codes, golden = each.codes.T.int(), own[f"{case}.q@{width}"].int()
        assert int((codes - golden).abs().max()) <= 1
        assert float((codes != golden).float().mean()) <= 0.005
        torch.testing.assert_close(each.scales.T, own[f"{case}.scale@{width}"], rtol=1e-5, atol=0)
        if f"{case}.zero@{width}" in own:
            torch.testing.assert_close(each.zeros.T, own[f"{case}.zero@{width}"], rtol=1e-5, atol=0)
        if f"{case}.deq@{width}" in own:
            alike = codes == golden
            torch.testing.assert_close(values(each).T[alike], own[f"{case}.deq@{width}"][alike], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("width", [2, 3, 4, 8])
def test_the_official_grid(width: int, symmetric: bool) -> None:
    """Zero and constant rows, rows of one sign."""
    own, end = tensors("fast_obq"), f"@{width}.sym{int(symmetric)}"
    weight, top = own["grid.x"], torch.tensor(2.0**width - 1)
    low, high = weight.aminmax(dim=1)
    grid = Grid(symmetric, range_includes_zero=False)
    scale, zero = grid.fit(low, high, top)
    codes, rounded = grid.rounded(weight, scale[:, None], zero[:, None], top)
    torch.testing.assert_close(scale, own[f"grid.scale{end}"].flatten(), rtol=1e-5, atol=0)
    assert torch.equal(zero, own[f"grid.zero{end}"].flatten())
    assert torch.equal(codes, own[f"grid.q{end}"])
    torch.testing.assert_close(rounded, own[f"grid.qdq{end}"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_own_grid_holds_zero_and_what_it_stores(symmetric: bool, dtype: torch.dtype) -> None:
    weight = torch.cat([tensors("fast_obq")["grid.x"], torch.tensor([[1e-7, 2e-7], [4e4, -4e4]]).repeat(1, 10)])
    weight = weight.to(torch.promote_types(dtype, torch.float32))
    low, high = weight.aminmax(dim=1)
    for width in range(1, 9):
        top = torch.tensor(2.0**width - 1, dtype=weight.dtype)
        grid = Grid(symmetric, dtype=dtype)
        scale, zero = grid.fit(low, high, top)
        assert bool(((scale > 0) & scale.isfinite()).all())
        assert torch.equal(scale.to(dtype).to(scale.dtype), scale)
        assert bool(((zero >= 0) & (zero <= top) & (zero == zero.round())).all())
        _, rounded = grid.rounded(weight, scale[:, None], zero[:, None], top)
        assert torch.equal(rounded[1], torch.zeros_like(rounded[1]))
        assert torch.equal(rounded.to(dtype).to(rounded.dtype), rounded)
        if not symmetric and dtype == torch.float32:
            assert float(((weight - rounded).abs() / scale[:, None]).max()) <= 0.51  # of a step


def test_ties_dead_inputs_and_all_or_nothing() -> None:
    weight, hessian = torch.ones(20, 7), torch.eye(20)
    hessian[3, 3] = 0
    feedback = Feedback.of(hessian)
    for share in (0.0, 0.05, 0.5, 0.77, 1.0):
        count = round(share * weight.numel())
        ((values, kept),) = prune(weight, feedback, [count], block=8)
        assert int((~kept).sum()) == count
        assert torch.equal(values[3], torch.zeros(7))
        assert bool((values[~kept] == 0).all())
    assert feedback.dead.nonzero().flatten().tolist() == [3]


def test_inputs_that_nobody_read_are_not_dead() -> None:
    feedback = Feedback.of(torch.zeros(5, 5))
    weight = torch.arange(1.0, 11).view(5, 2)
    assert not bool(feedback.dead.any())
    assert torch.equal(prune(weight, feedback, [0])[0][0], weight)


def test_hessians_that_cannot_be_factored_are_refused() -> None:
    hessian = torch.eye(4)
    hessian[0, 1] = hessian[1, 0] = 5.0
    with pytest.raises(DataError, match="no factor even in float64; use more damping"):
        Feedback.of(hessian)
    with pytest.raises(DataError, match="not finite"):
        Feedback.of(torch.full((4, 4), torch.nan))


def test_the_factor_is_that_of_the_damped_inverse() -> None:
    rows = torch.randn(30, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    hessian = rows.T @ rows
    for by_size in (False, True):
        feedback = Feedback.of(hessian, by_size=by_size, damping=0.05)
        mean = hessian.diagonal().mean()
        damped = ((hessian + 0.05 * mean * torch.eye(12)) / mean)[feedback.order][:, feedback.order]
        torch.testing.assert_close(feedback.factor.T @ feedback.factor, torch.linalg.inv(damped))
        assert torch.equal(feedback.factor, feedback.factor.triu())
        if by_size:
            assert bool((hessian.diagonal()[feedback.order].diff() <= 0).all())


def values(codes: Codes) -> Tensor:
    """Dequantised, [inputs, outputs], where groups are of inputs and of one size."""
    group = len(codes.codes) // len(codes.scales)
    scales, zeros = (each.repeat_interleave(group, 0) for each in (codes.scales, codes.zeros))
    return (codes.codes - zeros) * scales
