"""A record of what was dropped, for pictures and analysis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Drop", "recorded"]


@dataclass(frozen=True, slots=True)
class Drop:
    """One drop as it happened, on the CPU: what ``record`` collects.

    layer; kept bool [B, T] in original coordinates; scores float32 [B, T] with NaN where nothing was scored; visual
    bool [B, T].
    """

    layer: int
    kept: Tensor
    scores: Tensor
    visual: Tensor


def recorded(layer: int, keep: Tensor, scores: Tensor, visual: Tensor, index: Tensor, length: int) -> Drop:
    """A drop in original coordinates, from what a layer had: bool ``keep`` and ``visual`` and float ``scores``, [B, n],
    and int64 ``index`` [B, n] of those tokens among ``length``."""
    full: dict[str, Any] = {
        "kept": torch.zeros(index.shape[0], length, dtype=torch.bool),
        "scores": torch.full((index.shape[0], length), torch.nan),
        "visual": torch.zeros(index.shape[0], length, dtype=torch.bool),
    }
    index = index.cpu()
    full["kept"].scatter_(1, index, keep.cpu())
    full["visual"].scatter_(1, index, visual.cpu())
    full["scores"].scatter_(1, index, scores.detach().float().cpu().masked_fill(~visual.cpu(), torch.nan))
    return Drop(layer, **full)
