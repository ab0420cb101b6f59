"""What each rank does in the tests of weights that are spread over processes."""

from __future__ import annotations

import weakref
from typing import Any
from unittest import mock

import torch
from paperhooks import Artefact, PaperhooksError
from paperhooks.io import tensor_digests
from paperhooks.testing import fingerprint, tiny_llama
from paperhooks.weights import WeightJournal
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

#: In the last unit of FSDP2, whose parameters stay whole after a forward; and in a unit of its own.
ROOT, LAYER = "model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight"


def sharded() -> nn.Module:
    """A tiny model under FSDP2, a unit a layer."""
    model = tiny_llama()
    for layer in model.model.layers:
        fully_shard(layer)
    return fully_shard(model)


def spread(kind: str, folder: str) -> nn.Module:
    """The tiny model under FSDP2, or that of a folder under tensor parallelism, after a forward."""
    model = sharded() if kind == "fsdp2" else AutoModelForCausalLM.from_pretrained(folder, tp_plan="auto").eval()
    assert isinstance(model.get_parameter(LAYER), DTensor)
    with torch.no_grad():
        model(input_ids=torch.arange(6)[None])
    return model


def digests(kind: str, folder: str) -> list[Any]:
    """A model's digests, whether the bits of its fingerprint are those, and the most whole tensors at a time."""
    model, alive, most = spread(kind, folder), weakref.WeakSet[torch.Tensor](), 0
    gathered = DTensor.full_tensor

    def full_tensor(self: DTensor, **options: Any) -> torch.Tensor:
        nonlocal most
        made = gathered(self, **options)
        alive.add(made)
        most = max(most, len(alive))
        return made

    with mock.patch.object(DTensor, "full_tensor", full_tensor):
        found = tensor_digests(model)
        places = fingerprint(model).entries
    return [found, {name: places[f"{name}:bits"].split()[1] for name, _ in model.named_parameters()}, most]


def edits(kind: str, folder: str, artefact: str) -> list[str]:
    """What is said of every way to edit a shard, and of an artefact of this very model."""
    model, told = spread(kind, folder), []
    journal, loaded = WeightJournal(model), Artefact.load(artefact)
    before = fingerprint(model)
    for name in (ROOT, LAYER):
        parameter = model.get_parameter(name)
        for edit in (
            lambda name=name, parameter=parameter: journal.write(name, torch.zeros(parameter.shape)),
            lambda name=name: journal.scale_sparse(name, torch.tensor([3]), 0.0),
        ):
            try:
                edit()
            except PaperhooksError as error:
                told.append(f"{type(error).__name__}: {error}")
    loaded.check(model)
    try:
        loaded.apply(model)
    except PaperhooksError as error:
        told.append(f"{type(error).__name__}: {error}")
    return [*told, *fingerprint(model).differences(before)]
