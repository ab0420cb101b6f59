"""Identities: hashes of JSON, files, tensors and models, and what a config says of a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paperhooks.io.files import plain

if TYPE_CHECKING:
    from torch import Tensor, nn


__all__ = [
    "class_name",
    "config_entries",
    "hash_file",
    "hash_json",
    "held_tensor",
    "model_digest",
    "reading_state",
    "sampled_digest",
    "state_is_read",
    "tensor_digest",
    "tensor_digests",
]


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


_READING: ContextVar[bool] = ContextVar("paperhooks_reading_state", default=False)


@contextmanager
def reading_state() -> Iterator[None]:
    """While it is open, ``state_dict`` is called to look at a model, and not to keep it."""
    token = _READING.set(True)
    try:
        yield
    finally:
        _READING.reset(token)


def state_is_read() -> bool:
    """Whether a state dict is made inside :func:`reading_state`."""
    return _READING.get()


def tensor_digests(model: nn.Module) -> dict[str, str]:
    """:func:`tensor_digest` of all parameters and persistent buffers by name, of which :func:`model_digest` is made.

    The same whether a model is plain, sharded, tensor parallel or offloaded. Tensors are read one at a time, so that
    memory stays bounded by the largest of them; tied ones once, and those that accelerate keeps elsewhere from there.
    One that is nowhere (a model that was only laid out on the meta device) has a digest of its dtype and shape.

    Of a model whose tensors are spread over processes (DTensors) every process has to call it.
    """
    found: dict[str, str] = {}
    known: dict[tuple[Any, ...], str] = {}
    with reading_state():
        state = model.state_dict()
    for name, tensor in sorted(state.items()):
        # Where a part lies says nothing of the whole: processes that disagreed on what is tied would wait for ever.
        if tensor.device.type == "meta" or hasattr(tensor, "__tensor_flatten__"):
            found[name] = tensor_digest(held_tensor(model, name, tensor))
        else:
            place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            known[place] = found[name] = known.get(place) or tensor_digest(tensor)
    return found


def sampled_digest(model: nn.Module, samples: int = 64) -> str:
    """SHA-256 over names, shapes and dtypes of all parameters and persistent buffers, and over some entries of each.

    It tells models apart in milliseconds, with one wait for the device, where a process only has to see that it has
    loaded what another one digested: training changes all entries of a tensor, but an edit of few entries it may miss,
    see :func:`model_digest`.

    :param samples: entries of a tensor that are read, evenly spread from its first to its last.
    """
    import torch

    with reading_state():
        state = sorted(model.state_dict().items())
    told = [[name, str(tensor.dtype), list(tensor.shape)] for name, tensor in state]
    parts: list[Tensor] = []
    for name, tensor in state:
        held = held_tensor(model, name, tensor).detach().reshape(-1)
        steps = range(min(samples, held.numel()))
        places = [step * (held.numel() - 1) // max(1, len(steps) - 1) for step in steps]
        parts.append(held[torch.tensor(places, dtype=torch.int64, device=held.device)].float())
    joined = torch.cat([part.to(parts[0].device) for part in parts]) if parts else torch.zeros(0)
    return hash_json([told, tensor_digest(joined)])


def held_tensor(model: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """A parameter or buffer with its values: from where accelerate keeps it between forwards, or else as it is.

    Its own hook may keep it, or that of a module around it (``preload_module_classes``), each chained with others.

    :param name: its qualified name in ``model``. :param tensor: what the model holds by this name.
    """
    found, module, path = tensor, model, name.split(".")
    for depth, part in enumerate(path):
        hook: Any = getattr(module, "_hf_hook", None)
        for each in getattr(hook, "hooks", (hook,)):
            if getattr(each, "offload", False) and each.weights_map is not None:
                with suppress(KeyError):
                    found = each.weights_map[".".join(path[depth:])]
        module = getattr(module, part, None)  # type: ignore[assignment]  # None: names other than those of the modules
    return found if found.dtype == tensor.dtype else found.to(tensor.dtype)


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 over dtype, shape and bytes of a tensor: of its parts where it is packed, none on the meta device.

    A tensor that is spread over processes (a DTensor) is put together for it; every process has to call this.
    """
    import torch

    if hasattr(tensor, "full_tensor"):
        # The group of its mesh moves no tensors of another device, as of a model that FSDP2 offloads to the CPU.
        tensor = tensor.detach().to(tensor.device_mesh.device_type).full_tensor()  # type: ignore[attr-defined]
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    if hasattr(tensor, "__tensor_flatten__"):  # quantised weights that are objects of their own
        parts, _ = tensor.__tensor_flatten__()
        digest.update(hash_json({name: tensor_digest(getattr(tensor, name)) for name in parts}).encode())
    elif tensor.device.type != "meta":
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy().data)
    return digest.hexdigest()


def class_name(model: nn.Module) -> str:
    """The name of a model's own class, also where FSDP2 has put one of its own over it."""
    made = any(base.__name__ == "FSDPModule" for base in type(model).__bases__)
    return (type(model).__bases__[-1] if made else type(model)).__name__


def config_entries(model: nn.Module) -> dict[str, Any]:
    """The model's config as plain data by dotted names, without entries on origin and run time.

    To name what differs there is :func:`paperhooks.io.differences`. Of a model without a config, the name of its class.
    """
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_dict"):
        return {"class": class_name(model)}
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
