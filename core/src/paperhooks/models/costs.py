"""What a module costs with its own weights: bytes, parameters, and operations for a token."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from paperhooks.compat import stood_for
from paperhooks.models.view import ModelView
from paperhooks.weights.structure import module_at

__all__ = ["experts_per_token", "module_cost"]


def experts_per_token(config: Any) -> tuple[int, int] | None:
    """How many routed experts of a layer a token meets, and how many there are; None for a decoder without any."""
    chosen = getattr(config, "num_experts_per_tok", None)
    count = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    return (int(chosen), int(count)) if chosen and count else None


def module_cost(view: ModelView, name: str, without: Iterable[str] = ()) -> dict[str, float]:
    """The cost of a module as it is, by the kinds that levels tell: for what stays, and to compare with.

    - ``bytes`` and ``codes`` of its parameters, and their number (``parameters``);
    - ``flops`` for one token: a multiplication and an addition for every entry of a matrix, of routed experts those
      that a token meets. What attention does with keys and values depends on the length and is not counted.

    :param name: qualified name, also of a module that is skipped now.
    :param without: qualified names of modules whose parameters are not counted where they are in this one, such as all
        others whose levels are chosen: then the costs of a choice add up.
    :raises LookupError: no such module.
    """
    others = {other for other in without if other != name}
    counted: dict[int, tuple[nn.Parameter, bool]] = {}
    _collect(module_at(view.model, name), name, others, counted)
    parameters = [parameter for parameter, _ in counted.values()]
    size = sum(p.numel() * p.element_size() for p in parameters)
    routed = experts_per_token(view.text_config)
    flops = 0.0
    for parameter, looked_up in counted.values():
        if parameter.ndim >= 2 and not looked_up:
            met = routed[0] / routed[1] if routed is not None and parameter.ndim == 3 else 1.0
            flops += 2.0 * parameter.numel() * met
    return {"bytes": size, "codes": size, "parameters": sum(p.numel() for p in parameters), "flops": flops}


def _collect(
    module: nn.Module, name: str, others: set[str], counted: dict[int, tuple[nn.Parameter, bool]]
) -> None:  # fmt: skip
    """All parameters of a module by identity, and whether they are only looked up; those of ``others`` left out."""
    for parameter in module.parameters(recurse=False):
        counted.setdefault(id(parameter), (parameter, isinstance(module, nn.Embedding)))
    for child, inner in module.named_children():
        if f"{name}.{child}" not in others:
            _collect(stood_for(inner), f"{name}.{child}", others, counted)
