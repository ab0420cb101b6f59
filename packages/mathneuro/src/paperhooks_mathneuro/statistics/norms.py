"""Per-sample channel norms of the inputs of weight matrices, taken while a model reads texts.

Step 1 of :mod:`paperhooks_mathneuro.algorithm`. Nothing of the size of a weight is made. Modules that read the same
tensor (q, k and v; gate and up) share one set of norms, found by the identity of the tensor and not by names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from paperhooks import DataError
from paperhooks.models import CalibrationBatch, Experts, SharedInputs
from paperhooks.tokens import on_host
from torch import Tensor, nn

from paperhooks_mathneuro.algorithm import squared_norms
from paperhooks_mathneuro.matrices import Matrix

__all__ = ["NormRecorder", "Norms", "refined"]


@dataclass(frozen=True, slots=True, eq=False)
class Norms:
    """Norms of some samples.

    inputs
        Matrix name to the name of the input it reads: that of the first matrix that reads it.
    values
        Input name to float32 [n, D], one row a sample.
    """

    inputs: Mapping[str, str]
    values: Mapping[str, Tensor]

    def spread(self, inputs: Mapping[str, str]) -> dict[str, Tensor]:
        """The values by the inputs of a finer sharing, as :func:`refined` gives it."""
        return {own: self.values[self.inputs[own]] for own in dict.fromkeys(inputs.values())}


def refined(sharings: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The coarsest sharing in which matrices read one input only where they do in all of ``sharings``.

    >>> refined([{"q": "q", "k": "q", "v": "q"}, {"q": "q", "k": "q", "v": "v"}])
    {'q': 'q', 'k': 'q', 'v': 'v'}
    """
    first: dict[tuple[str, ...], str] = {}
    return {name: first.setdefault(tuple(each[name] for each in sharings), name) for name in sharings[0]}


@dataclass(eq=False)
class NormRecorder:
    """Takes norms batch by batch: :meth:`begin`, then the model's forward with :meth:`receive` on its modules, then
    :meth:`finish`.

    group
        Processes of torch.distributed that have a part of some inputs each (tensor parallelism), in the order of these.
    """

    matrices: Sequence[Matrix]
    group: Any = None
    _squares: dict[str, list[Tensor]] = field(default_factory=dict, init=False)
    _recent: SharedInputs[Tensor] = field(default_factory=SharedInputs, init=False)
    _mask: Tensor | None = field(default=None, init=False)
    _pool: Tensor = field(default_factory=lambda: torch.empty(0), init=False)
    _used: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._linear = {m.module: m for m in self.matrices if m.expert is None}
        self._routed: dict[str, list[Matrix]] = {}
        for matrix in self.matrices:
            if matrix.expert is not None:
                self._routed.setdefault(matrix.module, []).append(matrix)

    @property
    def modules(self) -> list[str]:
        """Modules whose inputs are wanted."""
        return [*self._linear, *self._routed]

    def begin(self, mask: Tensor) -> None:
        """A batch comes whose counted tokens are True in ``mask`` bool [B, T]."""
        self._mask, self._squares = mask, {}
        self._recent.clear()
        self._pool, self._used = torch.empty(len(mask) * sum(m.channels for m in self.matrices)), 0

    def receive(self, name: str, module: nn.Module, hidden: Tensor, batch: CalibrationBatch) -> None:
        """The input [B, T, D] (or its rows [B * T, D]) of a linear layer; sums over calls within one forward."""
        squares = self._recent.known(hidden)
        if squares is None:
            squares = self._pooled(squared_norms(_rows(name, hidden, self._counted()), self._counted()))
            self._recent.keep(hidden, squares)
        self._squares.setdefault(self._linear[name].name, []).append(squares)

    def receive_routed(
        self, name: str, experts: Experts, hidden: Tensor, index: Tensor, batch: CalibrationBatch
    ) -> None:
        """The rows [N, D] that a mixture's experts read, and the experts int64 [N, K] of every row."""
        mask = self._counted()
        if len(hidden) != mask.numel():
            raise DataError(_unassigned(name, hidden, mask))
        samples = torch.arange(len(mask)).repeat_interleave(mask.shape[1]).to(hidden.device, non_blocking=True)
        counted = mask.reshape(-1).to(hidden.device, non_blocking=True)
        named = {(matrix.parameter.rpartition(".")[2], matrix.expert): matrix.name for matrix in self._routed[name]}
        for expert, rows, first, last in experts.inputs(hidden, index):
            for own, given in ((experts.up, first), (experts.down, last)):
                if (own, expert) in named:
                    squares = _squares_by_sample(given, samples[rows], counted[rows], len(mask))
                    self._squares.setdefault(named[own, expert], []).append(squares)

    def finish(self, samples: Sequence[str]) -> Norms:
        """Norms of the batch, on the CPU, in one copy; zero for inputs that were not reached.

        :param samples: what to call the batch's samples in errors.
        :raises DataError: a norm that is NaN or infinite, naming module and sample.
        """
        first: dict[tuple[int, ...], str] = {}
        inputs, values = {}, {}
        for matrix in self.matrices:
            parts = self._squares.get(matrix.name, ())
            own = first.setdefault(tuple(map(id, parts)), matrix.name) if parts else matrix.name
            inputs[matrix.name] = own
            if own == matrix.name:
                values[own] = _norms(matrix, parts, len(samples), self.group)
        self._recent.clear()
        found: Any = dict(zip(values, on_host(*values.values()), strict=True))
        for matrix in self.matrices:
            if matrix.name in found:
                _check_finite(matrix, found[matrix.name], samples)
        return Norms(inputs, found)

    def _pooled(self, squares: Tensor) -> Tensor:
        """A copy in one large tensor: small ones, kept between activations, would split the heap."""
        end = self._used + squares.numel()
        if squares.device != self._pool.device or end > len(self._pool):
            return squares  # on a GPU, whose allocator keeps small and large apart, or of a second call
        kept = self._pool[self._used : end].view_as(squares)
        self._used = end
        return kept.copy_(squares)

    def _counted(self) -> Tensor:
        if self._mask is None:
            raise DataError("an input came outside a batch; call begin first")
        return self._mask


def _norms(matrix: Matrix, parts: Sequence[Tensor], samples: int, group: Any) -> Tensor:
    if not parts:
        return torch.zeros(samples, matrix.channels)
    total = parts[0] if len(parts) == 1 else torch.stack(list(parts)).sum(0)
    if total.shape[-1] != matrix.channels:
        total = _whole(matrix, total, group)
    return total.sqrt()


def _check_finite(matrix: Matrix, norms: Tensor, samples: Sequence[str]) -> None:
    bad = (~norms.isfinite()).any(1).nonzero().flatten().tolist()
    if bad:
        raise DataError(
            f"the input of {matrix.module} is NaN or infinite for {samples[bad[0]]}: look at that text, or load "
            "the model in float32 or bfloat16 if this is an overflow of float16"
        )


def _whole(matrix: Matrix, squares: Tensor, group: Any) -> Tensor:
    """Sums of squares of all channels [n, D], of which each process has a run: equal ones, the last ones shorter."""
    if group is None:
        raise DataError(f"{matrix.module} reads {squares.shape[-1]} channels, and its weight has {matrix.channels}")
    from torch import distributed

    count = distributed.get_world_size(group)
    most = -(-matrix.channels // count)
    own = nn.functional.pad(squares, (0, most - squares.shape[-1])).contiguous()
    every = [torch.empty_like(own) for _ in range(count)]
    distributed.all_gather(every, own, group=group)
    return torch.cat(every, -1)[:, : matrix.channels]


def _rows(name: str, hidden: Tensor, mask: Tensor) -> Tensor:
    """The input as [B, T, D]; raises DataError where rows cannot be told apart by sample."""
    if hidden.ndim == 3 and hidden.shape[:2] == mask.shape:
        return hidden
    flat = hidden.reshape(-1, hidden.shape[-1])
    if len(flat) == mask.numel():
        return flat.reshape(*mask.shape, -1)
    raise DataError(_unassigned(name, hidden, mask))


def _unassigned(name: str, hidden: Tensor, mask: Tensor) -> str:
    return (
        f"{name} reads {list(hidden.shape)} for a batch of {len(mask)} x {mask.shape[1]} tokens: its rows cannot be "
        "assigned to samples. Leave it out with exclude="
    )


def _squares_by_sample(rows: Tensor, samples: Tensor, counted: Tensor, count: int) -> Tensor:
    wide = rows.float().masked_fill(~counted[:, None], 0.0).square()
    out: Any = torch.zeros(count, rows.shape[-1], dtype=torch.float32, device=rows.device)
    return out.index_add_(0, samples, wide)
