"""Names of transformers that can change: per-layer entries of configs, and what they say of skipped modules."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import transformers

__all__ = [
    "AutoConfig",
    "cut_layers",
    "model_class",
    "quiet_loading",
    "read_gguf",
    "rotary_base",
    "say_skipped",
    "tells_skipped",
]

AutoConfig: Final = transformers.AutoConfig
#: Lists that have an entry for each layer, beside all whose names tell of layers.
_PER_LAYER: Final = ("block_types", "kv_sharing_modes")
#: Lists of the indices of some layers.
_INDICES: Final = ("mlp_only_layers", "moe_layers", "attn_layer_indices", "cross_attention_layers")
#: How many of the first layers are of another kind.
_FIRST: Final = ("first_k_dense_replace", "num_dense_layers")


def cut_layers(text_config: Any, kept: Sequence[int]) -> None:
    """Leave in a decoder's config what it says of some of its layers, in their order.

    :param kept: indices of the layers that stay, ascending.
    """
    n, new = int(text_config.num_hidden_layers), {old: i for i, old in enumerate(kept)}
    changes: dict[str, Any] = {}
    for name, value in vars(text_config).items():
        if name.startswith("_"):
            continue
        if name in _INDICES and isinstance(value, list | tuple):
            changes[name] = [new[i] for i in value if i in new]
        elif name in _FIRST and isinstance(value, int):
            changes[name] = sum(i < value for i in kept)
        elif isinstance(value, list | tuple) and len(value) == n and ("layer" in name or name in _PER_LAYER):
            changes[name] = [value[i] for i in kept]
    text_config.num_hidden_layers = len(kept)
    for name, value in changes.items():
        setattr(text_config, name, value)


def rotary_base(text_config: Any) -> float | None:
    """The base of plain rotary positions; None where positions are of another kind."""
    told = getattr(text_config, "rope_parameters", None) or {}
    if told.get("rope_type", "default") != "default" or "rope_theta" not in told:
        return None
    return float(told["rope_theta"]) if told.get("partial_rotary_factor", 1.0) == 1.0 else None


def tells_skipped(config: Any) -> bool:
    """Whether configs of this version have a place for modules that layers skip."""
    return hasattr(type(config), "per_layer_config")


def say_skipped(text_config: Any, skipped: Mapping[int, Collection[str]]) -> None:
    """Name in a config the modules that each layer skips, where it has a place for that.

    It is saved and read again, and no model is built by it in the versions of transformers that are known.
    """
    if skipped and tells_skipped(text_config):
        text_config.per_layer_config = {i: {"skip": sorted(names)} for i, names in skipped.items()}


def model_class(config: Any) -> Any:
    """The class of the model that a config was saved with."""
    names = getattr(config, "architectures", None) or ()
    found = next((getattr(transformers, name) for name in names if hasattr(transformers, name)), None)
    return found or transformers.AutoModelForCausalLM


def read_gguf(folder: Any, file: str, **options: Any) -> Any:
    """The model in a GGUF file, by transformers' reader."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, **options)


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Within the block transformers does not print which weights a folder lacks, for a caller who checks that."""

    def wanted(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)
