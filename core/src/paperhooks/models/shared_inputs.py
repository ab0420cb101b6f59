"""Which modules read one and the same tensor (q, k and v; gate and up): found by its identity, and not by names."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from torch import Tensor

__all__ = ["SharedInputs"]

_T = TypeVar("_T")

#: How many inputs are kept alive to be recognised: parallel branches read one tensor with a few others in between.
_WINDOW: Final = 6


@dataclass(frozen=True, slots=True, eq=False)
class _Seen(Generic[_T]):
    """An input, kept alive so that its address is not used again, and what was made of it."""

    value: Tensor
    version: int
    made: _T


class SharedInputs(Generic[_T]):
    """What was made of the last few inputs, so that another module's reading of one of them need not make it again.

    >>> import torch
    >>> seen = SharedInputs[str]()
    >>> hidden = torch.ones(2, 3)
    >>> seen.keep(hidden, "q_proj")
    >>> seen.known(hidden), seen.known(hidden + 1)
    ('q_proj', None)
    """

    def __init__(self) -> None:
        self._recent: deque[_Seen[_T]] = deque(maxlen=_WINDOW)

    def known(self, tensor: Tensor) -> _T | None:
        """What was made of the same values at the same place, unless they were written to since; None for others."""
        for seen in self._recent:
            same = seen.value.data_ptr() == tensor.data_ptr() and seen.value.dtype == tensor.dtype
            layout = seen.value.shape == tensor.shape and seen.value.stride() == tensor.stride()
            if same and layout and seen.version == tensor._version and tensor.device == seen.value.device:
                return seen.made
        return None

    def keep(self, tensor: Tensor, made: _T) -> None:
        """Remember a tensor, which lives on until a few others have come."""
        self._recent.append(_Seen(tensor, tensor._version, made))

    def clear(self) -> None:
        """Forget all, as between two batches: their tensors are let go."""
        self._recent.clear()
