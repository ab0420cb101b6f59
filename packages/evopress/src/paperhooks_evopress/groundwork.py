"""What a search and the simple choices beside it have in common: options, the problem, levels, what these depend on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, Protocol, get_args

import torch
from paperhooks import CompressionRequest, ModelView
from paperhooks.hooks import Levels
from paperhooks.io import choice, flag, optional, tensor_digest, whole
from paperhooks.plugins import catalog
from torch import Tensor

from paperhooks_evopress.evaluator import Fitness
from paperhooks_evopress.plugin import DEFAULT_LEVELS
from paperhooks_evopress.spaces import Exchange, Fuse, LevelProblem, Target, module_names, problem

__all__ = [
    "SHARED",
    "ProblemOptions",
    "check_options",
    "decided_by",
    "evaluator_options",
    "level_methods",
    "offered_levels",
    "posed_problem",
]

#: Levels of sparsity on each side of the target.
_STEPS: Final = 8


#: Options that say what is searched, and mean the same for a search and for simple choices.
SHARED: Final = (
    "fitness", "exchange", "fuse", "whole_layers", "max_level", "max_deviation", "max_length", "teacher_bytes",
    "top_tokens", "check_model",
)  # fmt: skip


class ProblemOptions(Protocol):
    """The options of :data:`SHARED`."""

    fitness: Fitness
    exchange: Exchange
    fuse: Fuse
    whole_layers: bool
    max_level: int | None
    max_deviation: int | None
    max_length: int
    teacher_bytes: int
    top_tokens: int | None
    check_model: bool


def check_options(options: ProblemOptions) -> None:
    """Bring the options of :data:`SHARED` to their types.

    :raises ValueError: one that cannot be meant; names it, its value and what is expected.
    """
    options.fitness = choice("fitness", options.fitness, get_args(Fitness))
    options.exchange = choice("exchange", options.exchange, get_args(Exchange))
    options.fuse = choice("fuse", options.fuse, get_args(Fuse))
    options.max_level = optional(whole, "max_level", options.max_level, at_least=0)
    options.max_deviation = optional(whole, "max_deviation", options.max_deviation, at_least=0)
    options.top_tokens = optional(whole, "top_tokens", options.top_tokens, at_least=1)
    options.whole_layers = flag("whole_layers", options.whole_layers)
    options.check_model = flag("check_model", options.check_model)
    options.max_length = whole("max_length", options.max_length, at_least=2)
    options.teacher_bytes = whole("teacher_bytes", options.teacher_bytes, at_least=1)


def posed_problem(view: ModelView, levels: Levels, target: Target, options: ProblemOptions) -> LevelProblem:
    """What is searched for a target with these options; raises what :func:`paperhooks_evopress.problem` does."""
    return problem(
        view, levels, target, exchange=options.exchange, fuse=options.fuse, max_level=options.max_level,
        max_deviation=options.max_deviation,
    )  # fmt: skip


def evaluator_options(options: ProblemOptions) -> dict[str, Any]:
    """What an evaluator takes of these options."""
    return {
        "fitness": options.fitness,
        "limit": options.teacher_bytes,
        "tokens": options.top_tokens,
        "most_perplexity": None if options.check_model else math.inf,
    }


def level_methods(view: ModelView, target: Target) -> list[Any]:
    """The methods whose levels are searched for a target where the user names none.

    For sparsity its levels lie around the target, D = 0.5 min(s, 1 - s) / 8 hidden^2 weights apart (the official
    code's default).
    """
    options: dict[str, Any] = {}
    if target.kind == "sparsity":
        hidden = int(view.text_config.hidden_size)
        step = int(0.5 * min(target.value, 1 - target.value) / _STEPS * hidden**2)
        options = {"around": target.value, "step": max(1, step)}
    return [catalog().create_method(name, **options) for name in DEFAULT_LEVELS[target.kind]]


def offered_levels(view: ModelView, request: CompressionRequest, target: Target, *, whole_layers: bool) -> Levels:
    """What is offered for the modules of a target; those without levels belong to what contains them."""
    levels = request.levels(view, module_names(view, target, whole_layers=whole_layers))
    with_levels = [name for name, own in levels.items() if own]
    return levels if len(with_levels) in (0, len(levels)) else request.levels(view, with_levels)


def decided_by(sequences: Sequence[Tensor]) -> dict[str, Any]:
    """What the values of levels depend on besides model and options, as plain data."""
    return {"calibration": tensor_digest(torch.cat(list(sequences)))}
