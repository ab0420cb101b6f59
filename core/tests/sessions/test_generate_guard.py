"""Guards: undeclared generation modes are refused by name, declared ones pass."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from methods import EVERYTHING
from paperhooks import Traits, UnsupportedGeneration, attach, hookimpl
from paperhooks.compat import cache_parameter
from paperhooks.testing import tiny_llama
from transformers import DynamicCache, GenerationConfig, StaticCache

IDS = torch.tensor([[5, 6, 7, 8, 5, 6, 7]])
ASKED = {
    "beams": (
        {"num_beams": 2},
        r"strict does not support beam search \(num_beams=2\); detach it or leave num_b",
    ),
    "assisted": ({"prompt_lookup_num_tokens": 2}, r"assisted decoding \(prompt_lookup_num_tokens=2\)"),
    "static_cache": ({"cache_implementation": "static"}, r"preallocated cache \(cache_implementation='static'\)"),
    "chunked_prefill": ({"prefill_chunk_size": 4}, r"chunked prefill \(prefill_chunk_size=4\)"),
}


@dataclass(eq=False)
class Strict:
    traits = Traits()

    @hookimpl
    def post_layer(self, hidden_states):
        return None


@dataclass(eq=False)
class Free:
    traits = Traits(**EVERYTHING)

    @hookimpl
    def post_layer(self, hidden_states):
        return None


@dataclass(eq=False)
class LossOnly:
    traits = Traits(writes=frozenset({"objective"}))

    @hookimpl
    def loss_terms(self, context):
        return None


@pytest.mark.parametrize("mode", sorted(ASKED))
def test_undeclared_modes_are_refused_by_name(mode):
    model = tiny_llama()
    options, message = ASKED[mode]
    with attach(model, Strict()):
        with pytest.raises(UnsupportedGeneration, match=message):
            model.generate(IDS, max_new_tokens=2, **options)
        with pytest.raises(UnsupportedGeneration, match=message):
            model.generate(IDS, generation_config=GenerationConfig(max_new_tokens=2, **options))
        model.generate(IDS, max_new_tokens=2)
    assert "generate" not in vars(model)


@pytest.mark.parametrize("mode", sorted(ASKED))
def test_declared_modes_pass(mode):
    model = tiny_llama()
    plain = model.generate(IDS, max_new_tokens=3, do_sample=False, **ASKED[mode][0])
    with attach(model, Free()):
        assert model.generate(IDS, max_new_tokens=3, do_sample=False, **ASKED[mode][0]).tolist() == plain.tolist()


def test_the_methods_default_of_a_model_is_checked_too():
    model = tiny_llama()
    model.generation_config.num_beams = 3
    with attach(model, Strict()):
        with pytest.raises(UnsupportedGeneration, match="num_beams=3"):
            model.generate(IDS, max_new_tokens=2)
        model.generate(IDS, max_new_tokens=2, num_beams=1)


PLACES = ["argument", "config", "config by position", "the model's config", "the model's config under another"]


def asked_at(model, place, options):
    """``generate`` with settings that come from one of the places that transformers merges."""
    if place == "argument":
        return model.generate(IDS, max_new_tokens=3, **options)
    if place.startswith("config"):
        config = GenerationConfig(max_new_tokens=3, **options)
        return model.generate(IDS, config) if "position" in place else model.generate(IDS, generation_config=config)
    for name, value in options.items():
        setattr(model.generation_config, name, value)
    if place.endswith("another"):
        return model.generate(IDS, generation_config=GenerationConfig(max_new_tokens=3))
    return model.generate(IDS, max_new_tokens=3)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("mode", sorted(ASKED))
def test_a_mode_is_refused_wherever_it_is_asked_for(mode, place):
    model = tiny_llama()
    options, message = ASKED[mode]
    with attach(model, Strict()):
        with pytest.raises(UnsupportedGeneration, match=message) as error:
            asked_at(model, place, options)
        assert ("model.generation_config" in str(error.value)) == place.startswith("the model's")
        model.generation_config = GenerationConfig(pad_token_id=0)
        model.generate(IDS, max_new_tokens=2)


def test_what_the_caller_writes_wins_over_the_models_config():
    model = tiny_llama()
    model.generation_config.num_beams = 3
    with attach(model, Strict()):
        model.generate(IDS, generation_config=GenerationConfig(num_beams=1, max_new_tokens=2))
        model.generate(IDS, GenerationConfig(max_new_tokens=2), num_beams=1)


def test_a_cache_of_another_kind_is_refused():
    class Paged:
        def get_seq_length(self, layer=0):
            return 0

    model = tiny_llama()
    with attach(model, Strict()):
        with pytest.raises(UnsupportedGeneration, match="a Paged is no Cache of transformers"):
            model(IDS, **{cache_parameter(model.forward): Paged()})
        model(IDS)


def test_an_assistant_model_is_named_by_its_class():
    model, assistant = tiny_llama(), tiny_llama(layers=1)
    with attach(model, Strict()):
        with pytest.raises(UnsupportedGeneration, match=r"assistant_model=LlamaForCausalLM"):
            model.generate(IDS, max_new_tokens=2, assistant_model=assistant)
        model.generate(IDS, max_new_tokens=2)


def test_a_preallocated_cache_is_refused_at_the_call():
    model = tiny_llama()
    with attach(model, Strict()):
        with pytest.raises(UnsupportedGeneration, match="StaticCache"):
            model(IDS, **{cache_parameter(model.forward): StaticCache(config=model.config, max_cache_len=16)})
        model(IDS, **{cache_parameter(model.forward): DynamicCache(config=model.config)})


def test_methods_without_forward_hooks_restrict_nothing():
    model = tiny_llama()
    with attach(model, LossOnly()):
        assert model.generate(IDS, max_new_tokens=2, num_beams=2).shape == (1, 9)


def test_a_generate_of_the_users_own_is_called_and_put_back():
    model, calls = tiny_llama(), []

    def own(*args, **kwargs):
        calls.append(kwargs)
        return "own"

    model.generate = own
    with attach(model, Strict()) as session:
        assert model.generate(IDS, max_new_tokens=2) == "own"
        with pytest.raises(UnsupportedGeneration):
            model.generate(IDS, num_beams=2)
        session.view.model(IDS)
    assert model.generate is own
    assert len(calls) == 1
