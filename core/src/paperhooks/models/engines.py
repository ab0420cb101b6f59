"""What torch.distributed, accelerate and transformers leave on a model that they spread: the names to know it by."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

__all__ = [
    "active_replicator",
    "dealt_attention",
    "dealt_sequence",
    "flat_sharded",
    "fully_sharded",
    "given_up_again",
    "is_spread",
    "meshes",
    "missing_layer",
    "offloads",
    "one_of_each",
    "shared_store",
    "starts_at_outputs",
]


def active_replicator() -> nn.Module | None:
    """The DistributedDataParallel wrapper that is calling its model right now, or None."""
    return getattr(DistributedDataParallel, "_active_ddp_module", None)


def starts_at_outputs(called: nn.Module) -> bool:
    """Whether ``called`` is a DDP wrapper with a static graph.

    It exchanges the gradients of the first step only where the backward pass comes through what its forward returned.
    """
    return getattr(called, "static_graph", False) is True and callable(getattr(called, "no_sync", None))


def fully_sharded(module: nn.Module) -> bool:
    """Whether FSDP2's ``fully_shard`` was applied to this very module."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")  # nobody has used what nobody has loaded
    return fsdp is not None and hasattr(fsdp, "FSDPModule") and isinstance(module, fsdp.FSDPModule)


def flat_sharded(module: nn.Module) -> bool:
    """Whether a module is FSDP1's wrapper, which keeps parameters in flat pieces."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, fsdp.FullyShardedDataParallel)


@contextmanager
def given_up_again(model: nn.Module) -> Iterator[None]:
    """After the block a sharded model holds its own part only, as before.

    A root keeps what its forward has gathered. An optimiser that is made then would take those for the parameters, and
    never change the model.
    """
    sharded = any(map(fully_sharded, model.modules())) and all(map(is_spread, model.parameters()))
    try:
        yield
    finally:
        for unit in filter(fully_sharded, model.modules() if sharded else ()):
            unit.reshard()  # type: ignore[operator]


def is_spread(tensor: object) -> bool:
    """Whether a tensor is a DTensor: this process holds a part of it, or one of several copies."""
    return isinstance(tensor, Tensor) and hasattr(tensor, "device_mesh") and hasattr(tensor, "placements")


def one_of_each(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """A module of every class among ``modules``: enough to look at where the class alone tells."""
    return list({type(module): module for module in modules}.values())


def meshes(parameters: Iterable[Tensor]) -> Iterator[Any]:
    """The device meshes that parameters lie on, each once."""
    seen: list[Any] = []
    for parameter in filter(is_spread, parameters):
        mesh: Any = parameter.device_mesh  # type: ignore[attr-defined]
        if mesh not in seen:
            seen.append(mesh)
            yield mesh


def offloads(module: nn.Module) -> bool:
    """Whether accelerate keeps this module's weights elsewhere between forwards."""
    hook = vars(module).get("_hf_hook")
    return hook is not None and any(getattr(each, "offload", False) for each in getattr(hook, "hooks", (hook,)))


def missing_layer(module: nn.Module) -> bool:
    """Whether a module stands in for a layer that another process has, as in a stage of a pipeline."""
    return type(module).__name__ == "PipelineIdentityLayer"


def dealt_sequence(model: nn.Module) -> bool:
    """Whether each process sees a part of every sequence only: context parallelism, or sequence parallelism.

    Of accelerate by its parallelism config, of transformers by the plan that it has spread the model by, of torch by
    what ``context_parallel`` puts in the place of attention while it is open.
    """
    if dealt_attention():
        return True
    plan = getattr(model, "tp_plan", None) or {}
    if any("sequence_parallel" in str(style) for style in plan.values()) and any(meshes(model.parameters())):
        return True
    state: Any = sys.modules.get("accelerate.state")
    if state is None or not state.is_initialized():
        return False
    config = getattr(state.AcceleratorState(), "parallelism_config", None)
    return bool(getattr(config, "cp_enabled", False) or getattr(config, "sp_enabled", False))


def dealt_attention() -> bool:
    """Whether torch's ``context_parallel`` is open: each process sees a part of the buffers that it was given."""
    place = getattr(functional.scaled_dot_product_attention, "__module__", None)
    return str(place).startswith("torch.distributed.")


def shared_store() -> Any:
    """The store by which the processes of torch.distributed have met."""
    distributed: Any = sys.modules["torch.distributed"].distributed_c10d
    return distributed._get_default_store()
