"""Distillation in the training loop: the Vanilla-KD loss (section 2.9) and other divergences, never holding [B, T, V].

The loss is (1 - w) * LM + w * KD. LM is the ordinary next-token loss; KD compares the teacher's next-token distribution
p with the student's q at the same positions. Both come from one run of the student's head, a chunk of positions at a
time, and are computed again in the backward pass. :class:`Distil` does it in training, with
:class:`paperhooks.HooksTrainerMixin` or :func:`paperhooks.loss.compute_loss`; :func:`distillation_loss` does it on
logits that are there.

Letters: B rows, T tokens, V vocabulary, n positions with a target.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Literal, TypeAlias, get_args

import torch
from paperhooks import DataError, LossContext, ModelView, PluginIncompatible, Traits, hookimpl
from paperhooks.divergence import Divergence
from paperhooks.engine import evaluation_mode
from paperhooks.errors import did_you_mean
from paperhooks.hidden import last_hidden_state, view_of
from paperhooks.logprobs import Head, next_token_labels
from paperhooks.rows import in_chunks, scatter_rows, target_rows
from torch import Tensor, nn

from paperhooks_miniplm.collating import sequence_means

__all__ = ["Distil", "DistillationLoss", "Reduction", "distillation_loss"]

Reduction: TypeAlias = Literal["sequence_mean", "token_mean"]

_IGNORE: Final = -100
#: Far below every log-probability whose probability is not zero in float32.
_NOTHING: Final = -1e4
_NO_TARGET: Final = (
    "no row of this batch of {rows} has a token to predict (its labels are -100, or come after the end of a document): "
    "leave rows without targets out of the dataset"
)


@dataclass(eq=False)
class Distil:
    """Trains a student on its labels and on the distributions of a teacher with the same tokenizer.

    teacher
        A causal language model on any device and in any dtype. It runs in eval mode and without gradient, is not copied
        and does not become part of the student. Not asked at all with ``weight`` 0.
    weight
        w between 0 and 1: share of the KD term.
    divergence
        "cross_entropy" (official): H(p, q) = -sum p log q, whose gradient is that of forward KL; "forward": KL(p || q),
        which is H without the teacher's entropy; "reverse": KL(q || p); "jsd": beta KL(p || m) + (1 - beta) KL(q || m)
        with m = beta p + (1 - beta) q.
    beta
        Of "jsd", between 0 and 1. At the ends it is the limit of JSD / beta and JSD / (1 - beta): KL(p || q) at 0,
        KL(q || p) at 1.
    temperature
        Both logits are divided by it in the KD term, which is not multiplied by its square.
    reduction
        "sequence_mean" (official): mean over rows of each row's mean over tokens; rows without a target do not count.
        "token_mean": mean over all targets of the accumulated batch, as the Trainer counts them: labels other than
        -100, so have them masked by :class:`~paperhooks_miniplm.TrainingCollator`.
    official_mask
        Also leave out what is predicted from an end-of-sequence token, whatever the labels say.
    eos_token_id
        That token, or several; the model's own by default.
    vocabulary
        Leading logits that the KD term compares, ``len(tokenizer)``: for heads that differ by padding rows only. The LM
        term always has all of the student's logits.
    chunk
        Positions that a head sees at once.

    Logs ``loss/<method>/lm`` and ``loss/<method>/kd``, both without their weights.

    :raises ValueError: options out of range. :raises PluginIncompatible: no teacher, when attached.
    :raises DataError: vocabularies that differ (when attached), ids that the teacher does not have, or a batch in which
        nothing is predicted.
    """

    teacher: Any = field(default=None, repr=False)
    weight: float = 0.5
    divergence: Divergence = "cross_entropy"
    beta: float = 0.5
    temperature: float = 1.0
    reduction: Reduction = "sequence_mean"
    official_mask: bool = True
    eos_token_id: int | Sequence[int] | None = None
    vocabulary: int | None = None
    chunk: int = 512
    _heads: dict[int, Head] = field(default_factory=dict, init=False, repr=False)
    _teacher_head: Head | None = field(default=None, init=False, repr=False)

    # Nothing happens inside the forward, so every way to generate and to compile stays what it is.
    traits: ClassVar[Traits] = Traits(
        writes=frozenset({"objective"}), training=True, compile=True, beams=True, assisted=True, static_cache=True,
        chunked_prefill=True, dtypes=("float32", "bfloat16", "float16"),
    )  # fmt: skip

    def __post_init__(self) -> None:
        _check_options(self.weight, self.divergence, self.beta, self.temperature, self.reduction)
        if self.chunk < 1:
            raise ValueError(f"chunk is {self.chunk}; it must be at least 1 position")

    @hookimpl
    def setup(self, view: ModelView) -> None:
        """Find and check both heads, and that they have one vocabulary."""
        if self.official_mask:
            self._ends(view)
        self._heads[id(view)] = head = Head.from_model(view)
        if self.weight > 0:
            _common(head.vocabulary, self._other_head().vocabulary, self.vocabulary)

    @hookimpl
    def teardown(self, view: ModelView) -> None:
        """Forget the head of a model that is detached."""
        self._heads.pop(id(view), None)

    @hookimpl
    def compute_loss(self, context: LossContext) -> Tensor:
        """(1 - w) * LM + w * KD of one micro-batch, normalised for the accumulated batch; notes both terms."""
        labels = self._labels(context)
        counted = labels != _IGNORE
        terms = {name: self._reduced(context, values, counted) for name, values in self._terms(context, labels).items()}
        for name, term in terms.items():
            context.terms[f"loss/{self._name(context)}/{name}"] = term.detach()
        return _blended(terms["lm"], terms.get("kd"), self.weight)

    def _terms(self, context: LossContext, labels: Tensor) -> dict[str, Tensor]:
        """The LM term and, with a weight, the KD term of every position, float32 [B, T]."""
        head = self._heads.get(id(context.view)) or Head.from_model(context.view)
        student = last_hidden_state(context.model, context.inputs)
        rows = target_rows(labels != _IGNORE)
        targets = labels.reshape(-1)[rows].to(student.device)
        _check_ids(targets, head.vocabulary, "label", "student")
        flat = [student.reshape(-1, student.shape[-1])[rows.to(student.device)]]
        if self.weight > 0:
            hidden = self._teacher_states(context.inputs)
            flat.append(hidden.reshape(-1, hidden.shape[-1])[rows.to(hidden.device)])
        parts = in_chunks(self._chunk_function(head), self.chunk, targets, *flat)
        names = ("lm", "kd")[: parts.shape[-1]]
        return {name: scatter_rows(parts[:, i], rows, labels.shape) for i, name in enumerate(names)}

    def _chunk_function(self, head: Head) -> Callable[..., Tensor]:
        if self.weight == 0:
            return lambda targets, h: _surprise(head.logits(h), targets)[:, None]
        other = self._other_head()
        size = _common(head.vocabulary, other.vocabulary, self.vocabulary)
        measure = _Measure(self.divergence, self.beta, self.temperature, size)

        def both(targets: Tensor, h: Tensor, g: Tensor) -> Tensor:
            with torch.no_grad():
                known = other.logits(g)
            logits = head.logits(h)
            return torch.stack([_surprise(logits, targets), measure(logits, known.to(logits.device))], -1)

        return both

    def _teacher_states(self, inputs: Mapping[str, Any]) -> Tensor:
        """Hidden states [B, T, D'] of the teacher for what it accepts of the batch, on its own device."""
        teacher = self._known_teacher()
        view = view_of(teacher)
        accepted = inspect.signature(view.model.forward).parameters
        if isinstance(ids := inputs.get("input_ids"), Tensor):
            model: Any = view.model
            _check_ids(ids, len(model.get_input_embeddings().weight), "id", "teacher")
        given = {name: _moved(value, view.model) for name, value in inputs.items() if name in accepted}
        with torch.no_grad(), evaluation_mode(teacher):
            return last_hidden_state(teacher, given)

    def _labels(self, context: LossContext) -> Tensor:
        """What every position is to predict, int64 [B, T], -100 where nothing counts."""
        labels = next_token_labels(context.view, context.inputs)
        ids = context.inputs.get("input_ids")
        if self.official_mask:
            if not isinstance(ids, Tensor):
                raise DataError("the batch has no input_ids to find ends of documents in; pass official_mask=False")
            ends = torch.tensor(self._ends(context.view), device=ids.device)
            labels = labels.masked_fill(torch.isin(ids, ends).to(labels.device), _IGNORE)
        if not bool((labels != _IGNORE).any()):
            raise DataError(_NO_TARGET.format(rows=len(labels)))
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
        return context.example_mean(means[counts > 0])

    def _other_head(self) -> Head:
        if self._teacher_head is None:
            self._teacher_head = Head.from_model(self._known_teacher())
        return self._teacher_head

    def _known_teacher(self) -> nn.Module:
        if not isinstance(self.teacher, nn.Module):
            raise PluginIncompatible(
                f"Distil needs a teacher, got {type(self.teacher).__name__}: pass a causal language model with the "
                "student's tokenizer, Distil(teacher=model)"
            )
        return self.teacher

    def _name(self, context: LossContext) -> str:
        methods = {} if context.session is None else context.session.methods
        return next((name for name, method in methods.items() if method is self), "distil")


@dataclass(frozen=True, slots=True, eq=False)
class DistillationLoss:
    """What :func:`distillation_loss` gives.

    loss
        Scalar, (1 - w) * LM + w * KD, with gradient.
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
    """The loss of :class:`Distil` on given logits, float32 inside; see there for the options.

    :param student_logits: [B, T, V]; gradients flow to them. :param teacher_logits: [B, T, V']; none flow to them.
    :param labels: int64 [B, T]: what *the same* position predicts, as :func:`~paperhooks_miniplm.collate` gives them;
        nothing is shifted here.
    :param mask: bool or 0/1 [B, T], 1 where a position counts; labels other than -100 by default.
    :param chunk: positions to convert to float32 at once and compute again in the backward pass; all, once, by default.
    :raises ValueError: options out of range. :raises DataError: shapes or vocabularies that do not fit, or nothing
        that counts.
    """
    _check_options(weight, divergence, beta, temperature, reduction)
    counted = _counted(student_logits, teacher_logits, labels, mask)
    size = _common(student_logits.shape[-1], teacher_logits.shape[-1], vocabulary)
    measure = _Measure(divergence, beta, temperature, size)

    def terms(target: Tensor, s: Tensor, t: Tensor) -> Tensor:
        logits, known = s.float(), t.to(s.device).float()
        return torch.stack([_surprise(logits, target), measure(logits, known), measure.entropy(known)], -1)

    rows = target_rows(counted)
    given = [x.reshape(-1, x.shape[-1])[rows.to(x.device)] for x in (student_logits, teacher_logits.detach())]
    targets = labels.reshape(-1)[rows.to(labels.device)].to(student_logits.device)
    _check_ids(targets, student_logits.shape[-1], "label", "student")
    parts = terms(targets, *given) if chunk is None else in_chunks(terms, chunk, targets, *given)
    lm, kd, entropy = (scatter_rows(parts[:, i], rows, labels.shape) for i in range(3))
    (lm_mean, count), (kd_mean, _), (known, _) = (sequence_means(values, counted) for values in (lm, kd, entropy))
    if reduction == "token_mean":
        loss = _blended(lm.sum() / count.sum(), kd.sum() / count.sum(), weight)
    else:
        loss = _blended(lm_mean[count > 0].mean(), kd_mean[count > 0].mean(), weight)
    return DistillationLoss(loss, lm_mean, kd_mean, known, count)


@dataclass(frozen=True, slots=True)
class _Measure:
    """A divergence of logits [n, V] at every position.

    Terms where the *student* gives no mass add nothing and get no gradient, also in the cross-entropy, where they would
    be infinite: the official rule.
    """

    divergence: Divergence
    beta: float
    temperature: float
    size: int

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """float32 [n] for logits [n, V] and [n, V'] of which ``size`` are compared."""
        p, q = self._logs(teacher), self._logs(student)
        if self.divergence == "jsd" and 0 < self.beta < 1:
            return _jsd(p, q, self.beta)
        kind = {0: "forward", 1: "reverse"}[int(self.beta)] if self.divergence == "jsd" else self.divergence
        there = q > -torch.inf
        if kind == "cross_entropy":
            return -(p.exp() * q.masked_fill(~there, 0.0)).sum(-1)
        if kind == "forward":
            return _kl(p, q, there & (p > -torch.inf))
        return _kl(q, p, there)

    def entropy(self, teacher: Tensor) -> Tensor:
        """-sum p log p, float32 [n]."""
        p = self._logs(teacher)
        return -(p.exp() * p.masked_fill(p == -torch.inf, 0.0)).sum(-1)

    def _logs(self, logits: Tensor) -> Tensor:
        scaled = logits[..., : self.size]
        if self.temperature != 1.0:
            scaled = scaled / self.temperature
        # logsumexp is far more exact than log_softmax over a large vocabulary on CPU.
        return scaled - scaled.logsumexp(-1, keepdim=True)


def _kl(p: Tensor, q: Tensor, held: Tensor) -> Tensor:
    return (p.exp() * (p.masked_fill(~held, 0.0) - q.masked_fill(~held, 0.0))).sum(-1)


def _jsd(p: Tensor, q: Tensor, beta: float) -> Tensor:
    # Finite, so that an entry that neither has gives no NaN in the gradient of logaddexp.
    p, q = p.clamp(min=_NOTHING), q.clamp(min=_NOTHING)
    shares = torch.tensor([beta, 1 - beta], dtype=p.dtype, device=p.device).log()
    middle = torch.logaddexp(p + shares[0], q + shares[1])
    return beta * (p.exp() * (p - middle)).sum(-1) + (1 - beta) * (q.exp() * (q - middle)).sum(-1)


def _moved(value: Any, model: nn.Module) -> Any:
    device = torch.device(getattr(model, "device", "cpu"))
    # Of an offloaded model, what brings the weights brings the inputs too.
    return value.to(device) if isinstance(value, Tensor) and device.type != "meta" else value


def _surprise(logits: Tensor, targets: Tensor) -> Tensor:
    """-log q of the targets, [n]."""
    return logits.logsumexp(-1) - logits.gather(-1, targets[:, None])[:, 0]


def _blended(lm: Tensor, kd: Tensor | None, weight: float) -> Tensor:
    # At the ends the other term must not turn an infinite value into NaN.
    if kd is None or weight == 0:
        return lm
    return kd if weight == 1 else (1 - weight) * lm + weight * kd


def _check_options(weight: float, divergence: str, beta: float, temperature: float, reduction: str) -> None:
    for name, value, known in (("divergence", divergence, Divergence), ("reduction", reduction, Reduction)):
        if value not in get_args(known):
            raise ValueError(f"{name} is {value!r}; {did_you_mean(value, get_args(known))}")
    for name, share in (("weight", weight), ("beta", beta)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} is {share}; it must lie between 0 and 1")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0")


def _common(student: int, teacher: int, wanted: int | None) -> int:
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
    counted = (labels != _IGNORE) if mask is None else mask.bool().to(labels.device)
    if not bool(counted.any()):
        raise DataError(_NO_TARGET.format(rows=len(labels)))
    return counted


def _check_ids(ids: Tensor, size: int, what: str, whose: str) -> None:
    low, high = (int(bound) for bound in ids.aminmax())
    if not 0 <= low <= high < size:
        wrong = low if low < 0 else high
        raise DataError(f"{what} {wrong} is outside the {whose}'s vocabulary of {size}; do they share a tokenizer?")
