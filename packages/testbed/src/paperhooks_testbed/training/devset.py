"""Fast accuracy on dev questions in packed rows, for the training log."""

from __future__ import annotations

import random

import torch
from transformers import LlavaForConditionalGeneration

from paperhooks_testbed.questions import KINDS, questions_for
from paperhooks_testbed.training.packer import IGNORE, pack
from paperhooks_testbed.training.trainstate import packed_logits
from paperhooks_testbed.world import generate_scene

__all__ = ["DevSet"]

_ROWS = 10
_FIRST = 50_000_000


class DevSet:
    """Always the same dev images with up to 20 questions each.

    :param images: how many.
    """

    def __init__(self, images: int = 60) -> None:
        rng = random.Random("paperhooks-testbed dev log")
        scenes = [generate_scene("dev", _FIRST + i) for i in range(images)]
        asked = [questions_for(scene, rng, list(KINDS) * 4) for scene in scenes]
        starts = range(0, images, _ROWS)
        self.questions = [asked[i : i + _ROWS] for i in starts]
        self.batches = [pack(scenes[i : i + _ROWS], asked[i : i + _ROWS]) for i in starts]

    @torch.no_grad()
    def accuracy(self, model: LlavaForConditionalGeneration, drop_from: int | None = None) -> dict[str, float]:
        """Share of right answers by kind and in ``all``, with the image hidden from layer ``drop_from`` on."""
        never = len(model.model.language_model.layers)
        hits: dict[str, list[bool]] = {kind: [] for kind in KINDS}
        for batch, rows in zip(self.batches, self.questions):
            depth = torch.full((len(rows),), never if drop_from is None else drop_from)
            best = packed_logits(model, batch, depth, dropped=True).argmax(-1)
            for b, row in enumerate(rows):
                places = (batch.targets[b] != IGNORE).nonzero()[::2, 0]  # answers; between them stand the ends
                right = (best[b, places] == batch.targets[b, places]).tolist()
                for question, hit in zip(row, right):
                    hits[question.kind].append(hit)
        hits["all"] = [hit for kind in KINDS for hit in hits[kind]]
        return {kind: sum(values) / max(1, len(values)) for kind, values in hits.items()}
