"""What a method at the decoder's entry learns and keeps: padding, per-sequence state, calls without the head."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from paperhooks import DataError, ModelView, Traits, UnsupportedModel, attach, hookimpl, strip
from paperhooks.compat import returned_cache
from paperhooks.errors import ModelError
from paperhooks.testing import cache_argument, fingerprint, tiny_llama, tiny_vlm, vlm_inputs
from paperhooks.tokens.row_state import cache_states
from transformers import DynamicCache, StaticCache


@dataclass(eq=False)
class Counter:
    """Counts the forwards of a sequence on its cache, and notes the padding of each."""

    traits = Traits(static_cache=True, beams=True, assisted=True)

    def __post_init__(self) -> None:
        self.padding: list[torch.Tensor | None] = []
        self.prepared: list[bool] = []

    @hookimpl
    def pre_decoder(self, call, inputs):
        state = call.cache_state("counter")
        state["forwards"] = state.get("forwards", 0) + 1
        self.padding.append(call.padding_mask)
        self.prepared.append(call.mask_prepared)


CACHE = cache_argument(tiny_llama())
IDS = torch.tensor([[0, 0, 5, 6, 7], [8, 9, 10, 11, 12]])
MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])


@pytest.mark.parametrize("own", [True, False], ids=["cache given", "cache made by the decoder"])
def test_state_lives_on_the_cache_that_comes_back(own):
    model = tiny_llama()
    given = {CACHE: DynamicCache(config=model.config)} if own else {}
    with attach(model, Counter()), torch.no_grad():
        cache = returned_cache(model(IDS, attention_mask=MASK, use_cache=True, **given))
        assert cache_states(cache)["counter"] == {"forwards": 1}
        model(IDS[:, :1], **{CACHE: cache})
        assert cache_states(cache)["counter"] == {"forwards": 2}
        model(IDS, use_cache=False)
    assert cache_states(cache)["counter"] == {"forwards": 2}


def test_generate_tells_the_padding_from_which_it_made_a_mask_for_a_preallocated_cache():
    model, method = tiny_llama(), Counter()
    asked = {"cache_implementation": "static", "max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    model.generate(IDS, attention_mask=MASK, **asked)  # transformers notes the cache's length on the model
    before = fingerprint(model)
    with attach(model, method):
        model.generate(IDS, attention_mask=MASK, **asked)
    assert method.prepared == [True] * 3
    assert [m.shape[1] for m in method.padding] == [5, 6, 7]
    assert torch.equal(method.padding[0], MASK)
    assert fingerprint(model).differences(before) == []


def test_a_mask_of_the_callers_own_is_not_taken_for_one_that_generate_made():
    model, method = tiny_llama(), Counter()
    mask = torch.ones(2, 1, 5, 8, dtype=torch.bool).tril()
    with attach(model, method), torch.no_grad():
        cache = StaticCache(config=model.config, max_cache_len=8)
        model(IDS, attention_mask=mask, **{CACHE: cache})
        model(IDS[:, :1], attention_mask=torch.ones(2, 6), **{CACHE: cache})
    assert method.prepared == [False, False]
    assert method.padding[0] is None
    assert method.padding[1].shape == (2, 6)


def test_the_mask_maker_of_a_stripped_copy_is_its_own_again():
    import copy

    model = tiny_llama()
    with attach(model, Counter()):
        twin = copy.deepcopy(model)
    assert "create_masks_for_generate" in vars(twin)
    strip(twin)
    assert "create_masks_for_generate" not in vars(twin)
    assert "generate" not in vars(twin)


def test_the_model_without_its_head_runs_the_hooks_once():
    model, method = tiny_vlm("llava", layers=2), Counter()
    inputs = vlm_inputs(model, ((3, 16, 5),))
    with attach(model, method), torch.no_grad():
        hidden = model.model(**inputs).last_hidden_state
        assert len(method.padding) == 1
        assert torch.equal(model.lm_head(hidden), model(**inputs).logits)
        assert len(method.padding) == 2


def test_spans_by_mask_equal_spans_by_ids():
    model = tiny_vlm("llava", layers=2)
    view = ModelView.from_model(model)
    ids = vlm_inputs(model, ((3, 16, 5, 16, 2),))["input_ids"]
    assert view.image_side == 4
    assert view.image_spans(None, mask=ids == 95) == view.image_spans(ids)
    with pytest.raises(UnsupportedModel, match="needs input_ids"):
        view.image_spans(None)


def test_multimodal_rotary_positions_are_told_apart():
    assert ModelView.from_model(tiny_vlm("qwen2_vl", layers=2)).multimodal_rotary
    assert not ModelView.from_model(tiny_vlm("llava", layers=2)).multimodal_rotary


def test_what_is_wrong_with_a_value_is_a_value_error():
    assert issubclass(ModelError, ValueError)
    assert issubclass(DataError, ValueError)
