"""Zeros that stay zero while a compressed model is trained."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, Final

import torch
from paperhooks import Artefact, ArtefactError, UnsupportedModel
from paperhooks.errors import counted
from paperhooks.models import running_model
from paperhooks.weights import Edit, Quantised
from torch import Tensor, nn
from transformers import TrainerCallback

__all__ = ["SparsityMasks"]

#: Where adapters keep the module that they stand on.
_BASE: Final = "base_layer"


class SparsityMasks(TrainerCallback):
    """Keeps the zeros of a compressed model through the steps of any optimiser.

    >>> artefact = paperhooks.compress(model, "evopress", data=texts, target="sparsity=0.5")  # doctest: +SKIP
    >>> Trainer(model, args, train_dataset=data, callbacks=[SparsityMasks(artefact)]).train()  # doctest: +SKIP

    Before a step the gradients at these places become zero, so that no moment of the optimiser grows there, and after
    it the weights, so that nothing else moves them. Gradients are clipped before that, with what is at these places. A
    run that goes on from a checkpoint has the masks from the artefact again.

    A mask takes a byte an entry, where the parameter is. Weights that adapters stand on are masked below these; merging
    fills their zeros, which :meth:`apply` takes out again.

    :param artefact: of the compression. The places are those at which it writes zeros, but for codes of a few bits.
    :raises ArtefactError: it writes no zeros.
    """

    def __init__(self, artefact: Artefact) -> None:
        masks = {name: _zeros(edit) for name, edit in artefact.edits.items() if not isinstance(edit.packed, Quantised)}
        self._zeros = {name: mask for name, mask in masks.items() if bool(mask.any())}
        if not self._zeros:
            raise ArtefactError(f"this artefact of {artefact.method} writes no zeros that could be kept")
        self._here: dict[str, Tensor] = {}

    def places(self, name: str) -> Tensor:
        """Where a parameter of the compressed model stays zero, bool of its shape.

        :raises LookupError: a parameter that has no such places.
        """
        return self._zeros[name]

    def check(self, model: nn.Module) -> None:
        """Raise where the zeros are not in the model.

        :raises ArtefactError: a parameter that is missing, of another shape, or not zero where it has to be.
        :raises UnsupportedModel: parameters that are spread over processes or not in memory.
        """
        for name, parameter, mask in self._masked(model):
            if odd := int(parameter.detach()[mask].count_nonzero()):
                raise ArtefactError(
                    f"{name} is not zero at {counted(odd, 'place')} where the artefact writes zeros; apply it to the "
                    "model before training"
                )

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Put zeros in their places, as after adapters were merged into the weights. Raises what :meth:`check` does,
        but for values."""
        for _, parameter, mask in self._masked(model):
            parameter.masked_fill_(mask, 0)

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: nn.Module, **_: Any) -> None:
        """Raise for a model without the zeros; warn of adapters on them."""
        self.check(model)
        adapted = [name for name in self._zeros if _located(running_model(model), name)[1]]
        if adapted:
            warnings.warn(
                f"adapters stand on {counted(len(adapted), 'parameter')} with zeros, such as {adapted[0]}: the zeros "
                "stay while they are apart; after merging them call SparsityMasks.apply(model)",
                stacklevel=2,
            )

    @torch.no_grad()
    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, *, model: nn.Module, **_: Any) -> None:
        """No gradient where zeros stay."""
        for _name, parameter, mask in self._masked(model):
            if parameter.grad is not None:
                parameter.grad.masked_fill_(mask, 0)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, *, model: nn.Module, **_: Any) -> None:
        """Zeros where a step has moved them."""
        self.apply(model)

    def _masked(self, model: nn.Module) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
        """Parameters and where they stay zero, on their devices."""
        running = running_model(model)
        for name, zeros in self._zeros.items():
            parameter, _ = _located(running, name)
            if parameter.is_meta or hasattr(parameter, "full_tensor"):
                where = "not in memory" if parameter.is_meta else "spread over processes"
                raise UnsupportedModel(
                    f"{name} is {where}, where its zeros cannot be kept; train with whole parameters"
                )
            if parameter.shape != zeros.shape:
                raise ArtefactError(f"{name} is {list(parameter.shape)} and was compressed as {list(zeros.shape)}")
            mask = self._here.get(name)
            if mask is None or mask.device != parameter.device:
                mask = self._here[name] = zeros.to(parameter.device)
            yield name, parameter, mask


def _zeros(edit: Edit) -> Tensor:
    """Where an edit writes zeros, bool of the parameter's shape."""
    written = edit.written() == 0
    if edit.index is None:
        return written
    mask = torch.zeros(edit.shape, dtype=torch.bool)
    mask.view(-1)[edit.index[written]] = True
    return mask


def _located(model: nn.Module, name: str) -> tuple[nn.Parameter, bool]:
    """A parameter of the compressed model, and whether an adapter stands on it."""
    owner, _, leaf = name.rpartition(".")
    # First below the adapter, which itself shows the weight too.
    for place, adapted in ((f"{owner}.{_BASE}.{leaf}", True), (name, False)):
        try:
            return model.get_parameter(place), adapted
        except AttributeError:
            continue
    raise ArtefactError(f"this {type(model).__name__} has no parameter {name}, in which the artefact has zeros")
