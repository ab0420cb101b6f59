"""Calibration reads on an accelerator what it reads on the CPU."""

from __future__ import annotations

import torch
from paperhooks import ModelView
from paperhooks.models import calibrate
from paperhooks.testing import host_waits, tiny_text

pytest_plugins = ["paperhooks.testing.fixtures"]


def test_inputs_on_an_accelerator_are_those_on_the_cpu(emulated) -> None:
    ids = torch.arange(3, 15).reshape(2, 6)
    batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}, {"input_ids": ids + 20}]
    found = []
    for place in ("cpu", emulated):
        view, read = ModelView.from_model(tiny_text(layers=2).to(place)), []
        name = next(name for name, _ in view.modules(r".*layers\.1.*down_proj"))
        with host_waits() as waits:
            calibrate(view, batches, [name], lambda name, module, hidden, batch, read=read: read.append(hidden))
        assert {each.device for each in read} == {torch.device(place)}
        assert waits.total == waits.at("transformers/"), str(waits)
        found.append([each.cpu() for each in read])
    assert len(found[0]) == len(batches)
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
