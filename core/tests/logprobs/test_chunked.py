"""Work on rows in chunks: sums whose gradient is made on the way equal the plain ones."""

from __future__ import annotations

import pytest
import torch
from paperhooks.logprobs import sum_in_chunks
from paperhooks.testing import LargestTensor
from torch import Tensor, nn

N, D, V = 23, 8, 40


def material(dtype: torch.dtype = torch.float32) -> tuple[nn.Linear, Tensor, Tensor, Tensor]:
    """A head, rows with gradient, targets, and weights."""
    torch.manual_seed(0)
    head, rows = nn.Linear(D, V).to(dtype), torch.randn(N, D, dtype=dtype, requires_grad=True)
    return head, rows, torch.randint(0, V, (N,)), torch.rand(N) / 7


def terms(head: nn.Linear):
    def function(rows: Tensor, targets: Tensor) -> Tensor:
        logits = head(rows).float()
        surprise = logits.logsumexp(-1) - logits.gather(-1, targets[:, None])[:, 0]
        return torch.stack([surprise, logits.square().mean(-1)], -1)

    return function


@pytest.mark.parametrize("chunk", [1, 5, 23, 100])
@pytest.mark.parametrize("factors", [(1.0, 0.0), (0.25, 3.0)])
def test_sums_values_and_gradients_are_the_plain_ones(chunk: int, factors) -> None:
    head, rows, targets, weights = material()
    values = terms(head)(rows, targets)
    wanted = sum(factor * (weights * values[:, k]).sum() for k, factor in enumerate(factors))
    (3 * wanted).backward()
    other, same, _, _ = material()
    found, given = sum_in_chunks(
        terms(other), chunk, weights, factors, same, targets, parameters=list(other.parameters())
    )
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    torch.testing.assert_close(given, values.detach(), rtol=1e-5, atol=1e-6)
    assert not given.requires_grad
    (3 * found).backward()
    for one, two in zip((rows, *head.parameters()), (same, *other.parameters()), strict=True):
        torch.testing.assert_close(two.grad, one.grad, rtol=1e-4, atol=1e-6)
    with pytest.raises(RuntimeError, match="differentiated already"):
        found.backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_weights_leave_gradients_in_half_precision(dtype: torch.dtype) -> None:
    """Weights of 1e-7 would round to nothing in float16; the gradients are scaled as a whole afterwards."""
    found = []
    for small in (1.0, 1e-7):
        head, rows, targets, weights = material(dtype)
        total, _ = sum_in_chunks(terms(head), 4, small * weights, (1.0, 0.0), rows, targets, parameters=[head.weight])
        (total / small).backward()
        assert rows.grad.dtype == head.weight.grad.dtype == dtype
        found.append((rows.grad.float(), head.weight.grad.float()))
    for one, two in zip(*found, strict=True):
        assert one.abs().max() > 1e-3
        torch.testing.assert_close(two, one, rtol=2e-2, atol=1e-3)


def test_frozen_parameters_and_no_rows() -> None:
    head, rows, targets, weights = material()
    head.weight.requires_grad_(False)
    total, _ = sum_in_chunks(terms(head), 4, weights, (1.0, 1.0), rows, targets, parameters=list(head.parameters()))
    total.backward()
    assert head.weight.grad is None
    assert head.bias.grad is not None
    nothing, values = sum_in_chunks(
        terms(head), 4, weights[:0], (1.0, 1.0), rows[:0], targets[:0], parameters=list(head.parameters())
    )
    assert (nothing.item(), values.shape) == (0.0, (0, 2))
    nothing.backward()
    with pytest.raises(ValueError, match="chunk is 0"):
        sum_in_chunks(terms(head), 0, weights, (1.0, 1.0), rows, targets)


def test_without_gradient_the_same_values_are_made() -> None:
    head, rows, targets, weights = material()
    wanted, values = sum_in_chunks(terms(head), 5, weights, (1.0, 2.0), rows, targets, parameters=[head.weight])
    with torch.no_grad():
        found, given = sum_in_chunks(terms(head), 5, weights, (1.0, 2.0), rows, targets, parameters=[head.weight])
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert not found.requires_grad
    torch.testing.assert_close(given, values)


def test_a_column_without_a_factor_may_be_infinite() -> None:
    rows, weights = torch.randn(3, 2, requires_grad=True), torch.ones(3)
    total, values = sum_in_chunks(
        lambda x: torch.stack([x.sum(-1), x.sum(-1) + torch.inf], -1), 2, weights, (1.0, 0.0), rows
    )
    total.backward()
    assert values[:, 1].isinf().all()
    assert torch.equal(rows.grad, torch.ones(3, 2))


def test_nothing_of_a_chunk_is_kept() -> None:
    head, rows, targets, weights = material()
    kept: list[int] = []

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), LargestTensor() as seen:
        total, _ = sum_in_chunks(terms(head), 3, weights, (1.0, 0.0), rows, targets, parameters=[head.weight])
        before = len(kept)
        total.backward()
    assert len(kept) == before
    assert seen.entries <= max(3 * V, V * D)
