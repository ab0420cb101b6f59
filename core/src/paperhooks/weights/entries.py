"""What the weight journal knows of one edited parameter, and which of its entries are still the journal's own.

An entry is the journal's own while it holds what the journal wrote there last, bit for bit. Where the model was cast
since (``model.half()``, ``model.double()``), it is the written value cast in the same way; its old value is then the
old value cast, which is what the model would hold without the edit. Everything else belongs to whoever wrote it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import torch
from torch import Tensor, nn

from paperhooks.errors import ModelError
from paperhooks.io.hashing import tensor_digest

__all__ = ["Change", "Digests", "Values", "bits", "ordinary", "put", "take", "written_in_full"]

#: Edits move bits, not numbers: arithmetic could change the payload of a NaN, and not every dtype can be indexed.
_BITS: Final = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

#: Entries to a digest of :class:`Digests`. Tensors of up to so many keep a copy of what was written.
_BLOCK: Final = 1 << 16


@dataclass(frozen=True, eq=False)
class Values:
    """What was written, entry by entry: [n] for a sparse edit, a small parameter's shape for a dense one."""

    values: Tensor

    def holds(self, now: Tensor, precision: torch.dtype) -> Tensor:
        """Where ``now`` is what was written, cast to ``precision`` and on to its own dtype; bool of its shape."""
        return _same(now, _cast(self.values, precision, now), cast={now.dtype, precision} != {self.values.dtype})


@dataclass(frozen=True, eq=False)
class Digests:
    """What was written to a large parameter: SHA-256 digests of blocks of 65,536 entries, in row-major order.

    digests
        Digests by dtype: of the parameter's own, and of the narrower ones that a model is cast to; a narrow value does
        not tell which wide one it was made from.
    """

    digests: Mapping[torch.dtype, tuple[str, ...]]

    @classmethod
    def of(cls, values: Tensor) -> Digests:
        """Digests of a tensor that is about to be written."""
        return cls({dtype: _block_digests(values, dtype) for dtype in _precisions(values.dtype)})

    def holds(self, now: Tensor, precision: torch.dtype) -> Tensor:
        """Where ``now`` is what was written, as for :class:`Values`; a block with one other entry is not."""
        pairs = zip(_block_digests(now, precision), self.digests[precision], strict=True)
        equal = torch.tensor([found == known for found, known in pairs], device="cpu")
        own = equal.repeat_interleave(_BLOCK)[: now.numel()].view(now.shape).to(now.device)
        return own & _rounded(now, precision)


@dataclass(frozen=True, eq=False)
class Change:
    """What the journal knows of one edited parameter. A further edit replaces the record, it does not change it.

    name, names
        Qualified name, and all names under which it occurs (several for tied weights), at the first edit.
    method
        Who edits it.
    shape
        The parameter's shape at the first edit.
    index
        Flat row-major positions int64 [n], sorted, whose old values are kept; None when the whole tensor is kept.
    saved
        The old values: [n], or the parameter's shape.
    written
        What the journal has written to these entries. There are several where an interrupt left open whether the last
        of them has got there.
    lost
        Where somebody else had overwritten an edit before the journal wrote again: bool like ``saved``. The old value
        there is theirs. None when there are no such entries.
    """

    parameter: nn.Parameter = field(repr=False)
    name: str
    names: tuple[str, ...]
    method: str
    shape: torch.Size
    index: Tensor | None = field(repr=False)
    saved: Tensor = field(repr=False)
    written: tuple[Values | Digests, ...] = field(default=(), repr=False)
    lost: Tensor | None = field(default=None, repr=False)

    @property
    def entries(self) -> int:
        """How many entries of the parameter are kept."""
        return self.saved.numel()

    @property
    def comparable(self) -> bool:
        """Whether the parameter is in memory and what it was, but for dtype, device and values.

        Otherwise no edit is in it any more, or none that could be undone.
        """
        now = self.parameter.detach()
        plain = ordinary(self.parameter) and now.is_floating_point() and not now.is_meta
        return plain and now.shape == self.shape

    def current(self) -> Tensor:
        """The entries as they are now, [n] or the parameter's shape; of a whole parameter no copy."""
        now = self.parameter.detach()
        return now if self.index is None else take(now, self.index)

    def original(self) -> Tensor:
        """The whole parameter as it was, in the dtype and on the device that it has now: a new tensor of its shape.

        Raises ModelError when it has got another shape or is on the meta device.
        """
        self._need_comparable()
        now = self.parameter.detach()
        if self.index is None:
            return _cast(self.saved.clone(), self.saved.dtype, now)
        whole = now.clone()
        put(whole, self.index, _cast(self.saved, self.saved.dtype, now))
        return whole

    def restore(self) -> int:
        """Put the old values back in place where the edit is still there.

        Entries that hold their old values already are fine, so that doing it twice does no harm. Returns how many
        entries were left to whoever wrote them.
        """
        if not self.comparable:
            return self.entries
        now = self.parameter.detach()
        own, old = self._own()
        if self.index is not None:
            put(now, self.index.to(own.device)[own], take(old, own.nonzero().flatten()))
        else:
            bits(now).copy_(bits(old) if bool(own.all()) else torch.where(own, bits(old), bits(now)))
        return int((~own if self.lost is None else ~own | self.lost.to(own.device)).sum())

    def followed(self) -> Change:
        """The record for a further edit, after whatever has happened to the parameter since.

        What somebody else has written is what was there before the further edit, so it is the old value from now on.
        Raises ModelError when the parameter has got another shape or is on the meta device.
        """
        self._need_comparable()
        now = self.current()
        own, old = self._own()
        if bool(own.all()) and now.dtype == self.saved.dtype and now.device == self.saved.device:
            return self
        lost = ~own if self.lost is None else ~own | self.lost.to(own.device)
        saved = torch.where(own, bits(old), bits(now)).view(now.dtype)
        index = None if self.index is None else self.index.to(now.device)
        return replace(self, index=index, saved=saved, lost=lost, written=(_written(now, index),))

    def covering(self, index: Tensor) -> Change:
        """The record with the positions of ``index`` (int64 [m], on the parameter's device) among those kept."""
        if self.index is None:
            return self
        now = self.parameter.detach()
        new = index[~torch.isin(index, self.index)]
        merged, order = torch.cat([self.index, new]).sort()
        saved = torch.cat([bits(self.saved), bits(take(now, new))])[order].view(now.dtype)
        lost = None if self.lost is None else torch.cat([self.lost, torch.zeros_like(new, dtype=torch.bool)])[order]
        return replace(self, index=merged, saved=saved, lost=lost, written=(Values(take(now, merged)),))

    def whole(self) -> Change:
        """The record with the whole parameter kept."""
        if self.index is None:
            return self
        now = self.parameter.detach()
        lost = None
        if self.lost is not None:
            lost = torch.zeros(self.shape, dtype=torch.bool, device=now.device)
            put(lost, self.index, self.lost)
        return replace(self, index=None, saved=self.original(), lost=lost, written=(written_in_full(now),))

    def _own(self) -> tuple[Tensor, Tensor]:
        """Where the edit, or the old value, is in the entries now (bool), and the old values as they would be now.

        The model may have been cast to a narrower dtype and back. That is believed only of a parameter that is rounded
        throughout, and only when it explains every entry: a value that somebody else wrote, such as 1, may well be a
        rounded one of the journal's.
        """
        now = self.current()
        own, old = self._at(self.saved.dtype, now)
        for precision in _precisions(self.saved.dtype)[1:]:
            if bool(own.all()):
                break
            if not self._rounded_to(precision):
                continue
            rounded, rounded_old = self._at(precision, now)
            if precision == now.dtype:
                own = own | rounded
            elif bool(rounded.all()):
                own, old = rounded, rounded_old
        return own, old

    def _rounded_to(self, precision: torch.dtype) -> bool:
        """Whether all of the parameter, edited or not, is no more precise than that."""
        return bool(_rounded(self.parameter.detach(), precision).all())

    def _at(self, precision: torch.dtype, now: Tensor) -> tuple[Tensor, Tensor]:
        old = _cast(self.saved, precision, now)
        own = _same(now, old, cast={now.dtype, precision} != {self.saved.dtype})
        for written in self.written:
            if not bool(own.all()):
                own = own | written.holds(now, precision)
        return own, old

    def _need_comparable(self) -> None:
        if not self.comparable:
            now = self.parameter.detach()
            raise ModelError(
                f"{self.name} is {now.dtype} {list(now.shape)} on {now.device} now, but was edited as "
                f"{self.saved.dtype} {list(self.shape)} in memory; undo edits before a parameter gets another shape or "
                "kind, or is offloaded"
            )


def ordinary(tensor: Tensor) -> bool:
    """Whether what a tensor shows are the values that it holds: not the face of packed ones, or of a share of some.

    Of torch's own classes, or of a subclass that has memory for all of its values, as on a device made of Python code.
    A subclass of Parameter is none: quantised weights may well call themselves bfloat16.
    """
    values = tensor.data
    if tensor.layout is not torch.strided or type(values) is Tensor:
        return tensor.layout is torch.strided and type(tensor) in (Tensor, nn.Parameter)
    if type(values) is not type(tensor) or hasattr(values, "__tensor_flatten__") or hasattr(values, "full_tensor"):
        return False
    try:
        return values.untyped_storage().nbytes() >= values.numel() * values.element_size()
    except RuntimeError:  # there is no memory
        return False


def bits(tensor: Tensor) -> Tensor:
    """The tensor's storage seen as integers of the same size and strides."""
    return tensor if tensor.dtype is torch.bool else tensor.view(_BITS[tensor.element_size()])


def take(tensor: Tensor, index: Tensor) -> Tensor:
    """The entries at the flat row-major positions ``index`` int64 [n], bit for bit: a new tensor [n]."""
    return bits(tensor)[torch.unravel_index(index.to(tensor.device), tensor.shape)].view(tensor.dtype)


def put(tensor: Tensor, index: Tensor, values: Tensor) -> None:
    """Write ``values`` [n] of the tensor's dtype to the flat row-major positions ``index`` int64 [n], in one step."""
    where = torch.unravel_index(index.to(tensor.device), tensor.shape)
    bits(tensor)[where] = bits(values.to(tensor.device))


def written_in_full(values: Tensor) -> Values | Digests:
    """The record of a dense edit that writes ``values``; it shares no memory with them."""
    return Values(values.clone()) if values.numel() <= _BLOCK else Digests.of(values)


def _written(now: Tensor, index: Tensor | None) -> Values | Digests:
    return written_in_full(now) if index is None else Values(now)


def _precisions(own: torch.dtype) -> tuple[torch.dtype, ...]:
    """A parameter's dtype, then those in which a cast of the model may have left less of it."""
    wide = (torch.float32, torch.bfloat16, torch.float16)
    return (own, *(dtype for dtype in wide if dtype != own and dtype.itemsize <= own.itemsize))


def _cast(values: Tensor, precision: torch.dtype, like: Tensor) -> Tensor:
    return values.to(like.device).to(precision).to(like.dtype)


def _same(one: Tensor, other: Tensor, *, cast: bool) -> Tensor:
    """Where two tensors of one dtype have the same bits. After a ``cast`` NaN is NaN: its payload may have changed."""
    same = bits(one) == bits(other)
    return same | (_nan(one) & _nan(other)) if cast else same


def _rounded(tensor: Tensor, precision: torch.dtype) -> Tensor:
    """Where a tensor holds values of that precision; bool of its shape."""
    if precision == tensor.dtype:
        return torch.ones_like(tensor, dtype=torch.bool)
    return _same(tensor, tensor.to(precision).to(tensor.dtype), cast=True)


def _nan(tensor: Tensor) -> Tensor:
    return (tensor.float() if tensor.element_size() == 1 else tensor).isnan()


def _block_digests(tensor: Tensor, precision: torch.dtype) -> tuple[str, ...]:
    blocks = tensor.detach().cpu().contiguous().reshape(-1).split(_BLOCK)
    return tuple(tensor_digest(block.to(precision)) for block in blocks)
