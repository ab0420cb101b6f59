"""Statistics of one side: what every weight matrix read while the model went through the texts of that side.

All that scores need is one number an input channel, c: they are |W[i, j]| * c[j]. With the norms of every sample kept,
c of any resample, half or subset costs no forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import torch
from paperhooks import Artefact, ArtefactError, DataError
from paperhooks.io import choice, with_ending
from torch import Tensor

from paperhooks_mathneuro.algorithm import channel_sums
from paperhooks_mathneuro.matrices import Coverage, Matrix, Uncovered

__all__ = ["AGGREGATES", "Aggregate", "Statistics", "drawn", "matrix_from_row", "row_of_matrix"]

#: How samples are put together: the paper's sum of norms, its mean, or Wanda's root mean square over all tokens.
Aggregate: TypeAlias = Literal["sum_of_norms", "mean_of_norms", "rms"]
AGGREGATES: Final[tuple[Aggregate, ...]] = ("sum_of_norms", "mean_of_norms", "rms")

_KIND: Final = "mathneuro-statistics"


@dataclass(frozen=True, eq=False)
class Statistics:
    """What one side's texts did to the inputs of the scored matrices.

    coverage
        The scored matrices, and what is not scored.
    inputs
        Matrix name to the name of the input it reads.
    norms
        Input name to per-sample norms float32 [N, D]; empty where only sums were kept.
    sums
        Input name to float64 [2, D], the sums over samples of norms and of their squares; empty where norms are kept.
    tokens
        Counted tokens of every sample, int64 [N].
    rows
        Which samples count, in order, with repeats: int64 [n]. All of them, once, unless resampled.
    about
        Plain data: where it comes from (model, data, options) and calls by module.
    model_class, config, weights
        The model it belongs to: its config (:func:`paperhooks.io.config_entries`), and what decides, the digest of all
        its weights (:func:`paperhooks.io.model_digest`), since all of them decide about activations. Without a digest
        they are of no model in particular.
    """

    coverage: Coverage
    inputs: Mapping[str, str]
    norms: Mapping[str, Tensor]
    tokens: Tensor
    rows: Tensor
    sums: Mapping[str, Tensor] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    model_class: str = ""
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    weights: str = ""

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """The scored matrices."""
        return self.coverage.matrices

    @property
    def unreached(self) -> tuple[str, ...]:
        """Matrices whose input no sample reached: experts never chosen, towers that text does not pass."""
        source = self.norms or self.sums
        return tuple(m.name for m in self.matrices if not bool(source[self.inputs[m.name]].any()))

    def __len__(self) -> int:
        return len(self.rows)

    def channel_norms(self, name: str, aggregate: Aggregate = "sum_of_norms") -> Tensor:
        """c of a matrix: float32 [D], summed in float64."""
        choice("aggregate", aggregate, AGGREGATES)
        own, squared = self.inputs[name], aggregate == "rms"
        if self.sums:
            total = self.sums[own][int(squared)]
        else:
            times = torch.bincount(self.rows, minlength=len(self.norms[own]))
            total = channel_sums(self.norms[own], times, squared=squared)
        if aggregate == "sum_of_norms":
            return total.float()
        if aggregate == "mean_of_norms":
            return (total / len(self)).float()
        return (total / max(1, int(self.tokens[self.rows].sum()))).sqrt().float()

    def sample_norms(self, name: str) -> Tensor:
        """Norms of the counted samples of a matrix's input, in order: float32 [n, D]. Raises DataError without them."""
        self._need_samples("per-sample norms")
        return self.norms[self.inputs[name]][self.rows]

    # -- resamples ---------------------------------------------------------------------------------------------------

    def take(self, rows: Sequence[int] | Tensor) -> Statistics:
        """The same statistics of some of the counted samples, in this order, repeats allowed; no forward pass.

        Raises DataError where only sums were kept, and for rows that are not there.
        """
        self._need_samples("a subset")
        chosen = torch.as_tensor(rows, dtype=torch.int64)
        if not len(chosen) or int(chosen.min()) < 0 or int(chosen.max()) >= len(self):
            raise DataError(f"samples {chosen.tolist()[:5]}... are not among the {len(self)} here")
        return replace(self, rows=self.rows[chosen])

    def draw(self, n: int, *, seed: int = 0, replacement: bool = False) -> Statistics:
        """``n`` samples at random; see :func:`drawn`."""
        return self.take(drawn(len(self), n, seed=seed, replacement=replacement))

    def halves(self, *, seed: int = 0, size: int | None = None) -> tuple[Statistics, Statistics]:
        """Two disjoint random parts of ``size`` samples each (half of them, by default)."""
        size = len(self) // 2 if size is None else size
        if size < 1 or 2 * size > len(self):
            raise DataError(f"{len(self)} samples have no two disjoint parts of {size}")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.take(order[:size]), self.take(order[size : 2 * size])

    def _need_samples(self, what: str) -> None:
        if self.sums:
            raise DataError(f"{what} needs the norms of every sample; collect with keep='samples'")

    # -- files -------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, atomically, and return it."""
        tensors = {f"norms/{k}": v for k, v in self.norms.items()} | {f"sums/{k}": v for k, v in self.sums.items()}
        tensors |= {"tokens": self.tokens, "rows": self.rows}
        data = {"matrices": [row_of_matrix(m) for m in self.matrices], "inputs": dict(self.inputs), "about": self.about}
        data["uncovered"] = [[one.parameter, one.numel, one.reason] for one in self.coverage.uncovered]
        data["weights"] = self.weights
        artefact = Artefact(
            "mathneuro", kind=_KIND, data=data, tensors=tensors, model_class=self.model_class, config=self.config
        )
        return artefact.save(with_ending(path, ".safetensors"))

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Read what :meth:`save` wrote; raises ArtefactError for any other file."""
        artefact = Artefact.load(path)
        if artefact.kind != _KIND:
            raise ArtefactError(f"{path} is {artefact.kind!r} and not statistics; make them with collect")
        data, tensors = artefact.data, artefact.tensors
        try:
            return cls._read(artefact, data, tensors)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtefactError(f"{path} holds no whole statistics: {error!r}; make them with collect") from error

    @classmethod
    def _read(cls, artefact: Artefact, data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Statistics:
        return cls(
            coverage=Coverage(
                tuple(matrix_from_row(row) for row in data["matrices"]),
                tuple(Uncovered(*row) for row in data["uncovered"]),
            ),
            inputs=data["inputs"],
            norms={n.removeprefix("norms/"): t for n, t in tensors.items() if n.startswith("norms/")},
            sums={n.removeprefix("sums/"): t for n, t in tensors.items() if n.startswith("sums/")},
            tokens=tensors["tokens"],
            rows=tensors["rows"],
            about=data["about"],
            model_class=artefact.model_class,
            config=artefact.config,
            weights=data["weights"],
        )

    def __str__(self) -> str:
        name = self.about.get("name") or "samples"
        return f"{len(self)} {name}, {int(self.tokens[self.rows].sum())} tokens: {self.coverage}"


def drawn(total: int, n: int, *, seed: int, replacement: bool = False) -> Tensor:
    """Numbers of ``n`` of ``total`` samples at random, int64 [n].

    Raises DataError for more than there are, unless drawn with ``replacement``, and for none.
    """
    if n < 1:
        raise DataError(f"samples is {n}; at least one is needed")
    generator = torch.Generator().manual_seed(seed)
    if replacement:
        return torch.randint(total, (n,), generator=generator)
    if n > total:
        raise DataError(
            f"{n} samples were asked for, the data has {total}: that many cannot be drawn without replacement; pass "
            "replacement=True or fewer"
        )
    return torch.randperm(total, generator=generator)[:n]


def row_of_matrix(matrix: Matrix) -> list[Any]:
    """A matrix as plain data."""
    return [matrix.name, matrix.parameter, matrix.module, list(matrix.shape), matrix.input_dim, matrix.expert]


def matrix_from_row(row: Sequence[Any]) -> Matrix:
    """The matrix that :func:`row_of_matrix` was given."""
    name, parameter, module, shape, input_dim, expert = row
    return Matrix(name, parameter, module, (shape[0], shape[1]), input_dim, expert)
