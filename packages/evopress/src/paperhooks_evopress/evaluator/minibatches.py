"""Which tokens a stage reads: an exact number of them, drawn anew for every stage, in chunks that are run at once."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import torch
from paperhooks.errors import counted
from paperhooks.models import length_batches
from torch import Tensor

__all__ = ["Chunk", "MinibatchWarning", "PaddedChunk", "chunks", "minibatch", "padded"]

#: Sequences that are run at once: of each its number, and how many of its tokens are read.
Chunk: TypeAlias = tuple[tuple[int, int], ...]

#: A shorter sequence predicts nothing.
_LEAST: Final = 2


class MinibatchWarning(UserWarning):
    """A stage reads fewer tokens than it was asked to."""


def minibatch(lengths: Sequence[int], tokens: int, seed: int) -> Chunk:
    """Sequences drawn uniformly without repetition, the last one cut so that they have ``tokens`` tokens together.

    No sequence is cut to one token, which would predict nothing: then the one before gives up one of its own, or a
    longer one is drawn in place of the last.

    :param lengths: of all sequences, each at least 2. :param seed: of the draw; the same seed draws the same.
    :return: (number, tokens read) of each drawn sequence, in the order of the draw.
    :raises ValueError: fewer than 2 tokens, or sequences that are too short.

    >>> sum(read for _, read in minibatch([5, 9, 7], 12, seed=0))
    12
    """
    if tokens < _LEAST:
        raise ValueError(f"a stage of {tokens} tokens predicts nothing; expected at least {_LEAST}")
    if not lengths or min(lengths) < _LEAST:
        raise ValueError(f"sequences have {list(lengths)[:8]} tokens; expected some, each of at least {_LEAST}")
    order = list(range(len(lengths)))
    random.Random(seed).shuffle(order)
    there = sum(lengths)
    if there < tokens:
        warnings.warn(
            f"a stage of {tokens} tokens was asked for, and the calibration text has {there}: it reads all of them; "
            "give more text, or make the schedule's stages smaller",
            MinibatchWarning,
            stacklevel=2,
        )
        tokens = there
    drawn: list[tuple[int, int]] = []
    left = tokens
    for number in order:
        if left < _LEAST:
            break
        read = min(lengths[number], left)
        drawn.append((number, read))
        left -= read
    return tuple(drawn if left == 0 else _one_more(drawn, lengths, order))


def _one_more(drawn: list[tuple[int, int]], lengths: Sequence[int], order: Sequence[int]) -> list[tuple[int, int]]:
    """What was drawn, with one token more."""
    others = order[len(drawn) :]
    for place in range(len(drawn) - 1, -1, -1):
        number, read = drawn[place]
        if read > _LEAST:  # its last token goes, and with it there are two for the next sequence
            return [*drawn[:place], (number, read - 1), *drawn[place + 1 :], (others[0], _LEAST)]
    for number in others:
        if lengths[number] > _LEAST:
            return [*drawn[:-1], (number, _LEAST + 1)]
    warnings.warn(
        f"an odd number of tokens cannot be made of {counted(len(lengths), 'sequence')} of {_LEAST} tokens each; the "
        "stage reads one token fewer",
        MinibatchWarning,
        stacklevel=3,
    )
    return drawn


def chunks(drawn: Chunk, batch_tokens: int) -> list[Chunk]:
    """What was drawn, in chunks of similar length, the longest first.

    The order of the draw does not matter, so that equal draws are equal chunks.

    :param batch_tokens: most tokens of a chunk, padding included; one sequence always fits.
    """
    ordered = sorted(drawn, key=lambda each: (-each[1], each[0]))
    read = [tokens for _, tokens in ordered]
    return [tuple(ordered[place] for place in batch) for batch in length_batches(range(len(read)), read, batch_tokens)]


@dataclass(frozen=True, eq=False)
class PaddedChunk:
    """A chunk as a model reads it.

    inputs
        ``input_ids`` int64 [B, T], and ``attention_mask`` [B, T] where there is padding, which is on the right.
    rows
        int64 [n], the flat positions in [B * T] that predict: all but padding and the last of each sequence.
    targets
        int64 [n], what they are to predict.
    """

    inputs: dict[str, Tensor]
    rows: Tensor
    targets: Tensor


def padded(sequences: Sequence[Tensor], chunk: Chunk, device: torch.device | str = "cpu") -> PaddedChunk:
    """The sequences of a chunk side by side.

    :param sequences: all of them, int64 [T] each. :param device: where the model reads them.
    """
    read = [sequences[number][:tokens] for number, tokens in chunk]
    ids = torch.nn.utils.rnn.pad_sequence(read, batch_first=True)
    lengths = torch.tensor([len(each) for each in read])
    places = torch.arange(ids.shape[1])
    rows = (places < lengths[:, None] - 1).reshape(-1).nonzero().squeeze(1)
    inputs = {"input_ids": ids}
    if int(lengths.min()) < ids.shape[1]:
        inputs["attention_mask"] = (places < lengths[:, None]).long()
    # The position after a counted one is of the same sequence.
    targets = ids.reshape(-1)[rows + 1]
    moved = {name: tensor.to(device) for name, tensor in inputs.items()}
    return PaddedChunk(moved, rows.to(device), targets.to(device))
