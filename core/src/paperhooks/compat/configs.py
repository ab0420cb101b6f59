"""Models and their configs: where they come from, which kernels they run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel

__all__ = [
    "CONFIG_CIRCUMSTANCES",
    "LOSS_FUNCTION",
    "PreTrainedModel",
    "anyres_tiles",
    "attention_kernel",
    "block_mask",
    "origin",
    "revision",
    "set_attention_kernel",
    "times_written",
]

#: The attribute of a model instance that takes the place of its loss function.
LOSS_FUNCTION: Final = "_loss_function"
#: Entries of a config that say where a model came from or how it runs, not what it is.
CONFIG_CIRCUMSTANCES: Final = (
    "_name_or_path",
    "transformers_version",
    "architectures",  # written by save_pretrained
    "_attn_implementation",
    "dtype",
    "torch_dtype",
    "use_cache",
)


def attention_kernel(text_config: Any) -> str:
    """The attention implementation a config carries: eager, sdpa, flash_attention_2, flex_attention, ..."""
    return str(getattr(text_config, "_attn_implementation", None) or "eager")


def origin(config: Any) -> str:
    """The folder or hub name that a model was loaded from, as its config says; empty for one made in memory."""
    return str(getattr(config, "_name_or_path", "") or "")


def revision(config: Any) -> str | None:
    """The commit of the hub that a model was loaded from, or None."""
    found: str | None = getattr(config, "_commit_hash", None)
    return found


def set_attention_kernel(config: Any, kernel: str) -> None:
    """Choose the attention implementation of a config from which no model has been made yet."""
    config._attn_implementation = kernel


def block_mask(rule: Callable[..., Tensor], batch: int, queries: int, keys: int, device: torch.device) -> Any:
    """A flex-attention BlockMask of ``rule(batch, head, query, key) -> bool``."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    make = ALL_MASK_ATTENTION_FUNCTIONS["flex_attention"]
    return make(
        batch_size=batch, q_length=queries, kv_length=keys, mask_function=rule, attention_mask=None, device=device
    )


def anyres_tiles(size: tuple[int, int], pinpoints: Any, tile: int) -> tuple[int, int]:
    """Rows and columns of tiles into which llava_next cuts an image of ``size`` (height, width)."""
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

    rows, columns = get_anyres_image_grid_shape(size, pinpoints, tile)
    return int(rows), int(columns)


def times_written(tensor: Tensor) -> int:
    """How often a tensor was written in place: torch counts for its gradients. 0 where it does not."""
    return 0 if tensor.is_inference() else int(getattr(tensor, "_version", 0))
