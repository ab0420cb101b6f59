"""The model that another is compared with, by losses such as DPO and by distillation: one object for every kind.

It is asked in eval mode and without gradient, never becomes part of the trained model, and knows nothing of loss hooks.
What it holds for each token are distributions (:meth:`Reference.run`), of which a loss of sequences needs the sums
(:meth:`Reference.sums`); columns of the data hold these alone.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from paperhooks.errors import DataError, PluginIncompatible, UnsupportedModel
from paperhooks.logprobs.flattened import row_positions, sequence_numbers, without_full_mask
from paperhooks.logprobs.head import Head
from paperhooks.logprobs.tokens import sequence_logprobs
from paperhooks.models.adapters import (
    active_adapters,
    adapter_names,
    learning_beside_adapters,
    with_adapter,
    without_adapters,
)
from paperhooks.models.forward import evaluation_mode, last_hidden_state, view_of
from paperhooks.models.view import ModelView
from paperhooks.models.wrappers import running_model

__all__ = ["Reference"]

_T = TypeVar("_T")


class Reference(ABC):
    """What a trained model is compared with.

    >>> reference = Reference.of(another_model)
    >>> reference = Reference.without_adapters()           # the trained model itself, before its adapters
    >>> reference = Reference.by_adapter("start")          # with a frozen adapter in place of the trained one
    >>> reference = Reference.from_column("reference")     # what reference_columns computed once

    Where it is the trained model itself, its wrappers are left out, and methods that are attached to it act in both, so
    that both read the same tokens. A model of its own has the methods that were attached to it.
    """

    @staticmethod
    def of(model: nn.Module) -> Reference:
        """Another causal language model with the same tokenizer, on any device and in any dtype, sharded or offloaded.

        :raises PluginIncompatible: no model.
        """
        if not isinstance(model, nn.Module):
            raise PluginIncompatible(
                f"a reference needs a causal language model, got {type(model).__name__}; load it first, for example "
                "with AutoModelForCausalLM.from_pretrained"
            )
        return _AnotherModel(model)

    @staticmethod
    def without_adapters() -> Reference:
        """The trained model with its PEFT adapters, and modules that PEFT trains as a whole, disabled."""
        return _SameModel(None)

    @staticmethod
    def by_adapter(name: str) -> Reference:
        """The trained model with the frozen adapter ``name`` in place of those that act."""
        return _SameModel(name)

    @staticmethod
    def from_column(name: str) -> Reference:
        """The column ``name`` of the batch: sums of log-probabilities, floating [S] or one row of them an example."""
        return _Column(name)

    @abstractmethod
    def check(self, trained: nn.Module | ModelView) -> None:
        """Whether this can be the reference of ``trained``; a method asks in ``setup``.

        :raises PluginIncompatible: it is the trained model itself and would move along, or adapters are missing.
        :raises UnsupportedModel: adapters of a model that FSDP2 shards.
        """

    @abstractmethod
    def sums(self, trained: nn.Module | ModelView, batch: Mapping[str, Any], *, chunk: int = 512) -> Tensor:
        """Summed log-probabilities of every sequence's targets, without gradient: float64 [S].

        :param trained: the model that is trained, or its wrapper.
        :param batch: what it is given; see :func:`sequence_logprobs` for targets, and for what S is.
        :param chunk: positions that the head sees at once.
        :raises DataError: a batch without the column, or with one that does not fit.
        """

    @abstractmethod
    def head(self, trained: nn.Module | ModelView) -> Head:
        """Its head, found once. :raises PluginIncompatible: a column, which has none."""

    @abstractmethod
    def run(self, trained: nn.Module | ModelView, batch: Mapping[str, Any], work: Callable[[Tensor, Head], _T]) -> _T:
        """``work(hidden, head)`` for the hidden states [B, T, D] that its head receives; see :meth:`Head.run`.

        ``work`` may run the trained model, with gradient and in its own mode. What the reference's model does not
        accept of the batch is left out, the rest taken to its device.

        :raises PluginIncompatible: a column, which has no distributions.
        """


@dataclass(frozen=True, eq=False)
class _AnotherModel(Reference):
    model: nn.Module = field(repr=False)
    _heads: list[Head] = field(default_factory=list, init=False, repr=False)

    def check(self, trained: nn.Module | ModelView) -> None:
        own = view_of(trained).model
        learning = {id(p) for p in own.parameters() if p.requires_grad}
        shared = [id(p) for p in self.model.parameters()]
        if running_model(self.model) is own or (learning.intersection(shared) and _all_of(shared, own)):
            raise PluginIncompatible(
                f"the reference is the {type(own).__name__} that is trained, so it would move along; give a copy of it "
                "(copy.deepcopy(model)), or with PEFT Reference.without_adapters()"
            )

    def sums(self, trained: nn.Module | ModelView, batch: Mapping[str, Any], *, chunk: int = 512) -> Tensor:
        head = self.head(trained)
        given = _accepted(head.view_of(self.model), batch)
        with torch.no_grad(), evaluation_mode(self.model):
            return sequence_logprobs(self.model, given, head=head, chunk=chunk).sum

    def head(self, trained: nn.Module | ModelView) -> Head:
        if not self._heads:
            self._heads.append(Head.from_model(self.model))
        return self._heads[0]

    def run(self, trained: nn.Module | ModelView, batch: Mapping[str, Any], work: Callable[[Tensor, Head], _T]) -> _T:
        head, other = self.head(trained), trained.model if isinstance(trained, ModelView) else trained
        given = _accepted(head.view_of(self.model), batch)
        graded, training = torch.is_grad_enabled(), [m for m in other.modules() if m.training]

        def inside(hidden: Tensor, own: Head) -> _T:
            for module in training:  # a trained model that shares modules with this one has its own mode
                module.training = True
            with torch.set_grad_enabled(graded):
                return work(hidden, own)

        with torch.no_grad(), evaluation_mode(self.model):
            return head.run(self.model, given, inside)


@dataclass(frozen=True, eq=False)
class _SameModel(Reference):
    """The trained model, without adapters or with the one that is named."""

    adapter: str | None
    _heads: dict[int, Head] = field(default_factory=dict, init=False, repr=False)

    def check(self, trained: nn.Module | ModelView) -> None:
        view = view_of(trained)
        name, known = type(view.model).__name__, adapter_names(view.model)
        if not known:
            raise PluginIncompatible(
                f"{name} has no adapters of PEFT, so without them it is the model that is trained; give a copy of it, "
                "Reference.of(copy.deepcopy(model)), or add adapters before attaching"
            )
        if "fsdp2" in view.spread.kinds:
            raise UnsupportedModel(
                f"adapters of {name} cannot be switched while FSDP2 shards it; give the reference as a model of its "
                "own, or compute its values once: paperhooks.logprobs.reference_columns"
            )
        learns = learning_beside_adapters(view.model)
        if learns is not None:
            raise PluginIncompatible(
                f"{learns} of {name} is trained beside the adapters, so a reference that shares it would move along; "
                "freeze it, or give a copy of the model"
            )
        self._check_adapter(view, known)

    def _check_adapter(self, view: ModelView, known: list[str]) -> None:
        if self.adapter is None:
            return
        acting = active_adapters(view.model)
        if self.adapter not in known:
            raise PluginIncompatible(
                f"the model has no adapter {self.adapter!r}; it has {', '.join(known)}: load it with "
                "model.load_adapter(folder, name)"
            )
        if self.adapter in acting or not acting:
            what = "is the one that is trained" if acting else "cannot be chosen while adapters are disabled"
            raise PluginIncompatible(
                f"adapter {self.adapter!r} {what}; keep the reference under another name, and train with "
                "model.set_adapter(name) of the other"
            )

    def sums(self, trained: nn.Module | ModelView, batch: Mapping[str, Any], *, chunk: int = 512) -> Tensor:
        head = self.head(trained)
        with self._asked(view_of(trained).model), torch.no_grad():
            return sequence_logprobs(head.view_of(trained), batch, head=head, chunk=chunk).sum

    def head(self, trained: nn.Module | ModelView) -> Head:
        view = view_of(trained)
        self.check(view)  # adapters may have been changed since
        if id(view.model) not in self._heads:  # the head's view keeps the model
            with self._asked(view.model):
                self._heads[id(view.model)] = Head.from_model(view)
        return self._heads[id(view.model)]

    def run(self, trained: nn.Module | ModelView, batch: Mapping[str, Any], work: Callable[[Tensor, Head], _T]) -> _T:
        head = self.head(trained)
        view = head.view_of(trained)
        with self._asked(view.model), torch.no_grad():
            hidden = last_hidden_state(view, _accepted(view, batch), view=view)
        # Outside of the block, so that work meets the trained model as it is.
        return work(hidden, replace(head, forward=self._forward(view.model, head)))

    def _forward(self, model: nn.Module, head: Head) -> Callable[[Tensor], Tensor] | None:
        if not adapter_names(head.module):
            return None

        def forward(hidden: Tensor) -> Tensor:
            with self._asked(model):
                made: Tensor = head.module(hidden)
                return made

        return forward

    @contextmanager
    def _asked(self, model: nn.Module) -> Iterator[None]:
        switched = without_adapters(model) if self.adapter is None else with_adapter(model, self.adapter)
        with evaluation_mode(model), switched:
            yield


@dataclass(frozen=True, eq=False)
class _Column(Reference):
    name: str

    def check(self, trained: nn.Module | ModelView) -> None:
        """Only the batch tells."""

    def sums(self, trained: nn.Module | ModelView, batch: Mapping[str, Any], *, chunk: int = 512) -> Tensor:
        found = batch.get(self.name)
        if found is None:
            raise DataError(
                f"the batch has no column {self.name!r} of reference values: compute them with "
                "paperhooks.logprobs.reference_columns, let the collator hand the column on, and keep it in the "
                "Trainer's batches (remove_unused_columns=False)"
            )
        if not isinstance(found, Tensor) or not found.is_floating_point():
            what = found.dtype if isinstance(found, Tensor) else type(found).__name__
            raise DataError(
                f"column {self.name!r} is {what}; expected a tensor of a floating type, one value a sequence"
            )
        values = found.detach().reshape(-1).to(torch.float32 if found.device.type == "mps" else torch.float64)
        expected = _sequences(batch)
        if expected is not None and len(values) != expected:
            raise DataError(
                f"column {self.name!r} has {len(values)} values, {list(found.shape)}, for {expected} sequences of the "
                "batch; expected one a sequence, in their order"
            )
        if not bool(values.isfinite().all()):
            raise DataError(f"column {self.name!r} has a value that is not finite; compute the reference values again")
        return values

    def head(self, trained: nn.Module | ModelView) -> Head:
        raise PluginIncompatible(
            f"the reference is the column {self.name!r}, which has sums of sequences and no distributions; give a "
            "model: Reference.of(model)"
        )

    def run(self, trained: nn.Module | ModelView, batch: Mapping[str, Any], work: Callable[[Tensor, Head], _T]) -> _T:
        return work(torch.empty(0), self.head(trained))


def _sequences(batch: Mapping[str, Any]) -> int | None:
    """S of a batch of ids [..., T], or None where there are none."""
    ids = batch.get("input_ids")
    if not isinstance(ids, Tensor):
        return None
    rows = ids.shape[:-1].numel()
    batch = without_full_mask(batch, rows) if ids.ndim == 2 else {}
    positions = row_positions(batch, rows)
    if positions is None or isinstance(batch.get("attention_mask"), Tensor):
        return rows
    return int(sequence_numbers(positions)[-1, -1]) + 1


def _all_of(parameters: list[int], model: nn.Module) -> bool:
    return {id(p) for p in model.parameters()} <= set(parameters)


def _accepted(view: ModelView, batch: Mapping[str, Any]) -> dict[str, Any]:
    """What a model takes of a batch, and what tells targets, on its device."""
    known = {*inspect.signature(view.model.forward).parameters, "labels", "shift_labels"}
    return {name: _moved(value, view.model) for name, value in batch.items() if name in known}


def _moved(value: Any, model: nn.Module) -> Any:
    device = torch.device(getattr(model, "device", "cpu"))
    # Of an offloaded model, what brings the weights brings the inputs too.
    return value.to(device) if isinstance(value, Tensor) and device.type != "meta" else value
