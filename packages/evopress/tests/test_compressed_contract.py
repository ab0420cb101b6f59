"""Methods keep their contract on a model that was compressed: caches, batches, gradients, modes, undoing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import paperhooks
import torch
from paperhooks import Artefact, Traits, hookimpl
from paperhooks.io import number
from paperhooks.testing import MethodContract, tiny_text
from paperhooks_evopress import EvoPress


@cache
def found(target: str, options: tuple[tuple[str, Any], ...]) -> Artefact:
    """What a search has found for a tiny model of the contract, which is the same each time."""
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(3, 90, (20 + i,), generator=generator).tolist() for i in range(6)]
    search = EvoPress(schedule="quick", generations=1, check_model=False, finalists=0)
    artefact = paperhooks.compress(
        tiny_text("llama", **dict(options)), search, data=texts, target=target, progress=False
    )
    artefact.undo()
    return artefact


@dataclass(eq=False)
class Scaled:
    """Scales what layers return, those that are left."""

    factor: float = 0.9
    traits = Traits(training=True, beams=True, assisted=True, static_cache=True, chunked_prefill=True)

    def __post_init__(self) -> None:
        self.factor = number("factor", self.factor, above=0)

    @hookimpl
    def post_layer(self, site, hidden_states):
        return hidden_states * self.factor


class OnCompressed(MethodContract):
    """The contract on what a search for ``target`` has left."""

    target = ""

    def make(self) -> Scaled:
        return Scaled()

    def model(self, **options: Any) -> Any:
        model = super().model(**options)
        found(self.target, tuple(sorted(options.items()))).apply(model)
        return model


class TestWithoutSublayers(OnCompressed):
    target = "depth=0.5"


class TestSparse(OnCompressed):
    target = "sparsity=0.5"
