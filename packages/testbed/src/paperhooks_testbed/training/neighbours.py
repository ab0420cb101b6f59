"""The neighbour exercise: inside the decoder, an object's image tokens learn what stands beside them.

Two-step questions hardly improve by themselves, since "some object nearby" is right too often. A linear head on the
output of decoder layer 2 asks every object's tokens for the form and colour of its four neighbours. The answer is
built in the decoder, above the projector, so what the head teaches is lost when image tokens are dropped early. The
head is thrown away after training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import LlavaForConditionalGeneration

from paperhooks_testbed.architecture import WIDTH
from paperhooks_testbed.questions import DIRECTIONS
from paperhooks_testbed.world import COLOURS, FORMS, IMAGE_TOKENS, Scene

__all__ = ["LAYER", "NeighbourHead", "captured", "neighbour_labels", "neighbour_loss"]

#: The decoder layer whose output the head reads.
LAYER = 2
_UNASKED = -100
_NOBODY_WEIGHT = 0.5
_SIZES = (len(FORMS) + 1, len(COLOURS) + 1)


class NeighbourHead(nn.Module):
    """A norm and a linear map from one image token to form and colour of the neighbours on four sides."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH)
        self.linear = nn.Linear(WIDTH, len(DIRECTIONS) * sum(_SIZES))

    def forward(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``[B, 196, D]`` to logits ``[B, 196, 4, 7]`` of forms and of colours; the last class is "nobody"."""
        logits = self.linear(self.norm(states.float())).unflatten(-1, (len(DIRECTIONS), sum(_SIZES)))
        forms, colours = logits.split(_SIZES, dim=-1)
        return forms, colours


def neighbour_labels(scenes: Sequence[Scene]) -> torch.Tensor:
    """``[B, 196, 4, 2]`` int64: form and colour of each side's neighbour; -100 where a patch is empty."""
    labels = torch.full((len(scenes), IMAGE_TOKENS, len(DIRECTIONS), 2), _UNASKED)
    for b, scene in enumerate(scenes):
        for shape in scene.shapes:
            for side, (rows, columns) in enumerate(DIRECTIONS.values()):
                other = scene.at(shape.row + rows, shape.column + columns)
                form = FORMS.index(other.form) if other else len(FORMS)
                colour = COLOURS.index(other.colour) if other else len(COLOURS)
                labels[b, list(shape.tokens), side] = torch.tensor([form, colour])
    return labels


def neighbour_loss(head: NeighbourHead, states: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Mean cross-entropy, and the accuracy where there is a neighbour.

    :param states: the image tokens' hidden states ``[B, 196, D]``.
    :param labels: from ``neighbour_labels``.
    """
    losses, hits, count = [], 0, 0
    for number, logits in enumerate(head(states)):
        wanted = labels[..., number]
        weight = torch.ones(logits.shape[-1])
        weight[-1] = _NOBODY_WEIGHT
        losses.append(cross_entropy(logits.flatten(0, 2), wanted.flatten(), weight=weight, ignore_index=_UNASKED))
        there = (wanted >= 0) & (wanted < logits.shape[-1] - 1)
        hits += int((logits.argmax(-1) == wanted)[there].sum())
        count += int(there.sum())
    return torch.stack(losses).mean(), hits / max(1, count)


@contextmanager
def captured(model: LlavaForConditionalGeneration, layer: int = LAYER) -> Iterator[list[torch.Tensor]]:
    """While open, collects the outputs ``[B, T, D]`` of one decoder layer."""
    outputs: list[torch.Tensor] = []
    module = model.model.language_model.layers[layer]
    handle = module.register_forward_hook(lambda _module, _args, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()
