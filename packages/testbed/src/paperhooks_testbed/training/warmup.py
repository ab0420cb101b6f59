"""The vision tower's warm-up: every patch learns to say what is drawn on it, in the decoder's own words.

The projector's output at a patch is compared with the *word embeddings* of forms, colours and places, so that image
and text share a vocabulary before the first question is asked. The few parameters used only here are thrown away.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import LlavaForConditionalGeneration

from paperhooks_testbed.architecture import WIDTH, token_ids
from paperhooks_testbed.questions import PLACES, place_of
from paperhooks_testbed.world import COLOURS, FORMS, GRID, IMAGE_TOKENS, PATCHES, PLURALS, Scene, Shape

__all__ = ["PatchHeads", "patch_labels", "warmup_loss"]

_IDS = token_ids()
_NOTHING_WEIGHT = 0.05  # nine patches of ten are empty


class PatchHeads(nn.Module):
    """What the warm-up needs beside the model: a scale, "nothing here" vectors, and row and column heads."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(4.0))
        self.nothing = nn.Parameter(torch.zeros(2, WIDTH))
        self.cells = nn.Linear(WIDTH, 2 * GRID)


def patch_labels(scenes: Sequence[Scene]) -> dict[str, torch.Tensor]:
    """Labels of every patch, each ``[B, 196]`` int64.

    The keys are ``form`` and ``colour``, whose last class is "nothing", and ``place``, ``row`` and ``column``.
    """
    form = torch.full((len(scenes), IMAGE_TOKENS), len(FORMS))
    colour = torch.full((len(scenes), IMAGE_TOKENS), len(COLOURS))
    for b, scene in enumerate(scenes):
        for shape in scene.shapes:
            form[b, list(shape.tokens)] = FORMS.index(shape.form)
            colour[b, list(shape.tokens)] = COLOURS.index(shape.colour)
    row = torch.arange(IMAGE_TOKENS) // PATCHES // 2
    column = torch.arange(IMAGE_TOKENS) % PATCHES // 2
    names = [place_of(Shape("", "", r, c)) for r, c in zip(row.tolist(), column.tolist())]
    place = torch.tensor([PLACES.index(name) for name in names])
    same = {"place": place, "row": row, "column": column}
    return {"form": form, "colour": colour, **{k: v.expand(len(scenes), -1) for k, v in same.items()}}


def warmup_loss(
    model: LlavaForConditionalGeneration,
    heads: PatchHeads,
    pixel_values: torch.Tensor,
    labels: dict[str, torch.Tensor],
    plural: bool,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Loss and accuracies (of patches that are not empty) of the patch labelling.

    :param pixel_values: ``[B, 3, 224, 224]``.
    :param labels: from ``patch_labels``.
    :param plural: compare forms with their plural words instead of the singular ones.
    """
    features = torch.stack(list(model.get_image_features(pixel_values).pooler_output)).float()  # [B, 196, D]
    embeddings: torch.Tensor = model.model.language_model.embed_tokens.weight
    words = {"form": PLURALS if plural else FORMS, "colour": COLOURS, "place": PLACES}
    logits = {}
    for number, (name, names) in enumerate(words.items()):
        classes = embeddings[[_IDS[word] for word in names]]
        if number < 2:
            classes = torch.cat([classes, heads.nothing[number : number + 1]])
        logits[name] = heads.scale * features @ classes.T  # [B, 196, classes]
    logits["row"], logits["column"] = heads.cells(features).split(GRID, dim=-1)
    total = torch.stack([_loss(logits[name], labels[name]) for name in logits]).sum()
    drawn = labels["form"] < len(FORMS)
    accuracy = {k: (logits[k].argmax(-1) == labels[k])[drawn].float().mean().item() for k in logits}
    return total, accuracy


def _loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    weight = None
    if logits.shape[-1] == len(FORMS) + 1 == len(COLOURS) + 1 and labels.max() == len(FORMS):
        weight = torch.ones(logits.shape[-1])
        weight[-1] = _NOTHING_WEIGHT
    return cross_entropy(logits.flatten(0, 1), labels.flatten(), weight=weight)
