"""What a scoring run will cost, before it starts: arithmetic from the models' shapes, hours from a measured rate."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from paperhooks import ModelView
from paperhooks.models import experts_per_token, view_of
from torch import nn

from paperhooks_miniplm.algorithm import Array
from paperhooks_miniplm.corpus.record_rows import RecordRows
from paperhooks_miniplm.corpus.rows import RowSource, check_tokenizer, count_rows
from paperhooks_miniplm.corpus.sources import open_rows
from paperhooks_miniplm.scoring.jobs import end_token
from paperhooks_miniplm.scoring.likelihood import LogLikelihood, OverLong

__all__ = ["CostEstimate", "PlannedModel", "forward_flops", "plan"]

#: Bytes that scores take for each row and model: sum, count and bytes, 8 each, and whether it was cut.
_SCORE_BYTES = 25
#: Rows in which tokens are counted where counting all takes reading the corpus.
_SAMPLED = 1024


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """One model's part.

    flops
        Floating-point operations of all forward passes (two a multiply-add).
    tokens_per_second
        Measured here on a sample of the corpus; 0 where nothing was measured.
    hours
        Of one worker at that rate.
    """

    name: str
    parameters: int
    flops: float
    tokens_per_second: float
    hours: float


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """What scoring a corpus costs.

    rows, tokens
        Size of the corpus.
    read_bytes, written_bytes
        Ids read by each model (4 bytes a token), and scores left by all.
    student_flops
        Training the student that was asked about on its share of the tokens: 6 a parameter and token.
    estimated
        Whether tokens were counted in a sample of the rows only.
    """

    rows: int
    tokens: int
    read_bytes: int
    written_bytes: int
    models: tuple[PlannedModel, ...]
    workers: int
    student_flops: float = 0.0
    estimated: bool = False

    @property
    def measured(self) -> bool:
        """Whether there is a rate for every model."""
        return all(model.tokens_per_second > 0 for model in self.models)

    @property
    def flops(self) -> float:
        """Of all models."""
        return sum(model.flops for model in self.models)

    @property
    def hours(self) -> float:
        """Of all models, one after another, shared by the workers."""
        return sum(model.hours for model in self.models) / self.workers

    def __str__(self) -> str:
        about = "about " if self.estimated else ""
        lines = [f"{self.rows} rows, {about}{self.tokens} tokens, {self.workers} worker{'s' * (self.workers > 1)}"]
        for model in self.models:
            rate = (
                f"{model.tokens_per_second:.0f} tokens/s, {_duration(model.hours)}" if model.hours else "not measured"
            )
            lines.append(f"{model.name}: {model.parameters / 1e6:.1f} M parameters, {model.flops:.3g} FLOPs, {rate}")
        hours = _duration(self.hours) if self.measured else "time not measured"
        lines.append(
            f"in all: {self.flops:.3g} FLOPs, {hours}, reads {self.read_bytes / 1e6:.1f} MB a model, writes "
            f"{self.written_bytes / 1e6:.1f} MB"
        )
        if self.student_flops:
            share = self.flops / self.student_flops
            lines.append(
                f"training one student takes {self.student_flops:.3g} FLOPs; scoring is {share:.2f} times that"
            )
        return "\n".join(lines)


def plan(
    models: Mapping[str, nn.Module],
    rows: Any,
    *,
    tokenizer: Any = None,
    max_length: int = 1024,
    over_long: OverLong = "truncate",
    mask_after_end: bool = True,
    batch_tokens: int | None = None,
    sample_rows: int = 16,
    workers: int = 1,
    student: int = 0,
    kept: float = 0.5,
) -> CostEstimate:
    """Cost of scoring ``rows`` with each of ``models``, by name.

    Of files of records tokens are counted in 1,024 rows where lengths are not known; a stream is read to its end.

    :param rows, tokenizer, max_length, over_long, mask_after_end, batch_tokens: as for
        :func:`paperhooks_miniplm.score`.
    :param sample_rows: rows, spread over the corpus, that the rate is measured on; 0 measures nothing.
    :param workers: how many share the rows. :param student: parameters of a student to compare with, and the share of
        the corpus that it would be trained on, ``kept``.
    """
    rows = open_rows(rows, tokenizer)
    check_tokenizer(rows, tokenizer)
    counted = _counted(rows)
    size = count_rows(rows)
    lengths, scale = _read_lengths(counted, max_length, over_long), size / max(1, len(counted))
    tokens = round(scale * int(np.maximum(lengths - 1, 0).sum()))
    numbers = _spread(size, sample_rows) if size and sample_rows else []
    sample = dict(zip(numbers, (row.ids for row in rows.read(numbers)), strict=True))
    planned = []
    for name, model in models.items():
        end = end_token(model, tokenizer) if mask_after_end else None
        likelihood = LogLikelihood(model, end, max_length, over_long, batch_tokens)
        rate = _rate(likelihood, sample)
        flops = scale * forward_flops(view_of(model), lengths)
        hours = tokens / rate / 3600 if rate else 0.0
        planned.append(PlannedModel(name, sum(p.numel() for p in model.parameters()), flops, rate, hours))
    written = _SCORE_BYTES * size * len(models)
    student_flops = 6.0 * student * kept * tokens
    return CostEstimate(size, tokens, 4 * tokens, written, tuple(planned), workers, student_flops, len(counted) < size)


def _duration(hours: float) -> str:
    return f"{hours:.2f} h" if hours >= 0.1 else f"{3600 * hours:.0f} s"


def _spread(size: int, count: int) -> list[int]:
    """Up to ``count`` rows, evenly over a corpus."""
    found: list[int] = np.unique(np.linspace(0, max(0, size - 1), min(count, size)).astype(np.int64)).tolist()
    return found


def _counted(rows: RowSource) -> Array:
    """Lengths of the rows, int64: of all, or of some where counting them means reading all records."""
    if isinstance(rows, RecordRows) and not rows.counted and len(rows) > _SAMPLED:
        return np.array([len(row.ids) for row in rows.read(_spread(len(rows), _SAMPLED))], dtype=np.int64)
    return rows.lengths()


def _read_lengths(lengths: Array, max_length: int, over_long: OverLong) -> Array:
    """Lengths of what a model reads, one id more each: rows that are cut, or in pieces."""
    if over_long != "split":
        return np.minimum(lengths, max_length + 1)
    whole, rest = np.divmod(np.maximum(lengths - 1, 0), max_length)
    return np.concatenate([np.full(int(whole.sum()), max_length + 1), rest + 1])


def forward_flops(view: ModelView, lengths: Array) -> float:
    """Operations of one forward pass over rows of these lengths: matrices of layers and head, and causal attention."""
    config: Any = view.text_config
    matrices = sum(p.numel() for layer in view.layers for p in layer.parameters() if p.ndim >= 2)
    matrices = _active(config, matrices, view)
    head = int(config.vocab_size) * int(config.hidden_size)
    tokens = np.maximum(np.asarray(lengths, dtype=np.float64) - 1, 0)
    attention = 2.0 * len(view.layers) * int(config.hidden_size) * float((tokens**2).sum())
    return 2.0 * (matrices + head) * float(tokens.sum()) + attention


def _active(config: Any, matrices: int, view: ModelView) -> int:
    """Parameters that a token meets: of routed experts only those chosen."""
    routed = sum(p.numel() for layer in view.layers for p in layer.parameters() if p.ndim == 3)
    experts = experts_per_token(config)
    return matrices - routed + routed * experts[0] // experts[1] if experts is not None else matrices


def _rate(likelihood: LogLikelihood, sample: Mapping[int, Array]) -> float:
    """Tokens a second on the sample, rows by their numbers, after a first batch that is not counted."""
    numbers = [number for number, ids in sample.items() if len(ids) > 1]
    usable = [sample[number] for number in numbers]
    if not usable:
        return 0.0
    likelihood.score(usable[:1], numbers=numbers[:1])
    begin = time.perf_counter()
    likelihood.score(usable, numbers=numbers)
    seconds = time.perf_counter() - begin
    read = _read_lengths(np.array([len(ids) for ids in usable]), likelihood.max_length, likelihood.over_long)
    return float((read - 1).sum()) / seconds
