"""Selections: sets of weight entries of one model, as a recipe that makes them anew or as packed masks.

A :class:`Recipe` keeps no entry, only what decides: c of every side and the thresholds, eight bytes an input channel
for two sides. Masks are one bit a parameter. Both name the weights they belong to and refuse others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import torch
from paperhooks import Artefact, ArtefactError, DataError, ModelView
from paperhooks.io import class_name, held_tensor, tensor_digest, with_ending
from paperhooks.weights import warn_of_config
from torch import Tensor, nn

from paperhooks_mathneuro.algorithm import Top, count, scores, thresholds, top
from paperhooks_mathneuro.matrices import Matrix, plain_weight
from paperhooks_mathneuro.selection.set_algebra import evaluate_sets, set_names
from paperhooks_mathneuro.statistics.statistics import matrix_from_row, row_of_matrix

__all__ = [
    "Granularity",
    "Masks",
    "Recipe",
    "Side",
    "WeightSelection",
    "groups",
    "load_selection",
    "pack",
    "ungrouped",
    "unpack",
    "weights_of",
]

#: Within what the top is taken: each weight matrix (the paper), each output (Wanda), or all matrices together.
Granularity: TypeAlias = Literal["matrix", "row", "global"]

_RECIPE: Final = "mathneuro-recipe"
_MASKS: Final = "mathneuro-masks"


@dataclass(frozen=True, eq=False)
class WeightSelection(ABC):
    """A set of entries of a model's weight matrices.

    label
        What it is called in reports.
    matrices
        The matrices it may have entries in.
    hashes
        SHA-256 of every parameter it lies in (see :func:`paperhooks.io.tensor_digest`). These decide whether a model is
        the one it belongs to.
    model_class, config
        What it was made with; the config as :func:`paperhooks.io.config_entries` gives it.
    about
        Plain data: options, counts, where the texts came from.
    """

    label: str
    matrices: tuple[Matrix, ...]
    hashes: Mapping[str, str] = field(repr=False)
    model_class: str
    config: Mapping[str, Any] = field(repr=False)
    about: Mapping[str, Any] = field(repr=False)

    @abstractmethod
    def mask(self, matrix: Matrix, weight: Tensor) -> Tensor:
        """The selected entries of a matrix whose original ``weight`` is given: bool, in its shape."""

    def index(self, matrix: Matrix, weight: Tensor) -> Tensor:
        """Flat row-major positions in the matrix, ascending: int64 [n]."""
        return self.mask(matrix, weight).reshape(-1).nonzero().squeeze(1)

    def named(self, label: str) -> WeightSelection:
        """The same set under another name."""
        return replace(self, label=label)

    def counts(self, model: nn.Module) -> dict[str, int]:
        """Selected entries by matrix name."""
        return {matrix.name: len(self.index(matrix, weight)) for matrix, weight in weights_of(model, self.matrices)}

    def masks(self, model: nn.Module) -> Masks:
        """This selection as packed masks. Raises ArtefactError for a model with other weights."""
        self.check(model)
        packed = {matrix.name: pack(self.mask(matrix, weight)) for matrix, weight in weights_of(model, self.matrices)}
        return Masks(self.label, self.matrices, self.hashes, self.model_class, self.config, {**self.about}, packed)

    def check(self, model: nn.Module) -> None:
        """Raise ArtefactError naming the first thing in which ``model`` differs from the one this belongs to.

        Where the weights agree and the config does not, a warning names what differs.
        """
        if class_name(model) != self.model_class:
            raise ArtefactError(f"{self.label} belongs to a {self.model_class}, not to a {class_name(model)}")
        for name, wanted in self.hashes.items():
            if _digest(model, name) != wanted:
                raise ArtefactError(
                    f"{name} has other values than the weights that {self.label} was made from; load those (a set may "
                    "have been applied before: undo it), or pass force=True"
                )
        warn_of_config(self.label, self.config, model)

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, atomically, and return it. Raises DataError where there is no file form."""
        raise DataError(f"{type(self).__name__} {self.label!r} has no file form; save its masks(model)")

    def _saved(self, path: str | Path, kind: str, data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
        common: dict[str, Any] = {
            "label": self.label,
            "matrices": [row_of_matrix(matrix) for matrix in self.matrices],
            "hashes": dict(self.hashes),
            "about": dict(self.about),
        }
        artefact = Artefact(
            "mathneuro", kind=kind, data={**common, **data}, tensors=tensors, model_class=self.model_class,
            config=self.config,
        )  # fmt: skip
        return artefact.save(with_ending(path, ".safetensors"))


@dataclass(frozen=True, eq=False)
class Masks(WeightSelection):
    """A selection as packed masks.

    packed
        Matrix name to uint8 [ceil(numel / 8)]: one bit an entry, row-major, the first in the highest bit.
    """

    packed: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    def mask(self, matrix: Matrix, weight: Tensor) -> Tensor:
        """See :class:`WeightSelection`."""
        return unpack(self.packed[matrix.name], matrix.shape).to(weight.device)

    def save(self, path: str | Path) -> Path:
        """See :class:`WeightSelection`."""
        return self._saved(path, _MASKS, {}, self.packed)


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """One side of a recipe.

    inputs, channels
        Matrix name to input name, and input name to c, float32 [in].
    ratio
        Share of a matrix that is its top.
    tops
        Matrix name to :class:`Top`; missing where every output has a threshold of its own, which is found again.
    """

    inputs: Mapping[str, str]
    channels: Mapping[str, Tensor]
    ratio: float
    tops: Mapping[str, Top]


@dataclass(frozen=True, eq=False)
class Recipe(WeightSelection):
    """A selection as what decides about it: c of every side, thresholds, and a set expression.

    sides
        Name to :class:`Side`.
    expression
        Such as ``"target - reference"``.
    granularity
        Within what the top is taken.
    max_isolated
        At most this share of each matrix is selected, the entries with the largest scores of the expression's first
        side; or None.
    """

    sides: Mapping[str, Side] = field(default_factory=dict, repr=False)
    expression: str = "target - reference"
    granularity: Granularity = "matrix"
    max_isolated: float | None = None

    def mask(self, matrix: Matrix, weight: Tensor) -> Tensor:
        """See :class:`WeightSelection`."""
        found = evaluate_sets(
            self.expression, {name: self.top(name, matrix, weight) for name in set_names(self.expression)}
        )
        return self._capped(found, matrix, weight)

    def top(self, side: str, matrix: Matrix, weight: Tensor) -> Tensor:
        """The top of one side, before any set operation: bool, in the shape of the matrix."""
        grouped = groups(self.scores(side, matrix, weight), self.granularity, matrix.input_dim)
        one = self.sides[side]
        chosen = one.tops.get(matrix.name) or thresholds(grouped, [count(grouped.shape[1], one.ratio)])[0]
        return ungrouped(top(grouped, chosen), matrix, self.granularity)

    def scores(self, side: str, matrix: Matrix, weight: Tensor) -> Tensor:
        """S of one side, float32 in the shape of the matrix."""
        one = self.sides[side]
        return scores(weight, one.channels[one.inputs[matrix.name]], matrix.input_dim)

    def with_expression(self, expression: str, label: str | None = None) -> Recipe:
        """Another set of the same sides, such as ``"reference - target"``. Raises DataError for unknown names."""
        set_names(expression, self.sides)
        return replace(self, expression=expression, label=label or expression, about={**self.about, "counts": {}})

    def save(self, path: str | Path) -> Path:
        """See :class:`WeightSelection`; 4 bytes an input channel and side, and 12 a matrix and side."""
        tensors = {f"channels/{s}/{i}": c for s, side in self.sides.items() for i, c in side.channels.items()}
        sides = {}
        for name, side in self.sides.items():
            sides[name] = {"ratio": side.ratio, "inputs": _sharing(side.inputs)}
            if side.tops:
                kept = [side.tops[matrix.name] for matrix in self.matrices]
                tensors[f"thresholds/{name}"] = torch.cat([each.threshold for each in kept])
                tensors[f"k/{name}"] = torch.tensor([each.k for each in kept], dtype=torch.int64)
        data = {"sides": sides, "expression": self.expression, "granularity": self.granularity}
        return self._saved(path, _RECIPE, data | {"max_isolated": self.max_isolated}, tensors)

    def _capped(self, found: Tensor, matrix: Matrix, weight: Tensor) -> Tensor:
        if self.max_isolated is None:
            return found
        most = count(matrix.numel, self.max_isolated)
        if int(found.sum()) <= most:
            return found
        first = set_names(self.expression)[0]
        kept = self.scores(first, matrix, weight).masked_fill(~found, 0.0).reshape(1, -1)
        return top(kept, thresholds(kept, [most])[0]).reshape(found.shape)


def load_selection(path: str | Path) -> Recipe | Masks:
    """Read a recipe or masks. Raises ArtefactError for what is neither, or was cut or changed."""
    artefact = Artefact.load(path)
    if artefact.kind not in (_RECIPE, _MASKS):
        raise ArtefactError(f"{path} is {artefact.kind!r}; expected a recipe or masks, as select writes them")
    try:
        return _selection(artefact, artefact.data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtefactError(f"{path} holds no whole selection: {error!r}; make it with select") from error


def _selection(artefact: Artefact, data: Mapping[str, Any]) -> Recipe | Masks:
    matrices = tuple(matrix_from_row(row) for row in data["matrices"])
    common = (data["label"], matrices, data["hashes"], artefact.model_class, artefact.config, data["about"])
    if artefact.kind == _MASKS:
        return Masks(*common, packed=artefact.tensors)
    sides = {name: _side(name, data["sides"][name], matrices, artefact.tensors) for name in data["sides"]}
    return Recipe(
        *common, sides=sides, expression=data["expression"], granularity=data["granularity"],
        max_isolated=data["max_isolated"],
    )  # fmt: skip


def weights_of(model: nn.Module, matrices: Sequence[Matrix]) -> Iterator[tuple[Matrix, Tensor]]:
    """Each matrix with its weight, one after another, offloaded ones loaded for the moment."""
    view = ModelView.from_model(model)
    for matrix in matrices:
        with view.onloaded(model.get_submodule(matrix.module)):
            yield matrix, plain_weight(view, matrix)


def pack(mask: Tensor) -> Tensor:
    """A mask as uint8 [ceil(numel / 8)], row-major, the first entry in the highest bit."""
    import numpy as np

    return torch.from_numpy(np.packbits(mask.cpu().reshape(-1).numpy()))


def unpack(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """The bool mask of ``shape`` that :func:`pack` was given."""
    import numpy as np

    flat = np.unpackbits(packed.numpy(), count=torch.Size(shape).numel())
    return torch.from_numpy(flat).bool().reshape(tuple(shape))


def groups(matrix_scores: Tensor, granularity: Granularity, input_dim: int = 1) -> Tensor:
    """Scores as [G, n]: one row for each group of entries that compete with one another."""
    if granularity != "row":
        return matrix_scores.reshape(1, -1)
    return matrix_scores if input_dim == 1 else matrix_scores.T


def ungrouped(mask: Tensor, matrix: Matrix, granularity: Granularity) -> Tensor:
    """Groups [G, n] in the shape of their matrix again; see :func:`groups`."""
    if granularity != "row":
        return mask.reshape(matrix.shape)
    return mask if matrix.input_dim == 1 else mask.T


def _digest(model: nn.Module, name: str) -> str:
    try:
        parameter = model.get_parameter(name)
    except AttributeError:
        raise ArtefactError(f"this model has no parameter {name}") from None
    return tensor_digest(held_tensor(model, name, parameter))


def _sharing(inputs: Mapping[str, str]) -> dict[str, str]:
    """Only those that share; the others read an input of their own name."""
    return {name: own for name, own in inputs.items() if name != own}


def _side(name: str, data: Mapping[str, Any], matrices: Sequence[Matrix], tensors: Mapping[str, Tensor]) -> Side:
    prefix = f"channels/{name}/"
    channels = {key.removeprefix(prefix): c for key, c in tensors.items() if key.startswith(prefix)}
    tops = {}
    if f"k/{name}" in tensors:
        values = zip(tensors[f"thresholds/{name}"].split(1), tensors[f"k/{name}"].tolist(), strict=True)
        tops = {matrix.name: Top(bar, k) for matrix, (bar, k) in zip(matrices, values, strict=True)}
    return Side({m.name: data["inputs"].get(m.name, m.name) for m in matrices}, channels, data["ratio"], tops)
