"""PyramidDrop keeps the contract of every method, on several families and in both position modes."""

from __future__ import annotations

from paperhooks.testing import MethodContract
from paperhooks_pyramiddrop import PaperPyramidDrop, PyramidDrop

STAGES = {2: 0.5, 4: 0.25}


class TestPreserve(MethodContract):
    vision = True
    prefill_waits = 1
    recompute = False  # the last token of the prompt decides; a longer prompt decides anew

    def make(self):
        return PyramidDrop(stages=STAGES)


class TestRenumber(TestPreserve):
    def make(self):
        return PaperPyramidDrop(stages=STAGES)


class TestSegments(TestPreserve):
    def make(self):
        return PyramidDrop(stages=STAGES, scope="segment")


class TestQwen(TestPreserve):
    family = "qwen2_5_vl"


class TestInternVL(TestPreserve):
    family = "internvl"


class TestSmolVLM(TestPreserve):
    family = "smolvlm"
