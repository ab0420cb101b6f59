"""Distillation in the training loop, never holding [B, T, V]: the Vanilla-KD loss (section 2.9) and other divergences.

:class:`Distil` replaces the training loss by (1 - w) * LM + w * KD, as the official code has it; :class:`DistilTerm`
leaves the loss to the model or to another method and adds w * KD. The terms come from one run of the student's head, a
chunk of positions at a time, and their gradient is made on the way, so that nothing is computed twice. They work in
training, with
:class:`paperhooks.HooksTrainerMixin` or :func:`paperhooks.training.compute_loss`;
:func:`~paperhooks_miniplm.distillation_loss` gives the same on logits that are there.

Letters: B rows, T tokens, V vocabulary, n positions with a target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final, TypeVar

import torch
from paperhooks import DataError, LossContext, ModelView, PluginIncompatible, Traits, hookimpl
from paperhooks.io import flag, number, optional, whole, whole_list
from paperhooks.logprobs import (
    Divergence,
    Head,
    Reference,
    next_token_labels,
    sequence_numbers,
    sum_in_chunks,
    target_rows,
)
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

_T = TypeVar("_T")

#: Nothing happens inside the forward, so every way to generate and to compile stays what it is.
_TRAITS: Final = Traits(
    training=True, compile=True, beams=True, assisted=True, static_cache=True, chunked_prefill=True,
    devices=("cpu", "cuda", "emulated"), dtypes=("float32", "bfloat16", "float16"),
    parallel=("ddp", "fsdp2", "tp", "offload"),
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
    _made: tuple[Any, Reference] | None = field(default=None, init=False, repr=False)

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
        if isinstance(self.teacher, Reference) and self.weight > 0:
            self.teacher.check(view)
        if "fsdp2" in view.spread.kinds and view.spread.unit(view.model) is None:
            return  # sharded inside of a wrapper, which the training loop alone holds: the first loss finds the head
        self._heads[id(view)] = self._found(view)

    @hookimpl
    def teardown(self, view: ModelView) -> None:
        """Forget the head of a model that is detached."""
        self._heads.pop(id(view), None)

    @hookimpl
    def count_examples(self, view: ModelView, batch: Mapping[str, Any]) -> int | None:
        """Sequences with a target, of which several may lie in one row; None where the mean is over tokens."""
        if self.reduction == "token_mean":
            return None
        labels = self._targets(view, batch)
        return int((_by_sequence(labels != IGNORED, batch)[1] > 0).sum())

    def _measure(self, size: int, other: Head) -> Measure:
        size = common_vocabulary(size, other.vocabulary, self.vocabulary)
        return Measure(self.divergence, self.beta, self.temperature, size)

    def _student(self, context: LossContext, rows: Tensor, work: Callable[[Tensor, Head], _T]) -> _T:
        """``work`` on what the student's head receives at flat positions ``rows``, [n, D] with gradient, and the head
        to ask there."""
        return self._head(context).run(context.model, context.inputs, lambda h, head: work(_picked(h, rows), head))

    def _taught(self, context: LossContext, rows: Tensor, work: Callable[[Tensor, Head], _T]) -> _T:
        """The same of the teacher, [n, D'] on its own device, for what it accepts of the batch.

        Around the student's run and not before it: a sharded teacher has its head's weights only then.
        """
        known = self._other_head(context.model).view
        if known is not None and isinstance(context.inputs.get("input_ids"), Tensor):
            model: Any = known.model
            check_ids(context.host_inputs["input_ids"], len(model.get_input_embeddings().weight), "id", "teacher")

        def picked(hidden: Tensor, head: Head) -> _T:
            with torch.no_grad():
                taught = _picked(hidden, rows)
            return work(taught, head)

        return self._reference().run(context.model, context.inputs, picked)

    def _row_weights(self, context: LossContext, counted: Tensor) -> Tensor:
        """What each position counts in the reduced loss, float32 [B, T]: the reduction is linear in them.

        On the CPU, like ``counted``.
        """
        with torch.enable_grad():
            values = torch.zeros(counted.shape, requires_grad=True)
            reduced = self._reduced(context, values, counted)
            return torch.autograd.grad(reduced, values)[0]

    def _labels(self, context: LossContext) -> Tensor:
        """What every position is to predict, int64 [B, T] on the CPU, -100 where nothing counts."""
        labels = self._targets(context.view, context.host_inputs)
        context.check_targets(bool((labels != IGNORED).any()))
        return labels

    def _targets(self, view: ModelView, batch: Mapping[str, Any]) -> Tensor:
        """The same of a batch, on its device."""
        labels, ids = next_token_labels(view, batch), batch.get("input_ids")
        if not self.official_mask:
            return labels
        if not isinstance(ids, Tensor):
            raise DataError("the batch has no input_ids to find ends of documents in; pass official_mask=False")
        return labels.masked_fill(~counted_inputs(ids, self._ends(view)).to(labels.device), IGNORED)

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
        means, counts = _by_sequence(counted, context.host_inputs, values)
        if context.method in context.num_method_examples:
            return context.example_mean(means[counts > 0])
        return context.target_row_mean(means, counts > 0)

    def _head(self, context: LossContext) -> Head:
        key = id(context.view)
        head = self._heads.get(key) or self._found(context.model)
        if context.session is not None:
            self._heads[key] = head
        return head

    def _found(self, model: nn.Module | ModelView) -> Head:
        head = Head.from_model(model)
        if self.weight > 0:
            common_vocabulary(head.vocabulary, self._other_head(model).vocabulary, self.vocabulary)
        return head

    def _other_head(self, model: nn.Module | ModelView) -> Head:
        return self._reference().head(model)

    def _reference(self) -> Reference:
        """The teacher; made of a model when it is first asked."""
        if self._made is None or self._made[0] is not self.teacher:
            self._made = (self.teacher, self._known_teacher())
        return self._made[1]

    def _known_teacher(self) -> Reference:
        if isinstance(self.teacher, Reference):
            return self.teacher
        if not isinstance(self.teacher, nn.Module):
            name = type(self).__name__
            raise PluginIncompatible(
                f"{name} needs a teacher, got {type(self.teacher).__name__}: pass a causal language model with the "
                f"student's tokenizer, {name}(teacher=model)"
            )
        return Reference.of(self.teacher)


@dataclass(eq=False)
class Distil(_Distillation):
    """Trains a student on its labels and on the distributions of a teacher with the same tokenizer.

    teacher
        A causal language model on any device and in any dtype, or a :class:`paperhooks.logprobs.Reference`, such as the
        student without its adapters. It runs in eval mode and without gradient, is not copied and does not become part
        of the student. Not asked at all with ``weight`` 0.
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
        labels = self._labels(context)
        rows = target_rows(labels != IGNORED)
        targets = labels.reshape(-1)[rows]
        check_ids(targets, self._head(context).vocabulary, "label", "student")
        weights = self._row_weights(context, labels != IGNORED).reshape(-1)[rows]
        if self.weight > 0:
            loss, values = self._taught(
                context, rows,
                lambda g, other: self._student(
                    context, rows, lambda h, head: self._summed(weights, h, head, targets, g, other)
                ),
            )  # fmt: skip
        else:
            loss, values = self._student(context, rows, lambda h, head: self._summed(weights, h, head, targets))
        for name, column in zip(("lm", "kd"), values.unbind(-1), strict=False):
            context.log(name, column, weights)
        return loss

    def _summed(
        self, weights: Tensor, student: Tensor, head: Head, targets: Tensor, *taught: Any
    ) -> tuple[Tensor, Tensor]:
        """The loss, and both terms at every position; ``taught`` are the teacher's rows and its head."""
        parameters, targets = list(head.module.parameters()), targets.to(student.device, non_blocking=True)
        if not taught:
            return sum_in_chunks(
                lambda h, t: negative_log_likelihood(head.logits(h), t)[:, None],
                self.chunk, weights, (1,), student, targets, parameters=parameters,
            )  # fmt: skip
        states, other = taught
        measure = self._measure(head.vocabulary, other)

        def both(h: Tensor, t: Tensor, g: Tensor) -> Tensor:
            with torch.no_grad():
                known = other.logits(g)
            logits = head.logits(h)
            return torch.stack([negative_log_likelihood(logits, t), measure(logits, known.to(logits.device))], -1)

        return sum_in_chunks(
            both, self.chunk, weights, (1 - self.weight, self.weight), student, targets, states, parameters=parameters
        )


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
        weights = self._row_weights(context, labels != IGNORED).reshape(-1)[rows]

        def term(g: Tensor, other: Head) -> Tensor:
            if not context.forward_ran:
                return self._student(context, rows, lambda h, head: self._summed(weights, h, head, g, other))
            logits = context.logits
            return self._summed(weights, _picked(logits, rows), None, g, other)

        return {"kd": self._taught(context, rows, term)}

    def _summed(self, weights: Tensor, student: Tensor, head: Head | None, g: Tensor, other: Head) -> Tensor:
        """w * KD of the student's hidden states, or without ``head`` of its logits."""
        measure = self._measure(student.shape[-1] if head is None else head.vocabulary, other)

        def divergence(own: Tensor, taught: Tensor) -> Tensor:
            with torch.no_grad():
                known = other.logits(taught)
            logits = own.float() if head is None else head.logits(own)
            return measure(logits, known.to(logits.device))[:, None]

        parameters = [] if head is None else list(head.module.parameters())
        return sum_in_chunks(divergence, self.chunk, weights, (self.weight,), student, g, parameters=parameters)[0]


def _by_sequence(counted: Tensor, batch: Mapping[str, Any], values: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Means of ``values`` [B, T] over what counts of every sequence, [S], and how much counts, int64 [S].

    A sequence is a row, unless the batch has positions that begin anew and no mask.
    """
    values = counted.float() if values is None else values
    positions, mask = batch.get("position_ids"), batch.get("attention_mask")
    if not isinstance(positions, Tensor) or positions.ndim != 2 or isinstance(mask, Tensor):
        return sequence_means(values, counted)
    numbers = sequence_numbers(positions.to(values.device).expand(values.shape)).reshape(-1)
    there = counted.to(values.device).bool()
    size = int(numbers.max()) + 1 if numbers.numel() else 0
    count = torch.zeros(size, dtype=torch.int64, device=values.device).index_add(0, numbers, there.reshape(-1).long())
    sums = values.new_zeros(size).index_add(0, numbers, torch.where(there, values, 0.0).reshape(-1))
    return sums / count.clamp(min=1), count


def _picked(states: Tensor, rows: Tensor) -> Tensor:
    """The flat positions ``rows`` of [B, T, D]: [n, D]."""
    return states.reshape(-1, states.shape[-1])[rows.to(states.device, non_blocking=True)]


def _token_ids(name: str, value: Any) -> int | list[int]:
    try:
        return whole(name, value, at_least=0)
    except ValueError as error:
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise ValueError(f"{error}, a list of them") from None
    return whole_list(name, value, at_least=0)
