"""The torch hooks a session puts on the model, its decoder and its decoder layers: what runs at every forward.

Each reads the :class:`~paperhooks.runtime.Call` out of the keyword arguments, runs a frozen chain, and writes changed
arguments back. They are ordinary forward hooks; a copy of an attached model carries copies of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from paperhooks.errors import HookError, UnsupportedModel
from paperhooks.inputs import DecoderInputs, LayerInputs, shape_text
from paperhooks.runtime import CALL, Call, Chain, Flags, Function, Hook, Site
from paperhooks.selection import (
    SelectedLayer,
    TokenTrack,
    compact_labels,
    concat_valid,
    gather_mask,
    held_layer,
    selected_layer,
    take_rows,
)

if TYPE_CHECKING:
    from paperhooks.modelview import LayerCall, ModelView
    from paperhooks.session import Session

__all__ = ["CompactLoss", "DecoderEnter", "DecoderExit", "LayerEnter", "LayerExit", "ModelEnter", "StateExit"]


def named_arguments(args: tuple[Any, ...], kwargs: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Positional arguments put under their parameter names, beside the keyword arguments."""
    return {**dict(zip(names, args, strict=False)), **kwargs}


class ModelEnter(Hook):
    """Forward pre-hook of the model: starts the :class:`Call`, and leads from a model to its session.

    A copy of an attached model (deepcopy, pickle) keeps its hooks but belongs to no session. A session without hooks
    inside the forward leaves every call as it is (``starts`` False). A second one stands on the model without its head,
    which some callers use directly; inside a call of the whole model it finds the Call and does nothing.
    """

    def __init__(
        self, view: ModelView, names: tuple[str, ...], session: Session | None, starts: bool, flags: Flags
    ) -> None:
        self.view = view
        self.names = names
        self.session = session
        self.starts = starts
        self.flags = flags

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "session": None}

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if module.training and torch.is_grad_enabled():
            self.flags.trained = True
        if not self.starts or CALL in kwargs:
            return None
        inputs = named_arguments(args, kwargs, self.names)
        call = Call(self.view, inputs, module.training)
        kwargs = {name: value for name, value in kwargs.items() if name != "visual_mask"}
        kwargs[CALL] = call
        return args, kwargs


class DecoderEnter(Hook):
    """Forward pre-hook of the decoder: lengths, cache, and the ``pre_decoder`` chain."""

    def __init__(self, view: ModelView, names: tuple[str, ...], chain: Chain, flags: Flags) -> None:
        self.view = view
        self.names = names
        self.chain = chain
        self.flags = flags

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = named_arguments(args, kwargs, self.names)
        call = given.get(CALL)
        if call is None:  # the decoder was called without the model around it
            call = given[CALL] = Call(self.view, dict(given), module.training)
            given.pop("visual_mask", None)
        cache = given.get("past_key_values")
        tokens = given.get("inputs_embeds")
        tokens = given.get("input_ids") if tokens is None else tokens
        if tokens is None:
            return None
        call.cache = cache
        call.query_length = tokens.shape[1]
        past = cache.get_seq_length() if cache is not None else 0
        # A preallocated cache hands out the very tensor that it counts on in.
        call.past_length = past.clone() if isinstance(past, Tensor) else past
        if call.padding_mask is None and cache is not None:
            call.take_prepared_mask()
        if self.chain:
            self.flags.fired = True
            self._run(call, given, cache)
        return (), given

    def _run(self, call: Call, given: dict[str, Any], cache: Any) -> None:
        inputs = start = DecoderInputs(
            given.get("input_ids"),
            given.get("inputs_embeds"),
            given.get("attention_mask"),
            given.get("position_ids"),
            cache,
        )
        done = 0
        try:
            for function in self.chain.functions:
                result = function(self.view, call, inputs)
                if result is not None:
                    inputs = _expect(result, DecoderInputs, self.chain, done)
                done += 1
        except Exception as exc:
            self.chain.blame(exc, done, "at the decoder")
            raise
        for f in DecoderInputs.FIELDS:
            if getattr(inputs, f) is not getattr(start, f):
                given[f] = getattr(inputs, f)


class StateExit(Hook):
    """Forward hook of the decoder: per-sequence state goes over to a cache that the decoder made itself."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        call, cache = kwargs.get(CALL), getattr(output, "past_key_values", None)
        if call is not None and cache is not None:
            call.settle(cache)


class LayerEnter(Hook):
    """Forward pre-hook of a decoder layer: follows earlier selections, then runs the ``pre_attention`` chain."""

    def __init__(self, site: Site, names: LayerCall, chain: Chain, flags: Flags) -> None:
        self.site = site
        self.selects = site.selects
        self.names = names.names
        self.cache_name = names.cache
        self.chain = chain
        self.flags = flags

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = kwargs.get(CALL)
        if call is None:
            return None
        if not self.flags.arrived:
            self.flags.fired = self.flags.arrived = True
        if len(args) > 1:
            kwargs = named_arguments(args, kwargs, self.names)
        hidden = args[0] if args else kwargs[self.names[0]]
        cache = kwargs.get(self.cache_name)
        if cache is not None:
            call.cache = cache
        start = LayerInputs(
            hidden,
            kwargs.get("attention_mask"),
            kwargs.get("position_ids"),
            kwargs.get("position_embeddings"),
            cache,
            self.site,
            call,
        )
        inputs = follow(start, call, self.site) if self.selects else start
        done = 0
        try:  # the fold stands here and not in a function of its own: this line runs for every layer and token
            for function in self.chain.functions:
                result = function(self.site, call, inputs)
                if result is not None:
                    if type(result) is not LayerInputs:
                        _expect(result, LayerInputs, self.chain, done, self.site)
                    inputs = result
                done += 1
        except Exception as exc:
            self.chain.blame(exc, done, f"at layer {self.site.index}")
            raise
        return None if inputs is start else self._write(call, inputs, kwargs)

    def _write(self, call: Call, inputs: LayerInputs, kwargs: dict[str, Any]) -> Any:
        kwargs = {name: value for name, value in kwargs.items() if name != self.names[0]}
        kwargs["attention_mask"] = inputs.attention_mask
        track = inputs.track
        if inputs.position_embeddings is not None:
            kwargs["position_embeddings"] = inputs.position_embeddings
        if "position_ids" in kwargs:
            # Flash attention reads a jump in the positions as the start of another packed sequence.
            gaps = track is not None and inputs.position_embeddings is not None
            kwargs["position_ids"] = None if gaps else inputs.position_ids
        if track is not None:
            call.track = track
            if inputs.cache is not None:
                selected_layer(inputs.cache, self.site.index).pending = track
        return (inputs.hidden_states,), kwargs


def follow(inputs: LayerInputs, call: Call, site: Site) -> LayerInputs:
    """Fit what the decoder hands to a layer (made for the full sequence) to the tokens alive and the layer's cache."""
    track = call.track
    layer = held_layer(inputs.cache, site.index)
    held = layer if layer is not None and layer.total else None
    if track is None and (held is None or (inputs.attention_mask is None and held.prefix_valid is None)):
        return inputs
    fitted = inputs.replace(attention_mask=_followed_mask(inputs, call, track, held, site))
    if track is None:
        return fitted
    fitted._track = track
    if inputs.position_ids is not None:
        fitted.position_ids = take_rows(inputs.position_ids, track.index)
    if inputs.position_embeddings is not None:
        fitted.position_embeddings = _followed_rope(inputs.position_embeddings, call, track)
    return fitted


def _followed_rope(tables: tuple[Tensor, Tensor], call: Call, track: TokenTrack) -> tuple[Tensor, Tensor]:
    memo = call.rope_memo
    if memo is None or memo[0] is not tables[0] or memo[1] is not track:
        cos, sin = (take_rows(table, track.index) for table in tables)
        memo = call.rope_memo = (tables[0], track, (cos, sin))
    result: tuple[Tensor, Tensor] = memo[2]
    return result


def _followed_mask(
    inputs: LayerInputs, call: Call, track: TokenTrack | None, held: SelectedLayer | None, site: Site
) -> Any:
    """Gather the mask once for all layers of a stage: they share the mask, the track and the cached columns."""
    mask, prefix, total = inputs.attention_mask, held.prefix if held else None, held.total if held else 0
    memo = call.mask_memo
    if memo is not None and memo[0] is mask and memo[1] is track and memo[2] is prefix and memo[3] == total:
        return memo[4]
    now = track or TokenTrack.whole(inputs.hidden_states, call.past_length)
    batch, device = inputs.hidden_states.shape[0], now.index.device
    before = held or SelectedLayer(total=call.past_length)
    columns, valid = before.columns(batch, device)
    gathered = gather_mask(
        mask,
        rows=now.index,
        columns=torch.cat([columns, now.columns], dim=1) if columns.shape[1] else now.columns,
        row_valid=now.valid,
        column_valid=concat_valid(valid, columns, now),
        offset=call.past_length,
        flash=site.view.flash,
        causal=site.causal,
    )
    call.mask_memo = (mask, track, prefix, total, gathered)
    return gathered


class LayerExit(Hook):
    """Forward hook of a decoder layer: runs the ``post_layer`` chain.

    At the last layer it then gives a shortened sequence its full length back (``restores``): some decoders reshape
    their output to the length of their input.
    """

    def __init__(self, site: Site, chain: Chain, flags: Flags, restores: bool, compact_loss: bool) -> None:
        self.site = site
        self.chain = chain
        self.flags = flags
        self.restores = restores
        self.compact_loss = compact_loss

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        call = kwargs.get(CALL)
        if call is None:
            return None
        if not self.flags.arrived:
            self.flags.fired = self.flags.arrived = True
        hidden = start = output[0] if isinstance(output, tuple) else output
        done = 0
        try:
            for function in self.chain.functions:
                result = function(self.site, call, hidden)
                if result is not None:
                    if not isinstance(result, Tensor) or result.shape != hidden.shape or result.dtype != hidden.dtype:
                        raise _mismatch(self.chain.names[done], self.site, hidden, result)
                    hidden = result
                done += 1
        except Exception as exc:
            self.chain.blame(exc, done, f"at layer {self.site.index}")
            raise
        if self.restores and call.track is not None and not (self.compact_loss and call.labels is not None):
            hidden = call.track.restore(hidden)
        if hidden is start:
            return None
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


class DecoderExit(Hook):
    """Forward hook of the decoder: notices one that does not hand keyword arguments to its layers.

    There every hook would silently be idle.
    """

    def __init__(self, flags: Flags) -> None:
        self.flags = flags

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not self.flags.arrived:
            raise UnsupportedModel(
                f"{type(module).__name__} does not hand keyword arguments down to its layers, so no layer hook ran; "
                "this model is not supported"
            )


class CompactLoss(Hook):
    """The model's loss function while a method asked for the loss on kept tokens only."""

    def __init__(self, inner: Function) -> None:
        self.inner = inner

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = kwargs.pop(CALL, None)
        if call is not None and call.track is not None and kwargs.get("labels") is not None:
            kwargs["shift_labels"] = compact_labels(kwargs["labels"], call.track)
        return self.inner(*args, **kwargs)


def _expect(result: Any, kind: type, chain: Chain, done: int, site: Site | None = None) -> Any:
    if type(result) is not kind:
        where = f" at layer {site.index}" if site is not None else ""
        raise HookError(
            f"{chain.hook} of {chain.names[done]!r}{where} returned {shape_text(result)}; "
            f"expected {kind.__name__} (inputs.replace(...)) or None"
        )
    return result


def _mismatch(method: str, site: Site, expected: Tensor, got: Any) -> HookError:
    return HookError(
        f"post_layer of {method!r} at layer {site.index} returned {shape_text(got)}; "
        f"expected {shape_text(expected)} or None"
    )
