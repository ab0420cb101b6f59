"""What hooks receive and return: the decoder's inputs and a layer's inputs.

Both are small slotted classes, not dicts: a misspelt field raises. They are never changed in place; ``replace`` and
``select`` return changed copies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from paperhooks.compat import token_count
from paperhooks.errors import HookError, did_you_mean
from paperhooks.tokens.cache import held_layer
from paperhooks.tokens.masks import gather_mask, take_rows
from paperhooks.tokens.track import TokenTrack

if TYPE_CHECKING:
    from paperhooks.hooks.call import Call, Site

__all__ = ["DecoderInputs", "LayerInputs"]


class _Inputs:
    """Copy-on-write record whose public fields are listed in ``FIELDS``."""

    __slots__: tuple[str, ...] = ()
    FIELDS: tuple[str, ...] = ()

    def _copy(self) -> Self:
        new = object.__new__(type(self))
        for name in self.__slots__:
            setattr(new, name, getattr(self, name))
        return new

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed. Raises TypeError for a field that does not exist or cannot be set."""
        new = self._copy()
        for name, value in changes.items():
            if name not in self.FIELDS:
                raise TypeError(
                    f"{type(self).__name__} has no settable field {name!r}; {did_you_mean(name, self.FIELDS)}"
                )
            setattr(new, name, value)
        return new

    def __repr__(self) -> str:
        parts = ((n, getattr(self, n)) for n in self.FIELDS)
        return f"{type(self).__name__}({', '.join(f'{n}={shape_text(v)}' for n, v in parts)})"


def shape_text(value: Any) -> str:
    """A value for a message: dtype and shape of a tensor, the type of anything else."""
    if isinstance(value, _Inputs):
        return repr(value)
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, tuple):
        return f"({', '.join(map(shape_text, value))})"
    return type(value).__name__ if value is not None else "None"


class DecoderInputs(_Inputs):
    """What the text decoder is called with, before rotary tables and masks are made.

    input_ids
        int64 [B, T], or None when embeddings are given.
    inputs_embeds
        [B, T, D] in the model's dtype, or None when ids are given.
    attention_mask
        What the caller gave: None, [B, S+T], [B, 1, T, S+T], or a dict of 4-D masks by layer type.
    position_ids
        int64 [B, T], [3, B, T] or [4, B, T] for multimodal rotary positions, or None.
    cache
        The transformers Cache, or None when the caller gave none (the decoder may then create one). Read only.
    """

    __slots__ = ("attention_mask", "cache", "input_ids", "inputs_embeds", "position_ids")
    FIELDS = ("input_ids", "inputs_embeds", "attention_mask", "position_ids")

    def __init__(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        attention_mask: Any,
        position_ids: Tensor | None,
        cache: Any,
    ) -> None:
        self.input_ids = input_ids
        self.inputs_embeds = inputs_embeds
        self.attention_mask = attention_mask
        self.position_ids = position_ids
        self.cache = cache


class LayerInputs(_Inputs):
    """What one decoder layer is called with. T counts the tokens still alive, S the entries of this layer's cache.

    hidden_states
        [B, T, D] in the model's dtype.
    attention_mask
        None, [B, S+T] (flash), or [B, 1, T, S+T], bool (True: may attend) or float (added to the scores).
    position_ids
        int64 [B or 1, T] or None: the original positions of the tokens alive.
    position_embeddings
        (cos, sin), each [B or 1, T, h], or None for models without rotary positions.
    cache
        The transformers Cache or None. Read only.
    image_mask, padding_mask
        bool [B, T] or None: which of the tokens still alive stand for image features, and which are real tokens (not
        padding, not an empty slot). They count what this layer gets (living coordinates), as ``select`` does;
        ``call.image_mask`` and ``call.padding_mask`` count what the model received.
    """

    __slots__ = (
        "_call",
        "_site",
        "_track",
        "attention_mask",
        "cache",
        "hidden_states",
        "position_embeddings",
        "position_ids",
    )
    FIELDS = ("hidden_states", "attention_mask", "position_ids", "position_embeddings")

    def __init__(
        self,
        hidden_states: Tensor,
        attention_mask: Any,
        position_ids: Tensor | None,
        position_embeddings: tuple[Tensor, Tensor] | None,
        cache: Any,
        site: Site,
        call: Call,
        track: TokenTrack | None = None,
    ) -> None:
        self.hidden_states = hidden_states
        self.attention_mask = attention_mask
        self.position_ids = position_ids
        self.position_embeddings = position_embeddings
        self.cache = cache
        self._site = site
        self._call = call
        self._track = track

    @property
    def track(self) -> TokenTrack | None:
        """Which tokens of this forward are alive, or None while all are."""
        return self._track

    def follow(self, track: TokenTrack) -> None:
        """Take over which tokens are alive, from the layers before. Core calls it; the other fields must fit
        already."""
        self._track = track

    @property
    def image_mask(self) -> Tensor | None:
        """bool [B, T]: which of the tokens alive stand for image features; None when that is not known."""
        mask = self._call.image_mask
        return None if mask is None else self._living(mask)

    @property
    def padding_mask(self) -> Tensor | None:
        """bool [B, T]: False for padding and empty slots; None when every token alive is a real one."""
        mask, length = self._call.padding_mask, self._call.query_length
        track = self._track
        if mask is None:
            return None if track is None else track.valid
        return self._living(mask[:, -length:].bool())

    def _living(self, mask: Tensor) -> Tensor:
        mask = mask.to(self.hidden_states.device)
        if self._track is None:
            return mask
        alive = mask.gather(1, self._track.index.to(mask.device))
        return alive if self._track.valid is None else alive & self._track.valid.to(mask.device)

    @property
    def cached_length(self) -> int:
        """S: how many entries this layer's cache holds before this forward."""
        held = held_layer(self.cache, self._site.index)
        if held is not None:
            return held.entries
        return int(token_count(self.cache, self._site.index)) if self.cache is not None else 0

    def select(self, index: Tensor, valid: Tensor | None = None) -> LayerInputs:
        """Go on with only some tokens, in this layer and all layers after it.

        Cuts hidden states, mask, rotary tables and positions, notes which columns the layers' caches will hold, and
        has the decoder's output restored to full length afterwards (dropped rows become zeros).

        :param index: int64 [B, K], rows of the current T tokens to keep, ascending without repetition, on any device.
        :param valid: bool [B, K] or None. False marks an empty slot of a batch entry that keeps fewer than K tokens;
            what its index points at is ignored by attention from here on. None: every slot is a token.
        :raises HookError: wrong shape or dtype, rows that repeat, fall or lie outside, a model without 4-D or 2-D
            masks, or a method that did not declare ``writes={"tokens"}``. The values of an index on an accelerator are
            looked at once a session and layer, since reading them waits for the device.
        """
        self._check_selection(index, valid)
        hidden = self.hidden_states
        index = index.to(hidden.device)
        valid = valid.to(hidden.device) if valid is not None else None
        maskless = self.attention_mask is None
        before = self._track or TokenTrack.whole(hidden, self._call.past_length, maskless)
        cached = self.cached_length
        new = self._copy()
        new._track = before.narrowed(index, valid, self._call.padding_mask)
        new.hidden_states = take_rows(hidden, index)
        new.attention_mask = gather_mask(
            self.attention_mask,
            rows=index,
            columns=_with_cached(index, cached),
            row_valid=valid,
            column_valid=_valid_with_cached(valid, cached),
            flash=self._site.view.flash,
            causal=self._site.causal,
        )
        new.position_ids = take_rows(self.position_ids, index) if self.position_ids is not None else None
        if self.position_embeddings is not None:
            cos, sin = self.position_embeddings
            new.position_embeddings = (take_rows(cos, index), take_rows(sin, index))
        return new

    @property
    def lost_tokens(self) -> Tensor | None:
        """int64 [B]: how many real tokens of earlier forwards this layer's cache lacks; None where it lacks none.

        Layers that lost the same tokens in one forward share one tensor.
        """
        held = held_layer(self.cache, self._site.index)
        return held.lost if held is not None else None

    def compact_positions(self) -> Tensor:
        """Positions int64 [B, T] that count only the tokens this layer has kept: no gap where tokens were dropped.

        :raises HookError: the decoder hands no [B, T] position ids to its layers (multimodal rotary positions).
        """
        positions = self.position_ids
        if positions is None or positions.ndim != 2:
            family = self._site.view.family
            raise HookError(f"layer {self._site.index}: {family} hands no plain position ids to its layers")
        batch = self.hidden_states.shape[0]
        lost = self.lost_tokens
        positions = positions.expand(batch, -1)
        if lost is not None:
            positions = positions - lost.to(positions.device)[:, None]
        return positions - self._track.dropped_before().to(positions.device) if self._track is not None else positions

    def _check_selection(self, index: Tensor, valid: Tensor | None) -> None:
        batch, length = self.hidden_states.shape[:2]
        if not self._site.selects:
            raise HookError(
                f"layer {self._site.index}: select() needs a method whose traits declare writes={{'tokens'}}"
            )
        fits = isinstance(index, Tensor) and index.dtype == torch.int64 and index.ndim == 2
        if not fits or index.shape[0] != batch or not 1 <= index.shape[1] <= length:
            raise HookError(
                f"layer {self._site.index}: select() expected an int64 index [B={batch}, K], 1 <= K <= {length}, "
                f"got {shape_text(index)}"
            )
        if valid is not None and (
            not isinstance(valid, Tensor) or valid.dtype != torch.bool or valid.shape != index.shape
        ):
            raise HookError(
                f"layer {self._site.index}: valid must be bool {list(index.shape)}, got {shape_text(valid)}"
            )
        if self._site.looks_at(index) and (wrong := _wrong_rows(index, valid, length)):
            raise HookError(
                f"layer {self._site.index}: select() expected rows of the {length} tokens that this layer gets, "
                f"ascending and each at most once, got {wrong}; rows of the whole sequence have to be brought to "
                "living coordinates first (inputs.image_mask, inputs.padding_mask)"
            )

    def dense_mask(self) -> Tensor:
        """The mask as bool [B, 1, T, S+T], True where a token may be attended to, whatever the kernel was given.

        :raises HookError: for a flex-attention BlockMask, which has no dense form to edit.
        """
        queries, keys = self.hidden_states.shape[1], self.cached_length + self.hidden_states.shape[1]
        device, mask = self.hidden_states.device, self.attention_mask
        if isinstance(mask, Tensor) and mask.ndim == 4:
            return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        if mask is not None and not isinstance(mask, Tensor):
            raise HookError(f"a {type(mask).__name__} has no dense form; use the eager or sdpa attention kernel")
        causal = torch.ones(queries, keys, dtype=torch.bool, device=device)
        causal = causal.tril(keys - queries) if self._site.causal else causal
        if self._track is not None and self._track.valid is not None and mask is None:
            raise HookError("a ragged selection always carries a mask; a method has replaced it by None")
        dense = causal.expand(self.hidden_states.shape[0], 1, queries, keys)
        return dense & mask.to(torch.bool)[:, None, None, :] if mask is not None else dense


def _wrong_rows(index: Tensor, valid: Tensor | None, length: int) -> str:
    """The first row of an index int64 [B, K] that does not ascend inside ``length`` tokens; empty slots aside."""
    there = torch.ones_like(index, dtype=torch.bool) if valid is None else valid
    known = index.masked_fill(~there, -1)
    before = torch.nn.functional.pad(known.cummax(1).values[:, :-1], (1, 0), value=-1)
    outside = (index < 0) | (index >= length)
    bad = ((there & (known <= before)) | outside).any(1).tolist()
    return str(index[bad.index(True)].tolist()) if any(bad) else ""


def _with_cached(index: Tensor, cached: int) -> Tensor:
    if not cached:
        return index
    past = torch.arange(cached, device=index.device).expand(index.shape[0], cached)
    return torch.cat([past, index + cached], dim=1)


def _valid_with_cached(valid: Tensor | None, cached: int) -> Tensor | None:
    # Cached columns were cleared when the mask of this layer was gathered, so they count as valid here.
    return torch.nn.functional.pad(valid, (cached, 0), value=True) if valid is not None and cached else valid
