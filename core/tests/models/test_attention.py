"""Ranking in full precision whatever surrounds it, on modules that keep their weights anywhere."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from paperhooks import HookError, Traits, UnsupportedModel, attach, hookimpl
from paperhooks.hooks import attention_from
from paperhooks.models import full_precision
from paperhooks.models.storage import compute_dtype, device_of
from paperhooks.testing import tiny_llama
from torch import nn
from transformers.models.llama.modeling_llama import LlamaAttention

IDS = torch.tensor([[0, 5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 16, 17, 18, 19]])
MASK = (IDS != 0).long()


@dataclass(eq=False)
class Rank:
    """Keeps the half of the tokens that the last one looks at most, and notes what it ranked."""

    layers: tuple[int, ...] = (1, 2)

    def __post_init__(self) -> None:
        self.traits = Traits(layers=self.layers, writes=frozenset({"tokens"}))
        self.seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    @hookimpl
    def pre_attention(self, site, call, inputs):
        if call.query_length == 1:
            return None
        batch, length = inputs.hidden_states.shape[:2]
        rows = attention_from(site, inputs, torch.full((batch, 1), length - 1))
        scores = rows[:, 0].index_fill(1, torch.tensor([length - 1]), 2.0)
        kept = scores.topk(length // 2, dim=1).indices.sort(dim=1).values
        self.seen.append((inputs.hidden_states.detach().clone(), rows, kept))
        return inputs.select(kept)


def test_the_rows_are_the_models_own_attention():
    model, method = tiny_llama(attn_implementation="eager"), Rank((1,))
    with torch.no_grad():
        weights = model(IDS, attention_mask=MASK, output_attentions=True).attentions[1]
        with attach(model, method):
            model(IDS, attention_mask=MASK)
    torch.testing.assert_close(method.seen[0][1][:, 0], weights[:, :, -1].mean(1), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(method.seen[0][1].sum(-1), torch.ones(2, 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_around_the_model_does_not_reach_the_ranking(dtype):
    model, method, again = tiny_llama(), Rank(), Rank()
    with attach(model, method), torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        model(IDS, attention_mask=MASK)
    with attach(model, again), torch.no_grad():
        model(IDS, attention_mask=MASK)
    hidden, rows, _ = method.seen[0]
    assert rows.dtype == torch.float32
    if torch.equal(hidden, again.seen[0][0]):  # the layers before may have been rounded
        assert torch.equal(rows, again.seen[0][1])
    exact = tiny_llama().double()
    from paperhooks import ModelView

    view = ModelView.from_model(exact)
    positions = exact.model.rotary_emb(hidden.double(), position_ids=torch.arange(8)[None])
    from paperhooks.models import attention_parts, queries_and_keys

    q, k = queries_and_keys(view, 1, hidden.double(), positions, torch.full((2, 1), 7))
    scores = (q[:, :, 0, None] * k.repeat_interleave(2, 1)).sum(-1) * attention_parts(view, 1).scaling
    expected = scores.masked_fill(MASK[:, None] == 0, -torch.inf).softmax(-1).mean(1)
    torch.testing.assert_close(rows[:, 0], expected.float(), atol=1e-6, rtol=1e-4)


def test_full_precision_switches_autocast_off_where_there_is_one():
    x = torch.randn(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        with full_precision(torch.device("cpu")):
            assert (x @ x).dtype == torch.float32
    with full_precision(torch.device("meta")):
        pass


class Packed(nn.Module):
    """Weights in buffers, as quantised layers keep them."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.scale = linear.weight.detach().abs().max() / 127
        self.register_buffer("packed", (linear.weight.detach() / self.scale).round().to(torch.int8))

    def forward(self, x):
        return x @ (self.packed.to(x.dtype) * self.scale).T


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.parametrize("kind", ["buffers", "packed by torch"])
def test_layers_without_parameters_are_ranked(kind):
    model = tiny_llama()
    if kind == "buffers":
        for layer in model.model.layers:
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                setattr(layer.self_attn, name, Packed(getattr(layer.self_attn, name)))
    else:
        model = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    method = Rank()
    with attach(model, method), torch.no_grad():
        assert model(IDS, attention_mask=MASK).logits.isfinite().all()
    assert len(method.seen) == 2


@pytest.mark.parametrize("append", [True, False])
def test_hooks_of_accelerate_may_be_chained(append):
    from accelerate.hooks import AlignDevicesHook, ModelHook, add_hook_to_module

    model, method = tiny_llama(), Rank()
    plain = Rank()
    with attach(model, plain), torch.no_grad():
        expected = model(IDS, attention_mask=MASK).logits
    for layer in model.model.layers:
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            add_hook_to_module(projection, AlignDevicesHook(execution_device="cpu"))
            add_hook_to_module(projection, ModelHook(), append=append)
    with attach(model, method), torch.no_grad():
        assert torch.equal(model(IDS, attention_mask=MASK).logits, expected)


def test_what_modules_tell():
    cpu, other = torch.device("cpu"), torch.device("meta")
    assert device_of(nn.Linear(2, 2), other) == cpu
    assert device_of(Packed(nn.Linear(2, 2)), other) == cpu
    assert device_of(nn.Identity(), other) == other
    assert compute_dtype(nn.Linear(2, 2).half()) == torch.float16
    assert compute_dtype(Packed(nn.Linear(2, 2))) is None
    assert compute_dtype(nn.Identity()) is None


def test_attention_is_looked_for_inside_of_a_checkpoint_wrapper():
    """The function that rotates stands beside the attention's class, and not beside its wrapper's."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model, seen = tiny_llama(), []
    for _ in range(2):
        with attach(model, rank := Rank()), torch.no_grad():
            model(IDS, attention_mask=MASK)
        seen.append(rank.seen)
        for layer in model.model.layers:
            layer.self_attn = checkpoint_wrapper(layer.self_attn)
    for plain, wrapped in zip(*seen, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(plain, wrapped, strict=True))


class Subclass(LlamaAttention):
    """A user's own, far from the module that has the function."""


class Around(nn.Module):
    """Somebody's attention that shows its parts, but not how it rotates."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        for name in ("q_proj", "k_proj", "head_dim", "scaling"):
            setattr(self, name, getattr(inner, name))

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


def test_a_rotation_is_found_by_inheritance_or_refused():
    model = tiny_llama()
    with attach(model, plain := Rank()), torch.no_grad():
        model(IDS, attention_mask=MASK)
    for layer in model.model.layers:
        layer.self_attn.__class__ = Subclass
    with attach(model, rank := Rank()), torch.no_grad():
        model(IDS, attention_mask=MASK)
    for one, other in zip(plain.seen, rank.seen, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    for layer in model.model.layers:
        layer.self_attn = Around(layer.self_attn)
    with attach(model, Rank()), pytest.raises(UnsupportedModel, match="no apply_rotary_pos_emb"):
        model(IDS, attention_mask=MASK)


def test_rows_that_are_none_are_refused():
    @dataclass(eq=False)
    class Wrong:
        traits = Traits(layers=[1])

        @hookimpl
        def pre_attention(self, site, inputs):
            attention_from(site, inputs, torch.tensor([3]))

    with attach(tiny_llama(), Wrong()) as session, pytest.raises(HookError, match=r"expected int64 \[B=2, m\]"):
        session.view.model(IDS)
