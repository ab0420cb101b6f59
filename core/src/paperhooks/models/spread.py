"""How a model is spread over processes and devices: replicated, sharded, tensor parallel, offloaded.

Read off the modules, their parameters (DTensors) and accelerate's state; nothing is asked of other processes, so every
rank of a model reads the same. Letters: W processes, t processes that hold one model together by tensor parallelism.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import torch
from torch import Tensor, nn

from paperhooks.compat import attention_module
from paperhooks.errors import UnsupportedModel
from paperhooks.info import PARALLEL, Traits
from paperhooks.io.processes import Ranks
from paperhooks.models.engines import (
    active_replicator,
    dealt_attention,
    dealt_sequence,
    fully_sharded,
    is_spread,
    meshes,
    missing_layer,
    offloads,
    one_of_each,
)

__all__ = ["Spread", "spread_mark", "spread_of"]

#: The name of the dimension of a device mesh over which transformers and accelerate spread by tensor parallelism.
_TENSOR: Final = "tp"
#: What each kind is, for messages.
_WORDS: Final = {
    "ddp": "replicated by DistributedDataParallel",
    "fsdp2": "sharded by fully_shard (FSDP2)",
    "tp": "spread by tensor parallelism",
    "cp": "run with context or sequence parallelism",
    "offload": "offloaded by accelerate",
}
#: What goes wrong, where that is not plain.
_WHY: Final = {"cp": ": every process sees a part of the tokens, and accelerate takes attention masks away"}


@dataclass(frozen=True, eq=False)
class Spread:
    """Where the parts of a model are. Made by :func:`spread_of`.

    kinds
        Out of ``"ddp"``, ``"fsdp2"``, ``"tp"``, ``"cp"`` (context or sequence parallelism) and ``"offload"``, in this
        order; empty for a plain model in one process, also one that a device map lays over several devices.
    tensor_mesh
        The 1-D ``torch.distributed.DeviceMesh`` of the processes that hold the projections' heads together, or None.
    group
        Ranks whose calls of the model wait for one another, this one included; empty where each goes on alone. Under
        DDP that is so in training only.
    """

    model: nn.Module
    kinds: tuple[str, ...] = ()
    tensor_mesh: Any = None
    group: tuple[int, ...] = ()

    @property
    def in_step(self) -> bool:
        """Whether ranks must call the model equally often, also without gradient: FSDP2 and tensor parallelism."""
        return "fsdp2" in self.kinds or "tp" in self.kinds

    @property
    def tensor_parallel(self) -> int:
        """t, the number of processes that hold one replica together; 1 without tensor parallelism."""
        return 1 if self.tensor_mesh is None else int(self.tensor_mesh.size())

    @property
    def replicas(self) -> int:
        """How many replicas of the model the processes hold: W / t. A sharded (FSDP2) model is one on every rank."""
        return Ranks().count // self.tensor_parallel

    @property
    def replica(self) -> int:
        """Which replica this process belongs to, from 0."""
        return self._place[0]

    @property
    def leader(self) -> bool:
        """Whether this process speaks for its replica: the first of its tensor-parallel group."""
        return self._place[1] == 0

    @cached_property
    def _place(self) -> tuple[int, int]:
        """This process' replica, and its place in it."""
        rank, together = Ranks().index, self.tensor_parallel
        if together == 1:
            return rank, 0
        members = sorted(int(r) for r in self.tensor_mesh.mesh.flatten().tolist())
        first = members[0]
        # Groups are runs of neighbours (0, 1), (2, 3), or lie t apart (0, 2), (1, 3): so a mesh deals ranks out.
        if members == list(range(first, first + together)) and first % together == 0:
            return first // together, members.index(rank)
        step = self.replicas
        if members == [first + step * n for n in range(together)] and first < step:
            return first, members.index(rank)
        raise UnsupportedModel(
            f"ranks {members} hold one replica together, and {Ranks().count} were launched; expected groups of "
            "neighbours, or groups at equal distances, as torch.distributed.init_device_mesh makes them"
        )

    def heads(self, index: int, view: Any) -> tuple[int, int]:
        """Query heads of layer ``index``'s attention that this process holds, and all there are.

        :param view: the view of the model.
        """
        total = int(view.text_config.num_attention_heads)
        attention = attention_module(view.layers[index])
        projection = getattr(attention, "q_proj", None)
        if self.tensor_mesh is None or attention is None or projection is None:
            return total, total
        weight = projection.weight
        local = weight.to_local() if is_spread(weight) else weight
        return int(local.shape[0]) // int(attention.head_dim), total  # type: ignore[arg-type]

    def unit(self, module: nn.Module) -> nn.Module | None:
        """The FSDP2 module whose unit shards ``module``'s own parameters, or None.

        A unit that was made of several modules at once is named by the first of them that holds ``module``.
        """
        if "fsdp2" not in self.kinds:
            return None
        holding = [m for m in self.model.modules() if fully_sharded(m) and any(part is module for part in m.modules())]
        return holding[-1] if holding else None

    def check(self, methods: Mapping[str, Traits]) -> None:
        """Whether the methods have declared how this model is spread.

        :param methods: names to traits. :raises UnsupportedModel: names the method, the way, and what was declared.
        """
        for name, traits in methods.items():
            for kind in self.kinds:
                if kind not in traits.parallel:
                    declared = ", ".join(traits.parallel)
                    ways = f"spread the model in one of the ways it declares ({declared})" if declared else ""
                    raise UnsupportedModel(
                        f"{name} has not declared {kind!r}, and {type(self.model).__name__} is {_WORDS[kind]}"
                        f"{_WHY.get(kind, '')}. Detach it, or {ways or 'use the model as it is in one process'}; who "
                        f"has tested the method so adds Traits(parallel=({kind!r}, ...)) to it"
                    )

    def __str__(self) -> str:
        if not self.kinds:
            return "plain"
        sizes = {"tp": f" over {self.tensor_parallel} processes"}
        return ", ".join(_WORDS[kind] + sizes.get(kind, "") for kind in self.kinds)


def spread_mark(model: nn.Module, layers: tuple[nn.Module, ...]) -> tuple[object, ...]:
    """What changes when a model is wrapped, sharded or offloaded: compared in every forward, so it must cost nothing.

    A model that is sharded gets another class, DDP is there while it calls, accelerate sets a hook, and torch's
    ``context_parallel`` stands in for attention while it is open.
    """
    hook = id(model.__dict__.get("_hf_hook"))
    return type(model), type(layers[0]), type(layers[-1]), id(active_replicator()), hook, dealt_attention()


def spread_of(model: nn.Module) -> Spread:
    """How ``model`` (the transformers model itself) is spread now; a DDP wrapper is seen while it calls the model.

    :raises UnsupportedModel: it is spread in a way that nobody has run: DeepSpeed ZeRO-3, pipelines, a mesh of several
        dimensions none of which is named "tp".
    """
    modules, parameters = list(model.modules()), list(model.parameters())
    classes = one_of_each(modules)
    _refuse_untried(model, classes, parameters)
    sharded = any(map(fully_sharded, classes))
    mesh = _tensor_mesh(parameters, sharded)
    kinds = {
        "ddp": _replicated(model),
        "fsdp2": sharded,
        "tp": mesh is not None,
        "cp": dealt_sequence(model),
        "offload": any(map(offloads, modules)),
    }
    found = tuple(kind for kind in PARALLEL if kinds[kind])
    return Spread(model, found, mesh, _group(parameters, found, mesh))


def _replicated(model: nn.Module) -> bool:
    wrapper = active_replicator()
    return wrapper is not None and any(module is model for module in wrapper.modules())


def _tensor_mesh(parameters: Sequence[Tensor], sharded: bool) -> Any:
    """The 1-D mesh of tensor parallelism, or None."""
    for mesh in meshes(parameters):
        names = mesh.mesh_dim_names or ()
        if _TENSOR in names:
            part = mesh[_TENSOR] if mesh.ndim > 1 else mesh
        elif mesh.ndim == 1:
            part = None if sharded else mesh
        elif sharded and _hybrid(parameters, mesh):
            part = None
        else:
            raise UnsupportedModel(
                f"parameters lie on {mesh}, none of whose dimensions is named {_TENSOR!r}, so it cannot be told which "
                "one tensor parallelism uses; name it so: init_device_mesh(device, sizes, mesh_dim_names=('dp', 'tp'))"
            )
        if part is not None and part.size() > 1:
            return part
    return None


def _hybrid(parameters: Sequence[Tensor], mesh: Any) -> bool:
    """Whether a mesh of two dimensions replicates shards (HSDP): no parameter is split over its first dimension."""
    there: list[Any] = [p for p in parameters if getattr(p, "device_mesh", None) == mesh]
    return mesh.ndim == 2 and all(type(p.placements[0]).__name__ == "Replicate" for p in there)


def _group(parameters: Sequence[Tensor], kinds: tuple[str, ...], tensor_mesh: Any) -> tuple[int, ...]:
    """Ranks whose calls wait for one another."""
    if "fsdp2" in kinds:
        ranks: set[int] = set()
        for mesh in meshes(parameters):
            ranks |= set(_ranks(mesh)) | set(_ranks(tensor_mesh))
        return tuple(sorted(ranks or range(Ranks().count)))  # inside the forward of a root that shards everything
    if "ddp" in kinds:
        group = getattr(active_replicator(), "process_group", None)
        return tuple(torch.distributed.get_process_group_ranks(group))
    return tuple(sorted(_ranks(tensor_mesh)))


def _ranks(mesh: Any) -> Iterable[int]:
    return () if mesh is None else (int(rank) for rank in mesh.mesh.flatten().tolist())


def _refuse_untried(model: nn.Module, modules: Sequence[nn.Module], parameters: Sequence[Tensor]) -> None:
    """What nobody has run with hooks yet; of every class of modules one is enough."""
    if any(hasattr(parameter, "ds_id") for parameter in parameters):
        raise UnsupportedModel(
            f"{type(model).__name__} is partitioned by DeepSpeed ZeRO-3, which nobody has run with paperhooks; use "
            "FSDP2 (accelerate: fsdp_version 2), or ZeRO-1 or 2"
        )
    if any(map(missing_layer, modules)):
        raise UnsupportedModel(
            f"{type(model).__name__} is a stage of a pipeline, which nobody has run with paperhooks; use FSDP2 or "
            "tensor parallelism"
        )
