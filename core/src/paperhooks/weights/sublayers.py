"""What can be left out of a decoder: layers, and the attention and the MLP in each, found by name and tried.

That a sublayer's output is only added to the residual stream is seen and not assumed: the decoder reads two tokens
while all its attentions and MLPs give zeros, and then a layer has to hand on what came in, bit for bit. Norms with a
bias behind a sublayer, gates, and layers that normalise the stream itself do not.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from paperhooks import compat
from paperhooks.compat import MIXER_NAMES, MLP_NAMES, shared_cache
from paperhooks.errors import UnsupportedModel
from paperhooks.weights.compat import drop_hooks
from paperhooks.weights.stand_ins import SkippedLayer, StandIn, stand_in

__all__ = ["Sublayer", "find_sublayers", "stand_in_for"]

_TOKENS = 2


@dataclass(frozen=True, eq=False)
class Sublayer:
    """A layer of a decoder, or the attention or the MLP in it.

    name
        The module's qualified name in the model.
    kind, layer
        What it is, and the index of the layer that it is or is part of.
    outputs
        How many things it returns; None where that is one tensor and not a tuple.
    cache_layer
        Which layer of a cache an attention writes to; None for others.
    refusal
        Why it cannot be skipped; empty where it can.
    """

    name: str
    kind: Literal["layer", "attention", "mlp"]
    layer: int
    outputs: int | None = None
    cache_layer: int | None = None
    refusal: str = ""


@dataclass(eq=False)
class _Seen:
    """What the trial shows of one module: its parameter of hidden states, what came in, how it answers."""

    module: nn.Module
    first: str
    came: Tensor | None = None
    zero: bool = False  # whether it is to give zeros
    calls: int = 0
    outputs: int | None = None
    odd: str = "it did not run when the decoder read two tokens"
    alone: bool = field(default=False)  # whether it handed on what came in

    def record(self, came: Any) -> None:
        """What is about to be read."""
        self.calls += 1
        self.came = came.clone() if isinstance(came, Tensor) else None

    def answer(self, output: Any) -> Any:
        """What is given in place of an output, of which the form is noted."""
        values = output[0] if isinstance(output, tuple) and output else output
        name = type(self.module).__name__
        if not isinstance(values, Tensor) or self.came is None or values.shape != self.came.shape or values.ndim != 3:
            self.odd = f"{name} is not called with hidden states [B, T, D], or does not return some of that shape"
            return None
        self.odd = f"{name} runs several times in one forward" if self.calls > 1 else ""
        self.outputs = len(output) if isinstance(output, tuple) else None
        self.alone = torch.equal(values, self.came)
        instead = torch.zeros_like(values) if self.zero else self.came  # so that every layer is tried on the same
        return instead if self.outputs is None else (instead, *[None] * (self.outputs - 1))


class _Enter:
    """Forward pre-hook of the trial."""

    def __init__(self, seen: _Seen) -> None:
        self.seen = seen

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.seen.record(args[0] if args else kwargs.get(self.seen.first))


class _Leave(_Enter):
    """Forward hook of the trial."""

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        return self.seen.answer(output)


def find_sublayers(model: nn.Module, layers: nn.ModuleList) -> dict[str, Sublayer]:
    """Everything that could be skipped in a model, by qualified name, in the order of the layers.

    Modules that are skipped already are not among it. The decoder reads two tokens for it once, in eval mode and
    without gradient; its modules are in their own modes afterwards.

    :param layers: where the decoder keeps its layers.
    :raises UnsupportedModel: the decoder cannot be run on two embeddings.
    """
    names = {id(module): name for name, module in model.named_modules(remove_duplicate=False)}
    decoder: nn.Module = model.get_decoder()  # type: ignore[operator]
    config = model.config.get_text_config(decoder=True)  # type: ignore[union-attr, operator]
    parts = [(i, names[id(held)], compat.inside(held)) for i, held in enumerate(layers)]
    there = [(i, name, layer) for i, name, layer in parts if compat.stood_for(layer) is layer]
    mixers = {i: _children(layer, MIXER_NAMES) for i, _, layer in there}
    mlps = {i: _children(layer, MLP_NAMES) for i, _, layer in there}
    branches = [m for i, _, _ in there for m in (*mixers[i].values(), *mlps[i].values())]
    with _eval(decoder):
        seen = _tried(model, decoder, [layer for _, _, layer in there], branches)
    kinds = compat.layer_types(config, tuple(compat.inside(held) for held in layers))
    found: dict[str, Sublayer] = {}
    for i, name, layer in there:
        found[name] = _layer(name, i, layer, mixers[i], seen, kinds[i], shared_cache(config))
        residual = "" if seen[id(layer)].alone else (
            f"{type(layer).__name__} does not only add what its attention and its MLP give to the residual stream, so "
            "leaving one of them out is not the same as its giving nothing"
        )  # fmt: skip
        for child, module in mixers[i].items():
            found[f"{name}.{child}"] = _part(
                f"{name}.{child}", "attention", i, seen[id(module)],
                _refused_mixer(layer, module, mixers[i], kinds[i], shared_cache(config)) or residual,
            )  # fmt: skip
        for child, module in mlps[i].items():
            found[f"{name}.{child}"] = _part(f"{name}.{child}", "mlp", i, seen[id(module)], residual)
    with _eval(decoder):
        for together in (("layer",), ("attention", "mlp")):
            _refuse_what_is_missed(model, decoder, found, together)
    return found


def _refuse_what_is_missed(
    model: nn.Module, decoder: nn.Module, found: dict[str, Sublayer], kinds: tuple[str, ...]
) -> None:  # fmt: skip
    """Run the decoder with everything of some kinds left out: some decoders look into their layers."""
    chosen = [each for each in found.values() if each.kind in kinds and not each.refusal]
    places = [(*_parent(model, each.name), each) for each in chosen]
    held = [(parent, child, parent.get_submodule(child)) for parent, child, _ in places]
    try:
        for (parent, child, each), (_, _, module) in zip(places, held, strict=True):
            setattr(parent, child, stand_in_for(each, compat.inside(module), found))
        _run(model, decoder, cached=True)
        missed = ""
    except UnsupportedModel as error:
        missed = f"without it the decoder ends with {str(error).partition('left out of it: ')[2] or error}"
    finally:
        for parent, child, module in held:
            setattr(parent, child, module)
    if missed:
        found.update({each.name: replace(each, refusal=missed) for each in chosen})


def _parent(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    outer, _, child = name.rpartition(".")
    return model.get_submodule(outer), child


def stand_in_for(sublayer: Sublayer, module: nn.Module, sublayers: Mapping[str, Sublayer]) -> StandIn:
    """What takes the place of a module that is skipped, a layer with what stands for its attention."""
    made = stand_in(
        module, layer=sublayer.kind == "layer", outputs=sublayer.outputs, cache_layer=sublayer.cache_layer
    )  # fmt: skip
    if isinstance(made, SkippedLayer):
        for child, part in module.named_children():
            own = sublayers.get(f"{sublayer.name}.{child}")
            if isinstance(part, StandIn) and child in MIXER_NAMES:
                made.take_attention(part)
            elif own is not None and own.kind == "attention":
                made.take_attention(stand_in_for(own, compat.inside(part), sublayers))
    return made


def _children(layer: nn.Module, names: tuple[str, ...]) -> dict[str, nn.Module]:
    """Those of a layer's modules that have one of the names and are not skipped."""
    known = {n: m for n, m in layer.named_children() if n in names}
    return {n: compat.inside(m) for n, m in known.items() if compat.stood_for(m) is m}


def _layer(
    name: str, index: int, layer: nn.Module, mixers: Mapping[str, nn.Module], seen: Mapping[int, _Seen], kind: str,
    shared: bool,
) -> Sublayer:  # fmt: skip
    refused = next((r for m in mixers.values() if (r := _refused_mixer(layer, m, mixers, kind, shared))), "")
    return _part(name, "layer", index, seen[id(layer)], refused)


def _part(name: str, kind: Literal["layer", "attention", "mlp"], index: int, seen: _Seen, refused: str) -> Sublayer:
    own = getattr(seen.module, "layer_idx", None)
    cache = (own if isinstance(own, int) else index) if kind == "attention" else None
    return Sublayer(name, kind, index, seen.outputs, cache, seen.odd or refused)


def _refused_mixer(
    layer: nn.Module, module: nn.Module, mixers: Mapping[str, nn.Module], kind: str, shared: bool
) -> str:  # fmt: skip
    """Why attention, or a layer with it, cannot be left out although its output may only be added."""
    name = type(module).__name__
    if shared:
        return f"layers of this model read keys and values that other layers make, and {name} may be one that does"
    places = {m.layer_idx for m in layer.modules() if isinstance(getattr(m, "layer_idx", None), int)}
    if len(mixers) > 1 or isinstance(module, nn.ModuleList | nn.ModuleDict) or len(places) > 1:
        return f"{type(layer).__name__} mixes tokens several times ({', '.join(mixers)})"
    if not compat.keeps_keys(kind):
        return f"{name} is no plain self-attention ({kind}), and what a cache should hold of it is not known"
    return ""


def _tried(
    model: nn.Module, decoder: nn.Module, layers: list[nn.Module], branches: list[nn.Module]
) -> dict[int, _Seen]:  # fmt: skip
    """Run the decoder on two tokens with all branches at zero; what was seen, by the module's id."""
    seen = {id(m): _Seen(m, _first(m), zero=m in branches) for m in (*layers, *branches)}
    try:
        for each in seen.values():
            each.module.register_forward_pre_hook(_Enter(each), with_kwargs=True)
            each.module.register_forward_hook(_Leave(each))
        _run(model, decoder)
    finally:
        drop_hooks([each.module for each in seen.values()], _Enter)
    return seen


def _run(model: nn.Module, decoder: nn.Module, *, cached: bool = False) -> None:
    """The decoder reads two embeddings, without gradient."""
    with torch.no_grad():
        weight: Tensor = model.get_input_embeddings().weight  # type: ignore[operator]
        device = next((p.device for p in decoder.parameters() if not p.is_meta), torch.device("cpu"))
        dtype = weight.dtype if weight.is_floating_point() else torch.float32
        values = torch.linspace(-1, 1, _TOKENS * weight.shape[-1], device=device, dtype=torch.float32)
        try:
            decoder(inputs_embeds=values.view(1, _TOKENS, -1).to(dtype), use_cache=cached)
        except Exception as error:
            raise UnsupportedModel(
                f"{type(decoder).__name__} could not be run on two embeddings to see what can be left out of it: "
                f"{type(error).__name__}: {error}"
            ) from error


def _first(module: nn.Module) -> str:
    return next(iter(inspect.signature(module.forward).parameters), "")


@contextmanager
def _eval(decoder: nn.Module) -> Iterator[None]:
    training = [module for module in decoder.modules() if module.training]
    decoder.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
