"""Hashes of JSON, files, tensors, configs and models."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paperhooks.io.files import plain

if TYPE_CHECKING:
    from torch import Tensor, nn


__all__ = ["config_digest", "hash_file", "hash_json", "model_digest", "tensor_digest"]


def hash_json(value: Any) -> str:
    """SHA-256 of the canonical JSON form of ``value``."""
    text = json.dumps(plain(value), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    # Half of a surrogate pair as JSON escapes it; a backslash of the text is two here.
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def model_digest(model: nn.Module) -> str:
    """SHA-256 over names, shapes, dtypes and bytes of all parameters and persistent buffers.

    Tensors are read one at a time, so that memory stays bounded by the largest of them.
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if tensor.device.type != "meta":
            raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(raw.numpy().data)
    return digest.hexdigest()


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 over dtype, shape and bytes of a tensor."""
    import torch

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
