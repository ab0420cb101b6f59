"""Training checkpoints without pickles: one safetensors file with weights, optimiser state and the step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from paperhooks.errors import DataError
from paperhooks.io import atomic_path
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

__all__ = ["load_checkpoint", "save_checkpoint"]


def save_checkpoint(
    path: Path, step: int, modules: Mapping[str, nn.Module], optimizers: Iterable[torch.optim.Optimizer]
) -> None:
    """Write everything that the next step depends on; an interrupted write leaves the old file untouched."""
    tensors: dict[str, torch.Tensor] = {}
    named = _named(modules)
    for name, weight in named.items():
        tensors[f"weight/{name}"] = weight.detach()
    names: dict[torch.Tensor, str] = {weight: name for name, weight in named.items()}
    for optimizer in optimizers:
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                tensors[f"state/{key}/{names[parameter]}"] = torch.as_tensor(value)
    with atomic_path(path) as partial:
        save_file({k: v.contiguous().clone() for k, v in tensors.items()}, partial, metadata={"step": str(step)})


def load_checkpoint(path: Path, modules: Mapping[str, nn.Module], optimizers: Iterable[torch.optim.Optimizer]) -> int:
    """Restore a checkpoint in place and return the number of finished steps.

    :raises DataError: if the file belongs to a model of another shape.
    """
    named = _named(modules)
    owners = {p: optimizer for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    with safe_open(path, framework="pt") as file:
        stored = set(file.keys())
        missing = sorted(f"weight/{name}" for name in named if f"weight/{name}" not in stored)
        if missing:
            raise DataError(f"{path} has no tensor {missing[0]!r}: it was written for another model")
        for key in stored:
            kind, _, rest = key.partition("/")
            if kind == "weight":
                _copy(path, named, rest, file.get_tensor(key))
            else:
                field, _, name = rest.partition("/")
                owners[named[name]].state[named[name]][field] = file.get_tensor(key)
        return int(file.metadata()["step"])


@torch.no_grad()
def _copy(path: Path, named: dict[str, nn.Parameter], name: str, value: torch.Tensor) -> None:
    if name not in named or named[name].shape != value.shape:
        found = tuple(named[name].shape) if name in named else "nothing"
        raise DataError(f"{path}: {name} is {tuple(value.shape)} but the model has {found}; start in another folder")
    named[name].copy_(value)


def _named(modules: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    return {f"{prefix}.{name}": p for prefix, module in modules.items() for name, p in module.named_parameters()}
