"""What a view says of how its model is spread. Every function at the top runs in one rank."""

from __future__ import annotations

from typing import Any

import paperhooks
import pytest
from cases_agreement import Terms
from paperhooks import LossContext, UnsupportedModel
from paperhooks.models import ModelView, spread_of
from paperhooks.testing import tiny_text
from paperhooks.training import compute_loss
from paperhooks_miniplm import Distil
from spreads import SPREADS, decoder_layers
from torch import distributed, nn
from torch.distributed import get_rank, get_world_size
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor.experimental import context_parallel
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

__all__ = [
    "an_open_context_parallel_is_refused",
    "described",
    "meshes_of_two_dimensions",
    "replicas_of_tensor_parallel_groups",
    "unnamed_meshes_are_refused",
    "wrappers_are_named",
]


def described(spread: str, folder: str) -> dict[str, Any]:
    """What the view of a spread model says, and that a plain one becomes it in the first call."""
    model = tiny_text()
    view = ModelView.from_model(model)
    assert (view.spread.kinds, view.spread.group, str(view.spread)) == ((), (), "plain")
    called = SPREADS[spread].spread(model, folder)
    if SPREADS[spread].loads:
        model, view = called, ModelView.from_model(called)
    seen: list[Any] = []
    handle = model.register_forward_pre_hook(lambda *_: seen.append(view.spread))
    called(input_ids=SPREADS_IDS)
    handle.remove()
    (found,) = seen
    units = {name for name, module in model.named_modules() if found.unit(module) is module}
    return {
        "kinds": found.kinds, "group": found.group, "in_step": found.in_step, "replicas": found.replicas,
        "replica": found.replica, "leader": found.leader, "heads": found.heads(0, view), "units": len(units),
        "of head": type(found.unit(model.lm_head)).__name__, "text": str(found),
    }  # fmt: skip


def _ids() -> Any:
    import torch

    return torch.arange(3, 9)[None]


SPREADS_IDS = _ids()


def _tensor_parallel(model: Any, mesh: Any) -> Any:
    """By torch's own means, as a user's script does it."""
    for layer in decoder_layers(model):
        plan = {f"self_attn.{name}_proj": ColwiseParallel() for name in "qkv"}
        plan |= {"self_attn.o_proj": RowwiseParallel(), "mlp.down_proj": RowwiseParallel()}
        parallelize_module(layer, mesh, {**plan, "mlp.gate_proj": ColwiseParallel(), "mlp.up_proj": ColwiseParallel()})
    return model


def replicas_of_tensor_parallel_groups() -> list[Any]:
    """Four ranks, two replicas of two ranks each."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    found = spread_of(_tensor_parallel(tiny_text(), mesh["tp"]))
    return [found.kinds, found.replica, found.replicas, found.leader, found.group, found.tensor_parallel]


def meshes_of_two_dimensions() -> list[Any]:
    """Four ranks: sharded over one dimension and tensor parallel over the other; and shards that are replicated."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    model = _tensor_parallel(tiny_text(), mesh["tp"])
    for layer in decoder_layers(model):
        fully_shard(layer, mesh=mesh["dp"])
    both = spread_of(fully_shard(model, mesh=mesh["dp"]))
    hybrid = spread_of(fully_shard(tiny_text(), mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("copy", "shard"))))
    return [
        *[both.kinds, both.replica, both.replicas, both.leader, both.group],
        *[hybrid.kinds, hybrid.replicas, hybrid.group],
    ]


def unnamed_meshes_are_refused() -> None:
    """Four ranks, two dimensions without names that tell which is which."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("rows", "columns"))
    model = _tensor_parallel(tiny_text(), mesh["columns"])
    fully_shard(model, mesh=mesh["rows"])
    with pytest.raises(UnsupportedModel, match="none of whose dimensions is named 'tp'"):
        spread_of(model)


def _flat(module: nn.Module) -> nn.Module:
    """FSDP1's wrapper as it stands on a model; torch makes none without a GPU."""
    wrapper = FullyShardedDataParallel.__new__(FullyShardedDataParallel)
    nn.Module.__init__(wrapper)
    wrapper._fsdp_wrapped_module = module
    return wrapper


def an_open_context_parallel_is_refused() -> None:
    """In a call of the model, and before a loss calls its teacher; after the block all is as before."""
    mesh = init_device_mesh("cpu", (get_world_size(),))
    ids = SPREADS_IDS[:, :4].repeat(1, 4)
    model = tiny_text()
    model(input_ids=ids)
    words = "has not declared 'cp', and LlamaForCausalLM is run with context or sequence parallelism"
    with paperhooks.attach(model, Distil(teacher=tiny_text(seed=1), weight=1.0)) as session:
        model(input_ids=ids)
        context = LossContext(model, {"input_ids": ids, "labels": ids.clone()}, session=session)
        with context_parallel(mesh, buffers=[ids], buffer_seq_dims=[1]):
            with pytest.raises(UnsupportedModel, match=words):
                model(input_ids=ids)
            with pytest.raises(UnsupportedModel, match=words):
                compute_loss(session, context)
            assert "context or sequence parallelism" in session.describe()
        model(input_ids=ids)


def wrappers_are_named() -> None:
    """DDP's and FSDP1's wrappers are not attached to; the message says what to do."""
    assert get_world_size() == 2
    model = tiny_text()
    called = DistributedDataParallel(model)
    for wrapper, place in ((called, "model.module"), (nn.Sequential(called), "model.0.module")):
        with pytest.raises(UnsupportedModel, match=rf"DistributedDataParallel .* attach\({place}, \.\.\.\)"):
            paperhooks.attach(wrapper, Terms())
    paperhooks.attach(called.module, Terms()).close()
    flat = tiny_text()
    for n, layer in enumerate(decoder_layers(flat)):
        decoder_layers(flat)[n] = _flat(layer)
    with pytest.raises(UnsupportedModel, match=r"attach before wrapping"):
        paperhooks.attach(flat, Terms())
    assert distributed.is_initialized()
    assert get_rank() in (0, 1)
