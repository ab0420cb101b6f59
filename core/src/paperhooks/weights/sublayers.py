"""What can be left out of a decoder: layers, and the attention and the MLP in each, found by name and tried.

That a sublayer's output is only added to the residual stream is seen and not assumed: the decoder reads two tokens
while all its attentions and MLPs give zeros, and then a layer has to hand on what came in, bit for bit. Norms with a
bias behind a sublayer, gates, and layers that normalise the stream itself do not.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from paperhooks import compat
from paperhooks.compat import MIXER_NAMES, MLP_NAMES, shared_cache
from paperhooks.errors import UnsupportedModel

__all__ = ["Sublayer", "find_sublayers"]

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
        Which layer of a cache it writes to; None where it writes to none.
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
    outputs: int | None = None
    odd: str = "it did not run when the decoder read two tokens"
    alone: bool = field(default=False)  # whether it handed on what came in


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
    return found


def _children(layer: nn.Module, names: tuple[str, ...]) -> dict[str, nn.Module]:
    """Those of a layer's modules that have one of the names and are not skipped."""
    known = {n: m for n, m in layer.named_children() if n in names}
    return {n: compat.inside(m) for n, m in known.items() if compat.stood_for(m) is m}


def _layer(
    name: str, index: int, layer: nn.Module, mixers: Mapping[str, nn.Module], seen: Mapping[int, _Seen], kind: str,
    shared: bool,
) -> Sublayer:  # fmt: skip
    refused = next((r for m in mixers.values() if (r := _refused_mixer(layer, m, mixers, kind, shared))), "")
    own = _part(name, "layer", index, seen[id(layer)], refused)
    writes = any(compat.stood_for(m) is not m for n, m in layer.named_children() if n in MIXER_NAMES) or bool(mixers)
    return Sublayer(name, "layer", index, own.outputs, _cache_layer(mixers, index) if writes else None, own.refusal)


def _part(name: str, kind: Literal["layer", "attention", "mlp"], index: int, seen: _Seen, refused: str) -> Sublayer:
    cache = _cache_layer({"": seen.module}, index) if kind == "attention" else None
    return Sublayer(name, kind, index, seen.outputs, cache, refused or seen.odd)


def _cache_layer(mixers: Mapping[str, nn.Module], index: int) -> int:
    """The layer of a cache that an attention names as its own; the layer's index where it names none."""
    own = (getattr(module, "layer_idx", None) for module in mixers.values())
    return next((i for i in own if isinstance(i, int)), index)


def _refused_mixer(
    layer: nn.Module, module: nn.Module, mixers: Mapping[str, nn.Module], kind: str, shared: bool
) -> str:  # fmt: skip
    """Why attention, or a layer with it, cannot be left out although its output may only be added."""
    name = type(module).__name__
    if shared:
        return f"layers of this model read keys and values that other layers make, and {name} may be one that does"
    if len(mixers) > 1:
        return f"{type(layer).__name__} mixes tokens in several ways ({', '.join(mixers)})"
    if not compat.keeps_keys(kind):
        return f"{name} is no plain self-attention ({kind}), and what a cache should hold of it is not known"
    return ""


def _tried(
    model: nn.Module, decoder: nn.Module, layers: list[nn.Module], branches: list[nn.Module]
) -> dict[int, _Seen]:  # fmt: skip
    """Run the decoder on two tokens with all branches at zero; what was seen, by the module's id."""
    seen = {id(m): _Seen(m, _first(m)) for m in (*layers, *branches)}
    embeddings = model.get_input_embeddings()  # type: ignore[operator]
    with ExitStack() as stack:
        for module in (*layers, *branches):
            record, answer = _hooks(seen[id(module)], zero=module in branches)
            stack.callback(module.register_forward_pre_hook(record, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(answer).remove)
        stack.enter_context(_eval(decoder))
        stack.enter_context(torch.no_grad())
        try:
            weight: Tensor = embeddings.weight
            device = next((p.device for p in decoder.parameters() if not p.is_meta), torch.device("cpu"))
            dtype = weight.dtype if weight.is_floating_point() else torch.float32
            values = torch.linspace(-1, 1, _TOKENS * weight.shape[-1], device=device, dtype=torch.float32)
            decoder(inputs_embeds=values.view(1, _TOKENS, -1).to(dtype), use_cache=False)
        except Exception as error:
            raise UnsupportedModel(
                f"{type(decoder).__name__} could not be run on two embeddings to see what can be left out of it: "
                f"{type(error).__name__}: {error}"
            ) from error
    return seen


def _hooks(seen: _Seen, zero: bool) -> tuple[Any, Any]:
    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        came = args[0] if args else kwargs.get(seen.first)
        seen.came = came.clone() if isinstance(came, Tensor) else None

    def answer(module: nn.Module, args: Any, output: Any) -> Any:
        values = output[0] if isinstance(output, tuple) and output else output
        if not isinstance(values, Tensor) or seen.came is None or values.shape != seen.came.shape:
            seen.odd = (
                f"{type(module).__name__} is not called with hidden states, or does not return some of that shape"
            )
            return None
        seen.odd, seen.outputs = "", len(output) if isinstance(output, tuple) else None
        seen.alone = torch.equal(values, seen.came)
        instead = torch.zeros_like(values) if zero else seen.came  # so that every layer is tried on the same
        return instead if seen.outputs is None else (instead, *[None] * (seen.outputs - 1))

    return record, answer


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
