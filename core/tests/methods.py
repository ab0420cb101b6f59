"""Small methods that the runtime's tests attach."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from paperhooks import ModelView, Traits, hookimpl
from paperhooks.io import flag, number, whole
from paperhooks.tokens import compact

_MODES = ("beams", "assisted", "static_cache", "chunked_prefill", "training", "compile")
EVERYTHING = dict.fromkeys(_MODES, True)


@dataclass(eq=False)
class Damp:
    """Third-party example: scales what the layers from 2 on return."""

    factor: float = 0.9
    traits = Traits(layers=lambda site: site.index >= 2, **EVERYTHING)

    def __post_init__(self):
        self.factor = number("factor", self.factor)

    @hookimpl
    def post_layer(self, hidden_states):
        return hidden_states * self.factor


@dataclass(eq=False)
class Observer:
    """Implements every runtime hook, changes nothing and notes every call."""

    name: str = "observer"
    seen: list[Any] = field(default_factory=list)
    traits = Traits(**EVERYTHING)

    @hookimpl
    def setup(self, view):
        self.seen.append((self.name, "setup"))

    @hookimpl
    def pre_decoder(self, view, call, inputs):
        self.seen.append((self.name, "pre_decoder", call.query_length, call.past_length))

    @hookimpl
    def pre_attention(self, site, call, inputs):
        self.seen.append((self.name, "pre_attention", site.index))

    @hookimpl
    def post_layer(self, site, call, hidden_states):
        self.seen.append((self.name, "post_layer", site.index))

    @hookimpl
    def teardown(self, view):
        self.seen.append((self.name, "teardown"))


@dataclass(eq=False)
class Quiet:
    """Does nothing at every layer: what an idle hook costs."""

    traits = Traits(**EVERYTHING)

    @hookimpl
    def pre_attention(self, site, call, inputs):
        return None

    @hookimpl
    def post_layer(self, site, call, hidden_states):
        return None


@dataclass(eq=False)
class KeepRows:
    """Goes on with given rows of the prompt from a layer on: the plainest token selection."""

    layer: int = 2
    rows: Any = None  # bool [B, T] on the prompt, or a step: keep every n-th token, counted from the last
    compact_loss: bool = False
    traits = Traits(writes=frozenset({"tokens"}), beams=True, assisted=True, training=True, compile=True)

    def __post_init__(self):
        self.layer = whole("layer", self.layer, at_least=0)
        self.compact_loss = flag("compact_loss", self.compact_loss)

    def selects_layer(self, site):
        return site.index == self.layer

    @hookimpl
    def setup(self, view):
        if self.compact_loss:
            view.use_compact_loss()

    @hookimpl
    def pre_attention(self, call, inputs):
        if call.query_length == 1 or call.past_length:
            return None
        if isinstance(self.rows, torch.Tensor):
            keep = self.rows
            index, valid = compact(keep, int(keep.sum(1).max()))
            return inputs.select(index, None if bool(valid.all()) else valid)
        batch, length = inputs.hidden_states.shape[:2]
        step, drafts, real = self.rows or 2, call.draft_length, inputs.padding_mask
        prompt = length - drafts
        if real is None:
            index = torch.arange(prompt - 1, -1, -step).flip(0)
            return inputs.select(torch.cat([index, torch.arange(prompt, length)]).expand(batch, -1))
        to_come = real[:, :prompt].long().flip(1).cumsum(1).flip(1)  # 1 for the last real token of the prompt
        keep = real.clone()
        keep[:, :prompt] &= (to_come - 1) % step == 0
        return inputs.select(*compact(keep, -(-prompt // step) + drafts))


def mask_oracle(model, ids, keep, layer, attention_mask=None, inputs_embeds=None):
    """What selection must equal: nothing is removed, layers from ``layer`` on may not attend to dropped columns.

    Plain torch hooks on a stock model with eager attention. ``keep`` bool [B, T]. Returns logits [B, T, V].
    """

    def hide(module, args, kwargs):
        mask = kwargs["attention_mask"] if "attention_mask" in kwargs else args[2]  # gpt2 passes it by position
        columns = mask.shape[-1]
        alive = torch.nn.functional.pad(keep, (0, columns - keep.shape[1]), value=True)
        own = torch.eye(mask.shape[-2], columns, dtype=torch.bool)
        dead = ~alive[:, None, None, :] & ~own  # a dropped row may still see itself: its softmax must be finite
        hidden = mask.masked_fill(dead, torch.finfo(mask.dtype).min)
        if "attention_mask" in kwargs:
            return args, {**kwargs, "attention_mask": hidden}
        return (*args[:2], hidden, *args[3:]), kwargs

    layers = ModelView.from_model(model).layers
    handles = [block.register_forward_pre_hook(hide, with_kwargs=True) for i, block in enumerate(layers) if i >= layer]
    try:
        given = {"input_ids": ids} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
        return model(**given, attention_mask=attention_mask, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
