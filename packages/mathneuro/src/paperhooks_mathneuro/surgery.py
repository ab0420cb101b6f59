"""Weight surgery: multiplying a selection's entries by a factor, and putting every bit back.

>>> with apply(model, selection, scale=0.0) as surgery:  # doctest: +SKIP
...     surgery.entries  # the skill's entries are zero in here
>>> # here the model is what it was, also after an exception
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Literal, TypeAlias, get_args
from weakref import WeakKeyDictionary

import torch
from paperhooks import Artefact, ModelError, WeightJournal, active_session
from paperhooks.io import choice
from paperhooks.models import running_model
from paperhooks.weights import Edit
from torch import Tensor, nn

from paperhooks_mathneuro.selection.selections import WeightSelection, weights_of

__all__ = ["EditWarning", "Rounding", "Surgery", "apply", "check_scale", "edit"]

#: How products are rounded to the weights' dtype: to the nearest value, or up or down at random, right on average.
Rounding: TypeAlias = Literal["nearest", "stochastic"]

_APPLIED: WeakKeyDictionary[nn.Module, Surgery] = WeakKeyDictionary()
_LOW_PRECISION = (torch.bfloat16, torch.float16)
_METHOD = "mathneuro"


class EditWarning(UserWarning):
    """An edit that does nothing, or not quite what its factor says."""


@dataclass(eq=False)
class Surgery:
    """An edit of a live model that is in force.

    model, selection, scale
        What was edited, where, and by which factor.
    entries
        How many entries the selection has.
    effective
        Least, mean and largest factor that rounding to the weights' dtype left, among entries that are not zero; None
        for a scale of 0.
    journal
        Holds the old values.
    """

    model: nn.Module = field(repr=False)
    selection: WeightSelection = field(repr=False)
    scale: float
    journal: WeightJournal = field(repr=False)
    entries: int = 0
    effective: tuple[float, float, float] | None = None
    active: bool = True

    def undo(self) -> None:
        """Put every old value back, bit for bit. Raises ModelError when that was done before."""
        if not self.active:
            raise ModelError(f"{self.selection.label} is not applied now; apply it before undoing it")
        self.journal.undo()  # first: an interrupt leaves the rest to another call
        self.active = False
        _APPLIED.pop(self.model, None)

    def artefact(self) -> Artefact:
        """The edit as an artefact that makes it on the same weights elsewhere; of the size of the selection."""
        self._need_active()
        options = {"selection": self.selection.label, "scale": self.scale, **self.selection.about}
        options.pop("counts", None)
        return Artefact.from_journal(self.journal, method=_METHOD, options=options)

    def reversal(self) -> Artefact:
        """The artefact that takes the edit back from a saved copy of the edited model: old values at their places."""
        self._need_active()
        forward = self.artefact()
        edits = {
            name: Edit(
                self.journal.changed[name].saved.to(edit.dtype).cpu().clone(),
                edit.index,
                edit.shape,
                before=edit.after,
                after=edit.before,
            )
            for name, edit in forward.edits.items()
        }
        return replace(forward, edits=edits, data={"reverses": forward.options.get("selection")}, journal=None)

    def _need_active(self) -> None:
        if not self.active:
            raise ModelError(f"{self.selection.label} is not applied now, so there is no edit to save")

    def __enter__(self) -> Surgery:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.active:
            self.undo()


def apply(
    model: nn.Module,
    selection: WeightSelection,
    scale: float = 0.0,
    *,
    rounding: Rounding = "nearest",
    seed: int = 0,
    force: bool = False,
) -> Surgery:
    """Multiply the entries of ``selection`` by ``scale``, in place: 0 prunes them, 1.1 strengthens them.

    Products are made in float32 and rounded once. Biases, norms and embeddings stay untouched, except for a tied head
    that was selected on purpose. ``save_pretrained`` then writes an ordinary checkpoint.

    :param rounding: "stochastic" rounds up or down at random (with ``seed``), so that a factor near 1 is right on
        average in bfloat16.
    :param force: apply although the weights are not those that the selection was made from.
    :return: the edit, a context manager; ``undo()`` takes it back.
    :raises ValueError: a scale that is NaN or infinite. :raises ArtefactError: another model, or other weights.
    :raises ModelError: a set is applied already. :raises UnsupportedModel: quantised or offloaded weights; nothing is
        written then. Warns (:class:`EditWarning`) for a scale of 1, and for factors that low precision changes.
    """
    model = running_model(model)
    check_scale(scale, rounding)
    if model in _APPLIED:
        raise ModelError(f"{_APPLIED[model].selection.label} is applied to this model; undo it first")
    if active_session(model) is not None:
        raise ModelError("the model is attached to a session; close it before editing weights")
    if not force:
        selection.check(model)
    surgery = Surgery(model, selection, scale, WeightJournal(model))
    try:
        edit(surgery.journal, selection, scale, rounding=rounding, seed=seed, surgery=surgery)
    except BaseException:
        surgery.journal.abandon()
        raise
    _APPLIED[model] = surgery
    return surgery


def check_scale(scale: float, rounding: str = "nearest") -> None:
    """Raise ValueError for a factor that is no number, and for an unknown kind of rounding."""
    if not isinstance(scale, int | float) or not math.isfinite(scale):
        raise ValueError(f"scale is {scale}; expected a finite number such as 0 or 1.1")
    choice("rounding", rounding, get_args(Rounding))


def edit(
    journal: WeightJournal,
    selection: WeightSelection,
    scale: float,
    *,
    rounding: Rounding = "nearest",
    seed: int = 0,
    surgery: Surgery | None = None,
) -> None:
    """Make the edit through a journal of the model; see :func:`apply`."""
    if scale == 1:
        _warn("the scale is 1, so nothing is changed")
    generator = torch.Generator().manual_seed(seed)
    factors = _Factors()
    for name, index in _positions(journal.model, selection).items():
        parameter = journal.model.get_parameter(name)
        journal.check(name, method=_METHOD)
        old = parameter.detach().reshape(-1)[index]
        if rounding == "stochastic" and parameter.dtype in _LOW_PRECISION and scale != 0:
            new = _stochastic(old.float() * scale, parameter.dtype, generator)
            journal.write_sparse(name, index, new, method=_METHOD)
        else:
            journal.scale_sparse(name, index, scale, method=_METHOD)
        if scale != 0:
            factors.see(old, parameter.detach().reshape(-1)[index])
        if surgery is not None:
            surgery.entries += len(index)
    if surgery is not None and scale != 0:
        surgery.effective = factors.result()
    _warn_rounding(journal.model, scale, rounding, factors)


def _positions(model: nn.Module, selection: WeightSelection) -> Mapping[str, Tensor]:
    """Flat positions by parameter. All are found before anything is written."""
    found: dict[str, list[Tensor]] = {}
    for matrix, weight in weights_of(model, selection.matrices):
        index = selection.index(matrix, weight)
        if len(index):
            found.setdefault(matrix.parameter, []).append(index + matrix.offset)
    return {name: torch.cat(parts) for name, parts in found.items()}


def _stochastic(values: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Each value rounded to one of its two neighbours in ``dtype``, the nearer one with the greater chance."""
    near = values.to(dtype)
    toward = torch.where(values > near.float(), math.inf, -math.inf).to(dtype)
    other = torch.nextafter(near, toward)
    gap = (other.float() - near.float()).abs()
    chance = ((values - near.float()).abs() / gap).nan_to_num(0.0, 0.0, 0.0)
    draw = torch.rand(values.shape, generator=generator).to(values.device)
    return torch.where(draw < chance, other, near)


@dataclass(eq=False)
class _Factors:
    """Factors that entries were really multiplied by."""

    least: float = math.inf
    largest: float = -math.inf
    total: float = 0.0
    n: int = 0

    def see(self, old: Tensor, new: Tensor) -> None:
        used = old != 0
        ratio = new[used].double() / old[used].double()
        if len(ratio):
            self.least, self.largest = min(self.least, float(ratio.min())), max(self.largest, float(ratio.max()))
            self.total, self.n = self.total + float(ratio.sum()), self.n + len(ratio)

    def result(self) -> tuple[float, float, float] | None:
        return (self.least, self.total / self.n, self.largest) if self.n else None


def _warn_rounding(model: nn.Module, scale: float, rounding: Rounding, factors: _Factors) -> None:
    found = factors.result()
    low = any(p.dtype in _LOW_PRECISION for p in model.parameters())
    if found is None or not low or rounding == "stochastic" or scale in (0, 1) or abs(scale - 1) > 0.25:
        return
    least, mean, largest = found
    _warn(
        f"in these weights' precision the factor {scale:g} comes out between {least:.4f} and {largest:.4f}, {mean:.4f} "
        "on average; load the model in float32, or pass rounding='stochastic'"
    )


def _warn(text: str) -> None:
    warnings.warn(text, EditWarning, stacklevel=4)
