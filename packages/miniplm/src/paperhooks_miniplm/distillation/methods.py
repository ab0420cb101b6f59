"""Distillation in the training loop, never holding [B, T, V]: the Vanilla-KD loss (section 2.9) and other divergences.

:class:`Distil` replaces the training loss by (1 - w) * LM + w * KD, as the official code has it; :class:`DistilTerm`
leaves the loss to the model or to another method and adds w * KD. The terms come from one run of the student's head, a
chunk of positions at a time; the first makes their gradient on the way, so that nothing is computed twice, the second
computes them again in the backward pass. They work in training, with
:class:`paperhooks.HooksTrainerMixin` or :func:`paperhooks.training.compute_loss`;
:func:`~paperhooks_miniplm.distillation_loss` gives the same on logits that are there.

Letters: B rows, T tokens, V vocabulary, n positions with a target.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final

import torch
from paperhooks import DataError, LossContext, ModelView, PluginIncompatible, Traits, hookimpl
from paperhooks.io import flag, number, optional, whole, whole_list
from paperhooks.logprobs import Divergence, Head, in_chunks, next_token_labels, scatter_rows, sum_in_chunks, target_rows
from paperhooks.models import evaluation_mode, last_hidden_state, view_of
from torch import Tensor, nn

from paperhooks_miniplm.algorithm import IGNORED, counted_inputs, negative_log_likelihood, sequence_means
from paperhooks_miniplm.distillation.losses import (
    Measure,
    Reduction,
    check_ids,
    check_options,
    common_vocabulary,
)

__all__ = ["Distil", "DistilTerm"]

#: Nothing happens inside the forward, so every way to generate and to compile stays what it is.
_TRAITS: Final = Traits(
    training=True, compile=True, beams=True, assisted=True, static_cache=True, chunked_prefill=True,
    dtypes=("float32", "bfloat16", "float16"), parallel=("torchrun", "accelerate"),
)  # fmt: skip


@dataclass(eq=False)
class _Distillation:
    """A teacher, and how a student is compared with it; the options are described at :class:`Distil`."""

    teacher: Any = field(default=None, repr=False)
    weight: float = 0.5
    divergence: Divergence = "cross_entropy"
    beta: float = 0.5
    temperature: float = 1.0
    reduction: Reduction = "sequence_mean"
    official_mask: bool = True
    eos_token_id: int | Sequence[int] | None = None
    vocabulary: int | None = None
    chunk: int = 128
    _heads: dict[int, Head] = field(default_factory=dict, init=False, repr=False)
    _teacher_head: Head | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.teacher is not None:
            self._known_teacher()
        self.divergence, self.beta, self.temperature, self.reduction = check_options(
            self.divergence, self.beta, self.temperature, self.reduction
        )
        self.official_mask = flag("official_mask", self.official_mask)
        self.eos_token_id = optional(_token_ids, "eos_token_id", self.eos_token_id)
        self.vocabulary = optional(whole, "vocabulary", self.vocabulary, at_least=1)
        self.chunk = whole("chunk", self.chunk, at_least=1)

    @hookimpl
    def setup(self, view: ModelView) -> None:
        """Find and check both heads, and that they have one vocabulary."""
        if self.official_mask:
            self._ends(view)
        self._heads[id(view)] = head = Head.from_model(view)
        if self.weight > 0:
            common_vocabulary(head.vocabulary, self._other_head().vocabulary, self.vocabulary)

    @hookimpl
    def teardown(self, view: ModelView) -> None:
        """Forget the head of a model that is detached."""
        self._heads.pop(id(view), None)

    def _measure(self, size: int) -> Measure:
        return Measure(
            self.divergence, self.beta, self.temperature,
            common_vocabulary(size, self._other_head().vocabulary, self.vocabulary),
        )  # fmt: skip

    def _student_rows(self, context: LossContext, rows: Tensor) -> Tensor:
        """What the student's head receives at flat positions ``rows``: [n, D], with gradient."""
        hidden = last_hidden_state(context.model, context.inputs)
        return hidden.reshape(-1, hidden.shape[-1])[rows.to(hidden.device)]

    def _teacher_rows(self, inputs: Mapping[str, Any], rows: Tensor) -> Tensor:
        """The same of the teacher, [n, D'], on its own device, for what it accepts of the batch."""
        teacher = self._known_teacher()
        view = view_of(teacher)
        accepted = inspect.signature(view.model.forward).parameters
        if isinstance(ids := inputs.get("input_ids"), Tensor):
            model: Any = view.model
            check_ids(ids, len(model.get_input_embeddings().weight), "id", "teacher")
        given = {name: _moved(value, view.model) for name, value in inputs.items() if name in accepted}
        with torch.no_grad(), evaluation_mode(teacher):
            hidden = last_hidden_state(teacher, given)
        return hidden.reshape(-1, hidden.shape[-1])[rows.to(hidden.device)]

    def _labels(self, context: LossContext) -> Tensor:
        """What every position is to predict, int64 [B, T], -100 where nothing counts."""
        labels = next_token_labels(context.view, context.inputs)
        ids = context.inputs.get("input_ids")
        if self.official_mask:
            if not isinstance(ids, Tensor):
                raise DataError("the batch has no input_ids to find ends of documents in; pass official_mask=False")
            counted = counted_inputs(ids, self._ends(context.view))
            labels = labels.masked_fill(~counted.to(labels.device), IGNORED)
        context.check_targets(bool((labels != IGNORED).any()))
        return labels

    def _ends(self, view: ModelView) -> list[int]:
        configs = (view.text_config, view.model.config, getattr(view.model, "generation_config", None))
        given = (self.eos_token_id, *(getattr(config, "eos_token_id", None) for config in configs))
        ends = next((found for found in given if found is not None), None)
        if ends is None:
            raise DataError(
                f"{type(view.model).__name__} names no end-of-sequence token; pass eos_token_id=, or "
                "official_mask=False to count what follows it"
            )
        return [ends] if isinstance(ends, int) else [int(end) for end in ends]

    def _reduced(self, context: LossContext, values: Tensor, counted: Tensor) -> Tensor:
        if self.reduction == "token_mean":
            return context.token_mean(values, counted.to(values.device))
        means, counts = sequence_means(values, counted)
        return context.target_row_mean(means, counts > 0)

    def _head(self, context: LossContext) -> Head:
        return self._heads.get(id(context.view)) or Head.from_model(context.view)

    def _other_head(self) -> Head:
        if self._teacher_head is None:
            self._teacher_head = Head.from_model(self._known_teacher())
        return self._teacher_head

    def _known_teacher(self) -> nn.Module:
        if not isinstance(self.teacher, nn.Module):
            name = type(self).__name__
            raise PluginIncompatible(
                f"{name} needs a teacher, got {type(self.teacher).__name__}: pass a causal language model with the "
                f"student's tokenizer, {name}(teacher=model)"
            )
        return self.teacher


@dataclass(eq=False)
class Distil(_Distillation):
    """Trains a student on its labels and on the distributions of a teacher with the same tokenizer.

    teacher
        A causal language model on any device and in any dtype. It runs in eval mode and without gradient, is not copied
        and does not become part of the student. Not asked at all with ``weight`` 0.
    weight
        w between 0 and 1: share of the KD term.
    official_mask
        Also leave out what is predicted from an end-of-sequence token, whatever the labels say.
    eos_token_id
        That token, or several; the model's own by default.

    Beyond the paper:

    divergence, beta
        "cross_entropy" (official), "forward", "reverse" or "jsd" with its beta between 0 and 1; see
        :func:`paperhooks_miniplm.algorithm.distillation_divergence`.
    temperature
        Both logits are divided by it in the KD term, which is not multiplied by its square.
    reduction
        "sequence_mean" (official): mean over rows of each row's mean over tokens; rows without a target do not count.
        "token_mean": mean over all targets. Both are of the accumulated batch, whose rows and targets the Trainer
        counts by labels other than -100: have them masked by :class:`~paperhooks_miniplm.TrainingCollator`.
    vocabulary
        Leading logits that the KD term compares, ``len(tokenizer)``: for heads that differ by padding rows only. The LM
        term always has all of the student's logits.
    chunk
        Positions that a head sees at once.

    Logs ``loss/<method>/lm`` and ``loss/<method>/kd``, both without their weights.

    :raises ValueError: an option that cannot be meant. :raises PluginIncompatible: a teacher that is no model, or none
        when attached.
    :raises DataError: vocabularies that differ (when attached), ids that the teacher does not have, or an optimiser
        step in which nothing is predicted; one of its micro-batches without targets contributes 0.
    """

    traits: ClassVar[Traits] = replace(_TRAITS, writes=frozenset({"objective"}))

    def __post_init__(self) -> None:
        super().__post_init__()
        self.weight = number("weight", self.weight, low=0, high=1)

    @hookimpl
    def compute_loss(self, context: LossContext) -> Tensor:
        """(1 - w) * LM + w * KD of one micro-batch, normalised for the accumulated batch; notes both terms."""
        labels, head = self._labels(context), self._head(context)
        rows = target_rows(labels != IGNORED)
        student = self._student_rows(context, rows)
        targets = labels.reshape(-1)[rows].to(student.device)
        check_ids(targets, head.vocabulary, "label", "student")
        given = [targets, self._teacher_rows(context.inputs, rows)] if self.weight > 0 else [targets]
        weights = self._row_weights(context, labels != IGNORED).reshape(-1)[rows].to(student.device)
        factors = (1 - self.weight, self.weight)[: len(given)]
        loss, values = sum_in_chunks(
            self._chunk_function(head), self.chunk, weights, factors, student, *given,
            parameters=list(head.module.parameters()),
        )  # fmt: skip
        for name, term in zip(("lm", "kd"), weights @ values, strict=False):
            context.terms[f"loss/{self._name(context)}/{name}"] = term
        return loss

    def _row_weights(self, context: LossContext, counted: Tensor) -> Tensor:
        """What each position counts in the reduced loss, float32 [B, T]: the reduction is linear in them."""
        with torch.enable_grad():
            values = torch.zeros(counted.shape, requires_grad=True)
            reduced = self._reduced(context, values, counted.cpu())
            return torch.autograd.grad(reduced, values)[0]

    def _chunk_function(self, head: Head) -> Callable[..., Tensor]:
        if self.weight == 0:
            return lambda h, targets: negative_log_likelihood(head.logits(h), targets)[:, None]
        other, measure = self._other_head(), self._measure(head.vocabulary)

        def both(h: Tensor, targets: Tensor, g: Tensor) -> Tensor:
            with torch.no_grad():
                known = other.logits(g)
            logits = head.logits(h)
            return torch.stack([negative_log_likelihood(logits, targets), measure(logits, known.to(logits.device))], -1)

        return both

    def _name(self, context: LossContext) -> str:
        methods = {} if context.session is None else context.session.methods
        return next((name for name, method in methods.items() if method is self), "distil")


@dataclass(eq=False)
class DistilTerm(_Distillation):
    """Adds w * KD to whatever the training loss is: the model's own, or that of another method.

    Options and errors are those of :class:`Distil`, except that ``weight`` may be any number from 0 on. Where the
    model's logits are there already, as with its own loss, they are used; the student runs a second time otherwise.
    Logs ``loss/<method>/kd``, with its weight.
    """

    traits: ClassVar[Traits] = _TRAITS

    def __post_init__(self) -> None:
        super().__post_init__()
        self.weight = number("weight", self.weight, low=0)

    @hookimpl
    def loss_terms(self, context: LossContext) -> dict[str, Tensor] | None:
        """w * KD of one micro-batch, normalised for the accumulated batch."""
        if self.weight == 0:
            return None
        labels = self._labels(context)
        rows = target_rows(labels != IGNORED)
        divergences = in_chunks(*self._divergences(context, rows))
        values = scatter_rows(divergences, rows, labels.shape)
        return {"kd": self.weight * self._reduced(context, values, labels != IGNORED)}

    def _divergences(self, context: LossContext, rows: Tensor) -> tuple[Any, ...]:
        """What :func:`in_chunks` needs for the divergence at flat positions ``rows``."""
        other, taught = self._other_head(), self._teacher_rows(context.inputs, rows)
        if context.forward_ran:
            there = context.logits.reshape(-1, context.logits.shape[-1])
            student, measure = rows.to(there.device), self._measure(there.shape[-1])
        else:
            head, there = self._head(context), None
            student, measure = self._student_rows(context, rows), self._measure(head.vocabulary)

        def divergence(own: Tensor, g: Tensor) -> Tensor:
            with torch.no_grad():
                known = other.logits(g)
            logits = head.logits(own) if there is None else there[own].float()
            return measure(logits, known.to(logits.device))

        return divergence, self.chunk, student, taught


def _token_ids(name: str, value: Any) -> int | list[int]:
    try:
        return whole(name, value, at_least=0)
    except ValueError as error:
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise ValueError(f"{error}, a list of them") from None
    return whole_list(name, value, at_least=0)


def _moved(value: Any, model: nn.Module) -> Any:
    device = torch.device(getattr(model, "device", "cpu"))
    # Of an offloaded model, what brings the weights brings the inputs too.
    return value.to(device) if isinstance(value, Tensor) and device.type != "meta" else value
