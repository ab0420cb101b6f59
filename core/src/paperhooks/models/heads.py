"""Attention heads that several processes hold together (tensor parallelism): what is meant over all of them.

Each process computes its own heads; what has to be one number for all is exchanged once, and added up in the order of
the processes, so that every one of them has the same bits and equal scores stay equal.
"""

from __future__ import annotations

from functools import reduce
from operator import add

import torch
from torch import Tensor

from paperhooks.errors import UnsupportedModel
from paperhooks.models.view import ModelView

__all__ = ["from_every_rank", "mean_over_heads"]


def mean_over_heads(view: ModelView, values: Tensor, heads: int) -> Tensor:
    """Mean [B, ...] over all of a layer's heads, of ``values`` [B, H, ...] of the H heads that this process holds.

    Without tensor parallelism that is ``values.mean(1)``. With it, every process of the model has to call this.

    :param heads: how many there are in all; see :func:`attention_parts`.
    :raises UnsupportedModel: gradients are asked for under tensor parallelism.
    """
    if view.spread.tensor_mesh is None or values.shape[1] == heads:
        return values.mean(1)
    return reduce(add, from_every_rank(view, values.sum(1))) / heads


def from_every_rank(view: ModelView, values: Tensor) -> list[Tensor]:
    """``values`` of every process that holds the model by tensor parallelism, in their order, alike on all of them.

    Without tensor parallelism those of this one. The first element is what they may agree upon.

    :param values: of one shape and dtype on all of them, without gradient.
    :raises UnsupportedModel: gradients are asked for under tensor parallelism.
    """
    mesh = view.spread.tensor_mesh
    if mesh is None:
        return [values]
    if values.requires_grad:
        raise UnsupportedModel(
            "gradients do not flow between the processes of a tensor-parallel model here; rank under torch.no_grad()"
        )
    values = values.contiguous()
    parts = [torch.empty_like(values) for _ in range(mesh.size())]
    torch.distributed.all_gather(parts, values, group=mesh.get_group())
    return parts
