"""Checks of a model, and of a forward's padding, positions, labels and windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from paperhooks import Call, DecoderInputs, ModelView, UnsupportedModel
from paperhooks.errors import DataError
from torch import Tensor

from paperhooks_cca.algorithm import Grid, ImageGroup
from paperhooks_cca.images import Resolver

__all__ = [
    "check_labels",
    "check_model",
    "check_order",
    "check_positions",
    "check_window",
    "padding_of",
    "parted",
    "tokens_of",
]


#: One square grid an image: what the paper is about.
_ONE_GRID = ("llava", "vipllava")
#: An image is cut into several grids, of which the paper says nothing.
_TILED = ("llava_next", "llava_onevision", "internvl", "idefics3", "smolvlm")
#: Image tokens see each other in both directions by design.
_BIDIRECTIONAL = ("paligemma", "gemma3", "gemma3n", "gemma4", "colpali")


def check_model(
    view: ModelView, grid: Grid | Resolver | None, tiles: bool, apply_positions: bool, apply_mask: bool
) -> None:
    """Refuse a model for which the method is not defined.

    :raises UnsupportedModel: names what stands against it, and the option that helps.
    """
    family, config = view.family, view.config
    if family in _BIDIRECTIONAL:
        raise UnsupportedModel(
            f"{family} lets image tokens see each other in both directions; cca has no meaning there"
        )
    if view.rotary is None:
        raise UnsupportedModel(f"{family} has no rotary position embedding on its decoder, which cca rearranges")
    if view.multimodal_rotary and apply_positions:
        raise UnsupportedModel(
            f"{family} gives image tokens (time, row, column) positions, which rings cannot replace; "
            "CCA(apply_positions=False) applies the ring mask alone"
        )
    if hasattr(config, "vision_config") and not view.image_token_ids and not callable(grid):
        raise UnsupportedModel(
            f"the config of this {family} names no image token (image_token_id); pass a grid function"
        )
    if grid is not None or (view.multimodal_rotary and apply_mask):
        return
    if family in _ONE_GRID and _class_token(config):
        raise UnsupportedModel(
            "vision_feature_select_strategy='full' puts a class token in front of every image; pass a grid function "
            "that leaves it out"
        )
    if getattr(getattr(config, "vision_config", None), "model_type", "") == "pixtral":
        raise UnsupportedModel("Pixtral's images have row-break tokens inside; pass a grid function")
    if family in _TILED and not tiles:
        raise UnsupportedModel(
            f"{family} cuts an image into several grids, of which the paper says nothing; CCA(tiles=True) gives each "
            "grid its own rings"
        )
    if family not in _ONE_GRID + _TILED:
        raise UnsupportedModel(
            f"the image grid of {family} is not known; pass grid=(H, W), or a function (view, call) -> image spans"
        )


def _class_token(config: Any) -> bool:
    """Whether images keep the vision tower's class token; SigLIP has none to keep."""
    tower = str(getattr(getattr(config, "vision_config", None), "model_type", ""))
    return getattr(config, "vision_feature_select_strategy", "default") == "full" and "siglip" not in tower


def tokens_of(inputs: DecoderInputs) -> Tensor:
    """The embeddings [B, T, D] or, where the decoder is called with ids, the ids [B, T]."""
    found = inputs.inputs_embeds if inputs.inputs_embeds is not None else inputs.input_ids
    if found is None:
        raise DataError("the decoder was called with neither input_ids nor inputs_embeds")
    return found


def padding_of(call: Call, inputs: DecoderInputs, past: int) -> tuple[Tensor | None, Tensor]:
    """Which cached tokens and which of this forward are real: bool [B, P] or None (all), and bool [B, T].

    :raises DataError: a 4-D mask of the caller's own, or a 2-D mask of the wrong length.
    """
    tokens = tokens_of(inputs)
    batch, length, device = tokens.shape[0], tokens.shape[1], tokens.device
    if call.padding_mask is None:
        if inputs.attention_mask is not None and not call.mask_prepared:
            raise DataError(
                "cca builds the mask of a forward with images itself and cannot join it with a 4-D attention_mask; "
                "pass the 2-D mask [B, S] of real tokens instead"
            )
        return None, torch.ones(batch, length, dtype=torch.bool, device=device)
    mask = call.padding_mask.to(device, torch.bool)
    if length != mask.shape[1] < past + length:
        raise DataError(f"attention_mask is {list(mask.shape)}; expected [B, {past + length}], cached tokens included")
    return parted(mask, past, length)


def parted(mask: Tensor, past: int, length: int) -> tuple[Tensor | None, Tensor]:
    """A 2-D mask [B, S] of real tokens as that of the cached ones, or None, and that of this forward's."""
    return (None, mask) if mask.shape[1] == length else (mask[:, :past], mask[:, past : past + length])


def check_order(groups: Sequence[ImageGroup], real: Tensor) -> None:
    """:raises DataError: padding inside an image, or between real tokens. All tensors are on the CPU."""
    broken = (real[:, 1:] & ~real[:, :-1]).sum(1) + real[:, 0] > 1  # more than one run of real tokens
    inside = torch.zeros_like(broken)
    for group in groups:
        hole = ~real[group.rows[:, None], group.columns].all(1)
        inside[group.rows] |= hole
    for row, (gap, hole) in enumerate(torch.stack([broken, inside], dim=1).tolist()):
        if hole:
            raise DataError(f"sample {row}: padding inside an image; every image token must be attended to")
        if gap:
            raise DataError(f"sample {row}: padding between tokens; pad on the left or on the right only")


def check_positions(
    given: Tensor | None,
    order: Callable[[], Tensor],
    real: Tensor,
    real_past: Tensor | None,
    past: int,
    strict: bool,
    packed: bool,
) -> bool:
    """Whether the caller's own positions are to be used; those that every caller gets by default are replaced.

    All tensors are on the CPU. ``order`` gives the method's own positions, int64 [B, T], where they are asked for.

    :raises DataError: they are neither the default ones nor those of the method, and ``strict`` is set.
    """
    if given is None or packed:
        return False
    given = given.expand(real.shape)
    counted = real.to(torch.int64).cumsum(1) - 1 + (past if real_past is None else real_past.sum(1, keepdim=True))
    columns = torch.arange(past, past + real.shape[1]).expand(real.shape)
    if any(bool(((given == usual()) | ~real).all()) for usual in (lambda: counted, lambda: columns, order)):
        return False
    if not strict:
        return True
    restarts = bool(((given[:, 1:] < given[:, :-1]) & real[:, 1:]).any())
    hint = (
        "positions fall inside a row, as in packed training: pass document_ids (int [B, T]) with it"
        if restarts
        else "leave position_ids out, or use CCA(strict=False) to keep them"
    )
    raise DataError(f"position_ids are not the model's default ones, so cca cannot replace them; {hint}")


def check_labels(labels: Tensor | None, groups: Sequence[ImageGroup], warn: Callable[[str, str], None]) -> None:
    """Warn once where the loss would ask for placeholder tokens; all on the CPU."""
    if labels is None:
        return
    count: Any = sum((labels[g.rows[:, None], g.columns] != -100).sum() for g in groups)
    if int(count):
        warn("labels", f"{int(count)} image tokens have labels; set them to -100, or the loss asks for placeholders")


def check_window(view: ModelView, length: int) -> None:
    """:raises UnsupportedModel: a layer whose sliding window is shorter than the sequence."""
    window = view.sliding_window
    if window is not None and length > window:
        raise UnsupportedModel(
            f"{view.family} has layers with a sliding window of {window} tokens, and this sequence has {length}; one "
            "mask for all layers would lift the window, so cca refuses. Use shorter inputs"
        )
