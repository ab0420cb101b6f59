"""A decoder's layers: where they are, what is in them, of which type they are, how they are called."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from paperhooks.compat.caches import cache_parameter
from paperhooks.compat.signatures import positional_names, version
from paperhooks.errors import UnsupportedModel

__all__ = [
    "ATTENTION_NAMES",
    "CHECKPOINTING",
    "CLOSED_LAYERS",
    "MIXER_NAMES",
    "MLP_NAMES",
    "STANDS_FOR",
    "LayerCall",
    "attends",
    "attention_module",
    "find_layers",
    "full_attention",
    "inside",
    "keeps_keys",
    "layer_list",
    "layer_types",
    "shared_cache",
    "sliding_window",
    "stood_for",
]

_ROTARY: Final = "position_embeddings"
_MASK: Final = "attention_mask"
_FULL, _SLIDING, _OTHER, _SKIPPED = "full_attention", "sliding_attention", "other", "skipped"
STANDS_FOR: Final = "stands_for"  # under which attribute a module that skips another one holds it
#: Under which names layers hold their self-attention.
ATTENTION_NAMES: Final = ("self_attn", "attn", "attention", "self_attention")
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
#: Under which names layers hold their feed-forward part, dense or a mixture of experts.
MLP_NAMES: Final = ("mlp", "feed_forward", "ffn", "ff", "block_sparse_moe", "moe")
#: What ``gradient_checkpointing_enable`` sets on layers.
CHECKPOINTING: Final = ("gradient_checkpointing", "_gradient_checkpointing_func")
#: Under which name torch's wrappers (CheckpointWrapper, OffloadWrapper, FullyShardedDataParallel) hold what they wrap.
_WRAPPED: Final = ("_checkpoint_wrapped_module", "_fsdp_wrapped_module")
#: Layers whose decoder keeps the caller's keyword arguments to itself, although their signature may look open.
CLOSED_LAYERS: Final = ("BloomBlock", "MambaBlock")


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
    if stood_for(layer) is not layer:
        return None
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


def causal(module: nn.Module | None) -> bool:
    """Whether attention in a module leaves out the tokens that follow; True where nothing in it says otherwise."""
    inside = () if module is None else module.modules()
    said = [bool(each.is_causal) for each in inside if hasattr(each, "is_causal")]
    return not said or any(said)


def keeps_keys(kind: str) -> bool:
    """Whether a layer of this type keeps keys and values of every token, or of those in a window, and nothing else."""
    return kind in (_FULL, _SLIDING, "chunked_attention")


def sliding_window(text_config: Any, kinds: Iterable[str]) -> int | None:
    """How many tokens the sliding layers of a decoder see, or None when it has none."""
    window = getattr(text_config, "sliding_window", None)
    return int(window) if window is not None and _SLIDING in tuple(kinds) else None


def shared_cache(config: Any) -> bool:
    """Whether layers of a decoder read keys and values that other layers have made."""
    return bool(getattr(config, "num_kv_shared_layers", 0)) or any(getattr(config, "kv_sharing_modes", None) or ())


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
        names = positional_names(parameters)
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
