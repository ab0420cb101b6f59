"""What the uncompressed model says at the positions of a chunk: made once, and kept as far as a limit of memory goes.

A position's distribution takes 4 bytes a vocabulary entry, its hidden state some hundreds of times less. So states are
kept first; distributions fill what is left, and are made again from the states where they had to go.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import torch
from paperhooks.errors import DataError
from paperhooks.logprobs import Head, TeacherRows, in_chunks
from torch import Tensor

from paperhooks_evopress.evaluator.minibatches import Chunk

__all__ = ["Teacher"]

#: Most positions whose distributions are made, and compared, at once. Heads are slow on fewer than 128.
_PIECE: Final = 512
#: Bytes a position beside the distribution, and of a kept token: its probability and its id.
_BESIDE: Final = 12
_KEPT: Final = 8


class Teacher:
    """Distributions of the uncompressed model, by chunk.

    :param head: its head.
    :param limit: bytes that everything kept here, and the work on it, may take together.
    :param tokens: K, how many tokens are kept of a position; None keeps all, so that divergences are exact.
    :param rest: whether what is not among the K tokens counts as one more token; without it both sides are made to sum
        to 1 over the K, which does not see what a candidate moves out of them.
    :raises DataError: a limit that holds not even one position.
    """

    def __init__(self, head: Head, *, limit: int, tokens: int | None = None, rest: bool = True) -> None:
        if tokens is not None and tokens < 1:
            raise ValueError(f"tokens is {tokens}; expected at least 1 token to keep of a position, or None for all")
        self.head, self.tokens, self.rest = head, tokens, rest
        whole = 4 * head.vocabulary
        position = _BESIDE + (whole if tokens is None or tokens >= head.vocabulary else _KEPT * tokens)
        # TeacherRows works in a quarter of what it is given, four copies of a position's logits at a time.
        least = 4 * max(4 * whole, position)
        if limit < 2 * least:
            raise DataError(
                f"limit is {limit} bytes for the teacher; with {head.vocabulary} vocabulary entries at least "
                f"{2 * least} are needed, and {2 * least * 128} make it fast"
            )
        self._share = min(limit // 2, max(least, 4 * _PIECE * max(position, whole)))
        #: Positions of a piece.
        self.piece = max(1, min(_PIECE, 3 * self._share // 4 // position))
        self._room = limit - self._share
        self._states: OrderedDict[Chunk, Tensor] = OrderedDict()
        self._rows: OrderedDict[tuple[Chunk, int], TeacherRows] = OrderedDict()
        self._held = 0

    @property
    def nbytes(self) -> int:
        """Bytes that are kept now."""
        return self._held

    def states(self, chunk: Chunk) -> Tensor | None:
        """Hidden states [n, D] of a chunk's positions, where they are kept."""
        if chunk in self._states:
            self._states.move_to_end(chunk)
        return self._states.get(chunk)

    def keep(self, chunk: Chunk, states: Tensor) -> None:
        """Keep hidden states [n, D], if they fit; older ones go where they do not."""
        if chunk not in self._states and states.nbytes <= self._room:
            self._make_room(states.nbytes)
            self._states[chunk] = states
            self._held += states.nbytes

    def rows(self, chunk: Chunk, states: Tensor, start: int) -> TeacherRows:
        """The distributions of one piece of a chunk, from ``start`` on.

        :param states: [n, D] of the whole chunk. :raises DataError: they are NaN.
        """
        key = chunk, start
        if key in self._rows:
            self._rows.move_to_end(key)
            return self._rows[key]
        piece = states[start : start + self.piece]
        # All tokens are asked for by their number: where they did not fit, fewer would be kept without a word.
        made = TeacherRows.of(piece, self.head, limit=self._share, tokens=self.tokens or self.head.vocabulary)
        if made.nbytes <= self._room:
            self._make_room(made.nbytes)
            self._rows[key] = made
            self._held += made.nbytes
        return made

    def has_rows(self, chunk: Chunk, start: int) -> bool:
        """Whether the distributions of a piece are kept."""
        return (chunk, start) in self._rows

    def divergence(self, rows: TeacherRows, hidden: Tensor) -> Tensor:
        """KL(teacher || candidate) in nats, float32 [m], of hidden states [m, D] at the positions of ``rows``."""
        if self.rest or rows.ids is None:
            return rows.divergence(hidden, self.head)
        return in_chunks(self._renormalised, _PIECE, hidden, rows.probabilities, rows.ids)

    def _renormalised(self, hidden: Tensor, probabilities: Tensor, ids: Tensor) -> Tensor:
        p = probabilities / probabilities.sum(-1, keepdim=True)
        q = self.head.logits(hidden).gather(-1, ids.long()).log_softmax(-1)
        divergences: Tensor = (torch.special.xlogy(p, p) - p * q).sum(-1)
        return divergences

    def _make_room(self, nbytes: int) -> None:
        while self._held + nbytes > self._room and (self._rows or self._states):
            gone = (self._rows or self._states).popitem(last=False)[1]
            self._held -= gone.nbytes
