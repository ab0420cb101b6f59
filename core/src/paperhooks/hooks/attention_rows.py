"""How much attention some tokens pay in a layer that is about to run; what methods rank tokens by."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from paperhooks.errors import HookError
from paperhooks.models.attention import causal_attention, full_precision

if TYPE_CHECKING:
    from paperhooks.hooks.call import Site
    from paperhooks.hooks.inputs import LayerInputs

__all__ = ["attention_from"]


def attention_from(site: Site, inputs: LayerInputs, rows: Tensor) -> Tensor:
    """How much attention some tokens pay to every token alive in the layer that is about to run, averaged over heads.

    What a method ranks tokens by, in the coordinates of this layer: rows and columns count the tokens alive
    (``inputs.image_mask`` tells which of them are visual). Under tensor parallelism the average is over the heads of
    all processes, each of which has to call this.

    :param rows: int64 [B, m], the tokens that look.
    :return: float32 [B, m, n] without gradient; each row sums to 1 over the real tokens up to itself.
    :raises HookError: rows of another dtype or shape. :raises UnsupportedModel: the layer has no separate query and key
        projections, or other processes have other tokens of the sequence.
    """
    batch = len(inputs.hidden_states)
    if rows.dtype != torch.int64 or rows.ndim != 2 or rows.shape[0] != batch:
        raise HookError(f"layer {site.index}: rows are {rows.dtype} {list(rows.shape)}; expected int64 [B={batch}, m]")
    hidden = inputs.hidden_states.detach()
    with torch.no_grad(), full_precision(hidden.device):
        return causal_attention(site.view, site.index, hidden, inputs.position_embeddings, rows, inputs.padding_mask)
