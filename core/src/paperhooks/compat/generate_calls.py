"""Calls of ``generate``: their arguments, how settings are merged, and who makes 4-D masks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final

from torch import nn

from paperhooks.compat.caches import CACHE_NAMES, find_cache
from paperhooks.compat.signatures import positional_names, version
from paperhooks.errors import UnsupportedGeneration

__all__ = [
    "MASK_MAKER",
    "generate_arguments",
    "made_mask_arguments",
    "make_mask_maker",
    "merged_generation",
]

#: The attribute of a model that ``generate`` asks for 4-D masks when a cache is preallocated.
MASK_MAKER: Final = "create_masks_for_generate"
_MASK: Final = "attention_mask"
#: Arguments of ``generate`` that stand beside its settings.
_NO_SETTINGS: Final = frozenset(
    {
        "inputs",
        "generation_config",
        "logits_processor",
        "stopping_criteria",
        "prefix_allowed_tokens_fn",
        "synced_gpus",
        "assistant_model",
        "streamer",
        "negative_prompt_ids",
        "negative_prompt_attention_mask",
        "custom_generate",
        "use_model_defaults",
    }
)


def generate_arguments(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ``model.generate(*args, **kwargs)`` by name."""
    parameters = list(inspect.signature(type(model).generate).parameters.values())[1:]  # type: ignore[attr-defined]
    return {**dict(zip(positional_names(parameters), args, strict=False)), **kwargs}


def merged_generation(model: nn.Module, arguments: Mapping[str, Any]) -> Any:
    """The generation config by which ``generate`` will go: arguments, the passed config and the model's own, merged.

    The merging is transformers' own, so that it is the same in every version.

    :param arguments: the call's arguments by name.
    :raises UnsupportedGeneration: this version merges in a way that is not known here.
    """
    prepare = getattr(model, "_prepare_generation_config", None)
    if prepare is None:
        raise UnsupportedGeneration(
            f"{type(model).__name__} of {version()} does not tell how it merges the settings of generate, so it cannot "
            "be seen which ways of generating are asked for; use a version that `paperhooks doctor` lists as tested"
        )
    settings = {n: v for n, v in arguments.items() if n not in _NO_SETTINGS}
    merged, _ = prepare(arguments.get("generation_config"), **settings)
    return merged


def make_mask_maker(model: nn.Module) -> Callable[..., Any]:
    """What ``generate`` uses to make 4-D masks for ``model``."""
    from transformers import masking_utils

    return getattr(model, MASK_MAKER, None) or getattr(masking_utils, MASK_MAKER)  # type: ignore[no-any-return]


def made_mask_arguments(arguments: Mapping[str, Any]) -> tuple[Any, Any]:
    """The cache and the mask among the arguments with which ``generate`` asks for a 4-D mask."""
    return find_cache(arguments, CACHE_NAMES[0]), arguments.get(_MASK)
