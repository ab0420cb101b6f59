"""Compose: a method of your own beside a paper's, and what the order means.

python examples/compose.py
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import paperhooks
import torch
from paperhooks import PluginConflict, Traits, hookimpl
from paperhooks.io import number, whole
from paperhooks.testing import tiny_vlm, vlm_inputs
from paperhooks_pyramiddrop import PyramidDrop


@dataclass(eq=False)
class Norms:
    """Notes, layer by layer, how many tokens there are and how large they are; changes nothing."""

    seen: dict[int, tuple[int, float]] = field(default_factory=dict, init=False)
    traits = Traits(training=True)

    @hookimpl
    def post_layer(self, site, hidden_states):  # [B, T, D]; asks only for what it needs
        self.seen[site.index] = (hidden_states.shape[1], float(hidden_states.norm(dim=-1).mean()))


@dataclass(eq=False)
class Steer:
    """Adds a direction to what the layers from ``first_layer`` on return."""

    strength: float = 1.0
    first_layer: int = 3
    traits = Traits(training=True)

    def __post_init__(self) -> None:
        self.strength = number("strength", self.strength)
        self.first_layer = whole("first_layer", self.first_layer, at_least=0)

    @hookimpl
    def post_layer(self, site, hidden_states):
        if site.index < self.first_layer:
            return None  # unchanged
        direction = torch.ones_like(hidden_states[:1, :1]) / hidden_states.shape[-1] ** 0.5  # [1, 1, D]
        return hidden_states + self.strength * direction


def logits(model: Any, *methods: Any) -> torch.Tensor:
    """Logits [B, T, V] of a small batch with methods attached."""
    with paperhooks.attach(model, *methods), torch.no_grad():
        return model(**vlm_inputs(model, ((3, 12, 5),))).logits


def main() -> None:
    """Show that methods stack, that the order is the one written, and that conflicts are refused."""
    model = tiny_vlm("llava")
    drop, norms = PyramidDrop(stages={2: 0.5, 4: 0.25}), Norms()
    with paperhooks.attach(model, drop, norms, Steer()) as session:
        print(session.describe())
        with torch.no_grad():
            model(**vlm_inputs(model, ((3, 12, 5),)))
    for layer, (tokens, size) in norms.seen.items():
        print(f"layer {layer}: {tokens} tokens, mean norm {size:.2f}")

    alone = logits(model, PyramidDrop(stages={2: 0.5}))
    same = torch.equal(alone, logits(model, PyramidDrop(stages={2: 0.5}), Norms()))
    moved = (alone - logits(model, PyramidDrop(stages={2: 0.5}), Steer())).abs().max()
    print(f"a method that only looks changes nothing: {same}; one that steers moves the logits by up to {moved:.2f}")
    try:
        paperhooks.attach(model, Norms(), Norms())
    except PluginConflict as error:
        print(f"refused: {error}")


if __name__ == "__main__":
    main()
