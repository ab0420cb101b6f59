"""Hashes that say whether a tensor or a model is the one an artefact was made from."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from paperhooks.provenance import hash_json

__all__ = ["config_digest", "tensor_digest"]


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 over dtype, shape and bytes of a tensor."""
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    digest.update(raw.numpy().data)
    return digest.hexdigest()


def config_digest(model: nn.Module) -> str:
    """SHA-256 of the model's config without entries on origin and run time; of the class name without a config."""
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_dict"):
        return hash_json({"class": type(model).__name__})
    from paperhooks.compat import CONFIG_CIRCUMSTANCES  # a model with a config has loaded transformers already

    return hash_json(_without(CONFIG_CIRCUMSTANCES, config.to_dict()))


def _without(names: Container[str], value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without(names, item) for key, item in value.items() if key not in names}
    return value
