"""Second moments of inputs: what a product of the rows gives, shared where the input is."""

from __future__ import annotations

import pytest
import torch
from paperhooks import DataError, ModelView
from paperhooks.errors import UnsupportedModel
from paperhooks.models import CalibrationBatch, InputMoments, calibrate
from paperhooks.testing import tiny_llama, tiny_text
from torch import nn


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "mixtral"])
def test_moments_are_the_products_of_what_is_read(family: str) -> None:
    """With padding left out, over two batches; one sum for q, k and v, another for gate and up."""
    model = tiny_text(family, layers=2)
    view = ModelView.from_model(model)
    names = [n for n, m in view.modules(r".*layers\.\d+\..*|.*h\.\d+\..*") if type(m).__name__ in ("Linear", "Conv1D")]
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    batches = [{"input_ids": torch.tensor([[5, 6, 7, 8], [0, 0, 9, 10]]), "attention_mask": mask},
               {"input_ids": torch.tensor([[11, 12, 13]])}]  # fmt: skip
    wanted: dict[str, torch.Tensor] = {}

    def collect(name: str, module: nn.Module, hidden: torch.Tensor, batch: CalibrationBatch) -> None:
        rows = hidden[batch.mask] if batch.mask is not None else hidden.flatten(0, -2)
        wanted[name] = wanted.get(name, 0) + rows.double().T @ rows.double()

    calibrate(view, batches, names, collect, progress=False)
    moments = InputMoments()
    calibrate(view, batches, names, moments.receive, progress=False)
    assert list(moments) == names
    for name in names:
        assert moments[name].dtype == torch.float32
        torch.testing.assert_close(moments[name].double(), wanted[name], rtol=1e-5, atol=1e-5)
        assert torch.equal(moments[name], moments[name].T)
        assert moments.rows(name) == 9
    if family == "llama":
        assert len(set(moments.readers.values())) == 8
        assert moments.readers["model.layers.1.self_attn.v_proj"] == "model.layers.1.self_attn.q_proj"
        assert moments.nbytes == 2 * 4 * (3 * 32**2 + 64**2)


@pytest.mark.parametrize("width", [1, 63, 64, 65, 130, 257])
def test_widths_that_no_block_divides(width: int) -> None:
    rows, moments = torch.randn(5, width, generator=torch.Generator().manual_seed(0)), InputMoments()
    moments.receive("a", nn.Identity(), rows, CalibrationBatch(0, {}, None))
    torch.testing.assert_close(moments["a"], rows.T @ rows)
    twice = rows.double()
    moments.receive("b", nn.Identity(), twice, CalibrationBatch(0, {}, None))
    assert moments["b"].dtype == torch.float64


def test_what_cannot_be_told_is_refused() -> None:
    moments, rows = InputMoments(), torch.ones(2, 3)
    moments.receive("a", nn.Identity(), rows, CalibrationBatch(0, {}, None, {"a": "a"}))
    moments.receive("b", nn.Identity(), rows, CalibrationBatch(0, {}, None, {"a": "a", "b": "a"}))
    with pytest.raises(UnsupportedModel, match="b reads the same tensor as a in one batch and as b in another"):
        moments.receive("b", nn.Identity(), rows, CalibrationBatch(1, {}, None, {"a": "a", "b": "b"}))
    with pytest.raises(DataError, match="no input of 'aa' was read; did you mean 'a'"):
        moments["aa"]


def test_half_precision_is_summed_in_full() -> None:
    model = tiny_llama(layers=1).bfloat16()
    name = "model.layers.0.mlp.down_proj"
    moments = InputMoments()
    calibrate(
        ModelView.from_model(model), [{"input_ids": torch.tensor([[5, 6]])}], [name], moments.receive, progress=False
    )
    assert moments[name].dtype == torch.float32
