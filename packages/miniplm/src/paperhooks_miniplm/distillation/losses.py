"""The Vanilla-KD loss (section 2.9) and other divergences between two models, on logits or parts of them.

The loss is (1 - w) * LM + w * KD. LM is the ordinary next-token loss; KD compares the teacher's next-token distribution
p with the student's q at the same positions.

Letters: B rows, T tokens, V vocabulary, n positions with a target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from paperhooks import DataError
from paperhooks.io import choice, number
from paperhooks.logprobs import Divergence, in_chunks, scatter_rows, target_rows
from torch import Tensor

from paperhooks_miniplm.algorithm import (
    IGNORED,
    blended_loss,
    distillation_divergence,
    entropy,
    log_probabilities,
    negative_log_likelihood,
    sequence_means,
)

__all__ = [
    "DistillationLoss",
    "Measure",
    "Reduction",
    "check_ids",
    "check_options",
    "common_vocabulary",
    "distillation_loss",
]

Reduction: TypeAlias = Literal["sequence_mean", "token_mean"]


@dataclass(frozen=True, slots=True, eq=False)
class DistillationLoss:
    """What :func:`distillation_loss` gives.

    loss
        Scalar, (1 - w) * LM + w * KD, with gradient; 0, with a gradient of 0, where nothing counts.
    lm, kd, entropy
        Mean over each row's counted positions, float32 [B]: next-token loss, divergence, and the teacher's entropy at
        the given temperature (without gradient). KL(p || q) is ``kd - entropy`` for "cross_entropy".
    count
        Counted positions of each row, int64 [B]; rows with none have zeros above and no part in the loss.
    """

    loss: Tensor
    lm: Tensor
    kd: Tensor
    entropy: Tensor
    count: Tensor


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    weight: float = 0.5,
    divergence: Divergence = "cross_entropy",
    beta: float = 0.5,
    temperature: float = 1.0,
    reduction: Reduction = "sequence_mean",
    vocabulary: int | None = None,
    chunk: int | None = None,
) -> DistillationLoss:
    """The loss of :class:`~paperhooks_miniplm.Distil` on given logits, float32 inside; see there for the options.

    :param student_logits: [B, T, V]; gradients flow to them. :param teacher_logits: [B, T, V']; none flow to them.
    :param labels: int64 [B, T]: what *the same* position predicts, as :func:`~paperhooks_miniplm.collate` gives them;
        nothing is shifted here.
    :param mask: bool or 0/1 [B, T], 1 where a position counts; labels other than -100 by default.
    :param chunk: positions to convert to float32 at once and compute again in the backward pass; all, once, by default.
    :raises ValueError: options out of range. :raises DataError: shapes or vocabularies that do not fit.
    """
    weight = number("weight", weight, low=0, high=1)
    divergence, beta, temperature, reduction = check_options(divergence, beta, temperature, reduction)
    counted = _counted(student_logits, teacher_logits, labels, mask)
    size = common_vocabulary(student_logits.shape[-1], teacher_logits.shape[-1], vocabulary)
    measure = Measure(divergence, beta, temperature, size)

    def terms(target: Tensor, s: Tensor, t: Tensor) -> Tensor:
        logits, known = s.float(), t.to(s.device).float()
        lm = negative_log_likelihood(logits, target)
        return torch.stack([lm, measure(logits, known), measure.entropy(known)], -1)

    rows = target_rows(counted)
    given = [x.reshape(-1, x.shape[-1])[rows.to(x.device)] for x in (student_logits, teacher_logits.detach())]
    targets = labels.reshape(-1)[rows.to(labels.device)].to(student_logits.device)
    check_ids(targets, student_logits.shape[-1], "label", "student")
    parts = terms(targets, *given) if chunk is None else in_chunks(terms, chunk, targets, *given)
    lm, kd, entropy = (scatter_rows(parts[:, i], rows, labels.shape) for i in range(3))
    (lm_mean, count), (kd_mean, _), (known, _) = (sequence_means(values, counted) for values in (lm, kd, entropy))
    if reduction == "token_mean":
        units = count.sum().clamp(min=1)
        loss = blended_loss(lm.sum() / units, kd.sum() / units, weight)
    else:
        units = (count > 0).sum().clamp(min=1)
        loss = blended_loss(lm_mean.sum() / units, kd_mean.sum() / units, weight)
    return DistillationLoss(loss, lm_mean, kd_mean, known, count)


@dataclass(frozen=True, slots=True)
class Measure:
    """A divergence of logits [n, V] at every position; see
    :func:`paperhooks_miniplm.algorithm.distillation_divergence`."""

    divergence: Divergence
    beta: float
    temperature: float
    size: int

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """float32 [n] for logits [n, V] and [n, V'] of which ``size`` are compared."""
        return distillation_divergence(self._logs(teacher), self._logs(student), self.divergence, self.beta)

    def entropy(self, teacher: Tensor) -> Tensor:
        """Of the teacher's distribution, float32 [n]."""
        return entropy(self._logs(teacher))

    def _logs(self, logits: Tensor) -> Tensor:
        return log_probabilities(logits[..., : self.size], self.temperature)


def check_options(
    divergence: Divergence, beta: float, temperature: float, reduction: Reduction
) -> tuple[Divergence, float, float, Reduction]:
    """The options as plain values. Raises ValueError for an unknown word, a beta outside [0, 1] or a temperature that
    is not above 0."""
    return (
        choice("divergence", divergence, get_args(Divergence)),
        number("beta", beta, low=0, high=1),
        number("temperature", temperature, above=0),
        choice("reduction", reduction, get_args(Reduction)),
    )


def common_vocabulary(student: int, teacher: int, wanted: int | None) -> int:
    """How many leading logits to compare."""
    if wanted is None and student != teacher:
        raise DataError(
            f"the student gives {student} logits and the teacher {teacher}; if they share a tokenizer and differ by "
            "padding rows only, pass vocabulary=len(tokenizer); other vocabularies cannot be compared"
        )
    size = student if wanted is None else wanted
    if not 0 < size <= min(student, teacher):
        raise DataError(f"vocabulary is {size}; the student gives {student} logits and the teacher {teacher}")
    return size


def _counted(student: Tensor, teacher: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
    for name, shape in (
        ("the teacher's logits", teacher.shape[:-1]),
        ("labels", labels.shape),
        ("mask", labels.shape if mask is None else mask.shape),
    ):
        if shape != student.shape[:-1] or len(shape) != 2:
            raise DataError(f"{name} cover positions {list(shape)}, the student's logits {list(student.shape[:-1])}")
    return (labels != IGNORED) if mask is None else mask.bool().to(labels.device)


def check_ids(ids: Tensor, size: int, what: str, whose: str) -> None:
    """Raise DataError for an id below 0 or not below ``size``, saying ``what`` it is and in ``whose`` vocabulary."""
    if not ids.numel():
        return
    low, high = (int(bound) for bound in ids.aminmax())
    if not 0 <= low <= high < size:
        wrong = low if low < 0 else high
        raise DataError(f"{what} {wrong} is outside the {whose}'s vocabulary of {size}; do they share a tokenizer?")
