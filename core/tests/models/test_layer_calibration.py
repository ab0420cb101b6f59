"""Calibration a layer at a time: what the whole model hands on, and what changed layers hand on."""

from __future__ import annotations

import pytest
import torch
from paperhooks import DataError, ModelView
from paperhooks.models import InputMoments, calibrate, calibrate_by_layer
from paperhooks.testing import tiny_llama, tiny_text
from torch import nn

IDS = torch.tensor([[5, 6, 7, 8], [0, 0, 9, 10]])
BATCHES = [
    {"input_ids": IDS, "attention_mask": (IDS != 0).long()},
    {"input_ids": torch.tensor([[11, 12, 13]])},
]


def matrices(view: ModelView) -> list[str]:
    kinds = ("Linear", "Conv1D")
    return [n for n, m in view.modules(r".*(layers|h)\.\d+\..*") if type(m).__name__ in kinds]


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3", "gpt2", "gpt_neox", "mixtral", "phi3"])
def test_every_layer_reads_what_it_reads_in_the_model(family: str) -> None:
    view = ModelView.from_model(tiny_text(family, layers=3).train())
    names = matrices(view)
    whole, parts, order = InputMoments(), InputMoments(), []
    calibrate(view, BATCHES, names, whole.receive, progress=False)
    for sequential in (True, False):
        parts, order = InputMoments(), []
        for index, inside in calibrate_by_layer(
            view, BATCHES, names, parts.receive, sequential=sequential, progress=False
        ):
            order.append((index, inside))
            assert all(name in parts for name in inside), "received completely"
        assert [index for index, _ in order] == [0, 1, 2]
        assert [name for _, inside in order for name in inside] == names
        for name in names:
            torch.testing.assert_close(parts[name], whole[name], rtol=1e-5, atol=1e-5)
            assert parts.rows(name) == whole.rows(name)
    assert view.model.training


def test_later_layers_read_what_a_changed_layer_gives() -> None:
    """Layer after layer halved: each reads what it reads in a model whose earlier layers are halved."""
    model, old = tiny_llama(layers=3), tiny_llama(layers=3)
    view = ModelView.from_model(model)
    names = matrices(view)
    for index, inside in calibrate_by_layer(view, BATCHES, names, lambda *a: None, progress=False):
        reference = tiny_llama(layers=3)
        reference.load_state_dict(model.state_dict())
        moments, wanted = InputMoments(), InputMoments()
        for at, _ in calibrate_by_layer(view, BATCHES, inside, moments.receive, progress=False):
            if at == index:
                break
        calibrate(ModelView.from_model(reference), BATCHES, inside, wanted.receive, progress=False)
        for name in inside:
            torch.testing.assert_close(moments[name], wanted[name])
            model.get_submodule(name).weight.data.mul_(0.5)
    assert not torch.equal(model(IDS).logits, old(IDS).logits)


def test_sequential_says_which_weights_the_next_layer_sees() -> None:
    seen: dict[bool, dict[str, torch.Tensor]] = {}
    for sequential in (True, False):
        view, moments = ModelView.from_model(tiny_llama(layers=2)), InputMoments()
        for index, inside in calibrate_by_layer(
            view, BATCHES, matrices(view), moments.receive, sequential=sequential, progress=False
        ):
            if index == 0:
                for name in inside:
                    view.model.get_submodule(name).weight.data.zero_()
        seen[sequential] = dict(moments)
    first, second = "model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"
    assert torch.equal(seen[True][first], seen[False][first])
    assert not torch.allclose(seen[True][second], seen[False][second])


def test_routed_experts_are_received_too() -> None:
    view = ModelView.from_model(tiny_text("mixtral", layers=2))
    experts = [name for name, _ in view.modules(r".*mlp\.experts")]
    rows: dict[str, dict[str, int]] = {"whole": {}, "parts": {}}

    def counter(side: str):
        def count(name, experts, hidden, index, batch):
            rows[side][name] = rows[side].get(name, 0) + index.numel()

        return count

    options = {"routed": experts, "progress": False}
    calibrate(view, BATCHES, [], lambda *a: None, receive_routed=counter("whole"), **options)
    layers = list(calibrate_by_layer(view, BATCHES, [], lambda *a: None, receive_routed=counter("parts"), **options))
    assert [inside for _, inside in layers] == [[name] for name in experts]
    assert rows["parts"] == rows["whole"]


def test_what_is_in_no_layer_is_refused() -> None:
    view = ModelView.from_model(tiny_llama(layers=1))
    for batches, names, error, said in (
        (BATCHES, ["lm_head"], DataError, "lm_head is in no layer of the decoder"),
        (BATCHES, ["model.layers.0.mlp.up"], LookupError, "has no module"),
        ([], [], DataError, "give at least one"),
        ([{"input_ids": torch.tensor([[500]])}], [], DataError, "row 0 of calibration batch 0"),
    ):
        with pytest.raises(error, match=said):
            next(calibrate_by_layer(view, batches, names, lambda *a: None, progress=False))


def test_an_abandoned_calibration_leaves_no_hook() -> None:
    model = tiny_llama(layers=2)
    view = ModelView.from_model(model)
    calls: list[str] = []

    def note(name: str, module: nn.Module, hidden: torch.Tensor, batch: object) -> None:
        calls.append(name)

    for _ in calibrate_by_layer(view, BATCHES, matrices(view), note, progress=False):
        seen = len(calls)
        model(IDS)
        assert len(calls) == seen, "a call between the layers is not received"
        break
    assert not [m for m in model.modules() if m._forward_pre_hooks]
