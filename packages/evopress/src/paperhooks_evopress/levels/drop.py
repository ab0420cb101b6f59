"""Levels that leave out attentions, MLPs and whole layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from paperhooks import Level, ModelView, Traits, hookimpl
from paperhooks.models import module_cost
from torch import nn

__all__ = ["SublayerDrop"]


@dataclass(eq=False)
class SublayerDrop:
    """Offers leaving out every layer, attention and MLP that can be left out, at no cost, and keeping it as it is.

    What cannot be left out has no level here; ``view.sublayers`` tells why.
    """

    traits = Traits(writes=frozenset({"weights"}), devices=("cpu", "cuda"), dtypes=("float32", "bfloat16", "float16"))

    @hookimpl
    def compression_levels(self, view: ModelView, modules: Mapping[str, nn.Module]) -> dict[str, list[Level]]:
        """Two levels of each; costs are of what belongs to no other of the modules."""
        if all(not list(module.children()) for module in modules.values()):
            return {}  # matrices alone: the model need not be tried
        sublayers, found = view.sublayers, {}
        for name in modules:
            if name in sublayers and not sublayers[name].refusal:
                kept = module_cost(view, name, without=modules)
                found[name] = [
                    Level("drop", "kept", kept),
                    Level("drop", "dropped", dict.fromkeys(kept, 0.0), skip=True),
                ]
        return found
