"""What a receiver learns of modules that read one tensor, and of the experts of a mixture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from paperhooks.errors import UnsupportedModel
from paperhooks.models import CalibrationBatch, Experts, ModelView, SharedInputs, calibrate
from paperhooks.testing import tiny_text
from torch import Tensor, nn

BATCHES = [{"input_ids": torch.tensor([[5, 6, 7], [8, 9, 10]])}, {"input_ids": torch.tensor([[3, 4]])}]


def linears(view: ModelView) -> list[str]:
    return [name for name, module in view.modules(r".*layers\.\d+\..*") if isinstance(module, nn.Linear)]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_modules_that_read_one_tensor_are_told(family: str) -> None:
    view = ModelView.from_model(tiny_text(family, layers=2))
    told: list[dict[str, str]] = []
    made: dict[str, int] = {}

    def receive(name: str, module: nn.Module, hidden: Tensor, batch: CalibrationBatch) -> None:
        if name not in batch.readers:
            raise AssertionError("it is told before the module's input comes")
        if batch.readers[name] == name:
            made[name] = made.get(name, 0) + 1
        if name.endswith("down_proj") and "layers.1." in name:
            told.append(dict(batch.readers))

    calibrate(view, BATCHES, linears(view), receive, progress=False)
    assert len(told) == 2
    for readers in told:
        for name, first in readers.items():
            prefix, _, own = name.rpartition(".")
            expected = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}.get(own, own)
            assert first == f"{prefix}.{expected}"
    assert set(made.values()) == {2}
    assert len(made) == 8, "q, o, gate and down of two layers: four inputs a layer for seven matrices"


def test_an_input_that_was_written_to_is_another_one() -> None:
    seen = SharedInputs[int]()
    hidden = torch.randn(2, 3)
    seen.keep(hidden, 1)
    assert (seen.known(hidden), seen.known(hidden[:1]), seen.known(hidden.clone())) == (1, None, None)
    hidden += 1
    assert seen.known(hidden) is None
    for number in range(9):
        seen.keep(torch.randn(2, 3), number)
    seen.keep(hidden, 7)
    assert seen.known(hidden) == 7
    seen.clear()
    assert seen.known(hidden) is None


def mixtures(view: ModelView) -> list[str]:
    return [name for name, module in view.model.named_modules() if Experts.of(module) is not None]


def test_what_routed_experts_read_is_told() -> None:
    view = ModelView.from_model(tiny_text("mixtral", layers=2))
    names = mixtures(view)
    assert len(names) == 2
    rows: dict[str, list[int]] = {name: [] for name in names}

    def receive_routed(name: str, experts: Experts, hidden: Tensor, index: Tensor, batch: CalibrationBatch) -> None:
        assert len(hidden) == len(index) == batch.inputs["input_ids"].numel()
        read = {expert: (len(own), first.shape[0], last.shape[0]) for expert, own, first, last in
                experts.inputs(hidden, index)}  # fmt: skip
        assert all(len({*counts}) == 1 for counts in read.values())
        rows[name].append(sum(n for n, *_ in read.values()))

    calls = calibrate(view, BATCHES, [], _nobody, routed=names, receive_routed=receive_routed, progress=False)
    assert calls == dict.fromkeys(names, 2)
    each = next(iter(rows.values()))
    assert all(counts == each for counts in rows.values())
    assert each[0] / each[1] == 3, "six tokens, then two, each read by as many experts"


def _nobody(*told: Any) -> None:
    raise AssertionError("no module was asked for")


def test_errors_name_the_experts_and_what_holds_none_is_refused() -> None:
    view = ModelView.from_model(tiny_text("mixtral", layers=1))
    (name,) = mixtures(view)

    def breaks(*told: Any) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no") as caught:
        calibrate(view, BATCHES, [], _nobody, routed=[name], receive_routed=breaks, progress=False)
    assert caught.value.__notes__ == [f"paperhooks: raised on the input of {name} in calibration batch 0"]
    linear = linears(view)[0]
    with pytest.raises(UnsupportedModel, match=f"the experts of {linear} cannot be read"):
        calibrate(view, BATCHES, [], _nobody, routed=[linear], receive_routed=breaks, progress=False)
    assert not any(module._forward_pre_hooks for module in view.model.modules())
