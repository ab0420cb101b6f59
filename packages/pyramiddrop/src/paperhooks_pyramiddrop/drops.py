"""A record of what was dropped, for figures and analysis."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Drop", "recorded"]


@dataclass(frozen=True, slots=True)
class Drop:
    """One drop as it happened, on the CPU: what ``record`` collects.

    layer; kept bool [B, T] in original coordinates, text included; scores float32 [B, T] with NaN where nothing was
    scored; visual bool [B, T], the visual tokens that were ranked.
    """

    layer: int
    kept: Tensor
    scores: Tensor
    visual: Tensor

    def kept_visual(self, row: int = 0) -> int:
        """How many visual tokens of a row went on."""
        return int((self.kept & self.visual)[row].sum())


def recorded(layer: int, keep: Tensor, scores: Tensor, visual: Tensor, index: Tensor, length: int) -> Drop:
    """A drop in original coordinates, from what a layer had: bool ``keep`` and ``visual`` and float ``scores``, [B, n],
    and int64 ``index`` [B, n] of those tokens among ``length``."""
    index, visual = index.cpu(), visual.cpu()

    def spread(values: Tensor, empty: float | bool) -> Tensor:
        return torch.full((index.shape[0], length), empty).scatter_(1, index, values)

    seen = scores.detach().float().cpu().masked_fill(~visual, torch.nan)
    return Drop(layer, spread(keep.cpu(), False), spread(seen, torch.nan), spread(visual, False))
