"""Second moments of what modules read, the Hessians of layer-wise compression: one for all that read one tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor, nn

from paperhooks.errors import DataError, UnsupportedModel, did_you_mean
from paperhooks.models.input_stream import CalibrationBatch

__all__ = ["InputMoments"]

#: Blocks of columns. The moment is symmetric, so that only those on and above the diagonal are multiplied.
_BLOCKS: Final = 4
_NARROWEST: Final = 64


class InputMoments(Mapping[str, Tensor]):
    """Sums of x x^T over the inputs x of modules, float32 [D, D] (float64 for such inputs), padding left out.

    A receiver for :func:`paperhooks.models.calibrate`:

    >>> moments = InputMoments()
    >>> calibrate(view, batches, names, moments.receive)  # doctest: +SKIP
    >>> moments["model.layers.0.mlp.up_proj"] / moments.rows("model.layers.0.mlp.up_proj")  # doctest: +SKIP

    Half the Hessian of || W X - W' X ||^2 by a row of W, as GPTQ and SparseGPT take it, is this sum. q, k and v read
    one tensor and gate and up another: they have one sum together.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._rows: dict[str, int] = {}
        self._readers: dict[str, str] = {}

    def receive(self, name: str, module: nn.Module, hidden: Tensor, batch: CalibrationBatch) -> None:
        """Add the input of a module, [..., D]; tokens that are padding do not count.

        :raises UnsupportedModel: modules that read one tensor in a batch and different ones in another.
        """
        reader = batch.readers.get(name, name)
        if self._readers.setdefault(name, reader) != reader:
            raise UnsupportedModel(
                f"{name} reads the same tensor as {self._readers[name]} in one batch and as {reader} in another, so "
                "their moments cannot be shared; collect them one at a time"
            )
        if reader == name:
            rows = _real(hidden, batch.mask)
            self._add(name, rows if rows.dtype == torch.float64 else rows.float())

    def _add(self, name: str, rows: Tensor) -> None:
        width = rows.shape[-1]
        if name not in self._sums:
            self._sums[name] = torch.zeros(width, width, dtype=rows.dtype, device=rows.device)
            self._rows[name] = 0
        step = max(_NARROWEST, -(-width // _BLOCKS))
        for start in range(0, width, step):
            stop = min(width, start + step)
            self._sums[name][start:stop, start:].addmm_(rows[:, start:stop].T, rows[:, start:])
        self._rows[name] += len(rows)

    @property
    def readers(self) -> Mapping[str, str]:
        """Module name to the first module that reads the same tensor: those with one sum."""
        return MappingProxyType(self._readers)

    def rows(self, name: str) -> int:
        """How many tokens the sum of a module is over; raises DataError for one that was not read."""
        return self._rows[self._reader(name)]

    @property
    def nbytes(self) -> int:
        """What all sums take."""
        return sum(each.nbytes for each in self._sums.values())

    def __getitem__(self, name: str) -> Tensor:
        upper = self._sums[self._reader(name)].triu()
        return upper + upper.triu(1).T

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)

    def _reader(self, name: str) -> str:
        if name not in self._readers:
            raise DataError(f"no input of {name!r} was read; {did_you_mean(name, self._readers)}")
        return self._readers[name]


def _real(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Rows [n, D] that are no padding; a mask that is not one of these tokens says nothing, as of experts' rows."""
    if mask is None or hidden.ndim != 3 or mask.shape != hidden.shape[:2]:
        return hidden.flatten(0, -2)
    return hidden[mask.to(hidden.device)]
