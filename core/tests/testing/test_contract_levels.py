"""The contract of levels: methods that keep it pass, and each fault that is planted is found."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from compression_methods import Halve, LeaveOut, Magnitude, Nearest
from paperhooks import Traits, hookimpl
from paperhooks.testing import LevelsContract, tiny_text
from paperhooks.weights import Dense


class TestMagnitude(LevelsContract):
    def make(self):
        return Magnitude()


class TestNearest(LevelsContract):
    def make(self):
        return Nearest()


class TestLeaveOut(LevelsContract):
    modules = r"model\.layers\.\d+(\.(self_attn|mlp))?"

    def make(self):
        return LeaveOut()


@dataclass(eq=False)
class Planted:
    """Nearest, with one fault."""

    fault: str
    traits = Traits()

    @hookimpl
    def compression_levels(self, modules):
        found = Nearest(widths=(3, 4)).compression_levels(modules)
        if self.fault == "none":
            return {}
        if self.fault == "draws":
            torch.rand(1)
        if self.fault == "edits":
            next(iter(modules.values())).weight.data[0, 0] += 1
        changed = {"bytes": self._dear, "random": self._random, "infinite": self._infinite}.get(self.fault)
        return {name: [changed(one) if changed else one for one in own] for name, own in found.items()}

    def _dear(self, level):
        return replace(level, cost={**level.cost, "bytes": level.cost["bytes"] + 1})

    def _random(self, level):
        def noisy():
            values = level.prepare()["weight"].unpack()
            return {
                "weight": Dense(values + torch.rand(values.shape, generator=torch.Generator().manual_seed(next(SEEDS))))
            }

        return replace(level, prepare=noisy, cost={})

    def _infinite(self, level):
        def infinite():
            return {"weight": Dense(level.prepare()["weight"].unpack() / 0.0)}

        return replace(level, prepare=infinite, cost={})


SEEDS = iter(range(10**6))


def contract(fault: str) -> LevelsContract:
    checks = LevelsContract()
    checks.make = partial(Planted, fault)  # type: ignore[method-assign]
    return checks


@pytest.mark.parametrize(
    ("fault", "check", "said"),
    [
        ("none", "test_costs_are_the_exact_bytes", "offers no level for any of"),
        ("draws", "test_offering_leaves_the_model_as_it_was", "drew from the global random state"),
        ("edits", "test_offering_leaves_the_model_as_it_was", "offering levels changed the model"),
        ("bytes", "test_costs_are_the_exact_bytes", r"costs \d+ bytes, and its values take \d+"),
        ("random", "test_values_are_those_of_the_level_wherever_the_model_stands", "depends on where the model stood"),
        ("infinite", "test_values_are_those_of_the_level_wherever_the_model_stands", "is not finite"),
    ],
)
def test_faults_are_found(fault: str, check: str, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        getattr(contract(fault), check)()


def test_levels_that_cost_no_bytes_are_found() -> None:
    checks = LevelsContract()
    checks.make = Halve  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match="costs None bytes"):
        checks.test_costs_are_the_exact_bytes()
    with pytest.raises(NotImplementedError, match="must define make"):
        LevelsContract().make()


@dataclass(eq=False)
class WithBias(Nearest):
    """Counts the bias that its levels leave as it is."""

    @hookimpl
    def compression_levels(self, modules):
        found = super().compression_levels(modules)
        biases = {n: 0 if m.bias is None else m.bias.numel() * m.bias.element_size() for n, m in modules.items()}
        return {
            name: [replace(each, cost={**each.cost, "bytes": each.cost["bytes"] + biases[name]}) for each in own]
            for name, own in found.items()
        }


class TestWithBias(LevelsContract):
    def make(self):
        return WithBias()

    def model(self):
        return tiny_text("llama", layers=2, attention_bias=True, mlp_bias=True)
