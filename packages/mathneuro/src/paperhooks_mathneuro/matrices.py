"""The weight matrices that are scored, each on its own, and what share of the decoder's parameters they are.

Scored are all linear layers inside the decoder's layers, GPT-2's transposed ones among them, and the matrices of every
routed expert. What is left over is never silent: :class:`Coverage` lists it with its share and the reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, get_args

from paperhooks import ModelError, ModelView
from paperhooks.io import choice, optional, pattern
from paperhooks.models import Experts
from paperhooks.weights import ordinary
from torch import Tensor, nn

__all__ = ["Coverage", "HeadChoice", "Matrix", "Uncovered", "find_matrices", "plain_weight"]

#: Whether the output head is scored: never, where it is not tied to the embeddings, or even if it is.
HeadChoice: TypeAlias = Literal["no", "untied", "tied"]

_LAYER: Final = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Matrix:
    """One weight matrix.

    name, parameter, module
        Its own name, the parameter it lies in, and the module that reads its input. Name and parameter differ for
        experts only: ``...experts.down_proj[3]`` lies in ``...experts.down_proj``.
    shape, input_dim
        As stored, and which of both dimensions is the input: 1, or 0 for transposed layers.
    expert
        Which slice of a 3-D parameter, or None.
    """

    name: str
    parameter: str
    module: str
    shape: tuple[int, int]
    input_dim: int = 1
    expert: int | None = None

    @property
    def numel(self) -> int:
        """Number of entries."""
        return self.shape[0] * self.shape[1]

    @property
    def channels(self) -> int:
        """Number of input channels."""
        return self.shape[self.input_dim]

    @property
    def offset(self) -> int:
        """Flat position of the first entry in the parameter."""
        return (self.expert or 0) * self.numel

    @property
    def layer(self) -> int | None:
        """Index of the decoder layer; None for the head."""
        found = _LAYER.search(self.name)
        return int(found.group(1)) if found else None

    @property
    def kind(self) -> str:
        """The module's own name, such as ``down_proj``; all experts of a mixture are of one kind."""
        parts = [part for part in self.parameter.split(".") if part not in ("weight", "base_layer")]
        return f"experts.{parts[-1]}" if self.expert is not None else parts[-1]

    def of(self, parameter: Tensor) -> Tensor:
        """This matrix as a view of its parameter."""
        return parameter if self.expert is None else parameter[self.expert]


@dataclass(frozen=True, slots=True)
class Uncovered:
    """A parameter that is not scored, its size, and why."""

    parameter: str
    numel: int
    reason: str


@dataclass(frozen=True, slots=True)
class Coverage:
    """What is scored and what is not, among the matrices of the decoder's layers (and of the head, if chosen)."""

    matrices: tuple[Matrix, ...]
    uncovered: tuple[Uncovered, ...]

    @property
    def share(self) -> float:
        """Share of the parameters that is scored."""
        covered = sum(matrix.numel for matrix in self.matrices)
        return covered / max(1, covered + sum(one.numel for one in self.uncovered))

    def __str__(self) -> str:
        text = f"{len(self.matrices)} matrices, {self.share:.2%} of the parameters that could be scored"
        if not self.uncovered:
            return text
        first = ", ".join(f"{one.parameter} ({one.reason})" for one in self.uncovered[:3])
        more = f" and {len(self.uncovered) - 3} more" if len(self.uncovered) > 3 else ""
        return f"{text}; not scored: {first}{more}"


def find_matrices(
    view: ModelView, *, head: HeadChoice = "no", include: str | None = None, exclude: str | None = None
) -> Coverage:
    """The matrices of ``view``'s model.

    :param head: the output head is left out ("no"), scored where it is not tied to the embeddings ("untied"), or in any
        case ("tied"): editing a tied head edits the embeddings as well.
    :param include, exclude: regular expressions searched for in a matrix's name; what they leave out is listed.
    :raises ModelError: nothing is left to score. :raises ValueError: a choice or an expression that is none.
    """
    choice("head", head, get_args(HeadChoice))
    wanted, unwanted = optional(pattern, "include", include), optional(pattern, "exclude", exclude)
    found = [*_layer_matrices(view), *_head_matrix(view, head)]
    chosen = [m for m in found if re.search(wanted or "", m.name)]
    if unwanted is not None:
        chosen = [m for m in chosen if not re.search(unwanted, m.name)]
    left = [Uncovered(m.name, m.numel, "left out by include or exclude") for m in found if m not in chosen]
    if not chosen:
        raise ModelError(f"{type(view.model).__name__} has no matrix to score here: found {len(found)}, all left out")
    return Coverage(tuple(chosen), (*_rest(view, {m.parameter for m in found}), *left))


def plain_weight(view: ModelView, matrix: Matrix) -> Tensor:
    """The matrix as a view of its weight, without gradient. Offloaded weights: inside ``view.onloaded(...)``.

    Raises ModelError for a weight that is quantised, sharded or not loaded, naming it.
    """
    parameter: Any = view.model.get_parameter(matrix.parameter)
    kind = type(parameter.data)
    plain = ordinary(parameter) and parameter.is_floating_point() and parameter.element_size() > 1
    if parameter.is_meta or not plain:
        raise ModelError(
            f"{matrix.parameter} is {kind.__name__} {parameter.dtype} on {parameter.device}, not plain floating point: "
            "statistics can be collected from this model, but to select and edit load it unquantised and not offloaded"
        )
    return matrix.of(parameter.detach())


def _layer_matrices(view: ModelView) -> Iterator[Matrix]:
    names = {module: name for name, module in view.model.named_modules()}
    for layer in view.layers:
        skipped: tuple[str, ...] = ()
        for inner, module in layer.named_modules():
            if hasattr(module, "base_layer"):  # an adapter around a linear layer: only the layer itself is scored
                skipped += tuple(f"{inner}.{n}." for n, _ in module.named_children() if n != "base_layer")
            if not f"{inner}.".startswith(skipped or ("\0",)):
                yield from _matrices_of(names[module], module)


def _matrices_of(name: str, module: nn.Module) -> Iterator[Matrix]:
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, nn.Linear):
        yield Matrix(f"{name}.weight", f"{name}.weight", name, (module.out_features, module.in_features))
    elif isinstance(module, Conv1D):
        yield Matrix(f"{name}.weight", f"{name}.weight", name, (module.nx, module.nf), input_dim=0)
    elif (experts := Experts.of(module)) is not None:
        for own in (experts.up, experts.down):
            rows, columns = module.get_parameter(own).shape[1:]
            for expert in range(experts.count):
                full = f"{name}.{own}"
                yield Matrix(f"{full}[{expert}]", full, name, (rows, columns), int(not experts.transposed), expert)


def _head_matrix(view: ModelView, head: HeadChoice) -> Iterator[Matrix]:
    module: Any = getattr(view.model, "get_output_embeddings", lambda: None)()
    if head == "no" or not isinstance(module, nn.Linear):
        return
    embeddings: Any = view.model.get_input_embeddings()  # type: ignore[operator]
    if module.weight is embeddings.weight and head != "tied":
        return
    name = next(name for name, each in view.model.named_modules() if each is module)
    # A tied weight is known to the model by the name of the embeddings.
    parameter = next(n for n, p in view.model.named_parameters(remove_duplicate=False) if p is module.weight)
    yield Matrix(f"{name}.weight", parameter, name, (module.out_features, module.in_features))


def _rest(view: ModelView, covered: set[str]) -> Iterator[Uncovered]:
    """Parameters of the layers with two or more dimensions that belong to no matrix."""
    names = {id(parameter): name for name, parameter in view.model.named_parameters()}
    for layer in view.layers:
        for inner, parameter in layer.named_parameters():
            name = names[id(parameter)]
            if parameter.ndim >= 2 and name not in covered:
                owner = layer.get_submodule(inner.rpartition(".")[0])
                adapter = isinstance(owner, nn.Linear)  # any other linear layer would have been found
                reason = "part of an adapter" if adapter else f"{type(owner).__name__} is no linear layer"
                yield Uncovered(name, parameter.numel(), reason)
