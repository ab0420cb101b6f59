"""Training a selection and nothing else: gradients outside it are zeroed, and weight decay is kept from it.

>>> with train_only(model, skill):  # doctest: +SKIP
...     trainer.train()  # with callbacks=[TrainOnlyCallback()]
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from paperhooks import ModelError
from paperhooks.models import running_model
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from paperhooks_mathneuro.selection.selections import WeightSelection, unpack

__all__ = ["TrainOnlyCallback", "train_only"]


@contextmanager
def train_only(model: nn.Module, selection: WeightSelection) -> Iterator[None]:
    """Inside the block only the selection's entries get gradients; all other parameters require none.

    Optimisers whose step for a zero gradient is zero (SGD, Adam, AdamW without weight decay) then leave everything
    else as it is, bit for bit. Keep weight decay off, or use :class:`TrainOnlyCallback` in a Trainer. Costs one bit an
    entry of the scored matrices.

    :raises ArtefactError: the selection belongs to another model. :raises ModelError: it is empty.
    """
    model = running_model(model)
    masks = selection.masks(model)
    chosen: dict[str, list[Any]] = {}
    for matrix in masks.matrices:
        if bool(masks.packed[matrix.name].any()):
            chosen.setdefault(matrix.parameter, []).append(matrix)
    if not chosen:
        raise ModelError(f"{selection.label} is empty, so there is nothing to train")
    required = {name: parameter.requires_grad for name, parameter in model.named_parameters()}

    def masked(matrices: list[Any]) -> Any:
        def hook(gradient: Tensor) -> Tensor:
            kept = gradient.new_zeros(gradient.shape)
            for matrix in matrices:
                mask = unpack(masks.packed[matrix.name], matrix.shape).to(gradient.device)
                matrix.of(kept)[mask] = matrix.of(gradient)[mask]
            return kept

        return hook

    with ExitStack() as stack:
        for name, parameter in model.named_parameters():
            stack.callback(parameter.requires_grad_, required[name])
            parameter.requires_grad_(name in chosen)
            if name in chosen:
                stack.callback(parameter.register_hook(masked(chosen[name])).remove)
        yield


class TrainOnlyCallback(TrainerCallback):
    """Takes weight decay off while a Trainer trains, and gives it back afterwards: decay would move every entry."""

    def __init__(self) -> None:
        self._decay: list[tuple[dict[str, Any], float]] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set every group's weight decay to zero."""
        for group in kwargs["optimizer"].param_groups:
            self._decay.append((group, group.get("weight_decay", 0.0)))
            group["weight_decay"] = 0.0

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Give the groups their weight decay back."""
        for group, decay in self._decay:
            group["weight_decay"] = decay
        self._decay.clear()
