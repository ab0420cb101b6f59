"""Layers left out by how little they change the hidden states: ShortGPT, windows of layers, weight subcloning.

The hidden states are those between the layers. What the last layer gives is taken before the final norm; the official
code reads it after the norm, which then is part of this layer's score.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import torch
from paperhooks import DataError, ModelView
from paperhooks.models import LayerCalls, evaluation_mode
from torch import Tensor

from paperhooks_evopress.baselines.comparison import Found, Setting
from paperhooks_evopress.baselines.removals import Removals

__all__ = ["MEASURES", "Measure", "layer_scores", "shortgpt", "weight_subcloning", "window_cosine"]

#: From hidden states before and after, [..., D], to a number for each token, [...].
Measure: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def _unit(states: Tensor) -> Tensor:
    return torch.nn.functional.normalize(states, dim=-1)


#: How much layers change, in float32. The cosine is high for a small change, the others are low.
MEASURES: Final[dict[str, Measure]] = {
    "cosine": lambda before, after: torch.nn.functional.cosine_similarity(before, after, dim=-1),
    "norm_ratio": lambda before, after: (after - before).norm(dim=-1) / after.norm(dim=-1),
    "l2": lambda before, after: (after - before).norm(dim=-1),
    "l2_normalized": lambda before, after: (_unit(after) - _unit(before)).norm(dim=-1),
}


def layer_scores(view: ModelView, sequences: Sequence[Tensor], measure: Measure, span: int = 1) -> list[float]:
    """A measure of what ``span`` layers in a row do, mean over all tokens, for each layer that they may begin with.

    :param sequences: int64 [T] each. :param span: from 1 to the number of layers.
    :raises UnsupportedModel: layers that cannot be run one by one. :raises DataError: hidden states not finite.
    """
    device = getattr(view.model, "device", torch.device("cpu"))
    totals = [0.0] * (len(view.layers) - span + 1)
    with evaluation_mode(view.model), torch.no_grad():
        for ids in sequences:
            calls = LayerCalls.of(view, {"input_ids": ids[None].to(device)})
            states = deque([calls.embeddings], maxlen=span + 1)
            for layer in range(len(calls)):
                states.append(calls.run(states[-1], layer, layer + 1))
                if len(states) > span:
                    totals[layer + 1 - span] += float(measure(states[0].float(), states[-1].float()).sum())
    if broken := [start for start, total in enumerate(totals) if not math.isfinite(total)]:
        raise DataError(
            f"layer {broken[0]} gives hidden states whose change is not finite; look at the model's weights"
        )
    return [total / sum(map(len, sequences)) for total in totals]


def shortgpt(setting: Setting) -> Found:
    """ShortGPT (arXiv 2403.03853): those layers go whose output is most similar to their input, by cosine."""
    return _ranked("shortgpt", setting, "cosine", sign=-1)


def weight_subcloning(setting: Setting) -> Found:
    """Weight subcloning (arXiv 2312.09299): those layers go that add least, ||out - in|| / ||out||."""
    return _ranked("weight_subcloning", setting, "norm_ratio", sign=1)


def _ranked(name: str, setting: Setting, measure: str, sign: int) -> Found:
    removals = Removals.of(setting, whole_layers=True)
    setting.levels.restore()
    scores = layer_scores(setting.view, setting.sequences(), MEASURES[measure])
    order = sorted(range(len(removals.groups)), key=lambda place: sign * scores[removals.layers[place]])
    return setting.found(name, removals.state(removals.first(order)), 1, scores=scores)


def window_cosine(setting: Setting) -> Found:
    """The layers in a row (arXiv 2403.17887) whose last output is most similar to the first input, by cosine.

    :raises DataError: no row of as many layers may go.
    """
    removals = Removals.of(setting, whole_layers=True)
    span = removals.number
    if span == 0:
        return setting.found("window_cosine", removals.state(()), 0, scores=[])
    place_of = {layer: place for place, layer in enumerate(removals.layers)}
    setting.levels.restore()
    scores = layer_scores(setting.view, setting.sequences(), MEASURES["cosine"], span)
    rows = [start for start in range(len(scores)) if all(start + n in place_of for n in range(span))]
    if not rows:
        raise DataError(f"{setting.problem.target} leaves out {span} layers, and no {span} in a row may go")
    start = max(rows, key=lambda start: scores[start])
    return setting.found("window_cosine", removals.state(place_of[start + n] for n in range(span)), 1, scores=scores)
