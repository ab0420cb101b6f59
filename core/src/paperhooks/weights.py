"""Reversible weight edits.

Every edit of a parameter goes through a :class:`WeightJournal`, which keeps what was there before: a clone at the first
dense edit, or only indices and values when an edit touches few entries. :meth:`WeightJournal.undo` puts every bit back
in place, so tied weights stay tied and optimisers keep their parameters.

>>> from torch import nn
>>> layer = nn.Linear(2, 2)
>>> before = layer.weight.clone()
>>> journal = WeightJournal(layer)
>>> journal.scale_sparse("weight", torch.tensor([0, 3]), 0.0)
>>> journal.undo()
>>> torch.equal(layer.weight, before)
True
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor, nn

from paperhooks.artefacts import Artefact
from paperhooks.errors import ModelError, PluginConflict, UnsupportedModel, did_you_mean

__all__ = ["Artefact", "Change", "WeightJournal"]

#: Edits move bits, not numbers: arithmetic could change the payload of a NaN, and not every dtype can be indexed.
_BITS: Final = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(eq=False)
class Change:
    """What the journal knows of one edited parameter.

    name, names
        Qualified name, and all names under which it occurs (several for tied weights).
    method
        Who edits it.
    index
        Flat row-major positions int64 [n], sorted, whose old values are kept; None when the whole tensor is kept.
    saved
        The old values: [n], or the parameter's shape.
    """

    parameter: nn.Parameter = field(repr=False)
    name: str
    names: tuple[str, ...]
    method: str
    index: Tensor | None = field(repr=False)
    saved: Tensor = field(repr=False)

    @property
    def entries(self) -> int:
        """How many entries of the parameter are kept."""
        return self.saved.numel()

    def original(self) -> Tensor:
        """The whole parameter as it was: a new tensor of its shape."""
        if self.index is None:
            return self.saved.clone()
        whole = self.parameter.detach().clone()
        _put(whole, self.index, self.saved)
        return whole

    def restore(self) -> None:
        """Put the old values back in place; raises ModelError when the parameter has got another shape or dtype."""
        now, then = self.parameter, self.saved
        if now.dtype != then.dtype or (self.index is None and now.shape != then.shape) or now.is_meta:
            raise ModelError(
                f"{self.name} is {now.dtype} {list(now.shape)} on {now.device} now, but was edited as {then.dtype}; "
                "undo edits before moving the model to another dtype or shape"
            )
        with torch.no_grad():
            if self.index is None:
                _bits(now.detach()).copy_(_bits(then))
            else:
                _put(now.detach(), self.index, then)


class WeightJournal:
    """Edits parameters of ``model`` and undoes them bit for bit.

    While edits are open, a parameter belongs to the method that edited it first.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        #: Who writes when an edit names no method.
        self.writer = ""
        self._changes: dict[int, Change] = {}

    @property
    def changed(self) -> dict[str, Change]:
        """Name to :class:`Change` of every edited parameter, in the order of the first edits."""
        return {change.name: change for change in self._changes.values()}

    def write(self, target: str | nn.Parameter, values: Tensor, *, method: str = "") -> None:
        """Replace a whole parameter.

        :param target: qualified name, or the parameter itself.
        :param values: the parameter's shape; rounded to its dtype once.
        :param method: the writing method's name (default: :attr:`writer`), which keeps two methods from editing one
            parameter.
        :raises LookupError: no such parameter. :raises ValueError: another shape. :raises UnsupportedModel: a parameter
            that is not plain floating point. :raises PluginConflict: another method has edited it.
        """
        parameter, change = self._open(target, method)
        if values.shape != parameter.shape:
            raise ValueError(f"values for {self._label(target)} are {list(values.shape)}, not {list(parameter.shape)}")
        if change is None:
            self._note(parameter, method, None, parameter.detach().clone())
        elif change.index is not None:
            change.saved, change.index = change.original(), None
        new = values.detach().to(parameter.dtype)
        if new.untyped_storage().data_ptr() == parameter.untyped_storage().data_ptr():
            new = new.clone()  # such as a transpose of the parameter itself
        with torch.no_grad():
            _bits(parameter.detach()).copy_(_bits(new))

    def write_sparse(self, target: str | nn.Parameter, index: Tensor, values: Tensor, *, method: str = "") -> None:
        """Replace some entries; only their old values are kept.

        :param index: flat row-major positions int64 [n], each at most once.
        :param values: [n]; rounded to the parameter's dtype once.
        :raises IndexError: a position outside the parameter. :raises ValueError: positions that repeat, or as many
            values as positions are not given; and what :meth:`write` raises.
        """
        parameter, change = self._open(target, method)
        index = _checked_index(index, parameter, self._label(target))
        if values.shape != index.shape:
            raise ValueError(f"{self._label(target)}: {list(values.shape)} values for {len(index)} positions")
        self._keep(parameter, change, index, method)
        with torch.no_grad():
            _put(parameter.detach(), index, values.detach().to(parameter.device, parameter.dtype))

    def scale_sparse(self, target: str | nn.Parameter, index: Tensor, factor: float, *, method: str = "") -> None:
        """Multiply some entries by ``factor``, in float32 (float64 for such weights), rounded once.

        A factor of 0 writes zeros, also over NaN. Raises what :meth:`write_sparse` raises.
        """
        parameter, _ = self._open(target, method)
        index = _checked_index(index, parameter, self._label(target))
        old = _take(parameter.detach(), index)
        wide = old.double() if old.dtype == torch.float64 else old.float()
        self.write_sparse(parameter, index, wide * factor if factor else torch.zeros_like(wide), method=method)

    def check(self, target: str | nn.Parameter, *, method: str = "") -> None:
        """Raise what :meth:`write` would raise for ``target``, without writing."""
        self._open(target, method)

    def original(self, target: str | nn.Parameter) -> Tensor:
        """A copy of the parameter as it was before any edit."""
        parameter = self._find(target)
        change = self._changes.get(id(parameter))
        return parameter.detach().clone() if change is None else change.original()

    def undo(self) -> None:
        """Put all old values back, last edited first; the journal is empty afterwards.

        Every parameter is tried. Raises ModelError (or a group of them) for those that cannot be restored.
        """
        errors: list[Exception] = []
        while self._changes:
            _, change = self._changes.popitem()
            try:
                change.restore()
            except Exception as error:
                errors.append(error)
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise ExceptionGroup("paperhooks: some weights could not be restored", errors)

    def keep(self) -> None:
        """Make all edits final: forget what was there before."""
        self._changes.clear()

    def _find(self, target: str | nn.Parameter) -> nn.Parameter:
        if isinstance(target, str):
            try:
                return self.model.get_parameter(target)
            except AttributeError:
                known = [name for name, _ in self.model.named_parameters(remove_duplicate=False)]
                near = did_you_mean(target, known).partition("Known:")[0].strip()
                raise LookupError(
                    f"{type(self.model).__name__} has no parameter {target!r}; {near}".rstrip("; ")
                ) from None
        if not self._names(target):
            raise LookupError(f"a tensor {list(target.shape)} is no parameter of this {type(self.model).__name__}")
        return target

    def _open(self, target: str | nn.Parameter, method: str) -> tuple[nn.Parameter, Change | None]:
        parameter, method = self._find(target), method or self.writer
        change = self._changes.get(id(parameter))
        if change is None:
            _check_plain(parameter, self._label(target))
        elif change.method != method:
            raise PluginConflict(
                f"{method or 'an unnamed method'} writes {change.name}, which {change.method or 'an unnamed method'} "
                "has edited; undo those edits or make them final (journal.keep()) first"
            )
        return parameter, change

    def _keep(self, parameter: nn.Parameter, change: Change | None, index: Tensor, method: str) -> None:
        """Save the old values at the positions of ``index`` that are not saved yet."""
        if change is None:
            order = index.sort().values
            self._note(parameter, method, order, _take(parameter.detach(), order))
        elif change.index is not None:
            new = index[~torch.isin(index, change.index.to(index.device))]
            merged = torch.cat([change.index.to(index.device), new])
            values = torch.cat([_bits(change.saved.to(index.device)), _bits(_take(parameter.detach(), new))])
            order = merged.argsort()
            change.index, change.saved = merged[order], values[order].view(parameter.dtype)

    def _note(self, parameter: nn.Parameter, method: str, index: Tensor | None, saved: Tensor) -> None:
        names = self._names(parameter)
        self._changes[id(parameter)] = Change(parameter, names[0], names, method or self.writer, index, saved)

    def _names(self, parameter: Tensor) -> tuple[str, ...]:
        return tuple(n for n, p in self.model.named_parameters(remove_duplicate=False) if p is parameter)

    def _label(self, target: str | nn.Parameter) -> str:
        return target if isinstance(target, str) else next(iter(self._names(target)), "a parameter")


def _bits(tensor: Tensor) -> Tensor:
    """The tensor's storage seen as integers of the same size and strides."""
    return tensor.view(_BITS[tensor.element_size()])


def _take(tensor: Tensor, index: Tensor) -> Tensor:
    return _bits(tensor)[torch.unravel_index(index.to(tensor.device), tensor.shape)].view(tensor.dtype)


def _put(tensor: Tensor, index: Tensor, values: Tensor) -> None:
    where = torch.unravel_index(index.to(tensor.device), tensor.shape)
    _bits(tensor)[where] = _bits(values.to(tensor.device))


def _checked_index(index: Tensor, parameter: nn.Parameter, label: str) -> Tensor:
    if index.dtype != torch.int64 or index.ndim != 1:
        raise ValueError(f"positions in {label} must be int64 [n], not {index.dtype} {list(index.shape)}")
    index = index.to(parameter.device)
    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < parameter.numel():
        raise IndexError(f"positions {int(index.min())} to {int(index.max())}: {label} has {parameter.numel()} entries")
    if len(torch.unique(index)) != len(index):
        raise ValueError(f"positions in {label} repeat; give each at most once")
    return index


def _check_plain(parameter: nn.Parameter, label: str) -> None:
    """Refuse what is not an ordinary floating-point tensor in memory."""
    if parameter.is_meta:
        raise UnsupportedModel(
            f"{label} is on the meta device (offloaded or not loaded), so it cannot be edited; load the model "
            "without offloading"
        )
    plain = type(parameter) is nn.Parameter and type(parameter.data) is Tensor
    if not plain or not parameter.is_floating_point() or parameter.layout is not torch.strided:
        raise UnsupportedModel(
            f"{label} is {type(parameter).__name__} {parameter.dtype}, not plain floating point: it looks quantised or "
            "sharded. Load the model unquantised (GGUF files: GgufConfig(dequantize=True)) on one process"
        )
