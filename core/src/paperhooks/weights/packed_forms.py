"""Weights in less room: codes of 1 to 8 bits with scales and zeros by group, or values beside a mask of their places.

A packed weight knows its exact bytes before it is made, unpacks to the dtype it came from, and is tensors and plain
numbers, so that it can be stored without knowing who made it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from paperhooks.errors import DataError

__all__ = ["Dense", "Masked", "Packed", "Quantised", "packed_bytes", "read_packed"]

#: Bits of a code, as bits of planes that are packed one by one: each plane's entries fill bytes.
_PLANES: Final = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}


class Packed:
    """A weight matrix, or any tensor, in the room that it takes at a level.

    :cvar form: how it is stored, for :func:`read_packed`.
    :cvar of_dtype: which of its tensors has the dtype of the values.
    """

    form: ClassVar[str]
    of_dtype: ClassVar[str] = "values"

    def unpack(self) -> Tensor:
        """The values in their own dtype: a new tensor, or the one that is held."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """What is stored of it, by name."""
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        """That of the values."""
        return self.tensors()[self.of_dtype].dtype

    def settings(self) -> dict[str, Any]:
        """What else is needed to read the tensors, as plain data."""
        return {}

    @property
    def nbytes(self) -> int:
        """What all of it takes."""
        return sum(each.numel() * each.element_size() for each in self.tensors().values())


@dataclass(frozen=True, eq=False)
class Dense(Packed):
    """All values as they are."""

    values: Tensor
    form: ClassVar[str] = "dense"

    def unpack(self) -> Tensor:
        """The values themselves, not a copy."""
        return self.values

    def tensors(self) -> dict[str, Tensor]:
        """The values."""
        return {"values": self.values}


@dataclass(frozen=True, eq=False)
class Masked(Packed):
    """The values that are not zero, in row-major order, and a bit for every entry.

    :param values: [n]. :param bits: uint8 [ceil(N / 8)] of the N entries of ``shape``.
    """

    values: Tensor
    bits: Tensor
    shape: tuple[int, ...]
    form: ClassVar[str] = "masked"

    @classmethod
    def of(cls, values: Tensor, kept: Tensor) -> Masked:
        """A tensor of which only the entries that are True in ``kept``, bool of its shape, are kept; others are 0.

        Raises DataError for a mask of another dtype or shape.
        """
        if kept.dtype != torch.bool or kept.shape != values.shape:
            raise DataError(f"the mask is {kept.dtype} {list(kept.shape)}; expected bool {list(values.shape)}")
        return cls(values[kept].contiguous(), _packed(kept.to(torch.uint8), 1), tuple(values.shape))

    def unpack(self) -> Tensor:
        """The values at their places, zero elsewhere."""
        n = math.prod(self.shape)
        kept = _unpacked(_wide([self.bits])[0], 1).view(torch.uint8)[:n].bool()
        out = torch.zeros(n, dtype=self.values.dtype, device=self.values.device)
        return out.masked_scatter_(kept, self.values).view(self.shape)

    def tensors(self) -> dict[str, Tensor]:
        """Values and mask."""
        return {"values": self.values, "bits": self.bits}

    def settings(self) -> dict[str, Any]:
        """The shape."""
        return {"shape": list(self.shape)}


@dataclass(frozen=True, eq=False)
class Quantised(Packed):
    """Codes of ``width`` bits with a scale and a zero for every run of ``group`` columns: (code - zero) scale.

    Of a matrix, or of several of one shape, such as the experts of a layer: [..., rows, columns].

    :param planes: uint8 [n], each with some bits of all codes.
    :param scales: [..., rows, groups], in the dtype of the weight; the last group may be shorter.
    :param zeros: uint8 [..., rows, groups]: codes that stand for 0.
    :raises DataError: planes, scales or zeros that do not fit one another.
    """

    planes: tuple[Tensor, ...]
    scales: Tensor
    zeros: Tensor
    width: int
    columns: int
    group: int
    form: ClassVar[str] = "quantised"
    of_dtype: ClassVar[str] = "scales"

    def __post_init__(self) -> None:
        _check_width(self.width)
        _check_groups(self.scales, self.zeros, self._shape, self.group)
        lengths = [[length] for length in _lengths(math.prod(self._shape), self.width)]
        found = [list(plane.shape) for plane in self.planes]
        if found != lengths or any(each.dtype != torch.uint8 for each in (*self.planes, self.zeros)):
            raise DataError(
                f"the planes of a quantised weight are {found}; {list(self._shape)} codes of {self.width} bits have "
                f"{lengths}, and these and the zeros are uint8"
            )

    @classmethod
    def of(cls, codes: Tensor, scales: Tensor, zeros: Tensor, width: int, group: int) -> Quantised:
        """Packs codes.

        :param codes: int [..., rows, columns] from 0 to 2 ** width - 1.
        :param scales, zeros: [..., rows, groups]; zeros as codes.
        :raises DataError: a width outside 1 to 8, codes or zeros outside of it, or groups that do not fit.
        """
        _check_width(width)
        _check_groups(scales, zeros, tuple(codes.shape), group)
        if codes.is_floating_point():
            raise DataError(f"codes are {codes.dtype}; expected whole numbers, as .round().int() makes them")
        for name, given in (("codes", codes), ("zeros", zeros)):
            if given.numel() and not 0 <= int(given.min()) <= int(given.max()) < 2**width:
                raise DataError(f"{name} go from {int(given.min())} to {int(given.max())}; {width} bits hold 0 to "
                                f"{2**width - 1}")  # fmt: skip
        planes, shift = [], 0
        for bits in _PLANES[width]:
            planes.append(_packed(((codes >> shift) & (2**bits - 1)).to(torch.uint8), bits))
            shift += bits
        zeros = zeros.to(torch.uint8).contiguous()
        return cls(tuple(planes), scales.contiguous(), zeros, width, codes.shape[-1], group)

    @property
    def _shape(self) -> tuple[int, ...]:
        return (*self.scales.shape[:-1], self.columns)

    def codes(self) -> Tensor:
        """The codes, uint8 [..., rows, columns]."""
        first, *others = _PLANES[self.width]
        planes = _wide(self.planes)
        out, shift = _unpacked(planes[0], first), first
        for plane, bits in zip(planes[1:], others, strict=True):
            out.add_(_unpacked(plane, bits)[: len(out)], alpha=2**shift)
            shift += bits
        return out.view(torch.uint8)[: math.prod(self._shape)].view(self._shape)

    def unpack(self) -> Tensor:
        """(code - zero) scale, in float32 and rounded to the scales' dtype."""
        codes, scales, zeros = self.codes(), self.scales.float(), self.zeros
        # Differences are whole and small: subtracting in bytes gives what float32 would, and a quarter of it is moved.
        if self.width < 8:
            signed, zeros = codes.view(torch.int8), zeros.view(torch.int8)
        else:
            signed = codes.to(torch.int16)
        if self.columns == scales.shape[-1] * self.group:
            runs = signed.view(*scales.shape, self.group)
            wide = runs.sub_(zeros[..., None]).float().mul_(scales[..., None])
        else:
            place = torch.arange(self.columns, device=signed.device) // self.group
            wide = signed.sub_(zeros[..., place]).float().mul_(scales[..., place])
        return wide.view(self._shape).to(self.scales.dtype)

    def tensors(self) -> dict[str, Tensor]:
        """Planes of the codes, scales and zeros."""
        planes = {f"plane{number}": plane for number, plane in enumerate(self.planes)}
        return {**planes, "scales": self.scales, "zeros": self.zeros}

    def settings(self) -> dict[str, Any]:
        """Bits of a code, columns, and how many of them share a scale."""
        return {"width": self.width, "columns": self.columns, "group": self.group}


def packed_bytes(
    shape: Sequence[int], *, width: int | None = None, group: int | None = None, kept: int | None = None,
    itemsize: int = 2,
) -> dict[str, int]:  # fmt: skip
    """Exact bytes of a tensor before it is packed: of its ``codes``, and with scales, zeros and masks (``bytes``).

    :param shape: [..., rows, columns]. :param width, group: for :class:`Quantised`. :param kept: entries, for
        :class:`Masked`. :param itemsize: bytes of a value or scale. Without either, all values as they are.
    :raises DataError: a width outside 1 to 8, more kept than there are, or both.
    """
    n = math.prod(shape)
    if width is not None and kept is not None:
        raise DataError("a width and a number of kept entries are two forms; give one of them")
    if kept is not None and (not isinstance(kept, int) or not 0 <= kept <= n):
        raise DataError(f"kept is {kept!r}; expected how many of {n} entries are kept")
    if width is not None:
        _check_width(width)
        *rows, columns = shape
        codes = sum(_lengths(n, width))
        scales = math.prod(rows) * math.ceil(columns / (group or columns))
        return {"codes": codes, "bytes": codes + scales * (itemsize + 1)}
    if kept is not None:
        return {"codes": kept * itemsize, "bytes": kept * itemsize + math.ceil(n / 8)}
    return {"codes": n * itemsize, "bytes": n * itemsize}


def read_packed(form: str, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Packed:
    """The weight that :meth:`Packed.tensors` and :meth:`Packed.settings` tell of.

    :raises DataError: an unknown form, or one of which something is missing.
    """
    try:
        if form == Dense.form:
            return Dense(tensors["values"])
        if form == Masked.form:
            return Masked(tensors["values"], tensors["bits"], tuple(settings["shape"]))
        if form == Quantised.form:
            planes = tuple(tensors[f"plane{number}"] for number in range(len(_PLANES[settings["width"]])))
            return Quantised(
                planes, tensors["scales"], tensors["zeros"], settings["width"], settings["columns"], settings["group"]
            )
    except (KeyError, TypeError) as error:
        raise DataError(f"a weight of the form {form!r} lacks {error}") from error
    raise DataError(f"there is no form of weights {form!r}; known: dense, masked, quantised")


def _check_width(width: int) -> None:
    if width not in _PLANES:
        raise DataError(f"codes have {width} bits; expected 1 to 8")


def _check_groups(scales: Tensor, zeros: Tensor, shape: tuple[int, ...], group: int) -> None:
    """Whether every row of codes of that shape has its scales and zeros."""
    if not shape or group < 1:
        raise DataError(
            f"codes are {list(shape)} in groups of {group} columns; expected [..., rows, columns], 1 or more"
        )
    expected = [*shape[:-1], math.ceil(shape[-1] / group)]
    if list(scales.shape) != expected or scales.shape != zeros.shape:
        raise DataError(
            f"scales and zeros are {list(scales.shape)} and {list(zeros.shape)}; {shape[-1]} columns in groups of "
            f"{group} have {expected}"
        )


def _lengths(n: int, width: int) -> list[int]:
    """Bytes of each plane of ``n`` codes."""
    return [math.ceil(n / (8 // bits)) for bits in _PLANES[width]]


def _packed(codes: Tensor, bits: int) -> Tensor:
    """uint8 [...] of n entries below 2 ** bits as uint8 [ceil(n bits / 8)], in row-major order.

    A byte holds entries that lie a share of all of them apart, so that unpacking writes long runs and not single
    entries.
    """
    share, n = 8 // bits, codes.numel()
    length = math.ceil(n / share)
    parts = torch.nn.functional.pad(codes.reshape(-1), (0, length * share - n)).view(share, length)
    out = parts[0].clone()
    for number in range(1, share):
        out |= parts[number] << (number * bits)
    return out


def _unpacked(packed: Tensor, bits: int) -> Tensor:
    """What :func:`_packed` was given, and up to seven zeros: new memory, in the dtype of ``packed``."""
    places = torch.arange(0, 8, bits, dtype=packed.dtype, device=packed.device)[:, None]
    # In numbers of several bytes the mask is that of each of them, and drops what has come from the byte beside.
    mask = int.from_bytes([2**bits - 1] * packed.element_size(), "little", signed=packed.element_size() > 1)
    return torch.bitwise_right_shift(packed, places).bitwise_and_(mask).view(-1)


def _wide(planes: Sequence[Tensor]) -> list[Tensor]:
    """Bytes as whole numbers of eight of them, where all can be seen so: half the time to work on them."""
    fits = all(len(plane) % 8 == 0 and plane.storage_offset() % 8 == 0 for plane in planes)
    return [plane.view(torch.int64) if fits else plane for plane in planes]
