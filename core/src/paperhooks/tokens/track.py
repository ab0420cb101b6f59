"""Token selection: one algebra for masks, caches, outputs and labels once some tokens have left the sequence.

One rule carries everything: **original coordinates**. A :class:`TokenTrack` knows, for the tokens alive in this
forward, their columns in the full sequence; a :class:`SelectedLayer` knows the same for the entries of one layer's
cache. Masks that transformers builds for the full sequence are then gathered, never rebuilt, so every pattern
(causal, padded, prefix, multi-turn) survives.

Letters: B batch, T tokens of this forward, P tokens before it, n tokens alive, S entries of a layer's cache, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["TokenTrack", "compact", "compact_labels"]


def compact(keep: Tensor, width: int, align: str = "right") -> tuple[Tensor, Tensor]:
    """Pack the kept tokens of a ragged batch into ``width`` slots. Needs no device synchronisation.

    :param keep: bool [B, T].
    :param width: at least the largest number of kept tokens of any row.
    :param align: ``"right"`` puts empty slots first (left-padded or unpadded prompts, as generation wants),
        ``"left"`` puts them last (right-padded batches).
    :return: ``index`` int64 [B, width], ascending where valid, and ``valid`` bool [B, width].

    >>> index, valid = compact(torch.tensor([[True, False, True], [False, False, True]]), 2)
    >>> index.tolist(), valid.tolist()
    ([[0, 2], [1, 2]], [[True, True], [False, True]])
    """
    if align == "right":
        index = keep.to(torch.int8).argsort(dim=1, stable=True)[:, keep.shape[1] - width :]
    else:
        index = keep.to(torch.int8).argsort(dim=1, stable=True, descending=True)[:, :width]
    return index, keep.gather(1, index)


class TokenTrack:
    """Which tokens of one forward are alive, in original coordinates. Immutable.

    index
        int64 [B, n]: rows of this forward (0 to T-1), ascending where valid.
    valid
        bool [B, n] or None when every slot holds a token.
    length, past
        T and P.
    real
        bool [B, T] or None: False for padding tokens.
    maskless
        The attention kernel was given no mask where the selection began, so later tokens need none either.
    """

    __slots__ = ("_dropped", "columns", "index", "length", "maskless", "past", "real", "valid")

    def __init__(
        self,
        index: Tensor,
        valid: Tensor | None,
        length: int,
        past: int,
        real: Tensor | None,
        maskless: bool = False,
    ) -> None:
        self.maskless = maskless
        self._dropped: Tensor | None = None
        self.index = index
        self.valid = valid
        self.length = length
        self.past = past
        self.real = real
        #: int64 [B, n]: columns in the whole sequence, P + index. One tensor for every layer of a stage.
        self.columns = index + past if past else index

    @classmethod
    def whole(cls, hidden_states: Tensor, past: int, maskless: bool = False) -> TokenTrack:
        """The track of a forward from which nothing has been dropped."""
        batch, length = hidden_states.shape[:2]
        index = torch.arange(length, device=hidden_states.device).expand(batch, length)
        return cls(index, None, length, past, None, maskless)

    def narrowed(self, index: Tensor, valid: Tensor | None, padding_mask: Tensor | None) -> TokenTrack:
        """The track after keeping only rows ``index`` [B, K] of the tokens now alive, on the device of ``index``.

        The next layer may be on another device than the one before it.
        """
        if self.valid is not None:
            survived = self.valid.to(index.device).gather(1, index)
            valid = survived if valid is None else valid & survived
        real = padding_mask[:, -self.length :].to(index.device, torch.bool) if padding_mask is not None else None
        alive = self.index.to(index.device).gather(1, index)
        return TokenTrack(alive, valid, self.length, self.past, real, self.maskless)

    def alive(self) -> Tensor:
        """int64 [B, n]: 1 for every slot that holds a real token, 0 for empty slots and padding."""
        kept = torch.ones_like(self.index) if self.real is None else self.real.gather(1, self.index).to(torch.int64)
        return kept if self.valid is None else kept * self.valid

    def dropped_before(self) -> Tensor:
        """int64 [B, n]: how many real tokens of this forward were dropped in front of each token alive."""
        real = torch.ones_like(self.index[:, :1]).expand(-1, self.length) if self.real is None else self.real.long()
        alive = self.alive()
        return (real.cumsum(1) - real).gather(1, self.index) - (alive.cumsum(1) - alive)

    def dropped(self) -> Tensor:
        """int64 [B]: how many real tokens of this forward were dropped in all. One tensor for all layers of a stage."""
        if self._dropped is None:
            total = self.length if self.real is None else self.real.sum(1)
            self._dropped = total - self.alive().sum(1)
        return self._dropped

    def restore(self, hidden_states: Tensor) -> Tensor:
        """Put [B, n, D] back at full length [B, T, D]; rows that were dropped are zeros. Differentiable."""
        index = self.index.to(hidden_states.device)
        batch, width = hidden_states.shape[0], hidden_states.shape[-1]
        full = hidden_states.new_zeros(batch, self.length, width)
        # The result is no view of anything: FSDP2 hangs its hooks on what a layer returns.
        if self.valid is None:
            return full.scatter(1, index[..., None].expand(batch, index.shape[1], width), hidden_states)
        empty = ~self.valid.to(index.device)  # empty slots add nothing, to the first row
        rows = index.masked_fill(empty, 0)[..., None].expand(batch, index.shape[1], width)
        return full.scatter_add(1, rows, hidden_states.masked_fill(empty[..., None], 0))


def compact_labels(labels: Tensor, track: TokenTrack, ignore_index: int = -100) -> Tensor:
    """Shifted labels of the tokens alive: slot i gets the label of the next token alive.

    :param labels: int64 [B, T], as a causal language model takes them.
    :return: int64 [B, n]; ``ignore_index`` where a slot is empty or the last.
    """
    kept = labels.gather(1, track.index.to(labels.device))
    if track.valid is not None:
        kept = kept.masked_fill(~track.valid.to(labels.device), ignore_index)
    shifted = torch.nn.functional.pad(kept[:, 1:], (0, 1), value=ignore_index)
    return shifted.masked_fill(~track.valid.to(labels.device), ignore_index) if track.valid is not None else shifted
