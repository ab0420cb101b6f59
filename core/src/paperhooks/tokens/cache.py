"""Layers of a cache that hold a part of the tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from paperhooks.compat import DynamicLayer, new_layer
from paperhooks.errors import UnsupportedGeneration
from paperhooks.tokens.row_state import Attendance
from paperhooks.tokens.track import TokenTrack

__all__ = ["SelectedLayer", "held_layer", "selected_layer"]


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
