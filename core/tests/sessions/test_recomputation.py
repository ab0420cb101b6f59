"""Layers that a checkpoint computes again in the backward pass: hooks run once, and gradients are those without."""

from __future__ import annotations

import gc
import itertools
import weakref
from dataclasses import dataclass, field

import pytest
import torch
from methods import Damp, Observer
from paperhooks import HookError, Traits, UnsupportedModel, attach, compat, hookimpl
from paperhooks.hooks import compat as checkpoints
from paperhooks.testing import tiny_llama
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
    offload_wrapper,
)
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from transformers.modeling_layers import GradientCheckpointingLayer

KINDS = {True: CheckpointImpl.REENTRANT, False: CheckpointImpl.NO_REENTRANT}
IDS = torch.arange(3, 15).view(2, 6).repeat(1, 2)


@dataclass(eq=False)
class Noisy:
    """Adds noise of a generator of its own, before attention and behind the layer."""

    traits = Traits(training=True)

    def __post_init__(self):
        self.generator = torch.Generator().manual_seed(0)

    def noise(self, like):
        return torch.randn(like.shape, generator=self.generator) * 0.1

    @hookimpl
    def pre_attention(self, site, call, inputs):
        return inputs.replace(hidden_states=inputs.hidden_states + self.noise(inputs.hidden_states).tanh())

    @hookimpl
    def post_layer(self, site, call, hidden_states):
        return hidden_states * (1 + self.noise(hidden_states))


@dataclass(eq=False)
class Learned:
    """Scales hidden states and rotary tables by parameters of its own."""

    traits = Traits(training=True, writes=frozenset({"positions"}))

    def __post_init__(self):
        self.scale = torch.nn.Parameter(torch.full((2,), 0.8))

    @hookimpl
    def pre_attention(self, site, call, inputs):
        tables = tuple(table * self.scale[1] for table in inputs.position_embeddings)
        return inputs.replace(hidden_states=inputs.hidden_states * self.scale[0], position_embeddings=tables)


@dataclass(eq=False)
class Dice:
    """Goes on with half of the tokens: those with the largest norm in one layer, any in the other."""

    traits = Traits(training=True, writes=frozenset({"tokens"}), layers=lambda site: site.index in (1, 3))

    def __post_init__(self):
        self.generator = torch.Generator().manual_seed(0)

    @hookimpl
    def pre_attention(self, site, call, inputs):
        batch, length = inputs.hidden_states.shape[:2]
        scores = torch.rand(batch, length, generator=self.generator)
        if site.index == 1:  # with gradient: an author need not think of it
            scores = inputs.hidden_states.pow(2).mean(-1).sqrt()
        return inputs.select(scores.topk(length // 2).indices.sort().values)


@dataclass(eq=False)
class Skip:
    """Carries the hidden states of one layer to a later one."""

    traits = Traits(training=True)

    @hookimpl
    def pre_attention(self, site, call, inputs):
        state = call.state(self)
        if site.index == 1:
            state["from"] = inputs.hidden_states
        if site.index == 3:
            return inputs.replace(hidden_states=inputs.hidden_states + state["from"])
        return None


@dataclass(eq=False)
class CountingState:
    """Scales by how often it was called in this forward."""

    seen: list[int] = field(default_factory=list)
    traits = Traits(training=True)

    @hookimpl
    def post_layer(self, site, call, hidden_states):
        state = call.state(self)
        state["count"] = state.get("count", 0) + 1
        self.seen.append(site.index)
        return hidden_states / state["count"]


METHODS = {
    "noise": Noisy,
    "learned": Learned,
    "dice": Dice,
    "skip": Skip,
    "counted": CountingState,
    "damp": Damp,
    "several": lambda: (Noisy(), Dice(), Learned()),
}


def model_of(**options):
    model = tiny_llama(layers=5, **options).train()
    model.config.use_cache = False
    return model


def backward(model, **inputs):
    """Three steps' worth of randomness: the gradients of the second of two forwards."""
    for _ in range(2):
        model.zero_grad(set_to_none=True)
        labels = IDS.clone()
        model(IDS, labels=labels, **inputs).loss.backward()
    named = ((name.replace("_checkpoint_wrapped_module.", ""), p) for name, p in model.named_parameters())
    return {name: p.grad for name, p in named}


def attached(model, made):
    return attach(model, *(made if isinstance(made, tuple) else (made,)))


def own(made):
    return [m.scale.grad for m in (made if isinstance(made, tuple) else (made,)) if hasattr(m, "scale")]


def wrap(model, *kinds, check=None, **options):
    layers = compat.find_layers(model.get_decoder())
    for kind in kinds:
        apply_activation_checkpointing(
            model,
            checkpoint_wrapper_fn=lambda m, kind=kind: checkpoint_wrapper(m, checkpoint_impl=KINDS[kind], **options),
            check_fn=lambda m: m in layers,
        )
    if True in kinds:
        model.enable_input_require_grads()


def assert_equal(got, expected):
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, atol=1e-6, rtol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


KINDS_IN_KINDS = [(False, False), (False, True), (True, False), (True, True)]


@pytest.mark.parametrize("first", ["attached first", "wrapped first"])
@pytest.mark.parametrize(
    ("name", "kinds"),
    [*itertools.product(METHODS, [(False,), (True,)]), *itertools.product(["several", "skip"], KINDS_IN_KINDS)],
    ids=lambda value: value if isinstance(value, str) else "-in-".join("reentrant" if k else "not" for k in value),
)
def test_gradients_equal_those_without_a_checkpoint(name, kinds, first):
    model, plain = model_of(), METHODS[name]()
    with attached(model, plain):
        expected = backward(model)
    model, made = model_of(), METHODS[name]()
    if first == "wrapped first":
        wrap(model, *kinds)
    with attached(model, made):
        if first == "attached first":
            wrap(model, *kinds)
        assert_equal(backward(model), expected)
    for got, gradient in zip(own(made), own(plain), strict=True):
        torch.testing.assert_close(got, gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_gradients_equal_under_the_checkpointing_of_transformers(name, reentrant):
    model = model_of()
    with attached(model, METHODS[name]()):
        expected = backward(model)
    model = model_of()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    with attached(model, METHODS[name]()):
        assert_equal(backward(model), expected)


@pytest.mark.parametrize("name", METHODS)
def test_a_selective_checkpoint_keeps_no_results_of_hooks(name):
    model = model_of()
    with attached(model, METHODS[name]()):
        expected = backward(model)
    model = model_of()
    saved = [torch.ops.aten.mm.default, torch.ops.aten.mul.Tensor]

    def policy(ctx, op, *args, **kwargs):
        return CheckpointPolicy.MUST_SAVE if op in saved else CheckpointPolicy.PREFER_RECOMPUTE

    with attached(model, METHODS[name]()):
        wrap(model, False, context_fn=lambda: create_selective_checkpoint_contexts(policy))
        assert_equal(backward(model), expected)


class Group(torch.nn.Module):
    """Layers under one checkpoint made by hand."""

    def __init__(self, layers, reentrant):
        super().__init__()
        self.layers = torch.nn.ModuleList(layers)
        self.reentrant = reentrant

    def forward(self, hidden, **kwargs):
        def run(hidden):
            for layer in self.layers:
                hidden = layer(hidden, **kwargs)
            return hidden

        return checkpoint(run, hidden, use_reentrant=self.reentrant)


@pytest.mark.parametrize("inner", [None, False, True])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["several", "skip"])
def test_several_layers_under_one_checkpoint(name, reentrant, inner):
    model = model_of()
    with attached(model, METHODS[name]()):
        expected = backward(model)
    model = model_of()
    with attached(model, METHODS[name]()):
        if inner is not None:
            wrap(model, inner)
        model.enable_input_require_grads()
        layers = list(model.model.layers)
        model.model.layers = torch.nn.ModuleList([layers[0], Group(layers[1:4], reentrant), layers[4]])
        for _ in range(2):
            model.zero_grad(set_to_none=True)
            model(IDS, labels=IDS.clone()).loss.backward()
        model.model.layers = torch.nn.ModuleList(layers)
        got = {n.replace("_checkpoint_wrapped_module.", ""): p.grad for n, p in model.named_parameters()}
        assert_equal(got, expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_hooks_run_once(reentrant):
    model, observer, counted = model_of(), Observer(), CountingState()
    with attach(model, observer, counted):
        model(IDS, labels=IDS).loss.backward()
        plain, layers = list(observer.seen), list(counted.seen)
        observer.seen.clear(), counted.seen.clear()
        wrap(model, reentrant)
        model(IDS, labels=IDS).loss.backward()
        assert (counted.seen, observer.seen) == (layers, plain[1:])


def test_a_cache_that_the_first_call_has_filled_is_not_filled_again():
    """As accelerate's checkpoints and the Trainer leave it: the config's ``use_cache``, which nobody turns off."""
    model = model_of()
    with attach(model, Dice()):
        expected = backward(model)
    model = model_of()
    wrap(model, False)
    with attach(model, Dice()):
        assert_equal(backward(model, use_cache=True), expected)
    with attach(model, Noisy()):
        cache = model(IDS, use_cache=True)
        held = {name: value for name, value in cache.items() if compat.is_cache(value)}
        loss = model(IDS[:, :1], labels=IDS[:, :1], **held).logits.sum()
        with pytest.raises(UnsupportedModel, match="use_cache=False"):
            loss.backward()


def test_two_backward_passes_through_one_forward():
    for reentrant in (False, True):
        model = model_of()
        with attach(model, Noisy()):
            wrap(model, reentrant)
            loss = model(IDS, labels=IDS).loss
            loss.backward(retain_graph=True)
            once = {n: p.grad.clone() for n, p in model.named_parameters()}
            loss.backward()
            for name, parameter in model.named_parameters():
                torch.testing.assert_close(parameter.grad, 2 * once[name])


def test_the_hooks_of_wrapped_layers_stand_on_the_layers_inside():
    model = model_of()
    inner = list(model.model.layers)
    for index, layer in enumerate(inner):
        model.model.layers[index] = offload_wrapper(checkpoint_wrapper(layer))
    with attach(model, Damp()) as session:
        assert list(session.view.layers) == inner
        assert [bool(layer._forward_hooks) for layer in inner] == [False, False, True, True, True]


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_backward_pass_after_the_session_is_refused_where_layers_run_again(reentrant):
    model = model_of()
    with attach(model, Damp()):
        model(IDS, labels=IDS).loss.backward()
        plain = model(IDS, labels=IDS).loss
    plain.backward()
    wrap(model, reentrant)
    with attach(model, Damp()):
        loss = model(IDS, labels=IDS).loss
    with pytest.raises(HookError, match="before the session closes"):
        loss.backward()


@pytest.mark.skipif(
    "__call__" in vars(GradientCheckpointingLayer), reason="before transformers 5.23 hooks are inside its checkpoints"
)
@pytest.mark.parametrize("reentrant", [False, True])
def test_the_checkpointing_of_transformers_goes_back_after_the_session_too(reentrant):
    model = model_of()
    with attach(model, Noisy()):
        model(IDS, labels=IDS).loss.backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    model = model_of()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    with attach(model, Noisy()):
        loss = model(IDS, labels=IDS).loss
    loss.backward()
    assert_equal({name: p.grad for name, p in model.named_parameters()}, expected)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("part", ["model", "decoder"])
def test_a_checkpoint_around_the_whole_is_refused(part, reentrant):
    model = model_of()
    model.enable_input_require_grads()
    embeds = model.get_input_embeddings()(IDS)

    def train():
        if part == "model":
            whole = checkpoint(lambda x: model(inputs_embeds=x, labels=IDS).loss, embeds, use_reentrant=reentrant)
        else:
            model.model = checkpoint_wrapper(model.model, checkpoint_impl=KINDS[reentrant])
            whole = model(inputs_embeds=embeds, labels=IDS).loss
        whole.backward()

    with attach(model, Noisy()), pytest.raises(UnsupportedModel, match="put checkpoints around its decoder layers"):
        train()


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_forward_whose_gradient_is_never_asked_for_is_freed(reentrant):
    model = model_of()
    with attach(model, Noisy(), Learned()) as session:
        wrap(model, reentrant)
        held = []
        handle = model.model.layers[2].register_forward_hook(lambda m, a, o: held.append(weakref.ref(o)))
        loss = model(IDS, labels=IDS).loss
        handle.remove()
        del loss
        gc.collect()
        assert [ref() for ref in held] == [None]
        assert not session.closed


def test_older_torch_is_asked_by_the_stack(monkeypatch):
    model = model_of()
    with attach(model, Noisy()):
        expected = backward(model)
    monkeypatch.setattr(checkpoints, "_saved_tensors_hooks", None)
    for reentrant in (False, True):
        model = model_of()
        with attach(model, Noisy()):
            wrap(model, reentrant)
            assert_equal(backward(model), expected)
    model = model_of()
    with attach(model, Damp()):
        loss = model(IDS, labels=IDS).loss
    loss.backward()
