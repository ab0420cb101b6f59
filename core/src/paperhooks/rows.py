"""Chunked work on the rows of a hidden-state matrix, with memory bounded in the backward pass too."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

__all__ = ["in_chunks", "scatter_rows", "target_rows"]


def in_chunks(function: Callable[..., Tensor], chunk: int, *tensors: Tensor) -> Tensor:
    """``function`` of ``chunk`` rows at a time: the results [n] joined.

    With gradients a chunk keeps only its inputs and is computed again in the backward pass. No rows are one empty
    chunk, so that the result stays part of the graph. Raises ValueError for a chunk below 1.
    """
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; it must be at least 1 row")
    pieces = zip(*(torch.split(tensor, chunk) for tensor in tensors), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([function(*piece) for piece in pieces])
    # No random numbers are drawn in a head, so the random state need not be saved.
    return torch.cat([checkpoint(function, *p, use_reentrant=False, preserve_rng_state=False) for p in pieces])


def target_rows(wanted: Tensor) -> Tensor:
    """Flat positions int64 [n] of True in a mask of any shape."""
    return wanted.reshape(-1).nonzero().squeeze(1)


def scatter_rows(values: Tensor, rows: Tensor, shape: torch.Size) -> Tensor:
    """``values`` [n] put at flat positions ``rows`` of zeros of ``shape``. Differentiable."""
    flat = torch.zeros(shape.numel(), dtype=values.dtype, device=values.device)
    return flat.index_copy(0, rows.to(values.device), values).reshape(shape)
