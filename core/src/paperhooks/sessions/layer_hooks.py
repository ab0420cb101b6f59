"""The torch hooks a session puts on decoder layers: what runs for every layer and token."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from paperhooks.compat import LayerCall
from paperhooks.errors import HookError, UnsupportedModel
from paperhooks.hooks.call import CALL, Call, Site
from paperhooks.hooks.inputs import LayerInputs, shape_text
from paperhooks.hooks.recomputation import in_checkpoint, once
from paperhooks.models.own_hooks import Hook
from paperhooks.sessions.chain import Chain, Flags
from paperhooks.sessions.followed_tokens import follow
from paperhooks.sessions.layer_check import check_layer_call, unknown_call
from paperhooks.tokens.cache import selected_layer

__all__ = ["LayerEnter", "LayerExit", "expect", "named_arguments"]


def named_arguments(args: tuple[Any, ...], kwargs: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Positional arguments put under their parameter names, beside the keyword arguments."""
    return {**dict(zip(names, args, strict=False)), **kwargs}


class LayerEnter(Hook):
    """Forward pre-hook of a decoder layer: follows earlier selections, then runs the ``pre_attention`` chain."""

    def __init__(self, site: Site, names: LayerCall, chain: Chain, flags: Flags) -> None:
        self.site = site
        self.selects = site.selects
        self.call_names = names
        self.names = names.names
        self.cache_name = names.cache
        self.rotary_name = names.rotary
        self.chain = chain
        self.flags = flags

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = kwargs.get(CALL)
        if call is None:
            return None
        if call.graded and in_checkpoint():
            return self._once(call, module, named_arguments(args, kwargs, self.names))
        if len(args) > 1:
            kwargs = named_arguments(args, kwargs, self.names)
        hidden = args[0] if args else kwargs[self.names[0]]
        cache = kwargs.get(self.cache_name)
        if not self.flags.checked:
            check_layer_call(self.site, self.call_names, call, hidden, kwargs)
            self.flags.fired = self.flags.arrived = self.flags.checked = True
        if cache is not None:
            call.cache = cache
        elif call.cache is not None and self.site.attends:
            raise unknown_call(module, f"the decoder has a cache, but hands its layer none as {self.cache_name!r}")
        start = LayerInputs(
            hidden,
            kwargs.get("attention_mask"),
            kwargs.get("position_ids"),
            kwargs.get(self.rotary_name),
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
                        expect(result, LayerInputs, self.chain, done, self.site)
                    inputs = result
                done += 1
        except Exception as exc:
            self.chain.blame(exc, done, f"at layer {self.site.index}")
            raise
        return None if inputs is start else self._write(call, inputs, start, kwargs)

    def _once(self, call: Call, module: nn.Module, given: dict[str, Any]) -> Any:
        """The same in a layer that is computed again."""

        def run(hidden: Tensor) -> tuple[Tensor, dict[str, Any]]:
            changed = self(module, (hidden,), rest)
            if changed is None:
                return hidden, {}
            (hidden,), kwargs = changed
            return hidden, {name: value for name, value in kwargs.items() if value is not rest.get(name)}

        hidden = given[self.names[0]]
        rest = {name: value for name, value in given.items() if name != self.names[0]}
        if rest.get(self.cache_name) is not None and self in call.remembered:
            if not call.is_prefill:
                raise UnsupportedModel(
                    f"layer {self.site.index} is under a checkpoint and reads a cache that was filled before, to which "
                    "the second call would add again; call the model with use_cache=False"
                )
            rest[self.cache_name] = None  # the first call has filled it, and saw what it put there
        hidden, changes = once(call, self, hidden, run)
        return (hidden,), {**rest, **changes}

    def _write(self, call: Call, inputs: LayerInputs, start: LayerInputs, kwargs: dict[str, Any]) -> Any:
        hidden, before = inputs.hidden_states, start.hidden_states
        length = before.shape[1] if inputs.track is None else inputs.track.index.shape[1]
        if not isinstance(hidden, Tensor) or hidden.shape != (before.shape[0], length, before.shape[2]):
            raise HookError(
                f"pre_attention of {', '.join(self.chain.names)} at layer {self.site.index} gave hidden_states "
                f"{shape_text(hidden)}; expected {[before.shape[0], length, before.shape[2]]}"
            )
        kwargs = {name: value for name, value in kwargs.items() if name != self.names[0]}
        kwargs["attention_mask"] = inputs.attention_mask
        track = inputs.track
        if inputs.position_embeddings is not None:
            kwargs[self.rotary_name] = inputs.position_embeddings
        if "position_ids" in kwargs:
            # Flash attention reads a jump in the positions as the start of another packed sequence.
            gaps = track is not None and inputs.position_embeddings is not None
            kwargs["position_ids"] = None if gaps else inputs.position_ids
        if track is not None:
            call.track = track
            if inputs.cache is not None:
                selected_layer(inputs.cache, self.site.index).announce(call.attendance, track)
        return (inputs.hidden_states,), kwargs


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
        if call.graded and in_checkpoint():
            hidden = self._once(call, module, hidden)
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
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

    def _once(self, call: Call, module: nn.Module, hidden: Tensor) -> Tensor:
        """The same in a layer that is computed again."""

        def run(states: Tensor) -> Tensor:
            changed = self(module, (), {CALL: call}, states)
            return states if changed is None else changed

        result: Tensor = once(call, self, hidden, run)
        return result


def expect(result: Any, kind: type, chain: Chain, done: int, site: Site | None = None) -> Any:
    """What a hook returned, where it is of the kind that it has to be. HookError names the hook and the method."""
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
