"""Divergences between the next-token distributions of two models, from hidden states and in chunks."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from paperhooks.errors import DataError, UnsupportedModel, did_you_mean
from paperhooks.logprobs.chunked import in_chunks, scatter_rows, target_rows
from paperhooks.logprobs.head import Head

__all__ = ["Divergence", "divergence_of", "kl_divergence"]

Divergence: TypeAlias = Literal["forward", "reverse", "jsd", "cross_entropy"]


def kl_divergence(
    student: Tensor,
    student_head: Head,
    teacher: Tensor,
    teacher_head: Head,
    *,
    mask: Tensor | None = None,
    direction: Divergence = "forward",
    temperature: float = 1.0,
    beta: float = 0.5,
    vocabulary: int | None = None,
    chunk: int = 512,
) -> Tensor:
    """Divergence of two models' next-token distributions at every position, never holding [B, T, V].

    Where FSDP2 shards one of the models, call it in :meth:`Head.run`, the student's inside of the teacher's where both
    are. With gradients the log-probabilities of a sharded teacher are held then, float32 [n, V] for n positions, and
    none flow to it.

    With p the teacher's and q the student's distribution at the given temperature:

    forward
        KL(p || q) = sum_v p (log p - log q), what knowledge distillation minimises.
    reverse
        KL(q || p).
    jsd
        beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q; generalised Jensen-Shannon.
    cross_entropy
        -sum_v p log q: forward KL plus the teacher's entropy, the same gradient for the student.

    :param student: hidden states [..., D] before ``student_head``; gradients flow to them and to the head.
    :param teacher: hidden states [..., D'] at the same positions; computed under ``torch.no_grad()`` as a rule.
    :param mask: bool or 0/1 [...]; only positions where it is true are computed.
    :param temperature: both logits are divided by it; the result is not multiplied by its square.
    :param vocabulary: number of leading logits to compare, for heads that differ by padding rows only.
    :param chunk: positions that a head sees at once.
    :return: float32 [...], in nats; zero where ``mask`` is false.
    :raises DataError: shapes or vocabularies that do not fit. :raises ValueError: an unknown direction, a temperature
        that is not positive, or beta outside (0, 1) for ``jsd``. :raises UnsupportedModel: a head outside of its
        sharded model, or hidden states of a sharded teacher that ask for gradients.
    """
    _check(student, teacher, mask, direction, temperature, beta)
    size = _vocabulary(student_head, teacher_head, vocabulary)

    # A sharded teacher's head is gone when the backward pass would ask it again: what it says is kept.
    held = teacher_head.forward is not None and torch.is_grad_enabled()

    def taught(g: Tensor) -> Tensor:
        return (teacher_head.logits(g)[..., :size] / temperature).log_softmax(-1)

    def divergences(h: Tensor, g: Tensor) -> Tensor:
        q = (student_head.logits(h)[..., :size] / temperature).log_softmax(-1)
        return divergence_of((g if held else taught(g)).to(q.device), q, direction, beta=beta)

    shape = student.shape[:-1]
    wanted = torch.ones(shape, dtype=torch.bool, device=student.device) if mask is None else mask.bool()
    rows = target_rows(wanted)
    own, known = (x.reshape(-1, x.shape[-1])[rows.to(x.device)] for x in (student, teacher))
    if held:
        if known.requires_grad:
            raise UnsupportedModel("gradients cannot flow to a teacher that FSDP2 shards; run it under torch.no_grad()")
        with torch.no_grad():
            known = in_chunks(taught, chunk, known)
    return scatter_rows(in_chunks(divergences, chunk, own, known), rows, shape)


def divergence_of(
    p: Tensor, q: Tensor, direction: Divergence = "forward", *, beta: float = 0.5, skip_excluded: bool = False
) -> Tensor:
    """Divergence [...] of log-probabilities ``p`` (teacher) and ``q`` (student) [..., V]; see :func:`kl_divergence`.

    :param skip_excluded: entries that the student excludes (probability 0) add nothing to "forward" and
        "cross_entropy", which they would make infinite, and get no gradient.
    """
    if direction == "jsd":
        return _jsd(p, q, beta)
    if direction == "reverse":
        return _kl(q, p, q > -torch.inf)
    held = p > -torch.inf
    if skip_excluded:
        held = held & (q > -torch.inf)
    if direction == "forward":
        return _kl(p, q, held)
    return -(p.exp() * q.masked_fill(~held, 0.0)).sum(-1)


def _kl(p: Tensor, q: Tensor, held: Tensor) -> Tensor:
    """KL of log-probabilities [..., V] over the entries that are held."""
    return (p.exp() * (p.masked_fill(~held, 0.0) - q.masked_fill(~held, 0.0))).sum(-1)


def _jsd(p: Tensor, q: Tensor, beta: float) -> Tensor:
    # Finite, far below any mass: the gradient of logaddexp is NaN for an entry that neither of the two has.
    p, q = p.clamp(min=-1e4), q.clamp(min=-1e4)
    shares = torch.tensor([beta, 1 - beta], dtype=p.dtype, device=p.device).log()
    middle = torch.logaddexp(p + shares[0], q + shares[1])
    return beta * (p.exp() * (p - middle)).sum(-1) + (1 - beta) * (q.exp() * (q - middle)).sum(-1)


def _check(
    student: Tensor, teacher: Tensor, mask: Tensor | None, direction: str, temperature: float, beta: float
) -> None:
    if direction not in get_args(Divergence):
        raise ValueError(f"direction is {direction!r}; {did_you_mean(direction, get_args(Divergence))}")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0")
    if direction == "jsd" and not 0 < beta < 1:
        raise ValueError(f"beta is {beta}; jsd needs it between 0 and 1, use 'forward' or 'reverse' for the ends")
    for name, other in (
        ("the teacher's hidden states", teacher.shape[:-1]),
        ("mask", mask.shape if mask is not None else None),
    ):
        if other is not None and other != student.shape[:-1]:
            raise DataError(f"{name} cover positions {list(other)}, the student's {list(student.shape[:-1])}")


def _vocabulary(student: Head, teacher: Head, wanted: int | None) -> int:
    sizes = student.vocabulary, teacher.vocabulary
    if wanted is None and sizes[0] != sizes[1]:
        raise DataError(
            f"the student gives {sizes[0]} logits and the teacher {sizes[1]}; if they share a tokenizer and differ by "
            "padding rows only, pass vocabulary=len(tokenizer)"
        )
    size = sizes[0] if wanted is None else wanted
    if not 0 < size <= min(sizes):
        raise DataError(f"vocabulary is {size}; the heads give {sizes[0]} and {sizes[1]} logits")
    return size
