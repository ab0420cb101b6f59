"""Token selection: one algebra for masks, caches, outputs and labels once some tokens have left the sequence.

One rule carries everything: **original coordinates**. A :class:`TokenTrack` knows, for the tokens alive in this
forward, their columns in the full sequence; a :class:`SelectedLayer` knows the same for the entries of one layer's
cache. Masks that transformers builds for the full sequence are then gathered, never rebuilt, so every pattern
(causal, padded, prefix, multi-turn) survives.

Letters: B batch, T tokens of this forward, P tokens before it, n tokens alive, S entries of a layer's cache, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from paperhooks.compat import DynamicLayer, new_layer
from paperhooks.errors import UnsupportedGeneration
from paperhooks.tokens.row_state import Attendance

__all__ = [
    "SelectedLayer",
    "TokenTrack",
    "compact",
    "compact_labels",
    "held_layer",
    "selected_layer",
]


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
        """The track after keeping only rows ``index`` [B, K] of the tokens now alive."""
        if self.valid is not None:
            survived = self.valid.gather(1, index)
            valid = survived if valid is None else valid & survived
        real = padding_mask[:, -self.length :].to(index.device, torch.bool) if padding_mask is not None else None
        return TokenTrack(self.index.gather(1, index), valid, self.length, self.past, real, self.maskless)

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
        if self.valid is not None:  # empty slots go to a row behind the last, which is cut off
            index = index.masked_fill(~self.valid.to(index.device), self.length)
        batch, width = hidden_states.shape[0], hidden_states.shape[-1]
        full = hidden_states.new_zeros(batch, self.length + 1, width)
        return full.scatter(1, index[..., None].expand(batch, index.shape[1], width), hidden_states)[:, : self.length]


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


class SelectedLayer(DynamicLayer):  # type: ignore[misc]  # transformers is not type-checked here
    """A dynamic cache layer that remembers which columns of the full sequence its entries are.

    Its entries are ``prefix`` followed by the contiguous columns ``tail`` to ``total - 1``. Decoding only moves
    ``total``: no tensor is touched until somebody needs the columns.

    Masks are fitted to such a layer by hooks. Without them it takes single tokens where no mask is needed (nothing was
    padded, no row kept fewer tokens, a kernel that is given none), which is right, and refuses everything else.
    """

    def __init__(self, total: int = 0, first: bool = False) -> None:
        super().__init__()
        self.first = first
        self.prefix: Tensor | None = None  # int64 [B, S0]
        self.prefix_valid: Tensor | None = None  # bool [B, S0]
        self.tail = 0
        self.total = total
        self.lost: Tensor | None = None  # int64 [B]: real tokens that selection kept out of this layer
        self.pending: TokenTrack | None = None
        self.attendance: Attendance | None = None
        self.maskless = True  # no mask was needed so far

    @classmethod
    def adopt(cls, layer: DynamicLayer, first: bool = False) -> SelectedLayer:
        """Take over the keys and values of a plain dynamic layer that holds the whole sequence so far."""
        new = cls(layer.get_seq_length(), first)
        new.__dict__.update(vars(layer))
        return new

    def announce(self, attendance: Attendance, track: TokenTrack | None = None) -> None:
        """A forward with hooks is about to fill this layer, with the tokens of ``track`` or with all of them."""
        self.attendance = attendance
        self.pending = track

    @property
    def entries(self) -> int:
        """S: how many keys this layer holds."""
        return int(self.keys.shape[-2]) if self.is_initialized else 0

    def get_seq_length(self) -> int:
        """How many entries this layer holds; the first layer tells how many tokens the whole sequence has, by which the
        model counts positions on."""
        return self.total if self.first else self.entries

    def columns(self, batch: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """``index`` int64 [B, S] and ``valid`` bool [B, S] (or None: all) of the entries held now."""
        tail = torch.arange(self.tail, self.total, device=device).expand(batch, self.total - self.tail)
        if self.prefix is None:
            return tail, None
        prefix = self.prefix.to(device)
        if self.total == self.tail:
            return prefix, self.prefix_valid
        valid = self.prefix_valid
        if valid is not None:
            valid = torch.nn.functional.pad(valid.to(device), (0, tail.shape[1]), value=True)
        return torch.cat([prefix, tail], dim=1), valid

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values [B, H, n, h]; the columns are those announced in ``pending``, else the next ones.

        :raises UnsupportedGeneration: no hook has fitted the mask, and one is needed.
        """
        if self.attendance is None or not self.attendance.open:
            self.pending = None
            self._check_alone(key_states.shape[-2])
        if self.pending is None:
            self.total += key_states.shape[-2]
        else:
            self._append(self.pending)
            self.pending = None
        updated: tuple[Tensor, Tensor] = super().update(key_states, value_states, *args, **kwargs)
        return updated

    def _check_alone(self, tokens: int) -> None:
        if self.prefix is not None and (tokens > 1 or not self.maskless or self.prefix_valid is not None):
            raise UnsupportedGeneration(
                f"this layer of the cache holds a selection of tokens ({self.prefix.shape[1]} of {self.tail} at the "
                "last selection), which a method made that is not attached now, so that masks of the whole sequence do "
                "not fit it. Go on inside the session, attach the method again with the same options, or fill a new "
                "cache"
            )

    def _append(self, track: TokenTrack) -> None:
        self.maskless = self.maskless and track.maskless
        lost = track.dropped()
        self.lost = lost if self.lost is None else self.lost + lost
        if self.total:  # earlier turns
            index, valid = self.columns(track.columns.shape[0], track.columns.device)
            self.prefix = torch.cat([index, track.columns], dim=1)
            self.prefix_valid = concat_valid(valid, index, track)
        else:
            self.prefix, self.prefix_valid = track.columns, track.valid
        self.total = self.tail = track.past + track.length

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens of the full sequence, in this layer's own count (``tokens_to_remove`` <= 0).

        :raises UnsupportedGeneration: the cut falls where batch entries kept different numbers of tokens.
        """
        self.pending = None
        tokens_to_remove = int(tokens_to_remove)  # before transformers 5.18 generate passes a tensor
        total = max(self.total - abs(tokens_to_remove), 0)
        if tokens_to_remove <= 0 and self.prefix is not None and total < self.tail and self.is_initialized:
            gone = self._entries_from(total)
            super().crop(-(gone + self.total - self.tail))
            keep = self.prefix.shape[1] - gone
            self.prefix = self.prefix[:, :keep]
            self.prefix_valid = self.prefix_valid[:, :keep] if self.prefix_valid is not None else None
            self.tail = total
        else:
            super().crop(tokens_to_remove)
        self.total = total

    def _entries_from(self, total: int) -> int:
        assert self.prefix is not None  # for the type checker; crop() has tested it
        beyond = self.prefix >= total
        if self.prefix_valid is not None:
            beyond = beyond & self.prefix_valid
        counts = set(beyond.sum(1).tolist())
        if len(counts) > 1:
            raise UnsupportedGeneration(
                f"this cache cannot be cut back to {total} tokens: its batch entries kept different numbers of tokens "
                "behind that point; crop single sequences, or cut only generated tokens"
            )
        return int(counts.pop())

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.prefix = self.prefix_valid = self.lost = self.pending = self.attendance = None
        self.tail, self.total, self.maskless = 0, 0, True

    def _rows(self, change: Any) -> None:
        for name in ("prefix", "prefix_valid", "lost"):
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, change(value))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the batch entries, as beam search does."""
        super().reorder_cache(beam_idx)
        self._rows(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every batch entry ``repeats`` times."""
        super().batch_repeat_interleave(repeats)
        self._rows(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only the batch entries ``indices``."""
        super().batch_select_indices(indices)
        self._rows(lambda x: x[indices.to(x.device)])


def concat_valid(valid: Tensor | None, index: Tensor, track: TokenTrack) -> Tensor | None:
    """Validity [B, S+n] of cached entries ``index`` [B, S] followed by the tokens alive; None when all are valid."""
    if valid is None and track.valid is None:
        return None
    before = torch.ones_like(index, dtype=torch.bool) if valid is None else valid
    after = torch.ones_like(track.index, dtype=torch.bool) if track.valid is None else track.valid
    return torch.cat([before.to(after.device), after], dim=1)


def held_layer(cache: Any, index: int) -> SelectedLayer | None:
    """Layer ``index`` of ``cache`` if tokens were selected in it, else None. Converts nothing."""
    layers = cache.layers if cache is not None else ()
    layer = layers[index] if index < len(layers) else None
    return layer if isinstance(layer, SelectedLayer) else None


def selected_layer(cache: Any, index: int) -> SelectedLayer:
    """Layer ``index`` of ``cache``, converted in place to a :class:`SelectedLayer` if it is still a plain one.

    :raises UnsupportedGeneration: the cache's layers are of a kind whose entries cannot be told apart.
    """
    layers = cache.layers
    while len(layers) <= index:  # a cache made without a config grows layer by layer
        layers.append(new_layer(cache))
    layer = layers[index]
    if type(layer) is DynamicLayer:
        layer = layers[index] = SelectedLayer.adopt(layer, index == 0)
    if not isinstance(layer, SelectedLayer):
        raise UnsupportedGeneration(
            f"token selection needs a DynamicCache with plain layers; layer {index} of this {type(cache).__name__} is "
            f"a {type(layer).__name__}. Leave cache_implementation unset, or detach the method"
        )
    return layer
