"""The method written out token by token, and a stock model run with what comes out: what every path must equal."""

from __future__ import annotations

import math
from typing import Any

import torch
from paperhooks.testing import IMAGE_TOKEN, image_outputs
from torch import Tensor

SIDE = 4  # tiny LLaVA: 4 x 4 patches an image


def level(scheme: str, i: int, j: int, height: int, width: int) -> int:
    """The level of patch (i, j), straight from the definitions."""
    if scheme == "concentric":
        return min(i, j, height - 1 - i, width - 1 - j)
    if scheme == "manhattan":
        return min(i, height - 1 - i) + min(j, width - 1 - j)
    number = i * width + j
    return number if scheme == "raster" else height * width - 1 - number


def taken(scheme: str, height: int, width: int) -> int:
    """How many positions an image takes."""
    if scheme == "concentric":
        return math.ceil(min(height, width) / 2)
    if scheme == "manhattan":
        return (height - 1) // 2 + (width - 1) // 2 + 1
    return height * width


def walk(
    tokens: list[int], grids: list[tuple[int, int]], image: int, scheme: str = "concentric"
) -> tuple[list[int], list[int]]:
    """Position of every token of one row without padding, and which image it belongs to (-1: text)."""
    left, counter, at = list(grids), 0, 0
    places: list[int] = []
    owner: list[int] = []
    while at < len(tokens):
        if tokens[at] != image:
            places.append(counter)
            owner.append(-1)
            counter, at = counter + 1, at + 1
            continue
        height, width = left.pop(0)
        for n in range(height * width):
            places.append(counter + level(scheme, n // width, n % width, height, width))
            owner.append(len(grids) - len(left))
        counter, at = counter + taken(scheme, height, width), at + height * width
    return places, owner


def may_see(places: list[int], owner: list[int]) -> Tensor:
    """bool [T, T]: rings inside an image, causal everywhere else (not by the identity on positions)."""
    n = len(places)
    rows = [[places[k] <= places[q] if owner[q] == owner[k] != -1 else k <= q for k in range(n)] for q in range(n)]
    return torch.tensor(rows)


def reference_logits(
    model: Any,
    ids: Tensor,
    features: list[Tensor],
    scheme: str = "concentric",
    positions: bool = True,
    mask: bool = True,
    side: int = SIDE,
) -> Tensor:
    """Logits [T, V] of one row without padding, with gradients: stock model, explicit positions and mask, no cache."""
    tokens = ids.tolist()
    count = tokens.count(IMAGE_TOKEN) // side**2
    places, owner = walk(tokens, [(side, side)] * count, IMAGE_TOKEN, scheme)
    seen = may_see(places, owner) if mask else torch.ones(len(tokens), len(tokens), dtype=torch.bool).tril()
    form: Any = seen[None, None]
    if model.config.text_config._attn_implementation == "eager":
        form = torch.zeros(form.shape).masked_fill(~form, torch.finfo(torch.float32).min)
    given: dict[str, Any] = {}
    if features:
        given["mm_encoder_outputs"] = {"image": image_outputs(model, features)}
    out = model(
        input_ids=ids[None],
        attention_mask=form,
        position_ids=torch.tensor([places if positions else list(range(len(tokens)))]),
        use_cache=False,
        **given,
    )
    return out.logits[0]
