"""What is kept on a cache follows its rows and length, and a cache is not used without the method that filled it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from methods import Damp, KeepRows
from paperhooks import DataError, Traits, UnsupportedGeneration, attach, hookimpl
from paperhooks.compat import cache_parameter
from paperhooks.testing import tiny_llama
from torch import Tensor
from transformers import DynamicCache, StaticCache

PROMPTS = torch.tensor([[5, 6, 7, 8, 9, 10], [20, 21, 22, 23, 24, 25]])
STEP = torch.tensor([[30]])


@dataclass(eq=False)
class Shifted:
    """Text behind the first six tokens goes on at a position that depends on them, row by row."""

    traits = Traits(writes=frozenset({"positions"}), static_cache=True, beams=True)

    @hookimpl
    def pre_decoder(self, call, inputs):
        state = call.row_state("shifted", "positions behind the prompt are shifted")
        known = state.at(call.past_length, call.rows)
        if known is None:
            past = int(call.past_length)
            state.note(past, past + call.query_length, shift=call.input_ids.sum(1) % 7 + 1)
            return None
        ahead = torch.arange(call.query_length) + call.past_length
        return inputs.replace(position_ids=ahead + known["shift"][:, None])


def step(model: Any, ids: Tensor, cache: Any) -> Tensor:
    """Logits behind the last of ``ids`` over ``cache``: [B, V]."""
    with torch.no_grad():
        return model(input_ids=ids, **{cache_parameter(model.forward): cache}).logits[:, -1]


def filled(model: Any, ids: Tensor = PROMPTS) -> DynamicCache:
    """A cache that holds the prompts."""
    cache = DynamicCache(config=model.config)
    step(model, ids, cache)
    return cache


CHANGES: dict[str, tuple[Callable[[Any], Any], list[int]]] = {
    "reordered": (lambda c: c.reorder_cache(torch.tensor([1, 0])), [1, 0]),
    "selected": (lambda c: c.batch_select_indices(torch.tensor([1])), [1]),
    "selected twice": (lambda c: c.batch_select_indices(torch.tensor([0, 1, 0])), [0, 1, 0]),
    "repeated": (lambda c: c.batch_repeat_interleave(2), [0, 0, 1, 1]),
    "repeated by name": (lambda c: c.batch_repeat_interleave(repeats=2), [0, 0, 1, 1]),
    "selected, then repeated": (
        lambda c: (c.batch_select_indices(torch.tensor([1])), c.batch_repeat_interleave(2)),
        [1, 1],
    ),
}


@pytest.mark.parametrize("make", [Shifted, lambda: KeepRows(2), lambda: KeepRows(0)], ids=["rows", "tokens", "layer 0"])
@pytest.mark.parametrize("copied", [None, copy.deepcopy, copy.copy, lambda c: pickle.loads(pickle.dumps(c))])
@pytest.mark.parametrize("change", CHANGES)
def test_state_follows_every_change_of_rows(make, copied, change):
    model = tiny_llama()
    apply, order = CHANGES[change]
    with attach(model, make()):
        alone = [step(model, STEP, filled(model, PROMPTS[row : row + 1])) for row in range(2)]
        cache = filled(model)
        cache = cache if copied is None else copied(cache)
        apply(cache)
        together = step(model, STEP.expand(len(order), 1), cache)
    torch.testing.assert_close(together, torch.cat([alone[row] for row in order]), atol=1e-5, rtol=1e-4)


def test_a_copy_of_a_cache_goes_its_own_way():
    model = tiny_llama()
    with attach(model, Shifted()):
        cache = filled(model)
        twin = copy.deepcopy(cache)
        twin.batch_select_indices(torch.tensor([1]))
        expected = step(model, STEP.expand(2, 1), filled(model))
        torch.testing.assert_close(step(model, STEP.expand(2, 1), cache), expected)
        torch.testing.assert_close(step(model, STEP, twin), expected[1:])


def test_length_is_followed_to_the_token():
    model = tiny_llama()
    with attach(model, Shifted()):
        cache = filled(model)
        expected = step(model, STEP.expand(2, 1), copy.deepcopy(cache))
        step(model, torch.tensor([[7, 8, 9]]).expand(2, 3), cache)
        cache.crop(-3)  # behind what the state comes from
        torch.testing.assert_close(step(model, STEP.expand(2, 1), cache), expected)
        cache.crop(-3)  # into it
        with pytest.raises(DataError, match="cut back to 4 tokens, into an image that ends at 6"):
            step(model, STEP.expand(2, 1), cache)
        cache.crop(-cache.get_seq_length())  # emptied: a new prompt
        torch.testing.assert_close(step(model, PROMPTS, cache), step(model, PROMPTS, DynamicCache(config=model.config)))


def test_rows_changed_by_other_means_are_refused():
    model = tiny_llama()
    with attach(model, Shifted()):
        cache = filled(model)
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[:1], layer.values[:1]
        with pytest.raises(DataError, match="filled with 2 rows and is used with 1"):
            step(model, STEP, cache)


@pytest.mark.parametrize("kind", [DynamicCache, StaticCache])
def test_a_cache_that_needs_its_method_is_not_used_without(kind):
    model = tiny_llama()
    options = {"max_cache_len": 16} if kind is StaticCache else {}
    cache = kind(config=model.config, **options)
    with attach(model, Shifted()):
        step(model, PROMPTS, cache)
        inside = step(model, STEP.expand(2, 1), copy.deepcopy(cache))
    with pytest.raises(UnsupportedGeneration, match=r"filled while shifted.*positions behind the prompt are"):
        step(model, STEP.expand(2, 1), cache)
    with pytest.raises(UnsupportedGeneration, match="filled while shifted"), attach(model, Damp()):
        step(model, STEP.expand(2, 1), copy.deepcopy(cache))
    with attach(model, Shifted()):  # another session of the same method
        torch.testing.assert_close(step(model, STEP.expand(2, 1), cache), inside)


def test_a_cache_that_was_emptied_needs_no_method():
    model = tiny_llama()
    with attach(model, Shifted()):
        cache, cut = filled(model), filled(model)
    cache.reset()
    cut.crop(-6)
    for emptied in (cache, cut):
        torch.testing.assert_close(
            step(model, PROMPTS, emptied), step(model, PROMPTS, DynamicCache(config=model.config))
        )


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_a_selection_is_read_on_alone_where_that_is_right_and_refused_elsewhere(attn):
    model = tiny_llama(attn_implementation=attn)
    with attach(model, KeepRows(2)):
        cache = filled(model)
        inside = step(model, STEP.expand(2, 1), copy.deepcopy(cache))
        turn = copy.deepcopy(cache)
    if attn == "sdpa":  # a single token needs no mask there
        torch.testing.assert_close(step(model, STEP.expand(2, 1), cache), inside)
    else:
        with pytest.raises(UnsupportedGeneration, match="holds a selection of tokens"):
            step(model, STEP.expand(2, 1), cache)
    with pytest.raises(UnsupportedGeneration, match="holds a selection of tokens"):
        step(model, torch.tensor([[7, 8]]).expand(2, 2), turn)
    with pytest.raises(UnsupportedGeneration, match="holds a selection"), attach(model, Damp()):
        step(model, torch.tensor([[7, 8]]).expand(2, 2), turn)


def test_generate_behind_the_session_says_so():
    model = tiny_llama()
    with attach(model, Shifted()):
        cache = filled(model, PROMPTS[:1])
    with pytest.raises(UnsupportedGeneration, match="filled while shifted"):
        model.generate(torch.cat([PROMPTS[:1], STEP], 1), max_new_tokens=2, **{cache_parameter(model.forward): cache})


def test_beams_and_returned_sequences_have_the_state_of_their_prompt():
    model = tiny_llama()
    with attach(model, Shifted()):
        alone = [model.generate(PROMPTS[row : row + 1], num_beams=3, max_new_tokens=5) for row in range(2)]
        assert model.generate(PROMPTS, num_beams=3, max_new_tokens=5).tolist() == torch.cat(alone).tolist()
        several = model.generate(PROMPTS, num_beams=3, num_return_sequences=2, max_new_tokens=5)
        assert several[::2].tolist() == torch.cat(alone).tolist()


def test_state_made_without_a_cache_goes_over_to_the_one_that_comes_back():
    model = tiny_llama()
    with attach(model, Shifted()), torch.no_grad():
        out = model(PROMPTS, use_cache=True)
        cache = next(value for value in out.values() if isinstance(value, DynamicCache))
        expected = step(model, STEP.expand(2, 1), filled(model))
        torch.testing.assert_close(step(model, STEP.expand(2, 1), cache), expected)
    with pytest.raises(UnsupportedGeneration, match="filled while shifted"):
        step(model, STEP.expand(2, 1), cache)


@pytest.mark.parametrize("looks", [True, False], ids=["with layer hooks", "alone"])
def test_notes_of_a_sequence_reach_a_cache_that_the_decoder_makes(looks):
    @dataclass(eq=False)
    class Look:
        traits = Traits()

        @hookimpl
        def pre_attention(self, inputs):
            return None

    model = tiny_llama()
    with attach(model, Shifted(), *([Look()] if looks else [])), torch.no_grad():
        cache = next(value for value in model(PROMPTS, use_cache=True).values() if isinstance(value, DynamicCache))
        expected = step(model, STEP.expand(2, 1), filled(model))
        torch.testing.assert_close(step(model, STEP.expand(2, 1), cache), expected)


def test_a_bool_for_every_row_selects_rows_as_the_caches_layers_take_it():
    model = tiny_llama()
    with attach(model, Shifted()):
        alone = [step(model, STEP, filled(model, PROMPTS[row : row + 1])) for row in range(2)]
        for chosen in ([True, True], [False, True]):
            cache = filled(model)
            cache.batch_select_indices(torch.tensor(chosen))
            expected = torch.cat([logits for logits, take in zip(alone, chosen, strict=True) if take])
            torch.testing.assert_close(step(model, STEP.expand(sum(chosen), 1), cache), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_a_forward_that_ends_in_an_error_does_not_leave_its_cache_open(error):
    model = tiny_llama()

    def fail(*_):
        raise error

    with attach(model, Shifted()):
        cache = filled(model)
        handle = model.model.layers[3].register_forward_pre_hook(fail)
        with pytest.raises(error):
            step(model, STEP.expand(2, 1), cache)
        handle.remove()
    with pytest.raises(UnsupportedGeneration, match="filled while shifted"):
        step(model, STEP.expand(2, 1), cache)


def test_what_a_failed_forward_announced_is_forgotten():
    model = tiny_llama()

    def fail(*_):
        raise ZeroDivisionError

    with attach(model, KeepRows(2)):
        cache = filled(model)
        inside = step(model, PROMPTS, DynamicCache(config=model.config))
        handle = model.model.layers[2].self_attn.register_forward_pre_hook(fail)
        broken = DynamicCache(config=model.config)
        with pytest.raises(ZeroDivisionError):
            step(model, PROMPTS, broken)
        handle.remove()
        broken.crop(-6)
        torch.testing.assert_close(step(model, PROMPTS, broken), inside)
        step(model, STEP.expand(2, 1), cache)
