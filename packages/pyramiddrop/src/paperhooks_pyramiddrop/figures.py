"""Figures of a drop: the tokens kept on the image, the tokens-per-layer staircase, the cost before and after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from paperhooks.models import GridPart
from paperhooks.reports import PALETTE, new_figure, style_axes

from paperhooks_pyramiddrop.schedule import Savings

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

    from paperhooks_pyramiddrop.drops import Drop

__all__ = ["cost_figure", "overlay_figure", "staircase_figure"]

_GREY = "#7b8696"


def overlay_figure(image: Image, drops: Sequence[Drop], part: GridPart, row: int = 0) -> Figure:
    """The image as every stage sees it: kept tokens clear, dropped ones dark, framed by their score.

    :param image: what the model was shown. :param drops: what ``PyramidDrop(record=...)`` collected in one forward.
    :param part: the grid of the image's tokens. :param row: the batch entry.
    """
    import numpy as np

    figure, axes = new_figure(width=2.5 * (len(drops) + 1), height=2.9, columns=len(drops) + 1)
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
    index = torch.tensor(part.indices())
    total = len(index)
    kept_before = torch.ones(total, dtype=torch.bool)
    panels: list[tuple[str, torch.Tensor, torch.Tensor | None]] = [(_span(0, drops[0].layer), kept_before, None)]
    for drop, after in zip(drops, [*[d.layer for d in drops[1:]], None], strict=True):
        panels.append((_span(drop.layer, after), drop.kept[row][index], drop.scores[row][index]))
    for one, (title, kept, scores) in zip(axes, panels, strict=True):
        _panel(one, pixels, kept.reshape(part.rows, part.cols).numpy(), scores, part)
        one.set_title(f"{title}\n{int(kept.sum())} of {total} image tokens", color=_GREY, fontsize=9)
    return figure


def _span(start: int, stop: int | None) -> str:
    if stop is None:
        return f"layers {start} on"
    return f"layer {start}" if stop == start + 1 else f"layers {start}-{stop - 1}"


def _panel(axes: Any, pixels: Any, kept: Any, scores: torch.Tensor | None, part: GridPart) -> None:
    import numpy as np
    from matplotlib.patches import Rectangle

    height, width = pixels.shape[:2]
    rows = (np.arange(height) * part.rows // height).clip(max=part.rows - 1)
    cols = (np.arange(width) * part.cols // width).clip(max=part.cols - 1)
    clear = kept[rows][:, cols][..., None]
    axes.imshow(np.where(clear, pixels, pixels * 0.22), interpolation="nearest")
    if scores is not None:  # the three tokens that the last instruction token looks at most
        best = scores.nan_to_num(nan=-1.0).topk(min(3, len(scores))).indices.tolist()
        for token in best:
            y, x = divmod(token, part.cols)
            wide, high = width / part.cols, height / part.rows
            frame = Rectangle((x * wide, y * high), wide, high, fill=False, edgecolor=PALETTE[1], linewidth=1.6)
            axes.add_patch(frame)
    axes.set_axis_off()


def staircase_figure(savings: Savings, text_tokens: int = 0) -> Figure:
    """Visual tokens that each decoder layer computes on, beside the number it would have computed on."""
    figure, (axes,) = new_figure(height=2.8)
    counts = savings.tokens_per_layer
    layers = range(len(counts))
    axes.bar(layers, [counts[0]] * len(counts), width=1.0, color=_GREY, alpha=0.18, label="dropped")
    axes.bar(layers, counts, width=1.0, color=PALETTE[0], alpha=0.75, label="computed")
    axes.axhline(savings.average_tokens, color=PALETTE[1], linestyle="--", linewidth=1.3)
    note = f"mean {savings.average_tokens:.4g}"
    axes.text(len(counts) - 0.5, savings.average_tokens, note, ha="right", va="bottom", color=PALETTE[1], fontsize=9)
    more = f" (each also computes {text_tokens} text tokens)" if text_tokens else ""
    style_axes(axes, "Image tokens per layer", "decoder layer" + more, "image tokens")
    axes.legend(frameon=False, labelcolor=_GREY, fontsize=9, loc="upper right", bbox_to_anchor=(1.0, 1.16), ncols=2)
    return figure


def cost_figure(savings: Savings) -> Figure:
    """Multiply-adds and KV-cache bytes with the schedule, as a share of those without."""
    figure, (axes,) = new_figure(height=1.9)
    shares = [savings.flops / savings.flops_before, savings.kv_bytes / savings.kv_bytes_before]
    labels = [
        f"prefill multiply-adds\n{savings.flops_before:.3g} to {savings.flops:.3g}",
        f"KV cache\n{savings.kv_bytes_before / 2**20:.3g} to {savings.kv_bytes / 2**20:.3g} MiB",
    ]
    axes.barh(labels, [1.0, 1.0], color=_GREY, alpha=0.18)
    bars = axes.barh(labels, shares, color=PALETTE[2], alpha=0.75)
    axes.bar_label(bars, [f"{share:.1%}" for share in shares], padding=4, color=_GREY, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.02)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0], labels=["0", "25 %", "50 %", "75 %", "100 %"])
    style_axes(axes, "Left of the decoder's cost")
    return figure
