"""Caches: recognised by their class and not by the name under which they travel.

That name was ``past_key_value``, ``past_key_values`` and ``layer_past``, and is ``cache`` since 5.24.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

__all__ = [
    "CACHE_CHANGES",
    "CACHE_NAMES",
    "DynamicLayer",
    "cache_parameter",
    "count_tokens",
    "dynamic_cache",
    "find_cache",
    "is_cache",
    "key_count",
    "new_layer",
    "preallocated",
    "returned_cache",
    "set_cache",
    "strange_caches",
    "token_count",
]

#: The argument names under which a model, a decoder, a layer or ``generate`` has taken its cache, newest first.
CACHE_NAMES: Final = ("cache", "past_key_values", "past_key_value", "layer_past", "cache_params")
#: Methods of a cache that change its rows or its length.
CACHE_CHANGES: Final = ("reorder_cache", "batch_repeat_interleave", "batch_select_indices", "crop", "reset")


def cache_parameter(function: Callable[..., Any]) -> str:
    """Under which name ``function`` takes its cache: a known name, else the parameter that is annotated as one.

    An empty string when there is no such parameter.
    """
    parameters = inspect.signature(function).parameters
    known = next((name for name in CACHE_NAMES if name in parameters), "")
    annotated = (p.name for p in parameters.values() if "Cache" in str(p.annotation))
    return known or next(annotated, "")


def is_cache(value: object) -> bool:
    """Whether ``value`` is one of transformers' caches."""
    return isinstance(value, Cache)


def find_cache(arguments: Mapping[str, Any], name: str = "") -> Any:
    """The cache among the arguments of a call: under ``name``, or under an older or newer name that callers use."""
    found = arguments.get(name)
    if found is not None:
        return found
    return next((arguments[other] for other in CACHE_NAMES if arguments.get(other) is not None), None)


def set_cache(arguments: dict[str, Any], name: str, cache: Any) -> None:
    """Put ``cache`` among the arguments of a call, in place of one under any name."""
    for other in CACHE_NAMES:
        arguments.pop(other, None)
    arguments[name] = cache


def strange_caches(arguments: Mapping[str, Any], name: str) -> list[str]:
    """Names of arguments that hold a cache where core does not look for one."""
    return [n for n, value in arguments.items() if is_cache(value) and n != name and n not in CACHE_NAMES]


def returned_cache(output: Any) -> Any:
    """The cache that a decoder's or a model's output carries, or None."""
    values: Iterable[Any] = output.values() if isinstance(output, Mapping) else output
    if not isinstance(output, Mapping | tuple):
        return None
    return next((value for value in values if is_cache(value)), None)


def dynamic_cache(model: nn.Module) -> Any:
    """An empty cache of the kind that ``generate`` makes by default for ``model``."""
    return DynamicCache(config=model.config.get_text_config(decoder=True))  # type: ignore[union-attr, operator]


def new_layer(cache: Any) -> Any:
    """A further layer for a cache that was made without a config and grows layer by layer."""
    return (getattr(cache, "layer_class_to_replicate", None) or DynamicLayer)()


def preallocated(cache: Any) -> bool:
    """Whether ``cache`` has its full length from the start, so that its entries cannot be told apart."""
    return bool(getattr(cache, "is_compileable", False))


def token_count(cache: Any, layer: int = 0) -> Any:
    """How many tokens layer ``layer`` holds: an int, or for a preallocated cache a tensor of no dimensions."""
    return cache.get_seq_length(layer)


def key_count(cache: Any, query_length: int) -> int:
    """How many keys the attention kernel sees in a forward of ``query_length`` tokens: all slots, used or not."""
    return int(cache.get_mask_sizes(query_length, 0)[0])


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
