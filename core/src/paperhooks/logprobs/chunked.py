"""Chunked work on the rows of a hidden-state matrix, with memory bounded in the backward pass too."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from paperhooks.logprobs.chosen import refuse_second_order

__all__ = ["in_chunks", "rows_in_chunks", "scatter_rows", "sum_in_chunks", "target_rows"]


def in_chunks(function: Callable[..., Tensor], chunk: int, *tensors: Tensor, keep: bool = False) -> Tensor:
    """``function`` of ``chunk`` rows at a time: the results [n] joined.

    With gradients a chunk keeps only its inputs and is computed again in the backward pass, unless ``keep`` lets it
    keep what it made. No rows are one empty chunk, so that the result stays part of the graph. Raises ValueError for a
    chunk below 1.
    """
    _check(chunk)
    pieces = zip(*(torch.split(tensor, chunk) for tensor in tensors), strict=True)
    if keep or not torch.is_grad_enabled():
        return torch.cat([function(*piece) for piece in pieces])
    # No random numbers are drawn in a head, so the random state need not be saved.
    return torch.cat([checkpoint(function, *p, use_reentrant=False, preserve_rng_state=False) for p in pieces])


def sum_in_chunks(
    function: Callable[..., Tensor],
    chunk: int,
    weights: Tensor,
    factors: Sequence[float],
    rows: Tensor,
    *others: Tensor,
    parameters: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor]:
    """A weighted sum of what ``function`` gives for ``chunk`` rows at a time, whose gradient is made on the way.

    Nothing is computed twice, and of a chunk nothing is kept: where every row's weight is known beforehand, this is
    faster than :func:`in_chunks` and takes as little memory, but for one gradient of each parameter.

    :param function: gives [n, K] for n rows of ``rows`` and of each of ``others``.
    :param weights, factors: the sum is sum_k factors[k] sum_i weights[i] values[i, k], weights float32 [N], which best
        are on the CPU: their maximum is looked at; a factor of 0 leaves its column out, also where it is infinite.
    :param rows: [N, D]; gradients flow to them. :param others: [N, ...]; none flow to them.
    :param parameters: tensors that ``function`` uses and gradients flow to.
    :return: the sum, a scalar that can be differentiated once, and the values, [N, K], without gradient.
    :raises ValueError: a chunk below 1.
    """
    _check(chunk)
    if not torch.is_grad_enabled():
        values = in_chunks(function, chunk, rows, *others)
        return weights.to(values.device, non_blocking=True) @ _combined(values, factors), values
    wanted = tuple(p for p in parameters if p.requires_grad)
    found: tuple[Tensor, Tensor] = _Sum.apply(  # type: ignore[no-untyped-call]
        function, chunk, weights, tuple(factors), others, rows, *wanted
    )
    return found


class _Sum(torch.autograd.Function):
    """Forward and gradient of :func:`sum_in_chunks` in one pass."""

    @staticmethod
    def forward(
        ctx: Any, function: Any, chunk: int, weights: Tensor, factors: Any, others: Any, rows: Tensor, *parameters: Any
    ) -> tuple[Tensor, Tensor]:
        # Weights near 1, so that gradients in half precision do not vanish; a power of two changes no digit.
        largest = float(weights.max()) if len(weights) else 0.0  # no wait for weights that are on the CPU
        weights = weights.to(rows.device, non_blocking=True)
        scale = 2.0 ** -math.floor(math.log2(largest)) if largest > 0 else 1.0
        sums = [torch.zeros_like(p, dtype=_exact(p)) for p in parameters]
        grads, values = torch.zeros(rows.shape, dtype=torch.float32, device=rows.device), []
        total = torch.zeros((), dtype=torch.float32, device=rows.device)
        for start in range(0, max(len(rows), 1), chunk):
            part = slice(start, start + chunk)
            piece = rows[part].detach().requires_grad_()
            with torch.enable_grad():
                found = function(piece, *(other[part] for other in others))
                weighted = (weights[part].to(found.device) * scale) @ _combined(found, factors)
                made = torch.autograd.grad(weighted, [piece, *parameters], allow_unused=True)
            grads[part] = 0.0 if made[0] is None else made[0].float()
            for one, more in zip(sums, made[1:], strict=True):
                if more is not None:
                    one += more.to(one.dtype)
            total += weighted.detach().to(total.device)
            values.append(found.detach())
        ctx.scale, ctx.dtypes = scale, [rows.dtype, *(p.dtype for p in parameters)]
        ctx.grads = [grads, *sums]
        joined = torch.cat(values)
        ctx.mark_non_differentiable(joined)
        return total / scale, joined

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        if ctx.grads is None:
            raise RuntimeError("the sum was differentiated already; compute it again")
        grads, ctx.grads = ctx.grads, None
        factor = upstream[0] / ctx.scale
        made = [each.mul_(factor.to(each.device)).to(dtype) for each, dtype in zip(grads, ctx.dtypes, strict=True)]
        return None, None, None, None, None, *made


def rows_in_chunks(function: Callable[..., Tensor], chunk: int, rows: Tensor, *others: Tensor) -> Tensor:
    """``function`` of ``chunk`` rows at a time, whose gradient by ``rows`` is made on the way: the results [n] joined.

    Nothing is computed twice, and of a chunk nothing is kept but that gradient. For a function whose result of a row
    depends on this row alone, and which nothing else learns from: that is what its user answers for.

    :param function: gives [n] for n rows of ``rows`` and of each of ``others``. :param rows: [N, D]; gradients flow to
        them. :param others: [N, ...]; none flow to them.
    :return: [N], which can be differentiated once, as often as the graph is kept; a gradient of its gradient raises
        RuntimeError.
    :raises ValueError: a chunk below 1.
    """
    _check(chunk)
    made: Tensor = _Rows.apply(function, chunk, others, rows)  # type: ignore[no-untyped-call]
    return made


class _Rows(torch.autograd.Function):
    """Forward and gradient of :func:`rows_in_chunks` in one pass."""

    @staticmethod
    def forward(ctx: Any, function: Any, chunk: int, others: Any, rows: Tensor) -> Tensor:
        grads, values = torch.empty_like(rows), []
        for start in range(0, max(len(rows), 1), chunk):
            part = slice(start, start + chunk)
            piece = rows[part].detach().requires_grad_()
            with torch.enable_grad():
                found = function(piece, *(other[part] for other in others))
            (grads[part],) = torch.autograd.grad(found, piece, torch.ones_like(found))
            values.append(found.detach())
        ctx.save_for_backward(grads)
        return torch.cat(values)

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        refuse_second_order()
        (grads,) = ctx.saved_tensors
        # In the precision of the values: half precision rounds the product once.
        return None, None, None, (grads * upstream[0].to(grads.device)[:, None]).to(grads.dtype)


def _check(chunk: int) -> None:
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; it must be at least 1 row")


def _exact(parameter: Tensor) -> torch.dtype:
    """Where gradients of chunks are added up: half precision would lose digits, or overflow."""
    return torch.float32 if parameter.dtype in (torch.float16, torch.bfloat16) else parameter.dtype


def _combined(values: Tensor, factors: Sequence[float]) -> Tensor:
    """The columns of [n, K] times their factors, added up: [n]."""
    kept = [values[:, k] * factor for k, factor in enumerate(factors) if factor != 0]
    return sum(kept[1:], kept[0]) if kept else values[:, :0].sum(1)


def target_rows(wanted: Tensor) -> Tensor:
    """Flat positions int64 [n] of True in a mask of any shape."""
    return wanted.reshape(-1).nonzero().squeeze(1)


def scatter_rows(values: Tensor, rows: Tensor, shape: torch.Size) -> Tensor:
    """``values`` [n] put at flat positions ``rows`` of zeros of ``shape``. Differentiable."""
    flat = torch.zeros(shape.numel(), dtype=values.dtype, device=values.device)
    return flat.index_copy(0, rows.to(values.device, non_blocking=True), values).reshape(shape)
