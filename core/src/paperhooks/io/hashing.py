"""Identities: hashes of JSON, files, tensors and models, and what a config says of a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paperhooks.io.files import plain

if TYPE_CHECKING:
    from torch import Tensor, nn


__all__ = ["config_entries", "hash_file", "hash_json", "model_digest", "tensor_digest", "tensor_digests"]


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
    """SHA-256 over names, shapes, dtypes and bytes of all parameters and persistent buffers."""
    return hash_json(tensor_digests(model))


def tensor_digests(model: nn.Module) -> dict[str, str]:
    """:func:`tensor_digest` of all parameters and persistent buffers by name, of which :func:`model_digest` is made.

    Tensors are read one at a time, so that memory stays bounded by the largest of them; tied ones once, and those that
    accelerate keeps elsewhere between forwards for the moment. One that is nowhere (a model that was only laid out on
    the meta device) has a digest of its dtype and shape.
    """
    found: dict[str, str] = {}
    known: dict[tuple[Any, ...], str] = {}
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.device.type == "meta" or hasattr(tensor, "__tensor_flatten__"):
            with _lent(model, name, tensor) as real:
                found[name] = tensor_digest(real)
        else:
            place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            known[place] = found[name] = known.get(place) or tensor_digest(tensor)
    return found


@contextmanager
def _lent(model: nn.Module, name: str, tensor: Tensor) -> Iterator[Tensor]:
    """A tensor of a module that accelerate has put elsewhere, while it is here; others as they are."""
    owner, _, own = name.rpartition(".")
    try:
        module = model.get_submodule(owner)
    except AttributeError:  # of a model that names its tensors otherwise than its modules
        module = model
    if not hasattr(module, "_hf_hook"):
        yield tensor
        return
    from accelerate.utils import align_module_device

    with align_module_device(module, "cpu"):
        yield getattr(module, own, tensor)


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 over dtype, shape and bytes of a tensor: of its parts where it is packed, none on the meta device."""
    import torch

    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    if hasattr(tensor, "__tensor_flatten__"):  # quantised weights that are objects of their own
        parts, _ = tensor.__tensor_flatten__()
        digest.update(hash_json({name: tensor_digest(getattr(tensor, name)) for name in parts}).encode())
    elif tensor.device.type != "meta":
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy().data)
    return digest.hexdigest()


def config_entries(model: nn.Module) -> dict[str, Any]:
    """The model's config as plain data by dotted names, without entries on origin and run time.

    To name what differs there is :func:`paperhooks.io.differences`. Of a model without a config, the name of its class.
    """
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_dict"):
        return {"class": type(model).__name__}
    from paperhooks.compat import CONFIG_CIRCUMSTANCES  # a model with a config has loaded transformers already

    return dict(_entries("", plain(config.to_dict()), CONFIG_CIRCUMSTANCES))


def _entries(prefix: str, values: Mapping[str, Any], without: Container[str]) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if key in without:
            continue
        if isinstance(value, Mapping) and value:
            yield from _entries(f"{prefix}{key}.", value, without)
        else:
            yield prefix + key, value
