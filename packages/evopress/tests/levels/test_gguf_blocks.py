"""Values of GGUF's block types: those that the reader of such files computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from paperhooks import CompressionRequest, DataError, ModelView
from paperhooks.testing import tiny_llama
from paperhooks.weights import Quantised
from paperhooks_evopress.levels import Gguf
from paperhooks_evopress.levels.gguf import TYPES
from torch import Tensor

NAME = "model.layers.0.mlp.up_proj"


def packed(weight: Tensor, kind: str) -> Quantised:
    model = tiny_llama(layers=1)
    module = model.get_submodule(NAME)
    module.weight = torch.nn.Parameter(weight)
    module.in_features = weight.shape[1]
    request = CompressionRequest("test", offers=[Gguf(types=(kind,)).compression_levels], progress=False)
    found = request.levels(ModelView.from_model(model), [NAME]).packed(NAME, kind)["weight"]
    assert isinstance(found, Quantised)
    return found


def weights(dtype: torch.dtype) -> Tensor:
    found = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    found[1] = 0
    found[2] = 0.7
    found[3] = found[3].abs()
    found[4] *= 1e-6
    found[5, :32] *= 1e3
    return found.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", TYPES)
def test_a_file_holds_the_values(kind: str, dtype: torch.dtype) -> None:
    """Written as blocks of the type from codes, scales and zeros, and read back by ``gguf``."""
    quants = pytest.importorskip("gguf.quants")
    constants = pytest.importorskip("gguf.constants")
    found = packed(weights(dtype), kind)
    scales = found.scales.float().flatten()
    zeros, codes = found.zeros.int().flatten(), found.codes().view(-1, 32).numpy()
    half = scales.half()
    assert torch.equal(half.float(), scales)
    offset = -scales * zeros
    parts = [half.numpy()[:, None].view(np.uint8)]
    if kind.endswith("_1"):
        assert torch.equal(offset.half().float(), offset)
        parts.append(offset.half().numpy()[:, None].view(np.uint8))
    if kind == "Q8_0":
        parts.append((codes.astype(np.int16) - 128).astype(np.int8).view(np.uint8))
    else:
        if TYPES[kind] == 5:
            parts.append(np.packbits(codes >> 4, axis=1, bitorder="little"))
        low = codes & 15
        parts.append(low[:, :16] | (low[:, 16:] << 4))
    read = quants.dequantize(np.concatenate(parts, axis=1).reshape(6, -1), constants.GGMLQuantizationType[kind])
    exact = (found.codes().view(-1, 32).float() - zeros[:, None]) * scales[:, None]
    assert np.array_equal(read.reshape(-1, 32), exact.numpy())
    assert torch.equal(found.unpack(), exact.view(6, 64).to(dtype))


@pytest.mark.parametrize("kind", TYPES)
def test_values_are_near(kind: str) -> None:
    weight = weights(torch.float32)
    found = packed(weight, kind).unpack()
    blocks = weight.view(-1, 32)
    step = blocks.abs().amax(1) / {"Q4_0": 8, "Q4_1": 7.5, "Q5_0": 16, "Q5_1": 15.5, "Q8_0": 127}[kind]
    if kind.endswith("_1"):
        step = (blocks.amax(1).clamp(min=0) - blocks.amin(1).clamp(max=0)) / (2 ** TYPES[kind] - 1)
    # The largest value of the other sign has no code in the centred types: a whole step.
    slack = 1.01 if kind in ("Q4_0", "Q5_0") else 0.75
    error = (found.view(-1, 32) - blocks).abs().amax(1)
    assert bool((error <= slack * step + 2.0**-24 * 128).all())
    assert torch.equal(found[1], torch.zeros(64))


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_0", "Q8_0"])
def test_values_of_the_writer_of_gguf(kind: str) -> None:
    quants = pytest.importorskip("gguf.quants")
    constants = pytest.importorskip("gguf.constants")
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
    chosen = constants.GGMLQuantizationType[kind]
    golden = torch.from_numpy(quants.dequantize(quants.quantize(weight.numpy(), chosen), chosen))
    found = packed(weight, kind)
    assert float((found.unpack() != golden).float().mean()) < 0.02  # it divides by the scale before that is rounded
    torch.testing.assert_close(found.unpack(), golden, rtol=0, atol=1.01 * float(found.scales.abs().max()))


def test_weights_too_large_for_half_precision_are_refused() -> None:
    with pytest.raises(DataError, match="too large for scales of half precision"):
        packed(torch.full((2, 32), 1e8), "Q8_0")
