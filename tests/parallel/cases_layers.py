"""Layers that run twice, and wrappers of single layers: steps equal those of one process without either.

Every function at the top runs in one rank.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import paperhooks
import torch
from paperhooks import Traits, hookimpl
from paperhooks.testing import tiny_text
from spreads import decoder_layers
from torch import nn
from torch.distributed import get_rank, get_world_size
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

__all__ = ["METHODS", "WAYS", "train"]

_STEPS: Final = 3


@dataclass(eq=False)
class _Drawing:
    """Draws from a generator of its own."""

    traits = Traits(training=True, parallel=("ddp", "fsdp2"), layers=lambda site: site.index in (1, 3))

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def draw(self, *shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=self.generator)


@dataclass(eq=False)
class Noisy(_Drawing):
    """Adds noise in front of a layer and scales behind it."""

    @hookimpl
    def pre_attention(self, site: Any, call: Any, inputs: Any) -> Any:
        return inputs.replace(hidden_states=inputs.hidden_states + self.draw(*inputs.hidden_states.shape))

    @hookimpl
    def post_layer(self, hidden_states: Any) -> Any:
        return hidden_states * self.draw(*hidden_states.shape)


@dataclass(eq=False)
class Dice(_Drawing):
    """Goes on with a random half of the tokens."""

    traits = Traits(
        training=True,
        parallel=("ddp", "fsdp2"),
        writes=frozenset({"tokens"}),
        layers=lambda site: site.index in (1, 3),
    )

    @hookimpl
    def pre_attention(self, site: Any, call: Any, inputs: Any) -> Any:
        batch, length = inputs.hidden_states.shape[:2]
        return inputs.select(self.draw(batch, length).topk(length // 2).indices.sort().values)


METHODS: Final[dict[str, Callable[[], Any]]] = {"noisy": Noisy, "dice": Dice}


def _wrap(model: nn.Module, kind: CheckpointImpl = CheckpointImpl.NO_REENTRANT) -> None:
    wanted = {m for m in model.modules() if type(m).__name__.endswith("DecoderLayer")}
    wrapper = functools.partial(checkpoint_wrapper, checkpoint_impl=kind)
    apply_activation_checkpointing(model, checkpoint_wrapper_fn=wrapper, check_fn=lambda m: m in wanted)


def _sharded(model: Any, then_wrapped: bool = False, kind: CheckpointImpl = CheckpointImpl.NO_REENTRANT) -> Any:
    if not then_wrapped:
        _wrap(model, kind)
    for layer in decoder_layers(model):
        fully_shard(layer)
    if then_wrapped:
        _wrap(model, kind)
    return fully_shard(model)


def _flat(model: Any, wrapped: bool) -> Any:
    inside = {type(layer) for layer in decoder_layers(model)}
    found = FullyShardedDataParallel(
        model, auto_wrap_policy=lambda module, recurse, **_: recurse or type(module) in inside,
        device_id=torch.device("cpu"), use_orig_params=True,
    )  # fmt: skip
    if wrapped:  # as accelerate: after sharding
        _wrap(found)
    return found


def _replicated(model: Any, kind: CheckpointImpl) -> Any:
    _wrap(model, kind)
    return DistributedDataParallel(model)


#: Name to what gives the model as the training loop calls it.
WAYS: Final[dict[str, Callable[[Any], Any]]] = {
    "ddp": functools.partial(_replicated, kind=CheckpointImpl.NO_REENTRANT),
    "ddp-reentrant": functools.partial(_replicated, kind=CheckpointImpl.REENTRANT),
    "fsdp2": _sharded,
    "fsdp2-reentrant": functools.partial(_sharded, kind=CheckpointImpl.REENTRANT),
    "fsdp2-then-wrapped": functools.partial(_sharded, then_wrapped=True),
    "fsdp1": functools.partial(_flat, wrapped=False),
    "fsdp1-wrapped": functools.partial(_flat, wrapped=True),
}


def train(method: str, way: str, when: str) -> None:
    """Three steps; raises AssertionError where a loss is not that of one process without wrappers."""
    alone = _losses(method, tiny_text(layers=5), lambda model: model, "before", range(get_world_size()))
    found = _losses(method, tiny_text(layers=5), WAYS[way], when, [get_rank()])
    for step, (expected, (loss,)) in enumerate(zip(alone, found, strict=True)):
        apart = abs(expected[get_rank()] - loss)
        assert apart < 1e-5, f"loss of step {step} lies {apart:.3g} apart"


def _losses(method: str, model: Any, spread: Any, when: str, ranks: Any) -> list[list[float]]:
    """The losses of every step for the batches of some ranks, whose gradients are averaged."""
    model.train().config.use_cache = False
    model.enable_input_require_grads()
    methods = [METHODS[method]() for _ in ranks]
    called = spread(model) if when == "after" else model
    first = paperhooks.attach(model, methods[0]) if when == "before" and len(methods) == 1 else None
    called = spread(model) if first is not None else called
    optimiser = torch.optim.SGD(called.parameters(), lr=0.1)
    found = []
    for _ in range(_STEPS):
        found.append([])
        for rank, chosen in zip(ranks, methods, strict=True):
            ids = torch.randint(3, 90, (2, 12), generator=torch.Generator().manual_seed(rank))
            session = first or paperhooks.attach(model, chosen)
            loss = called(input_ids=ids, labels=ids).loss
            (loss / len(methods)).backward()
            found[-1].append(float(loss.detach()))
            if first is None:
                session.close()
        optimiser.step()
        optimiser.zero_grad()
    if first is not None:
        first.close()
    return found
