"""Decoders that call their layers in a way nobody knows: right, or refused by name; never idle, never wrong."""

from __future__ import annotations

import ast
import inspect
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from paperhooks import Traits, UnsupportedModel, attach, compat, hookimpl
from paperhooks.sessions import layer_check
from paperhooks.testing import cache_argument, tiny_llama, tiny_text
from transformers import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel

CACHE = cache_argument(tiny_llama())
LAYER_CACHE = compat.cache_parameter(LlamaDecoderLayer.forward)
RETURNED = next(each.name for each in fields(BaseModelOutputWithPast) if "Cache" in str(each.type))
IDS = torch.tensor([[5, 6, 7, 8, 9]])


# -- methods -----------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Entering:
    """Changes what a layer is called with, and counts its calls."""

    calls: int = 0
    traits = Traits()

    @hookimpl
    def pre_attention(self, site, call, inputs):
        self.calls += 1
        return inputs.replace(hidden_states=inputs.hidden_states * 1.5) if site.index == 2 else None


@dataclass(eq=False)
class Leaving:
    """Changes what a layer returns, and counts its calls."""

    calls: int = 0
    traits = Traits()

    @hookimpl
    def post_layer(self, site, call, hidden_states):
        self.calls += 1
        return hidden_states * 1.5 if site.index == 2 else None


@dataclass(eq=False)
class Before:
    """Changes the positions of the whole sequence, and counts its calls."""

    calls: int = 0
    traits = Traits(writes=frozenset({"positions"}))

    @hookimpl
    def pre_decoder(self, view, call, inputs):
        self.calls += 1
        past = call.past_length
        length = inputs.position_ids.shape[-1] if inputs.position_ids is not None else call.query_length
        return inputs.replace(position_ids=2 * torch.arange(past, past + length)[None])


class Quiet:
    """A method that only looks at the output of the layers."""

    traits = Traits()

    @hookimpl
    def post_layer(self, hidden_states):
        return None


METHODS = [Entering, Leaving, Before]


# -- decoders ----------------------------------------------------------------------------------------------------------


class Layer(LlamaDecoderLayer):
    """Hands its own names on to the stock layer."""

    def stock(self, hidden_states, attention_mask, position_embeddings, cache, **kwargs):
        given = {"attention_mask": attention_mask, "position_embeddings": position_embeddings, LAYER_CACHE: cache}
        return super().forward(hidden_states, **given, **kwargs)


class Annotated(Layer):
    """Takes the cache under an unknown name, but says by its annotation what it is."""

    def forward(
        self, hidden_states, attention_mask=None, memory: Cache | None = None, position_embeddings=None, **kwargs
    ):
        return self.stock(hidden_states, attention_mask, position_embeddings, memory, **kwargs)


class Unnamed(Layer):
    """Takes the cache among its keyword arguments."""

    def forward(self, hidden_states, attention_mask=None, position_embeddings=None, **kwargs):
        return self.stock(hidden_states, attention_mask, position_embeddings, kwargs.pop("memory", None), **kwargs)


class WithoutCache(Layer):
    """Finds the cache where its decoder has laid it."""

    memory = None

    def forward(self, hidden_states, attention_mask=None, position_embeddings=None, **kwargs):
        return self.stock(hidden_states, attention_mask, position_embeddings, self.memory, **kwargs)


class WithoutTables(Layer):
    """Finds its rotary tables where its decoder has laid them."""

    tables = None

    def forward(self, hidden_states, attention_mask=None, memory: Cache | None = None, **kwargs):
        return self.stock(hidden_states, attention_mask, self.tables, memory, **kwargs)


class MaskFirst(Layer):
    """Takes the hidden states second."""

    def forward(self, attention_mask, hidden_states, memory: Cache | None = None, position_embeddings=None, **kwargs):
        return self.stock(hidden_states, attention_mask, position_embeddings, memory, **kwargs)


class Decoder(LlamaModel):
    """Llama without padding, that hands its layers what each of them wants."""

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, inputs_embeds=None, **kwargs):
        cache = compat.find_cache(kwargs)
        kwargs = {name: value for name, value in kwargs.items() if not isinstance(value, Cache)}
        if cache is None and kwargs.get("use_cache"):
            cache = DynamicCache(config=self.config)
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        past = 0 if cache is None else cache.get_seq_length()
        if position_ids is None:
            position_ids = torch.arange(past, past + hidden.shape[1])[None]
        tables = self.rotary_emb(hidden, position_ids)
        for layer in self.layers:
            given: dict[str, Any] = {"attention_mask": None}
            if isinstance(layer, WithoutCache):
                layer.memory = cache
            else:
                given["memory"] = cache
            if isinstance(layer, WithoutTables):
                layer.tables = tables
            else:
                given["position_embeddings"] = tables
            kwargs.pop(LAYER_CACHE, None)
            first = () if isinstance(layer, MaskFirst) else (hidden,)
            given |= {"hidden_states": hidden} if not first else {}
            hidden = layer(*first, **given, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden), **{RETURNED: cache})


def strange(layer_class: type) -> Any:
    """A tiny Llama, the weights of ``tiny_llama()``, whose decoder and layers are of these classes."""
    model = tiny_llama()
    model.model.__class__ = Decoder
    for layer in model.model.layers:
        layer.__class__ = layer_class
    return model


def answers(model: Any, method: Any) -> list[torch.Tensor]:
    """Logits of a prompt and of two tokens after it, read through a cache under a method."""
    with attach(model, method), torch.no_grad():
        out = model(IDS, use_cache=True)
        given = {CACHE: compat.returned_cache(out)}
        return [out.logits, *(model(torch.tensor([[token]]), **given).logits for token in (11, 12))]


def refusal(model: Any, method: Any) -> str:
    """What the model is refused with under a method; empty when it is not."""
    try:
        answers(model, method)
    except UnsupportedModel as error:
        return str(error)
    return ""


# -- what must hold ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", METHODS)
def test_the_decoders_of_this_file_are_llama(make):
    """Without anything strange the results are those of the stock model, changed by the method."""
    stock, changed = answers(tiny_llama(), Quiet()), answers(tiny_llama(), make())
    assert all(not torch.allclose(a, b) for a, b in zip(stock, changed, strict=True))
    for layer_class in (Annotated, Unnamed, WithoutCache, WithoutTables, MaskFirst):
        model = strange(layer_class)
        with torch.no_grad():
            out = model(IDS, use_cache=True)
        torch.testing.assert_close(out.logits, stock[0])


@pytest.mark.parametrize("make", METHODS)
def test_a_cache_under_a_name_that_its_annotation_tells_works(make):
    method, expected = make(), answers(tiny_llama(), make())
    for got, want in zip(answers(strange(Annotated), method), expected, strict=True):
        torch.testing.assert_close(got, want)
    assert method.calls == 3 * (1 if make is Before else 4)


@pytest.mark.parametrize("layer_class", [Unnamed, WithoutCache, WithoutTables, MaskFirst])
@pytest.mark.parametrize("make", METHODS)
def test_what_cannot_be_known_is_right_or_refused(make, layer_class):
    """A method that needs nothing of what is strange may work; then its answers are right."""
    if found := refusal(strange(layer_class), make()):
        assert compat.version() in found
        return
    method, expected = make(), answers(tiny_llama(), make())
    for got, want in zip(answers(strange(layer_class), method), expected, strict=True):
        torch.testing.assert_close(got, want)
    assert method.calls == 3 * (1 if make is Before else 4)


@pytest.mark.parametrize(
    ("layer_class", "missing"),
    [
        (Unnamed, "a cache arrives as 'memory'"),
        (WithoutCache, "it returns a cache that it handed to none of its layers"),
        (WithoutTables, "the decoder has rotary positions, but hands none as"),
        (MaskFirst, "not hidden states"),
    ],
)
def test_a_method_that_looks_at_what_layers_are_called_with_is_refused_by_name(layer_class, missing):
    with pytest.raises(UnsupportedModel, match=missing) as caught:
        answers(strange(layer_class), Entering())
    assert compat.version() in str(caught.value)


def test_a_cache_that_the_model_gets_under_a_strange_name_is_refused():
    model = strange(Annotated)
    session = attach(model, Entering())
    with torch.no_grad(), pytest.raises(UnsupportedModel, match="arrives as 'memory'"):
        model.model(IDS, memory=DynamicCache(config=model.config))
    with pytest.warns(UserWarning, match="none of its hooks ever ran"):
        session.close()


def test_a_layer_without_its_cache_in_a_later_forward_is_refused():
    """The checks of the first forward have passed, without a cache."""
    model = strange(WithoutCache)
    with attach(model, Entering()), torch.no_grad():
        model(IDS, use_cache=False)
        with pytest.raises(UnsupportedModel, match="cache"):
            model(IDS, **{CACHE: DynamicCache(config=model.config)})


def test_the_checks_run_in_the_first_forward_only(monkeypatch):
    from paperhooks.sessions import torch_hooks as torchhooks

    counted = []

    def count(arguments, name):
        counted.append(name)
        return compat.strange_caches(arguments, name)

    for module in (torchhooks, layer_check):
        monkeypatch.setattr(module, "strange_caches", count)
    model = tiny_llama()
    with attach(model, Entering()), torch.no_grad():
        model(IDS)
        first = len(counted)
        for _ in range(3):
            model(IDS)
        model.generate(IDS, max_new_tokens=3, do_sample=False)
    assert 0 < first == len(counted)


# -- the door itself ---------------------------------------------------------------------------------------------------


def test_compat_imports_nothing_of_core_but_the_errors():
    found = set()
    for file in Path(inspect.getfile(compat)).parent.glob("*.py"):
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        found |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
        found |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        assert not [node for node in nodes if isinstance(node, ast.ImportFrom) and node.level]
    own = {name for name in found if name and name.partition(".")[0] == "paperhooks"}
    assert {name for name in own if not name.startswith("paperhooks.compat.")} == {"paperhooks.errors"}


def test_a_cache_is_found_under_every_name_it_has_had():
    cache = DynamicCache()
    for name in ("cache", "past_key_values", "past_key_value", "layer_past"):
        assert compat.find_cache({"input_ids": IDS, name: cache}, "cache") is cache
        given = {name: cache}
        compat.set_cache(given, "memory", cache)
        assert given == {"memory": cache}
    assert compat.find_cache({"memory": cache}) is None
    assert compat.strange_caches({"memory": cache, "cache": cache}, "cache") == ["memory"]


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gpt_neox"])
def test_every_decoder_takes_its_cache_under_a_known_name(family):
    model = tiny_text(family)
    layer = compat.find_layers(model.get_decoder())[0]
    for name in (cache_argument(model), compat.LayerCall.of(layer).cache):
        assert compat.find_cache({name: "found"}) == "found"
