"""Values of levels that need calibration, from one pass over the data, made while modules are asked for.

A search asks for one level of one module at a time, in the order of the layers. The pass stands at the layer of the
module that was asked for last: its Hessians are there, and are let go when a later layer is asked for. So memory is
that of one layer's Hessians and of the data's hidden states, and no batch is read twice. Who asks for a layer that was
passed starts a second pass, which then makes and keeps all levels that it passes, so that there is no third.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

import torch
from paperhooks import CompressionRequest, DataError, HookError, ModelView
from paperhooks.models import CalibrationBatch, Experts, InputMoments, calibrate_by_layer
from paperhooks.weights import Packed, skipped_modules
from torch import Tensor, nn

from paperhooks_evopress.levels.feedback import Feedback
from paperhooks_evopress.levels.matrices import Weight

__all__ = ["LayerwisePreparation", "Maker", "calibration_batches"]

logger = logging.getLogger(__name__)

#: Makes the values of a parameter at some levels, by their labels: from its module's name, itself, and what is known of
#: the inputs of each of its matrices.
Maker: TypeAlias = Callable[[str, Weight, Sequence[Feedback], Sequence[str]], Mapping[str, Packed]]

_CALIBRATION: Final = "calibration"


def calibration_batches(view: ModelView, request: CompressionRequest, max_length: int) -> list[dict[str, Any]]:
    """The calibration data of a request, or its part ``"calibration"`` where it has parts; cut to what the model reads.

    :raises DataError: no data, or no such part of it.
    """
    longest = getattr(view.text_config, "max_position_embeddings", None) or max_length
    part = _CALIBRATION if isinstance(request.data, Mapping) else None
    return request.batches(part, max_length=min(max_length, longest))


class LayerwisePreparation:
    """The values of all levels of some modules, layer by layer.

    :param units: qualified name of each module to its matrices. :param labels: the levels of every module.
    :param make: makes values, from all labels that are wanted of a parameter at once.
    :param damping, by_size: for :meth:`Feedback.of`.
    :param stand_in: a label of ``make``, at which a layer stands while the next ones read the data; None leaves it as
        it is.
    """

    def __init__(
        self,
        view: ModelView,
        units: Mapping[str, Sequence[Weight]],
        batches: Sequence[Mapping[str, Any]],
        labels: Mapping[str, Sequence[str]],
        make: Maker,
        *,
        damping: float,
        by_size: bool = False,
        stand_in: str | None = None,
    ) -> None:
        self._view, self._units, self._batches = view, dict(units), batches
        self._labels, self._make, self._stand_in = labels, make, stand_in
        self._damping, self._by_size = damping, by_size
        #: The weights of the whole model as they were offered, wherever it stands later.
        self._own = {name: (each, each.data) for name, each in view.model.named_parameters()}
        self._values_of = {id(parameter): own for parameter, own in self._own.values()}
        self._skipped = set(skipped_modules(view.model))
        self._made: dict[str, dict[str, dict[str, Packed]]] = {}
        self._handed: set[tuple[str, str]] = set()
        self._keep_all = False
        self._restart()

    def _restart(self) -> None:
        self._pass: Iterator[tuple[int, list[str]]] | None = None
        self._here: list[str] = []
        self._reached: set[str] = set()
        self._standing: dict[str, dict[str, Packed]] = {}
        self._moments = InputMoments()
        self._known: dict[tuple[str, bytes], Feedback] = {}

    def values(self, name: str, label: str) -> Mapping[str, Packed]:
        """The packed values of a module at a level; the first time for a layer reads the data up to it.

        :raises HookError: the model has been moved, cast or lost modules since its levels were offered.
        """
        if label not in self._made.get(name, {}):
            self._reach(name)
            self._made[name] = self._values(name, self._labels[name])
        own = self._made[name]
        found = own.pop(label)  # the search holds it from now on
        self._handed.add((name, label))
        if not own:
            del self._made[name]
        if len(self._handed) == sum(map(len, self._labels.values())):
            self._restart()  # nobody needs the last layer's moments and hidden states any more
        return found

    # -- the pass over the layers --------------------------------------------------------------------------------------

    def _reach(self, name: str) -> None:
        """Let the pass stand at the layer of a module."""
        if name in self._reached and name not in self._here:
            self._keep_all = True
            self._restart()
        while name not in self._here:
            self._advance()

    @torch.no_grad()
    def _advance(self) -> None:
        """Go to the next layer."""
        if self._keep_all:
            for name in self._here:
                left = [label for label in self._labels[name] if (name, label) not in self._handed]
                if left and name not in self._made:
                    self._made[name] = self._values(name, left)
        if self._stand_in is not None:
            for name in self._here:
                if name not in self._standing:
                    self._values(name, ())
        standing, self._standing = self._standing, {}
        self._moments, self._known = InputMoments(), {}
        try:
            with self._at_home(standing):
                if self._pass is None:
                    self._pass = self._begin()
                _, names = next(self._pass)
        except BaseException:
            self._restart()  # an interrupted pass is over
            raise
        self._here = names
        self._reached.update(names)

    def _begin(self) -> Iterator[tuple[int, list[str]]]:
        routed = [name for name, weights in self._units.items() if len(weights[0].shape) == 3]
        return calibrate_by_layer(
            self._view,
            self._batches,
            [name for name in self._units if name not in routed],
            lambda *read: self._moments.receive(*read),
            routed=routed,
            receive_routed=self._receive_routed,
            sequential=self._stand_in is not None,
            progress=False,
        )

    def _receive_routed(
        self, name: str, experts: Experts, hidden: Tensor, index: Tensor, batch: CalibrationBatch
    ) -> None:
        """Add what each expert reads; rows of padding are routed too, and do not count."""
        if batch.mask is not None and batch.mask.numel() == len(hidden):
            real = batch.mask.flatten().to(hidden.device)
            hidden, index = hidden[real], index[real]
        for expert, _, first, last in experts.inputs(hidden, index):
            for parameter, rows in ((experts.up, first), (experts.down, last)):
                self._moments.receive(_reader(name, parameter, expert), experts.module, rows, batch)

    @contextmanager
    def _at_home(self, standing: Mapping[str, Mapping[str, Packed]]) -> Iterator[None]:
        """The model as it was offered, but for the layer that was passed last."""
        self._check_model()
        before = [(parameter, parameter.data) for parameter, _ in self._own.values()]
        try:
            for parameter, own in self._own.values():
                parameter.data = own
            for name, values in standing.items():
                for weight in self._units[name]:
                    weight.parameter.data = values[weight.name].unpack()
            yield
        finally:
            for parameter, values_before in before:
                parameter.data = values_before

    def _check_model(self) -> None:
        if missing := set(skipped_modules(self._view.model)) ^ self._skipped:
            raise HookError(
                f"{min(missing)} was skipped or put back since levels were offered, and calibration would read another "
                "model; make the values first, with levels.prepare()"
            )
        for name, (parameter, own) in self._own.items():
            if parameter.device != own.device or parameter.dtype != own.dtype:
                raise HookError(
                    f"{name} was {own.dtype} on {own.device} when levels were offered, and is {parameter.dtype} on "
                    f"{parameter.device} now; ask for the levels again"
                )

    # -- values --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _values(self, name: str, labels: Sequence[str]) -> dict[str, dict[str, Packed]]:
        """Label to the values of the module's parameters, and what it stands at for later layers."""
        wanted = list(labels)
        if self._stand_in is not None and name not in self._standing and self._stand_in not in wanted:
            wanted.append(self._stand_in)
        found: dict[str, dict[str, Packed]] = {label: {} for label in wanted}
        for weight in self._units[name]:
            own = _at(weight, self._values_of[id(weight.parameter)])
            try:
                made = self._make(name, own, self._feedback(name, own), wanted)
            except DataError as error:
                raise DataError(f"{name}.{weight.name}: {error}") from error
            for label in wanted:
                found[label][weight.name] = made[label]
        if self._stand_in in found:
            self._standing[name] = found[self._stand_in]
        return {label: found[label] for label in labels}

    def _feedback(self, name: str, weight: Weight) -> list[Feedback]:
        """For each matrix of a parameter; matrices that read one tensor have one."""
        routed = len(weight.shape) == 3
        found, unread = [], []
        for index in range(weight.count):
            matrix = weight.matrix(index)
            reader = _reader(name, weight.name, index) if routed else name
            if not bool(matrix.isfinite().all()):
                raise DataError("it has entries that are not finite")
            if reader not in self._moments:
                unread.append(index)
                found.append(Feedback.none(weight.inputs, matrix))
                continue
            unused = (matrix == 0).all(dim=1)
            key = self._moments.readers[reader], bytes(unused.tolist())
            if key not in self._known:
                moments = self._moments[reader].to(matrix.dtype)
                self._known[key] = Feedback.of(moments, unused, damping=self._damping, by_size=self._by_size)
            found.append(self._known[key])
        if unread:
            which = f"experts {unread} of {name}" if routed else name
            logger.warning("%s read no calibration token: errors in %s are not made up for", which, weight.name)
        return found


def _reader(name: str, parameter: str, expert: int) -> str:
    return f"{name}.{parameter}[{expert}]"


def _at(weight: Weight, values: Tensor) -> Weight:
    """A weight with these values, whatever its parameter shows."""
    return Weight(weight.name, nn.Parameter(values, requires_grad=False), weight.transposed)
