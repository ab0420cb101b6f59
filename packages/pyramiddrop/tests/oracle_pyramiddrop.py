"""The oracle: a stock model from which nothing is removed; from each drop layer on, dropped columns are masked.

Plain torch hooks on the stock model with eager attention, fed with the kept sets that a run of the method recorded.
With preserved positions both must be equal.
"""

from __future__ import annotations

from contextlib import contextmanager

import torch
from paperhooks import ModelView


@contextmanager
def masked(model, stages: dict[int, torch.Tensor]):
    """``stages``: drop layer to bool [B, T], the columns alive from that layer on (later columns are alive)."""

    def hide(index):
        alive = torch.stack([keep for layer, keep in stages.items() if layer <= index]).all(0)

        def hook(module, args, kwargs):
            mask = kwargs["attention_mask"]
            queries, columns = mask.shape[-2:]
            full = torch.nn.functional.pad(alive, (0, columns - alive.shape[1]), value=True)
            own = torch.eye(columns, dtype=torch.bool)[columns - queries :]
            dead = ~full[:, None, None, :] & ~own  # a dropped row still sees itself: its softmax stays finite
            return args, {**kwargs, "attention_mask": mask.masked_fill(dead, torch.finfo(mask.dtype).min)}

        return hook

    layers = ModelView.from_model(model).layers
    first = min(stages)
    handles = [
        layer.register_forward_pre_hook(hide(i), with_kwargs=True) for i, layer in enumerate(layers) if i >= first
    ]
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()


def kept(drops) -> dict[int, torch.Tensor]:
    """Recorded drops as the oracle's stages. The padding is dropped too; for the oracle it stays masked as it was."""
    return {drop.layer: drop.kept for drop in drops}
