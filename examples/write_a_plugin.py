"""Write a plugin: a method with options and checks, offered by name, held to the contract that every method keeps.

python examples/write_a_plugin.py

To ship a method as a package of its own, let ``paperhooks new NAME`` write the project.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import paperhooks
import pytest
from paperhooks import PluginInfo, Traits, UnsupportedModel, hookimpl
from paperhooks.io import number, whole
from paperhooks.plugins import catalog
from paperhooks.testing import MethodContract, tiny_llama


@dataclass(eq=False)
class Damp:
    """Scale what deep layers return: h' = factor * h from layer ``first_layer`` on.

    Raises ValueError for an option that cannot be meant; it names the option, its value and what is expected.
    """

    factor: float = 0.9
    first_layer: int = 2
    traits = Traits(training=True, beams=True, assisted=True, static_cache=True, chunked_prefill=True)

    def __post_init__(self) -> None:
        self.factor = number("factor", self.factor, above=0)
        self.first_layer = whole("first_layer", self.first_layer, at_least=0)

    @hookimpl
    def setup(self, view):
        if self.first_layer >= len(view.layers):
            raise UnsupportedModel(f"first_layer={self.first_layer}, but the model has {len(view.layers)} layers")

    @hookimpl
    def post_layer(self, site, hidden_states):
        return hidden_states * self.factor if site.index >= self.first_layer else None


class TestDamp(MethodContract):
    """Undo is exact, a batch equals its rows, cached decoding equals recomputing, undeclared modes are refused, ..."""

    def make(self) -> Damp:
        return Damp()


def main() -> None:
    """Offer the method in this process, use it by name, and run the contract on it."""
    info = PluginInfo(name="damp", api=1, summary="Scales deep layers.", methods={"damp": f"{__name__}:Damp"})
    remove = catalog().register(info)
    with paperhooks.attach(tiny_llama(), catalog().create_method("damp", factor=0.5)) as session:
        print(session.describe())
        session.view.model.generate(max_new_tokens=3, do_sample=False)
    remove()
    sys.exit(pytest.main([__file__, "-q", "-p", "no:cacheprovider", "-o", "addopts="]))


if __name__ == "__main__":
    main()
