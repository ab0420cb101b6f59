"""Where the images of a forward are, and which models Concentric Causal Attention is defined for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from paperhooks import Call, ModelView, UnsupportedModel
from paperhooks.errors import DataError
from paperhooks.io import refused, shown, whole_list
from paperhooks.models import ImageSpan, image_runs

from paperhooks_cca.algorithm import Grid, grouped_spans, split_runs

__all__ = ["Resolver", "check_model", "find_images", "grid_option"]

#: Says where the images of a forward are; for models whose layout is not known here.
Resolver: TypeAlias = Callable[[ModelView, Call], Sequence[ImageSpan]]

#: One square grid an image: what the paper is about.
_ONE_GRID = ("llava", "vipllava")
#: An image is cut into several grids, of which the paper says nothing.
_TILED = ("llava_next", "llava_onevision", "internvl", "idefics3", "smolvlm")
#: Image tokens see each other in both directions by design.
_BIDIRECTIONAL = ("paligemma", "gemma3", "gemma3n", "gemma4", "colpali")


def grid_option(name: str, value: Any) -> Any:
    """An option that says the grid of every image: (H, W) as whole numbers, or a function. Raises ValueError."""
    if callable(value):
        return value
    try:
        height, width = whole_list(name, value, at_least=1)
    except ValueError:
        raise refused(name, value, "(H, W), two whole numbers of at least 1, or a function") from None
    return height, width


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


def find_images(view: ModelView, call: Call, grid: Grid | Resolver | None) -> list[tuple[int, int, Grid]] | None:
    """The images of this forward as (row, start, grid); None when it is not known which tokens are images.

    :raises DataError: image tokens that are no whole grids, video tokens, pictures without anything that says where
        their tokens are, or a grid function that gives anything but spans inside this forward.
    """
    if callable(grid):
        return _resolved(grid, view, call)
    mask = call.image_mask
    if mask is None:
        if call.input_ids is None and any(name in call.inputs for name in ("pixel_values", "mm_encoder_outputs")):
            raise DataError(
                "cca: pictures came with inputs_embeds, so their tokens cannot be found; pass input_ids, or "
                "visual_mask (bool [B, T]) beside inputs_embeds"
            )
        return None
    _check_videos(view, call)
    drafts = call.draft_length
    if drafts:  # prompt lookup may propose image tokens, which are words like others
        mask = mask.clone()
        mask[:, -drafts:] = False
    if grid is not None:
        return split_runs(image_runs(mask), grid)
    side = view.image_side
    return grouped_spans(view.image_spans(None, call.image_layout, mask=mask), (side, side) if side else None)


def _class_token(config: Any) -> bool:
    """Whether images keep the vision tower's class token; SigLIP has none to keep."""
    tower = str(getattr(getattr(config, "vision_config", None), "model_type", ""))
    return getattr(config, "vision_feature_select_strategy", "default") == "full" and "siglip" not in tower


def _resolved(grid: Resolver, view: ModelView, call: Call) -> list[tuple[int, int, Grid]]:
    """What a grid function says, checked: spans of image tokens inside the forward that do not overlap."""
    spans: Any = grid(view, call)
    if not isinstance(spans, Sequence) or not all(isinstance(span, ImageSpan) for span in spans):
        raise DataError(
            f"cca: the grid function returned {shown(spans)}; expected a list of paperhooks.models.ImageSpan, empty "
            "where there is no image"
        )
    images = grouped_spans(spans)
    ends = [0] * call.rows
    for row, start, (height, width) in sorted(images):
        stop = start + height * width
        if not 0 <= row < call.rows or start < ends[row] or stop > call.query_length:
            raise DataError(
                f"cca: the grid function puts {height} x {width} image tokens into columns {start} to {stop} of row "
                f"{row}; this forward has {call.rows} rows of {call.query_length} tokens, and images do not overlap"
            )
        ends[row] = stop
    return images


def _check_videos(view: ModelView, call: Call) -> None:
    video = getattr(view.config, "video_token_id", None)
    video = getattr(view.config, "video_token_index", None) if video is None else video
    if video is not None and call.input_ids is not None and bool((call.input_ids == video).any()):
        raise DataError("cca is not defined for video tokens; leave videos out, or detach it for them")
