"""Baselines by their names, and which of them answer a kind of target."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from paperhooks_evopress.baselines.additive_model import additive
from paperhooks_evopress.baselines.comparison import Found, Setting
from paperhooks_evopress.baselines.layer_scores import shortgpt, weight_subcloning, window_cosine
from paperhooks_evopress.baselines.matrix_errors import least_error
from paperhooks_evopress.baselines.outliers import owl
from paperhooks_evopress.baselines.random_choices import random_best, uniform
from paperhooks_evopress.baselines.single_removals import greedy, one_shot

__all__ = ["BASELINES", "baselines_of"]

BASELINES: Final[dict[str, Callable[[Setting], Found]]] = {
    "uniform": uniform,
    "shortgpt": shortgpt,
    "window_cosine": window_cosine,
    "weight_subcloning": weight_subcloning,
    "one_shot": one_shot,
    "one_shot_layers": partial(one_shot, whole_layers=True),
    "greedy": greedy,
    "greedy_layers": partial(greedy, whole_layers=True),
    "random": random_best,
    "owl": owl,
    "least_error": least_error,
    "additive": additive,
}
_ANY: Final = ("uniform", "random", "additive")
_BY_KIND: Final = {
    "depth": (
        "shortgpt", "window_cosine", "weight_subcloning", "one_shot", "one_shot_layers", "greedy", "greedy_layers",
    ),
    "sparsity": ("owl", "least_error"),
    "bits": ("least_error",),
}  # fmt: skip


def baselines_of(kind: str) -> tuple[str, ...]:
    """Names of the baselines that answer a kind of target, such as ``"bits"``."""
    return (*_ANY, *_BY_KIND.get(kind, ()))
