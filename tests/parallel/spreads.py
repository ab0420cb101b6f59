"""Every way to spread a model that a method may declare, as users do it by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

__all__ = ["SPREADS", "Spreading", "decoder_layers", "whole"]


@dataclass(frozen=True)
class Spreading:
    """One way to spread a model.

    spread
        Gives what a training loop calls, from a model and a folder of its own.
    trains
        Whether it can be trained so.
    same_batch
        Whether all ranks need the same batch: they hold one model together.
    tolerance
        How far numbers may lie from those of one process, as a part of the largest of them and of 1.
    alone
        What makes the model of one process comparable, before it runs.
    loads
        Whether the model has to be loaded so, and not spread afterwards: nothing can be attached before.
    """

    spread: Callable[[Any, str], Any]
    trains: bool = True
    same_batch: bool = False
    tolerance: float = 1e-5
    loads: bool = False
    alone: Callable[[Any], Any] = lambda model: model


def decoder_layers(model: Any) -> Any:
    """The list of decoder layers."""
    return model.get_decoder().layers


def _replicated(model: Any, folder: str) -> Any:
    return DistributedDataParallel(model, find_unused_parameters=True)


def _static(model: Any, folder: str) -> Any:
    return DistributedDataParallel(model, static_graph=True)


def _compiled(model: Any, folder: str) -> Any:
    return torch.compile(_replicated(model, folder), backend="eager")


def _sharded(model: Any, *, tail: bool = False, reshard: bool | None = None, **options: Any) -> Any:
    for layer in decoder_layers(model):
        fully_shard(layer, **options)
    if tail:  # the last norm and the head in a unit of their own, as accelerate makes it
        fully_shard([model.get_decoder().norm, model.lm_head], **options)
    return fully_shard(model, reshard_after_forward=reshard, **options)


def _root(model: Any, folder: str) -> Any:
    return _sharded(model)


def _resharded(model: Any, folder: str) -> Any:
    return _sharded(model, reshard=True)


def _tail(model: Any, folder: str) -> Any:
    return _sharded(model, tail=True)


def _checkpointed(model: Any, folder: str) -> Any:
    model.gradient_checkpointing_enable()
    return _sharded(model)


def _wrapped(model: Any, folder: str) -> Any:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

    model.get_decoder().config.use_cache = False  # a plain layer's second call would add to the cache again
    wanted = set(decoder_layers(model))
    apply_activation_checkpointing(model, check_fn=lambda module: module in wanted)
    return _sharded(model)


def _half(model: Any, folder: str = "", **options: Any) -> Any:
    return _sharded(model, mp_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32), **options)


def _half_alone(model: Any) -> Any:
    """The same rounding, sharded over this process alone."""
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(), 1), mesh_dim_names=("ranks", "one"))
    return _half(model, mesh=mesh["one"])


def _tensor(model: Any, folder: str) -> Any:
    from torch import distributed

    if distributed.get_rank() == 0:
        model.save_pretrained(folder)
    distributed.barrier()
    loaded = type(model).from_pretrained(folder, tp_plan="auto")
    return loaded.train(model.training)


def _to_cpu(model: Any, folder: str) -> Any:
    from accelerate import cpu_offload

    return cpu_offload(model, execution_device=torch.device("cpu"))


def _to_disk(model: Any, folder: str) -> Any:
    from accelerate import disk_offload

    place = f"{folder}/rank-{torch.distributed.get_rank()}"
    return disk_offload(model, place, execution_device=torch.device("cpu"))


SPREADS: Final[dict[str, Spreading]] = {
    "ddp": Spreading(_replicated),
    "ddp-static": Spreading(_static),
    "ddp-compiled": Spreading(_compiled),
    "fsdp2-root": Spreading(_root),
    "fsdp2-resharded": Spreading(_resharded),
    "fsdp2-tail": Spreading(_tail),
    "fsdp2-checkpointing": Spreading(_checkpointed),
    "fsdp2-wrapped": Spreading(_wrapped),
    "fsdp2-bfloat16": Spreading(_half, alone=_half_alone, tolerance=2e-3),
    # Sums in another order: 6.4e-5 of the largest logit on one CPU, below 5e-5 on others.
    "tp": Spreading(_tensor, same_batch=True, loads=True, tolerance=1e-4),
    "offload-cpu": Spreading(_to_cpu, trains=False),
    "offload-disk": Spreading(_to_disk, trains=False),
}


def whole(model: nn.Module) -> dict[str, torch.Tensor]:
    """All parameters in full, by the names that they have without wrappers. Every rank has to call it."""
    found = {}
    for name, parameter in model.named_parameters():
        full = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
        found[name.replace("_checkpoint_wrapped_module.", "")] = full.detach().clone()
    return found
