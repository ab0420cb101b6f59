"""What the host must know of a forward before it can place images, fetched from the device in one copy.

Where images are, which grids they have, and whether the caller's masks, positions and labels are in order is worked out
on the CPU from these; the host of an accelerator waits once for all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from paperhooks import Call, DecoderInputs, ModelView
from paperhooks.tokens import on_host
from torch import Tensor

__all__ = ["Known", "known_of"]


@dataclass(frozen=True, slots=True)
class Known:
    """A forward as the host sees it; all tensors are on the CPU.

    past
        P, cached tokens.
    image
        bool [B, T]: which tokens stand for images; None when that is not known, or a grid function says it.
    videos
        Whether there are video tokens.
    padding
        [B, S] as the caller gave it, or None.
    positions
        int64 [B or 1, T] of the caller's, or None.
    labels
        int64 [B, T] in training, or None.
    layout
        What says the grids of images; see :attr:`paperhooks.Call.image_layout`.
    """

    past: int
    image: Tensor | None
    videos: bool
    padding: Tensor | None
    positions: Tensor | None
    labels: Tensor | None
    layout: Mapping[str, Any]


def known_of(view: ModelView, call: Call, inputs: DecoderInputs, grid: Any, positions: bool) -> Known:
    """Fetch it. ``grid`` is the method's option; ``positions``: whether the caller's are looked at."""
    image = None if callable(grid) else call.image_mask
    layout = call.image_layout if grid is None else {}
    sizes = {name: value for name, value in layout.items() if isinstance(value, Tensor)}
    past = call.past_length if isinstance(call.past_length, Tensor) else None
    video = _videos(view, call) if image is not None else None
    found = on_host(
        *(past, image, video, call.padding_mask, inputs.position_ids if positions else None),
        *(call.labels if call.training else None, *sizes.values()),
    )
    past, image, video, padding, given, labels = found[:6]
    return Known(
        past=int(call.past_length if past is None else past),
        image=image,
        videos=video is not None and bool(video),
        padding=padding,
        positions=given,
        labels=labels,
        layout={**layout, **dict(zip(sizes, found[6:], strict=True))},
    )


def _videos(view: ModelView, call: Call) -> Tensor | None:
    """Whether there are video tokens, bool []; None where there can be none."""
    token = getattr(view.config, "video_token_id", None)
    token = getattr(view.config, "video_token_index", None) if token is None else token
    if token is None or call.input_ids is None:
        return None
    found: Tensor = torch.eq(call.input_ids, token).any()
    return found
