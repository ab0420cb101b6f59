"""The contract of every method, for the schemes and their ablations, on the families the method is defined for."""

from __future__ import annotations

import pytest
from paperhooks.testing import MethodContract
from paperhooks_cca import CCA

pytestmark = pytest.mark.filterwarnings("ignore:cca. this model was not trained with CCA:UserWarning")


class TestConcentric(MethodContract):
    vision = True
    prefill_waits = 1

    def make(self):
        return CCA(grid=(2, 2))


class TestOneRow(TestConcentric):
    """A grid that is no square."""

    def make(self):
        return CCA(grid=(1, 4), scheme="manhattan")


class TestReverse(TestConcentric):
    def make(self):
        return CCA(grid=(2, 2), scheme="reverse")


class TestPositionsAlone(TestConcentric):
    def make(self):
        return CCA(grid=(2, 2), apply_mask=False)


class TestMaskAlone(TestConcentric):
    def make(self):
        return CCA(grid=(2, 2), apply_positions=False)


class TestTiles(TestConcentric):
    """Tiles of one image, each with rings of its own."""

    family = "llava_onevision"

    def make(self):
        return CCA(grid=(2, 2), tiles=True)


class TestInternVL(TestConcentric):
    family = "internvl"

    def make(self):
        return CCA(tiles=True)


class TestSmolVLM(TestInternVL):
    family = "smolvlm"


class TestIdefics3(TestInternVL):
    family = "idefics3"


class TestQwenMaskAlone(TestConcentric):
    """Multimodal rotary positions stay; the ring mask alone is applied."""

    family = "qwen2_vl"

    def make(self):
        return CCA(grid=(2, 2), apply_positions=False)


class TestQwen25MaskAlone(TestQwenMaskAlone):
    family = "qwen2_5_vl"
