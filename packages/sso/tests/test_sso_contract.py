"""The objective keeps the contracts of methods and of losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from paperhooks.testing import LossContract, MethodContract
from paperhooks_sso import SSO
from sso_models import drawn_pairs, tiny


class Pairs(LossContract):
    """What all layouts have in common."""

    layout = "group"
    options: dict[str, Any] = {}

    def make(self) -> SSO:
        return SSO(**{"reference": tiny("reference"), **self.options})

    def model(self) -> Any:
        return tiny()

    def batch(self, numbers: Sequence[int]) -> dict[str, Any]:
        pairs = drawn_pairs()
        return SSO(**self.options).collator(layout=self.layout)([pairs[number] for number in numbers])

    def others(self, method: SSO) -> Sequence[torch.nn.Module]:
        return [] if method.reference is None else [method.reference]


class TestGroupLayout(Pairs):
    pass


class TestJointLayout(Pairs):
    layout = "joint"


class TestSharedLayout(Pairs):
    layout = "shared"


class TestFlatLayout(Pairs):
    layout = "flat"


class TestLowMemory(Pairs):
    options = {"low_memory": True}


class TestSharedLowMemory(Pairs):
    layout = "shared"
    options = {"low_memory": True, "preset": "v2"}


class TestSecondVersion(Pairs):
    options = {"preset": "v2"}


class TestWithoutReference(Pairs):
    options = {"preset": None, "loss": "simpo", "beta": 2.0, "gamma": 0.1, "reference": None}


class TestSSOContract(MethodContract):
    changes_outputs = False

    def make(self) -> SSO:
        return SSO(None, loss="simpo", beta=2.0)
