"""Reversible weight edits.

Every edit of a parameter goes through a :class:`WeightJournal`, which keeps what was there before: a clone at the first
dense edit, or only indices and values when an edit touches few entries. :meth:`WeightJournal.undo` puts every bit back
in place, so tied weights stay tied and optimisers keep their parameters. What others have written since (an optimiser
step, a merged adapter, a loaded state) is left to them and named.

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

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from paperhooks.errors import ModelError, PluginConflict, UnsupportedModel, did_you_mean
from paperhooks.weights.entries import Change, Digests, Values, bits, ordinary, put, take, written_in_full
from paperhooks.weights.structure import Structure, containing, skipped_modules

__all__ = ["WeightJournal", "check_plain"]


@dataclass(frozen=True)
class _Left:
    """What :meth:`WeightJournal.undo` has not restored of one parameter, in words, and whether it could have been."""

    text: str
    impossible: bool = False


@dataclass(frozen=True)
class _Here:
    """The parameters of a model now, by each of their names, and the names of each."""

    parameters: dict[str, nn.Parameter]
    names: dict[int, set[str]]

    @classmethod
    def of(cls, model: nn.Module) -> _Here:
        parameters = dict(model.named_parameters(remove_duplicate=False))
        names: dict[int, set[str]] = {}
        for name, parameter in parameters.items():
            names.setdefault(id(parameter), set()).add(name)
        return cls(parameters, names)

    def exchanged(self, change: Change) -> tuple[str, ...]:
        """Names of the edited parameter that the model uses for another one; all of them when it is not there at all.

        A parameter may have moved to another name, as below a wrapper; then it is still there.
        """
        names = self.names.get(id(change.parameter), set())
        if not names:
            return change.names
        others = tuple(name for name in change.names if name in self.parameters and name not in names)
        return others if len(names) < len(change.names) else ()

    def offloaded(self, names: tuple[str, ...]) -> bool:
        """Whether one of the names is that of a parameter without values."""
        return any(name in self.parameters and self.parameters[name].is_meta for name in names)


class WeightJournal:
    """Edits parameters of ``model`` and undoes them bit for bit.

    While edits are open, a parameter belongs to the method that edited it first. An interrupt (KeyboardInterrupt,
    SystemExit) at any point of an edit or of :meth:`undo` leaves a journal whose :meth:`undo` finishes the work.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        #: What of the model is skipped, beside the edits of its weights: undone and kept with them.
        self.structure = Structure(model)
        #: Who writes when an edit names no method.
        self.writer = ""
        self._changes: dict[int, Change] = {}
        self._left: dict[int, _Left] = {}

    @property
    def changed(self) -> dict[str, Change]:
        """Name to :class:`Change` of every edited parameter, in the order of the first edits.

        A change says how things were when it was asked for; a later edit makes a new one.
        """
        return {change.name: change for change in self._changes.values()}

    def write(self, target: str | nn.Parameter, values: Tensor, *, method: str = "") -> None:
        """Replace a whole parameter.

        So that :meth:`undo` can tell later whether the values are still there, those of up to 65,536 entries are kept,
        and larger ones are hashed: SHA-256 over the values in the parameter's dtype and in the narrower ones to which
        models are cast, on the CPU, at about 1 GB/s. That is twice the parameter's bytes, and a third time where it has
        been edited before.

        :param target: qualified name, or the parameter itself.
        :param values: the parameter's shape; rounded to its dtype once.
        :param method: the writing method's name (default: :attr:`writer`), which keeps two methods from editing one
            parameter.
        :raises LookupError: no such parameter. :raises ValueError: another shape. :raises UnsupportedModel: a parameter
            that is not plain floating point. :raises PluginConflict: another method has edited it. :raises ModelError:
            it has got another shape since an earlier edit.
        """
        parameter, change = self._open(target, method)
        if values.shape != parameter.shape:
            raise ValueError(f"values for {self._label(target)} are {list(values.shape)}, not {list(parameter.shape)}")
        new = _for_parameter(values, parameter)
        now = parameter.detach()
        change = self._new(parameter, method, None, now.clone()) if change is None else change.followed().whole()
        self._commit(change, written_in_full(new), lambda: bits(now).copy_(bits(new)))

    def write_sparse(self, target: str | nn.Parameter, index: Tensor, values: Tensor, *, method: str = "") -> None:
        """Replace some entries; only their old and new values are kept.

        On a parameter that was written as a whole before, it costs what :meth:`write` costs.

        :param index: flat row-major positions int64 [n], each at most once.
        :param values: [n]; rounded to the parameter's dtype once.
        :raises IndexError: a position outside the parameter. :raises ValueError: positions that repeat, or as many
            values as positions are not given; and what :meth:`write` raises.
        """
        parameter, change = self._open(target, method)
        index = _checked_index(index, parameter, self._label(target))
        if values.shape != index.shape:
            raise ValueError(f"{self._label(target)}: {list(values.shape)} values for {len(index)} positions")
        index, order = index.sort()
        new, now = take(_for_parameter(values, parameter), order), parameter.detach()
        if change is None:
            change = self._new(parameter, method, index, take(now, index))
        else:
            change = change.followed().covering(index)
        after = change.current().clone()
        put(after, index if change.index is None else torch.searchsorted(change.index, index), new)
        written = written_in_full(after) if change.index is None else Values(after)
        self._commit(change, written, lambda: put(now, index, new))

    def scale_sparse(self, target: str | nn.Parameter, index: Tensor, factor: float, *, method: str = "") -> None:
        """Multiply some entries by ``factor``, in float32 (float64 for such weights), rounded once.

        A factor of 0 writes zeros, also over NaN. Raises what :meth:`write_sparse` raises.
        """
        parameter, _ = self._open(target, method)
        index = _checked_index(index, parameter, self._label(target))
        old = take(parameter.detach(), index)
        wide = old.double() if old.dtype == torch.float64 else old.float()
        self.write_sparse(parameter, index, wide * factor if factor else torch.zeros_like(wide), method=method)

    def check(self, target: str | nn.Parameter, *, method: str = "") -> None:
        """Raise what :meth:`write` would raise for ``target``, without writing."""
        self._open(target, method)

    def original(self, target: str | nn.Parameter) -> Tensor:
        """A copy of the parameter as it was before any edit, in the dtype and on the device that it has now.

        Raises ModelError when it has got another shape since it was edited.
        """
        parameter = self._find(target)
        change = self._changes.get(id(parameter))
        return parameter.detach().clone() if change is None else change.original()

    def undo(self) -> None:
        """Put the old values back wherever the edit is still there, last edited first; the journal is empty then.

        An edit is still there where a parameter holds, bit for bit, what was written last: entry by entry, or, for
        dense edits of more than 65,536 entries, in blocks of so many. Where the model was cast since, the old values
        are cast likewise. What somebody else has written is theirs: it stays, and one UserWarning names each such
        parameter with the number of its entries. So it is with a parameter that the model has exchanged for another
        Parameter object: nothing is written to the new one, and the edited one is restored for whoever has kept it.

        :raises ModelError: a parameter is on the meta device, so that undoing is impossible; or restoring one failed,
            as for want of memory. All others are restored first, and those that failed stay in the journal for another
            try. The error then names what the warning would have named.
        """
        self.structure.undo()
        here = _Here.of(self.model)
        failed: dict[str, Exception] = {}
        for key in reversed(list(self._changes)):
            change = self._changes[key]
            try:
                left = _undone(change, here)
            except Exception as error:
                failed[change.name] = error
                continue
            if left is not None:
                self._left[key] = left
            del self._changes[key]
        torch.clear_autocast_cache()
        self._tell(failed)

    def abandon(self) -> None:
        """Undo to the end, while an error is on its way: a further interrupt does not leave edits behind.

        The interrupt is raised again when all is undone. Raises what :meth:`undo` raises.
        """
        interrupt: BaseException | None = None
        while True:
            try:
                self.undo()
                break
            except (KeyboardInterrupt, SystemExit) as again:
                interrupt = again
        if interrupt is not None:
            raise interrupt

    def keep(self) -> None:
        """Make all edits final: forget what was there before."""
        self.structure.keep()
        self._changes.clear()
        self._left.clear()

    def _find(self, target: str | nn.Parameter) -> nn.Parameter:
        if isinstance(target, str):
            try:
                return self.model.get_parameter(target)
            except AttributeError:
                if outer := containing(target, skipped_modules(self.model)):
                    raise LookupError(
                        f"{target} is part of {outer}, which is skipped, so it cannot be edited"
                    ) from None
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
        check_plain(self.model, parameter, self._label(target))
        if change is not None and change.method != method:
            raise PluginConflict(
                f"{method or 'an unnamed method'} writes {change.name}, which {change.method or 'an unnamed method'} "
                "has edited; undo those edits or make them final (journal.keep()) first"
            )
        return parameter, change

    def _new(self, parameter: nn.Parameter, method: str, index: Tensor | None, saved: Tensor) -> Change:
        names = self._names(parameter)
        return Change(parameter, names[0], names, method or self.writer, parameter.shape, index, saved)

    def _commit(self, change: Change, written: Values | Digests, write: Callable[[], object]) -> None:
        """Write, with a record beside it that is right at every moment: it admits both values until one is sure."""
        key = id(change.parameter)
        self._changes[key] = replace(change, written=(*change.written, written))
        write()
        torch.clear_autocast_cache()  # inside of autocast the model would go on with casts of the old values
        self._changes[key] = replace(change, written=(written,))

    def _tell(self, failed: dict[str, Exception]) -> None:
        """Name once what was not restored: in a ModelError where anything was impossible, else in a warning."""
        errors = [left.text for left in self._left.values() if left.impossible]
        errors += [f"{name} could not be restored ({error!r}); undo again" for name, error in failed.items()]
        theirs = _theirs([left.text for left in self._left.values() if not left.impossible])
        if errors:
            try:
                raise ModelError("; ".join([*errors, *theirs])) from next(iter(failed.values()), None)
            finally:
                self._left.clear()
        for text in theirs:
            try:
                warnings.warn(text, stacklevel=3)
            except UserWarning:  # where warnings are errors
                self._left.clear()
                raise
        self._left.clear()

    def _names(self, parameter: Tensor) -> tuple[str, ...]:
        return tuple(n for n, p in self.model.named_parameters(remove_duplicate=False) if p is parameter)

    def _label(self, target: str | nn.Parameter) -> str:
        return target if isinstance(target, str) else next(iter(self._names(target)), "a parameter")


def _undone(change: Change, here: _Here) -> _Left | None:
    """Restore one parameter, and say what was not restored."""
    if change.parameter.is_meta:
        return _Left(_offloaded(change.name), impossible=True)
    found, gone = change.restore(), here.exchanged(change)
    if here.offloaded(gone):
        return _Left(_offloaded(change.name), impossible=True)
    reasons = [f"{found} of {change.entries} edited entries"] if found else []
    known = here.parameters
    reasons += [f"{name} is {'another Parameter now' if name in known else 'no longer in the model'}" for name in gone]
    return _Left(f"{change.name} ({'; '.join(reasons)})") if reasons else None


def _offloaded(name: str) -> str:
    return (
        f"{name} is on the meta device now (offloaded), so its edit could not be undone; undo edits before offloading, "
        "or load the model again"
    )


def _theirs(texts: list[str]) -> list[str]:
    if not texts:
        return []
    return [
        "undo of weight edits left alone what others have written since (an optimiser step, a merged adapter, a loaded "
        f"state, assigned data): {', '.join(texts)}. All else has its old values. What was written may have been made "
        "from edited values: load the weights again if the old ones are wanted. Undo edits before such a step (close "
        "the session), or make them final with journal.keep()"
    ]


def _for_parameter(values: Tensor, parameter: nn.Parameter) -> Tensor:
    """The values rounded to the parameter's dtype on its device, in memory that is not the parameter's."""
    new = values.detach().to(parameter.device, parameter.dtype)
    shared = new.untyped_storage().data_ptr() == parameter.untyped_storage().data_ptr()
    return new.clone() if shared else new  # such as a transpose of the parameter itself


def _checked_index(index: Tensor, parameter: nn.Parameter, label: str) -> Tensor:
    if index.dtype != torch.int64 or index.ndim != 1:
        raise ValueError(f"positions in {label} must be int64 [n], not {index.dtype} {list(index.shape)}")
    index = index.to(parameter.device)
    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < parameter.numel():
        raise IndexError(f"positions {int(index.min())} to {int(index.max())}: {label} has {parameter.numel()} entries")
    if len(torch.unique(index)) != len(index):
        raise ValueError(f"positions in {label} repeat; give each at most once")
    return index


def check_plain(model: nn.Module, parameter: nn.Parameter, label: str) -> None:
    """Raise UnsupportedModel for a parameter whose values cannot be replaced here: it has to be an ordinary tensor of
    floating point, in memory, and not a share of one.

    :param label: what to call it.
    """
    if parameter.is_meta:
        raise UnsupportedModel(
            f"{label} is on the meta device (offloaded or not loaded), so it cannot be edited; load the model "
            "without offloading"
        )
    if hasattr(parameter, "full_tensor") or _in_unit(model, parameter):
        raise UnsupportedModel(
            f"{label} is spread over processes (FSDP2 or tensor parallelism), and an edit here would write to a part "
            "of it; edit the model before it is sharded, or edit the gathered checkpoint and load that"
        )
    if not ordinary(parameter) or not parameter.is_floating_point():
        raise UnsupportedModel(
            f"{label} is {type(parameter).__name__} {parameter.dtype}, not plain floating point: it looks quantised. "
            "Load the model unquantised (GGUF files: GgufConfig(dequantize=True))"
        )


def _in_unit(model: nn.Module, parameter: nn.Parameter) -> bool:
    """Whether FSDP2 manages a parameter that looks plain: the last unit of a forward stays whole for a while, and what
    is written there is dropped.
    """
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")  # nobody has used what nobody has loaded
    units = (m for m in model.modules() if isinstance(m, fsdp.FSDPModule)) if hasattr(fsdp, "FSDPModule") else ()
    return any(each is parameter for unit in units for each in unit.parameters())
