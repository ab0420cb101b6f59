"""Training rows: many questions about one image behind one shared image prefix.

A row is ``<s>``, 196 image tokens, then question after question. A four-dimensional mask lets every question see
the prefix and itself but no other question, and every question's positions restart after the image. So each
question is computed exactly as if it stood alone, which is how the model is used, while the image is paid for once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from paperhooks_testbed.architecture import BOS, EOS, IMAGE_TOKEN, PAD, token_ids
from paperhooks_testbed.canvas import render_array
from paperhooks_testbed.questions import Question
from paperhooks_testbed.world import IMAGE_TOKENS, Scene

__all__ = ["IGNORE", "PREFIX", "Batch", "pack", "pixels"]

#: Tokens before the first question: ``<s>`` and the image.
PREFIX = 1 + IMAGE_TOKENS
IGNORE = -100

_IDS = token_ids()


@dataclass(frozen=True, slots=True)
class Batch:
    """One training step's input.

    ``input_ids``, ``position_ids``, ``targets`` are ``[B, T]`` int64; ``targets[b, t]`` is the token to predict *at*
    position t, or ``IGNORE``. ``attention_mask`` is ``[B, 1, T, T]`` bool (True = may look). ``pixel_values`` is
    ``[B, 3, 224, 224]`` float32.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    targets: torch.Tensor
    attention_mask: torch.Tensor
    pixel_values: torch.Tensor


def pixels(scenes: Sequence[Scene]) -> torch.Tensor:
    """Images as the processor would give them: ``[B, 3, 224, 224]`` float32 in -1 to 1."""
    images = np.stack([render_array(scene) for scene in scenes])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0).contiguous()


def pack(scenes: Sequence[Scene], questions: Sequence[Sequence[Question]]) -> Batch:
    """Pack the questions of every scene into one row each.

    :raises KeyError: a word outside the vocabulary.
    """
    rows = [[_encode(question) for question in asked] for asked in questions]
    length = PREFIX + max(sum(len(ids) for ids in row) for row in rows)
    shape = (len(rows), length)
    input_ids = torch.full(shape, _IDS[PAD])
    position_ids = torch.zeros(shape, dtype=torch.int64)
    targets = torch.full(shape, IGNORE)
    segments = torch.full(shape, -1)  # 0 is the prefix, then 1, 2, ... a question; -1 is padding
    for b, row in enumerate(rows):
        input_ids[b, 0], input_ids[b, 1:PREFIX] = _IDS[BOS], _IDS[IMAGE_TOKEN]
        position_ids[b, :PREFIX] = torch.arange(PREFIX)
        segments[b, :PREFIX] = 0
        start = PREFIX
        for number, ids in enumerate(row, start=1):
            stop = start + len(ids)
            input_ids[b, start:stop] = torch.tensor(ids)
            position_ids[b, start:stop] = torch.arange(PREFIX, PREFIX + len(ids))
            segments[b, start:stop] = number
            targets[b, stop - 2], targets[b, stop - 1] = ids[-1], _IDS[EOS]
            start = stop
    return Batch(input_ids, position_ids, targets, _mask(segments), pixels(scenes))


def _encode(question: Question) -> list[int]:
    return [_IDS[word] for word in (*question.text.split(), question.answer)]


def _mask(segments: torch.Tensor) -> torch.Tensor:
    """``[B, T]`` segment numbers to the ``[B, 1, T, T]`` mask; padding sees itself, so that no row is empty."""
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    keys, queries = segments[:, None, :], segments[:, :, None]
    allowed = causal & ((keys == 0) | (keys == queries)) & (queries >= 0)
    return (allowed | torch.eye(length, dtype=torch.bool))[:, None]
