"""What the weights' room needs of transformers and torch and their documentation does not promise: names of sublayers,
what a cache holds of a layer, and who has hooks on a module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from paperhooks.compat import ATTENTION_NAMES, find_cache, is_cache

__all__ = [
    "CHECKPOINTING",
    "MIXER_NAMES",
    "MLP_NAMES",
    "GradientCheckpointingLayer",
    "count_tokens",
    "has_hooks",
    "shared_cache",
]

#: Under which names layers hold what mixes tokens, self-attention first.
MIXER_NAMES: Final = (
    *ATTENTION_NAMES,
    "linear_attn",
    "mamba",
    "mixer",
    "conv",
    "short_conv",
    "temporal_block",
    "crossattention",
    "cross_attn",
)
#: What ``gradient_checkpointing_enable`` sets on layers.
CHECKPOINTING: Final = ("gradient_checkpointing", "_gradient_checkpointing_func")
#: Under which names layers hold their feed-forward part, dense or a mixture of experts.
MLP_NAMES: Final = ("mlp", "feed_forward", "ffn", "ff", "block_sparse_moe", "moe")


def count_tokens(arguments: Mapping[str, Any], hidden: Tensor, layer: int) -> None:
    """Let a cache know that a layer without attention has seen ``hidden`` [B, T, D].

    Positions, masks and lengths are asked of single layers, often of the first one, so that a layer which never says
    anything makes the others wrong. It is given one zero for each token, or zeros of the shape that it holds already.

    :param arguments: of the call of the attention or layer, by name.
    """
    cache: Any = find_cache(arguments)
    if not is_cache(cache):
        return
    held = cache.layers[layer] if layer < len(cache.layers) else None
    keys = getattr(held, "keys", None)
    heads, width = (keys.shape[1], keys.shape[3]) if isinstance(keys, Tensor) and keys.ndim == 4 else (1, 1)
    group = getattr(held, "q_group_size", None)  # quantised caches cut what they hold into groups
    zeros = hidden.new_zeros(hidden.shape[0], heads, hidden.shape[1], group or width)
    cache.update(zeros, zeros.clone(), layer)


def shared_cache(config: Any) -> bool:
    """Whether layers of a decoder read keys and values that other layers have made."""
    return bool(getattr(config, "num_kv_shared_layers", 0)) or any(getattr(config, "kv_sharing_modes", None) or ())


def has_hooks(module: nn.Module) -> bool:
    """Whether torch hooks stand on a module, which do not run while it is skipped."""
    return bool(module._forward_pre_hooks or module._forward_hooks)
