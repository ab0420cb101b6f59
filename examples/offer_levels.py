"""Offer levels of your own: matrices by their largest singular values, searched by EvoPress under one budget.

python examples/offer_levels.py
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import paperhooks
import torch
from paperhooks import Level, Traits, hookimpl
from paperhooks.testing import tiny_llama
from paperhooks.weights import Dense
from paperhooks_evopress import EvoPress


def low_rank(module, rank):
    """The weight [rows, columns] of the given rank that is nearest to the module's own."""
    u, s, v = torch.linalg.svd(module.weight.detach().float(), full_matrices=False)
    return {"weight": Dense(((u[:, :rank] * s[:rank]) @ v[:rank]).to(module.weight.dtype))}


@dataclass(eq=False)
class LowRank:
    """Two thin matrices in place of one, where that has fewer parameters."""

    shares: tuple[float, ...] = (0.25, 0.5, 0.75)
    traits = Traits(writes=frozenset({"weights"}))

    @hookimpl
    def compression_levels(self, modules):
        found = {}
        for name, module in modules.items():
            if isinstance(module, torch.nn.Linear):
                size, sides = module.weight.numel(), sum(module.weight.shape)
                ranks = sorted({max(1, int(share * size / sides)) for share in self.shares})
                found[name] = [  # what it costs is known before the values are made
                    Level("low_rank", f"rank {rank}", {"parameters": rank * sides}, partial(low_rank, module, rank))
                    for rank in ranks
                ]
        return found


def main() -> None:
    """Halve the parameters of the layers; levels of other methods could stand beside these in ``levels_from``."""
    model, texts = tiny_llama(layers=3), [[3 + (i * k) % 87 for i in range(32)] for k in range(1, 17)]
    search = EvoPress(schedule="quick", generations=4, check_model=False)  # a random model predicts nothing
    artefact = paperhooks.compress(
        model, search, data=texts, target="parameters=0.5", levels_from=[LowRank()], progress=False
    )
    for name, level in artefact.data["levels"].items():
        print(f"{name:<34} {level['label']}")
    print(f"{artefact}: {artefact.data['cost']:.0f} of at most {artefact.data['budget']:.0f} parameters")
    artefact.undo()  # every bit is what it was


if __name__ == "__main__":
    main()
