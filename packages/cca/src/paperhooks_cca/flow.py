"""Information flow: how much attention the question pays to each place of an image (figure 2 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence

from paperhooks.errors import DataError
from paperhooks.models import ImageSpan
from torch import Tensor

from paperhooks_cca.images import grouped_spans

__all__ = ["information_flow"]


def information_flow(
    attentions: Sequence[Tensor | None] | Tensor | None,
    spans: Sequence[ImageSpan] | Sequence[tuple[int, int, int, int]],
    layer: int = 0,
    lengths: Sequence[int] | None = None,
) -> list[Tensor]:
    """Attention from the text behind an image (its last token left out) to the image's patches.

    The mean over heads, then over those rows, of one layer: the paper's diagnostic with its default first layer.

    :param attentions: ``outputs.attentions`` (one [B, heads, T, T] a layer) of a forward with
        ``output_attentions=True``, or one layer's tensor.
    :param spans: images as core finds them (``view.image_spans``), or (row, start, H, W).
    :param layer: which layer. :param lengths: columns after the last real token of each row, for right padding.
    :return: one float32 [H, W] an image.
    :raises DataError: no attentions were returned (only the eager kernel gives them), or no text row lies behind an
        image.
    """
    weights = attentions if isinstance(attentions, Tensor) else (attentions[layer] if attentions else None)
    if weights is None:
        raise DataError(
            "there are no attention weights: only the eager kernel returns them. Load the model with "
            "attn_implementation='eager' (or model.set_attn_implementation('eager')) and pass output_attentions=True"
        )
    images = [
        (span[0], span[1], (span[2], span[3])) for span in spans if not isinstance(span, ImageSpan)
    ] or grouped_spans([span for span in spans if isinstance(span, ImageSpan)])
    return [
        _flow(weights[row].float().mean(0), start, grid, lengths[row] if lengths else None)
        for row, start, grid in images
    ]


def _flow(weights: Tensor, start: int, grid: tuple[int, int], length: int | None) -> Tensor:
    stop = start + grid[0] * grid[1]
    last = (weights.shape[0] if length is None else length) - 1
    if stop >= last:
        raise DataError(
            f"information flow needs at least two tokens behind the image; it ends at {stop} of {last + 1} tokens"
        )
    flow: Tensor = weights[stop:last, start:stop].mean(0).view(grid)
    return flow
