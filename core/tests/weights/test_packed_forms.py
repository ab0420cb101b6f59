"""Packed weights: what goes in comes out, in exactly the bytes that were said."""

from __future__ import annotations

import math

import pytest
import torch
from paperhooks.errors import DataError
from paperhooks.weights import Dense, Masked, Packed, Quantised, packed_bytes, read_packed
from torch import Tensor


def codes(rows: int, columns: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 2**width, (rows, columns), generator=torch.Generator().manual_seed(seed))


def again(packed: Packed) -> Packed:
    return read_packed(packed.form, packed.tensors(), packed.settings())


@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize(("columns", "group"), [(64, 16), (64, 64), (61, 16), (7, 16), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codes_come_back(width: int, columns: int, group: int, dtype: torch.dtype) -> None:
    given, groups = codes(5, columns, width), math.ceil(columns / group)
    scales = (torch.rand(5, groups, generator=torch.Generator().manual_seed(1)) + 0.1).to(dtype)
    zeros = codes(5, groups, width, 2)
    packed = Quantised.of(given, scales, zeros, width, group)
    assert torch.equal(packed.codes().long(), given)
    place = torch.arange(columns) // group
    wide = (given - zeros[:, place]).float() * scales.float()[:, place]
    assert packed.unpack().dtype == dtype
    assert torch.equal(packed.unpack(), wide.to(dtype))
    assert torch.equal(again(packed).unpack(), packed.unpack())
    told = packed_bytes((5, columns), width=width, group=group, itemsize=dtype.itemsize)
    assert told["bytes"] == packed.nbytes
    assert told["codes"] == sum(plane.numel() for plane in packed.planes)
    assert told["codes"] <= 5 * (columns * width / 8 + 3)


@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize("shape", [(4, 6, 32), (3, 5, 7), (2, 3, 4, 16), (24,)])
def test_codes_of_several_matrices_are_those_of_each(width: int, shape: tuple[int, ...]) -> None:
    *rows, columns = shape
    n, groups = math.prod(rows), math.ceil(columns / 8)
    given, zeros = codes(n, columns, width), codes(n, groups, width, 2)
    scales = torch.rand(n, groups, generator=torch.Generator().manual_seed(1)) + 0.1
    flat = Quantised.of(given, scales, zeros, width, 8)
    packed = Quantised.of(given.view(shape), scales.view(*rows, groups), zeros.view(*rows, groups), width, 8)
    assert torch.equal(packed.codes(), flat.codes().view(shape))
    assert torch.equal(packed.unpack(), flat.unpack().view(shape))
    assert torch.equal(again(packed).unpack(), packed.unpack())
    told = packed_bytes(shape, width=width, group=8, itemsize=4)
    assert told == packed_bytes((n, columns), width=width, group=8, itemsize=4)
    assert told["bytes"] == packed.nbytes


def test_planes_may_lie_anywhere_in_memory() -> None:
    """As views of other tensors, also where they cannot be read eight bytes at a time."""
    packed = Quantised.of(codes(6, 64, 3), torch.ones(6, 1), codes(6, 1, 3), 3, 64)
    for offset in (1, 8):
        planes = tuple(torch.cat([torch.full((offset,), 255, dtype=torch.uint8), p])[offset:] for p in packed.planes)
        moved = Quantised(planes, packed.scales, packed.zeros, 3, 64, 64)
        assert torch.equal(moved.unpack(), packed.unpack())


@pytest.mark.parametrize("shape", [(8, 16), (3, 5), (2, 3, 7)])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_masked_values_come_back(shape: tuple[int, ...], share: float) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(shape, generator=generator).half()
    kept = torch.rand(shape, generator=generator) < share
    packed = Masked.of(values, kept)
    assert torch.equal(packed.unpack(), values * kept)
    assert torch.equal(again(packed).unpack(), packed.unpack())
    assert packed_bytes(shape, kept=int(kept.sum()))["bytes"] == packed.nbytes


def test_dense_values_are_held_and_not_copied() -> None:
    values = torch.randn(3, 4)
    packed = Dense(values)
    assert packed.unpack() is values
    assert again(packed).unpack() is values
    assert packed_bytes((3, 4), itemsize=4) == {"codes": 48, "bytes": 48}
    assert packed.nbytes == 48


def test_what_does_not_fit_is_refused() -> None:
    given, scales = codes(2, 8, 3), torch.ones(2, 2)
    with pytest.raises(DataError, match="codes have 9 bits; expected 1 to 8"):
        Quantised.of(given, scales, scales, 9, 4)
    with pytest.raises(DataError, match="codes go from 0 to 7; 2 bits hold 0 to 3"):
        Quantised.of(given, scales, scales, 2, 4)
    with pytest.raises(DataError, match="zeros go from -1 to -1; 3 bits hold 0 to 7"):
        Quantised.of(given, scales, -scales, 3, 4)
    with pytest.raises(DataError, match=r"8 columns in groups of 2 have \[2, 4\]"):
        Quantised.of(given, scales, scales, 3, 2)
    with pytest.raises(DataError, match=r"codes are \[2, 8\] in groups of 0 columns"):
        Quantised.of(given, scales, scales, 3, 0)
    packed = Quantised.of(given, scales, scales, 3, 4)
    with pytest.raises(DataError, match=r"the planes .* are \[\[4\]\]; \[2, 7\] codes of 4 bits have \[\[7\]\]"):
        read_packed("quantised", packed.tensors(), {"width": 4, "columns": 7, "group": 4})
    with pytest.raises(DataError, match="there is no form of weights 'zip'"):
        read_packed("zip", {}, {})
    with pytest.raises(DataError, match="a weight of the form 'masked' lacks 'bits'"):
        read_packed("masked", {"values": scales}, {"shape": [2, 2]})


def test_forms_and_costs_of_another_kind_are_refused() -> None:
    values, kept = torch.ones(2, 3), torch.ones(2, 3)
    for mask, said in (
        (kept, r"the mask is torch\.float32 \[2, 3\]; expected bool"),
        (kept[0].bool(), r"bool \[3\]; exp"),
    ):
        with pytest.raises(DataError, match=said):
            Masked.of(values, mask)
    scale, zero = torch.ones(2, 1), torch.zeros(2, 1, dtype=torch.int)
    with pytest.raises(DataError, match=r"codes are torch\.float32; expected whole numbers"):
        Quantised.of(torch.zeros(2, 3), scale, zero, 3, 3)
    for given, said in (
        ({"kept": 99}, "kept is 99; expected how many of 6 entries are kept"),
        ({"kept": 0.5}, "kept is 0.5; expected how many of 6"),
        ({"kept": 3, "width": 3}, "give one of them"),
        ({"width": 9}, "codes have 9 bits; expected 1 to 8"),
    ):
        with pytest.raises(DataError, match=said):
            packed_bytes((2, 3), **given)
