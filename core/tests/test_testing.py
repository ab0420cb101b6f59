"""The author's tools themselves: a fingerprint that sees every kind of trace, and the fixtures."""

from __future__ import annotations

import pytest
import torch
from paperhooks.testing import fingerprint, tiny_llama
from paperhooks.testing.fixtures import leaves_no_trace, text_model, vision_model  # noqa: F401


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.model.layers[0].register_forward_pre_hook(lambda *_: None),
        lambda m: m.model.layers[0].register_forward_hook(lambda *_: None),
        lambda m: setattr(m, "generate", lambda: None),
        lambda m: setattr(m.model.layers[0], "note", 1),
        lambda m: setattr(m.config, "rope_theta", 1.0),
        lambda m: m.lm_head.weight.data[0, 0].add_(1),
        lambda m: setattr(m.lm_head, "weight", torch.nn.Parameter(m.lm_head.weight.detach().clone())),
        lambda m: setattr(m.model.layers[0], "__class__", type("Other", (type(m.model.layers[0]),), {})),
        lambda m: m.double(),
    ],
    ids=["pre-hook", "hook", "attribute", "module attribute", "config", "bits", "identity", "class", "dtype"],
)
def test_the_fingerprint_sees(change):
    model = tiny_llama(layers=1)
    before = fingerprint(model)
    assert fingerprint(model) == before
    change(model)
    assert fingerprint(model) != before
    assert fingerprint(model).differences(before)


def test_negative_zero_and_nan_are_bits_too():
    model = tiny_llama(layers=1)
    model.lm_head.weight.data[0, :2] = torch.tensor([0.0, float("nan")])
    before = fingerprint(model)
    assert fingerprint(model) == before
    model.lm_head.weight.data[0, 0] = -0.0
    assert fingerprint(model).differences(before) == ["lm_head.weight:bits"]


def test_the_fixture_names_what_was_left_behind(text_model, vision_model, leaves_no_trace):  # noqa: F811
    with leaves_no_trace(vision_model):
        pass
    with pytest.raises(AssertionError, match=r"left behind: .*note"), leaves_no_trace(text_model):
        text_model.note = 1
