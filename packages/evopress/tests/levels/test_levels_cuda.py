"""Levels of a model on a GPU: the bits of a level do not depend on those beside it, and values are those of the CPU."""

from __future__ import annotations

import pytest
import torch
from paperhooks import CompressionRequest, ModelView
from paperhooks.testing import tiny_text
from paperhooks_evopress.levels import GPTQ, SparseGPT
from torch import Tensor

pytestmark = pytest.mark.cuda


def values(method: GPTQ | SparseGPT, family: str, device: str) -> dict[tuple[str, str, str], Tensor]:
    view = ModelView.from_model(tiny_text(family, layers=2).to(device))
    data = [list(range(5, 60)), list(range(60, 90))]
    request = CompressionRequest("test", data=data, offers=[method.compression_levels], progress=False)
    levels = request.levels(view, [name for name, _ in view.modules(r".*(layers|h)\.\d+\..*")])
    return {
        (name, level.label, parameter): packed.unpack()
        for name, own in levels.items()
        for level in own
        for parameter, packed in levels.packed(name, level.label).items()
    }


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_levels_on_a_gpu(family: str) -> None:
    for all_of_them, one in (
        (GPTQ(widths=(2, 3, 4), group=12, calibration_width=None), GPTQ(widths=(4,), group=12, calibration_width=None)),
        (SparseGPT(sparsities=(0.3, 0.5, 0.7)), SparseGPT(sparsities=(0.7,))),
    ):
        there, here = values(all_of_them, family, "cuda"), values(all_of_them, family, "cpu")
        for key, alone in values(one, family, "cuda").items():
            assert torch.equal(alone, there[key])
        for key, found in there.items():
            assert found.is_cuda
            assert float(((found.cpu() - here[key]).abs() > 1e-3).float().mean()) < 0.02
