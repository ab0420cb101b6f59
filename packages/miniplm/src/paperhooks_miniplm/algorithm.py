"""Difference sampling, and what the paper trains and compares with: one function a formula.

    d(x) = (log p(x) - log p_ref(x)) / tokens      p the teacher, p_ref the reference
    kept = the floor(ratio * N) rows with the largest d, in the order of the corpus

Sections, here and in all modules, are those of the description that this package follows, drawn from the tables of
arXiv 2410.17215 and from the official code (thu-coai/MiniPLM at ac2302f): 2.1 packing, 2.2 shards, 2.4 scoring, 2.5
difference, 2.6 selection, 2.7 learning rate, 2.8 other tokenizers, 2.9 distillation and costs, 2.11 scaling law.

Letters: B rows, T tokens, V vocabulary, n positions with a target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import torch
from paperhooks import DataError
from paperhooks.logprobs import Divergence, divergence_of
from torch import Tensor

__all__ = [
    "IGNORED",
    "Array",
    "ScalingLaw",
    "blended_loss",
    "counted_inputs",
    "difference_scores",
    "distillation_divergence",
    "entropy",
    "flops_matched_steps",
    "log_probabilities",
    "lr_at",
    "nearest_law",
    "negative_log_likelihood",
    "per_unit",
    "sequence_means",
]

Array: TypeAlias = np.ndarray[Any, Any]

#: Label of a position that does not count, as in transformers.
IGNORED: Final = -100
#: Exponents among which the fit of the scaling law looks for its own.
_EXPONENTS: Final = np.geomspace(1e-3, 10.0, 400)
_GOLDEN: Final = (math.sqrt(5) - 1) / 2


# -- scores of a row (2.4) -------------------------------------------------------------------------------------------


def counted_inputs(inputs: Tensor, ends: Iterable[int]) -> Tensor:
    """Section 2.4, the mask: inputs whose prediction counts, bool in the shape of ``inputs``.

    What begins the next document cannot be known, so nothing is predicted *from* an end token; the end itself is.

    :param inputs: ids of any integer type. :param ends: end tokens, and the padding where it is another.
    """
    counted = torch.ones(inputs.shape, dtype=torch.bool, device=inputs.device)
    for end in ends:
        counted &= inputs != end
    return counted


def negative_log_likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    """Section 2.4: -log q of the ``targets`` int64 [n] under ``logits`` [n, V], [n]."""
    return logits.logsumexp(-1) - logits.gather(-1, targets[:, None])[:, 0]


def sequence_means(values: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Sections 2.4, 2.7: mean of each row of ``values`` [B, T] where ``counted`` (bool or 0/1 [B, T]), and how many.

    Means [B] in the dtype of ``values``, 0 for a row without any; counts int64 [B]. What does not count may be
    anything, also infinite.
    """
    there = counted.to(values.device).bool()
    count = there.sum(1)
    return torch.where(there, values, 0.0).sum(1) / count.clamp(min=1), count


def per_unit(nll: Array, units: Array) -> Array:
    """Section 2.4: a row's summed ``nll`` over its ``units``, float64 [N]; NaN without any, or where it is not finite.

    :param nll: float64 [N]. :param units: what is divided by, [N]: counted tokens in the official code.
    """
    found, rows = np.full(len(nll), np.nan), np.isfinite(nll) & (units > 0)
    found[rows] = nll[rows] / units[rows]
    return found


# -- difference sampling (2.5, 2.6) ----------------------------------------------------------------------------------


def difference_scores(teacher: Array, reference: Array) -> Array:
    """Section 2.5: d = nll_reference - nll_teacher, both a token, float32 [N]; the largest are kept.

    (The paper's log p - log p_ref; its case study and the official code take both a token.)

    :param teacher, reference: float64 [N] of :func:`per_unit`; a row that is NaN in either has no difference.
    """
    return (reference - teacher).astype(np.float32)


# -- training (2.7) --------------------------------------------------------------------------------------------------


def lr_at(step: int, base: float, minimum: float, warmup: int, total: int) -> float:
    """Section 2.7: learning rate of an optimiser step, linear from zero, then a cosine down to a minimum.

        base * s / W                                              for s < W
        min + (base - min) / 2 * (1 + cos(pi (s - W) / (T - W)))   after it

    >>> [round(lr_at(step, 6e-4, 6e-5, 2000, 100_000), 7) for step in (0, 1000, 2000, 51_000, 100_000)]
    [0.0, 0.0003, 0.0006, 0.00033, 6e-05]

    :param step: s, counted from 0: the first step has rate 0 unless ``warmup`` is 0.
    :param base: rate at the end of the warm-up. :param minimum: rate at step ``total`` and after it; the paper takes a
        tenth of ``base``.
    :raises ValueError: unless 0 <= ``warmup`` < ``total`` and 0 <= ``step``.
    """
    if not 0 <= warmup < total or step < 0:
        raise ValueError(f"step {step} with warmup {warmup} of {total}; expected 0 <= warmup < total and step >= 0")
    if step < warmup:
        return base * step / warmup
    done = (min(step, total) - warmup) / (total - warmup)
    return minimum + (base - minimum) / 2 * (1 + math.cos(math.pi * done))


# -- distillation (2.9) ----------------------------------------------------------------------------------------------


def log_probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Section 2.9: log softmax of ``logits`` [n, V]; the paper's temperature is 1."""
    if temperature != 1.0:
        logits = logits / temperature
    # logsumexp is far more exact than log_softmax over a large vocabulary on CPU.
    return logits - logits.logsumexp(-1, keepdim=True)


def distillation_divergence(p: Tensor, q: Tensor, divergence: Divergence, beta: float = 0.5) -> Tensor:
    """Section 2.9: how far the student's q is from the teacher's p at every position, [n] from log-probabilities.

        "cross_entropy"   H(p, q) = -sum p log q, the official one
        "forward"         KL(p || q) = H(p, q) - H(p), of the same gradient
        "reverse"         KL(q || p), MiniLLM's
        "jsd"             beta KL(p || m) + (1 - beta) KL(q || m),  m = beta p + (1 - beta) q

    Terms where the *student* gives no mass add nothing and get no gradient, also in the cross-entropy, where they would
    be infinite: the official rule.

    :param p, q: [n, V]. :param beta: of "jsd", between 0 and 1; at the ends the limit of JSD / beta and
        JSD / (1 - beta): KL(p || q) at 0, KL(q || p) at 1.
    """
    if divergence == "jsd" and beta in (0, 1):
        divergence = "reverse" if beta else "forward"
    return divergence_of(p, q, divergence, beta=beta, skip_excluded=True)


def entropy(p: Tensor) -> Tensor:
    """Section 2.9: H(p) = -sum p log p of log-probabilities [n, V], [n]."""
    return -(p.exp() * p.masked_fill(p == -torch.inf, 0.0)).sum(-1)


def blended_loss(lm: Tensor, kd: Tensor, weight: float) -> Tensor:
    """Section 2.9, Vanilla KD: (1 - w) * LM + w * KD; w = 0.5 in the paper."""
    # At the ends the other term must not turn an infinite value into NaN.
    if weight == 0:
        return lm
    return kd if weight == 1 else (1 - weight) * lm + weight * kd


def flops_matched_steps(
    steps: float, student: float, teacher: float, method: Literal["vanilla_kd", "minillm"] = "vanilla_kd"
) -> float:
    """Section 2.9: steps that cost as many FLOPs as ``steps`` of plain training.

    A step of plain training costs 3 N_s, of vanilla KD 3 N_s + N_t (the teacher's forward), of MiniLLM 4 N_s + 2 N_t.
    Scoring a corpus once is not counted, since all students share it.

    >>> round(flops_matched_steps(100_000, 0.5e9, 1.8e9))
    45455

    :param student, teacher: parameters N_s and N_t. :raises ValueError: an unknown method, or numbers not above 0.
    """
    costs = {"vanilla_kd": 3 * student + teacher, "minillm": 4 * student + 2 * teacher}
    if method not in costs:
        raise ValueError(f"method is {method!r}; expected one of {', '.join(costs)}")
    if not min(steps, student, teacher) > 0:
        raise ValueError(f"steps, student and teacher are {steps}, {student}, {teacher}; all must be above 0")
    return steps * 3 * student / costs[method]


# -- the scaling law (2.11) ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ScalingLaw:
    """Section 2.11: L(C) = ``l_inf`` + ``a_c`` / C ** ``alpha_c``, in nats per token and FLOPs."""

    l_inf: float
    a_c: float
    alpha_c: float

    def loss(self, compute: float) -> float:
        """Loss at ``compute`` FLOPs. Raises ValueError unless it is above 0."""
        if not compute > 0:
            raise ValueError(f"compute is {compute}; it must be above 0 FLOPs")
        return self.l_inf + self.a_c / compute**self.alpha_c


def nearest_law(compute: Array, losses: Array) -> tuple[ScalingLaw, Array]:
    """Section 2.11, the fit: the law nearest in least squares of the loss, and what it leaves over, float64 [n].

    :param compute: FLOPs, float64 [n], above 0. :param losses: observed losses, float64 [n].
    :raises DataError: losses that no falling and flattening curve describes.
    """
    centre = float(np.exp(np.log(compute).mean()))
    scaled = compute / centre
    exponent = _minimum(lambda exponent: float((_solved(scaled, losses, exponent)[1] ** 2).sum()))
    (l_inf, slope), residuals = _solved(scaled, losses, exponent)
    if slope <= 0:
        raise DataError(f"the losses do not fall with compute (fitted A_c {slope:.3g}); a law of this form needs that")
    return ScalingLaw(float(l_inf), float(slope * centre**exponent), exponent), residuals


def _solved(compute: Array, losses: Array, exponent: float) -> tuple[Array, Array]:
    """With the exponent given the law is linear: its two constants, and the residuals."""
    design = np.stack([np.ones_like(compute), compute**-exponent], 1)
    constants = np.linalg.lstsq(design, losses, rcond=None)[0]
    return constants, losses - design @ constants


def _minimum(error: Callable[[float], float]) -> float:
    """The exponent of least error: the best of a grid, then a golden-section search between its neighbours.

    Raises DataError where the error still falls at an end of the grid.
    """
    best = int(np.argmin([error(float(exponent)) for exponent in _EXPONENTS]))
    if not 0 < best < len(_EXPONENTS) - 1:
        raise DataError(
            f"no exponent between {_EXPONENTS[0]:g} and {_EXPONENTS[-1]:g} fits best: the losses do not flatten as "
            "L_inf + A_c / C^alpha_c does; give points over a wider range of compute, or fewer early ones"
        )
    low, high = float(_EXPONENTS[best - 1]), float(_EXPONENTS[best + 1])
    while high - low > 1e-12 * high:
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        if error(left) <= error(right):
            high = right
        else:
            low = left
    return (low + high) / 2
