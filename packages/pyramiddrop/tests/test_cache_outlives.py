"""A cache filled while dropping, used after the session, in another one, or under other positions: right or refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from paperhooks import PluginConflict, UnsupportedGeneration, attach
from paperhooks.compat import cache_parameter, dynamic_cache
from paperhooks.testing import tiny_vlm, vlm_inputs
from paperhooks_pyramiddrop import PaperPyramidDrop, PyramidDrop
from torch import Tensor

STAGES = {2: 0.5, 4: 0.25}
STEP = torch.tensor([[7]])


def read(model: Any, cache: Any, **inputs: Any) -> Tensor:
    with torch.no_grad():
        return model(**inputs, **{cache_parameter(model.forward): cache}).logits[:, -1]


def prompt(model: Any, method: Any) -> tuple[Any, Tensor]:
    """A cache that holds a prompt read under ``method``, and the logits of the next token inside the session."""
    cache = dynamic_cache(model)
    with attach(model, method):
        read(model, cache, **vlm_inputs(model, ((3, 16, 9),)))
        inside = read(model, copy.deepcopy(cache), input_ids=STEP)
    return cache, inside


def test_preserved_positions_are_read_on_alone_token_by_token() -> None:
    model = tiny_vlm("llava")
    cache, inside = prompt(model, PyramidDrop(stages=STAGES))
    torch.testing.assert_close(read(model, cache, input_ids=STEP), inside)
    with pytest.raises(UnsupportedGeneration, match="holds a selection of tokens"):
        read(model, cache, input_ids=STEP.expand(1, 3))


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_renumbered_positions_need_the_method(attn: str) -> None:
    model = tiny_vlm("llava", attn_implementation=attn)
    cache, inside = prompt(model, PaperPyramidDrop(stages=STAGES))
    with pytest.raises(UnsupportedGeneration, match=r"renumbered positions from layer 2 on was.*counts positions on"):
        read(model, copy.deepcopy(cache), input_ids=STEP)
    with pytest.raises(UnsupportedGeneration, match="renumbered positions"), attach(model, PyramidDrop(stages=STAGES)):
        read(model, copy.deepcopy(cache), input_ids=STEP)
    with attach(model, PaperPyramidDrop(stages=STAGES)):
        torch.testing.assert_close(read(model, cache, input_ids=STEP), inside)


def test_renumbered_positions_are_counted_on_from_the_same_layer() -> None:
    model = tiny_vlm("llava")
    cache, inside = prompt(model, PaperPyramidDrop(stages=STAGES))
    for stages in ({3: 0.5}, {4: 0.25}):
        method = PaperPyramidDrop(stages=stages)
        with pytest.raises(UnsupportedGeneration, match="were not renumbered from layer"), attach(model, method):
            read(model, copy.deepcopy(cache), input_ids=STEP)
    with attach(model, PaperPyramidDrop(stages={2: 0.9, 5: 0.1})):  # counts on from the same layer
        torch.testing.assert_close(read(model, cache, input_ids=STEP), inside)


@pytest.mark.parametrize("stages", [({4: 0.5}, {2: 0.25}), ({4: 0.25}, {4: 0.125}), ({2: 0.5}, {4: 0.25})])
def test_renumbering_behind_another_method_that_drops(stages: Any) -> None:
    """Layers that lost different numbers of tokens have tables of their own, in decoding too."""
    model = tiny_vlm("llava")
    inputs = [vlm_inputs(model, ((3, 16, 9), (5, 16, 4))) for _ in range(2)]
    options = {"max_new_tokens": 8, "do_sample": False, "suppress_tokens": [95]}
    first, then = PyramidDrop(stages=stages[0]), PaperPyramidDrop(stages=stages[1])
    with attach(model, first, then):
        expected = model.generate(**inputs[0], use_cache=False, **options)
        assert model.generate(**inputs[1], **options).tolist() == expected.tolist()


def test_dropping_where_positions_were_counted_already_is_refused() -> None:
    model = tiny_vlm("llava")
    with pytest.raises(PluginConflict, match=r"pyramiddrop drops tokens at layer 4 after pyramiddrop/paper .* last"):
        attach(model, PaperPyramidDrop(stages={2: 0.5}), PyramidDrop(stages={4: 0.25}))
    with attach(model, PaperPyramidDrop(stages={3: 0.5}), PyramidDrop(stages={2: 0.25})):
        model(**vlm_inputs(model, ((3, 16, 9),)))


@pytest.mark.parametrize("kind", [PyramidDrop, PaperPyramidDrop])
@pytest.mark.parametrize("place", ["argument", "the model's config"])
def test_generating_without_a_cache_ranks_by_the_prompts_end(kind: Any, place: str) -> None:
    """Every step computes all anew; what was generated meanwhile must not choose the tokens."""
    model = tiny_vlm("llava")
    inputs = [vlm_inputs(model, ((3, 16, 9), (5, 16, 4))) for _ in range(2)]
    options = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": [95]}  # no further images
    with attach(model, kind(stages=STAGES)):
        expected = model.generate(**inputs[0], **options)
        if place == "argument":
            options["use_cache"] = False
        else:
            model.generation_config.use_cache = False
        assert model.generate(**inputs[1], **options).tolist() == expected.tolist()


def test_preserved_positions_are_not_counted_anew() -> None:
    model = tiny_vlm("llava")
    cache, _ = prompt(model, PyramidDrop(stages=STAGES))
    with attach(model, PaperPyramidDrop(stages=STAGES)):
        with pytest.raises(UnsupportedGeneration, match=r"were not renumbered from layer 2 on \(positions='preserve'"):
            read(model, cache, input_ids=STEP)
        read(model, dynamic_cache(model), **vlm_inputs(model, ((3, 16, 9),)))
