"""The one door to transformers: every name of it that has changed, or that its documentation does not promise.

Names are resolved from signatures and from what is installed, once, when a session attaches; nothing else in core or in
a package spells them. Where a version hands things over in a way that is not known here, the answer is an error that
names the version and what was missing, never a guess.

Caches are recognised by their class and not by the name under which they travel: that name was ``past_key_value``,
``past_key_values`` and ``layer_past``, and is ``cache`` since 5.24.
"""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import PreTrainedModel

from paperhooks.errors import UnsupportedGeneration, UnsupportedModel

__all__ = [
    "ATTENTION_NAMES",
    "CACHE_CHANGES",
    "CLOSED_LAYERS",
    "LOSS_FUNCTION",
    "MASK_MAKER",
    "STANDS_FOR",
    "DynamicLayer",
    "LayerCall",
    "PreTrainedModel",
    "attends",
    "attention_kernel",
    "attention_module",
    "block_mask",
    "cache_parameter",
    "dynamic_cache",
    "find_cache",
    "find_layers",
    "full_attention",
    "generate_arguments",
    "inside",
    "is_cache",
    "key_count",
    "keyword_parameters",
    "layer_list",
    "layer_types",
    "made_mask_arguments",
    "make_mask_maker",
    "merged_generation",
    "new_layer",
    "origin",
    "preallocated",
    "returned_cache",
    "revision",
    "set_attention_kernel",
    "set_cache",
    "sliding_window",
    "stood_for",
    "strange_caches",
    "times_written",
    "token_count",
    "version",
]

#: The argument names under which a model, a decoder, a layer or ``generate`` has taken its cache, newest first.
_CACHE_NAMES: Final = ("cache", "past_key_values", "past_key_value", "layer_past", "cache_params")
_ROTARY: Final = "position_embeddings"
_MASK: Final = "attention_mask"
_FULL, _SLIDING, _OTHER, _SKIPPED = "full_attention", "sliding_attention", "other", "skipped"
STANDS_FOR: Final = "stands_for"  # under which attribute a module that skips another one holds it
#: Under which names layers hold their self-attention.
ATTENTION_NAMES: Final = ("self_attn", "attn", "attention", "self_attention")
#: Under which name torch's wrappers (CheckpointWrapper, OffloadWrapper, FullyShardedDataParallel) hold what they wrap.
_WRAPPED: Final = ("_checkpoint_wrapped_module", "_fsdp_wrapped_module")
#: Layers whose decoder keeps the caller's keyword arguments to itself, although their signature may look open.
CLOSED_LAYERS: Final = ("BloomBlock", "MambaBlock")

#: The attribute of a model that ``generate`` asks for 4-D masks when a cache is preallocated.
MASK_MAKER: Final = "create_masks_for_generate"
#: The attribute of a model instance that takes the place of its loss function.
LOSS_FUNCTION: Final = "_loss_function"
#: Methods of a cache that change its rows or its length.
CACHE_CHANGES: Final = ("reorder_cache", "batch_repeat_interleave", "batch_select_indices", "crop", "reset")


def version() -> str:
    """The transformers that is installed, for messages: ``"transformers 5.24.0"``."""
    return f"transformers {importlib.metadata.version('transformers')}"


# -- signatures --------------------------------------------------------------------------------------------------------


def _names(parameters: Iterable[inspect.Parameter]) -> tuple[str, ...]:
    """Those of ``parameters`` that can be given by position."""
    return tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))


def keyword_parameters(module: nn.Module) -> tuple[str, ...]:
    """The parameters of ``module.forward`` in order, for a module that hands further keyword arguments down.

    :raises UnsupportedModel: it takes no ``**kwargs``.
    """
    parameters = inspect.signature(module.forward).parameters.values()
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        raise UnsupportedModel(
            f"{type(module).__name__}.forward takes no **kwargs, so per-forward state cannot reach the layers"
        )
    return _names(parameters)


def cache_parameter(function: Callable[..., Any]) -> str:
    """Under which name ``function`` takes its cache: a known name, else the parameter that is annotated as one.

    An empty string when there is no such parameter.
    """
    parameters = inspect.signature(function).parameters
    known = next((name for name in _CACHE_NAMES if name in parameters), "")
    annotated = (p.name for p in parameters.values() if "Cache" in str(p.annotation))
    return known or next(annotated, "")


@dataclass(frozen=True, slots=True)
class LayerCall:
    """How a decoder calls its layers.

    names
        The layer's parameters in order; the first takes the hidden states.
    cache
        Under which name the layer takes the cache; empty for a layer that takes none.
    rotary
        Under which name it takes the (cos, sin) tables.
    mask
        Under which name it takes the attention mask.
    """

    names: tuple[str, ...]
    cache: str
    rotary: str = _ROTARY
    mask: str = _MASK

    @classmethod
    def of(cls, layer: nn.Module) -> LayerCall:
        """Read the names off ``layer.forward``; raises UnsupportedModel where keyword arguments are not accepted."""
        layer = stood_for(layer)
        parameters = inspect.signature(layer.forward).parameters.values()
        if type(layer).__name__ in CLOSED_LAYERS or not any(p.kind is p.VAR_KEYWORD for p in parameters):
            raise UnsupportedModel(
                f"{type(layer).__name__} receives no keyword arguments of the model's caller, so per-forward state "
                "cannot reach it; paperhooks needs a decoder that hands **kwargs down to its layers, which bloom and "
                "mamba do not"
            )
        names = _names(parameters)
        if not names:
            raise UnsupportedModel(
                f"forward of {type(layer).__name__} names no parameters (was it replaced on the instance?), so what it "
                "is called with cannot be told apart; put the model's own forward back before attaching"
            )
        return cls(names, cache_parameter(layer.forward))

    @classmethod
    def of_each(cls, layers: Iterable[nn.Module]) -> list[LayerCall]:
        """As :meth:`of`, for every layer; what layers of one class share is read once."""
        read: dict[object, LayerCall] = {}
        found = []
        for layer in layers:
            key = layer if "forward" in vars(layer) else type(stood_for(layer))
            read[key] = read.get(key) or cls.of(layer)
            found.append(read[key])
        return found


# -- caches ------------------------------------------------------------------------------------------------------------


def is_cache(value: object) -> bool:
    """Whether ``value`` is one of transformers' caches."""
    return isinstance(value, Cache)


def find_cache(arguments: Mapping[str, Any], name: str = "") -> Any:
    """The cache among the arguments of a call: under ``name``, or under an older or newer name that callers use."""
    found = arguments.get(name)
    if found is not None:
        return found
    return next((arguments[other] for other in _CACHE_NAMES if arguments.get(other) is not None), None)


def set_cache(arguments: dict[str, Any], name: str, cache: Any) -> None:
    """Put ``cache`` among the arguments of a call, in place of one under any name."""
    for other in _CACHE_NAMES:
        arguments.pop(other, None)
    arguments[name] = cache


def strange_caches(arguments: Mapping[str, Any], name: str) -> list[str]:
    """Names of arguments that hold a cache where core does not look for one."""
    return [n for n, value in arguments.items() if is_cache(value) and n != name and n not in _CACHE_NAMES]


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


# -- models ------------------------------------------------------------------------------------------------------------


def find_layers(decoder: nn.Module) -> tuple[nn.Module, ...]:
    """The decoder's layers in order, those in :func:`layer_list`."""
    return tuple(map(inside, layer_list(decoder)))


def layer_list(decoder: nn.Module) -> nn.ModuleList:
    """Where a decoder keeps its layers: its longest list of modules of the class that marks them.

    :raises UnsupportedModel: there is no such list; names what was found.
    """
    lists = [m for m in decoder.modules() if isinstance(m, nn.ModuleList) and len(m) > 0]
    found = [m for m in lists if all(isinstance(inside(layer), GradientCheckpointingLayer) for layer in m)]
    if not found:
        seen = sorted({type(inside(m[0])).__name__ for m in lists}) or ["no ModuleList"]
        raise UnsupportedModel(
            f"{type(decoder).__name__} has no list of decoder layers: looked for a ModuleList whose members are all "
            f"GradientCheckpointingLayer, as the models of {version()} have, found {', '.join(seen)}"
        )
    return max(found, key=len)


def inside(module: nn.Module) -> nn.Module:
    """What torch's wrappers of single modules hold: checkpointed, offloaded, or sharded by FSDP1."""
    held = next((m for n, m in module.named_children() if n in _WRAPPED), None)
    return module if held is None else inside(held)


def stood_for(module: nn.Module) -> nn.Module:
    """The module whose place is taken by one that skips it, and any other module itself."""
    return getattr(module, STANDS_FOR, module)


def attention_module(layer: nn.Module) -> nn.Module | None:
    """The self-attention module of a decoder layer, or None; one that is skipped is not there."""
    found = (inside(m) for n, m in layer.named_children() if n in ATTENTION_NAMES)
    return next((m for m in found if stood_for(m) is m), None)


def layer_types(text_config: Any, layers: tuple[nn.Module, ...]) -> tuple[str, ...]:
    """transformers' type of each layer, as the config declares it or as the layers show; "skipped" where one is."""
    declared = getattr(text_config, "layer_types", None)
    if declared is None or len(declared) < len(layers):
        kind = _SLIDING if getattr(text_config, "sliding_window", None) is not None else _FULL
        declared = [_OTHER if attention_module(layer) is None else kind for layer in layers]
    parts = [(m, *(c for n, c in m.named_children() if n in ATTENTION_NAMES)) for m in layers]
    gone = [any(stood_for(part) is not part for part in each) for each in parts]
    return tuple(_SKIPPED if skipped else kind for skipped, kind in zip(gone, declared, strict=False))


def attends(kind: str) -> bool:
    """Whether a layer of this type has self-attention."""
    return kind.endswith("attention")


def full_attention(kind: str) -> bool:
    """Whether a layer of this type attends to the whole sequence."""
    return kind == _FULL


def sliding_window(text_config: Any, kinds: Iterable[str]) -> int | None:
    """How many tokens the sliding layers of a decoder see, or None when it has none."""
    window = getattr(text_config, "sliding_window", None)
    return int(window) if window is not None and _SLIDING in tuple(kinds) else None


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


def times_written(tensor: Tensor) -> int:
    """How often a tensor was written in place: torch counts for its gradients. 0 where it does not."""
    return 0 if tensor.is_inference() else int(getattr(tensor, "_version", 0))


# -- generate ----------------------------------------------------------------------------------------------------------


def generate_arguments(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ``model.generate(*args, **kwargs)`` by name."""
    parameters = list(inspect.signature(type(model).generate).parameters.values())[1:]  # type: ignore[attr-defined]
    return {**dict(zip(_names(parameters), args, strict=False)), **kwargs}


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


def make_mask_maker(model: nn.Module) -> Callable[..., Any]:
    """What ``generate`` uses to make 4-D masks for ``model``."""
    from transformers import masking_utils

    return getattr(model, MASK_MAKER, None) or getattr(masking_utils, MASK_MAKER)  # type: ignore[no-any-return]


def made_mask_arguments(arguments: Mapping[str, Any]) -> tuple[Any, Any]:
    """The cache and the mask among the arguments with which ``generate`` asks for a 4-D mask."""
    return find_cache(arguments, _CACHE_NAMES[0]), arguments.get(_MASK)
