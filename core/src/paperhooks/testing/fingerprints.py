"""A fingerprint of a model: equal before attaching and after detaching, or something was left behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from paperhooks.io.hashing import held_tensor, tensor_digest

__all__ = ["Fingerprint", "fingerprint"]


@dataclass(frozen=True)
class Fingerprint:
    """What :func:`fingerprint` found, place by place."""

    entries: dict[str, str]

    def differences(self, other: Fingerprint) -> list[str]:
        """The places where two fingerprints differ, sorted."""
        places = self.entries.keys() | other.entries.keys()
        return sorted(p for p in places if self.entries.get(p) != other.entries.get(p))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fingerprint) and self.entries == other.entries

    def __hash__(self) -> int:
        return hash(tuple(sorted(self.entries.items())))


def fingerprint(model: nn.Module) -> Fingerprint:
    """Identity and content of everything a method could touch.

    Covers every module's class, instance attributes (by identity), hook tables (by key and identity), the bits, dtype,
    device and identity of every parameter and buffer, wherever it is kept, and the content of the config. Take the
    first one after a warm-up forward: transformers installs its own recorders lazily, once. Of a model that is sharded
    or tensor parallel every process has to take it.
    """
    entries: dict[str, str] = {}
    for name, module in model.named_modules():
        entries[f"{name}:class"] = f"{type(module).__qualname__}@{id(type(module))}"
        for key, value in vars(module).items():
            if key in ("_parameters", "_buffers", "_modules"):
                # What stands in for offloaded weights is made anew at every forward, apart where weights are tied.
                members = {k: "kept elsewhere" if getattr(v, "is_meta", False) else id(v) for k, v in value.items()}
                entries[f"{name}.{key}"] = str(members)
            elif isinstance(value, Mapping) and (key.endswith("_hooks") or "_hooks_" in key):
                entries[f"{name}.{key}"] = str([(k, id(v)) for k, v in value.items()]) if value else "{}"
            elif isinstance(value, bool | int | float | str | type(None)):
                entries[f"{name}.{key}"] = repr(value)
            elif isinstance(value, Tensor):  # some models note such things as position offsets at every forward
                entries[f"{name}.{key}"] = f"{value.device} {tensor_digest(value)}"
            else:
                entries[f"{name}.{key}"] = f"{type(value).__name__}@{id(value)}"
    held = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in held:
        entries[f"{name}:bits"] = f"{tensor.device} {tensor_digest(held_tensor(model, name, tensor))}"
    config = getattr(model, "config", None)
    if config is not None:
        entries["config"] = repr(sorted(_flat(config.to_dict())))
    return Fingerprint(entries)


def _flat(value: Any, prefix: str = "") -> list[str]:
    if isinstance(value, dict):
        return [line for k, v in value.items() for line in _flat(v, f"{prefix}.{k}")]
    return [f"{prefix}={value!r}"]
